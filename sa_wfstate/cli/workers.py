"""The commands ``dead-letters`` and ``lag``: what workers have not done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, inspect, select

from ..outbox.table import IntentMixin, revive_dead, table_of
from ..projection.definition import Projection
from ..projection.lag import measure_lag
from ..store.connections import Connections
from . import arguments
from .screen import confirm, print_json, print_table, say, short
from .targets import CommandError

if TYPE_CHECKING:
    import argparse

    from sqlalchemy import Engine


def add_dead_letters(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``dead-letters``."""
    command.add_argument("verb", choices=("show", "retry", "drop"))
    arguments.add_entity(command, "the mapped class of the intents")
    command.add_argument("--key", help="those of this workflow only")
    text = "show at most so many, the oldest"
    command.add_argument("--limit", type=arguments.positive, default=20, help=text)
    arguments.add_yes(command)


def dead_letters(engine: Engine, intents: Any, options: argparse.Namespace) -> int:
    """Show the intents that could not be delivered, deliver them again, drop them."""
    if not (isinstance(intents, type) and issubclass(intents, IntentMixin)):
        raise CommandError(f"{options.entity} is not a class with IntentMixin")
    if options.verb == "show":
        return _show(engine, intents, options)
    what = "all dead letters" if options.key is None else f"those of {options.key!r}"
    if options.verb == "retry":
        confirm(f"deliver {what} of {intents.__name__} again?", yes=options.yes)
        count, done = (
            revive_dead(engine, intents, workflow_key=options.key),
            "due again",
        )
    else:
        confirm(f"drop {what} of {intents.__name__} for good?", yes=options.yes)
        count, done = _drop(engine, intents, options.key), "dropped"
    if options.json:
        print_json({done.replace(" ", "_"): count})
    else:
        say(f"{count:,} dead letters {done}")
    return 0


def _show(engine: Engine, intents: Any, options: argparse.Namespace) -> int:
    table = table_of(intents)
    query = select(table).where(table.c.dead_at.is_not(None)).order_by(table.c.dead_at)
    if options.key is not None:
        query = query.where(table.c.workflow_key == options.key)
    with Connections(engine, inspect(intents)).transaction() as connection:
        found = connection.execute(query.limit(options.limit)).mappings()
        rows = [dict(row) for row in found]
    if options.json:
        print_json(rows)
        return 0
    print_table(
        f"{intents.__name__}, {len(rows)} dead letters shown",
        ("key", "version", "intent", "target", "attempts", "dead since", "last error"),
        (
            (
                row["workflow_key"],
                row["version"],
                f"{row['intent_type']} {short(row['intent_id'])}",
                row["target"],
                row["attempts"],
                f"{row['dead_at']:%Y-%m-%d %H:%M:%S}",
                row["last_error"],
            )
            for row in rows
        ),
    )
    return 0


def _drop(engine: Engine, intents: Any, key: str | None) -> int:
    table = table_of(intents)
    dead = delete(table).where(table.c.dead_at.is_not(None))
    if key is not None:
        dead = dead.where(table.c.workflow_key == key)
    with Connections(engine, inspect(intents)).transaction() as connection:
        return connection.execute(dead).rowcount


def add_lag(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``lag``."""
    arguments.add_entity(command, "the Projection")


def lag(engine: Engine, projection: Any, options: argparse.Namespace) -> int:
    """Show how far a projection is behind."""
    if not isinstance(projection, Projection):
        raise CommandError(f"{options.entity} is not a Projection")
    measured = measure_lag(engine, projection)
    if options.json:
        print_json(measured._asdict())
    else:
        say(
            f"{projection.name}: {measured.keys:,} workflows behind, "
            f"{measured.versions:,} versions at most, {measured.seconds:,.1f} s"
        )
    return 0
