"""The version that the code has seen is the one that its write is checked against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json
from sqlalchemy.orm.attributes import instance_dict

from ..errors import MappingError
from ..row.unread import Stamp, Unread
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from .row_keys import note_key

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState


OF_A_BASE: Final = frozenset({"state", "version", "provenance"})
"""The attributes that tell which version of a row an instance holds."""

_KEY = "sa_wfstate.seen"

EXPECTED: Final = "sa_wfstate.expected"
"""Where an instance keeps the version that the application has named for its flush."""


def seen_of(state: InstanceState[Any]) -> RowVersion | None:
    """Return the version that the code has seen, None if it has seen none."""
    noted = state.info.get(_KEY)
    if noted is None or isinstance(noted, RowVersion):
        return noted
    version, effect = noted
    if not isinstance(effect, str):
        effect = effect_id_in(effect)
    return RowVersion(version, effect)


def effect_id_in(provenance: Any) -> str | None:
    """Return the effect id of what an instance holds as its provenance."""
    if isinstance(provenance, (Stamp, Provenance)):
        return provenance.effect_id
    if not isinstance(provenance, Unread):
        return None
    # A row that was written by hand may lack it; that is no error here.
    stored = from_json(provenance.text)
    effect_id = stored.get("effect_id") if isinstance(stored, dict) else None
    return effect_id if isinstance(effect_id, str) else None


def saw(state: InstanceState[Any], seen: RowVersion | None) -> None:
    """Note that the code sees *seen*: it has read it, or has just written it."""
    if seen is None:
        state.info.pop(_KEY, None)
    else:
        state.info[_KEY] = seen
        note_key(state, written=True)


def saw_write(state: InstanceState[Any], version: int, effect_id: str | None) -> None:
    """Note that the code has just written *version*."""
    state.info[_KEY] = version, effect_id
    note_key(state, written=True)


def take_over(state: InstanceState[Any], other: InstanceState[Any]) -> None:
    """Give *state* the base of *other*, whose values it holds."""
    state.info[_KEY] = other.info.get(_KEY)
    note_key(state)


def load(state: InstanceState[Any], _: object) -> None:
    values = instance_dict(state.obj())
    note_key(state)
    provenance = values.get("provenance")
    if provenance is not None and "version" in values and not state.committed_state:
        state.info[_KEY] = values["version"], provenance
    elif "version" in values or "state" in values:
        _see(state, values)


def refresh(state: InstanceState[Any], _: object, attributes: Any | None) -> None:
    values = state.dict
    note_key(state)
    # A load in part leaves behind what it defers, as it was, and how to load it.
    deferred = OF_A_BASE & values.keys() & state.callables.keys()
    for name in deferred:
        del state.callables[name]  # The next load is going to tell for itself.
    if attributes is not None:
        deferred = OF_A_BASE.difference(attributes)
    arrived = OF_A_BASE & values.keys() - deferred
    if "state" in arrived or ("version" in arrived and _KEY not in state.info):
        _see(state, values, stale=deferred if attributes is None else ())


def _see(
    state: InstanceState[Any], values: Mapping[str, Any], stale: Collection[str] = ()
) -> None:
    """Make what *state* holds its base; None if a state came without its version."""
    if "version" not in values:
        state.info.setdefault(_KEY, None)
        return
    version, provenance = values["version"], None
    if "provenance" not in stale:
        provenance = state.committed_state.get("provenance", values.get("provenance"))
    known = seen_of(state) if provenance is None else None
    if known is None or known.version != version:
        state.info[_KEY] = (version, provenance)


def require_row_counts(connection: Connection, entity: str) -> None:
    """Refuse a dialect on which a lost update could not be seen."""
    dialect = connection.dialect
    if not dialect.supports_sane_rowcount and not dialect.update_returning:
        raise MappingError(
            entity,
            f"the dialect {dialect.name!r} reports neither row counts nor UPDATE … "
            "RETURNING, so a lost update could not be noticed",
        )
