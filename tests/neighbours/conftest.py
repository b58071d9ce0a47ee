"""Tests beside other packages; each is skipped where its package is not installed.

``nox -s neighbours`` installs them all. Each test maps a workflow class as the package
wants it, migrates, lets two writers race, and sees the conflict reach the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata, produce_migrations
from alembic.operations import Operations, ops
from alembic.runtime.migration import MigrationContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sqlalchemy import Engine, MetaData

HERE = __file__.rsplit("/", 1)[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        path: Path = item.path
        if str(path).startswith(HERE):
            item.add_marker(pytest.mark.neighbours)


def flat(operations: Iterable[ops.MigrateOperation]) -> Iterable[ops.MigrateOperation]:
    for operation in operations:
        if isinstance(operation, ops.OpContainer):
            yield from flat(operation.ops)
        else:
            yield operation


@pytest.fixture
def migrate(engine: Engine) -> Callable[[MetaData], None]:
    """Return a function that runs the migration that Alembic generates."""

    def run(metadata: MetaData) -> None:
        with engine.begin() as connection:
            context = MigrationContext.configure(connection)
            generated = produce_migrations(context, metadata).upgrade_ops
            operations = Operations(context)
            for operation in flat([generated] if generated else []):
                operations.invoke(operation)
            assert compare_metadata(context, metadata) == []

    return run
