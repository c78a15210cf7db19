"""`Viewer`: what all processes of an application are doing now, as plain values for JSON.

`python -m pooling top` and the web page show it. Seconds are floats, times are
seconds since the epoch. There is no secret in it, no SQL and no parameter::

    {"time": ..., "processes": [...], "pools": [...], "events": [...]}

``processes``  a list: ``pid``, ``command``, ``cpu`` (processors in use; ``None`` at first), ``memory`` (bytes),
               ``threads``, ``descriptors``, ``started``, ``age`` (seconds since it recorded its figures)
``pools``      a list: ``name``, ``kind``, ``processes`` (how many have it); ``idle``, ``in_use``, ``size``,
               ``max_size``; ``budget`` (the share of these processes, and the total; or ``None``); ``waiting``,
               ``oldest_wait``; ``state``, see `state_of`; ``last_error``, ``last_error_at``; ``leases_per_second``;
               ``timeouts_per_minute`` (of this minute and the last one);
               ``wait`` and ``use`` (``p50``, ``p99``, over the last minute); ``by_process`` (``pid``, ``in_use``,
               ``size``, ``waiting``); ``holders``, the longest first, at most 10: ``where``, ``thread``, ``pid``,
               ``since``, and ``seconds``, how long it was held when its process recorded them; ``minutes``, the
               last hour: ``start``, ``step``, and 60 numbers each, ``None`` where nothing was recorded: ``in_use``
               (on average), ``waiting`` (at most), ``leases``, ``timeouts``, ``p99_wait``
``events``     a list, the newest first, at most 100: ``pool``, ``kind`` (see `incidents.WORDS`), ``start``, ``end``
               (``None`` while it lasts), ``count``, ``text``, ``peak``, ``pid``

A pool's figures are the sums over the processes that live; the minutes and the
events include those that have ended.
"""

from __future__ import annotations

import _thread
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from . import shared
from .attach import watchable
from .figures import HOST, Figures, add, add_up, by_host, kinds_of, state_of
from .history import start_of
from .local import LocalHistory, Past, Record
from .minutes import Book, by_start, merge, spread_of
from .shared import SharedDirectory

__all__ = ["MOST_EVENTS", "MOST_HOLDERS", "Viewer"]

MOST_EVENTS = 100
MOST_HOLDERS = 10

_POINTS, _STEP = 60, 60
_LEAST, _MOST = 1.5, 60.0  # seconds between two readings that a rate is computed from

Read = Callable[[], tuple[dict[str, Record], Past]]


