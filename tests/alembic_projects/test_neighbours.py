"""Beside other extensions of Alembic: each renders its own, none is in the way.

They run where those are installed, as by ``nox -s alembic_versions``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

IMPORT = "from models import Base"
FUNCTION = """
from alembic_utils.pg_function import PGFunction
from alembic_utils.replaceable_entity import register_entities

register_entities([PGFunction(
    schema="public",
    signature="one()",
    definition="RETURNS int LANGUAGE sql AS 'SELECT 1'",
)])
"""
ENUM = """
import enum
from sqlalchemy.orm import Mapped, mapped_column

class Kind(enum.Enum):
    big = "big"

class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[Kind]
"""


def forget_entities() -> None:
    """Take back what alembic_utils keeps for the whole process."""
    module = sys.modules.get("alembic_utils.replaceable_entity")
    if module is not None:
        module.registry.clear()


@pytest.mark.parametrize(
    ("package", "env", "models", "expected"),
    [
        ("alembic_utils", FUNCTION, "", "op.create_entity"),
        ("alembic_postgresql_enum", "import alembic_postgresql_enum", ENUM, "ENUM"),
    ],
)
def test_neighbour_and_we_are_both_there(
    request: pytest.FixtureRequest,
    make_project: Callable[..., Any],
    package: str,
    env: str,
    models: str,
    expected: str,
) -> None:
    """One revision holds what both of them found, and there is nothing left."""
    pytest.importorskip(package)
    request.addfinalizer(forget_entities)
    project = make_project("plain")
    script, module = project.folder / "migrations/env.py", project.folder / "models.py"
    script.write_text(script.read_text().replace(IMPORT, f"{IMPORT}\n{env}"))
    module.write_text(module.read_text() + models)
    revision = project.revise()
    assert expected in revision
    assert "postgresql.JSONB(astext_type=sa.Text())" in revision
    assert "sa_wfstate" not in revision
    project.upgrade()
    project.check()
    project.downgrade()
