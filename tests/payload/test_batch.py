"""Many values encoded at once come out as they do one by one, or not at all."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)

from sa_wfstate import PayloadError, Provenance
from sa_wfstate.payload.batch import BatchCodec
from sa_wfstate.payload.codec import Codec

MODES: Counter[str] = Counter()


class Kind(StrEnum):
    A = "a"


class Line(BaseModel):
    sku: str
    count: int = Field(default=1, ge=0)


class Order(BaseModel):
    status: Literal["new", "paid"] = "new"
    kind: Kind = Kind.A
    lines: list[Line] = []
    notes: dict[str, int] = {}
    total: float | None = None
    due: datetime | None = None
    tags: set[str] = set()
    parent: Order | None = None
    free: Any = None


class GiftLine(Line):
    wrapped: bool = True


class Binary(BaseModel):
    """Its configuration decides how a value of no declared type is dumped."""

    model_config = ConfigDict(
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_timedelta="float",
        ser_json_inf_nan="strings",
        strict=True,
    )

    blob: bytes = b""
    free: Any = None
    ratio: float = 0.0


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True, extra="allow")

    name: str = Field(default="", alias="theName")


class WithCode(BaseModel):
    word: str = ""
    _private: int = PrivateAttr(default=0)

    @field_validator("word")
    @classmethod
    def _note_mode(cls, word: str, info: Any) -> str:
        MODES[f"validate {info.mode}"] += 1
        return word.removeprefix("<")

    @field_serializer("word")
    def _mark(self, word: str, info: Any) -> str:
        MODES[f"serialize {info.mode} {info.round_trip} {info.by_alias}"] += 1
        return f"<{word}"

    @model_validator(mode="after")
    def _refuse_bad(self) -> WithCode:
        if self.word == "bad":
            raise ValueError("bad")
        return self


class Hidden(BaseModel):
    secret: SecretStr = SecretStr("")


@dataclasses.dataclass
class Place:
    city: str


def _private() -> WithCode:
    value = WithCode(word="x")
    value._private = 3
    return value


ZONE = timezone(timedelta(hours=2))
VALUES: list[tuple[Any, Any]] = [
    (Order, Order()),
    (Order, Order(status="paid", lines=[Line(sku="é\u2028", count=2)], total=0.1)),
    (Order, Order(due=datetime(2026, 1, 1, tzinfo=ZONE), tags={"a", "b"})),
    (Order, Order(parent=Order(parent=Order(notes={"": 1})), free=[1, None, "x"])),
    (Order, Order(free=(1, 2))),
    (Order, Order(total=float("nan"))),
    (Order, Order(free="\0")),
    (Order, Order(free="\ud800")),
    (Order, Order(lines=[GiftLine(sku="g")])),
    (Order, Order(lines=[Line.model_construct()])),
    (Order, Order.model_construct(status="lost")),
    (Order, Order.model_construct(lines=None)),
    (Order, Order.model_construct(notes={1: 1})),
    (Order, "no order"),
    (Order, None),
    (Binary, Binary(blob=b"\xff", free=b"\xfe")),
    (Binary, Binary(free=timedelta(seconds=3))),
    (Binary, Binary(free=float("inf"))),
    (Binary, Binary(ratio=float("inf"))),
    (Aliased, Aliased(theName="x", more=[1])),
    (WithCode, WithCode(word="x")),
    (WithCode, WithCode.model_construct(word="bad")),
    (WithCode, _private()),
    (Hidden, Hidden(secret=SecretStr("x"))),
    (Provenance, Provenance.now("effect", lease=1)),
    (RootModel[list[int]], RootModel[list[int]]([1, 2])),
    (dict[str, Any], {"a": [1, {"b": None}]}),
    (dict[str, Any], {"a": b"\xff"}),
    (list[Line], [Line(sku="a")]),
    (Annotated[Binary, AfterValidator(lambda value: value)], Binary(blob=b"\xff")),
    (Place, Place("Paris")),
]


@pytest.mark.parametrize("round_trip", [True, False])
@pytest.mark.parametrize(("type_", "value"), VALUES)
def test_batch_is_what_the_codec_makes(
    type_: Any, value: Any, *, round_trip: bool
) -> None:
    """The same texts and copies; a value that the codec refuses is left to it."""
    codec: Codec[Any] = Codec(type_, round_trip=round_trip)
    found = BatchCodec(codec, round_trip=round_trip).encode([value, value])
    try:
        text = codec.dump(value)
        copy = codec.check(value, text)
    except PayloadError:
        assert found is None
    else:
        assert found in (([text, text], [copy, copy]), None)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Order, Order(lines=[Line(sku="a")], parent=Order())),
        (Binary, Binary(blob=b"\xff")),
        (WithCode, WithCode(word="x")),
        (Provenance, Provenance.now("effect", lease=1)),
        (dict[str, Any], {"a": [1, {"b": None}]}),
    ],
)
def test_usual_payloads_are_encoded_at_once(type_: Any, value: Any) -> None:
    """Models and dicts, whatever their configuration."""
    assert BatchCodec(Codec(type_), round_trip=True).encode([value]) is not None


def test_one_that_is_refused_stops_the_batch() -> None:
    """Wherever it is."""
    batch = BatchCodec(Codec(Order), round_trip=True)
    good, bad = Order(), Order(free="\0")
    for values in ([bad, good], [good, bad]):
        assert batch.encode(values) is None


def test_accepted_losses_are_for_the_codec() -> None:
    """It knows which they are."""
    codec = Codec(Hidden, accept=["Hidden.secret"])
    value = Hidden(secret=SecretStr("x"))
    assert BatchCodec(codec, round_trip=True).encode([value]) is None
    codec.encode(value)


def test_code_of_the_application_is_told_the_same() -> None:
    """Validators and serializers see JSON, as they do one by one."""
    codec = Codec(WithCode)
    value = WithCode(word="x")
    MODES.clear()
    codec.encode(value)
    one_by_one = MODES.copy()
    MODES.clear()
    assert BatchCodec(codec, round_trip=True).encode([value]) is not None
    assert one_by_one == MODES


# The default of st.text() is by codec: Hypothesis would try each character there is.
words = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.lists(
        st.builds(
            Order,
            total=st.none() | st.floats(),
            notes=st.dictionaries(words, st.integers()),
            due=st.none() | st.datetimes(timezones=st.just(UTC)),
            free=st.recursive(
                st.none() | st.booleans() | words | st.floats() | st.binary(),
                lambda inner: st.lists(inner) | st.dictionaries(words, inner),
            ),
        ),
        max_size=3,
    )
)
def test_any_batch(values: list[Order]) -> None:
    """Property: encoded at once exactly if each of them can be, and alike."""
    codec = Codec(Order)
    found = BatchCodec(codec, round_trip=True).encode(values)
    try:
        texts = [codec.encode(value) for value in values]
    except PayloadError:
        assert found is None
    else:
        assert found is None or found[0] == texts
