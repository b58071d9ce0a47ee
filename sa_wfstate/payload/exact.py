"""Values that survive the round trip for sure, and need not be read back.

That takes a type made of plain parts: models, lists and dicts of texts, numbers and the
like, without constraints, validators, serializers, aliases or unions. What Pydantic has
dumped of it is read as an equal value if each part has exactly its declared type, and
each model exactly its fields.

They are looked at in columns: one field of all models in a list at once, by functions
of C. That takes a tenth of reading the text and comparing. All other values are read
back.
"""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from itertools import chain
from math import isfinite
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import TzInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .traits import Schema

    Check = Callable[[Iterable[Any]], bool]
    """Told of the parts in one place of several values, at least one."""


_ANY_NODE: Final = {"type", "metadata", "ref"}
_KNOWN: Final[dict[str, set[str]]] = {
    **{kind: set() for kind in ("none", "bool", "int", "float", "str", "date")},
    **{kind: set() for kind in ("decimal", "uuid")},
    "datetime": {"microseconds_precision"},
    "enum": {"cls", "members", "sub_type"},
    "literal": {"expected"},
    "nullable": {"schema"},
    "default": {"schema", "default", "default_factory", "default_factory_takes_data"},
    "list": {"items_schema"},
    "dict": {"keys_schema", "values_schema"},
    "model": {"cls", "schema", "config", "frozen", "generic_origin"},
    "model-fields": {"fields", "model_name"},
    "model-field": {"schema", "frozen"},
    "definitions": {"schema", "definitions"},
    "definition-ref": {"schema_ref"},
}
"""What a schema of each type may say; anything else may change a value."""

_KNOWN_CONFIG: Final = {"title", "extra_fields_behavior", "validate_assignment"}
_FLAGS: Final = {"custom_init", "root_model", "frozen", "strict", "validate_default"}
"""What says nothing if it is False. A bound of False is a bound of 0."""
_LARGEST: Final = 1_000
"""Parts of a schema, those of a model counted wherever it is used: some 10 ms."""
_DEEPEST: Final = 100
"""Parts within parts. It ends recursion; Pydantic reads no 200 levels of JSON."""
_INT_LIMIT: Final = 2**63
_FLOAT_LIMIT: Final = 1e15
_fields_of = attrgetter("__dict__")
_extra_of = attrgetter("__pydantic_extra__")


class _NotPlain(Exception):
    """The schema has a part that may change a value."""


def exact_check(schema: Schema) -> Check | None:
    """Return what tells of values whether all survive for sure; None if it cannot."""
    try:
        check = _Plan(schema).check(schema)
    except Exception:  # noqa: BLE001 - what cannot be planned is read back
        return None

    def survive(values: Iterable[Any]) -> bool:
        try:
            return check(values)
        except (AttributeError, KeyError, TypeError):  # A model lacks a field.
            return False

    return survive


