"""What the pictures are made of: a drawing in the colours of a light or a dark page."""

from __future__ import annotations

from html import escape

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
WIDTH = 540
"""Narrow, so that the text is readable on a phone, where the picture is scaled down."""

THEMES = {
    "light": {
        "text": "#1f2328",
        "muted": "#59636e",
        "line": "#c4cbd3",
        "fill": "#f2f4f7",
        "blue": "#0a58ca",
        "green": "#17752f",
        "red": "#b3261e",
        "orange": "#b35900",
    },
    "dark": {
        "text": "#e4e7eb",
        "muted": "#9da7b3",
        "line": "#4a535e",
        "fill": "#22272e",
        "blue": "#6cb6ff",
        "green": "#57c977",
        "red": "#ff8a80",
        "orange": "#f0a35e",
    },
}


class Drawing:
    """An SVG that grows by what is drawn; colours are named, see ``THEMES``."""

    def __init__(self, theme: str, title: str) -> None:
        self._colors = THEMES[theme]
        self._title = title
        self._parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        color: str = "text",
        size: float = 14,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Write *text*, whose baseline is *y*."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
            f' fill="{self._colors[color]}"{weight}>{escape(text)}</text>'
        )

    def line(
        self,
        points: list[tuple[float, float]],
        *,
        color: str = "line",
        width: float = 1.5,
        dashed: bool = False,
    ) -> None:
        """Connect *points*."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{self._colors[color]}"'
            f' stroke-width="{width:g}"{dash}/>'
        )

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], *, color: str
    ) -> None:
        """Draw an arrow along one axis."""
        self.line([start, end], color=color)
        (x0, y0), (x, y) = start, end
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        tip = [
            (x, y),
            (x - 9 * dx + 4.5 * dy, y - 9 * dy + 4.5 * dx),
            (x - 9 * dx - 4.5 * dy, y - 9 * dy - 4.5 * dx),
        ]
        path = " ".join(f"{a:g},{b:g}" for a, b in tip)
        self._parts.append(f'<polygon points="{path}" fill="{self._colors[color]}"/>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        color: str = "line",
        fill: str = "fill",
    ) -> None:
        """Draw a box with round corners."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"'
            f' fill="{self._colors[fill]}" stroke="{self._colors[color]}"/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Draw a bar."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
            f' fill="{self._colors[color]}"/>'
        )

    def dot(self, x: float, y: float, color: str, *, hollow: bool = False) -> None:
        """Draw a dot."""
        fill = self._colors["fill"] if hollow else self._colors[color]
        self._parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="4.5" fill="{fill}"'
            f' stroke="{self._colors[color]}" stroke-width="2"/>'
        )

    def render(self, height: float) -> str:
        """Return the file."""
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * 1.2:g}"'
            f' height="{height * 1.2:g}" viewBox="0 0 {WIDTH} {height:g}" role="img"'
            f' font-family="{FONT}">\n<title>{escape(self._title)}</title>\n'
            f"{body}\n</svg>\n"
        )
