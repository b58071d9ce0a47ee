"""Engines: which database engine a SQLAlchemy dialect of another name talks to.

A few statements differ by engine: the type of JSON columns, locks, savepoints. The
name of the dialect says which ones are sent. A dialect that is not known is refused
with a MappingError, unless the application says which known engine is like its own::

    use_profile("greenplum", profile="postgresql")

The profiles are ``postgresql``, ``citus``, ``yugabytedb``, ``cockroachdb``,
``auroradsql`` and ``sqlite``. With ``postgresql``, Citus and YugabyteDB are recognized
by themselves.
"""

from __future__ import annotations

from .row.engine_profiles import set_profile
from .values.public_names import publish

__all__ = ["use_profile"]


def use_profile(dialect: str, *, profile: str) -> None:
    """Make every dialect with the name *dialect* use the engine profile *profile*.

    It holds for the whole process. Call it before the first statement, because
    SQLAlchemy keeps compiled statements. Raises ValueError for an unknown *profile*.
    """
    set_profile(dialect, profile)


publish(globals())
