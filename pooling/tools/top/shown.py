"""What is shown: rows, filters, order, and what each key changes. Pure: it knows no terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ...core.report.messages import printable

__all__ = ["LISTS", "Order", "Row", "Shown", "View", "only"]

View = Mapping[str, Any]
"""As `pooling.observe.view` returns it."""

Row = Mapping[str, Any]
"""A pool, worker, holder or event."""

_FASTEST, _SLOWEST = 0.25, 60.0
_SEVERITY = {"down": 3, "exhausted": 2, "up": 1}


class Order(NamedTuple):
    """One way to sort a list.

    Attributes:
        name: As shown in the list's title.
        value: What is compared; rows where it is ``None`` come last.
        falling: Whether the highest comes first.
    """

    name: str
    value: Callable[[Row], Any]
    falling: bool = True


def _field(name: str, *path: str, falling: bool = True) -> Order:
    keys = path or (name,)

    def value(row: Row) -> Any:
        found: Any = row
        for key in keys:
            found = found.get(key) if found is not None else None
        return None if isinstance(found, float) and math.isnan(found) else found

    return Order(name, value, falling)


LISTS: dict[str, tuple[Order, ...]] = {
    "pools": (
        _field("name", falling=False),
        Order("state", lambda pool: (_SEVERITY.get(pool.get("state", ""), 0), pool.get("oldest_wait") or 0)),
        _field("in use", "in_use"),
        _field("waiting"),
        _field("oldest wait", "oldest_wait"),
        _field("leases/s", "leases_per_second"),
        _field("wait p99", "wait", "p99"),
        _field("use p99", "use", "p99"),
        _field("timeouts", "timeouts_per_minute"),
    ),
    "workers": (
        _field("pid", falling=False),
        _field("command", falling=False),
        _field("in use", "in_use"),
        _field("waiting"),
        _field("CPU", "cpu"),
        _field("memory"),
        _field("threads"),
        _field("descriptors"),
        Order("up for", lambda one: None if one.get("started") is None else -one["started"]),
    ),
    "holders": (
        _field("held", "seconds"),
        _field("pool", falling=False),
        _field("where", falling=False),
        _field("thread", falling=False),
        _field("pid", falling=False),
    ),
    "events": (
        _field("time", "start"),
        _field("pool", falling=False),
        _field("event", "kind", falling=False),
        _field("times", "count"),
    ),
}
"""The lists in the order of their keys 1 to 4; each with its orders, the usual one first."""


def only(view: View, pools: Collection[str]) -> dict[str, Any]:
    """Return a view with certain pools, and the processes that have one of them.

    Args:
        view: All.
        pools: Names or patterns such as ``orders*``; none means all.
    """

    def is_wanted(name: str) -> bool:
        return not pools or any(fnmatchcase(name, pattern) for pattern in pools)

    found = [pool for pool in view["pools"] if is_wanted(pool["name"])]
    users = {one["pid"] for pool in found for one in pool["by_process"]}
    return {
        **view,
        "processes": [one for one in view["processes"] if not pools or one["pid"] in users],
        "pools": found,
        "events": [event for event in view["events"] if is_wanted(event["pool"])],
    }


class Shown:
    """Which list is selected, how each is sorted and scrolled, and what the keys did.

    Attributes:
        selected: A key of `LISTS`.
        interval: Seconds between two views.
        paused, help, quit: What the keys of these names did.
        problem: Why there is no new view, or an empty string.
        page: Rows of the selected list that fit, for page up and down; set by the screen.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.selected = "workers"
        self.paused = self.help = self.quit = False
        self.problem = ""
        self.page = 10
        self._orders = dict.fromkeys(LISTS, (0, False))  # which order, and whether reversed
        self._offsets = dict.fromkeys(LISTS, 0)

    def rows(self, view: View, name: str) -> list[Row]:
        """Return a list's rows in their order."""
        order, reverse = self.order(name)
        known = [row for row in _ROWS[name](view) if order.value(row) is not None]
        unknown = [row for row in _ROWS[name](view) if order.value(row) is None]
        return sorted(known, key=order.value, reverse=reverse) + unknown

    def order(self, name: str) -> tuple[Order, bool]:
        """Return how a list is sorted, and whether the highest comes first."""
        number, turned = self._orders[name]
        order = LISTS[name][number]
        return order, order.falling != turned

    def first(self, name: str, rows: int, fit: int) -> int:
        """Return the first row to show, so that the page is full.

        Args:
            name: The list.
            rows: How many it has.
            fit: How many there is room for.
        """
        self._offsets[name] = max(0, min(self._offsets[name], rows - fit))
        return self._offsets[name]

    def press(self, key: str) -> None:
        """Do what a key means; other keys do nothing."""
        names = list(LISTS)
        number, turned = self._orders[self.selected]
        if self.help and key not in ("q", "Q"):
            self.help = False
        elif key in ("q", "Q"):
            self.quit = True
        elif key in ("?", "h"):
            self.help = True
        elif key in (" ", "p"):
            self.paused = not self.paused
        elif key in ("1", "2", "3", "4"):
            self.selected = names[int(key) - 1]
        elif key in ("tab", "right", "backtab", "left"):
            step = 1 if key in ("tab", "right") else -1
            self.selected = names[(names.index(self.selected) + step) % len(names)]
        elif key in ("s", "S"):
            step = 1 if key == "s" else -1
            self._orders[self.selected] = (number + step) % len(LISTS[self.selected]), False
        elif key == "r":
            self._orders[self.selected] = number, not turned
        elif key in ("+", "-"):
            faster = max(_FASTEST, self.interval / 2) if self.interval > _FASTEST else self.interval
            slower = min(_SLOWEST, self.interval * 2) if self.interval < _SLOWEST else self.interval
            self.interval = faster if key == "+" else slower
        else:
            self._scroll(key)

    def _scroll(self, key: str) -> None:
        steps = {
            "up": -1, "k": -1, "down": 1, "j": 1, "page up": -self.page, "page down": self.page,
            "home": -10**9, "end": 10**9,
        }  # fmt: skip
        self._offsets[self.selected] = max(0, self._offsets[self.selected] + steps.get(key, 0))


def _workers(view: View) -> list[Row]:
    found = {one["pid"]: {**one, "in_use": 0, "waiting": 0} for one in view["processes"]}
    for pool in view["pools"]:
        for one in pool["by_process"]:
            if one["pid"] in found:
                for name in ("in_use", "waiting"):
                    found[one["pid"]][name] += one[name] or 0
    return list(found.values())


def _holders(view: View) -> list[Row]:
    return [{**one, "pool": pool["name"]} for pool in view["pools"] for one in pool["holders"]]


_ROWS: dict[str, Callable[[View], list[Row]]] = {
    "pools": lambda view: list(view["pools"]),
    "workers": _workers,
    "holders": _holders,
    "events": lambda view: list(view["events"]),
}


def text(value: object) -> str:
    """Return something from outside in one line without control characters; nothing for ``None``."""
    return "" if value is None else printable(" ".join(str(value).split()))
