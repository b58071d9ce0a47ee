"""The charts: each draws a file of results in docs/bench, if there is one."""

from __future__ import annotations

import json
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _svg import WIDTH, Drawing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BENCH = Path(__file__).parents[1] / "bench"
COLORS = ["blue", "orange", "green", "red"]


def states(theme: str) -> str:
    """Draw how far each way to hold a state is from psycopg, by size."""
    tables = _read("states.json")
    shown = [
        "Read one in a Session",
        "Read, change, commit",
        "Read 1,000, use each state",
        "Read 1,000, use no state",
    ]
    names = ["sa_wfstate", "the usual recipe", "sqlalchemy-pydantic-json"]
    drawing = Drawing(theme, "Time by the size of the state, raw psycopg = 1")
    top = _legend(drawing, names)
    for number, title in enumerate(shown):
        sizes = tables[title]
        series = {n: [each[n]["ratio"] for each in sizes.values()] for n in names}
        x, y = (number % 2) * (WIDTH / 2 + 8), top + number // 2 * 200
        _lines(drawing, (x, y, WIDTH / 2 - 8, 180), title, list(sizes), series)
    drawing.text(
        0,
        top + 408,
        "Time, raw psycopg = 1, by the size of the state",
        size=13,
        color="muted",
    )
    return drawing.render(top + 418)


def round_trip(theme: str) -> str:
    """Draw what the check that a state survives costs, by size."""
    sizes = _read("states.json")["CanonicalStore.try_commit"]
    names = ["sa_wfstate", "sa_wfstate, round_trip=False"]
    drawing = Drawing(
        theme, "try_commit with the check that a state survives, and without"
    )
    top = _legend(drawing, ["with the check", "round_trip=False"])
    for number, (size, results) in enumerate(sizes.items()):
        y = top + number * 50
        drawing.text(0, y + 24, size)
        for row, name in enumerate(names):
            ratio = results[name]["ratio"]
            drawing.bar(70, y + 18 * row, 110 * ratio, 15, COLORS[row])
            drawing.text(76 + 110 * ratio, y + 13 + 18 * row, f"{ratio:.1f}", size=13)
    bottom = top + 50 * len(sizes) - 8
    drawing.line([(180, top - 6), (180, bottom)], color="muted", dashed=True)
    drawing.text(
        0,
        bottom + 22,
        "Time of try_commit; the line at 1 is raw psycopg",
        size=13,
        color="muted",
    )
    return drawing.render(bottom + 32)


def contention(theme: str) -> str:
    """Draw throughput and tail latency of many workers on one key."""
    results = _read("contention.json")
    drawing = Drawing(theme, "Many workers on one key, the usual loop = 1")
    names = ["ReducerService", "with fold=64"]
    y = _legend(drawing, names)
    for title, keys, decades in (
        ("Actions per second (more is better)", ("rate", "rate_folded"), (-1, 2)),
        (
            "99th percentile of the latency (less is better)",
            ("p99", "p99_folded"),
            (-3, 2),
        ),
    ):
        drawing.text(0, y + 14, title, bold=True)
        y = _dots(drawing, y + 26, results, keys, decades) + 14
    drawing.text(
        0, y, "The usual loop = 1; each step is a factor of ten", size=13, color="muted"
    )
    return drawing.render(y + 10)


def options(theme: str) -> str:
    """Draw what each option of a commit costs."""
    results = _read("options.json")
    drawing = Drawing(theme, "What each option of a commit costs, nothing = 1")
    top = _legend(drawing, ["time", "CPU of the client"])
    unit = (WIDTH - 170) / max(max(each.values()) for each in results.values())
    for number, (name, ratios) in enumerate(results.items()):
        y = top + number * 46
        drawing.text(0, y + 22, name)
        for row, (ratio, color) in enumerate(
            zip(ratios.values(), COLORS, strict=False)
        ):
            drawing.bar(130, y + 18 * row, unit * ratio, 15, color)
            label = f"{ratio:.2f}"
            drawing.text(136 + unit * ratio, y + 12 + 18 * row, label, size=13)
    bottom = top + 46 * len(results)
    drawing.text(0, bottom + 16, "One action, nothing = 1", size=13, color="muted")
    return drawing.render(bottom + 26)