class _Plan:
    """Makes the checks of the parts of a schema."""

    def __init__(self, schema: Schema) -> None:
        self._named = {each["ref"]: each for each in schema.get("definitions", ())}
        self._left, self._depth = _LARGEST, 0

    def check(self, node: Schema) -> Check:
        """Return the check of the values of *node*; raise _NotPlain if it has none."""
        _require_known(node)
        self._left -= 1
        self._depth += 1
        if self._left < 0 or self._depth > _DEEPEST:
            raise _NotPlain
        made: Check = getattr(self, f"_{node['type'].replace('-', '_')}")(node)
        self._depth -= 1
        return made

    def _none(self, _: Schema) -> Check:
        return _all_are(type(None))

    def _bool(self, _: Schema) -> Check:
        return _all_are(bool)

    def _int(self, _: Schema) -> Check:
        # Python parses no integer of more than 4,300 digits.
        return _all_are(int, lambda v: min(v) > -_INT_LIMIT and max(v) < _INT_LIMIT)

    def _float(self, _: Schema) -> Check:
        return _all_are(float, _are_written_without_exponent)

    def _str(self, _: Schema) -> Check:
        return _all_are(str)

    def _decimal(self, _: Schema) -> Check:
        return _all_are(Decimal, lambda values: all(map(Decimal.is_finite, values)))

    def _uuid(self, _: Schema) -> Check:
        return _all_are(UUID)

    def _date(self, _: Schema) -> Check:
        return _all_are(date)

    def _datetime(self, _: Schema) -> Check:
        return _all_are(datetime, lambda values: all(map(_is_utc_or_naive, values)))

    def _enum(self, node: Schema) -> Check:
        cls = node["cls"]
        for member in node["members"]:
            if type(member.value) is not str or cls(member.value) is not member:
                raise _NotPlain
        return _all_are(cls)

    def _literal(self, node: Schema) -> Check:
        expected = node["expected"]
        if {*map(type, expected)} != {str}:
            raise _NotPlain
        return _all_are(str, frozenset(expected).issuperset)

    def _nullable(self, node: Schema) -> Check:
        check = self.check(node["schema"])

        def check_some(values: Iterable[Any]) -> bool:
            some = [value for value in values if value is not None]
            return not some or check(some)

        return check_some

    def _default(self, node: Schema) -> Check:
        return self.check(node["schema"])

    def _list(self, node: Schema) -> Check:
        check = self.check(node["items_schema"])

        def check_items(values: list[Any]) -> bool:
            items = [*chain.from_iterable(values)]
            return not items or check(items)

        return _all_are(list, check_items)

    def _dict(self, node: Schema) -> Check:
        check = self.check(node["values_schema"])
        if node["keys_schema"]["type"] != "str":
            raise _NotPlain
        _require_known(node["keys_schema"])

        def check_items(values: list[Any]) -> bool:
            keys = [*chain.from_iterable(values)]
            parts = [*chain.from_iterable(map(dict.values, values))]
            return not keys or (_are_keys(keys) and check(parts))

        return _all_are(dict, check_items)

    def _model(self, node: Schema) -> Check:
        cls, config, fields = node["cls"], node.get("config", {}), node["schema"]
        if (
            fields["type"] != "model-fields"
            or config.keys() - _KNOWN_CONFIG
            or config.get("extra_fields_behavior") == "allow"
            or cls.__eq__ is not BaseModel.__eq__
            or cls.__new__ is not object.__new__
        ):
            raise _NotPlain
        _require_known(fields)
        return _all_are(cls, self._fields(fields))

    def _fields(self, node: Schema) -> Callable[[list[Any]], bool]:
        columns = [
            (itemgetter(name), self.check(field))
            for name, field in node["fields"].items()
        ]
        count = {len(columns)}

        def check_fields(values: list[Any]) -> bool:
            parts = [*map(_fields_of, values)]
            return (
                {*map(len, parts)} == count
                and {*map(_extra_of, values)} == {None}
                and all(check(map(of, parts)) for of, check in columns)
            )

        return check_fields

    def _model_field(self, node: Schema) -> Check:
        return self.check(node["schema"])

    def _definitions(self, node: Schema) -> Check:
        return self.check(node["schema"])

    def _definition_ref(self, node: Schema) -> Check:
        return self.check(self._named[node["schema_ref"]])


def _require_known(node: Schema) -> None:
    says = {
        k
        for k, v in node.items()
        if v is not None and v != [] and not (v is False and k in _FLAGS)
    }
    if node["type"] not in _KNOWN or says - _ANY_NODE - _KNOWN[node["type"]]:
        raise _NotPlain


def _all_are(cls: type[Any], check: Callable[[list[Any]], bool] | None = None) -> Check:
    """Return whether values are of *cls* exactly, and *check* finds no fault."""
    only = {cls}
    if check is None:
        return lambda values: {*map(type, values)} == only

    def check_all(values: Iterable[Any]) -> bool:
        column = [*values]
        return {*map(type, column)} == only and check(column)

    return check_all


def _are_keys(values: list[Any]) -> bool:
    """Return whether *values* are texts without half a surrogate pair.

    Pydantic refuses that in a value, and replaces it in a key.
    """
    if {*map(type, values)} != {str}:
        return False
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_written_without_exponent(values: list[float]) -> bool:
    """Return whether JSONB spells finite *values* as Pydantic does, near enough."""
    finite = all(map(isfinite, values))
    return finite and min(values) > -_FLOAT_LIMIT and max(values) < _FLOAT_LIMIT


def _is_utc_or_naive(value: datetime) -> bool:
    zone = value.tzinfo
    return zone is None or (type(zone) in {timezone, TzInfo} and not value.utcoffset())
