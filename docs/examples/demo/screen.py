"""What the demo shows: counts while it runs, then a table, then one conflict."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text
from verify import canonical

if TYPE_CHECKING:
    from rich.console import Console
    from workers import Crew

    from sa_wfstate import StateConflict

LIVE_INTERVAL = 0.1
PLAIN_INTERVAL = 2.0


def watch(console: Console, crew: Crew[Any, Any], seconds: float | None) -> None:
    """Show the counts of *crew* until it is done; stop it after *seconds*.

    In a terminal they are redrawn in place, elsewhere a plain line is added every two
    seconds.
    """
    if console.is_terminal:
        _watch_live(console, crew, seconds)
    else:
        _watch_plain(console, crew, seconds)


def _watch_live(console: Console, crew: Crew[Any, Any], seconds: float | None) -> None:
    columns = (
        TextColumn("commits"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("conflicts [bold]{task.fields[conflicts]:,}"),
        TextColumn("retries [bold]{task.fields[retries]:,}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "commits", total=len(crew.workload.actions), conflicts=0, retries=0
        )
        at_work = True
        while at_work:
            at_work = crew.wait(LIVE_INTERVAL)
            progress.update(
                task,
                completed=crew.commits,
                conflicts=crew.conflicts,
                retries=crew.retries,
            )
            _stop_in_time(crew, seconds)


def _watch_plain(console: Console, crew: Crew[Any, Any], seconds: float | None) -> None:
    at_work = True
    while at_work:
        pause = PLAIN_INTERVAL
        if seconds is not None:
            pause = min(pause, max(LIVE_INTERVAL, seconds - crew.seconds))
        at_work = crew.wait(pause)
        console.print(
            f"{crew.seconds:7.1f} s  {crew.commits:,} commits  "
            f"{crew.conflicts:,} conflicts  {crew.retries:,} retries",
            highlight=False,
        )
        _stop_in_time(crew, seconds)


def _stop_in_time(crew: Crew[Any, Any], seconds: float | None) -> None:
    if seconds is not None and crew.seconds >= seconds:
        crew.stop()


def show_counts(
    console: Console, crew: Crew[Any, Any], *, keys: str, actions: str
) -> None:
    """Print what the run came to; *keys* and *actions* say what these are here."""
    rate = crew.commits / crew.seconds if crew.seconds else 0.0
    touched = {action.workflow_key for action in crew.acknowledged}
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        (keys, f"{len(touched):,}"),
        (actions, f"{len(crew.workload.actions):,}"),
        ("workers", f"{len(crew.tallies):,}"),
        ("commits", f"{crew.commits:,}"),
        ("conflicts", f"{crew.conflicts:,}"),
        ("retries", f"{crew.retries:,}"),
        (f"most tries for one of the {actions}", f"{crew.most_tries:,}"),
        ("seconds", f"{crew.seconds:,.1f}"),
        ("commits per second", f"{rate:,.0f}"),
        ("peak memory of this process", f"{peak_memory() / 2**20:,.0f} MiB"),
    ):
        table.add_row(name, value)
    console.print(table)


def show_conflict(console: Console, conflict: StateConflict) -> None:
    """Print *conflict* as it would end a traceback, then what it carries."""
    kind = type(conflict)
    console.print("\nOne of the conflicts, in full:\n")
    console.print(Text(f"{kind.__module__}.{kind.__qualname__}: {conflict}\n"))
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name in ("workflow_key", "expected_version", "actual_version", "reason"):
        table.add_row(f".{name}", Text(str(getattr(conflict, name))))
    if (current := conflict.current) is not None:
        table.add_row(".current.version", Text(str(current.version)))
        table.add_row(".current.updated_at", Text(str(current.updated_at)))
        table.add_row(".current.provenance", Text(current.provenance.model_dump_json()))
        table.add_row(".current.state", Text(_shortened(canonical(current.state))))
    console.print(table)


def _shortened(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def peak_memory() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes; see getrusage(2) of each.
    return peak if sys.platform == "darwin" else peak * 1024
