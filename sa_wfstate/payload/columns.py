"""Checks of columns: of all parts of one kind in many values, by functions of C.

Each tells of parts that Pydantic has dumped as JSON whether they are read as equal
ones; see :mod:`~sa_wfstate.payload.exact`.
"""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from itertools import chain
from math import hypot, isfinite
from operator import attrgetter, itemgetter
from types import NoneType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from pydantic_core import TzInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Check = Callable[[Iterable[Any]], int]
    """Told of parts. Returns how many of them are None, as they may be.

    Raises Doubt, or the error of a function that takes no such part.
    """


_FLOAT_LIMIT: Final = 1e15
_FIXED_ZONES: Final = {NoneType, timezone, TzInfo}
_zone_of = attrgetter("tzinfo")


class Doubt(Exception):
    """A part may not survive."""


def require(cls: type[Any], values: list[Any]) -> None:
    """Raise Doubt unless each of *values* is of *cls* exactly."""
    if {*map(type, values)} != {cls}:
        raise Doubt


def only(cls: type[Any], holds: Callable[[list[Any]], bool] | None = None) -> Check:
    """Return the check of parts that are of *cls* exactly, if *holds* holds of them."""

    def check(values: Iterable[Any]) -> int:
        column = [*values]
        require(cls, column)
        if holds and not holds(column):
            raise Doubt
        return 0

    return check


def _have_no_exponent(values: list[float]) -> bool:
    """Return whether JSONB spells *values* as Pydantic does, near enough.

    None is larger than their hypotenuse, which is NaN or infinite if one of them is.
    """
    return hypot(*values) < _FLOAT_LIMIT


def _are_parsed(values: list[int]) -> bool:
    """Return whether *values* have some 300 digits: Python parses less than 4,300."""
    return isfinite(hypot(*values))


def _are_utc_or_naive(values: list[datetime]) -> bool:
    zones = [*map(_zone_of, values)]
    return {*map(type, zones)} <= _FIXED_ZONES and not any(
        zone.utcoffset(None) for zone in {*zones} - {None}
    )


def require_keys(values: list[Any]) -> None:
    """Raise Doubt unless *values* are texts without half a surrogate pair.

    Pydantic refuses that in a value, and replaces it in a key.
    """
    require(str, values)
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        raise Doubt from None


def some(check: Check | None) -> Check:
    """Return the check of parts that may be None, those that are not by *check*."""

    def check_some(values: Iterable[Any]) -> int:
        column = [*values]
        given = [each for each in column if each is not None]
        return len(column) - len(given) + (check(given) if check and given else 0)

    return check_some


LEAVES: Final[dict[str, Check | None]] = {
    "none": some(only(NoneType)),
    "bool": None,
    "int": only(int, _are_parsed),
    "float": only(float, _have_no_exponent),
    "str": None,
    "decimal": only(Decimal, lambda values: all(map(Decimal.is_finite, values))),
    "uuid": only(UUID),
    "date": only(date),
    "datetime": only(datetime, _are_utc_or_naive),
}
"""The checks of parts without parts. Pydantic refuses to dump what is no text."""


def values_at(names: list[str]) -> Callable[[list[Any]], Iterable[Any]]:
    """Return what takes the values at all *names* from dicts."""
    get = itemgetter(*names)
    if len(names) == 1:
        return lambda dicts: map(get, dicts)
    return lambda dicts: chain.from_iterable(map(get, dicts))
