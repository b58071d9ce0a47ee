"""Draw docs/bench/states.json: how far each way is from psycopg without an ORM.

python docs/bench/_plot.py
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib import pyplot as plt

HERE = Path(__file__).parent
SHOWN = [
    "Read one in a Session",
    "Read 1,000, use each state",
    "Read 1,000, use no state",
    "Read, change, commit",
]


def main() -> None:
    """Write docs/performance-states.svg."""
    tables = json.loads((HERE / "states.json").read_text())
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(13, 3.4), sharey=False)
    for axis, title in zip(axes, SHOWN, strict=True):
        columns = tables[title]
        names = [
            name
            for name in next(iter(columns.values()))
            if name != "raw psycopg" and "," not in name
        ]
        for name in names:
            ratios = [results[name]["ratio"] for results in columns.values()]
            axis.plot(list(columns), ratios, marker="o", label=name)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("time, raw psycopg = 1")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE.parent / "performance-states.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
