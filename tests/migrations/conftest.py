"""What the tests of the migrations share: the environment, and the catalog."""

from __future__ import annotations

import shutil
from argparse import Namespace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.config import Config
from sqlalchemy import Engine, NullPool, create_engine, inspect, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

ROOT = Path(__file__).resolve().parents[2]

# In the order of their columns, because a SELECT * or a COPY shows it.
COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated,
           a.attcollation::regcollation::text, a.attstorage, a.attcompression
    FROM pg_attribute a
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = CAST(:name AS regclass) AND a.attnum > 0
    ORDER BY a.attnum
"""
CONSTRAINTS = """
    SELECT conname, contype, pg_get_constraintdef(oid), convalidated
    FROM pg_constraint
    WHERE conrelid = CAST(:name AS regclass)
    ORDER BY conname
"""
INDEXES = """
    SELECT c.relname, pg_get_indexdef(i.indexrelid), i.indisprimary, i.indisvalid
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = CAST(:name AS regclass)
    ORDER BY c.relname
"""
TABLE = """
    SELECT relkind, relpersistence, reloptions, relrowsecurity,
           (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid)
    FROM pg_class c WHERE oid = CAST(:name AS regclass)
"""
OBJECTS = """
    SELECT 'pg_class', relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'pg_type', typname FROM pg_type
    WHERE typnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'pg_proc', proname FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace
"""


class Catalog:
    """What the database itself says it holds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def tables(self) -> set[str]:
        return set(inspect(self._engine).get_table_names())

    def objects(self) -> set[tuple[str, str]]:
        with self._engine.connect() as connection:
            return {(kind, name) for kind, name in connection.execute(text(OBJECTS))}

    def describe(self, table: str) -> dict[str, list[tuple[object, ...]]]:
        questions = {
            "columns": COLUMNS,
            "constraints": CONSTRAINTS,
            "indexes": INDEXES,
            "table": TABLE,
        }
        with self._engine.connect() as connection:
            return {
                what: [
                    tuple(row) for row in connection.execute(text(sql), {"name": table})
                ]
                for what, sql in questions.items()
            }

    def describe_all(self) -> dict[str, dict[str, list[tuple[object, ...]]]]:
        ours = sorted(self.tables() - {"sa_wfstate_alembic_version"})
        return {table: self.describe(table) for table in ours}

    def execute(self, script: str) -> None:
        """Run *script*, statements with semicolons between them."""
        with self._engine.connect() as connection:
            driver_connection = connection.connection.driver_connection
            driver_connection.execute(script)
            driver_connection.commit()


@pytest.fixture
def catalog(database: URL) -> Catalog:
    return Catalog(create_engine(database, poolclass=NullPool))


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Return a function that points Alembic to our environment, as a program would.

    Its arguments are those of ``-x``.
    """

    def make(*x: str, folder: Path = ROOT / "alembic") -> Config:
        config = Config(
            stdout=StringIO(), output_buffer=StringIO(), cmd_opts=Namespace(x=list(x))
        )
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        return config

    return make


@pytest.fixture
def config(database: URL, make_config: Callable[..., Config]) -> Config:
    """Point Alembic to our environment and to the test's database."""
    return make_config(f"url={database.render_as_string(hide_password=False)}")


@pytest.fixture
def make_copy(
    database: URL, make_config: Callable[..., Config], tmp_path: Path
) -> Callable[[], Config]:
    """Return a function that copies our environment, without its revisions."""

    def make() -> Config:
        folder = tmp_path / "alembic"
        (folder / "versions").mkdir(parents=True)
        for name in ["env.py", "script.py.mako"]:
            shutil.copy(ROOT / "alembic" / name, folder)
        url = database.render_as_string(hide_password=False)
        return make_config(f"url={url}", folder=folder)

    return make
