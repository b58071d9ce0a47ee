"""Losses of the JSON round trip: found in the class, or refused with the value."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    computed_field,
    field_validator,
)
from sqlalchemy import Engine, Text, cast, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typing_extensions import TypedDict

from sa_wfstate import (
    CanonicalStore,
    PayloadError,
    Provenance,
    PydanticJSON,
    WorkflowNotFound,
    WorkflowStateMixin,
)
from sa_wfstate.errors import MappingError
from sa_wfstate.payload.batch import BatchCodec
from sa_wfstate.payload.codec import Codec
from sa_wfstate.payload.losses import losses
from sa_wfstate.payload.traits import traits_of


class Base(DeclarativeBase):
    pass


class Loses(BaseModel):
    secret: SecretStr | None = None
    excluded: int = Field(0, exclude=True)
    read_only_alias: int = Field(0, validation_alias="other")
    path_alias: int = Field(0, validation_alias=AliasPath("a", 0))
    called: Callable[[], int] | None = None
    once: Iterable[int] = ()
    kind: type[int] = int
    nested: list[Inner] = []
    _private: int = PrivateAttr(0)


class Inner(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64")

    key: bytes = b""
    gone: int = Field(0, exclude=True)


class Keeps(BaseModel):
    """Looks suspicious, and is not: nothing of it is lost."""

    model_config = ConfigDict(extra="forbid")

    aliased: int = Field(0, alias="Alias")
    either: int = Field(0, validation_alias=AliasChoices("old", "either"))
    raw: bytes = b""
    amount: Decimal = Decimal(0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        """Twice the number."""
        return 2 * self.aliased


def schema(type_: Any) -> Any:
    """Return the core schema of *type_*."""
    return TypeAdapter(type_).core_schema


def test_every_loss_is_found() -> None:
    """Each field that cannot survive is named, with its model, at any depth."""
    assert set(losses(schema(Loses))) == {
        "Loses.secret",
        "Loses.excluded",
        "Loses.read_only_alias",
        "Loses.path_alias",
        "Loses.called",
        "Loses.once",
        "Loses.kind",
        "Loses._private",
        "Inner.model_config",
        "Inner.gone",
    }


def test_what_survives_is_not_complained_of() -> None:
    """Aliases that work both ways and computed fields are no loss."""
    assert losses(schema(Keeps)) == {}
    codec: Codec[Keeps] = Codec(Keeps)
    assert codec.load(codec.encode(Keeps(Alias=3))) == Keeps(Alias=3)


def test_loss_is_refused_when_the_class_is_mapped() -> None:
    """The error names entity, model, field and remedy."""
    message = r"Login: .*Credentials\.password is a secret .*accept="

    class Elsewhere(DeclarativeBase):
        pass

    with pytest.raises(MappingError, match=message):

        class Login(WorkflowStateMixin[Credentials], Elsewhere):
            __tablename__ = "login"


def test_accepted_loss_is_lost() -> None:
    """A loss that is accepted by name passes, when mapped and when written."""

    class Login(WorkflowStateMixin[Credentials], Base):
        __tablename__ = "login"
        __state_options__ = {"accept": {"Credentials.password"}}  # noqa: RUF012
        last: Mapped[Credentials] = mapped_column(
            PydanticJSON(Credentials, accept={"Credentials.password"})
        )

    Base.registry.configure()
    column_type: Any = Login.__table__.c.state.type
    value = Credentials(user="ada", password=SecretStr("hunter2"))
    assert column_type.codec.encode(value) == '{"user":"ada","password":"**********"}'
    with pytest.raises(PayloadError, match="password"):
        Codec(Credentials).encode(value)


class Credentials(BaseModel):
    user: str
    password: SecretStr


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)

    when: datetime | None = None
    amounts: tuple[Decimal, ...] = ()
    tags: frozenset[str] = frozenset()
    kind: Literal["a"] | None = None
    child: Optional["Frozen"] = None

    @field_validator("amounts")
    @classmethod
    def _keep(cls, value: tuple[Decimal, ...]) -> tuple[Decimal, ...]:
        return value


class FrozenOutside(BaseModel):
    model_config = ConfigDict(frozen=True)

    inside: list[int] = []


class FrozenOpen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


class Typed(TypedDict):
    x: int


@pytest.mark.parametrize(
    ("type_", "frozen"),
    [
        (Frozen, True),
        (tuple[Frozen, ...], True),
        (Frozen | None, True),
        (Point, True),
        (int, True),
        (FrozenOutside, False),
        (FrozenOpen, False),
        (list[Frozen], False),
        (dict[str, int], False),
        (Typed, False),
        (tuple[Any, ...], False),
        (Loses, False),
    ],
)
def test_frozen_means_frozen_at_any_depth(type_: Any, frozen: bool) -> None:
    """A type is frozen only if no part of it can be changed."""
    assert traits_of(schema(type_)).is_frozen is frozen


def test_one_spelling() -> None:
    """Models and lists have one JSON, dicts and sets have several."""
    assert traits_of(schema(Keeps)).has_one_spelling
    assert not traits_of(schema(dict[str, int])).has_one_spelling
    assert not traits_of(schema(list[set[int]])).has_one_spelling
    assert not traits_of(schema(FrozenOpen)).has_one_spelling


class Colour(Enum):
    RED = "red"


class Part(BaseModel):
    n: int = 0


class LongPart(Part):
    more: int = 1


class Doc(BaseModel):
    n: int = Field(0, ge=0)
    f: float | None = None
    text: str = ""
    part: Part = Part()
    parts: list[Part] = []
    free: dict[Any, Any] = {}
    by_number: dict[int | str, int] = {}


def deep(levels: int) -> Any:
    """Return a list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def unvalidated(**fields: Any) -> Doc:
    """Return a Doc that was not validated."""
    return Doc().model_copy(update=fields)


