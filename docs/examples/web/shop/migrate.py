"""Bring a database up to the newest tables, as ``alembic upgrade head`` does."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL


def config_of(url: URL) -> Config:
    """Return the configuration of Alembic; the driver must be a synchronous one."""
    config = Config()
    folder = Path(__file__).parents[1] / "migrations"
    config.set_main_option("script_location", str(folder))
    text = url.render_as_string(hide_password=False)
    config.set_main_option("sqlalchemy.url", text.replace("%", "%%"))
    return config


def migrate(url: URL) -> None:
    """Upgrade the database of *url*."""
    command.upgrade(config_of(url), "head")
