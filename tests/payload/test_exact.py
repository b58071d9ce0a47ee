"""Values that are said to survive do, and a type that may change them says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from annotated_types import Predicate
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    SecretStr,
    TypeAdapter,
    computed_field,
    model_serializer,
    model_validator,
)
from pydantic_core import core_schema

from sa_wfstate import PayloadError
from sa_wfstate.payload.canonical import may_be_respelled
from sa_wfstate.payload.codec import Codec
from sa_wfstate.payload.exact import exact_check


class Tier(Enum):
    """Members with texts."""

    GOLD = "gold"
    SILVER = "silver"


class Kind(StrEnum):
    """Members that are texts."""

    A = "a"


class Number(IntEnum):
    """Members that are numbers."""

    ONE = 1


class Place(BaseModel):
    """Used in two fields, so it is a definition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    city: str
    since: date | None = None


class FarPlace(Place):
    """A subclass, of which a field of the parent is cut."""

    planet: str = "Mars"


class Line(BaseModel):
    """A model in a list."""

    sku: str
    count: int = 1
    price: Decimal = Decimal(1)
    tags: list[str] = []


class Order(BaseModel):
    """Each kind of part that is known to survive."""

    number: UUID = UUID(int=1)
    created: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    tier: Tier = Tier.GOLD
    kind: Kind = Kind.A
    state: Literal["new", "paid"] = "new"
    paid: bool = False
    total: float = 0.0
    nothing: None = None
    here: Place = Place(city="Utrecht")
    there: Place | None = None
    lines: list[Line] = []
    notes: dict[str, list[Line]] = {}