REFUSED: list[tuple[Any, str]] = [
    (unvalidated(n=-1), "n"),
    (unvalidated(n="s3cret"), "n"),
    (unvalidated(f=float("nan")), "f"),
    (unvalidated(f=float("inf")), "f"),
    (unvalidated(free={"x": [float("nan")]}), "free.*.0"),
    (unvalidated(text="a\0b"), "text"),
    (unvalidated(free={"x": {"a\0b": 1}}), "free.*"),
    (unvalidated(text="\ud800"), "text"),
    (unvalidated(free={"x": "\ud800"}), "free.*"),
    (unvalidated(part=LongPart()), "part"),
    (unvalidated(parts=[Part(), LongPart()]), "parts.1"),
    (unvalidated(parts="none"), "parts"),
    (unvalidated(free={"x": (1, 2)}), "free.*"),
    (unvalidated(free={"x": Colour.RED}), "free.*"),
    (unvalidated(free={"x": datetime(2026, 1, 1)}), "free.*"),  # noqa: DTZ001
    (unvalidated(free={"x": {1: 2}}), "free.*"),
    (unvalidated(by_number={1: 1, "1": 2}), "by_number"),
    (unvalidated(free={"x": deep(300)}), "free.*.0.0.0.0.0.0.…"),
    (unvalidated(free={"x": object()}), "free.*"),
    (unvalidated(free={7: [{"part": object()}]}), "free.*.0.part"),
    (unvalidated(part=unvalidated()), "part"),
    (Doc.model_construct(n=1), None),
    (Part.model_construct(), "n"),
    ({"n": 1}, ""),
    ("doc", ""),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_value_that_would_not_survive_is_refused(number: int) -> None:
    """The error names the path, and shows nothing of the value."""
    value, path = REFUSED[number]
    codec: Codec[Any] = Codec(Doc)
    if path is None:
        codec.encode(value)
        return
    with pytest.raises(PayloadError) as caught:
        codec.encode(value, where="Order 'o-1' state")
    error = caught.value
    assert str(error).startswith("Order 'o-1' state")
    assert "s3cret" not in str(error)
    if not isinstance(value, Part):
        assert error.path == path


def test_value_that_holds_itself_is_named() -> None:
    """The path is that of the place where it comes again."""
    free: dict[str, Any] = {}
    free["x"] = [0, free]
    with pytest.raises(PayloadError, match="holds itself") as caught:
        Codec(Doc).encode(unvalidated(free=free))
    assert caught.value.path == "free.*.1"
    with pytest.raises(PayloadError, match="nested too deeply"):
        Codec(Doc).encode(unvalidated(free={"x": deep(210)}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "Doc: is of type object, not Doc, and cannot be dumped"),
        (
            unvalidated(part=object()),
            "Doc, at 'part': is of type object, and cannot be dumped",
        ),
    ],
)
def test_message_says_what_is_in_the_way(value: Any, message: str) -> None:
    """It names the type that is there, and the one that should be."""
    with pytest.raises(PayloadError) as caught:
        Codec(Doc).encode(value)
    assert str(caught.value) == message


def test_paths_show_no_keys_of_the_payload() -> None:
    """Names of the type are shown, keys of a dict are not, in each error."""

    class Named(TypedDict, total=False):
        known: int

    class Book(BaseModel):
        typed: Named = {}
        amounts: dict[str, int] = Field({}, alias="Amounts")

    codec: Codec[Any] = Codec(Book)
    with pytest.raises(PayloadError) as caught:
        codec.load('{"Amounts": {"s3cret": "a"}}')
    assert caught.value.path == "Amounts.*"
    with pytest.raises(PayloadError) as caught:
        codec.load('{"typed": {"known": "a"}}')
    assert caught.value.path == "typed.known"


