"""What a command works on: a name of the application, and a database."""

from __future__ import annotations

import asyncio
import configparser
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine


T = TypeVar("T")

EXTRAS = {
    "psycopg": "postgresql",
    "asyncpg": "asyncpg",
    "jsonpatch": "history",
    "rich": "cli",
    "alembic": "alembic",
}
"""The extra that installs a library."""

TEMPLATE_URL = "driver://user:pass@localhost/dbname"
"""The URL in a new alembic.ini, before it is edited."""


class CommandError(Exception):
    """A command that cannot be done; the text is one line."""


def load(name: str) -> Any:
    """Import the object called *name*, as ``package.module:Name``."""
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise CommandError(
            f"{name!r} does not name a class; write package.module:Class"
        )
    if not {"", str(Path.cwd())} & {*sys.path}:
        # As python -m does; a command that is installed does not.
        sys.path.insert(0, "")
    try:
        module = import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CommandError(f"cannot import {module_name}: {reason}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise CommandError(f"{module_name} has no {attribute}") from None


def database_url(given: str | None) -> URL:
    """Return the URL *given*, or that of the environment, or that of alembic.ini.

    A plain ``postgresql://`` means psycopg.
    """
    text = given or os.environ.get("SA_WFSTATE_URL") or _url_of_alembic()
    if not text:
        raise CommandError(
            "no database URL; give one with --url, in SA_WFSTATE_URL, or as "
            "sqlalchemy.url in alembic.ini"
        )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Not the text itself, which may hold a password.
        raise CommandError("the database URL cannot be read") from None
    # The part after an @ in a password would be taken for the host, and be shown.
    _, _, after_user = text.partition("://")[2].partition(":")
    if url.password is not None and "@" in after_user.partition("@")[2]:
        raise CommandError(
            "the database URL cannot be read: an @ in a password or an option is "
            "written %40"
        )
    plain = url.drivername == "postgresql"
    return url.set(drivername="postgresql+psycopg") if plain else url


def _url_of_alembic() -> str | None:
    path = Path("alembic.ini")
    if not path.is_file():
        return None
    parser = configparser.ConfigParser({"here": str(path.parent.resolve())})
    try:
        parser.read(path, "utf-8")
        url = parser.get("alembic", "sqlalchemy.url", fallback=None)
    except configparser.Error:
        # Its message may quote the line, and that a password.
        raise CommandError(
            "alembic.ini cannot be read; a % in a password is written %%"
        ) from None
    return None if url == TEMPLATE_URL else url


def with_engine(url: URL, call: Callable[[Engine], T]) -> T:
    """Call *call* with an engine of *url*, whose driver may be an async one."""
    try:
        is_async = url.get_dialect().is_async
        if not is_async:
            engine = create_engine(url, poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise CommandError(how_to_install(error)) from error
    if is_async:
        return _with_async_engine(url, call)
    return with_engine_of(engine, call)


def _with_async_engine(url: URL, call: Callable[[Engine], T]) -> T:
    from sqlalchemy.ext.asyncio import create_async_engine

    try:
        engine = create_async_engine(url, poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise CommandError(how_to_install(error)) from error
    return with_engine_of(engine, call)


def with_engine_of(engine: Engine | AsyncEngine, call: Callable[[Engine], T]) -> T:
    """Call *call* with *engine*, and dispose of it."""
    from sqlalchemy import Engine
    from sqlalchemy.util import greenlet_spawn

    if isinstance(engine, Engine):
        try:
            return call(engine)
        finally:
            engine.dispose()

    async def run() -> T:
        try:
            result: T = await greenlet_spawn(call, engine.sync_engine)
        finally:
            await engine.dispose()
        return result

    return asyncio.run(run())


def how_to_install(error: ImportError) -> str:
    """Return the pip command for the library that *error* misses."""
    name = (error.name or "").partition(".")[0]
    if "pip install" in str(error) or not name:
        return str(error)
    wanted = f"'sa-wfstate[{EXTRAS[name]}]'" if name in EXTRAS else name
    return f"{name} is not installed: pip install {wanted}"
