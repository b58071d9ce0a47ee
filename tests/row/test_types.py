"""PydanticJSON as a column type, each aspect of one; over every driver."""

from __future__ import annotations

import dataclasses
import json
import pickle
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    func,
    inspect,
    literal,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, array, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column
from typing_extensions import TypedDict

from sa_wfstate import PayloadError, PydanticJSON

from ..versions import ESCAPES_PERCENT, TYPES_JSON_PATHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine

    from ..conftest import Driver

pytestmark = pytest.mark.contract

NASTY = 'it\'s \\ "100%" :x %(y)s {}\u2028 \U0001f40d'


class Line(BaseModel):
    sku: str


class Doc(BaseModel):
    status: str = "new"
    lines: list[Line] = []
    free: dict[str, Any] = {}


@dataclasses.dataclass
class Place:
    city: str


class Note(TypedDict):
    author: str


class Base(DeclarativeBase):
    pass


class Plain(Base):
    """A class that is no workflow."""

    __tablename__ = "plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    doc: Mapped[Doc | None] = mapped_column(PydanticJSON(Doc))
    note: Mapped[str | None]
    number: Mapped[float | None] = mapped_column(PydanticJSON(float))
    anything: Mapped[Any] = mapped_column(PydanticJSON(Any), nullable=True)


DOC = Doc(status=NASTY, lines=[Line(sku="a")], free={NASTY: [1, 1.5, None, True]})


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None], database: URL) -> None:
    create_tables(Base.metadata)
    engine = create_engine(database)
    with Session(engine) as session:
        session.add(Plain(id=1, doc=DOC))
        session.commit()
    engine.dispose()


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (dict[str, int], {"a": 1}),
        (list[Line], [Line(sku="a")]),
        (Line | int, 3),
        (Place, Place("Utrecht")),
        (Note, {"author": "Eve"}),
        (Annotated[dict[str, Any], Field(min_length=1)], {"x": [None]}),
        (str, NASTY),
        (int | None, 7),
    ],
    ids=str,
)
def test_any_type_is_stored(engine: Engine, type_: Any, value: Any) -> None:
    """Whatever TypeAdapter takes goes in and comes out, in Core as well."""
    table = Table(
        "any_type", MetaData(), Column("n", Integer), Column("x", PydanticJSON(type_))
    )
    with engine.begin() as connection:
        table.create(connection)
        written = connection.execute(
            insert(table).values(n=1, x=value).returning(table.c.x)
        )
        assert written.scalar_one() == value
        connection.execute(insert(table).values(n=2, x=None))
        found = connection.execute(select(table.c.x).order_by(table.c.n)).scalars()
        assert found.all() == [value, None]
        assert connection.scalar(
            select(table.c.n).where(table.c.x.is_(None))
        ) == 2  # fmt: skip
        assert connection.scalar(select(table.c.n).where(table.c.x == value)) == 1
        changed = update(table).where(table.c.n == 2).values(x=value)
        assert connection.execute(changed.returning(table.c.x)).scalar_one() == value


def test_loaded_by_every_kind_of_select(engine: Engine) -> None:
    """A model comes out of columns, entities, aliases, subqueries and text."""
    inner = select(Plain).subquery()
    from_inner = aliased(Plain, inner)
    other = aliased(Plain)
    with Session(engine) as session:
        for statement in (
            select(Plain.doc),
            select(Plain.__table__.c.doc),
            select(other.doc),
            select(inner.c.doc),
            select(from_inner.doc),
            select(Plain.id).with_only_columns(Plain.doc),
            select(Plain.doc).union_all(select(other.doc)).limit(1),
        ):
            assert session.scalars(statement).first() == DOC, statement
        for entity in (
            select(Plain),
            select(other),
            select(from_inner),
            select(Plain).from_statement(text("SELECT * FROM plain")),
            select(Plain).from_statement(select(Plain)),
            update(Plain).values(note="x").returning(Plain),
        ):
            session.expunge_all()
            row: Any = session.scalars(entity).one()
            assert row.doc == DOC, entity
            row.doc.status = "changed"
            assert row in session.dirty
            session.rollback()


TEXTUAL = select(Plain).from_statement(text("SELECT * FROM plain ORDER BY id"))


@pytest.mark.parametrize(
    "value", [12, "12", "abc", '{"a": 1}', None, ["x"]], ids=range(6)
)
def test_string_is_read_once_by_a_textual_select(engine: Engine, value: Any) -> None:
    """JSON that the driver has parsed is not parsed again."""
    with Session(engine) as session:
        session.add(Plain(id=2, anything=value))
        session.commit()
    with Session(engine) as session:
        assert session.scalars(TEXTUAL).all()[1].anything == value
        as_text = text("SELECT id, CAST(anything AS TEXT) AS anything FROM plain")
        rows = session.scalars(select(Plain).from_statement(as_text)).all()
        assert [row.anything for row in rows if row.id == 2] == [value]
        column = text("SELECT anything FROM plain WHERE id = 2").columns(Plain.anything)
        assert session.scalar(column) == value


