"""Arguments that several commands have, and what their texts stand for."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..orm.entity import statements_of
from ..values.keys import TenantKey

if TYPE_CHECKING:
    import argparse

_AGE = re.compile(r"(\d{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def positive(text: str) -> int:
    """Return the number in *text*; refuse it unless it is 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"must be 1 or more, got {text}")
    return number


def moment(text: str) -> datetime | timedelta:
    """Return an age (``90d``) or a time (``2026-01-31T12:00Z``)."""
    found = _AGE.fullmatch(text)
    try:
        if found:
            return timedelta(**{_UNITS[found[2]]: int(found[1])})
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ArgumentTypeError(
            f"must be an age as 30m, 12h, 90d, 4w, or a time as 2026-01-31T12:00Z, "
            f"got {text}"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def add_entity(
    command: argparse.ArgumentParser, what: str = "the mapped class"
) -> None:
    """Declare the arguments that each command has."""
    command.add_argument("entity", metavar="CLASS", help=f"{what}, as app.models:Order")
    add_connection(command)


def add_connection(command: argparse.ArgumentParser) -> None:
    """Declare the database, and the kind of output."""
    command.add_argument(
        "--url", help="of the database, else SA_WFSTATE_URL, else that of alembic.ini"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def add_key(command: argparse.ArgumentParser) -> None:
    """Declare the workflow key."""
    command.add_argument(
        "key", metavar="KEY", help="the workflow key; within a tenant, TENANT/KEY"
    )


def key_of(entity: Any, options: argparse.Namespace) -> Any:
    """Return the workflow key, which is given as text."""
    statements = statements_of(entity)
    return statements.key_type.parse(statements.entity, options.key)


def shown(workflow_key: Any) -> Any:
    """Return the workflow key as key_of() takes it: a TenantKey as its text."""
    return str(workflow_key) if isinstance(workflow_key, TenantKey) else workflow_key


def add_full(command: argparse.ArgumentParser) -> None:
    """Declare the switch that shows everything in full."""
    command.add_argument(
        "--full", action="store_true", help="show UUIDs and values in full"
    )


def add_yes(command: argparse.ArgumentParser) -> None:
    """Declare the switch of a command that writes."""
    command.add_argument("--yes", "-y", action="store_true", help="do not ask")
