"""The minutes of an application: what its pools did, by pool name, in a form that adds up over processes.

A minute is a mapping, made for JSON:

``start``       when it begins, in seconds since the epoch; a block of ten minutes has the same form
``from``, ``to``  the time that was observed in it
``counters``    what was counted, with the keys of `figures`
``areas``       gauges times seconds: ``used``, ``size``, ``max``, ``idle_min``, ``open``; of processes ``memory`` etc.
``peaks``       the most at once: ``in_use``, ``waiting``
``kind``        the class of the pool

The counters are differences of those that exporters show, so that they add up
to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.report.histogram import SHORT, Buckets, bound_of
from .figures import HOST, Figures, add, by_host, kinds_of
from .history import COUNTERS, MOST_HOSTS, OTHERS, HostMinute, Minute, ProcessMinute, start_of
from .process import ProcessReading
from .spread import NO_TOTALS, Spread, Totals

__all__ = [
    "BLOCK", "PROCESS", "Flat", "MinuteLog", "by_start", "compact", "mean_of_one", "merge", "minute_of",
    "number_of", "process_minute_of", "seconds_of", "spread_of", "sum_of",
]  # fmt: skip

Flat = dict[str, Any]
"""A minute in the form of this module."""

Book = dict[str, dict[int, Flat]]
"""Minutes by pool name and start."""

PROCESS = "\0process"
"""Stands for the process among the pool names."""

BLOCK = 600
"""Seconds: minutes are kept for an hour, and after that as blocks of this length."""

_HOUR = 3600
_AREAS = ("used", "size", "max", "idle_min", "open")
_OF_PROCESS = ("memory", "threads", "descriptors")
_SEVERE = {"exhausted", "timeouts", "refusals"}
_LONGEST_GAP = 60.0  # seconds between two samples; more means that the process was stopped


class MinuteLog:
    """The minutes of one process. Not thread-safe: its user holds a lock."""

    def __init__(self) -> None:
        self.book: Book = {}
        self._totals: dict[str, Mapping[str, float]] = {}
        self._cpu: float | None = None
        self._process_at: float | None = None
        self._at: float | None = None
        self._start = 0

    def skip(self, pools: Mapping[str, Figures]) -> None:
        """Do not add what was counted until now."""
        self._totals = {name: figures["counters"] for name, figures in pools.items()}

    def note(self, pools: Mapping[str, Figures], wall: float) -> bool:
        """Add what happened since the last call; return whether a minute has ended.

        Args:
            pools: The figures of the pools, with counters since the beginning.
            wall: The time of day.
        """
        ended = self._begin(wall)
        for name, figures in pools.items():
            counters, before = figures["counters"], self._totals.get(name, {})
            new = {key: value - before.get(key, 0) for key, value in counters.items() if value > before.get(key, 0)}
            gauges = figures.get("gauges", {})
            if new or gauges.get("size") or gauges.get("open"):
                minute = self._minute(name, wall)
                minute["kind"] = figures.get("kind", minute.get("kind", "Pool"))
                add(minute["counters"], new)
                add(minute["areas"], {key: round(gauges[key] * self._seconds, 3) for key in _AREAS if gauges.get(key)})
                for key, value in figures.get("recent", {}).items():
                    minute["peaks"][key] = max(minute["peaks"].get(key, 0), value)
            self._totals[name] = counters
        return ended

    def note_process(self, reading: ProcessReading, wall: float) -> None:
        """Add what the process used; after `note`."""
        minute = self._minute(PROCESS, wall)
        since = minute["from"] if self._process_at is None else max(minute["start"], self._process_at)
        seconds, self._process_at = min(_LONGEST_GAP, max(0.0, wall - since)), wall
        values = {"memory": reading.rss, "threads": reading.threads, "descriptors": reading.descriptors, "processes": 1}
        add(minute["areas"], {key: round(value * seconds, 3) for key, value in values.items()})
        if self._cpu is not None:
            used = max(0.0, reading.cpu_seconds - self._cpu)
            add(minute["counters"], {"cpu.ns": round(used * 1e9)})
            if seconds > 0.5:
                minute["peaks"]["cpu"] = round(max(minute["peaks"].get("cpu", 0.0), used / seconds), 3)
        self._cpu = reading.cpu_seconds

    def _begin(self, wall: float) -> bool:
        start = max(start_of(wall), self._start)  # the clock may have been set back
        ended = 0 < self._start < start
        if ended:
            for minutes in self.book.values():
                if self._start in minutes:
                    minutes[self._start] = _bound_hosts(minutes[self._start])
        self._start = start
        since = wall - 1.0 if self._at is None else self._at
        self._since = max(start, since)
        self._seconds = min(_LONGEST_GAP, max(0.0, wall - self._since))
        self._at = wall
        return ended

    def _minute(self, name: str, wall: float) -> Flat:
        minutes = self.book.setdefault(name, {})
        minute = minutes.get(self._start)
        if minute is None:
            minute = minutes[self._start] = _empty(self._start, self._since)
        minute["to"] = wall
        return minute

    @property
    def over(self) -> int:
        """How many minutes are over and kept here."""
        return len({start for minutes in self.book.values() for start in minutes if start < self._start})

    def take(self) -> tuple[Book, int]:
        """Return the minutes that are over, and the start of the last of them."""
        last = max((start for minutes in self.book.values() for start in minutes if start < self._start), default=0)
        book = {name: {start: one for start, one in minutes.items() if start <= last}
                for name, minutes in self.book.items()}  # fmt: skip
        return book, last

    def forget(self, last: int) -> None:
        """Forget the minutes until the one that begins at ``last``."""
        self.book = {
            name: kept for name, minutes in self.book.items()
            if (kept := {start: one for start, one in minutes.items() if start > last})
        }  # fmt: skip

    def to_dict(self) -> dict[str, list[Flat]]:
        """Return them for JSON, the oldest first. They do not change later."""
        return {name: [self._fixed(minute) for minute in minutes.values()] for name, minutes in self.book.items()}

    def _fixed(self, minute: Flat) -> Flat:
        if minute["start"] < self._start:
            return minute
        return {key: dict(value) if isinstance(value, dict) else value for key, value in minute.items()}


def _empty(start: int, since: float) -> Flat:
    return {"start": start, "from": since, "to": since, "counters": {}, "areas": {}, "peaks": {}}


def sum_of(one: Flat, other: Flat, *, later: bool = False) -> Flat:
    """Return the sum of the same minute of two processes; or, if ``later``, of two minutes of all."""
    found = {**one, **{key: dict(one[key]) for key in ("counters", "areas", "peaks")}}
    if "kind" in other:
        found["kind"] = other["kind"]
    found["from"], found["to"] = min(one["from"], other["from"]), max(one["to"], other["to"])
    add(found["counters"], other["counters"])
    add(found["areas"], other["areas"])
    peaks = found["peaks"]
    for key, value in other["peaks"].items():
        peaks[key] = max(peaks.get(key, 0), value) if later else peaks.get(key, 0) + value
    return found


def by_start(minutes: Mapping[str, Iterable[Flat]], after: int = 0) -> Book:
    """Return minutes from JSON as a book; only those that begin later than ``after``."""
    return {name: {one["start"]: one for one in several if one["start"] > after} for name, several in minutes.items()}


def lengthen(book: Book, record: Mapping[str, Any], wall: float) -> None:
    """Prolong the last minute of a process that lives until now: it writes nothing while nothing changes."""
    process = record.get("process")
    values = {} if process is None else {PROCESS: {"processes": 1, **{key: process[key] for key in _OF_PROCESS}}}
    for name, gauges in (*((name, one.get("gauges", {})) for name, one in record["pools"].items()), *values.items()):
        minutes = book.get(name)
        if minutes:
            minute = minutes[max(minutes)]
            to = min(wall, minute["start"] + 60.0)
            seconds, areas = max(0.0, to - minute["to"]), dict(minute["areas"])
            add(areas, {key: gauges[key] * seconds for key in (*_AREAS, *_OF_PROCESS, "processes") if key in gauges})
            minutes[minute["start"]] = {**minute, "to": minute["to"] + seconds, "areas": areas}


def merge(into: Book, book: Book) -> None:
    """Add the minutes of another process; minutes themselves are not changed."""
    for name, minutes in book.items():
        own = into.setdefault(name, {})
        for start, minute in minutes.items():
            own[start] = sum_of(own[start], minute) if start in own else minute


def compact(book: Book, wall: float, retention: float) -> Book:
    """Return a book without what is older than ``retention`` seconds, and with blocks instead of old minutes."""
    found: Book = {}
    oldest, recent = wall - retention, start_of(wall) // BLOCK * BLOCK - _HOUR
    for name, minutes in book.items():
        own: dict[int, Flat] = {}
        for start, minute in sorted(minutes.items()):
            at = start if start >= recent else start // BLOCK * BLOCK
            if at in own:
                minute = sum_of(own[at], minute, later=True)
            if at > oldest - BLOCK:
                own[at] = _bound_hosts(minute if at == start else {**minute, "start": at})
        if own:
            found[name] = own
    return found


def _bound_hosts(minute: Flat) -> Flat:
    """Return a minute that keeps the hosts with the most requests, and adds up the others."""
    requests: dict[str, float] = {}
    for key, value in minute["counters"].items():
        if HOST in key:
            host, _, what = key.partition(HOST)
            requests[host] = requests.get(host, 0) + value * what.startswith(("statuses/", "failures/"))
    kept = {OTHERS, *sorted(requests, key=lambda host: -requests[host])[:MOST_HOSTS]}
    if not requests.keys() - kept:
        return minute
    bounded: dict[str, float] = {}
    for key, value in minute["counters"].items():
        host, tab, what = key.partition(HOST)
        add(bounded, {f"{OTHERS}{HOST}{what}" if tab and host not in kept else key: value})
    return {**minute, "counters": bounded}


# -- as a report wants them ------------------------------------------------------------


def seconds_of(minute: Flat) -> float:
    """Return how many seconds of a minute or block were observed."""
    return max(0.0, float(minute["to"] - minute["from"]))


def spread_of(counters: Mapping[str, float], name: str) -> Spread:
    """Return the durations among counters: ``wait``, ``use``, ``create`` or ``latency``."""
    counts = {int(place): int(number) for place, number in kinds_of(counters, name).items()}
    total, short = counters.get(f"{name}.ns", 0) / 1e9, int(counters.get(f"{name}.short", 0))
    timed = min(total, sum(number * _middle(place) for place, number in counts.items()))
    most = min(total, bound_of(max(counts))) if counts else min(total, SHORT)
    found = Spread()
    found.add(NO_TOTALS, Totals(short + sum(counts.values()), total, Buckets(counts, timed, most)))
    return found


def _middle(place: int) -> float:
    return bound_of(min(place, 60)) / 2**0.25


def _kinds(counters: Mapping[str, float], name: str) -> dict[Any, int]:
    found = kinds_of(counters, name)
    return {int(kind) if kind.isdigit() else kind: int(number) for kind, number in found.items()}


def minute_of(flat: Flat) -> Minute:
    """Return a minute of a pool for a report: of all processes together."""
    found, seconds = Minute(flat["start"]), seconds_of(flat)
    counters, areas, peaks = flat["counters"], flat["areas"], flat["peaks"]
    means = {key: areas.get(key, 0.0) / seconds if seconds else 0.0 for key in _AREAS}
    found.seconds, found.in_use_seconds = seconds, areas.get("used", 0.0)
    found.size, found.max_size, found.min_size = (round(means[key]) for key in ("size", "max", "idle_min"))
    found.in_use_peak = int(min(peaks.get("in_use", 0), found.max_size or peaks.get("in_use", 0)))
    found.waiting_peak = int(peaks.get("waiting", 0))
    found.count(int(counters.get(name, 0)) for name in COUNTERS)
    own = {key: value for key, value in counters.items() if HOST not in key}
    found.wait, found.use, found.create = (spread_of(own, name) for name in ("wait", "use", "create"))
    found.closed.add(_kinds(own, "closed"))
    found.errors.add(_kinds(own, "errors"))
    for host, numbers in by_host(counters).items():
        one = found.hosts[host] = HostMinute()
        one.statuses.add(_kinds(numbers, "statuses"))
        one.failures.add(_kinds(numbers, "failures"))
        one.retries, one.latency = int(numbers.get("retries", 0)), spread_of(numbers, "latency")
    return found


def process_minute_of(flat: Flat) -> ProcessMinute:
    """Return a minute of the processes for a report: of all together."""
    found, seconds, areas = ProcessMinute(flat["start"]), seconds_of(flat), flat["areas"]
    found.seconds, found.cpu_seconds = seconds, flat["counters"].get("cpu.ns", 0) / 1e9
    found.cpu_peak = max(flat["peaks"].get("cpu", 0.0), found.cpu)
    if seconds:
        found.rss, found.threads, found.descriptors = (
            round(areas.get(key, 0.0) / seconds) for key in _OF_PROCESS
        )
    return found


def number_of(flat: Flat) -> float:
    """Return how many processes there were on average, at least 1.0."""
    seconds, areas = seconds_of(flat), flat["areas"]
    return max(1.0, areas.get("open", areas.get("processes", 0.0)) / seconds) if seconds else 1.0


def mean_of_one(flat: Flat) -> Flat:
    """Return a minute of one process on average: settings, and so advice, are those of one."""
    number = number_of(flat)
    return {
        **flat,
        "counters": {key: math.ceil(value / number) if key in _SEVERE else round(value / number)
                     for key, value in flat["counters"].items()},
        "areas": {key: value / number for key, value in flat["areas"].items()},
        "peaks": {key: math.ceil(value / number) for key, value in flat["peaks"].items()},
    }  # fmt: skip
