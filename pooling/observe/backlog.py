"""Durations that are counted but not yet recorded in a histogram of another library.

A pool counts durations in buckets; a synchronous histogram wants them one by
one. A `Backlog` records each duration once, with a value from its bucket, and
such that their sum is right. That takes some microseconds each, so it is
limited to a `SHARE` of the time: what is left is recorded later, the shortest
last. Nothing is lost or counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping

from ..core.report.histogram import SHORT, bound_of

__all__ = ["MOST", "SHARE", "UNTIMED", "Backlog", "Series"]

SHARE = 0.01
"""The part of the time that may be spent on recording."""

MOST = 1.0
"""Seconds that one call may take, if there was nothing to record before."""

UNTIMED = -1
"""Stands in for the place of a bucket: durations shorter than `SHORT`, which are counted and summed only."""

_CHUNK = 200  # durations between two looks at the clock, and two chances for other threads
_MIDDLE = 2**0.25  # from the lower bound of a bucket to its geometric mean


class Series:
    """The durations of one kind.

    Args:
        record: Called with each duration in seconds.
        below: Durations in buckets from this place on are recorded elsewhere; ``None`` for none. Then their sum is
            not known, and each duration is recorded as the mean of its bucket.
    """

    def __init__(self, record: Callable[[float], object], below: int | None = None) -> None:
        self.record = record
        self.below = below
        self.owed: dict[int, int] = {}  # by the place of the bucket
        self._owed_seconds = 0.0
        self._known: dict[int, int] = {}
        self._known_seconds = 0.0

    def update(self, counts: Mapping[int, int], seconds: float) -> None:
        """Note how many durations there were in all, by the place of the bucket, and their sum in seconds."""
        if sum(counts.values()) < sum(self._known.values()):  # it was reset
            self._known, self._known_seconds = {}, 0.0
        for place, number in counts.items():
            more = number - self._known.get(place, 0)
            if more > 0:
                self._known[place] = number
                if self.below is None or place < self.below:
                    self.owed[place] = self.owed.get(place, 0) + more
        self._owed_seconds += seconds - self._known_seconds
        self._known_seconds = seconds

    def forgive(self) -> None:
        """Never record what was noted until now."""
        self.owed.clear()
        self._owed_seconds = 0.0

    def values(self) -> dict[int, float]:
        """Return the value to record for each place, the highest place first."""
        places = sorted(self.owed, reverse=True)
        middles = {place: _middle(place) for place in places}
        if self.below is not None:
            return middles
        timed = sum(self.owed[place] * middles[place] for place in places if place != UNTIMED)
        untimed = min(max(self._owed_seconds - timed, 0.0), self.owed.get(UNTIMED, 0) * SHORT)
        factor = (self._owed_seconds - untimed) / timed if timed else 1.0
        return {
            place: untimed / self.owed[place] if place == UNTIMED else _inside(place, middles[place] * factor)
            for place in places
        }

    def pay(self, place: int, number: int, value: float) -> None:
        """Record a number of durations of one bucket."""
        record = self.record
        for _ in range(number):
            record(value)
        left = self.owed[place] - number
        self.owed[place] = left
        if not left:
            del self.owed[place]
        self._owed_seconds -= number * value


class Backlog:
    """What is to be recorded. Not thread-safe: its user holds a lock.

    Args:
        now: The time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.series: dict[Hashable, Series] = {}
        self._now = now
        self._credit, self._at = MOST, now()

    def forgive(self) -> None:
        """Never record what was noted until now."""
        for series in self.series.values():
            series.forgive()

    @property
    def size(self) -> int:
        """How many durations are to be recorded."""
        return sum(sum(series.owed.values()) for series in self.series.values())

    def record(self, limit: float = MOST) -> None:
        """Record durations for as long as there is time, the longest first.

        Args:
            limit: Seconds that this call may take.
        """
        now = self._now()
        self._credit, self._at = min(MOST, self._credit + (now - self._at) * SHARE), now
        end = now + min(self._credit, limit)
        due = [
            (place, value, series) for series in self.series.values() for place, value in series.values().items()
        ]
        for place, value, series in sorted(due, key=lambda one: -one[0]):
            while place in series.owed and self._now() < end:
                series.pay(place, min(_CHUNK, series.owed[place]), value)
                time.sleep(0)  # let other threads and greenlets run
        self._credit = max(0.0, self._credit - (self._now() - now))


def _middle(place: int) -> float:
    if place == UNTIMED:
        return 0.0
    return bound_of(place - 1) * _MIDDLE if place else bound_of(0) / 2


def _inside(place: int, value: float) -> float:
    """Return the value, or the nearest one that is in the bucket."""
    low, high = bound_of(place - 1) if place else 0.0, bound_of(place)
    return min(max(value, low * 1.001), high * 0.999)