class Viewer:
    """Looks at the processes of an application; safe in several threads.

    Made by `of_process` or `of_directory`.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lock: Any = _thread.RLock()
        self._trails: dict[str, _Trail] = {}  # by process

    @classmethod
    def of_process(cls) -> Viewer:
        """View the pools of this process, or of all that share ``POOLING_METRICS_DIR`` where it is set.

        Without the directory this process begins to record its minutes and incidents now.
        """
        current = shared.current()
        if isinstance(current, SharedDirectory):
            return cls._of_shared(current)
        return cls(_local_history().all_records)

    @classmethod
    def of_directory(cls, path: str | os.PathLike[str] | None = None) -> Viewer:
        """View all processes that share a directory.

        Args:
            path: The directory; ``None`` means all processes of this user that can be attached to. They are found
                within 3 seconds after the first view.

        Raises:
            TypeError, ValueError: ``path`` is not a path.
        """
        if path is None:
            return cls._of_shared(*watchable())
        directory = SharedDirectory(path)
        for known in (shared.current(), *_directories.values()):
            if isinstance(known, SharedDirectory) and os.path.realpath(known.path) == os.path.realpath(directory.path):
                directory = known  # a process opens each file only once, see `slotfile`
        return cls._of_shared(_directories.setdefault(os.path.realpath(directory.path), directory))

    @classmethod
    def _of_shared(cls, *directories: SharedDirectory) -> Viewer:
        def read() -> tuple[dict[str, Record], Past]:
            records: dict[str, Record] = {}
            book: Book = {}
            events: list[dict[str, Any]] = []
            failed = 0
            for directory in directories:
                try:
                    directory.watch()
                    found, past = directory.all_records()
                except OSError as error:
                    failed += 1
                    if failed == len(directories):
                        raise
                    directory.complain("this directory is left out", error)
                    continue
                records.update(found)
                merge(book, past.book)
                events += past.events
            return records, Past(book, events)

        return cls(read)

    def view(self, pids: Collection[int] = ()) -> dict[str, Any]:
        """Return what is going on, in the shape that this module documents.

        Leases per second are those since the last call some seconds ago; at the first
        call, those of the last minute. It waits for no borrower.

        Args:
            pids: The processes to show; none means all.

        Raises:
            OSError: The directory cannot be used.
            TimeoutError: Another process has been reading for seconds.
        """
        with self._lock:
            records, past = self._read()
            now = time.time()
            trails = {name: self._trails.get(name) or _Trail() for name in records}
            for name, record in records.items():
                trails[name].note(record)
            self._trails = trails
        if pids:
            records = {name: record for name, record in records.items() if record["pid"] in pids}
            past = Past({}, [one for one in past.events if one.get("pid") in pids])
        book: Book = {}
        before = start_of(now) - _POINTS * _STEP
        merge(book, {name: {at: one for at, one in several.items() if at > before}
                     for name, several in past.book.items()})  # fmt: skip
        for record in records.values():
            merge(book, by_start(record.get("minutes", {}), before))
        return {
            "time": now,
            "processes": [_process(one, trails[name], now) for name, one in _by_pid(records)],
            "pools": _pools(dict(_by_pid(records)), trails, book, now),
            "events": _events(records.values(), past),
        }


class _Trail:
    """What one process has recorded in the last minute, for rates."""

    def __init__(self) -> None:
        self._points: deque[Record] = deque()

    def note(self, record: Record) -> None:
        """Note a record, unless it is the last one."""
        points = self._points
        if not points or record["time"] > points[-1]["time"]:
            points.append(record)
        while len(points) > 2 and points[1]["time"] <= record["time"] - _MOST:
            points.popleft()

    def since(self, seconds: float) -> tuple[Record, Record] | None:
        """Return the record of now, and the last one that is so many seconds older; ``None`` if there is none."""
        last = self._points[-1]
        for point in reversed(self._points):
            if point["time"] <= last["time"] - seconds:
                return point, last
        return None

    def whole(self) -> tuple[Record, Record]:
        """Return the oldest record and that of now; a process that began within the minute has counted from zero."""
        first, last = self._points[0], self._points[-1]
        started = last.get("process", {}).get("started", 0.0)
        return ({"pools": {}} if started > last["time"] - _MOST else first), last


def _by_pid(records: Mapping[str, Record]) -> list[tuple[str, Record]]:
    return sorted(records.items(), key=lambda one: (one[1].get("process", {}).get("started", 0.0), one[1]["pid"]))


def _process(record: Record, trail: _Trail, now: float) -> dict[str, Any]:
    found = record.get("process", {})
    pair, cpu = trail.since(_LEAST), None
    if pair is not None and "process" in pair[0]:
        used = found["cpu_seconds"] - pair[0]["process"]["cpu_seconds"]
        cpu = max(0.0, used / (pair[1]["time"] - pair[0]["time"]))
    return {
        "pid": record["pid"], "command": found.get("command", ""), "cpu": cpu, "memory": found.get("memory", 0),
        "threads": found.get("threads", 0), "descriptors": found.get("descriptors", 0),
        "started": found.get("started", 0.0), "age": max(0.0, now - record["time"]),
    }  # fmt: skip


def _pools(records: Mapping[str, Record], trails: Mapping[str, _Trail], book: Book, now: float) -> list[dict[str, Any]]:
    names = sorted({name for record in records.values() for name in record["pools"]})
    return [
        _pool(name, {key: one for key, one in records.items() if name in one["pools"]}, trails, book, now)
        for name in names
    ]


def _pool(
    name: str, records: Mapping[str, Record], trails: Mapping[str, _Trail], book: Book, now: float
) -> dict[str, Any]:
    figures = {key: record["pools"][name] for key, record in records.items()}
    alive = {key: one for key, one in figures.items() if one.get("gauges")}
    total = add_up(figures.values())
    gauges = total["gauges"]
    minutes = book.get(name, {})
    recent, seconds = _recent(minutes, now)
    own = [trails[key] for key in records]
    rate, counters = _rate(name, own), _counters(name, own) or recent
    if rate is None:
        rate = recent.get("acquired", 0) / seconds if seconds else 0.0
    spreads = {key: spread_of(counters, key) for key in ("wait", "use")}
    errors = [tuple(record["errors"][name]) for record in records.values() if name in record.get("errors", {})]
    last_error, last_error_at = max(errors, key=lambda one: float(one[1]), default=(total.get("error"), None))
    return {
        "name": name,
        "kind": total.get("kind", "Pool"),
        "processes": len(alive),
        "idle": gauges.get("idle", 0),
        "in_use": gauges.get("used", 0),
        "size": gauges.get("size", 0),
        "max_size": gauges.get("max", 0),
        "budget": [gauges.get("budget_share", 0), gauges["budget_total"]] if "budget_total" in gauges else None,
        "circuits_open": gauges.get("circuits_open", 0),
        "servers": _servers(gauges),
        "role": _role(gauges),
        "waiting": gauges.get("pending", 0),
        "oldest_wait": gauges.get("oldest_wait", 0.0),
        "state": state_of(gauges),
        "last_error": last_error,
        "last_error_at": last_error_at,
        "leases_per_second": rate,
        "timeouts_per_minute": recent.get("timeouts", 0) * 60 / max(60.0, seconds),
        **{
            key: {"p50": spread.percentile(0.50), "p99": spread.percentile(0.99)} for key, spread in spreads.items()
        },
        "by_process": [_part(records[key]["pid"], one["gauges"]) for key, one in alive.items()],
        "holders": _holders(figures, records),
        "minutes": _last_hour(minutes, now),
    }  # fmt: skip


def _servers(gauges: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the servers of a balanced HTTP pool."""
    return [
        {
            "name": name, "zone": next(iter(kinds_of(own, "backend_zone")), ""), "in_use": own["backend_used"],
            "waiting": own["backend_pending"], "latency": own["backend_latency"], "failing": own["backend_failing"],
            "ejected": own["backend_ejected"], "circuits_open": own["backend_circuit_open"],
        }
        for name, own in sorted(by_host(gauges).items()) if "backend_used" in own
    ]  # fmt: skip


