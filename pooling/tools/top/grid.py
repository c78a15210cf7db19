"""Rows and columns as lines that fit a width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.text import Text

__all__ = ["Column", "Grid", "Row", "fit"]

Row = Any
_GAP = 1


class Column(NamedTuple):
    """One column.

    Attributes:
        head: The words above it, on one or two lines.
        cell: Returns a cell for a row and a width.
        least, most: Its width, in cells.
        right: Whether it is aligned to the right, as numbers are.
        rank: Where not all columns fit, the highest is left out first; 0 never.
        label: What a column that is left out is called in the line below the row; empty: it is not shown there.
        order: The name of the order that this column has.
    """

    head: str
    cell: Callable[[Row, int], Text]
    least: int
    most: int = 0
    right: bool = True
    rank: int = 0
    label: str = ""
    order: str = ""


def fit(text: Text, width: int, right: bool = False) -> Text:
    """Return a text of exactly that width: cut with an ellipsis, or padded."""
    text = text.copy()
    text.truncate(width, overflow="ellipsis")
    missing = width - text.cell_len
    if right:
        text.pad_left(missing)
    else:
        text.pad_right(missing)
    return text


class Grid:
    """The columns that fit a width, and how wide each is.

    Args:
        columns: All columns.
        rows: The rows that will be shown: columns become as wide as these need, if there is room.
        width: Of the whole.
    """

    def __init__(self, columns: Sequence[Column], rows: Sequence[Row], width: int) -> None:
        kept = list(columns)
        while _width([max(one.least, 1) for one in kept]) > width and any(one.rank for one in kept):
            kept.remove(max(kept, key=lambda one: one.rank))
        self.columns = kept
        self.omitted = [one for one in columns if one not in kept and one.label]
        self.width = width
        widths = [one.least for one in kept]
        spare = width - _width(widths)
        wanted = [max([one.cell(row, one.most or width).cell_len for row in rows], default=0) for one in kept]
        for place, one in enumerate(kept):  # what the rows need
            more = min(max(wanted[place] - widths[place], 0), max(one.most - widths[place], 0), max(spare, 0))
            widths[place] += more
            spare -= more
        self.widths = widths

    def head(self, order: str, falling: bool, arrows: str) -> list[Text]:
        """Return the lines above the rows, with an arrow at the column by which they are sorted."""
        heads = [one.head.split("\n") for one in self.columns]
        height = max(map(len, heads), default=1)
        lines = []
        for line in range(height):
            cells = []
            for one, head, width in zip(self.columns, heads, self.widths):
                words = head[line - height] if line >= height - len(head) else ""
                if one.order != order:
                    cells.append(Text(words))
                elif line < height - 1:
                    cells.append(Text(words, "bold"))
                else:
                    cells.append(Text(words[: max(width - 1, 0)] + arrows[falling], "bold"))
            lines.append(self._line(cells, "dim"))
        return lines

    def row(self, row: Row) -> list[Text]:
        """Return the lines of one row: its cells, and below them what did not fit."""
        lines = [self._line([one.cell(row, width) for one, width in zip(self.columns, self.widths)])]
        below = Text()
        for one in self.omitted:
            part = Text.assemble((f"{one.label} ", "dim"), one.cell(row, one.least))
            if below and 2 + below.cell_len + 3 + part.cell_len > self.width:
                lines.append(fit(Text.assemble("  ", below), self.width))
                below = Text()
            below = Text.assemble(below, "   " if below else "", part)
        return [*lines, fit(Text.assemble("  ", below), self.width)] if below else lines

    def _line(self, cells: Sequence[Text], style: str = "") -> Text:
        line = Text(style=style, no_wrap=True)
        for one, width, cell in zip(self.columns, self.widths, cells):
            line.append(" " * _GAP if line else "")
            line.append_text(fit(cell, width, one.right))
        return fit(line, self.width)


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)
