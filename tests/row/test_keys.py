"""The keys of a class are of one type, and each has one canonical text."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    create_engine,
    insert,
    select,
)
from sqlalchemy.dialects import postgresql

from sa_wfstate import PayloadError, TenantKey
from sa_wfstate.errors import MappingError
from sa_wfstate.payload.actions import Action
from sa_wfstate.row.key_columns import KeyColumns
from sa_wfstate.row.keys import (
    KeyText,
    KeyType,
    StoredKey,
    checked_type,
    key_type_of,
    within_tenant,
)
from sa_wfstate.values.keys import key_from_text, key_text

KEYS: list[Any] = [
    "order-42",
    " ",
    "0x1F",
    "6F1D7E2A-0000-4000-8000-00000000000A",
    0,
    42,
    -7,
    2**63 - 1,
    -(2**63),
    UUID(int=0),
    UUID("6F1D7E2A-0000-4000-8000-00000000000A"),
]


class Hex(TypeDecorator[UUID]):
    """A type of the application's own, as it was made before there was Uuid."""

    impl = Uuid(native_uuid=False)
    cache_ok = True


def column_of(type_: Any) -> Column[Any]:
    """Return a column of a table."""
    return Table("t", MetaData(), Column("key", type_)).c.key


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_canonical_text_leads_back_to_the_key(key: Any) -> None:
    """For each type; the texts of two keys of a type differ."""
    text = key_text(key)
    assert key_from_text(text, type(key)) == key
    assert type(key_from_text(text, type(key))) is type(key)
    assert len({key_text(k) for k in KEYS if type(k) is type(key)}) == sum(
        type(k) is type(key) for k in KEYS
    )


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("042", int),
        (" 42", int),
        ("4_2", int),
        ("+42", int),
        ("x", int),
        ("6F1D7E2A-0000-4000-8000-00000000000A", UUID),
        ("6f1d7e2a000040008000000000000000a", UUID),
        ("{6f1d7e2a-0000-4000-8000-00000000000a}", UUID),
    ],
)
def test_other_texts_of_a_key_are_refused(text: str, type_: type[Any]) -> None:
    """A key has one text only."""
    with pytest.raises(ValueError):  # noqa: PT011 - of int() or UUID() as well
        key_from_text(text, type_)
    with pytest.raises(PayloadError, match="or the text of one"):
        KeyType(type_).parse("Order", text)


@pytest.mark.parametrize(
    ("type_", "found"),
    [
        (Text(), KeyType(str)),
        (String(26), KeyType(str)),
        (SmallInteger(), KeyType(int, 16)),
        (Integer(), KeyType(int, 32)),
        (BigInteger(), KeyType(int, 64)),
        (Uuid(), KeyType(UUID)),
        (postgresql.UUID(), KeyType(UUID)),
        (Hex(), KeyType(UUID)),
    ],
    ids=repr,
)
def test_type_of_the_keys_is_that_of_the_column(type_: Any, found: KeyType) -> None:
    """Also of a type of the application's own."""
    assert key_type_of("Order", column_of(type_)) == found


@pytest.mark.parametrize("type_", [Date(), Uuid(as_uuid=False)], ids=repr)
def test_other_columns_are_refused(type_: Any) -> None:
    """A UUID that is read as text has no canonical one."""
    with pytest.raises(MappingError, match="Order: workflow_key cannot be a column"):
        key_type_of("Order", column_of(type_))


@pytest.mark.parametrize(
    ("key_type", "key", "problem"),
    [
        (KeyType(str), 42, "must be a str, got int"),
        (KeyType(str), "", "1 to 255 characters"),
        (KeyType(int), "42", "must be an int, got str"),
        (KeyType(int), True, "must be an int, got bool"),
        (KeyType(int), 2**63, "a number of 64 bits"),
        (KeyType(int, 32), 2**31, "a number of 32 bits"),
        (KeyType(UUID), str(UUID(int=1)), "must be a UUID, got str"),
    ],
)
def test_wrong_key_is_refused(key_type: KeyType, key: Any, problem: str) -> None:
    """Before any SQL is sent."""
    with pytest.raises(PayloadError, match=problem):
        key_type.check("Order", key)


def test_text_in_sql_is_the_canonical_one() -> None:
    """SQLite stores a UUID as 32 digits."""
    table = Table(
        "t", MetaData(), Column("u", Uuid, primary_key=True), Column("n", Integer)
    )
    engine, key = create_engine("sqlite://"), uuid4()
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(insert(table).values(u=key, n=42))
        texts = select(KeyText(table.c.u), KeyText(table.c.n))
        assert connection.execute(texts).one() == (key_text(key), "42")
    engine.dispose()
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    assert str(KeyText(table.c.u).compile(dialect=dialect)) == "CAST(t.u AS TEXT)"
    digits = KeyText(column_of(Uuid(native_uuid=False))).compile(dialect=dialect)
    assert "SUBSTR(CAST(t.key AS TEXT), 9, 4)" in str(digits)


TENANT_KEYS = [
    TenantKey(tenant, key)
    for tenant in ("a", "a/b", "~", "~0", "~1/", "/", "%s", 7, -1, UUID(int=5))
    for key in ("a", "/", "a/b", "~1", 0, UUID(int=6))
]


