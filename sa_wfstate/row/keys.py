"""The keys of a workflow class: of which type, which values, and stored as what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, Integer, SmallInteger, Text, TypeDecorator, Uuid
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ..errors import MappingError, PayloadError
from ..payload.roundtrip import unstorable_text
from ..values.keys import (
    MAX_KEY_LENGTH,
    TenantKey,
    key_from_text,
    key_text,
    split_text,
)

if TYPE_CHECKING:
    from sqlalchemy import Column, ColumnElement
    from sqlalchemy.sql.compiler import SQLCompiler


_NAMES: Final[dict[type, str]] = {str: "a str", int: "an int", UUID: "a UUID"}
_TYPES: Final = tuple(_NAMES)


class KeyType(NamedTuple):
    """The *type* of the keys in a column, and the *bits* of its numbers.

    Keys within a tenant have *parts*: the types of the tenant and of the workflow key.
    """

    type: type[Any]
    bits: int = 64
    parts: tuple[KeyType, ...] = ()

    @property
    def name(self) -> str:
        """What such a key is, in an error."""
        if self.parts:
            tenant, workflow_key = (part.type.__name__ for part in self.parts)
            return f"a TenantKey of {tenant} and {workflow_key}"
        return _NAMES[self.type]

    def is_plain(self, workflow_key: object) -> bool:
        """Return whether *workflow_key* is surely such a key, without much ado."""
        return (
            type(workflow_key) is str is self.type
            and 0 < len(workflow_key) <= MAX_KEY_LENGTH
            and workflow_key.isascii()
            and "\0" not in workflow_key
        )

    def check(
        self, entity: str, workflow_key: object, path: str = "workflow_key"
    ) -> None:
        """Raise PayloadError unless *workflow_key* can be the key of an *entity*."""
        problem: str | None = None
        # True is an int, but no key.
        if not isinstance(workflow_key, self.type) or isinstance(workflow_key, bool):
            found = type(workflow_key).__name__
            problem = f"must be {self.name}, got {found}"
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
        elif isinstance(workflow_key, TenantKey):
            for part, value, name in zip(
                self.parts, workflow_key, TenantKey._fields, strict=True
            ):
                part.check(entity, value, f"{path}.{name}")
        if problem:
            raise PayloadError(entity, path, problem)

    def parse(self, entity: str, workflow_key: Any) -> Any:
        """Return a key that may be given as its canonical text, and check it."""
        if isinstance(workflow_key, str) and self.type is not str:
            try:
                workflow_key = self.from_text(workflow_key)
            except ValueError:
                problem = f"must be {self.name}, or the text of one"
                raise PayloadError(entity, "workflow_key", problem) from None
        self.check(entity, workflow_key)
        return workflow_key

    def from_text(self, text: str) -> Any:
        """Return the key whose canonical text is *text*; ValueError if none."""
        if not self.parts:
            return key_from_text(text, self.type)
        pairs = zip(self.parts, split_text(text), strict=True)
        key = TenantKey(*(part.from_text(each) for part, each in pairs))
        if str(key) != text:
            raise ValueError(text)
        return key


TEXT_KEY: Final = KeyType(str)


def checked_type(entity: str, workflow_key: object) -> KeyType:
    """Return the type of *workflow_key*; PayloadError if it can be no key at all."""
    key_type = _type_of(workflow_key)
    if isinstance(workflow_key, TenantKey):
        key_type = within_tenant(*map(_type_of, workflow_key))
    key_type.check(entity, workflow_key)
    return key_type


def _type_of(value: object) -> KeyType:
    return KeyType(next((each for each in _TYPES if isinstance(value, each)), str))


def within_tenant(tenant: KeyType, workflow_key: KeyType) -> KeyType:
    """Return the type of the keys that have these parts."""
    return KeyType(TenantKey, parts=(tenant, workflow_key))


def key_type_of(
    entity: str, column: Column[Any], what: str = "workflow_key"
) -> KeyType:
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
        f"{what} cannot be a column of type {column.type!r}; map it to a column "
        "of text, integers or UUIDs (as_uuid=True)",
    )


def _python_type(type_: Any) -> Any:
    try:
        return type_.python_type
    except NotImplementedError:  # SQLAlchemy 2.1 returns object.
        return object


class KeyText(FunctionElement[Any]):
    """The canonical text of the key in a column, or of the one in two columns."""

    inherit_cache = True
    type: Any = Text()


class SelectedKey(KeyText):
    """A key within a tenant, from its text."""

    inherit_cache = True

    def __init__(self, key_type: KeyType, *columns: ColumnElement[Any]) -> None:
        super().__init__(*columns)
        self.type = _Parsed(key_type)


class _Parsed(TypeDecorator[Any]):
    """Text that is read as the key of which it is the canonical text."""

    impl = Text
    cache_ok = True

    def __init__(self, key_type: KeyType) -> None:
        super().__init__()
        self.key_type = key_type

    def process_result_value(self, value: Any, _dialect: Any) -> Any:
        return None if value is None else self.key_type.from_text(value)


@compiles(KeyText)
def _as_text(element: KeyText, compiler: SQLCompiler, **kw: Any) -> str:
    *tenant, key = (
        _part_as_text(column, compiler, **kw) for column in element.clauses.clauses
    )
    if not tenant:
        return key
    (text,) = tenant
    for character, escaped in (("~", "~0"), ("/", "~1")):
        text = f"REPLACE({text}, '{character}', '{escaped}')"
    return f"({text} || '/' || {key})"


def _part_as_text(column: Any, compiler: SQLCompiler, **kw: Any) -> str:
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
        self._key_type = key_type
        self._column_type: Any = column.type
        own = key_type_of(str(column.table.name), column).type
        self.same = own is key_type.type

    def binds_as(self, column: Column[Any]) -> bool:
        """Return whether the keys in *column* are bound as what is stored for them."""
        own, other = self._column_type, column.type
        return self.same and type(own) is type(other) and repr(own) == repr(other)

    def store(self, workflow_key: Any) -> Any:
        """Return what is stored for *workflow_key*."""
        return workflow_key if self.same else key_text(workflow_key)

    def load(self, stored: Any) -> Any:
        """Return the key for which *stored* is stored."""
        return stored if self.same else self._key_type.from_text(stored)
