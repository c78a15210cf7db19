"""What a pool's observers are notified of, as incidents with a time, in a bounded list."""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..core.observer import Observer
from ..core.report.messages import format_error, printable

__all__ = ["MOMENTS", "MOST_INCIDENTS", "Incident", "Incidents", "Listener"]

MOST_INCIDENTS = 1000
"""The oldest are forgotten beyond this number; one takes about 0.5 KB."""

_SAME = 300.0  # seconds: what happens again so soon after belongs to the same incident
_LONGEST_TEXT = 300
_MOST_ERRORS = 100  # pools whose last error is kept

WORDS = {
    "outage": "outage",
    "resets": "resets kept failing",
    "exhausted": "exhausted",
    "timeout": "acquires timed out",
    "refused": "acquires refused, the wait queue was full",
    "leak": "lease held for too long",
    "orphan": "lease dropped without release",
    "drain": "drained",
    "dead": "resource proved dead",
    "health": "health check failed",
    "adapted": "size adapted",
    "proposed": "another size proposed",
}
"""The kinds of incidents, and how a report calls them."""

MOMENTS = frozenset({"timeout", "refused", "leak", "orphan", "dead", "adapted", "proposed"})
"""The kinds that do not last: several are reported as one incident, from the first to the last of them."""


class Incident:
    """Something that happened to a pool, once or several times in a row.

    Attributes:
        pool: The label of the pool.
        kind: A key of `WORDS`.
        start, end: Times of day, in seconds since the epoch; ``end`` is ``None`` while it lasts.
        count: How often.
        text: The first error or place, without secrets.
        peak: The most that waited at once (``exhausted``), the new size (``adapted``, ``proposed``), or the longest
            wait or hold in seconds; else 0.
    """

    __slots__ = ("pool", "kind", "start", "end", "count", "text", "peak")

    def __init__(self, pool: str, kind: str, start: float, text: str = "") -> None:
        self.pool, self.kind, self.start, self.text = pool, kind, start, text
        self.end: float | None = start
        self.count, self.peak = 0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "pool": self.pool, "kind": self.kind, "start": self.start, "end": self.end, "count": self.count,
            "text": self.text, "peak": self.peak,
        }  # fmt: skip


class Incidents:
    """The incidents of one process. Safe in any thread; no method blocks.

    Attributes:
        errors: The last error of each pool, without secrets, and its time of day.

    Args:
        wall: Returns the time of day.
        most: How many are kept.
    """

    def __init__(self, wall: Callable[[], float], most: int = MOST_INCIDENTS) -> None:
        self._wall = wall
        self.errors: dict[str, tuple[str, float]] = {}
        self._lock: Any = _thread.RLock()  # native under gevent, too: nothing waits or switches while it is held
        self._all: deque[Incident] = deque(maxlen=most)
        self.last: dict[tuple[str, str, str], Incident] = {}

    def note(self, pool: str, kind: str, text: str = "", *, peak: float = 0.0, by_text: bool = False) -> None:
        """Note that something happened now; part of the last incident of that kind, if that is not over for long.

        Args:
            pool, kind, text, peak: As of an `Incident`.
            by_text: Another text is another incident.
        """
        now, key = self._wall(), (pool, kind, text if by_text else "")
        with self._lock:
            found = self.last.get(key)
            if found is None or (found.end is not None and now - found.end > _SAME):
                found = self._add(key, now, text)
            found.count += 1
            found.peak = max(found.peak, peak)
            if found.end is not None:
                found.end = now

    def begin(self, pool: str, kind: str, text: str) -> None:
        """Note that something began, which lasts until `finish`."""
        now, key = self._wall(), (pool, kind, "")
        with self._lock:
            found = self.last.get(key)
            if found is None or (found.end is not None and now - found.end > _SAME):
                found = self._add(key, now, text)
            found.count += 1
            found.end = None

    def finish(self, pool: str, kind: str) -> None:
        """Note the end of what began."""
        with self._lock:
            found = self.last.get((pool, kind, ""))
            if found is not None and found.end is None:
                found.end = self._wall()

    @classmethod
    def of(cls, dicts: Iterable[dict[str, Any]]) -> Incidents:
        """Return incidents from several processes; what overlaps in two of them is one."""
        found = cls(time.time)
        for one in sorted(dicts, key=lambda one: float(one["start"])):
            key = (one["pool"], one["kind"], one["text"])
            last = found.last.get(key)
            if last is None or (last.end is not None and one["start"] - last.end > _SAME):
                last = found.last[key] = Incident(one["pool"], one["kind"], one["start"], one["text"])
                last.end = one["end"]
                found._all.append(last)
            last.count += one["count"]
            last.peak = max(last.peak, one["peak"])
            last.end = None if last.end is None or one["end"] is None else max(last.end, one["end"])
        return found

    def sustain(self, pool: str, kind: str, lasts: bool, text: str = "") -> None:
        """Note whether something lasts that may have begun before anything was noted."""
        now, key = self._wall(), (pool, kind, "")
        with self._lock:
            found = self.last.get(key)
            if lasts and (found is None or (found.end is not None and now - found.end > _SAME)):
                found = self._add(key, now, text)
                found.count = 1
            if found is not None and (lasts or found.end is None):
                found.end = None if lasts else now

    def note_error(self, pool: str, error: BaseException) -> None:
        """Note the last error of a pool."""
        with self._lock:
            self.errors.pop(pool, None)
            self.errors[pool] = (format_error(error)[:_LONGEST_TEXT], self._wall())
            if len(self.errors) > _MOST_ERRORS:
                self.errors.pop(next(iter(self.errors)))

    def _add(self, key: tuple[str, str, str], now: float, text: str) -> Incident:
        if len(self.last) > MOST_INCIDENTS:
            self.last = {key: one for key, one in self.last.items() if one.end is None or now - one.end <= _SAME}
        found = self.last[key] = Incident(key[0], key[1], now, text[:_LONGEST_TEXT])
        self._all.append(found)
        return found

    def since(self, wall: float, until: float) -> list[dict[str, Any]]:
        """Return what happened from a time of day on, or lasts, in the order of its beginning."""
        with self._lock:
            return [
                one.to_dict() for one in self._all if one.start <= until and (one.end is None or one.end >= wall)
            ]


