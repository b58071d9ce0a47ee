"""How JSON is spelled: what is the same in two texts, and what JSONB makes of one."""

from __future__ import annotations

import json
from decimal import Decimal

_FREQUENT = "0123456789aeinorst"


def holds_nul(text: str) -> bool:
    """Say whether there may be a NUL in the JSON *text*."""
    return "\\" in text and "\\u0000" in text  # One character is found much faster.


def canonical_json(text: str) -> str:
    """Return *text* with the keys of its objects in order.

    Numbers keep their spelling: 1, 1.0 and true are three values.
    """
    return json.dumps(json.loads(text), sort_keys=True)


def may_be_reordered(text: str, other: str) -> bool:
    """Say, at little cost, whether two texts can differ in the order of keys only."""
    return len(text) == len(other) and all(
        text.count(character) == other.count(character) for character in _FREQUENT
    )


def respelled(text: str) -> str:
    """Return the JSON *text* with its numbers as JSONB spells them, without exponents.

    Raises ValueError, which names it, if one of them is not JSON.
    """

    def number(spelling: str) -> int | float:
        exact = Decimal(spelling)
        scale = -int(exact.as_tuple().exponent)
        return float(spelling) if scale > 0 else int(exact)

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.dumps(json.loads(text, parse_float=number, parse_constant=refuse))


def may_be_respelled(text: str) -> bool:
    """Return whether :func:`respelled` may have something to do."""
    return "NaN" in text or "Infinity" in text or ("+" in text and "e+" in text)
