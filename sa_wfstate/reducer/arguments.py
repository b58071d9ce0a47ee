"""What a service is given by mistake, and what to give instead."""

from __future__ import annotations

from typing import Any

from ..dedup import ActionDedupMixin
from ..payload.actions import Action


def check_service(reducer: Any, dedup: Any) -> None:
    """Raise TypeError unless these are a function, and the class of a log or None."""
    if not callable(reducer):
        raise TypeError(
            "the reducer must be a function of a state and an action, got "
            f"{type(reducer).__name__}"
        )
    if dedup is not None and not (
        isinstance(dedup, type) and issubclass(dedup, ActionDedupMixin)
    ):
        raise TypeError(
            "dedup must be the mapped class of a dedup log, such as ActionDedupLog of "
            f"sa_wfstate.canonical, got {type(dedup).__name__}"
        )


def check_action(action: Any) -> None:
    """Raise TypeError unless *action* is an Action."""
    if not isinstance(action, Action):
        name = type(action).__name__
        how = "Action(**message)" if isinstance(action, dict) else "Action(…)"
        raise TypeError(f"a service handles an Action, got {name}; make it by {how}")
