"""WorkflowStateMixin: the columns of a workflow row, and the guards of its mapping.

::

    class OrderState(BaseModel):
        status: str = "new"


    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = "orders"

That is all. The class gets the six columns of the canonical row, its ``version`` column
is SQLAlchemy's ``version_id_col``, and the table gets the CHECK constraints. This is
done after the mapper has been constructed, so that ``__mapper_args__`` and
``__table_args__`` of the class cannot drop the version check.
"""

# Annotations are no strings here: SQLAlchemy would evaluate those of the columns anew
# for each workflow class, which takes a tenth of its mapping.
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Never,
    Protocol,
    TypeVar,
    cast,
    get_args,
    get_origin,
    overload,
)

from sqlalchemy import BigInteger, DateTime, Integer, Table, Text, func, text
from sqlalchemy.orm import Mapped, Mapper, declared_attr, mapped_column
from sqlalchemy.orm.attributes import InstrumentedAttribute

from ..errors import MappingError, VersionNotAssignable
from ..payload.rebase import Rebase
from ..payload.schema_versions import Step, schema_of
from ..row.columns import note_columns
from ..row.ddl import (
    add_constraints,
    add_indexes,
    add_unique_key,
    check_key_references,
)
from ..row.types import PydanticJSON
from ..values.provenance import Provenance
from .dataclass_columns import declare_columns, refuse_model
from .mapped_columns import check_columns, complete_columns, require_columns
from .refusals import refusing
from .row_keys import note_key_column
from .version_comparator import compare_effects

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..values.keys import Key


StateT = TypeVar("StateT")
REFUSED = "sa_wfstate.refused"

if TYPE_CHECKING:

    class _Version(Protocol):
        """A column that the application reads; a Mapped[int] may take its place."""

        @overload
        def __get__(self, instance: None, owner: Any) -> InstrumentedAttribute[int]: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> int: ...
        def __set__(self, instance: Any, value: Never) -> None: ...

    class _declared_state(Generic[StateT]):  # noqa: N801
        """``declared_attr`` with a setter that knows the type of the state."""

        def __init__(self, function: Callable[[Any], Mapped[StateT]]) -> None: ...
        @overload
        def __get__(
            self, instance: None, owner: Any
        ) -> InstrumentedAttribute[StateT]: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> StateT: ...
        def __get__(self, instance: object | None, owner: Any) -> Any: ...
        def __set__(self, instance: object, value: StateT) -> None: ...

else:
    _declared_state = declared_attr


class WorkflowStateMixin(Generic[StateT]):
    """Make a mapped class a workflow with a state of type *StateT*.

    *StateT* is any type that Pydantic's TypeAdapter takes, most often a model. It is
    given as ``WorkflowStateMixin[OrderState]`` when the class, or an abstract base of
    it, is defined.

    A row that is written without a new :attr:`provenance` gets that of
    :meth:`default_provenance`.
    """

    __workflow_indexes__: ClassVar[tuple[str, ...]] = ()
    """Optional indexes: "version", "updated", "recent", "state", "provenance".

    The first two are B-trees and cost the HOT update, the last two are GIN. "recent" is
    a BRIN index on updated_at, for projections: from PostgreSQL 16 on it keeps HOT.
    """

    __state_options__: ClassVar[Mapping[str, Any]] = {}
    """Options of the state's PydanticJSON: accept, round_trip, mutable, eager."""

    __unversioned__: ClassVar[Collection[str]] = ()
    """Columns of the application's own whose changes alone count no version."""

    __schema_version__: ClassVar[int] = 1
    """The version of the state's shape that this code knows."""

    __upcasters__: ClassVar[Mapping[int, Step]] = {}
    """How JSON data of each older schema version becomes that of the next."""

    __write_schema_version__: ClassVar[int | None] = None
    """The schema version to store, if older code still has to read what is written."""

    __downcasters__: ClassVar[Mapping[int, Step]] = {}
    """How JSON data becomes that of the version before, down to the one to store."""

    __rebase__: ClassVar[Rebase | None] = None
    """Rules to merge a write with those that came first; see merging."""

    workflow_key: Mapped[str] = mapped_column(Text, nullable=False, sort_order=-60)
    """The key of the workflow, 1 to 255 characters.

    It is the primary key, unless the class has one of its own: then it is unique.
    """

    if TYPE_CHECKING:
        version: _Version

        def __init__(
            self,
            *,
            workflow_key: Key = ...,
            state: StateT = ...,
            provenance: Provenance = ...,
            **columns: Any,
        ) -> None: ...

    else:
        version: Mapped[int] = mapped_column(
            BigInteger, nullable=False, server_default=text("1"), sort_order=-50
        )
        """Counts the commits, from 1; never assigned by the application."""

    @_declared_state
    def state(cls: Any) -> Mapped[StateT]:  # noqa: N805
        """Hold the state; changes in place are seen."""
        if "__table__" in cls.__dict__:
            return cast("Mapped[StateT]", cls.__table__.c.state)
        try:
            schema = schema_of(cls)
            type_: PydanticJSON[Any] = PydanticJSON(
                _state_type(cls), payload_schema=schema, **cls.__state_options__
            )
        except MappingError as error:
            # To be raised when there is a mapper, which can be taken back.
            refused = {REFUSED: error}
            return mapped_column(PydanticJSON(Any), nullable=False, info=refused)
        return mapped_column(type_, nullable=False, sort_order=-40)

    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True),
        nullable=False,
        server_default=func.now(),
        onupdate=func.now(),
        sort_order=-30,
    )
    """When the row was last written, by the server's clock."""

    schema_version: Mapped[int] = mapped_column(
        Integer,
        nullable=False,
        server_default=text("1"),
        insert_default=1,
        sort_order=-20,
    )
    """The version of the payload's shape."""

    provenance: Mapped[Provenance] = mapped_column(
        PydanticJSON(Provenance, mutable=False),
        nullable=False,
        # For bulk INSERTs, which send no event; see default_provenance().
        insert_default=Provenance.now,
        sort_order=-10,
    )
    """Which effect wrote this version."""

    def __init_subclass__(cls, **options: Any) -> None:
        refuse_model(cls, WorkflowStateMixin)
        declare_columns(cls, WorkflowStateMixin)
        super().__init_subclass__(**options)

    def default_provenance(self) -> Provenance:
        """Return the provenance of a flush that was given none; may be overridden."""
        return Provenance.now()


