"""The SQL of a patch: its edits, nested as an expression of the new state.

::

    jsonb_set(orders.state, CAST(:path AS TEXT[]), CAST(:value AS JSONB))

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
        path = _SQL("CAST({} AS TEXT[])", parameter(f"path_{number}"))
        edited = _edited(before, shape, path, parameter(f"value_{number}"))
        # An expression is evaluated as often as it is mentioned, but for a subquery;
        # OFFSET keeps the planner from putting it in place of its column.
        rows = f"FROM (SELECT {{}} AS state OFFSET 0) wfs_{number}"
        new = _SQL(f"(SELECT {{}} {rows})", edited, new) if number else edited
    return _SQL(f"coalesce({{}}, '{NO_PLACE}')", new)


def parameters_of(shapes: Sequence[EditShape]) -> list[str]:
    """Return the names of the parameters of edits of *shapes*."""
    names = []
    for number, shape in enumerate(shapes):
        names.append(f"path_{number}")
        if shape.type is not EditType.REMOVE:
            names.append(f"value_{number}")
    return names


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
        item = _json(value)
        return place.put(
            _SQL(
                "CASE coalesce(jsonb_typeof({0}), 'null')"
                " WHEN 'array' THEN {0} || jsonb_build_array({1})"
                " WHEN 'null' THEN jsonb_build_array({1}) END",
                place.at(),
                item,
            )
        )
    return place.put(_incremented(place, shape.kind, value))


def _incremented(
    place: _Place, kind: str, value: ColumnElement[Any]
) -> ColumnElement[Any]:
    if kind == "decimal":
        # JSON of a Decimal is a string, unless a serializer says otherwise.
        return _SQL(
            "CASE coalesce(jsonb_typeof({0}), 'null')"
            " WHEN 'number' THEN to_jsonb(CAST({1} AS NUMERIC) + CAST({2} AS NUMERIC))"
            " WHEN 'string' THEN"
            " to_jsonb(CAST(CAST({1} AS NUMERIC) + CAST({2} AS NUMERIC) AS TEXT))"
            " WHEN 'null' THEN to_jsonb(CAST(CAST({2} AS NUMERIC) AS TEXT)) END",
            place.at(),
            place.text(),
            value,
        )
    cast = f"CAST({{}} AS {_NUMBER_TYPES[kind]})"
    return _SQL(
        "CASE coalesce(jsonb_typeof({0}), 'null')"
        " WHEN 'number' THEN to_jsonb({1} + {2}) WHEN 'null' THEN to_jsonb({2}) END",
        place.at(),
        _SQL(cast, place.text()),
        _SQL(cast, value),
    )


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
            parent = _SQL(
                "CASE coalesce(jsonb_typeof({0}), 'null')"
                " WHEN 'object' THEN {0} WHEN 'null' THEN '{{}}' END",
                parent,
            )
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
