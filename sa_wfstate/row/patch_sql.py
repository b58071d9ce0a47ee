"""The SQL of a patch: its edits, nested as an expression of the new state.

::

    jsonb_set(orders.state, ARRAY[CAST(:path AS JSONB) ->> 0], CAST(:value AS JSONB))

Paths and values are parameters, so that patches of one shape share a statement. An edit
that finds no place, an index out of range for example, makes the whole expression NULL,
and that is written as the JSON ``null``, which no state is. So it is seen without an
error of the database, which would end the transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, literal_column
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal

from .edits import EditShape, EditType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.sql.compiler import SQLCompiler


NO_PLACE: Final = "null"
"""The JSON of the new state if an edit has found no place."""

_IS_INT: Final = """
coalesce(CAST({} AS TEXT), 'null') ~ '^(null|-?[0-9]{{1,18}})$'
""".strip()
"""An int of a length that no sum makes too long to be read."""

_NUMBER_TYPES: Final = {"int": "NUMERIC", "float": "DOUBLE PRECISION"}


class _SQL(FunctionElement[Any]):
    """The SQL *template*, with *parts* in place of its braces."""

    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy makes the cache key of it
        *FunctionElement._traverse_internals,  # noqa: SLF001
        ("template", InternalTraversal.dp_string),
    ]
    type = JSONB()

    def __init__(self, template: str, *parts: ColumnElement[Any]) -> None:
        self.template = template
        super().__init__(*parts)


@compiles(_SQL)
def _compile(element: _SQL, compiler: SQLCompiler, **kw: Any) -> str:
    parts = (compiler.process(part, **kw) for part in element.clauses)
    return element.template.format(*parts)


def patched(
    state: ColumnElement[Any],
    shapes: Sequence[EditShape],
    parameter: Callable[[str], ColumnElement[Any]],
) -> ColumnElement[Any]:
    """Return *state* after edits of *shapes*, each applied to the result of the last.

    *parameter* returns the SQL of ``path_0``, ``value_0``, ``path_1`` and so on, each a
    text.
    """
    new: ColumnElement[Any] = state
    for number, shape in enumerate(shapes):
        before: ColumnElement[Any] = new
        if number:
            before = literal_column(f"wfs_{number}.state", JSONB())
        path = _path(parameter(f"path_{number}"), len(shape.steps))
        edited = _edited(before, shape, path, parameter(f"value_{number}"))
        # An expression is evaluated as often as it is mentioned, but for a subquery;
        # OFFSET keeps the planner from putting it in place of its column.
        rows = f"FROM (SELECT {{}} AS state OFFSET 0) wfs_{number}"
        new = _SQL(f"(SELECT {{}} {rows})", edited, new) if number else edited
    return _SQL(f"coalesce({{}}, '{NO_PLACE}')", new)


def places(
    state: ColumnElement[Any],
    shapes: Sequence[EditShape],
    parameter: Callable[[str], ColumnElement[Any]],
) -> list[ColumnElement[bool]]:
    """Return the conditions under which each edit finds in *state* what it changes.

    No path may have the index of a list, or begin with the path of another edit.
    """
    found: list[ColumnElement[bool]] = []
    for number, shape in enumerate(shapes):
        path = _path(parameter(f"path_{number}"), len(shape.steps))
        place = _Place(state, path, shape.steps)
        if shape.type is not EditType.REMOVE:
            found += [
                _is(place.at(depth), "object") for depth in range(1, len(shape.steps))
            ]
        if shape.type is EditType.APPEND:
            found.append(_is(place.at(), "array"))
        elif shape.type is EditType.INCREMENT:
            found.append(_SQL(_IS_INT, place.at()))
    return found


def _is(value: ColumnElement[Any], kind: str) -> ColumnElement[Any]:
    return _SQL(f"coalesce(jsonb_typeof({{}}), 'null') IN ('{kind}', 'null')", value)


def parameters_of(shapes: Sequence[EditShape]) -> list[str]:
    """Return the names of the parameters of edits of *shapes*."""
    names = []
    for number, shape in enumerate(shapes):
        names.append(f"path_{number}")
        if shape.type is not EditType.REMOVE:
            names.append(f"value_{number}")
    return names


def _path(text: ColumnElement[Any], length: int) -> ColumnElement[Any]:
    """Return the path as an array, from the *text* of a JSON array.

    A cast of a text to an array is not immutable.
    """
    keys = ", ".join(f"CAST({{0}} AS JSONB) ->> {number}" for number in range(length))
    return _SQL(f"CAST(ARRAY[{keys}] AS TEXT[])", text)


def _edited(
    state: ColumnElement[Any],
    shape: EditShape,
    path: ColumnElement[Any],
    value: ColumnElement[Any],
) -> ColumnElement[Any]:
    place = _Place(state, path, shape.steps)
    if shape.type is EditType.REMOVE:
        return place.removed()
    if shape.type is EditType.SET:
        return place.put(_json(value))
    if shape.type is EditType.APPEND:
        item = _SQL("CAST('[' || CAST({} AS TEXT) || ']' AS JSONB)", _json(value))
        longer = _SQL("{} || {}", place.at(), item)
        return place.put(_by_type(place.at(), array=longer, null=item))
    return place.put(_incremented(place, shape.kind, value))


def _incremented(
    place: _Place, kind: str, value: ColumnElement[Any]
) -> ColumnElement[Any]:
    if kind == "decimal":
        # JSON of a Decimal is a string, unless a serializer says otherwise.
        sum_ = "CAST({} AS NUMERIC) + CAST({} AS NUMERIC)"
        total = _SQL(sum_, place.text(), value)
        return _by_type(
            place.at(),
            string=_string(total),
            number=_number(total),
            null=_string(_SQL("CAST({} AS NUMERIC)", value)),
        )
    cast = f"CAST({{}} AS {_NUMBER_TYPES[kind]})"
    added = _SQL(cast, value)
    total = _SQL("{} + {}", _SQL(cast, place.text()), added)
    return _by_type(place.at(), number=_number(total), null=_number(added))


def _by_type(
    value: ColumnElement[Any], null: ColumnElement[Any], **types: ColumnElement[Any]
) -> ColumnElement[Any]:
    """Return the result for the JSON type of *value*; *null* also without a value.

    Not as CASE … WHEN: Citus 14 prints that in a wrong way.
    """
    cases = [
        f"WHEN jsonb_typeof({{0}}) = '{name}' THEN {{{number}}}"
        for number, name in enumerate(types, 2)
    ]
    cases.append("WHEN coalesce(jsonb_typeof({0}), 'null') = 'null' THEN {1}")
    return _SQL(f"CASE {' '.join(cases)} END", value, null, *types.values())


def _number(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the JSON of a finite number.

    By its text: to_jsonb() and jsonb_build_array() are not immutable, and Citus allows
    no such function in a CASE.
    """
    return _SQL("CAST(CAST({} AS TEXT) AS JSONB)", value)


