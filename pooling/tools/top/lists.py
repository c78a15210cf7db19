"""The columns of pools, workers, holders and events.

Colour has a meaning, and always repeats what a word, a sign or a number says:
yellow is worth a look, red needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ...observe.incidents import WORDS
from .grid import Column
from .shown import Row, text
from .units import UNKNOWN, clock, count, duration, is_known, memory, percent, rate

__all__ = ["PLAIN", "RICH", "Signs", "budget_of", "circuits_of", "columns", "error_of", "servers_of"]

NOTE, ALARM = "yellow", "bold red"

_WAIT, _WAITS = (1.0, 5.0), (0.1, 1.0)  # seconds from which a wait is yellow, and red: the oldest, and p99
_HOLD = (10.0, 60.0)
_STYLES = {"up": "green", "exhausted": "bold yellow", "down": ALARM, "closed": "dim"}
_KINDS = {
    "outage": ALARM, "resets": ALARM, "timeout": ALARM, "refused": ALARM, "exhausted": NOTE, "leak": NOTE,
    "orphan": NOTE, "dead": NOTE, "health": NOTE,
}  # fmt: skip


class Signs(NamedTuple):
    """The characters of bars, states and arrows."""

    used: str
    idle: str
    free: str
    states: Mapping[str, str]
    rising_falling: str
    levels: str
    rule: str
    dot: str


RICH = Signs("█", "▒", "·", {"up": "●", "exhausted": "▲", "down": "✖", "closed": "○"}, "▲▼", "▁▂▃▄▅▆▇█", "─", "·")
PLAIN = Signs("#", "=", ".", {"up": "+", "exhausted": "!", "down": "X", "closed": "-"}, "^v", "", "-", "|")
"""For terminals that have ASCII only."""


def columns(name: str, now: float, signs: Signs) -> list[Column]:
    """Return the columns of a list.

    Args:
        name: A key of `shown.LISTS`.
        now: The time of the view.
        signs: `RICH` or `PLAIN`.
    """
    return _COLUMNS[name](now, signs)


def error_of(pool: Row, now: float, signs: Signs) -> Text | None:
    """Return a pool's last error in one line, bright while the pool is down; ``None`` if it had none."""
    error = text(pool.get("last_error"))
    if not error:
        return None
    at = pool.get("last_error_at")
    ago = f"{duration(now - at)} ago: " if at is not None else ""
    return Text(f"  last error {ago}{error}", ALARM if pool.get("state") == "down" else "dim")


def budget_of(pool: Row) -> Text | None:
    """Return a pool's share of its budget in one line; ``None`` if it has none."""
    budget = pool.get("budget")
    if not isinstance(budget, (list, tuple)) or len(budget) != 2:
        return None
    return Text(f"  budget: {count(budget[0])} of {count(budget[1])}", "dim")


def servers_of(pool: Row) -> Text | None:
    """Return the servers of a balanced pool in one line, or a server's role in its cluster; ``None`` otherwise."""
    role, servers = pool.get("role"), pool.get("servers")
    if isinstance(role, dict):
        name, lag = text(role.get("name")), role.get("lag")
        behind = f", {duration(lag)} behind" if isinstance(lag, (int, float)) and lag > 0 and name != "primary" else ""
        return Text(f"  {name}{behind}", "dim")
    if not isinstance(servers, list) or not servers:
        return None
    out = [one for one in servers if one.get("ejected") or one.get("circuits_open")]
    line = f"  servers: {count(len(servers) - len(out))} of {count(len(servers))} in service"
    names = ", ".join(text(one.get("name")) for one in out)
    return Text(f"{line}; left out: {names}", ALARM) if out else Text(line, "dim")


def circuits_of(pool: Row) -> Text | None:
    """Return how many circuits of a pool are open in one line; ``None`` if none is."""
    number = pool.get("circuits_open")
    if not isinstance(number, (int, float)) or number <= 0:
        return None
    return Text(f"  {count(number)} circuit{'s' if number > 1 else ''} open", ALARM)


def state_of(pool: Row, signs: Signs) -> Text:
    """Return a pool's state, with a sign."""
    state = text(pool.get("state")) or UNKNOWN
    return Text(f"{signs.states.get(state, ' ')} {state}", _STYLES.get(state, ""))


