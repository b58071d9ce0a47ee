"""The usual recipe for a state of Pydantic: what one finds in tutorials."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator


class UsualJSON(TypeDecorator[Any]):
    """A state of the class *model* in a column of JSON."""

    impl = JSONB
    cache_ok = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else self.model.model_validate(value)