class _VersionAttribute(InstrumentedAttribute[Any]):
    """The version, which SQLAlchemy counts and the application cannot set."""

    __slots__ = ()
    inherit_cache = True

    def __set__(self, instance: object, value: Any) -> None:
        raise VersionNotAssignable(type(instance).__name__)


def _state_type(cls: type[Any]) -> Any:
    """Return what *cls* put in the brackets of WorkflowStateMixin[…]."""
    bound = argument_of(cls)
    if bound is None or isinstance(bound, TypeVar):
        raise MappingError(
            cls.__name__,
            "its state has no type; derive it from WorkflowStateMixin[YourState]",
        )
    return bound


def argument_of(cls: type[Any], known: Mapping[Any, Any] | None = None) -> Any:
    """Follow the generic bases of *cls* down to the mixin, substituting *known*."""
    bases = cls.__dict__.get("__orig_bases__", cls.__bases__)
    for base in bases:
        origin = get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, WorkflowStateMixin)):
            continue
        arguments = [(known or {}).get(a, a) for a in get_args(base)]
        if origin is WorkflowStateMixin:
            return arguments[0] if arguments else None
        parameters = getattr(origin, "__parameters__", ())
        bound = argument_of(origin, dict(zip(parameters, arguments, strict=False)))
        if bound is not None:
            return bound
    return None


@refusing
def after_mapper_constructed(mapper: Mapper[Any], cls: type[Any]) -> None:
    table = mapper.local_table
    require_columns(mapper)
    refused = mapper.columns["state"].info.get(REFUSED)
    if refused is not None:
        raise refused
    if mapper.inherits is None or mapper.concrete:
        if not isinstance(table, Table):
            raise MappingError(cls.__name__, "a workflow must be mapped to a table")
        _guard_version(mapper, table)
        add_unique_key(cls.__name__, table)
        check_key_references(cls.__name__, table)
        add_constraints(table)
        add_indexes(cls.__name__, table, cls.__workflow_indexes__)
        if mapper.eager_defaults == "auto":
            # updated_at comes back with each write: reading it later would be a query,
            # which an AsyncSession cannot send from an attribute.
            mapper.eager_defaults = True
    if mapper.version_id_col is None:
        raise MappingError(
            cls.__name__,
            f"derives from {mapper.base_mapper.class_.__name__}, which is no workflow, "
            "and SQLAlchemy compares versions in the table of the base only; derive "
            "the base from WorkflowStateMixin, or map the class without inheritance",
        )
    note_key_column(mapper)
    cls.version.__class__ = _VersionAttribute


def _guard_version(mapper: Mapper[Any], table: Table) -> None:
    columns = note_columns(mapper, table)
    state_type: Any = columns.state.type
    if isinstance(state_type, PydanticJSON) and state_type.payload_schema is None:
        columns.state.type = state_type.with_schema(schema_of(mapper.class_))
    check_columns(mapper.class_.__name__, columns)
    complete_columns(columns)
    named: Any = mapper.version_id_col
    # One of a mixin, which the class has replaced, has neither a table nor a name.
    if named is None or (named.table is None and named.name is None):
        mapper.version_id_col = columns.version
    elif named is not columns.version:
        raise MappingError(
            mapper.class_.__name__,
            "__mapper_args__ names another version_id_col; leave it out, and take over "
            f"that column: version: … = mapped_column({named.name!r}, "
            "BigInteger, …)",
        )
    compare_effects(mapper.class_.__name__, columns.version)
    if mapper.version_id_generator is False:
        raise MappingError(
            mapper.class_.__name__,
            "version_id_generator=False would leave the version to the application; "
            "leave it out of __mapper_args__",
        )
