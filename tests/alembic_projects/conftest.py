"""Tiny projects, each with an environment as ``alembic init`` makes it."""

from __future__ import annotations

import shutil
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

HERE = Path(__file__).parent


class Project:
    """One project: a copy of its models, and a stock environment beside them.

    *options* are added to the environment's ``context.configure()``.
    """

    def __init__(self, name: str, folder: Path, url: URL, options: str = "") -> None:
        self.folder = folder
        shutil.copytree(HERE / name, folder)
        self.url = url.render_as_string(hide_password=False)
        ini = Config(folder / "alembic.ini", stdout=StringIO())
        command.init(ini, str(folder / "migrations"))
        env = folder / "migrations" / "env.py"
        text = env.read_text()
        text = text.replace(
            "target_metadata = None",
            "from models import Base\n\ntarget_metadata = Base.metadata",
        )
        if options:
            text = text.replace(
                "target_metadata=target_metadata",
                f"target_metadata=target_metadata, {options}",
            )
        env.write_text(text)

    @property
    def config(self) -> Config:
        """The project's configuration, without the logging of its alembic.ini."""
        config = Config(stdout=StringIO(), output_buffer=StringIO())
        config.set_main_option("script_location", str(self.folder / "migrations"))
        config.set_main_option("sqlalchemy.url", self.url.replace("%", "%%"))
        return config

    def revise(self, message: str = "generated") -> str:
        """Autogenerate a revision; return what it says."""
        script = command.revision(self.config, message, autogenerate=True)
        return Path(script.path).read_text()

    def upgrade(self) -> None:
        command.upgrade(self.config, "head")

    def downgrade(self) -> None:
        command.downgrade(self.config, "base")

    def check(self) -> None:
        command.check(self.config)

    def execute(self, *statements: str) -> None:
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


@pytest.fixture
def make_project(
    database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Project]]:
    """Return a function that sets a project up on the test's database."""

    def make(name: str, options: str = "", url: URL = database) -> Project:
        project = Project(name, tmp_path / name, url, options)
        monkeypatch.syspath_prepend(str(project.folder))
        return project

    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "models", raising=False)
        yield make
    sys.modules.pop("models", None)
