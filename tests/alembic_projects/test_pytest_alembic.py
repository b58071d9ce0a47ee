"""The tests that pytest-alembic has built in, on our environment and on projects.

They run where it is installed, as by ``nox -s alembic_versions``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine

pytest.importorskip("pytest_alembic")

# By name: collected by its plugin, they would be run without a choice of environment.
from pytest_alembic.tests import (
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

__all__ = [
    "test_model_definitions_match_ddl",
    "test_single_head_revision",
    "test_up_down_consistency",
    "test_upgrade",
]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["our own", "own_table_args", "inheritance", "long_names"])
def alembic_config(
    request: pytest.FixtureRequest, make_project: Callable[..., Any]
) -> Any:
    """Point pytest-alembic to an environment that has its revisions."""
    if request.param == "our own":
        return {"script_location": str(ROOT / "alembic")}
    project = make_project(request.param)
    project.revise()
    return project.config


@pytest.fixture
def alembic_engine(database: URL) -> Engine:
    """Connect to an empty database."""
    return create_engine(database, poolclass=NullPool)
