"""What a loaded attribute holds until its value is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Unread:
    """The JSON *text* of a row, from which no value was built yet.

    ``vars()`` of an instance shows it in place of the value, so it is equal to that
    value, and ``dict()`` and FastAPI's encoder see the fields of its JSON. *load*
    builds the value; without it, as after pickling, only equal texts are equal.
    """

    __slots__ = ("load", "text")

    def __init__(self, text: str, load: Callable[[str], Any] | None = None) -> None:
        self.text = text
        self.load = load

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Unread):
            return self.text == other.text
        return bool(self.load is not None and self.load(self.text) == other)

    __hash__ = None  # type: ignore[assignment]

    def keys(self) -> Iterable[str]:
        return self._fields.keys()

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    @property
    def _fields(self) -> dict[str, Any]:
        fields = None if self.load is None else to_jsonable_python(self.load(self.text))
        if not isinstance(fields, dict):
            raise TypeError("no fields are known; read the attribute for the value")
        return fields

    def __reduce__(self) -> tuple[Any, ...]:
        return Unread, (self.text,)

    def __repr__(self) -> str:
        return f"<Unread JSON of {len(self.text)} characters>"


class Stamp(Unread):
    """The JSON of a provenance that was just made, and its *effect_id*."""

    __slots__ = ("effect_id",)

    def __init__(self, text: str, load: Callable[[str], Any], effect_id: str) -> None:
        self.text = text
        self.load = load
        self.effect_id = effect_id


class Before(Unread):
    """The stored JSON of an attribute that a flush may write.

    It is set as the committed value, with which SQLAlchemy compares the current one
    when it collects the changes, after the last listener that may change it.
    """

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]

    @property
    def known(self) -> bool:
        """Whether the text is known to be that of the row."""
        return True

    def is_still(self, value: Any) -> bool:
        """Return whether *value*, which SQLAlchemy is collecting, need not be written.

        Call it only then, because the answer is kept.
        """
        raise NotImplementedError

    def looks_like(self, value: Any) -> bool:
        """Return whether *value* is currently the same."""
        raise NotImplementedError
