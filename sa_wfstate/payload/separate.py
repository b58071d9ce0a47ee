"""Which parts of a payload can change by themselves, and leave it valid.

A part is *separate* if no code can see it together with another one. The way to it
leads from a model through models and dicts: models without validators of their own,
with simple aliases and without options that change validation, and dicts without limits
of length. And no validator in the whole type takes a ValidationInfo, with which that of
one field sees the others. So a payload that is valid stays so while the new value of
such a part is valid by the schema of the part alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .traits import Schema, nodes

if TYPE_CHECKING:
    from collections.abc import Sequence


_OF_MODELS: Final = {
    *("type", "cls", "schema", "config", "ref", "metadata", "frozen"),
    *("extra_behavior", "generic_origin"),
}
_OF_FIELDS: Final = {
    *("type", "fields", "model_name", "computed_fields", "extra_behavior"),
    *("extras_schema", "extras_keys_schema"),
}
_OF_FIELD: Final = {
    *("type", "schema", "metadata", "validation_alias", "serialization_alias"),
    "frozen",
}
_OPTIONS: Final = {"title", "extra_fields_behavior", "hide_input_in_errors"}
"""The options of a model that do not change how a field is validated."""

_FACTORIES: Final = {list, dict, set, frozenset, tuple, str, int, float}


class SeparateParts:
    """The separate parts of the payloads of *schema*."""

    def __init__(self, schema: Schema) -> None:
        self._definitions: dict[str, Schema] = {}
        self._root = schema
        if schema["type"] == "definitions":
            self._definitions = {each["ref"]: each for each in schema["definitions"]}
            self._root = schema["schema"]
        self._none = any(map(_sees_other_parts, nodes(schema)))
        self._models: dict[int, dict[str, Schema] | None] = {}
        self.known: dict[object, bool] = {}
        """Decisions that are kept by those who ask for the parts."""

    def at(self, keys: Sequence[object]) -> Schema | None:
        """Return the schema of the part at *keys*, without its default.

        None if it is not separate, or if it cannot be set without making its parents
        invalid, where they are missing.
        """
        found = self._find(keys)
        if found is None:
            return None
        return self._resolved(found["schema"] if found["type"] == "default" else found)

    def may_be_missing(self, keys: Sequence[object]) -> bool:
        """Return whether the payload stays valid without the separate part at *keys*.

        It has a constant default then, or is the value of a dict.
        """
        parent = self._find(keys[:-1])
        if parent is None or not keys:
            return False
        if self._unwrapped(parent)[0]["type"] == "dict":
            return True
        found = self._find(keys)
        return found is not None and _has_default(found)

    def item_of(self, part: Schema) -> Schema | None:
        """Return the schema of the items of *part*, None if it is no plain list."""
        inner, _ = self._unwrapped(part)
        if inner["type"] != "list" or _keys(inner) - {"type", "items_schema"}:
            return None
        return self._resolved(inner.get("items_schema", {"type": "any"}))

    def is_plain_int(self, part: Schema) -> bool:
        """Return whether *part* is an int, or None, without bounds."""
        inner, _ = self._unwrapped(part)
        return inner["type"] == "int" and _keys(inner) == {"type"}

    def accepts(self, part: Schema, schema: Schema) -> bool:
        """Return whether a value that is valid by *schema* is valid by *part*.

        Only if the two are the same.
        """
        if self._definitions:
            part = self._inlined(part, ())
        drop = {"metadata", "ref"}
        one, other = (
            {key: each for key, each in node.items() if key not in drop}
            for node in (part, schema)
        )
        return one == other

    def _inlined(self, part: Any, within: tuple[str, ...]) -> Any:
        """Return *part* with the types that are defined once in their places."""
        if isinstance(part, list):
            return [self._inlined(each, within) for each in part]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "definition-ref" and "serialization" not in part:
            name = part["schema_ref"]
            if name not in within:
                return self._inlined(self._definitions[name], (*within, name))
        return {key: self._inlined(each, within) for key, each in part.items()}

    def _find(self, keys: Sequence[object]) -> Schema | None:
        if self._none or self._root["type"] != "model":
            return None
        schema = self._root
        for number, key in enumerate(keys):
            parent, optional = self._unwrapped(schema)
            found = self._step(parent, key, optional=optional and number > 0)
            if found is None:
                return None
            schema = found
        return schema

    def _step(self, parent: Schema, key: object, *, optional: bool) -> Schema | None:
        if parent["type"] == "dict":
            if _keys(parent) - {"type", "keys_schema", "values_schema"}:
                return None
            if parent.get("keys_schema") != {"type": "str"}:
                return None
            values: Schema = parent.get("values_schema", {"type": "any"})
            # A key may be missing, and its value with it.
            return {"type": "default", "schema": values}
        fields = self._fields_of(parent)
        if fields is None or not isinstance(key, str):
            return None
        if optional and not all(map(_has_default, fields.values())):
            return None  # A parent that is missing is made with this field alone.
        return fields.get(key)

    def _fields_of(self, model: Schema) -> dict[str, Schema] | None:
        """Return the fields of a plain *model* by their keys in JSON."""
        if id(model) not in self._models:
            self._models[id(model)] = _plain_fields(model)
        return self._models[id(model)]

    def _unwrapped(self, schema: Schema) -> tuple[Schema, bool]:
        """Return *schema* of what is there, and whether it may be missing or None."""
        optional = False
        schema = self._resolved(schema)
        while schema["type"] in {"default", "nullable"}:
            optional = True
            schema = self._resolved(schema["schema"])
        return schema, optional

    def _resolved(self, schema: Schema) -> Schema:
        while schema["type"] == "definition-ref" and "serialization" not in schema:
            schema = self._definitions[schema["schema_ref"]]
        return schema


def _sees_other_parts(node: Schema) -> bool:
    function = node.get("function")
    takes_info = isinstance(function, dict) and function.get("type") != "no-info"
    return takes_info or bool(node.get("default_factory_takes_data"))


def _plain_fields(model: Schema) -> dict[str, Schema] | None:
    if model["type"] != "model" or _keys(model) - _OF_MODELS:
        return None
    if set(model.get("config") or {}) - _OPTIONS:
        return None
    inner = model["schema"]
    if inner["type"] != "model-fields" or _keys(inner) - _OF_FIELDS:
        return None
    fields: dict[str, Schema] = {}
    for name, field in inner["fields"].items():
        key = field.get("serialization_alias", name)
        if _keys(field) - _OF_FIELD or field.get("validation_alias", name) != key:
            return None
        fields[key] = field["schema"]
    return fields if len(fields) == len(inner["fields"]) else None


def _has_default(schema: Schema) -> bool:
    """Return whether a field of *schema* always has a valid default."""
    if schema["type"] != "default" or schema.get("validate_default"):
        return False
    return "default" in schema or schema.get("default_factory") in _FACTORIES


def _keys(schema: Schema) -> set[str]:
    """Return the keys of *schema* that say something."""
    # Not by equality: a bound may be 0.
    said = {
        key for key, each in schema.items() if each is not None and each is not False
    }
    return said - {"metadata", "ref"}