def _pools(now: float, signs: Signs) -> list[Column]:
    return [
        Column("pool", _words("name", "bold"), 9, 28, right=False, order="name"),
        Column("", lambda pool, width: _bar(pool, width, signs), 7, 20, right=False),
        Column("\nin use", _number("in_use"), 6, 7, order="in use"),
        Column("\nidle", _number("idle"), 4, 7, rank=5, label="idle"),
        Column("\nmax", _number("max_size"), 3, 7),
        Column("\nwaiting", _waiting, 7, 7, order="waiting"),
        Column("oldest\nwait", lambda pool, width: _time(pool.get("oldest_wait"), _WAIT), 6, 7, order="oldest wait"),
        Column("leases\n/s", _rate("leases_per_second"), 6, 7, rank=4, label="leases/s", order="leases/s"),
        Column("wait\np50", _percentile("wait", "p50", _WAITS), 5, 6, rank=8, label="wait p50"),
        Column("wait\np99", _percentile("wait", "p99", _WAITS), 5, 6, rank=2, label="wait p99", order="wait p99"),
        Column("use\np50", _percentile("use", "p50"), 5, 6, rank=7, label="use p50"),
        Column("use\np99", _percentile("use", "p99"), 5, 6, rank=3, label="use p99", order="use p99"),
        Column("timeouts\n/min", _timeouts, 8, rank=6, label="timeouts/min", order="timeouts"),
        Column("\nstate", lambda pool, width: state_of(pool, signs), 11, right=False, order="state"),
        *([Column("in use in\nthe last hour", lambda pool, width: _hour(pool, width, signs), 15, 60, right=False,
                  rank=9)] if signs.levels else []),
    ]  # fmt: skip


def _workers(now: float, signs: Signs) -> list[Column]:
    return [
        Column("pid", _plain("pid"), 7, order="pid"),
        Column("command", _words("command"), 10, 200, right=False, order="command"),
        Column("in use", _number("in_use"), 7, order="in use"),
        Column("waiting", _waiting, 8, order="waiting"),
        Column("CPU", lambda one, width: Text(percent(one.get("cpu"))), 5, order="CPU"),
        Column("memory", lambda one, width: Text(memory(one.get("memory"))), 7, order="memory"),
        Column("threads", _number("threads"), 8, rank=1, label="threads", order="threads"),
        Column("fds", _number("descriptors"), 5, rank=2, label="descriptors", order="descriptors"),
        Column("up for", lambda one, width: _time(None if one.get("started") is None else now - one["started"]), 7,
               rank=3, order="up for"),
    ]


def _holders(now: float, signs: Signs) -> list[Column]:
    return [
        Column("held", lambda one, width: _time(one.get("seconds"), _HOLD), 7, order="held"),
        Column("pool", _words("pool", "bold"), 10, 28, right=False, order="pool"),
        Column("where", _end_of("where"), 20, 200, right=False, order="where"),
        Column("thread", _end_of("thread"), 10, 32, right=False, rank=1, label="thread", order="thread"),
        Column("pid", _plain("pid"), 8, order="pid"),
    ]


def _events(now: float, signs: Signs) -> list[Column]:
    return [
        Column("time", lambda one, width: Text(clock(one.get("start"), now)), 8, 11, right=False, order="time"),
        Column("pool", _words("pool", "bold"), 8, 28, right=False, order="pool"),
        Column("event", _kind, 9, 12, right=False, order="event"),
        Column("times", _number("count"), 6, order="times"),
        Column("lasted", lambda one, width: _lasted(one, now), 10, right=False),
        Column("", _told, 12, 400, right=False),
        Column("pid", _plain("pid"), 8, rank=1),
    ]


_COLUMNS: dict[str, Callable[[float, Signs], list[Column]]] = {
    "pools": _pools, "workers": _workers, "holders": _holders, "events": _events,
}  # fmt: skip

Cell = Callable[[Row, int], Text]


def _words(name: str, style: str = "") -> Cell:
    return lambda row, width: Text(text(row.get(name)) or UNKNOWN, style)