def test_errors_never_show_the_payload() -> None:
    """Neither the message of an error nor its causes hold a value."""

    class Picky(BaseModel):
        word: str = ""

        @field_validator("word")
        @classmethod
        def _refuse(cls, value: str) -> str:
            if value:
                message = f"{value} is bad"
                raise ValueError(message)
            return value

    codec: Codec[Any] = Codec(Picky)
    for attempt in (
        lambda: codec.load('{"word": "s3cret"}'),
        lambda: codec.load('{"word": ["s3cret"]}'),
        lambda: codec.encode(Picky.model_construct(word="s3cret")),
        lambda: codec.encode(Picky.model_construct(word=b"s3cret")),
    ):
        with pytest.raises(PayloadError, match="word") as caught:
            attempt()
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3cret" not in repr(error) + str(error)
            error = error.__cause__


def test_round_trip_can_be_turned_off() -> None:
    """Then a value is refused only if it cannot be dumped or stored."""
    codec: Codec[Any] = Codec(Doc, round_trip=False)
    assert codec.encode(unvalidated(n=-1))
    with pytest.raises(PayloadError, match="NUL"):
        codec.encode(unvalidated(text="\0"))
    with pytest.raises(PayloadError):
        codec.encode(unvalidated(n="s3cret"))


def test_equality_of_an_own_kind_is_respected() -> None:
    """Objects without an equality, and private parts, are no reason to refuse."""

    @dataclasses.dataclass(eq=False)
    class Plain:
        x: int = 0

    codec: Codec[Any] = Codec(Plain)
    assert codec.encode(Plain(1)) == '{"x":1}'


class Blind(BaseModel):  # noqa: PLW1641
    """Equals everything, so its equality hides every loss."""

    number: float | None = None
    free: Any = None
    approximate: Annotated[Any, PlainSerializer(lambda _: 0)] = 0

    def __eq__(self, _: object) -> bool:
        return True


@dataclasses.dataclass
class HalfBlind:
    free: Any = dataclasses.field(default=None, compare=False)


