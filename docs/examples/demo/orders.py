"""The invented workflows: orders, on the canonical tables, with one that is busy.

Their state is a plain dict on the canonical table ``workflow_state``, which the
migrations made. The state only counts, so it has one right answer, whoever wins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("reserve", "charge", "ship")


class OrderAction(NamedTuple):
    """Something to be done to one order; *position* counts the actions from 0."""

    workflow_key: str
    position: int
    kind: str


def order_actions(keys: int, actions: int) -> Iterator[OrderAction]:
    """Yield *actions* actions upon *keys* orders, every second one upon the first.

    So about half of the workers hold the same order at any time, and the others spread.
    """
    for position in range(actions):
        order = 0 if position % 2 == 0 else position // 2 % keys
        yield OrderAction(
            workflow_key=f"order-{order}",
            position=position,
            kind=KINDS[position % len(KINDS)],
        )


def count_action(state: Mapping[str, Any], action: OrderAction) -> dict[str, Any]:
    """Return *state* with *action* counted, in total and by its kind."""
    by_kind = state["by_kind"]
    return {
        "handled": state["handled"] + 1,
        "by_kind": {**by_kind, action.kind: by_kind.get(action.kind, 0) + 1},
    }