class Text(str):
    """A text with another class, which shows itself as another text."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another"


class Old(str, Enum):  # noqa: UP042 - it shows itself as "Old.A"
    """Members that are texts, as before StrEnum."""

    A = "a"


def some(type_: Any, *odd: Any) -> st.SearchStrategy[Any]:
    """Return values that a field takes, and a few that were assigned unchecked.

    Of forty, one: or nearly all orders would have one somewhere.
    """
    usual = st.from_type(type_) if isinstance(type_, type) else type_
    return st.integers(0, 39).flatmap(
        lambda n: st.sampled_from(odd) if n == 13 else usual
    )


def with_field(model: Any, name: str, value: Any) -> Any:
    """Return *model* with a field that its class has not, as one that was renamed."""
    model.__dict__[name] = value
    return model


def with_extra(model: Any, extra: dict[str, Any]) -> Any:
    """Return *model* with more fields than its class allows, as from an old pickle."""
    object.__setattr__(model, "__pydantic_extra__", extra)
    return model


zones = st.sampled_from(
    [
        *(None, UTC, UTC, UTC, UTC, timezone(timedelta(0), "X")),
        *(timezone(timedelta(hours=2)), timezone(timedelta(seconds=7))),
        *(ZoneInfo("Europe/Amsterdam"), ZoneInfo("UTC")),
        TypeAdapter(datetime).validate_json('"2026-01-01T00:00:00Z"').tzinfo,
    ]
)
words = some(
    st.text(max_size=5), Text("x"), Kind.A, Old.A, "\ud800", "\0", "null", 1, None
)
places = some(
    st.builds(
        Place.model_construct, city=words, since=some(date, datetime.now(UTC), None)
    ),
    *(FarPlace(city="x"), Place.model_construct(), {"city": "x"}, None),
)
lines = some(
    st.builds(
        Line.model_construct,
        sku=words,
        count=some(int, True, 10**5000, 10**300, Number.ONE, 1.0),
        price=some(
            st.decimals(allow_nan=False, allow_infinity=False),
            *(Decimal("NaN"), Decimal("-Infinity"), 1, "1"),
        ),
        tags=some(st.lists(words, max_size=2), (), ("a",), None),
    ),
    *(Line.model_construct(sku="x"), Line.model_construct(count=1)),
    *(with_field(Line(sku="x"), "b", 1), with_field(Line.model_construct(), "b", 1)),
    with_extra(Line(sku="x"), {"b": 1}),
)
orders = st.builds(
    Order.model_construct,
    number=some(UUID, str(UUID(int=1))),
    created=some(st.datetimes(timezones=zones), date(2026, 1, 1), "2026-01-01"),
    tier=some(Tier, "gold", Kind.A),
    kind=some(Kind, "a", "b"),
    state=some(st.sampled_from(["new", "paid"]), "other", Text("new")),
    paid=some(bool, 1, 0, "true"),
    total=some(st.floats(-1e16, 1e16), 1, True, 1e23, float("nan"), Decimal(1)),
    nothing=some(st.none(), False),
    here=places,
    there=places,
    lines=some(st.lists(lines, max_size=3), ()),
    notes=some(
        st.dictionaries(words, st.lists(lines, max_size=2), max_size=2), {1: []}
    ),
)

CODEC = Codec(Order)
CHECK = exact_check(CODEC.schema)
READS_BACK: Codec[Any] = Codec(Order)
READS_BACK.survive_for_sure = lambda *_: False


@settings(max_examples=300)
@given(orders)
@example(Order(notes={"a": [Line(sku="b", price=Decimal("1E+999"))]}))
@example(Order(created=datetime.min.replace(tzinfo=UTC), there=Place(city="")))
@example(
    Order(
        created=datetime.max.replace(tzinfo=UTC), here=Place(city="x", since=date.min)
    )
)
def test_what_survives_for_sure_survives(order: Any) -> None:
    """Property: reading it back refuses nothing, and returns an equal value."""
    assert CHECK is not None
    try:
        text = READS_BACK.dump(order)
        READS_BACK.refuse_nul(text)
    except PayloadError:
        return  # It is refused for its text alone.
    if not CHECK([order], text):
        return
    assert READS_BACK.check(order, text) == order
    # The check is of floats alone: in a text there may be anything.
    assert not may_be_respelled(CODEC.dump(Order(total=order.total)))


@given(st.builds(Order, created=st.datetimes() | st.datetimes(timezones=st.just(UTC))))
def test_valid_values_survive_for_sure(order: Order) -> None:
    """A value that was validated, and whose times are of UTC, is not read back."""
    assert CHECK is not None
    copy = Order.model_validate(order.model_dump())
    plain = -1e15 < copy.total < 1e15
    assert CHECK([copy], READS_BACK.dump(copy)) is plain


class Bare(BaseModel):
    """Nothing but a text."""

    a: str


def model(name: str, config: ConfigDict | None = None, **fields: Any) -> type[Any]:
    """Make a model class with these fields."""
    namespace: dict[str, Any] = {"__annotations__": fields, "__module__": __name__}
    if config is not None:
        namespace["model_config"] = config
    return type(name, (BaseModel,), namespace)


class WithPrivate(Bare):
    """It has a private attribute."""

    _kept: int = PrivateAttr(default=1)


class WithInit(Bare):
    """Its initializer is its own."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)


class WithEquality(Bare):
    """Its comparison is its own."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class WithSerializer(Bare):
    """Its JSON is its own."""

    @model_serializer
    def dump(self) -> dict[str, str]:
        """Return one text, whatever it holds."""
        return {"a": "x"}


class WithValidator(Bare):
    """Its validator may change it."""

    @model_validator(mode="after")
    def change(self) -> WithValidator:
        """Change nothing."""
        return self


class WithComputed(Bare):
    """It has a field that is not stored."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def b(self) -> str:
        """Return a text."""
        return "b"


class Named(Enum):
    """Its values are its own: they are not what makes a member."""

    RED = "r"

    @property
    def value(self) -> str:
        """Return another text than the member was made of."""
        return self.name.lower()