def decimals(data: str | bytes) -> Any:
    """Parse JSON as an application that counts money does."""
    return json.loads(data, parse_float=Decimal)


def test_deserializer_of_the_engine_is_named(driver: Driver) -> None:
    """Only a textual SELECT is refused if it returns values that are not JSON."""
    engine = driver.create_engine(json_deserializer=decimals)
    with Session(engine) as session:
        session.add(Plain(id=2, number=1.5))
        session.commit()
        assert session.get_one(Plain, 2).number == 1.5
        session.expire_all()
        numbers = text("SELECT id, number FROM plain WHERE id = 2")
        with pytest.raises(PayloadError, match=r"Plain number: .*CAST\(column"):
            session.scalars(select(Plain).from_statement(numbers)).all()
        assert session.scalar(select(1)) == 1


def test_literal_is_quoted(engine: Engine) -> None:
    """A value rendered into the SQL text arrives as it is."""
    if engine.driver == "asyncpg" and not ESCAPES_PERCENT:
        pytest.skip("a fault of SQLAlchemy before 2.0.55")
    statement = select(Plain.id).where(Plain.doc == DOC)
    with engine.connect() as connection:
        # Connected, the dialect knows how backslashes are quoted.
        sql = statement.compile(connection, compile_kwargs={"literal_binds": True})
        # With parameters, even none, psycopg reads %% as %, as SQLAlchemy writes it.
        assert connection.exec_driver_sql(str(sql), ()).scalar() == 1
        shown = select(literal(DOC, PydanticJSON(Doc)))
        assert connection.scalar(shown) == DOC


def test_whole_values_are_compared(engine: Engine) -> None:
    """Equality takes a model; the operators of JSONB are there."""
    doc: Any = Plain.doc
    with Session(engine) as session:
        for criterion in (
            doc == DOC,
            doc.in_([DOC, Doc()]),
            doc.is_distinct_from(Doc()),
            doc["status"].astext == NASTY,
            doc["lines"][0]["sku"].astext == "a",
            doc[("lines", 0, "sku")].astext == "a",
            doc.contains({"lines": [{"sku": "a"}]}),
            doc.has_key("free"),
            doc.has_all(array(["free", "lines"])),
            func.jsonb_array_length(doc["lines"]) == 1,
        ):
            found = session.scalars(select(Plain.id).where(criterion)).all()
            assert found == [1], criterion


@pytest.mark.skipif(not TYPES_JSON_PATHS, reason="a fault of SQLAlchemy before 2.0.46")
def test_json_path_is_searched(engine: Engine) -> None:
    """A path with a filter finds the row."""
    doc: Any = Plain.doc
    with Session(engine) as session:
        criterion = doc.path_exists('$.lines[*] ? (@.sku == "a")')
        assert session.scalars(select(Plain.id).where(criterion)).all() == [1]


def test_part_is_selected_as_plain_json(engine: Engine) -> None:
    """A part of a document is no document."""
    doc: Any = Plain.doc
    with Session(engine) as session:
        assert session.scalar(select(doc["lines"])) == [{"sku": "a"}]


def test_column_outside_the_mixin_is_tracked(engine: Engine) -> None:
    """A change in place of an ordinary column is written; None is NULL."""
    with Session(engine) as session:
        row = session.get_one(Plain, 1)
        assert row.doc is not None
        row.doc.lines[0].sku = "b"
        session.add(Plain(id=2))
        session.commit()
        assert session.scalars(select(Plain.doc["lines"])).first() == [{"sku": "b"}]  # type: ignore[index]
        row.doc = None
        session.commit()
        empty = select(Plain.id).where(Plain.doc.is_(None)).order_by(Plain.id)
        assert session.scalars(empty).all() == [1, 2]
        session.get_one(Plain, 2).doc = Doc(status="set")
        session.commit()
        row = session.get_one(Plain, 2)
        assert row.doc is not None
        row.doc.status = "changed"
        session.commit()
        session.execute(update(Plain).values(doc=null()))
        assert row.doc is None


def test_refused_in_core_without_being_wrapped(engine: Engine) -> None:
    """A PayloadError comes out of a plain INSERT too, without the parameters."""
    bad = Doc().model_copy(update={"status": "a\0b"})
    with engine.begin() as connection:
        with pytest.raises(PayloadError, match="status"):
            connection.execute(insert(Plain).values(id=3, doc=bad))
        assert connection.scalar(select(func.count()).select_from(Plain)) == 1


def test_equal_numbers_are_one(engine: Engine) -> None:
    """JSONB spells numbers its own way: the kind is kept where it is declared."""
    free = {"large": 1e16, "zero": -0.0}
    with Session(engine) as session:
        session.add(Plain(id=6, doc=Doc(free=free), number=1e300))
        session.commit()
        read: Any = session.get_one(Plain, 6)
        assert read.doc.free == free
        kinds = type(read.doc.free["large"]), str(read.doc.free["zero"])
        assert kinds == (int, "0.0")
        assert (type(read.number), read.number) == (float, 1e300)