class Listener(Observer):
    """Turns the events of one pool into incidents. It does not override `acquired` and `released`.

    Args:
        label: The label of the pool.
        incidents: Returns the incidents of this process; another list in a forked child.
    """

    def __init__(self, label: str, incidents: Callable[[], Incidents | None]) -> None:
        self.label = label
        self._incidents = incidents

    def _note(self, kind: str, text: str = "", *, peak: float = 0.0, by_text: bool = False) -> None:
        incidents = self._incidents()
        if incidents is not None:
            incidents.note(self.label, kind, text, peak=peak, by_text=by_text)

    def _failed(self, error: BaseException) -> None:
        incidents = self._incidents()
        if incidents is not None:
            incidents.note_error(self.label, error)

    def _begin(self, kind: str, error: BaseException) -> None:
        self._failed(error)
        incidents = self._incidents()
        if incidents is not None:
            incidents.begin(self.label, kind, format_error(error))

    def _finish(self, kind: str) -> None:
        incidents = self._incidents()
        if incidents is not None:
            incidents.finish(self.label, kind)

    def created(self, pool: str, seconds: float) -> None:
        self._incidents()  # the first use of the pool in a forked child: the monitor begins anew

    def create_failed(self, pool: str, error: BaseException) -> None:
        self._failed(error)

    def exhausted(self, pool: str, waiting: int) -> None:
        self._note("exhausted", peak=waiting)

    def timed_out(self, pool: str, waited: float) -> None:
        self._note("timeout", peak=waited)

    def refused(self, pool: str) -> None:
        self._note("refused")

    def validation_failed(self, pool: str, error: BaseException) -> None:
        self._failed(error)
        self._note("dead", format_error(error))

    def health_checked(self, pool: str, error: BaseException | None) -> None:
        if error is not None:
            self._failed(error)
            self._note("health", format_error(error))

    def leaked(self, pool: str, where: str, held: float) -> None:
        self._note("leak", printable(where), peak=held, by_text=True)

    def orphaned(self, pool: str, where: str) -> None:
        self._note("orphan", printable(where), by_text=True)

    def outage_began(self, pool: str, error: BaseException) -> None:
        self._begin("outage", error)

    def outage_ended(self, pool: str, seconds: float) -> None:
        self._finish("outage")

    def resets_failed(self, pool: str, error: BaseException) -> None:
        self._begin("resets", error)

    def resets_recovered(self, pool: str) -> None:
        self._finish("resets")

    def drained(self, pool: str) -> None:
        self._note("drain")

    def adapted(self, pool: str, before: int, after: int, reason: str, applied: bool) -> None:
        self._note("adapted" if applied else "proposed", f"{before} -> {after}: {reason}", peak=after, by_text=True)
