"""The command ``wfstate upcast app.models:Order``.

On a terminal it shows a bar with the rate and the remaining time; elsewhere it logs a
line every few seconds.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from ..orm.entity import statements_of
from ..upcasting import UpcastProgress, UpcastReport, count_schema_versions, upcast_all
from . import arguments
from .screen import print_json, say

if TYPE_CHECKING:
    import argparse

    from sqlalchemy import Engine


LOG_INTERVAL = 5.0
"""Seconds between two lines of the plain log."""

SHOWN_FAILURES = 20
"""The maximum number of failed rows that are named; more are counted."""


class _Display(Protocol):
    def show(self, progress: UpcastProgress) -> None: ...
    def close(self) -> None: ...


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    arguments.add_entity(command)
    text = "rows in one transaction"
    command.add_argument(
        "--batch-size", type=arguments.positive, default=1000, help=text
    )
    command.add_argument(
        "--dry-run", action="store_true", help="count the rows by schema version only"
    )


def run(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    """Upcast the rows of *entity*; return 1 if rows are left."""
    return (
        _as_json(engine, entity, options)
        if options.json
        else _upcast(engine, entity, options)
    )


def _as_json(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    """Upcast without a log; the progress goes to the terminal, if there is one."""
    before = _count(engine, entity)
    if options.dry_run:
        print_json({"schema_versions": before})
        return 0
    display = _bar() if sys.stderr.isatty() else None
    try:
        report = upcast_all(
            engine,
            entity,
            batch_size=options.batch_size,
            progress=None if display is None else display.show,
        )
    finally:
        if display is not None:
            display.close()
    left = _left(engine, entity)
    print_json(
        {
            "schema_versions": before,
            "upcast": report.upcast,
            "seconds": report.seconds,
            "failures": [str(failure) for failure in report.failures],
            "left": left,
        }
    )
    return 1 if left or report.failures else 0


def _left(engine: Engine, entity: Any) -> dict[int, int]:
    # Counted again: others may have written old or newer rows meanwhile.
    schema = statements_of(entity).schema
    return {
        version: count
        for version, count in _count(engine, entity).items()
        if not schema.write_version <= version <= schema.version
    }


def _upcast(engine: Engine, entity: Any, options: argparse.Namespace) -> int:
    schema = statements_of(entity).schema
    for version, count in _count(engine, entity).items():
        note = _note(version, schema)
        say(f"schema version {version}: {count:,} {_rows(count)}{note}")
    if options.dry_run:
        return 0
    display = _bar() if sys.stderr.isatty() else _Log()
    try:
        report = upcast_all(
            engine, entity, batch_size=options.batch_size, progress=display.show
        )
    finally:
        display.close()
    _report(report)
    left = _left(engine, entity)
    for version, count in left.items():
        note = ", newer than this code" if schema.is_ahead(version) else ""
        say(f"left as they are: {count:,} {_rows(count)} at version {version}{note}")
    return 1 if left or report.failures else 0


def _count(engine: Engine, entity: Any) -> dict[int, int]:
    with engine.connect() as connection:
        return count_schema_versions(connection, entity)


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _note(version: int, schema: Any) -> str:
    if schema.is_ahead(version):
        return ", newer than this code"
    if version < schema.write_version:
        return f", to become version {schema.write_version}"
    return ""


def _report(report: UpcastReport) -> None:
    rate = report.upcast / max(report.seconds, 0.001)
    say(f"upcast {report.upcast:,} rows in {report.seconds:.1f} s, {rate:,.0f} rows/s")
    for failure in report.failures[:SHOWN_FAILURES]:
        say(f"cannot be upcast: {failure}")
    more = len(report.failures) - SHOWN_FAILURES
    if more > 0:
        say(f"cannot be upcast: {more:,} more")


class _Log:
    """Logs a line every few seconds."""

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()

    def show(self, progress: UpcastProgress) -> None:
        now = time.monotonic()
        if now - self._said < LOG_INTERVAL:
            return
        self._said = now
        rate = progress.done / (now - self._started)
        left = (progress.total - progress.done) / rate if rate else 0
        say(
            f"{progress.done:,} of {progress.total:,} rows, {rate:,.0f} rows/s, "
            f"{left:.0f} s left, {progress.failed} failed"
        )

    def close(self) -> None:
        pass


def _bar() -> _Display:
    """Return a progress bar if rich is there, else the log."""
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text
    except ImportError:
        return _Log()

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} rows/s")

    class Bar:
        def __init__(self) -> None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                Rate(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._progress.add_task("upcasting", total=None)
            self._progress.start()

        def show(self, progress: UpcastProgress) -> None:
            description = "upcasting"
            if progress.failed:
                description += f", {progress.failed} failed"
            self._progress.update(
                self._task,
                total=progress.total,
                completed=progress.done,
                description=description,
            )

        def close(self) -> None:
            self._progress.stop()

    return Bar()
