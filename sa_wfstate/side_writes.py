"""Side writes: what goes into the transaction of each commit, beside the row itself.

A *side writer* is attached to a workflow class and called for every version of it that
is written, whichever way: by a flush of the ORM, at its end and once for all its rows,
and by the compare-and-set of ``try_commit``, the stores and the reducer service, which
all go through the module ``statements``. It is handed the connection of the write,
whose transaction it shares: what it raises undoes the commit.

A class without side writers is not listened to.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from sqlalchemy import event, inspect
from sqlalchemy.orm import Session

from .snapshots import StateCommitted, WorkflowSnapshot
from .types import Unread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper

    from .mixin import WorkflowStateMixin

_KEY = "sa_wfstate.side_writes"


class SideWriter(Protocol):
    """Called with what a transaction has just written to the rows of one class."""

    def written(
        self, connection: Connection, commits: Sequence[StateCommitted[Any]]
    ) -> None:
        """Follow *commits*; no key is in them twice, and all their rows are locked."""

    def passed(
        self, connection: Connection, commits: Sequence[StateCommitted[Any]]
    ) -> None:
        """Follow *commits* whose rows are one version further: the flush wrote twice.

        It does with ``relationship(post_update=True)``. The second commits come next.
        """

    def deleted(self, connection: Connection, workflow_keys: Sequence[str]) -> None:
        """Follow the deletion of *workflow_keys* by a flush."""


@runtime_checkable
class KeepsEffects(Protocol):
    """A side writer that can tell later which effects were committed."""

    def keeps(
        self, connection: Connection, workflow_key: str, effect_ids: Sequence[str]
    ) -> bool:
        """Return whether a version is kept that one of *effect_ids* wrote."""


_writers: WeakKeyDictionary[Mapper[Any], tuple[SideWriter, ...]] = WeakKeyDictionary()


def attach(entity: type[WorkflowStateMixin[Any]], writer: SideWriter) -> None:
    """Call *writer* for every commit of *entity* and of its subclasses from now on."""
    mapper: Mapper[Any] = inspect(entity)
    if mapper not in _writers:
        for name, listener in _LISTENERS.items():
            event.listen(entity, name, listener, propagate=True, raw=True)
    if not event.contains(Session, "after_flush", _after_flush):
        event.listen(Session, "before_flush", _before_flush)
        event.listen(Session, "after_flush", _after_flush)
    _writers[mapper] = (*_writers.get(mapper, ()), writer)


def writers_of(mapper: Mapper[Any]) -> tuple[SideWriter, ...]:
    """Return the side writers of the class of *mapper*, its parents' first."""
    if not _writers:
        return ()
    lineage = lineage_of(mapper)
    return tuple(writer for each in lineage for writer in _writers.get(each, ()))


def lineage_of(mapper: Mapper[Any]) -> list[Mapper[Any]]:
    """Return *mapper* and its parents whose rows are rows of its own, eldest first."""
    lineage = [mapper]
    while lineage[0].inherits is not None and not lineage[0].concrete:
        lineage.insert(0, lineage[0].inherits)
    return lineage


def follow(
    connection: Connection, mapper: Mapper[Any], commits: Sequence[StateCommitted[Any]]
) -> None:
    """Let the side writers of *mapper* follow *commits*."""
    for writer in writers_of(mapper):
        writer.written(connection, commits)


class _Noted(NamedTuple):
    """A row that a flush may write: its version before, or for a deletion its key."""

    connection: Connection
    mapper: Mapper[Any]
    what: Any


class _Flushed:
    """What one flush is writing, by instance.

    Where side writers are attached to a class and to a subclass of it, the events of an
    instance come twice.
    """

    def __init__(self) -> None:
        self.saved: dict[InstanceState[Any], _Noted] = {}
        self.deleted: dict[InstanceState[Any], _Noted] = {}


def _flushed(state: InstanceState[Any]) -> _Flushed | None:
    session = state.session
    if session is None:
        return None
    flushed: _Flushed = session.info.setdefault(_KEY, _Flushed())
    return flushed


def _before_update(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    flushed, instance = _flushed(state), state.obj()
    if flushed is not None and instance is not None:
        flushed.saved[state] = _Noted(connection, mapper, int(instance.version))


def _after_write(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    flushed = _flushed(state)
    if flushed is not None and state not in flushed.saved:
        before = state.dict["version"] - 1
        flushed.saved[state] = _Noted(connection, mapper, before)


def _after_delete(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    flushed = _flushed(state)
    if flushed is not None:
        key = state.dict["workflow_key"]
        flushed.deleted[state] = _Noted(connection, mapper, key)


_LISTENERS = {
    "before_update": _before_update,
    "after_insert": _after_write,
    "after_update": _after_write,
    "after_delete": _after_delete,
}


def _snapshot(
    mapper: Mapper[Any], state: InstanceState[Any], version: int
) -> WorkflowSnapshot[Any]:
    """Read the row from its instance; the state is a copy, as from the database."""
    instance: Any = state.obj()
    column_type: Any = mapper.columns["state"].type
    value = state.dict.get("state")
    if value is None:
        value = instance.state
    text = value.text if isinstance(value, Unread) else column_type.dump(value)
    return WorkflowSnapshot(
        workflow_key=instance.workflow_key,
        version=version,
        state=column_type.load(text),
        updated_at=instance.updated_at,
        schema_version=instance.schema_version,
        provenance=instance.provenance,
    )


def _before_flush(session: Session, *_: object) -> None:
    session.info.pop(_KEY, None)  # A flush that failed has left its notes.


def _after_flush(session: Session, *_: object) -> None:
    flushed: _Flushed | None = session.info.pop(_KEY, None)
    if flushed is None:
        return
    for (connection, mapper), keys in _grouped(flushed.deleted):
        for writer in writers_of(mapper):
            writer.deleted(connection, keys)
    passed: dict[InstanceState[Any], _Noted] = {}
    last: dict[InstanceState[Any], _Noted] = {}
    for state, (connection, mapper, before) in flushed.saved.items():
        version = _version_of(state)
        # An UPDATE has counted the version; without one there was nothing to write.
        if version > before:
            last[state] = _Noted(connection, mapper, _commit(mapper, state, version))
        if version > before + 1:
            commit = _commit(mapper, state, version - 1)
            passed[state] = _Noted(connection, mapper, commit)
    for (connection, mapper), commits in _grouped(passed):
        for writer in writers_of(mapper):
            writer.passed(connection, commits)
    for (connection, mapper), commits in _grouped(last):
        follow(connection, mapper, commits)


def _version_of(state: InstanceState[Any]) -> int:
    instance: Any = state.obj()
    return int(instance.version)


def _commit(
    mapper: Mapper[Any], state: InstanceState[Any], version: int
) -> StateCommitted[Any]:
    return StateCommitted(
        state.dict["workflow_key"], version, lambda: _snapshot(mapper, state, version)
    )


def _grouped(
    noted: dict[InstanceState[Any], _Noted],
) -> Iterable[tuple[tuple[Connection, Mapper[Any]], list[Any]]]:
    groups: defaultdict[tuple[Connection, Mapper[Any]], list[Any]] = defaultdict(list)
    for connection, mapper, what in noted.values():
        groups[connection, mapper].append(what)
    return groups.items()