def test_bulk_insert_is_checked(engine: Engine) -> None:
    """An ORM bulk INSERT stores models and refuses what would not survive."""
    with Session(engine) as session:
        session.execute(insert(Plain), [{"id": 4, "doc": DOC}, {"id": 5, "doc": None}])
        assert session.get_one(Plain, 4).doc == DOC
        bad = Doc().model_copy(update={"free": {"x": float("nan")}})
        with pytest.raises(PayloadError, match=r"free\.\*"):
            session.execute(insert(Plain), [{"id": 6, "doc": bad}])


def test_broken_row_is_reported_when_read_and_can_be_repaired(engine: Engine) -> None:
    """An invalid state names row and path, and can be assigned to."""
    with Session(engine) as session:
        session.execute(text("""UPDATE plain SET doc = '{"lines": [{}]}'"""))
        row = session.get_one(Plain, 1)
        with pytest.raises(PayloadError, match=r"Plain 1 doc, at 'lines\.0\.sku'"):
            _ = row.doc
        row.doc = Doc(status="repaired")
        session.commit()
        assert row.doc.status == "repaired"


def test_statements_are_cached() -> None:
    """Equal types share a cache key, other types do not; an unhashable one has none."""
    key = PydanticJSON(Doc)._static_cache_key
    assert key == PydanticJSON(Doc)._static_cache_key
    assert key != PydanticJSON(Line)._static_cache_key
    assert key != PydanticJSON(Doc, round_trip=False)._static_cache_key
    unhashable = PydanticJSON(Annotated[dict[str, int], ["no hash"]])
    assert not unhashable.cache_ok


def test_type_is_pickled_and_copied() -> None:
    """A pickled Table has the same type with the same options."""
    original = PydanticJSON(Doc, accept={"Doc.status"}, mutable=False)
    for copied in (pickle.loads(pickle.dumps(original)), original.copy()):
        assert (copied.type_, copied.accept, copied.mutable) == (
            Doc,
            {"Doc.status"},
            False,
        )
        assert copied.load(copied.dump(DOC)) == DOC
    assert repr(original) == "PydanticJSON(Doc)"


def test_column_is_reflected_as_jsonb(engine: Engine) -> None:
    """The database knows the column as JSONB."""
    with engine.connect() as connection:
        columns = {c["name"]: c for c in inspect(connection).get_columns("plain")}
    assert isinstance(columns["doc"]["type"], JSONB)


def test_written_text_is_not_dumped_again_to_be_bound(engine: Engine) -> None:
    """The text of the last comparison is the text that is bound."""
    dumps: list[object] = []
    column_type: Any = Plain.__table__.c.doc.type
    codec = column_type.codec
    real = codec._adapter

    class Counting:
        serializer: Any

        def __init__(self) -> None:
            self.serializer = self

        def to_json(self, value: Any, **options: Any) -> bytes:
            dumps.append(value)
            return bytes(real.serializer.to_json(value, **options))

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    codec._adapter = Counting()
    try:
        with Session(engine) as session:
            row = session.get_one(Plain, 1)
            assert row.doc is not None
            # Once as it was read, once before the flush, which calls no listener, and
            # once when the commit looks for what a listener changed.
            row.doc.status = "changed"
            session.commit()
    finally:
        codec._adapter = real
    assert len(dumps) == 3


def test_history_shows_the_value_before(engine: Engine) -> None:
    """An audit listener sees the stored value, although it was changed in place."""
    seen: list[Any] = []

    @event.listens_for(Plain, "before_update")
    def note(_mapper: object, _connection: object, row: Plain) -> None:
        history = inspect(row).attrs.doc.history
        seen.append((history.deleted[0].status, history.added[0].status))

    try:
        with Session(engine) as session:
            row = session.get_one(Plain, 1)
            assert row.doc is not None
            assert not session.is_modified(row)
            row.doc.status = "changed"
            assert session.is_modified(row)
            assert inspect(row).attrs.doc.history.deleted == [DOC]
            session.flush()
            row.doc = Doc(status="other")
            session.flush()
    finally:
        event.remove(Plain, "before_update", note)
    assert seen == [(NASTY, "changed"), ("changed", "other")]


def test_sqlite_is_good_for_unit_tests() -> None:
    """On SQLite a document is stored as JSON, read, changed and queried."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Plain(id=1, doc=DOC))
        session.commit()
        row = session.get_one(Plain, 1)
        assert row.doc == DOC
        row.doc.status = "changed"
        session.commit()
        assert session.scalars(select(Plain.doc)).one().status == "changed"  # type: ignore[union-attr]
        assert session.scalar(select(Plain.doc["status"])) == "changed"  # type: ignore[index]
    engine.dispose()