class Rough:  # noqa: PLW1641
    """Is stored as half of what it is, and says that nothing is missing."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __eq__(self, _: object) -> bool:
        return True


class Measured(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    rough: Annotated[
        Any,
        PlainValidator(lambda n: n if isinstance(n, Rough) else Rough(n)),
        PlainSerializer(lambda rough: rough.number // 2),
    ]


@pytest.mark.parametrize(
    ("type_", "value", "path"),
    [
        (Blind, Blind(number=float("nan")), "number"),
        (Blind, Blind(free=(1, 2)), "free"),
        (Blind, Blind(free=[b"bytes", {"a": b"x"}]), "free.0"),
        (Blind, Blind(free={1: 2}), "free"),
        (Blind, Blind(approximate=7), "approximate"),
        (list[Blind], [Blind(free=(1,))], "0.free"),
        (HalfBlind, HalfBlind((1, 2)), "free"),
        (HalfBlind, HalfBlind({"a": Blind()}), "free.*"),
        (Measured, Measured(rough=5), ""),
    ],
)
def test_equality_of_the_application_hides_no_loss(
    type_: Any, value: Any, path: str
) -> None:
    """A value that is read back is compared by its types and its JSON."""
    codec: Codec[Any] = Codec(type_)
    with pytest.raises(PayloadError, match=r"read back|JSON changes") as caught:
        codec.encode(value)
    assert caught.value.path == path
    if type_ is not HalfBlind:
        assert BatchCodec(codec, round_trip=True).encode([value, value]) is None


def test_equality_of_the_application_refuses_nothing() -> None:
    """What survives is accepted, whatever its equality says or leaves out."""
    for type_, value in (
        (Blind, Blind(number=1.5, free={"a": [1, None, "x"]})),
        (HalfBlind, HalfBlind([1])),
        (Measured, Measured(rough=0)),
    ):
        codec: Codec[Any] = Codec(type_)
        assert codec.dump(codec.load(codec.encode(value))) == codec.dump(value)


class Status(StrEnum):
    NEW = "new"
    PAID = "paid"


class Level(IntEnum):
    LOW = 1


class Loose(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")

    status: Status = Status.NEW
    level: Level = Level.LOW
    amount: Decimal = Decimal(0)
    n: int = 0
    pair: tuple[int, ...] = ()
    when: datetime | None = None
    number: float = 0
    parts: list[Status] = []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"status": "paid"}, '"status":"paid"'),
        ({"parts": ["paid", Status.NEW]}, '"parts":["paid","new"]'),
        ({"level": 1}, '"level":1'),
        ({"amount": 5}, '"amount":"5"'),
        ({"n": 1.0}, '"n":1,'),
        ({"number": float("nan")}, '"number":"NaN"'),
    ],
)
def test_value_that_survives_is_accepted(fields: Any, text: str) -> None:
    """One of another type is written as the equal value that is read back."""
    codec: Codec[Any] = Codec(Loose)
    value = Loose().model_copy(update=fields)
    written = codec.encode(value)
    assert text in written
    assert codec.dump(value) == codec.dump(codec.load(written)) == written


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "s3cret"}, "at 'status': Input should be 'new' or 'paid'"),
        ({"n": "5"}, "at 'n': holds a str that would be read back as a int"),
        ({"amount": 0.1}, "holds a float that would be read back as a Decimal"),
        ({"pair": [1]}, "holds a list that would be read back as a tuple"),
        ({"when": "2026-01-01"}, "holds a str that would be read back as a datetime"),
        ({"n": []}, "at 'n': Input should be a valid integer"),
    ],
)
def test_refusal_says_what_was_expected(fields: Any, message: str) -> None:
    """A value that does not survive is refused with what it should be."""
    with pytest.raises(PayloadError, match=re.escape(message)):
        Codec(Loose).encode(Loose().model_copy(update=fields))


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        (1e16, True),
        (-1e22, True),
        (1e-300, True),
        (10**30, True),
        (1.5e300, False),
        (1e23, False),
        (-1e23, False),
        (9.999999999999989e22, False),
    ],
)
def test_number_that_jsonb_would_change_is_refused(
    engine: Engine, number: float, kept: bool
) -> None:
    """A float without a type is kept if JSONB gives back an equal number."""
    codec: Codec[Any] = Codec(Doc)
    value = Doc(free={"x": [number]}, f=number)
    if not kept:
        with pytest.raises(PayloadError, match=r"free\.\*\.0.*as a int; declare"):
            codec.encode(value)
        value.free = {}
    text = codec.encode(value)
    grows = re.search(r"\de\+?\d", text) is not None
    assert (BatchCodec(codec, round_trip=True).encode([value]) is None) is grows
    with engine.connect() as connection:
        stored = connection.scalar(select(cast(cast(cast(text, Text), JSONB), Text)))
    assert codec.load(stored) == value


def test_what_is_no_json_is_refused() -> None:
    """NaN and Infinity are, where a model would write them as they are."""

    class Constants(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="constants")

        free: Any = None
        text: str = "NaN e+ Infinity"

    codec: Codec[Any] = Codec(Constants)
    assert codec.encode(Constants(free=[1e22]))
    for number in ("nan", "inf", "-inf"):
        with pytest.raises(PayloadError, match="which is not JSON") as caught:
            codec.encode(Constants(free=[float(number)]))
        assert caught.value.path == "free.0"


def test_integer_that_python_does_not_read_is_named() -> None:
    """Python refuses to read more than 4,300 digits."""
    with pytest.raises(PayloadError, match="more than 4,300 digits"):
        Codec(Doc).encode(Doc(free={"x": 10**5000}))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
    ],
)
def test_comparison_is_by_json(one: Any, other: Any, same: bool) -> None:
    """The order of keys means nothing, the kind of a number does."""
    codec: Codec[Any] = Codec(dict[str, Any])
    assert codec.same(codec.dump(one), codec.dump(other)) is same


def test_order_of_a_set_means_nothing() -> None:
    """Two spellings of one set are the same value."""
    codec: Codec[Any] = Codec(dict[str, set[int]])
    assert codec.same('{"a":[1,2,3]}', '{"a":[3,2,1]}')
    assert not codec.same('{"a":[1,2]}', '{"a":[3,2]}')


@pytest.mark.contract
def test_try_commit_refuses_as_a_flush_does(
    engine: Engine, create_tables: Callable[..., None]
) -> None:
    """What would not survive is refused before a statement is sent."""

    class Elsewhere(DeclarativeBase):
        pass

    class Row(WorkflowStateMixin[Doc], Elsewhere):
        __tablename__ = "docs"

    create_tables(Elsewhere.metadata)
    store = CanonicalStore(engine, Row)
    with pytest.raises(PayloadError, match=r"Row 'd-1' state, at 'n'"):
        store.try_commit(
            workflow_key="d-1",
            expected_version=0,
            state=unvalidated(n=-1),
            provenance=Provenance.now(),
        )
    with pytest.raises(WorkflowNotFound):
        store.get_state("d-1")