def growth(theme: str) -> str:
    """Draw the cost of commits, reads and upkeep by the rows of the tables."""
    results = _read("growth.json")
    drawing = Drawing(theme, results["title"])
    series = list(results["series"].items())
    y = 0.0
    for title, some in (
        ("Reads and commits", dict(series[:4])),
        ("Upkeep", dict(series[4:])),
    ):
        y = _legend(drawing, list(some), y)
        _lines(drawing, (0, y, WIDTH, 180), title, results["x"], some)
        y += 200
    drawing.text(0, y + 4, results["unit"], size=13, color="muted")
    return drawing.render(y + 14)


def _read(name: str) -> Any:
    return json.loads((BENCH / name).read_text())


def _legend(drawing: Drawing, names: Sequence[str], top: float = 0.0) -> float:
    """Name the colours in lines from *top* on; return where the chart begins."""
    x, y = 6.0, top + 12
    for name, color in zip(names, COLORS, strict=False):
        width = 36 + 7.2 * len(name)
        if x > 6 and x + width - 24 > WIDTH:
            x, y = 6.0, y + 20
        drawing.dot(x, y, color)
        drawing.text(x + 11, y + 5, name, size=13)
        x += width
    return y + 26


def _lines(
    drawing: Drawing,
    frame: tuple[float, float, float, float],
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
) -> None:
    """Draw a line for each series, from zero up, in *frame*."""
    x0, y0, width, height = frame
    drawing.text(x0, y0 + 14, title, bold=True, size=13.5)
    left, top, bottom = x0 + 24, y0 + 28, y0 + height - 22
    highest = max(max(values) for values in series.values())
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if highest / s <= 5)
    limit = step * (int(highest / step) + 1)
    for tick in range(0, limit + 1, step):
        y = bottom - (bottom - top) * tick / limit
        drawing.line([(left, y), (x0 + width, y)], width=1)
        drawing.text(left - 6, y + 4, f"{tick}", size=12, anchor="end", color="muted")
    gap = (x0 + width - left) / len(labels)
    places = [left + gap * (n + 0.5) for n in range(len(labels))]
    for x, label in zip(places, labels, strict=True):
        drawing.text(x, bottom + 17, label, size=12, anchor="middle", color="muted")
    for values, color in zip(series.values(), COLORS, strict=False):
        heights = [bottom - (bottom - top) * value / limit for value in values]
        points = list(zip(places, heights, strict=True))
        drawing.line(points, color=color, width=2)
        for x, y in points:
            drawing.dot(x, y, color)


def _dots(
    drawing: Drawing,
    top: float,
    results: Mapping[str, Mapping[str, float]],
    keys: tuple[str, str],
    decades: tuple[int, int],
) -> float:
    """Draw a row of dots for each result on a logarithmic axis; return its end."""
    left, right, step = 168, WIDTH - 16, 24
    low, high = decades

    def place(value: float) -> float:
        return left + (right - left) * (log10(value) - low) / (high - low)

    bottom = top + step * len(results)
    for decade in range(low, high + 1):
        x = place(10.0**decade)
        drawing.line(
            [(x, top), (x, bottom)],
            color="muted" if decade == 0 else "line",
            width=1,
            dashed=decade == 0,
        )
        drawing.text(
            x, bottom + 16, f"{10.0**decade:g}", size=12, anchor="middle", color="muted"
        )
    for number, (label, values) in enumerate(results.items()):
        y = top + step * (number + 0.5)
        drawing.text(0, y + 5, label, size=13)
        for key, color in zip(keys, COLORS, strict=False):
            drawing.dot(place(values[key]), y, color)
    return bottom + 28
