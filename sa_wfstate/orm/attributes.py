"""The ORM attribute of a PydanticJSON column: built when read, compared when flushed.

A loaded instance holds the JSON text of its row. The value is built from it when the
attribute is first read, so that a row whose state is not read costs no more than its
text. From then on ``tracking.py`` looks for changes, unless it is deeply frozen.

Every mapped PydanticJSON column gets such an attribute, also outside of
WorkflowStateMixin: it is put in place when SQLAlchemy instruments the attribute.
"""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PydanticUserError
from sqlalchemy import Column, type_coerce
from sqlalchemy.orm import (
    ColumnProperty,
    InstanceState,
    Mapper,
    PassiveFlag,
)
from sqlalchemy.orm.attributes import (
    History,
    InstrumentedAttribute,
    instance_dict,
    instance_state,
)
from sqlalchemy.orm.instrumentation import manager_of_class
from sqlalchemy.orm.interfaces import LoaderStrategy

from ..errors import MappingError, PayloadError
from ..row.columns import column_of, key_columns
from ..row.types import PydanticJSON, UnreadJSON
from ..row.unread import Before, Unread
from ..values.keys import key_of_parts
from .baseline import is_changed, original, read, take_baseline, track, tracked
from .refusals import refusing
from .tracking import hold

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..payload.schema_versions import PayloadSchema


_PLAIN = (("deferred", False), ("instrument", True))


class TrackedAttribute(InstrumentedAttribute[Any]):
    """Note each value that is handed out."""

    __slots__ = ()
    inherit_cache = True

    def __getattr__(self, key: str) -> Any:
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key.startswith("_"):
                raise
            entity, name = self.class_.__name__, self.key
            raise AttributeError(
                f"{entity}.{name} is a column and has no attribute {key!r}; for a "
                f"field in its JSON write field_of({entity}.{name}).{key}"
            ) from None

    def __get__(self, instance: object | None, owner: Any) -> Any:
        if instance is None:
            return self
        value = super().__get__(instance, owner)
        if value is None:
            return None
        state: InstanceState[Any] = instance_state(instance)
        key, source = self.key, None
        if isinstance(value, Unread):
            value, source = read(state, instance_dict(instance), key, value)
        if take_baseline(state, key, value, source) or state.key is None:
            hold(state, instance, key)
        return value


class _TrackedImpl:
    """What SQLAlchemy itself calls, for its history, for merge() and the like."""

    __slots__ = ()
    key: str
    dispatch: Any

    def get(
        self, state: Any, dict_: Any, passive: PassiveFlag = PassiveFlag.PASSIVE_OFF
    ) -> Any:
        value = super().get(state, dict_, passive)  # type: ignore[misc]
        return self._read(state, dict_, value) if isinstance(value, Unread) else value

    def _read(self, state: InstanceState[Any], held: Any, unread: Unread) -> Any:
        """Build the value, and note what it was: a listener may change it in place."""
        value, source = read(state, held, self.key, unread)
        take_baseline(state, self.key, value, source)
        return value

    def set(
        self, state: Any, dict_: Any, value: Any, *args: Any, **kwargs: Any
    ) -> None:
        old = dict_.get(self.key)
        if isinstance(value, Unread):  # merge() copies what the other instance holds.
            if isinstance(old, Unread) and old.text == value.text:
                return
            value = tracked(state)[self.key].load(value.text)
        if isinstance(old, Unread) and self.dispatch.set:
            # A listener is told what was there; of a row that is broken, its text.
            with suppress(PayloadError):
                self._read(state, dict_, old)
        super().set(state, dict_, value, *args, **kwargs)  # type: ignore[misc]
        if state.session_id is None:
            return
        instance = state.obj()
        if instance is not None:
            hold(state, instance, self.key, assigned=True)

    def get_history(
        self, state: Any, dict_: Any, passive: PassiveFlag = PassiveFlag.PASSIVE_OFF
    ) -> History:
        history: History
        kept = state.committed_state.get(self.key)
        if isinstance(kept, Before):
            value = dict_.get(self.key)
            if value is not None and kept.looks_like(value):
                history = History((), [value], ())
            else:
                history = History([value], (), [kept] if kept.known else ())
        elif is_changed(state, self.key):
            before = original(state, self.key)
            was = [] if before is None else [Unread(before)]
            history = History([dict_[self.key]], (), was)
        else:
            history = super().get_history(state, dict_, passive)  # type: ignore[misc]
        if passive is PassiveFlag.NO_CHANGE:
            return history  # Only whether there is any change is asked for.
        return History(*(self._build(state, part) for part in history))

    def _build(self, state: InstanceState[Any], part: Any) -> list[Any]:
        load = tracked(state)[self.key].load
        return [load(v.text) if isinstance(v, Unread) else v for v in part or ()]


@cache
def _tracked_impl(impl: Any) -> type[Any]:
    return type(f"Tracked{impl.__name__}", (_TrackedImpl, impl), {"__slots__": ()})