def _end_of(name: str) -> Cell:
    """Cut at the start: the end of a path or of a thread's name tells most."""

    def cell(row: Row, width: int) -> Text:
        words = text(row.get(name)) or UNKNOWN
        extra = cell_len(words) - width
        return Text(words if extra <= 0 else f"…{set_cell_size(words[::-1], max(width - 1, 0))[::-1]}")

    return cell


def _plain(name: str) -> Cell:
    return lambda row, width: Text(UNKNOWN if row.get(name) is None else text(row[name]))


def _number(name: str) -> Cell:
    return lambda row, width: Text(count(row.get(name)))


def _rate(name: str) -> Cell:
    return lambda row, width: Text(rate(row.get(name)))


def _percentile(name: str, which: str, limits: tuple[float, float] | None = None) -> Cell:
    return lambda pool, width: _time((pool.get(name) or {}).get(which), limits)


def _time(seconds: float | None, limits: tuple[float, float] | None = None) -> Text:
    style = ""
    if limits is not None and seconds is not None and seconds >= limits[0]:
        style = ALARM if seconds >= limits[1] else NOTE
    return Text(duration(seconds), style)


def _waiting(row: Row, width: int) -> Text:
    return Text(count(row.get("waiting")), "bold yellow" if row.get("waiting") else "")


def _timeouts(pool: Row, width: int) -> Text:
    return Text(rate(pool.get("timeouts_per_minute")), ALARM if pool.get("timeouts_per_minute") else "")


def _bar(pool: Row, width: int, signs: Signs) -> Text:
    """Return what is in use, idle and free, of the maximum; at least one character for what is not zero."""
    in_use, idle, most = (_amount(pool.get(name)) for name in ("in_use", "idle", "max_size"))
    most = max(most, in_use + idle, 1)
    used = _cells(in_use, most, width)
    rest = min(_cells(idle, most, width), width - used)
    style = "yellow" if in_use >= 0.9 * most else "green"
    if pool.get("state") in ("exhausted", "down"):
        style = "red"
    return Text.assemble(
        (signs.used * used, style), (signs.idle * rest, "cyan"), (signs.free * (width - used - rest), "dim")
    )


def _amount(value: float | None) -> float:
    return max(value, 0) if is_known(value) else 0


def _cells(part: float, whole: float, width: int) -> int:
    exact = part / whole * width
    return width if part >= whole else min(max(round(exact), 1), width - 1) if part else 0


def _hour(pool: Row, width: int, signs: Signs) -> Text:
    """Return the connections in use in the last hour, of the maximum, as a sparkline."""
    numbers = list((pool.get("minutes") or {}).get("in_use") or [])
    most = max([_amount(pool.get("max_size")), 1, *map(_amount, numbers)])
    step = max(-(-len(numbers) // width), 1)  # several minutes a character, where there is no room: their highest
    line = ""
    for end in range(len(numbers), 0, -step):
        known = [_amount(number) for number in numbers[max(end - step, 0):end] if is_known(number)]
        level = max(_cells(max(known), most, len(signs.levels)) - 1, 0) if known else -1
        line = (signs.levels[level] if known else " ") + line
    return Text(line[-width:], "cyan")


def _kind(event: Row, width: int) -> Text:
    kind = text(event.get("kind"))
    return Text(kind or UNKNOWN, _KINDS.get(kind, ""))


def _lasted(event: Row, now: float) -> Text:
    start, end = event.get("start"), event.get("end")
    if start is None:
        return Text(UNKNOWN)
    if end is None:
        return Text(f"for {duration(now - start)}", ALARM)
    return Text(duration(end - start) if end > start else "")


def _told(event: Row, width: int) -> Text:
    kind = text(event.get("kind"))
    return Text(text(event.get("text")) or (WORDS.get(kind, "") if WORDS.get(kind) != kind else ""))


def summary(pools: list[Any], signs: Signs) -> Text:
    """Return how many pools are in which state, the worst first, without those that are up."""
    found = Text()
    for state in ("down", "exhausted"):
        number = sum(1 for pool in pools if pool.get("state") == state)
        if number:
            found.append(f"  {signs.states[state]} {number} {state}", _STYLES[state])
    return found
