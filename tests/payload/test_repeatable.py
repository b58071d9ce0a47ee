"""What reads the same each time need not be dumped when it is handed out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    FutureDatetime,
    PlainSerializer,
    TypeAdapter,
    field_validator,
)

from sa_wfstate.payload.traits import reads_alike


class Tier(StrEnum):
    GOLD = "gold"


class Lenient(StrEnum):
    OTHER = "other"

    @classmethod
    def _missing_(cls, _: object) -> Lenient:
        return cls.OTHER


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


@dataclass
class Point:
    x: int = 0


@dataclass(eq=False)
class Mark:
    name: str = ""


class Plain(BaseModel):
    type: str = "a"
    metadata: dict[str, Any] = {}
    default: tuple[int, ...] = (1, 2)
    tier: Tier = Tier.GOLD
    price: Decimal | None = None
    at: datetime
    point: Point = Point()
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    children: list[Plain] = []


class Validating(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _strip(cls, value: str) -> str:
        return value.strip()


class Counting(BaseModel):
    name: str = ""

    def model_post_init(self, _: object) -> None:
        self.name += "!"


class Named(BaseModel):
    name: UUID = Field(default_factory=uuid4)


class Marked(BaseModel):
    marks: tuple[Mark, ...] = (Mark(),)


@pytest.mark.parametrize("type_", [Plain, dict[str, int], list[Point], set[UUID]])
def test_plain_types_read_alike(type_: Any) -> None:
    """Neither code of the application nor a default of each reading is involved."""
    assert reads_alike(dict(TypeAdapter(type_).core_schema))


@pytest.mark.parametrize(
    "type_",
    [
        Validating,
        Counting,
        Named,
        Marked,
        Lenient,
        FutureDatetime,
        Annotated[int, AfterValidator(abs)],
        Annotated[int, PlainSerializer(abs)],
        dict[str, list[Named]],
    ],
    ids=str,
)
def test_code_and_shared_defaults_do_not(type_: Any) -> None:
    """A second reading might give, or dump as, another value."""
    assert not reads_alike(dict(TypeAdapter(type_).core_schema))
