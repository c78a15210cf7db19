"""The picture: a title, lists that share the height, and a line with the keys."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.text import Text

from .grid import Grid, fit
from .lists import ALARM, NOTE, PLAIN, RICH, Signs, budget_of, circuits_of, columns, error_of, servers_of, summary
from .shown import LISTS, Row, Shown, View

__all__ = ["picture"]

_KEYS = (("1-4", "list"), ("s", "sort"), ("r", "reverse"), ("space", "pause"), ("?", "help"), ("q", "quit"))
_HELP = """\
1 2 3 4       pools, workers, holders, events
Tab           the next list; Shift-Tab the one before
s S           sort by the next column; by the one before
r             reverse the order
up down j k   scroll; also Page Up, Page Down, Home, End
space p       pause; continue
+ -           update more often; less often
Ctrl-Z        suspend; fg continues
q Ctrl-C      quit

in use        lent to a thread now; idle: open and free
max           the most that all processes may have
oldest wait   how long the first in the queue has waited
p50 p99       of the last minute: half were shorter;
              99 of 100 were shorter
exhausted     all are in use in one of the processes:
              the next request has to wait
down          the server cannot be reached
"""
_EMPTY = {
    "pools": "no pool is in use", "workers": "no process", "holders": "nothing is in use", "events": "nothing so far"
}  # fmt: skip
_ASCII = {ord("µ"): "u", ord("…"): "~"}
_LEAST = 3  # lines of a list that is worth showing: title, head, one row


def picture(
    view: View, shown: Shown, console: Console, *, hint: str = "", full: bool = False
) -> Group:
    """Return what the screen shows.

    Args:
        view: The figures.
        shown: What is selected; its page is set.
        console: For its size, and for what characters it has.
        hint: What to check, where nothing was found.
        full: Every row of every list, however long, and no keys.
    """
    signs = PLAIN if console.options.ascii_only else RICH
    width, height = max(console.width, 1), max(console.height, 1)
    title = _title(view, shown, signs, width, full)
    footer = [] if full else [_footer(width)]
    room = height - 1 - len(footer)
    if shown.help:
        body = [fit(Text(line), width) for line in ["", *_HELP.splitlines()]]
    elif not view["pools"] and not view["processes"]:
        body = [line for paragraph in hint.splitlines() for line in Text(paragraph).wrap(console, width) or [Text()]]
    else:
        body = _lists(view, shown, signs, width, 10**9 if full else room, full)
    if not full:
        body = [*body, *[Text()] * (room - len(body))][: max(room, 0)]
    lines = [title, *body, *footer]
    if console.options.ascii_only:
        for line in lines:
            line.plain = line.plain.translate(_ASCII)  # as long as before, so styles stay in place
    return Group(*lines)


def _title(view: View, shown: Shown, signs: Signs, width: int, full: bool) -> Text:
    pools, workers = len(view["pools"]), len(view["processes"])
    left = Text.assemble(
        ("pooling top", "bold"), "  ", ("PAUSED", "reverse") if shown.paused else "", "  " if shown.paused else "",
        f"{workers} process{'es' if workers != 1 else ''} {signs.dot} {pools} pool{'s' if pools != 1 else ''}",
        summary(view["pools"], signs),
    )  # fmt: skip
    if shown.problem:
        left.append(f"  {shown.problem}", ALARM)
    now = time.strftime("%H:%M:%S", time.localtime(view["time"]))
    right = [Text(now)] if full else [Text(now), Text(f"every {shown.interval:g}s", "dim")]
    while right and left.cell_len + sum(part.cell_len + 2 for part in right) > width:
        right.pop()
    end = Text("  ").join(right)
    return Text.assemble(fit(left, width - end.cell_len), end)


def _footer(width: int) -> Text:
    parts = [Text.assemble((key, "bold"), (f" {word}", "dim")) for key, word in _KEYS]
    while sum(part.cell_len + 2 for part in parts) - 2 > width and len(parts) > 2:
        parts.pop(0)  # help is the last but one, quit the last
    return fit(Text("  ").join(parts), width)


def _lists(view: View, shown: Shown, signs: Signs, width: int, room: int, full: bool) -> list[Text]:
    blocks = {name: _Block(name, view, shown, signs, width, full) for name in LISTS}
    shares = _share({name: block.height for name, block in blocks.items()}, shown.selected, room)
    return [line for name, share in shares.items() for line in blocks[name].lines(share)]


def _share(wanted: dict[str, int], selected: str, room: int) -> dict[str, int]:
    """Return how many lines each list gets: first the selected one and the pools, then the others if there is room."""
    pools = min(wanted["pools"], max(room // 2, _LEAST + 1))
    found = {selected: min(wanted[selected], max(room - (pools if selected != "pools" else 0), 0))}
    for name in ("pools", *wanted):
        if name not in found:
            left = room - sum(found.values())
            found[name] = min(wanted[name], left) if left >= min(_LEAST, wanted[name]) else 0
    return {name: found[name] for name in wanted}


class _Block:
    """One list with its title.

    Attributes:
        height: Lines that it needs to show all rows.
    """

    def __init__(self, name: str, view: View, shown: Shown, signs: Signs, width: int, full: bool) -> None:
        self._name, self._shown, self._signs, self._width, self._full = name, shown, signs, width, full
        self._rows, self._now = shown.rows(view, name), view["time"]
        self._grid = Grid(columns(name, view["time"], signs), self._rows, width)
        order, falling = shown.order(name)
        self._head = self._grid.head(order.name, falling, signs.rising_falling)
        self._drawn = [self._draw(row) for row in self._rows]
        self.height = 1 + (len(self._head) + sum(map(len, self._drawn)) if self._rows else 1)

    def _draw(self, row: Row) -> list[Text]:
        lines = self._grid.row(row)
        pools = self._name == "pools"
        more = [budget_of(row), servers_of(row), circuits_of(row), error_of(row, self._now, self._signs)]
        return [*lines, *(fit(line, self._width) for line in more if pools and line is not None)]

    def lines(self, share: int) -> list[Text]:
        """Return that many lines: title, head and rows from where the list is scrolled to."""
        if share < 1:
            return []
        if not self._rows:
            return [self._title(0, 0), fit(Text(f"  {_EMPTY[self._name]}", "dim"), self._width)][:share]
        body = max(share - 1 - len(self._head), 0)
        first = self._shown.first(self._name, len(self._rows), _fitting(self._drawn[::-1], body))
        shown = _fitting(self._drawn[first:], body)
        if self._name == self._shown.selected:
            self._shown.page = max(shown, 1)
        rows = [line for lines in self._drawn[first:] for line in lines][:body]
        return [self._title(first, shown), *self._head, *rows][:share]

    def _title(self, first: int, shown: int) -> Text:
        order, falling = self._shown.order(self._name)
        selected = self._name == self._shown.selected and not self._full
        number = list(LISTS).index(self._name) + 1
        words = Text.assemble(
            (f"{self._signs.rule} ", "dim"), ("" if self._full else f"{number} ", "dim"),
            (self._name.capitalize(), "bold reverse" if selected else "bold"),
        )  # fmt: skip
        total = len(self._rows)
        if total:
            last = f"-{first + shown}" if shown > 1 else ""
            part = f" {total}" if shown >= total else f" {first + 1}{last} of {total}"
            words.append(part, NOTE if shown < total else "")
        right = f" by {order.name} {self._signs.rising_falling[falling]} " if total > 1 else ""
        words.append(" ")
        line = max(self._width - words.cell_len - len(right) - 1, 0)
        return fit(Text.assemble(words, (self._signs.rule * line + right + self._signs.rule, "dim")), self._width)


def _fitting(rows: Sequence[Sequence[Text]], room: int) -> int:
    """Return how many of the first rows have all their lines in the room."""
    number = 0
    for lines in rows:
        room -= len(lines)
        if room < 0:
            break
        number += 1
    return number
