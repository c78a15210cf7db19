"""Durations in fixed buckets, from which percentiles are estimated."""

from __future__ import annotations

from bisect import bisect
from collections import Counter, deque
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

__all__ = ["FOLD_AT", "SHORT", "Buckets", "Histogram", "HistogramSnapshot", "bound_of", "percentile", "place_of"]

SHORT = 1e-4
"""Seconds: uses shorter than this are counted and summed, not timed one by one."""

# 1 µs to about 18 minutes in steps of √2: a percentile is interpolated inside its
# bucket, so it is right within that factor.
_BOUNDS = [1e-6 * 2 ** (step / 2) for step in range(61)]
_bucket = partial(bisect, _BOUNDS)  # the index of a duration's bucket
FOLD_AT = 256  # recent durations


class HistogramSnapshot(NamedTuple):
    """Durations at one moment, in seconds."""

    count: int  # type: ignore[assignment]  # not the method of a tuple
    mean: float
    max: float
    p50: float
    p95: float
    p99: float


class Buckets(NamedTuple):
    """The durations that were recorded one by one, by bucket: the difference of two of these is what came between.

    ``counts`` has a number by the bucket's place (see `place_of`), ``total`` is their sum in seconds, ``max`` the
    longest.
    """

    counts: dict[int, int]
    total: float
    max: float


def place_of(seconds: float) -> int:
    """Return the place of a duration's bucket, 0 to 61."""
    return _bucket(seconds)


def bound_of(place: int) -> float:
    """Return the upper bound of a bucket in seconds; infinity for the last."""
    return _BOUNDS[place] if place < len(_BOUNDS) else float("inf")


def percentile(counts: Mapping[int, int], rank: float, most: float) -> float:
    """Return the duration of a rank, counted from the shortest: interpolated inside its bucket, at most ``most``."""
    seen = 0
    for place, number in sorted(counts.items()):
        if seen + number >= rank:
            low = _BOUNDS[place - 1] if place else 0.0
            high = _BOUNDS[place] if place < len(_BOUNDS) else most
            return min(low + (high - low) * (rank - seen) / number, most)
        seen += number
    return most


class Histogram:
    """Durations in fixed buckets.

    Args:
        lock: The pool's lock, which is re-entrant and reports its owner.

    Attributes:
        recent: Durations that are not sorted into the buckets yet. A release appends to it
            itself, without the call of `record`, and calls `fold` at each `FOLD_AT`.
    """

    __slots__ = ("_lock", "recent", "_counts", "_total", "_max")

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.recent: deque[float] = deque()
        self.clear()

    def clear(self) -> None:
        """Remove all durations."""
        self.recent.clear()
        self._counts: Counter[int] = Counter()  # by the index of the bucket
        self._total = self._max = 0.0

    def record(self, seconds: float) -> None:
        """Record one duration; safe in any thread, destructor and signal handler."""
        self.recent.append(seconds)
        if not len(self.recent) % FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Sort the recent durations into the buckets, unless this thread has interrupted a holder of the lock."""
        # Only one thread sorts them; the others do not wait for the lock.
        if not self._lock._is_owned():
            with self._lock:
                self._fold()

    def _fold(self) -> None:
        recent = self.recent
        batch = [recent.popleft() for _ in range(len(recent))]
        if batch:
            self._counts.update(map(_bucket, batch))
            self._total += sum(batch)
            self._max = max(self._max, max(batch))

    def snapshot(self, others: int = 0, others_total: float = 0.0) -> HistogramSnapshot:
        """Return the current figures. Needs the lock.

        Args:
            others: Number of further durations, each shorter than `SHORT`.
            others_total: Their sum.
        """
        self._fold()
        timed = self._counts.total()
        others = max(0, others)
        others_total = max(0.0, others_total)
        count = timed + others
        short = others_total / others if others else 0.0
        if not count:
            return HistogramSnapshot(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        return HistogramSnapshot(
            count=count,
            mean=(self._total + others_total) / count,
            max=self._max if timed else short,
            p50=self._percentile(0.50 * count - others, short),
            p95=self._percentile(0.95 * count - others, short),
            p99=self._percentile(0.99 * count - others, short),
        )

    def _percentile(self, rank: float, short: float) -> float:
        """Return the duration of that rank among the recorded ones; ``short`` for lower ranks."""
        return short if rank <= 0 else percentile(self._counts, rank, self._max)

    def buckets(self) -> Buckets:
        """Return a copy of the recorded durations by bucket. Needs the lock."""
        self._fold()
        return Buckets(dict(self._counts), self._total, self._max)

    @property
    def timed(self) -> tuple[int, float]:
        """Number and sum of the recorded durations. Needs the lock."""
        self._fold()
        return self._counts.total(), self._total
