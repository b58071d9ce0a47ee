"""What is refused of the arguments of workers and sweeps, at once and by name."""

from __future__ import annotations


def require_at_least(least: int, **arguments: float) -> None:
    """Raise ValueError unless each of *arguments* is a number from *least* on.

    A batch of no rows would be made again for ever.
    """
    for name, value in arguments.items():
        if not least <= value < float("inf"):
            raise ValueError(f"{name} must be {least} or more, got {value}")