class _UnreadLoader(LoaderStrategy):
    """Load the text only; where that does not work, the value as of any column.

    A state is read together with its schema version and its key. So it need not be
    marked by the server, to which the expression for that is a sixth of its work; but
    an alias, which may be a subquery without them, or an eager load has it marked.
    """

    __slots__ = ("_load", "_marked", "_plain", "_row", "_schema")

    def __init__(self, prop: Any) -> None:
        super().__init__(prop, prop.strategy_key)
        self._plain = prop.strategy
        (column,) = prop.columns
        unread = column.type.unread()
        self._marked = copy(self._plain)
        self._marked.columns = [type_coerce(column, unread).label(column.key)]
        self._schema, self._load, self._row = unread.payload_schema, unread.load, ()
        rows = column.table
        beside = [column_of(rows, "schema_version"), *key_columns(rows)]
        if self._schema is not None and all(each is not None for each in beside):
            text = type_coerce(column, UnreadJSON(unread.type_))
            self._row = (text.label(column.key), *beside)

    def init_class_attribute(self, mapper: Mapper[Any]) -> None:
        self._plain.init_class_attribute(mapper)

    def setup_query(
        self,
        compile_state: Any,
        query_entity: Any,
        path: Any,
        loadopt: Any,
        adapter: Any,
        **kwargs: Any,
    ) -> None:
        # With RETURNING, only the columns of the table itself can be adapted.
        returning = kwargs.get("check_for_adapt")
        if self._row and not adapter and not returning:
            for column in self._row:
                if column not in compile_state.dedupe_columns:
                    compile_state.dedupe_columns.add(column)
                    kwargs["column_collection"].append(column)
            # No such column is read: so create_row_processor() is asked for a getter,
            # once for each compiled statement, not for each execution.
            (other,) = self._marked.columns
            kwargs["memoized_populators"][self.parent_property] = other
            return
        loader = self._plain if returning else self._marked
        loader.setup_query(
            compile_state, query_entity, path, loadopt, adapter, **kwargs
        )

    def create_row_processor(
        self,
        context: Any,
        query_entity: Any,
        path: Any,
        loadopt: Any,
        mapper: Any,
        result: Any,
        adapter: Any,
        populators: Any,
    ) -> None:
        if self._row and not adapter:
            getters = [result._getter(column, raiseerr=False) for column in self._row]  # noqa: SLF001
            if all(getters):
                populators["quick"].append(
                    (self.key, _marked(self._schema, self._load, *getters))
                )
                return
        before = len(populators["quick"])
        self._marked.create_row_processor(
            context, query_entity, path, loadopt, mapper, result, adapter, populators
        )
        if len(populators["quick"]) == before:
            populators["expire"].pop()
            self._plain.create_row_processor(
                context,
                query_entity,
                path,
                loadopt,
                mapper,
                result,
                adapter,
                populators,
            )


def _marked(
    schema: PayloadSchema,
    load: Callable[[str], Any],
    text_of: Callable[[Any], Unread | None],
    version_of: Callable[[Any], int],
    *parts_of: Callable[[Any], Any],
) -> Callable[[Any], Unread | None]:
    """Return what gets the text of a row, marked if it is at another version."""
    current = schema.version

    def get(row: Any) -> Unread | None:
        version = version_of(row)
        if version == current:
            return text_of(row)
        unread = text_of(row)
        if unread is None:
            return None
        key = key_of_parts(*(part_of(row) for part_of in parts_of))
        return Unread(schema.mark(unread.text, version, key), load)

    return get


def attribute_instrument(
    cls: type[Any], key: str, attribute: InstrumentedAttribute[Any]
) -> PydanticJSON[Any] | None:
    """Track *attribute* if its column is a PydanticJSON; return its type then."""
    prop = getattr(attribute.comparator, "prop", None)
    if not isinstance(prop, ColumnProperty):
        return None
    column = prop.columns[0]
    if not isinstance(column, Column) or not isinstance(column.type, PydanticJSON):
        return None
    _check(cls.__name__, key, column.type)
    manager = manager_of_class(cls)
    track(manager, key, column.type)
    column.type.column_name = column.type.column_name or f"{cls.__name__} {column.key}"
    attribute.__class__ = TrackedAttribute
    impl: Any = attribute.impl
    impl_class: Any = type(impl)
    impl.__class__ = _tracked_impl(impl_class)
    plain = prop.strategy_key == _PLAIN and len(prop.columns) == 1
    plain = plain and not isinstance(prop.strategy, _UnreadLoader)  # Of a base class.
    if plain and not issubclass(cls, BaseModel):  # A model is dumped as it is held.
        prop.strategy = _UnreadLoader(prop)
    return column.type


@refusing
def after_mapper_constructed(mapper: Mapper[Any], cls: type[Any]) -> None:
    for key, column in mapper.columns.items():
        if isinstance(column.type, PydanticJSON):
            # A class that it refers to may not be defined yet: then when it is used.
            with suppress(PydanticUserError):
                _check(cls.__name__, key, column.type)


def _check(entity: str, key: str, column_type: PydanticJSON[Any]) -> None:
    """Raise MappingError if its type loses anything that was not accepted by name."""
    for name, problem in column_type.codec.losses.items():
        if name not in column_type.accept:
            raise MappingError(
                entity,
                f"the type of {key} cannot be kept as JSON: {name} {problem}; or "
                f"accept the loss by name: accept={{{name!r}}}",
            )
