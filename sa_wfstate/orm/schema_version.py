"""Schema versions in the unit of work: what a flush writes, what a query may skip.

Reading upcasts and writes nothing. The next change of the state is written in the shape
of this code, together with its schema version, which is never assigned by the
application. A state that newer code has written is not written over, also not by code
that has not looked at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import select
from sqlalchemy.schema import ColumnDefault

from ..errors import MappingError, PayloadError, SchemaVersionAhead, WorkflowStateError
from ..payload.schema_versions import payload_schema
from ..row.columns import columns_of
from .collecting import Follower, is_same
from .mixin import WorkflowStateMixin
from .refusals import refusing
from .row_keys import key_columns_of, key_of

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper

    from ..payload.schema_versions import PayloadSchema


InstanceT = TypeVar("InstanceT", bound=WorkflowStateMixin[Any])

_DECLARED = (
    "__schema_version__",
    "__upcasters__",
    "__write_schema_version__",
    "__downcasters__",
)


def skip_unreadable(
    instances: Iterable[InstanceT], report: Callable[[WorkflowStateError], object]
) -> Iterator[InstanceT]:
    """Yield those of *instances* whose state can be read, and *report* the others.

    What is reported is the error that reading the state would raise: a PayloadError, or
    SchemaVersionAhead. Each names its row.

    >>> broken = []
    >>> for order in skip_unreadable(session.scalars(select(Order)), broken.append):
    ...     print(order.state.status)  # doctest: +SKIP
    """
    for instance in instances:
        try:
            _ = instance.state
        except (PayloadError, SchemaVersionAhead) as error:
            report(error)
        else:
            yield instance


@refusing
def after_mapper_constructed(mapper: Mapper[Any], cls: type[Any]) -> None:
    if mapper.inherits is not None and not mapper.concrete:
        for name in _DECLARED:
            if name in cls.__dict__:
                raise MappingError(
                    cls.__name__,
                    f"{name} belongs on {mapper.base_mapper.class_.__name__}, whose "
                    "table holds the state",
                )
        return
    # For bulk INSERTs, which send no event.
    column: Any = mapper.columns["schema_version"]
    column.default = ColumnDefault(payload_schema(mapper).write_version)


class _Stored(Follower, int):
    """The schema version of a row, which is written if and only if its state is.

    Also if it is the same: the row may have been upcast in bulk since it was loaded,
    which its version does not tell. *ahead* is raised if the row is beyond this code.
    """

    state: InstanceState[Any]
    known: bool
    ahead: SchemaVersionAhead | None = None

    def __eq__(self, other: object) -> bool:
        """Compare as SQLAlchemy does when it collects what to write."""
        if is_same(self.state, "state"):
            return True
        if self.ahead is not None:
            raise self.ahead
        return False

    __hash__ = int.__hash__


def follow_state(
    connection: Connection,
    state: InstanceState[Any],
    values: dict[str, Any],
    schema: PayloadSchema,
) -> None:
    """Let the flush write the schema version if it writes the state.

    *values* are those of the instance.
    """
    committed = state.committed_state
    found = committed.get("schema_version", values.get("schema_version"))
    if not isinstance(found, int) and {"state", "schema_version"} & committed.keys():
        # Not by the attribute: that would load the version of the row as well.
        mapper = state.mapper
        columns: Any = columns_of(mapper.columns["schema_version"].table)
        found = connection.scalar(
            select(columns.schema_version).where(
                key_columns_of(mapper).among([key_of(state)])
            )
        )
    stored = _Stored(found if isinstance(found, int) else 0)
    stored.state, stored.known = state, isinstance(found, int)
    if schema.is_ahead(stored):
        stored.ahead = SchemaVersionAhead(
            state.class_.__name__, key_of(state), int(stored), schema.version
        )
    # Also what was assigned, or merged from an instance that is older than an upcast.
    values["schema_version"] = schema.write_version
    committed["schema_version"] = stored


def forget_unwritten(state: InstanceState[Any]) -> None:
    """Take the schema version back if the flush has not written the state."""
    stored = state.committed_state.get("schema_version")
    if isinstance(stored, _Stored) and is_same(state, "state"):
        del state.committed_state["schema_version"]
        if stored.known:
            state.dict["schema_version"] = int(stored)
        else:
            del state.dict["schema_version"]
