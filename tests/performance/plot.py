"""Bars for each figure, as one SVG file that needs nothing else and fits light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bars", "draw"]

WIDTH, MARGIN, GAP = 960, 24, 40
LABELS, VALUES = 164, 76  # left and right of the bars
BAR, STEP = 14, 21  # the height of a bar, and from one to the next
HEAD = 46  # above the bars of a figure
OURS = "pooling"  # what names of ours begin with

STYLE = """
svg { background: #fff; font: 12px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
text { fill: #1f2328; } .dim { fill: #59636e; } .title { font-size: 17px; font-weight: 600; }
.figure { font-size: 13px; font-weight: 600; } .ours { font-weight: 600; }
.bar { fill: #9aa4af; } .bar.ours { fill: #1f6feb; } .bar.further { fill: #8db9f8; } .axis { stroke: #d1d9e0; }
@media (prefers-color-scheme: dark) {
svg { background: #0d1117; } text { fill: #e6edf3; } .dim { fill: #9198a1; }
.bar { fill: #59636e; } .bar.ours { fill: #4493f8; } .bar.further { fill: #274f8a; } .axis { stroke: #3d444d; }
}
"""


@dataclass(frozen=True)
class Bars:
    """One figure: what each contender showed.

    Attributes:
        title: What was done.
        unit: Of the values.
        more: Whether more is better.
        values: By contender; the first is the one that stands out.
    """

    title: str
    unit: str
    more: bool
    values: Mapping[str, float]


def draw(figures: Sequence[Bars], title: str, notes: Iterable[str] = ()) -> str:
    """Return the picture.

    Args:
        figures: From the top left, line by line.
        title: Above all.
        notes: Below the title.
    """
    notes = list(notes)
    top = MARGIN + 22 + 18 * len(notes) + 14
    parts = [_text(MARGIN, MARGIN + 14, title, "title")]
    parts += [_text(MARGIN, MARGIN + 36 + 18 * at, note, "dim") for at, note in enumerate(notes)]
    width = (WIDTH - 2 * MARGIN - GAP) // 2
    for pair in (figures[at : at + 2] for at in range(0, len(figures), 2)):
        for column, one in enumerate(pair):
            parts += _figure(one, MARGIN + column * (width + GAP), top, width)
        top += max(HEAD + STEP * len(one.values) for one in pair) + 22
    height = top + MARGIN - 22
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _figure(figure: Bars, left: int, top: int, width: int) -> list[str]:
    finite = [value for value in figure.values.values() if math.isfinite(value)]
    longest, room = max([*finite, 0.0]) or 1.0, width - LABELS - VALUES
    start, base = left + LABELS, top + HEAD
    parts = [
        _text(left, top + 14, figure.title, "figure"),
        _text(left, top + 31, f"{figure.unit}, {'more' if figure.more else 'less'} is better", "dim"),
    ]
    for at, (name, value) in enumerate(figure.values.items()):
        y = base + at * STEP
        length = room * (min(value, longest) / longest if math.isfinite(value) else 1.0)
        kind = "ours" if at == 0 else "further" if name.startswith(OURS) else ""
        parts += [
            _text(start - 8, y + 11, name, kind if kind == "ours" else "", "end"),
            f'<rect class="bar {kind}" x="{start}" y="{y}" width="{max(1.0, length):.1f}" height="{BAR}" rx="2"/>',
            _text(start + length + 6, y + 11, written(value), kind if kind == "ours" else "dim"),
        ]
    end = base + STEP * len(figure.values) - (STEP - BAR) + 2
    parts.append(f'<line class="axis" x1="{start}" y1="{base - 2}" x2="{start}" y2="{end}"/>')
    return parts


def written(value: float) -> str:
    """Return a value with three digits that count."""
    if not math.isfinite(value):
        return "∞"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
