"""The diagrams: a lost update, and the parts of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from _svg import WIDTH, Drawing

if TYPE_CHECKING:
    from collections.abc import Sequence

KIM, ROW, LEE = 75, WIDTH / 2, WIDTH - 75
LANES = {"Kim": KIM, "the row": ROW, "Lee": LEE}

PLAIN = [
    (ROW, KIM, "new", "muted"),
    (ROW, LEE, "new", "muted"),
    (KIM, ROW, "UPDATE: paid", "blue"),
    (LEE, ROW, "UPDATE: cancelled", "red"),
]
VERSIONED = [
    (ROW, KIM, "new, version 1", "muted"),
    (ROW, LEE, "new, version 1", "muted"),
    (KIM, ROW, "paid, if version 1", "blue"),
    (LEE, ROW, "cancelled, if version 1", "red"),
    (ROW, LEE, "StateConflict: 2, not 1", "red"),
    (LEE, ROW, "what Lee decides now", "green"),
]


def lost_update(theme: str) -> str:
    """Draw two writers of one row, without and with a version."""
    title = "Two writers of one row: a lost update, and a StateConflict in its place"
    drawing = Drawing(theme, title)
    y = _sequence(drawing, 0, "Without a version", PLAIN)
    drawing.text(
        ROW, y, "cancelled: the payment is lost, no error", color="red", anchor="middle"
    )
    y = _sequence(drawing, y + 26, "With sa_wfstate", VERSIONED)
    drawing.text(
        ROW, y, "version 3: both decisions count", color="green", anchor="middle"
    )
    return drawing.render(y + 14)


def _sequence(
    drawing: Drawing,
    top: float,
    title: str,
    messages: Sequence[tuple[float, float, str, str]],
) -> float:
    """Draw one sequence; return where the next line of text goes."""
    drawing.text(0, top + 18, title, bold=True, size=15)
    first, step = top + 76, 36
    bottom = first + step * (len(messages) - 1) + 16
    for name, x in LANES.items():
        drawing.line([(x, top + 56), (x, bottom)], dashed=True)
        drawing.box(x - 42, top + 30, 84, 26)
        drawing.text(x, top + 48, name, anchor="middle")
    for number, (start, end, label, color) in enumerate(messages):
        y = first + number * step + 8
        drawing.arrow((start, y), (end, y), color=color)
        drawing.text((start + end) / 2, y - 6, label, anchor="middle", color=color)
    return bottom + 20


def architecture(theme: str) -> str:
    """Draw what writes a row, what is written with it, and what follows."""
    drawing = Drawing(theme, "The parts of an application with sa_wfstate")
    half = (WIDTH - 16) / 2
    right = half + 16
    _titled(
        drawing,
        0,
        0,
        half,
        ["Your unit of work", "Session, mapped class,", "state changed in place"],
    )
    _titled(
        drawing,
        right,
        0,
        half,
        ["Your reducer", "(state, action) →", "next state, intents"],
    )
    _titled(
        drawing,
        0,
        110,
        half,
        ["ORM extension", "dirty checking, expected", "version, StateConflict"],
        "blue",
    )
    _titled(
        drawing,
        right,
        110,
        half,
        ["ReducerService, try_commit", "queue per key, retries,", "group commit"],
        "blue",
    )
    for x in (half / 2, right + half / 2):
        drawing.arrow((x, 80), (x, 108), color="muted")
        drawing.arrow((x, 190), (x, 218), color="muted")
    drawing.box(0, 220, WIDTH, 128, color="muted")
    drawing.text(14, 244, "One transaction in PostgreSQL", bold=True)
    drawing.text(
        14,
        266,
        "UPDATE … SET version = 8 WHERE workflow_key = … AND version = 7",
        size=13,
    )
    names = ["dedup log", "history", "projection", "outbox"]
    width = (WIDTH - 28 - 24) / 4
    for number, name in enumerate(names):
        x = 14 + number * (width + 8)
        drawing.box(x, 286, width, 46, color="blue")
        drawing.text(x + width / 2, 306, name, anchor="middle")
        drawing.text(
            x + width / 2,
            323,
            "if you want it",
            anchor="middle",
            size=12,
            color="muted",
        )
    _titled(
        drawing,
        0,
        378,
        half,
        ["Projection worker", "read models that follow", "the commits"],
        "blue",
    )
    _titled(
        drawing,
        right,
        378,
        half,
        ["Dispatcher", "delivers intents,", "at least once"],
        "blue",
    )
    for x in (half / 2, right + half / 2):
        drawing.arrow((x, 348), (x, 376), color="muted")
    drawing.text(0, 480, "Blue: of the library.", size=12, color="muted")
    return drawing.render(488)


def _titled(
    drawing: Drawing,
    x: float,
    y: float,
    width: float,
    lines: Sequence[str],
    color: str = "line",
) -> None:
    """Draw a box with a title and two lines."""
    drawing.box(x, y, width, 80, color=color)
    title, *others = lines
    drawing.text(x + width / 2, y + 25, title, anchor="middle", bold=True)
    for number, line in enumerate(others):
        drawing.text(
            x + width / 2,
            y + 46 + 19 * number,
            line,
            anchor="middle",
            size=13,
            color="muted",
        )
