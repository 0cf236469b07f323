"""The charts of a report as inline SVG: plain strings, colours from the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 560, 340  # px, of the line chart; the scatter is square
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 14, 42

Line = tuple[str, str, Sequence[tuple[float, float | None]]]  # name, CSS class, points


def line_chart(lines: Sequence[Line], x_title: str, y_title: str) -> str:
    """Draw lines over IoU thresholds; x from the points, y from 0 to 1."""
    xs = [x for _, _, points in lines for x, _ in points]
    low, high = min(xs), max(xs)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / max(high - low, 1e-9)
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - y) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(WIDTH, HEIGHT)]
    for x in sorted(set(xs)):
        parts.append(_text(at(x, 0)[0], HEIGHT - BOTTOM + 18, f"{x:.2f}", "middle"))
    for name, kind, points in lines:
        places = [at(x, y) for x, y in points if y is not None]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<polyline class="line {kind}" points="{path}"/>')
        known = [(x, y) for x, y in points if y is not None]
        parts += [
            f'<circle class="dot {kind}" cx="{px:.1f}" cy="{py:.1f}" r="3">'
            f"<title>{escape(name)} at {x:.2f}: {y:.4f}</title></circle>"
            for (px, py), (x, y) in zip(places, known, strict=True)
        ]
    parts.append(_titles(WIDTH, HEIGHT, x_title, y_title))
    return _svg(WIDTH, HEIGHT, parts, f"{y_title} against {x_title}")


def scatter(points: Sequence[tuple[float, float]], kinds: Sequence[str], x_title: str, y_title: str) -> str:
    """Draw points over the diagonal, axes from the lowest tenth to 1; `kinds` are their CSS classes."""
    side = 420
    low = math.floor(10 * min((v for point in points for v in point), default=0.0) + 1e-9) / 10
    low = min(max(low, 0.0), 0.9)

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - low) / (1 - low), (y - low) / (1 - low)
        return LEFT + across * (side - LEFT - RIGHT), TOP + (1 - up) * (side - TOP - BOTTOM)

    parts = [_grid(side, side, low)]
    for tick in range(6):
        x = low + tick / 5 * (1 - low)
        parts.append(_text(at(x, low)[0], side - BOTTOM + 18, f"{x:.2f}", "middle"))
    (x0, y0), (x1, y1) = at(low, low), at(1, 1)
    parts.append(f'<line class="diagonal" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>')
    for (x, y), kind in zip(points, kinds, strict=True):
        px, py = at(x, y)
        parts.append(f'<circle class="point {kind}" cx="{px:.1f}" cy="{py:.1f}" r="2.2"/>')
    parts.append(_titles(side, side, x_title, y_title))
    return _svg(side, side, parts, f"{y_title} against {x_title}")


def bars(rows: Mapping[str, Mapping[str, float | None]], title: str) -> str:
    """Draw horizontal bars from 0 to 1: for each row its named values (``after``, ``before``) below each other."""
    longest = max((len(name) for name in rows), default=0)
    left, thick, gap = min(24 + 7 * longest, 190), 11, 8
    width = 560
    parts, y = [], TOP
    for name, values in rows.items():
        known = {kind: v for kind, v in values.items() if v is not None}
        label = name if len(name) <= 23 else name[:22] + "…"
        parts.append(_text(left - 8, y + thick * max(len(values), 1) / 2 + 4, label, "end"))
        for k, (kind, value) in enumerate(known.items()):
            top, length = y + k * thick, value * (width - left - 52)
            parts.append(
                f'<rect class="bar {kind}" x="{left}" y="{top:.1f}" width="{length:.1f}" height="{thick - 1}">'
                f"<title>{escape(name)}, {kind}: {value:.4f}</title></rect>"
            )
            parts.append(_text(left + length + 5, top + thick - 1, f"{100 * value:.1f}", "start", "small"))
        y += thick * max(len(values), 1) + gap
    return _svg(width, int(y + 4), parts, title)


def _grid(width: int, height: int, low: float = 0.0) -> str:
    lines = []
    for tick in range(6):
        y = TOP + (1 - tick / 5) * (height - TOP - BOTTOM)
        lines.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{width - RIGHT}" y2="{y:.1f}"/>')
        lines.append(_text(LEFT - 8, y + 4, f"{low + tick / 5 * (1 - low):.2f}", "end"))
    return "".join(lines)


def _titles(width: int, height: int, x_title: str, y_title: str) -> str:
    middle = TOP + (height - TOP - BOTTOM) / 2
    return (
        _text(LEFT + (width - LEFT - RIGHT) / 2, height - 6, x_title, "middle", "axis")
        + f'<text class="axis" text-anchor="middle" transform="translate(13 {middle:.0f}) rotate(-90)">'
        + f"{escape(y_title)}</text>"
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
