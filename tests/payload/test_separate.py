"""Which edits need no validation of their result, and which do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from sqlalchemy import Column

from sa_wfstate import PydanticJSON, field_of
from sa_wfstate.patching import Edit, append, increment, remove, set_to
from sa_wfstate.payload.separate import SeparateParts
from sa_wfstate.row.safe_edits import are_safe


class Line(BaseModel):
    name: str = ""


class Note(BaseModel):
    count: int = 0
    line: Line = Line()


class Part(BaseModel):
    name: str
    by: dict[str, int] = {}
    tags: list[str] | None = None
    lines: dict[str, Line] = {}


class State(BaseModel):
    model_config = ConfigDict(extra="forbid", title="A state")
    status: str = "new"
    kind: Literal["a", "b"] = "a"
    count: int = 0
    maybe: int | None = None
    low: int = Field(0, le=10)
    above: int = Field(1, gt=0)
    ratio: float = 0.0
    other_name: int = Field(0, alias="otherName")
    lowered: Annotated[str, AfterValidator(str.lower)] = ""
    short: list[int] = Field([], max_length=3)
    small: dict[str, int] = Field({}, max_length=3)
    coded: dict[int, int] = {}
    checked: str = ""
    lines: list[Line] = Field(default_factory=list)
    more: list[Line] = []
    made: int = Field(default_factory=lambda: 7)
    either: Part | Line = Line()
    part: Part
    optional: Part | None = None
    note: Note | None = None

    @field_validator("checked")
    @classmethod
    def _check(cls, value: str) -> str:
        return value


Pick = Callable[[Any], Any]


def safe(type_: Any, *makes: Callable[[Any], Edit]) -> bool:
    """Return whether edits of a state of *type_* are safe."""
    column = Column("state", PydanticJSON(type_, accept=["Excluded.x"]))
    edits = [make(column) for make in makes]
    return are_safe(SeparateParts(column.type.codec.schema), edits)  # type: ignore[attr-defined]


def setting(pick: Pick, value: Any) -> Callable[[Any], Edit]:
    """Return what makes the edit of a column."""
    return lambda column: set_to(field_of(column, pick), value)


def adding(pick: Pick, amount: int = 1) -> Callable[[Any], Edit]:
    """Return what makes the edit of a column."""
    return lambda column: increment(field_of(column, pick), amount)


def appending(pick: Pick, item: Any) -> Callable[[Any], Edit]:
    """Return what makes the edit of a column."""
    return lambda column: append(field_of(column, pick), item)


def removing(pick: Pick) -> Callable[[Any], Edit]:
    """Return what makes the edit of a column."""
    return lambda column: remove(field_of(column, pick))


def test_edits_of_separate_parts_are_safe() -> None:
    """A value that is validated alone, an int without bounds, an item, a default."""
    for make in (
        setting(lambda s: s.status, "paid"),
        setting(lambda s: s.kind, "b"),
        setting(lambda s: s.low, 3),
        setting(lambda s: s.lowered, "x"),
        setting(lambda s: s.short, [1]),
        setting(lambda s: s.part, Part(name="x")),
        setting(lambda s: s.part.name, "x"),
        setting(lambda s: s.note.line.name, "x"),
        setting(lambda s: s.optional, None),
        adding(lambda s: s.count),
        adding(lambda s: s.maybe),
        adding(lambda s: s.other_name),
        adding(lambda s: s.part.by['"q']),
        adding(lambda s: s.note.count),
        appending(lambda s: s.lines, Line()),
        appending(lambda s: s.part.tags, "x"),
        removing(lambda s: s.status),
        removing(lambda s: s.lines),
        removing(lambda s: s.part.by["q"]),
    ):
        assert safe(State, make), make(Column("state", PydanticJSON(State)))
    assert safe(State, adding(lambda s: s.count), adding(lambda s: s.maybe))


def test_what_another_part_may_contradict_is_not_safe() -> None:
    """Bounds, lengths, parents that may be missing, indexes, unions, two of a path."""
    for make in (
        adding(lambda s: s.low),
        adding(lambda s: s.above),
        adding(lambda s: s.ratio),
        adding(lambda s: s.count, 10**18),
        adding(lambda s: s.small["q"]),
        adding(lambda s: s.coded[1]),
        appending(lambda s: s.short, 1),
        setting(lambda s: s.checked, "x"),
        setting(lambda s: s.lines[0], Line()),
        setting(lambda s: s.either.name, "x"),
        setting(lambda s: s.optional.name, "x"),
        removing(lambda s: s.part.name),
        removing(lambda s: s.made),
        removing(lambda s: s.part),
    ):
        assert not safe(State, make), make(Column("state", PydanticJSON(State)))
    twice = adding(lambda s: s.count)
    assert not safe(State, twice, twice)
    below = (
        setting(lambda s: s.part.name, "x"),
        setting(lambda s: s.part, Part(name="")),
    )
    assert not safe(State, *below)
    root = RootModel[dict[str, int]]
    assert not safe(root, removing(lambda s: s.root["q"]))
    assert not safe(root, setting(lambda s: s.root, {}))


class By(BaseModel):
    x: int = 0
    y: int = 0


class After(By):
    @model_validator(mode="after")
    def _both(self) -> After:
        return self


class Before(By):
    @model_validator(mode="before")
    @classmethod
    def _any(cls, data: Any) -> Any:
        return data


class Info(By):
    @field_validator("y")
    @classmethod
    def _more_than_x(cls, value: int, info: ValidationInfo) -> int:
        assert value >= info.data["x"]
        return value


class Made(By):
    y: int = Field(default_factory=lambda data: 1 // data["x"])


class Init(By):
    def __init__(self, **data: Any) -> None:
        super().__init__(**data)


class PostInit(By):
    def model_post_init(self, _: Any, /) -> None:
        assert self.x <= self.y


class Excluded(By):
    x: int = Field(0, exclude=True)


class Serialized(By):
    @model_serializer
    def _dump(self) -> dict[str, int]:
        return {"x": self.x, "y": self.y}


class TwoNames(By):
    y: int = Field(0, validation_alias=AliasChoices("y", AliasPath("z", "x")))


OPTIONS: dict[str, Any] = {
    "strict": True,
    "validate_default": True,
    "validate_by_name": True,
    "str_max_length": 3,
}


@pytest.mark.parametrize(
    "type_",
    [After, Before, Info, Made, Init, PostInit, Excluded, Serialized, TwoNames]
    + [
        create_model(name, __config__=ConfigDict(**{name: each}), x=(int, 0))  # type: ignore[typeddict-item, misc]
        for name, each in OPTIONS.items()
    ],
)
def test_model_with_code_or_options_has_no_separate_parts(type_: Any) -> None:
    """Its fields may depend on each other, or be validated by other rules."""
    assert safe(By, setting(lambda s: s.x, 1))
    assert not safe(type_, setting(lambda s: s.x, 1))
    nested = create_model("Nested", inner=(type_, ...))
    assert not safe(nested, setting(lambda s: s.inner.x, 1))
    beside = create_model("Beside", inner=(type_, ...), x=(int, 0))
    sees = type_ in {Info, Made}  # Only what is in them; but that is not looked at.
    assert safe(beside, setting(lambda s: s.x, 1)) is not sees
