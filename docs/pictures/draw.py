"""Draw the pictures of the documentation, each for light and for dark pages.

python docs/pictures/draw.py
python docs/pictures/draw.py --check

The second only compares: it fails if a picture is not what the script draws. Nothing
has to be installed. Pictures of measurements are drawn from the results in docs/bench.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _charts import contention, growth, options, round_trip, states
from _diagrams import architecture, lost_update
from _svg import THEMES

PICTURES = {
    "lost-update": lost_update,
    "architecture": architecture,
    "contention": contention,
    "states": states,
    "round-trip": round_trip,
    "options": options,
    "growth": growth,
}


def main() -> None:
    """Write the files, or compare them."""
    different = []
    for name, draw in PICTURES.items():
        for theme in THEMES:
            path = Path(__file__).with_name(f"{name}-{theme}.svg")
            text = draw(theme)
            if "--check" not in sys.argv:
                path.write_text(text)
            elif not path.exists() or path.read_text() != text:
                different.append(path.name)
    if different:
        sys.exit(f"run python docs/pictures/draw.py: {', '.join(different)} differ")


if __name__ == "__main__":
    main()