@pytest.mark.parametrize("key", TENANT_KEYS, ids=repr)
def test_text_of_a_tenant_key_leads_back_to_it(key: TenantKey) -> None:
    """In Python and in SQL; no two keys of a class have one text."""
    key_type = checked_type("Order", key)
    assert key_type.from_text(key_text(key)) == key
    assert key_type.parse("Order", str(key)) == key
    others = [
        each
        for each in TENANT_KEYS
        if each != key and checked_type("Order", each) == key_type
    ]
    assert str(key) not in map(str, others)
    types: dict[type[Any], Any] = {str: Text, int: Integer, UUID: Uuid}
    columns = (Column(n, types[type(v)]) for n, v in zip("tk", key, strict=True))
    rows = Table("t", MetaData(), *columns)
    keys = KeyColumns("Order", rows.c.t, rows.c.k)
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        rows.create(connection)
        connection.execute(insert(rows).values(keys.named(key)))
        selected = connection.execute(select(keys.value, keys.text)).one()
        assert tuple(selected) == (key, str(key))
        found = select(rows).where(keys.among([key]), keys.equal)
        assert connection.execute(found, keys.parameters(key)).one() == tuple(key)
        after = select(rows).where(keys.after(key))
        assert connection.execute(after).first() is None
    engine.dispose()


@pytest.mark.parametrize("text", ["", "a", "a~/b", "a~2/b", "01/x", "/a", "7/"])
def test_other_texts_of_a_tenant_key_are_refused(text: str) -> None:
    """Each key has one text."""
    for part in (KeyType(str), KeyType(int)):
        key_type = within_tenant(part, KeyType(str))
        if (part.type, text) == (str, "01/x"):
            continue  # There, it is one.
        with pytest.raises(PayloadError, match="workflow_key"):
            key_type.parse("Order", text)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("7/a", "must be a TenantKey of int and str, got str"),
        ((7, "a"), "must be a TenantKey of int and str, got tuple"),
        (TenantKey("7", "a"), r"workflow_key\.tenant': must be an int, got str"),
        (TenantKey(True, "a"), r"workflow_key\.tenant': must be an int, got bool"),
        (TenantKey(2**63, "a"), r"workflow_key\.tenant': must be a number of 64 bits"),
        (TenantKey(7, ""), r"workflow_key\.workflow_key': must have 1 to 255"),
        (TenantKey(7, TenantKey(7, "a")), "must be a str, got TenantKey"),  # type: ignore[arg-type]
    ],
)
def test_wrong_tenant_key_is_refused(key: Any, problem: str) -> None:
    """By the name of its part."""
    with pytest.raises(PayloadError, match=problem):
        within_tenant(KeyType(int), KeyType(str)).check("Order", key)


def test_action_takes_a_tenant_key() -> None:
    """In JSON it is its text."""
    key = TenantKey("a/b", 7)
    action = Action(workflow_key=key, action_id=uuid4(), payload=None)
    assert action.workflow_key == key
    assert isinstance(action.workflow_key, TenantKey)
    assert action.model_dump()["workflow_key"] == key
    copy = Action[None].model_validate_json(action.model_dump_json())
    assert copy.workflow_key == "a~1b/7"
    kinds = Action[None].model_json_schema()["properties"]["workflow_key"]["anyOf"]
    assert {"type": "string"} in kinds
    for wrong in (TenantKey(7, ""), TenantKey(1.5, "a"), ("a", "b")):  # type: ignore[arg-type]
        with pytest.raises(PayloadError, match="'workflow_key': must be a str of 1 to"):
            Action(workflow_key=wrong, action_id=uuid4(), payload=None)  # type: ignore[arg-type]


def test_key_is_stored_as_text_unless_the_column_has_its_type() -> None:
    """A table beside the rows may declare its column like theirs."""
    key = uuid4()
    as_text = StoredKey(KeyType(UUID), column_of(Text()))
    assert as_text.store(key) == str(key)
    assert as_text.load(str(key)) == key
    as_uuid = StoredKey(KeyType(UUID), column_of(Uuid()))
    assert as_uuid.store(key) is as_uuid.load(key) is key


@pytest.mark.parametrize("key", [42, UUID(int=5), "a"], ids=repr)
def test_action_takes_each_type(key: Any) -> None:
    """From JSON, a UUID stays the text that its service reads."""
    action: Action[None] = Action(workflow_key=key, action_id=uuid4(), payload=None)
    assert action.workflow_key is key
    copy = Action[None].model_validate_json(action.model_dump_json())
    assert copy.workflow_key == (str(key) if isinstance(key, UUID) else key)


@pytest.mark.parametrize("key", ["", "x" * 256, True, None, 1.5, 2**63], ids=str)
def test_action_refuses_what_is_no_key(key: Any) -> None:
    """With one problem, not one for each type."""
    problem = "workflow_key': must be a str of 1 to 255 characters .* an int or a UUID$"
    with pytest.raises(PayloadError, match=problem):
        Action(workflow_key=key, action_id=uuid4(), payload=None)
