"""What no payload of a type can keep, found in its Pydantic core schema.

It is searched when a class is mapped. A loss is named by model and field,
``"OrderState.password"``, and can be accepted under that name. What a single value
loses is found when it is written (:mod:`.roundtrip`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .traits import NOT_SCHEMAS, PARTS, Schema, fields_in

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEVER = {
    "generator": "holds an iterator, which can be read only once; use a list",
    "callable": "holds a callable, which has no JSON; keep its name",
    "is-subclass": "holds a class, which has no JSON; keep its name",
}


def losses(schema: Schema) -> dict[str, str]:
    """Return what no payload of *schema* can keep: problems by ``Model.field``."""
    found: dict[str, str] = {}
    _search(schema, {}, "", found)
    return found


def _search(node: Any, owner: Schema, at: str, found: dict[str, str]) -> None:
    """Search *node*, part of the model *owner*, in the field *at*."""
    if isinstance(node, (list, tuple)):
        for each in node:
            _search(each, owner, at, found)
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if kind in {"model", "dataclass", "typed-dict"} and "cls" in node:
        owner = node
        found.update(_own_losses(node))
    problem = _NEVER.get(kind or "") or _field_loss(node, at, owner)
    if problem:
        found.setdefault(at, problem)
    for key, child in node.items():
        if key == "fields":
            for name, field in fields_in(child):
                _search(field, owner, f"{_name(owner)}.{name}", found)
        elif isinstance(child, PARTS) and key not in NOT_SCHEMAS:
            _search(child, owner, at, found)


def _name(owner: Schema) -> str:
    return owner["cls"].__name__ if owner else ""


def _own_losses(node: Schema) -> Iterator[tuple[str, str]]:
    cls, config = node["cls"], node.get("config") or {}
    for private in getattr(cls, "__private_attributes__", ()):
        problem = "is a private attribute, which is not stored; make it a field"
        yield f"{cls.__name__}.{private}", problem
    if config.get("ser_json_bytes", "utf8") != config.get("val_json_bytes", "utf8"):
        problem = "writes bytes differently than it reads them; set val_json_bytes too"
        yield f"{cls.__name__}.model_config", problem


def _field_loss(node: Schema, at: str, owner: Schema) -> str | None:
    serializer = node.get("serialization")
    function = serializer.get("function") if isinstance(serializer, dict) else None
    if getattr(function, "__name__", "") == "_serialize_secret_field":
        return "is a secret and dumps as stars; keep a reference to it"
    if not str(node.get("type")).endswith("-field"):
        return None
    if node.get("serialization_exclude"):
        return "is excluded when dumped; drop exclude=True"
    name = at.rpartition(".")[2]
    config = owner.get("config") or {}
    alias = node.get("validation_alias") or name
    # A name, a path, or a list of paths; a path of one step is a name.
    path = alias if isinstance(alias, list) else [alias]
    paths = path if isinstance(path[0], list) else [path]
    read_as = {each[0] for each in paths if len(each) == 1}
    if config.get("validate_by_name") or config.get("populate_by_name"):
        read_as.add(name)
    written_as = node.get("serialization_alias", name)
    if written_as not in read_as:
        return f"is written as {written_as!r} but not read as that; use alias="
    return None
