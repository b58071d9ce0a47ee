"""What the commands print: tables on a terminal, plain lines in a pipe, or JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .targets import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from ..values.provenance import Provenance


SHORT = 8
"""How many characters of a UUID are shown."""

LONGEST_VALUE = 40
"""How many characters of a value are shown."""


def console() -> Console:
    """Return the console of standard output."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise CommandError(
            "tables need rich: pip install 'sa-wfstate[cli]', or use --json"
        ) from error
    return Console(highlight=False)


def print_json(value: object) -> None:
    """Print *value*; what is no JSON is printed as its text."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Print a table; without its lines where no terminal is."""
    from_rich = console()
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lines = box.HEAVY_HEAD if from_rich.is_terminal else None
    table = Table(title=title, title_justify="left", box=lines)
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    from_rich.print(table)


def who(provenance: Provenance, *, full: bool = False) -> str:
    """Return the effect and action of a version, and the rest of its provenance."""
    given = provenance.model_dump(mode="json", exclude_none=True)
    given.pop("timestamp")
    names = {"effect_id": "effect", "action_id": "action"}
    return ", ".join(
        f"{names.get(key, key)} {value if full else short(value)}"
        for key, value in given.items()
    )


def short(value: Any) -> str:
    """Return *value* as a text; of a UUID its start, which is enough to tell it."""
    text = str(value)
    try:
        UUID(text)
    except ValueError:
        return text
    return text[:SHORT]


def cut(text: str) -> str:
    """Return the start of a *text* that is too long for a table."""
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def say(line: str) -> None:
    """Print a line of a report at once."""
    print(line, flush=True)  # noqa: T201


def confirm(question: str, *, yes: bool) -> None:
    """Ask *question* on the terminal, unless *yes* is the answer already."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError("asks on a terminal only; add --yes to do it without")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandError("nothing was done")
