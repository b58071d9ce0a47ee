"""The keys of a workflow class: of which type, which values, and stored as what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, Integer, SmallInteger, Text, TypeDecorator, Uuid
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ..errors import MappingError, PayloadError
from ..payload.roundtrip import unstorable_text
from ..values.keys import MAX_KEY_LENGTH, key_from_text, key_text

if TYPE_CHECKING:
    from sqlalchemy import Column, ColumnElement
    from sqlalchemy.sql.compiler import SQLCompiler


_NAMES: Final[dict[type, str]] = {str: "a str", int: "an int", UUID: "a UUID"}
_TYPES: Final = tuple(_NAMES)


class KeyType(NamedTuple):
    """The *type* of the keys in a column, and the *bits* of its numbers."""

    type: type[Any]
    bits: int = 64

    def check(self, entity: str, workflow_key: object) -> None:
        """Raise PayloadError unless *workflow_key* can be the key of an *entity*."""
        problem: str | None = None
        # True is an int, but no key.
        if not isinstance(workflow_key, self.type) or isinstance(workflow_key, bool):
            found = type(workflow_key).__name__
            problem = f"must be {_NAMES[self.type]}, got {found}"
        elif isinstance(workflow_key, str):
            if not 1 <= len(workflow_key) <= MAX_KEY_LENGTH:
                found = str(len(workflow_key))
                problem = f"must have 1 to {MAX_KEY_LENGTH} characters, got {found}"
            else:
                problem = unstorable_text(workflow_key)
        elif isinstance(workflow_key, int):
            limit = 2 ** (self.bits - 1)
            if not -limit <= workflow_key < limit:
                problem = f"must be a number of {self.bits} bits, got {workflow_key}"
        if problem:
            raise PayloadError(entity, "workflow_key", problem)

    def parse(self, entity: str, workflow_key: Any) -> Any:
        """Return a key that may be given as its canonical text, and check it."""
        if isinstance(workflow_key, str) and self.type is not str:
            try:
                workflow_key = key_from_text(workflow_key, self.type)
            except ValueError:
                problem = f"must be {_NAMES[self.type]}, or the text of one"
                raise PayloadError(entity, "workflow_key", problem) from None
        self.check(entity, workflow_key)
        return workflow_key


TEXT_KEY: Final = KeyType(str)


def checked_type(entity: str, workflow_key: object) -> KeyType:
    """Return the type of *workflow_key*; PayloadError if it can be no key at all."""
    key_type = KeyType(next((t for t in _TYPES if isinstance(workflow_key, t)), str))
    key_type.check(entity, workflow_key)
    return key_type


def key_type_of(entity: str, column: Column[Any]) -> KeyType:
    """Return the type of the keys in *column*; MappingError if they cannot be keys."""
    type_: Any = column.type
    python_type = _python_type(type_)
    if python_type is object and isinstance(type_, TypeDecorator):
        type_ = type_.impl_instance
        python_type = _python_type(type_)
    texts = isinstance(type_, Uuid) and not type_.as_uuid
    for each in () if texts else _TYPES:
        if isinstance(python_type, type) and issubclass(python_type, each):
            bits = 64
            if isinstance(type_, SmallInteger):
                bits = 16
            elif isinstance(type_, Integer) and not isinstance(type_, BigInteger):
                bits = 32
            return KeyType(each, bits)
    raise MappingError(
        entity,
        f"workflow_key cannot be a column of type {column.type!r}; map it to a column "
        "of text, integers or UUIDs (as_uuid=True)",
    )


def _python_type(type_: Any) -> Any:
    try:
        return type_.python_type
    except NotImplementedError:  # SQLAlchemy 2.1 returns object.
        return object


class KeyText(FunctionElement[str]):
    """The canonical text of the key in a column of numbers or UUIDs."""

    inherit_cache = True
    type = Text()


@compiles(KeyText)
def _as_text(element: KeyText, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses.clauses
    text = f"CAST({compiler.process(column, **kw)} AS TEXT)"
    uuid: Any = column.type.dialect_impl(compiler.dialect)
    if not isinstance(uuid, Uuid) or (
        uuid.native_uuid and compiler.dialect.supports_native_uuid
    ):
        return text
    # It is stored as 32 digits.
    parts = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
    return " || '-' || ".join(f"SUBSTR({text}, {at}, {n})" for at, n in parts)


class StoredKey:
    """How the keys of a workflow class are stored in a table beside its rows.

    As their canonical text, unless *column* is of the type of the keys itself.
    """

    def __init__(self, key_type: KeyType, column: Column[Any]) -> None:
        self._type = key_type.type
        own = key_type_of(str(column.table.name), column).type
        self.same = own is self._type

    def store(self, workflow_key: Any) -> Any:
        """Return what is stored for *workflow_key*."""
        return workflow_key if self.same else key_text(workflow_key)

    def load(self, stored: Any) -> Any:
        """Return the key for which *stored* is stored."""
        return stored if self.same else key_from_text(stored, self._type)

    @staticmethod
    def text(column: ColumnElement[Any], key_type: KeyType) -> ColumnElement[str]:
        """Return the SQL of the canonical text of the key in *column*."""
        return column if key_type.type is str else KeyText(column)

    def sql(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the SQL of what is stored for the key in *column*."""
        return column if self.same else KeyText(column)