class AnyInts:
    """A list whose schema does not say of what."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> Any:
        return core_schema.list_schema()


def nested(levels: int) -> Any:
    """Return a list of lists, so deep."""
    return list[nested(levels - 1)] if levels else int


def shared(levels: int) -> Any:
    """Return a model that uses another one twice, and so on."""
    made: Any = Bare
    for level in range(levels):
        made = model(f"Level{level}", a=made | None, b=made | None)
    return made


class Recursive(BaseModel):
    """It may hold itself."""

    inner: Recursive | None = None


@pytest.mark.parametrize(
    "type_",
    [
        Any,
        set[str],
        tuple[str, ...],
        Sequence[str],
        str | int,
        bytes,
        timedelta,
        SecretStr,
        Number,
        Literal[1],
        dict[int, str],
        dict[Kind, str],
        Recursive,
        RootModel[str],
        WithPrivate,
        WithInit,
        WithEquality,
        WithSerializer,
        WithValidator,
        WithComputed,
        Annotated[str, Field(max_length=9)],
        Annotated[int, Field(ge=0)],
        Annotated[int, Field(ge=False)],
        Annotated[str, Field(max_length=False)],
        Named,
        AnyInts,
        pytest.param(nested(100), id="nested"),
        pytest.param(shared(16), id="shared"),
        Annotated[int, Field(strict=True)],
        Annotated[float, Field(allow_inf_nan=True)],
        Annotated[Decimal, Field(max_digits=3)],
        Annotated[list[str], Field(min_length=1)],
        Annotated[str, AfterValidator(str.upper)],
        Annotated[str, BeforeValidator(str.upper)],
        Annotated[str, Predicate(str.islower)],
        Annotated[str, PlainSerializer(str.upper)],
        model("Aliased", a=Annotated[str, Field(alias="b")]),
        model("Dumped", a=Annotated[str, Field(serialization_alias="b")]),
        model("Excluded", a=Annotated[str, Field(exclude=True)]),
        model(
            "Generated", ConfigDict(alias_generator=AliasGenerator(str.upper)), a=str
        ),
        model("Stripped", ConfigDict(str_strip_whitespace=True), a=str),
        model("Lower", ConfigDict(str_to_lower=True), a=str),
        model("Strict", ConfigDict(strict=True), a=UUID),
        model("Nan", ConfigDict(ser_json_inf_nan="null"), a=float),
        model("Open", ConfigDict(extra="allow"), a=str),
        model("Values", ConfigDict(use_enum_values=True), a=Kind),
        model("Inner", a=dict[str, list[WithSerializer]]),
    ],
    ids=str,
)
def test_type_that_may_change_a_value_is_read_back(type_: Any) -> None:
    """Its values are read back and compared, whatever they are."""
    assert exact_check(Codec(type_).schema) is None


def lines_with(part: Any) -> Order:
    """Return an order with many lines, of which one has *part*."""
    found = [Line(sku=f"sku-{n}") for n in range(50)]
    found[30].tags = [part]
    return Order(lines=found)


ODD: list[Any] = [
    *(None, "a", "", "\ud800", Text("a"), Kind.A, Old.A, Tier.GOLD, b"a", Ellipsis),
    *(1, 0, True, False, Number.ONE, 10**300, 1.0, float("nan"), Decimal(1), object()),
    *(UUID(int=1), date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), str),
    *([], ["a"], ("a",), {"a"}, {"a": "b"}, [None], [1], ["a", None], [["a"]], [[1]]),
]


@pytest.mark.parametrize(
    "told", [str, bool, Tier, Kind, list[str], list[list[Tier]]], ids=str
)
def test_pydantic_dumps_nothing_else_where_a_text_is_due_but_null(told: Any) -> None:
    """So a text, a truth value, a member, and a list of these are not looked at."""
    places = (told, list[told], dict[str, told], told | None, model("One", a=told))
    wraps: list[Any] = [lambda v: v, lambda v: [v], lambda v: {"b": v}, lambda v: v]
    wraps.append(lambda v: places[4].model_construct(a=v))
    for type_, wrap in zip(places, wraps, strict=True):
        codec: Codec[Any] = Codec(model("Outer", there=type_))
        codec.survive_for_sure = lambda *_: False
        check, outer = exact_check(codec.schema), codec.type_
        for odd in ODD:
            value = outer.model_construct(there=wrap(odd))
            try:
                text = codec.dump(value)
            except PayloadError:
                continue
            if check and check([value], text):
                codec.check(value, text)


def test_none_for_a_text_is_seen_among_others_that_may_be_none() -> None:
    """As many nulls as there are optional parts without a value, and not one more."""
    assert CHECK is not None
    many = [Order(there=Place(city="x")), Order()]
    texts = [CODEC.dump(order) for order in many]
    assert CHECK(many, " ".join(texts))
    many[1].lines = [Line.model_construct(sku=None)]
    texts = [CODEC.dump(order) for order in many]
    assert not CHECK(many, " ".join(texts))
    with pytest.raises(PayloadError, match=r"lines\.0\.sku"):
        CODEC.encode(many[1])


def test_text_that_says_null_is_read_back() -> None:
    """It cannot be told from None, and is stored."""
    codec: Codec[Any] = Codec(Order)
    order = lines_with("null")
    assert codec.check(order, codec.dump(order)) == order


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (with_field(Line.model_construct(count=1), "name", "x"), "sku"),
        (with_extra(Line(sku="x"), {"b": 1}), r"\*"),
    ],
    ids=["renamed", "extra"],
)
def test_model_with_other_fields_is_found_in_a_long_text(line: Line, path: str) -> None:
    """A model of an older class: as many fields, of another name; or more of them."""
    order = lines_with("x")
    order.lines[7] = line
    with pytest.raises(PayloadError, match=rf"lines\.7\.{path}"):
        CODEC.encode(order)


def test_long_text_is_not_read_back() -> None:
    """Its value survives for sure, so there is no copy; a short one has one."""
    codec = Codec(Order)
    order = lines_with("x")
    assert codec.check(order, codec.dump(order)) is None
    assert Codec(Bare).check(Bare(a="x"), '{"a":"x"}') == Bare(a="x")


def test_part_that_is_lost_is_found_in_a_long_text() -> None:
    """A model of a subclass among many, a NUL, half a surrogate pair in a key."""
    codec = Codec(Order)
    for lost, message in (
        (Order(lines=lines_with("x").lines, there=FarPlace(city="x")), "FarPlace"),
        (lines_with("\0"), "NUL"),
        (Order(lines=lines_with("x").lines, notes={"\ud800": []}), "notes"),
    ):
        with pytest.raises(PayloadError, match=message):
            codec.encode(lost)
    huge = lines_with("\0")
    huge.lines[7].count = 10**5000
    with pytest.raises(PayloadError, match="NUL"):
        codec.encode(huge)
    missing = lines_with("x")
    missing.lines[7] = Line.model_construct(count=1)
    with pytest.raises(PayloadError, match=r"lines\.7\.sku"):
        codec.encode(missing)


class Parcel(BaseModel):
    """Texts only: its one part that is looked at is itself."""

    city: str
    lines: list[str] = []


class Bigger(Parcel):
    """It has a further field."""

    more: str = "m"


def test_short_value_is_read_back_only_if_that_takes_less_time() -> None:
    """A few texts are told by their model; many parts take longer than their JSON."""
    codec = Codec(Parcel)
    parcel = Parcel(city="a city of more than forty characters in all")
    assert codec.check(parcel, codec.dump(parcel)) is None
    order = Order(there=Place(city="x"))
    assert CODEC.check(order, CODEC.dump(order)) == order


@pytest.mark.parametrize(
    "parcel",
    [
        Bigger(city="c" * 50),
        with_field(Parcel(city="c" * 50), "more", 1),
        Parcel.model_construct(city="c" * 50, lines=None),
    ],
    ids=["of a subclass", "with an attribute", "with None"],
)
def test_one_model_is_doubted_as_many_are(parcel: Parcel) -> None:
    """It takes another way through the check, to the same answer."""
    check = exact_check(Codec(Parcel).schema)
    text = parcel.model_dump_json(warnings=False)
    assert check is not None
    assert not check([parcel], text)
    assert not check([parcel, parcel], f"{text} {text}")