def _role(gauges: Mapping[str, float]) -> dict[str, Any] | None:
    """Return what a pool's server is in a cluster: the primary, a replica that is read, or one that is not."""
    if "primary" not in gauges:
        return None
    role = "primary" if gauges["primary"] else "replica" if gauges.get("readable") else "replica, not read"
    return {"name": role, "lag": gauges.get("lag", 0.0)}


def _part(pid: int, gauges: Mapping[str, float]) -> dict[str, float]:
    return {"pid": pid, "in_use": gauges["used"], "size": gauges["size"], "waiting": gauges["pending"]}


def _holders(figures: Mapping[str, Figures], records: Mapping[str, Record]) -> list[dict[str, Any]]:
    found = [
        {**holder, "pid": records[key]["pid"], "seconds": max(0.0, records[key]["time"] - holder["since"])}
        for key, one in figures.items() for holder in one.get("holders", ())
    ]  # fmt: skip
    return sorted(found, key=lambda one: -float(one["seconds"]))[:MOST_HOLDERS]


# -- rates -----------------------------------------------------------------------------


def _rate(name: str, trails: Iterable[_Trail]) -> float | None:
    """Return the leases per second of all processes, since the last view some seconds ago."""
    pairs = [pair for trail in trails if (pair := trail.since(_LEAST)) is not None]
    if not pairs:
        return None
    rates = (_new(name, one, two).get("acquired", 0) / float(two["time"] - one["time"]) for one, two in pairs)
    return sum(rates, 0.0)


def _counters(name: str, trails: Iterable[_Trail]) -> dict[str, float] | None:
    """Return what was counted in the last minute; ``None`` if the viewer has not looked for so long."""
    pairs = [(trail.since(_MOST - 5), trail) for trail in trails]
    if not any(pair for pair, _ in pairs):
        return None
    found: dict[str, float] = {}
    for pair, trail in pairs:
        add(found, _new(name, *(pair or trail.whole())))
    return found


def _new(name: str, before: Record, after: Record) -> dict[str, float]:
    old = before["pools"].get(name, {}).get("counters", {})
    counters = after["pools"].get(name, {}).get("counters", {})
    return {key: max(0, value - old.get(key, 0)) for key, value in counters.items() if HOST not in key}


def _recent(minutes: Mapping[int, dict[str, Any]], now: float) -> tuple[dict[str, float], float]:
    """Return the counters of the last minute and of the one that has begun, and the seconds of both."""
    counters: dict[str, float] = {}
    first = start_of(now) - _STEP
    both = [one for start, one in minutes.items() if start >= first]
    for one in both:
        add(counters, one["counters"])
    return counters, max((one["to"] for one in both), default=0.0) - min((one["from"] for one in both), default=0.0)


# -- minutes and events -----------------------------------------------------------------


def _last_hour(minutes: Mapping[int, dict[str, Any]], now: float) -> dict[str, Any]:
    start = start_of(now) - (_POINTS - 1) * _STEP
    points = [_point(minutes[at]) if at in minutes else None for at in range(start, start + _POINTS * _STEP, _STEP)]
    names = ("in_use", "waiting", "leases", "timeouts", "p99_wait")
    series = {name: [None if point is None else point[place] for point in points] for place, name in enumerate(names)}
    return {"start": float(start), "step": float(_STEP), **series}


def _point(minute: Mapping[str, Any]) -> tuple[float, float, float, float, float]:
    counters, areas, seconds = minute["counters"], minute["areas"], max(1e-3, minute["to"] - minute["from"])
    sampled, most = areas.get("used", 0.0), areas.get("max", 0.0)
    used = max(sampled, min(most, counters.get("use.ns", 0) / 1e9))  # leases may be short
    wait = spread_of(counters, "wait").percentile(0.99)
    acquired, timeouts = counters.get("acquired", 0), counters.get("timeouts", 0)
    return used / seconds, minute["peaks"].get("waiting", 0), acquired, timeouts, wait


def _events(records: Iterable[Record], past: Past) -> list[dict[str, Any]]:
    found = [*past.events, *({**one, "pid": record["pid"]} for record in records for one in record.get("events", ()))]
    return sorted(found, key=lambda one: -float(one["start"]))[:MOST_EVENTS]


_directories: dict[str, SharedDirectory] = {}  # that were viewed
histories: dict[str, LocalHistory] = {}
"""Of this process, at most one. Internal."""


def _local_history() -> LocalHistory:
    """Return what records the minutes of this process for all viewers."""
    if "one" not in histories:
        histories["one"] = LocalHistory()
    return histories["one"]
