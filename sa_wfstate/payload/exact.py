"""Values that survive the round trip for sure, and need not be read back.

That takes a type made of plain parts: models, lists and dicts of texts, numbers and the
like, without constraints, validators, serializers, aliases or unions. What Pydantic has
dumped of it is read as an equal value if each part has exactly its declared type, and
each model exactly its fields.

Pydantic itself refuses to dump what is no text, truth value, member or list where one
is declared, except for None. So these are not looked at: that the text holds no other
null than those of optional parts is enough. An instance of a subclass of str or list is
stored as its characters or items, as validation would make it. The other parts are
looked at in columns, all of one kind in all models of a list at once, by functions of
C. That takes a tenth of reading the text and comparing. All other values are read back.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from .columns import LEAVES, Doubt, only, require, require_keys, some, values_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .columns import Check
    from .traits import Schema

    Survive = Callable[[Iterable[Any], str], bool]
    """Told of values and their JSON, which Pydantic dumped without a warning."""


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
_fields_of = attrgetter("__dict__")
_extra_of = attrgetter("__pydantic_extra__")


class _NotPlain(Exception):
    """The schema has a part that may change a value."""


def exact_check(schema: Schema) -> Survive | None:
    """Return what tells of values whether all survive for sure; None if it cannot."""
    try:
        check = _Plan(schema).check(schema)
    except Exception:  # noqa: BLE001 - what cannot be planned is read back
        return None

    def survive(values: Iterable[Any], text: str) -> bool:
        try:
            nulls = check(values) if check else 0
        except (Doubt, AttributeError, OverflowError, TypeError):
            return False
        return text.count("null") == nulls

    return survive


class _Plan:
    """Makes the checks of the parts of a schema."""

    def __init__(self, schema: Schema) -> None:
        self._named = {each["ref"]: each for each in schema.get("definitions", ())}
        self._left, self._depth = _LARGEST, 0
        self._some = cache(some)

    def check(self, node: Schema) -> Check | None:
        """Return the check of the values of *node*, None if Pydantic has done it.

        Raises _NotPlain if there can be none.
        """
        _require_known(node)
        self._left -= 1
        self._depth += 1
        if self._left < 0 or self._depth > _DEEPEST:
            raise _NotPlain
        kind = node["type"].replace("-", "_")
        make = getattr(self, f"_{kind}", lambda _: LEAVES[kind])
        made: Check | None = make(node)
        self._depth -= 1
        return made

    def _enum(self, node: Schema) -> None:
        cls = node["cls"]
        for member in node["members"]:
            if type(member.value) is not str or cls(member.value) is not member:
                raise _NotPlain

    def _literal(self, node: Schema) -> Check:
        expected = node["expected"]
        if {*map(type, expected)} != {str}:
            raise _NotPlain
        return only(str, frozenset(expected).issuperset)

    def _nullable(self, node: Schema) -> Check:
        return self._some(self.check(node["schema"]))

    def _list(self, node: Schema) -> Check | None:
        check = self.check(node["items_schema"])
        if check is None:
            return None

        def check_items(values: Iterable[Any]) -> int:
            lists = [*values]
            require(list, lists)
            items = [*chain.from_iterable(lists)]
            return check(items) if items else 0

        return check_items

    def _dict(self, node: Schema) -> Check:
        check = self.check(node["values_schema"])
        if node["keys_schema"]["type"] != "str":
            raise _NotPlain
        _require_known(node["keys_schema"])

        def check_items(values: Iterable[Any]) -> int:
            dicts = [*values]
            require(dict, dicts)
            keys = [*chain.from_iterable(dicts)]
            if not keys:
                return 0
            require_keys(keys)
            return check(chain.from_iterable(map(dict.values, dicts))) if check else 0

        return check_items

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
        declared: Schema = fields["fields"]
        names, columns = declared.keys(), self._columns(declared)

        def check_fields(values: Iterable[Any]) -> int:
            models = [*values]
            if len(models) == 1:  # The functions for many take longer.
                (model,) = models
                if type(model) is not cls:
                    raise Doubt
                fields = model.__dict__
                if fields.keys() != names or model.__pydantic_extra__:
                    raise Doubt
                return sum([check(of([fields])) for of, check in columns])
            require(cls, models)
            parts = [*map(_fields_of, models)]
            if (
                sum(map(len, parts)) != len(names) * len(parts)
                or set().union(*parts) != names
                or any(map(_extra_of, models))
            ):
                raise Doubt
            return sum([check(of(parts)) for of, check in columns])

        return check_fields

    def _columns(self, fields: Schema) -> list[tuple[Callable[..., Any], Check]]:
        """Return what takes all parts of one kind from the fields of models."""
        names: dict[Check, list[str]] = {}
        for name, field in fields.items():
            check = self.check(field)
            if check:
                names.setdefault(check, []).append(name)
        return [(values_at(places), check) for check, places in names.items()]

    def _within(self, node: Schema) -> Check | None:
        return self.check(node["schema"])

    _default = _model_field = _definitions = _within

    def _definition_ref(self, node: Schema) -> Check | None:
        return self.check(self._named[node["schema_ref"]])


def _require_known(node: Schema) -> None:
    says = {
        k
        for k, v in node.items()
        if v is not None and v != [] and not (v is False and k in _FLAGS)
    }
    if node["type"] not in _KNOWN or says - _ANY_NODE - _KNOWN[node["type"]]:
        raise _NotPlain
