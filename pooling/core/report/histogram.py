"""Durations in fixed buckets, from which percentiles are estimated."""

from __future__ import annotations

from bisect import bisect
from collections import Counter, deque
from functools import partial
from typing import Any, NamedTuple

__all__ = ["SHORT", "Histogram", "HistogramSnapshot"]

SHORT = 1e-4
"""Seconds: uses shorter than this are counted and summed, not timed one by one."""

# 1 µs to about 18 minutes in steps of √2: a percentile is interpolated inside its
# bucket, so it is right within that factor.
_BOUNDS = [1e-6 * 2 ** (step / 2) for step in range(61)]
_bucket = partial(bisect, _BOUNDS)  # the index of a duration's bucket
_FOLD_AT = 256


class HistogramSnapshot(NamedTuple):
    """Durations at one moment, in seconds."""

    count: int  # type: ignore[assignment]  # not the method of a tuple
    mean: float
    max: float
    p50: float
    p95: float
    p99: float


class Histogram:
    """Durations in fixed buckets.

    Args:
        lock: The pool's lock, which is re-entrant and reports its owner.
    """

    __slots__ = ("_lock", "_fresh", "_counts", "_total", "_max")

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._fresh: deque[float] = deque()
        self.clear()

    def clear(self) -> None:
        """Remove all durations."""
        self._fresh.clear()
        self._counts: Counter[int] = Counter()  # by the index of the bucket
        self._total = self._max = 0.0

    def record(self, seconds: float) -> None:
        """Record one duration; safe in any thread, destructor and signal handler."""
        self._fresh.append(seconds)
        # Only one thread sorts them; the others do not wait for the lock.
        if not len(self._fresh) % _FOLD_AT and not self._lock._is_owned():
            with self._lock:
                self._fold()

    def _fold(self) -> None:
        fresh = self._fresh
        batch = [fresh.popleft() for _ in range(len(fresh))]
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
        if rank <= 0:
            return short
        seen = 0
        for place, number in sorted(self._counts.items()):
            if seen + number >= rank:
                low = _BOUNDS[place - 1] if place else 0.0
                high = _BOUNDS[place] if place < len(_BOUNDS) else self._max
                return min(low + (high - low) * (rank - seen) / number, self._max)
            seen += number
        return self._max

    @property
    def timed(self) -> tuple[int, float]:
        """Number and sum of the recorded durations. Needs the lock."""
        self._fold()
        return self._counts.total(), self._total
