"""Baselines: the JSON that the row of an instance held when its value was handed out.

A baseline is kept in the instance's ``InstanceState.info``, so that it goes along when
the instance is detached, pickled, or added to another session. It belongs to one value:
when the attribute holds another one without having been set, it was refreshed, and the
baseline is void.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ClauseElement
from sqlalchemy.orm import InstanceState, LoaderCallableStatus, QueryableAttribute
from sqlalchemy.orm.attributes import instance_dict

from ..errors import PayloadError
from ..payload.schema_versions import MARK
from ..row.unread import Before, Unread
from .row_keys import is_workflow, known_key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm.instrumentation import ClassManager

    from ..row.types import PydanticJSON


BASELINES = "sa_wfstate.baselines"
MANY = 16
"""From how many instances on it is worth to look at those of a class at once."""
SQL = (ClauseElement, QueryableAttribute)


class Baseline:
    """The JSON *text*, as its type dumps it, of *value* as it was read.

    Until it is asked for, it may be only the *source* that the value was read from.
    """

    __slots__ = ("source", "text", "value")

    def __init__(self, value: Any, text: str | None, source: str | None = None) -> None:
        self.value = value
        self.text = text
        self.source = source


def track(manager: ClassManager[Any], key: str, column_type: PydanticJSON[Any]) -> None:
    """Note that the class of *manager* has a PydanticJSON attribute."""
    manager.info.setdefault(BASELINES, {})[key] = column_type


def tracked(state: InstanceState[Any]) -> dict[str, PydanticJSON[Any]]:
    """Return the types of the PydanticJSON attributes of an instance, by key."""
    types: dict[str, PydanticJSON[Any]] = state.manager.info.get(BASELINES) or {}
    return types


def baselines_of(state: InstanceState[Any]) -> dict[str, Baseline]:
    """Return the baselines of an instance, by key."""
    baselines: dict[str, Baseline] | None = state.info.get(BASELINES)
    if baselines is None:
        baselines = state.info[BASELINES] = {}
    return baselines


def read(
    state: InstanceState[Any], held: dict[str, Any], key: str, unread: Unread
) -> tuple[Any, str]:
    """Build the value of an attribute that was not read yet, and put it into *held*.

    Those are the values of the instance. Returns it with the text it was built from.
    """
    text = unread.text
    column_type: PydanticJSON[Any] = state.manager.info[BASELINES][key]
    schema = column_type.payload_schema
    if schema is not None:
        # A textual SELECT has not marked it. In a flush, the attribute is ahead.
        version, was = held.get("schema_version"), state.committed_state
        if was and isinstance(stored := was.get("schema_version"), int) and stored > 0:
            version = stored
        if version != schema.version:
            text = schema.mark(text, version, _key_of(state))
    try:
        value = column_type.codec.load(text)
    except PayloadError as error:
        note = "" if schema is None else f" (schema version {schema.version_of(text)})"
        raise located(error, state, key, note) from error.__cause__
    held[key] = value
    return value, text


def take_baseline(
    state: InstanceState[Any], key: str, value: Any, source: str | None = None
) -> bool:
    """Take the baseline of *value*, which is handed out; return False if it needs none.

    *source* is the text that :func:`read` has just built it from.
    """
    baselines = baselines_of(state)
    if key in baselines and baselines[key].value is value:
        return True
    column_type: PydanticJSON[Any] = state.manager.info[BASELINES][key]
    if (
        state.key is None  # An INSERT writes the value in any case.
        or not column_type.changes_in_place()
        or isinstance(value, SQL)
    ):
        return False
    if key not in state.committed_state:
        if source is None or source[0] == MARK or not column_type.codec.reads_alike:
            baselines[key] = Baseline(value, dump(state, key, value))
        else:
            baselines[key] = Baseline(value, None, source)
    return True


def text_of(state: InstanceState[Any], key: str, baseline: Baseline) -> str:
    """Return the JSON of the row that *baseline* stands for, as its type dumps it."""
    text = baseline.text
    if text is None:
        value = state.manager.info[BASELINES][key].codec.load(baseline.source)
        text = baseline.text = dump(state, key, value)
        baseline.source = None
    return text


def is_changed(state: InstanceState[Any], key: str) -> bool:
    """Return whether a value that was handed out, and not assigned, has changed."""
    baseline, value = baselines_of(state).get(key), state.dict.get(key)
    return (
        baseline is not None
        and baseline.value is value
        and key not in state.committed_state
        and _is_other(state, key, baseline)
    )


def _is_other(state: InstanceState[Any], key: str, baseline: Baseline) -> bool:
    """Return whether the value of *baseline* is not as it was."""
    codec = state.manager.info[BASELINES][key].codec
    try:
        text = codec.dump(baseline.value)
        before = baseline.text or text_of(state, key, baseline)
    except PayloadError:
        return True  # It was not broken when it was read.
    return text != before and not codec.same(text, before)


def changed_among(
    touched: Mapping[InstanceState[Any], object],
) -> list[tuple[InstanceState[Any], object]]:
    """Return those of *touched*, by state, of which :func:`is_changed` is true."""
    if len(touched) < MANY:
        return [
            (state, instance)
            for state, instance in touched.items()
            if _has_changed(state, instance)
        ]
    groups: dict[PydanticJSON[Any], list[tuple[InstanceState[Any], str, str]]] = {}
    values: dict[PydanticJSON[Any], list[Any]] = {}
    doubtful: list[tuple[InstanceState[Any], str]] = []
    for state, instance in touched.items():
        baselines = state.info.get(BASELINES)
        if not baselines:
            continue
        held, types = instance_dict(instance), tracked(state)
        for key, baseline in baselines.items():
            if baseline.value is not held.get(key):
                continue
            if baseline.text is None:
                doubtful.append((state, key))
            else:
                column_type = types[key]
                place = state, key, baseline.text
                groups.setdefault(column_type, []).append(place)
                values.setdefault(column_type, []).append(baseline.value)
    for column_type, places in groups.items():
        texts = column_type.dump_all(values[column_type])
        for index, (state, key, before) in enumerate(places):
            if texts is None or texts[index] != before:
                doubtful.append((state, key))
    changed = {state: None for state, key in doubtful if is_changed(state, key)}
    return [(state, touched[state]) for state in changed]


def _has_changed(state: InstanceState[Any], instance: object) -> bool:
    held, committed = instance_dict(instance), state.committed_state
    for key, baseline in (state.info.get(BASELINES) or {}).items():
        if (
            baseline.value is held.get(key)
            and key not in committed
            and _is_other(state, key, baseline)
        ):
            return True
    return False


def original(state: InstanceState[Any], key: str) -> str | None:
    """Return what the row holds, as its type dumps it; None if that is not known."""
    committed, baseline = state.committed_state, baselines_of(state).get(key)
    was = committed[key] if key in committed else state.dict.get(key)
    if baseline is not None and baseline.value is was:
        return text_of(state, key, baseline)
    if isinstance(was, Before):
        return was.text if was.known else None
    column_type = tracked(state)[key]
    try:
        if isinstance(was, Unread):
            was = column_type.load(was.text)
        if was is not None and not isinstance(was, LoaderCallableStatus):
            return column_type.dump(was)
    except PayloadError:
        pass  # A broken row is repaired by assigning to it.
    return None


def dump(state: InstanceState[Any], key: str, value: Any) -> str:
    """Return the JSON text of *value*; an error names the row."""
    try:
        text: str = state.manager.info[BASELINES][key].codec.dump(value)
    except PayloadError as error:
        raise located(error, state, key) from error.__cause__
    return text


def refuse_none(state: InstanceState[Any], key: str) -> None:
    """Raise PayloadError if the attribute, which is None, must not be."""
    column = state.mapper.columns[key]
    if not (column.nullable or column.default or column.server_default):
        problem = "must not be None; assign a value or delete the row"
        raise located(PayloadError("", "", problem), state, key)


def located(
    error: PayloadError, state: InstanceState[Any], key: str, note: str = ""
) -> PayloadError:
    """Return *error* with the name of the row in it; the codec does not know that."""
    where = f"{state.class_.__name__} {_key_of(state)!r} {key}{note}"
    return PayloadError(where, error.path, error.problem)


def _key_of(state: InstanceState[Any]) -> Any:
    known = known_key_of(state) if is_workflow(state) else None
    if known is not None:
        return known
    if state.key is not None:
        identity = state.key[1]
    else:
        identity = tuple(state.mapper.primary_key_from_instance(state.obj()))
    return identity[0] if len(identity) == 1 else identity