def _string(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the JSON string of a number."""
    return _SQL("""CAST('"' || CAST({} AS TEXT) || '"' AS JSONB)""", value)


def _json(value: ColumnElement[Any]) -> ColumnElement[Any]:
    return _SQL("CAST({} AS JSONB)", value)


class _Place:
    """The place of *path* in *state*; *steps* says which keys are indexes of lists."""

    def __init__(
        self,
        state: ColumnElement[Any],
        path: ColumnElement[Any],
        steps: tuple[bool, ...],
    ) -> None:
        self._state = state
        self._path = path
        self._steps = steps

    def at(self, depth: int | None = None) -> ColumnElement[Any]:
        """Return what is at the first *depth* keys, by default at all of them."""
        depth = len(self._steps) if depth is None else depth
        if depth == 0:
            return self._state
        if depth == len(self._steps):
            return _SQL("({} #> {})", self._state, self._path)
        return _SQL(f"({{}} #> ({{}})[1:{depth}])", self._state, self._path)

    def text(self) -> ColumnElement[Any]:
        """Return what is at all keys, as text."""
        return _SQL("({} #>> {})", self._state, self._path)

    def put(self, new: ColumnElement[Any], depth: int = 0) -> ColumnElement[Any]:
        """Return what is at the first *depth* keys, with *new* in its place."""
        if depth == len(self._steps):
            return new
        inner = self.put(new, depth + 1)
        key = _SQL(f"({{}})[{depth + 1}:{depth + 1}]", self._path)
        parent = self.at(depth)
        if self._steps[depth]:
            return _SQL(
                "CASE WHEN {} THEN jsonb_set({}, {}, {}) END",
                self._holds_item(depth),
                parent,
                key,
                inner,
            )
        if depth:
            parent = _by_type(parent, object=parent, null=_SQL("CAST('{{}}' AS JSONB)"))
        return _SQL("jsonb_set({}, {}, {})", parent, key, inner)

    def removed(self) -> ColumnElement[Any]:
        """Return the state without what is at all keys."""
        new: ColumnElement[Any] = _SQL("({} #- {})", self._state, self._path)
        for depth, is_index in enumerate(self._steps):
            if is_index:
                new = _SQL("CASE WHEN {} THEN {} END", self._holds_item(depth), new)
        return new

    def _holds_item(self, depth: int) -> ColumnElement[Any]:
        """Return whether there is a list at *depth* that has the item of the path."""
        return _SQL(
            "jsonb_typeof({}) = 'array' AND {} IS NOT NULL",
            self.at(depth),
            self.at(depth + 1),
        )
