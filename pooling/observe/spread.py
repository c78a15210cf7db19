"""Durations of a period: what a histogram recorded between two readings."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..core.report.histogram import SHORT, Buckets, bound_of, percentile, place_of

__all__ = ["NO_TOTALS", "Spread", "Totals"]

_PAIR = struct.Struct("<BI")  # a bucket's place and its count


class Totals(NamedTuple):
    """What a histogram has recorded until now. ``count`` and ``total`` may exceed what is in the buckets."""

    count: int  # type: ignore[assignment]  # not the method of a tuple
    total: float
    timed: Buckets

    @classmethod
    def of(cls, count: int, mean: float, timed: Buckets) -> Totals:
        """Take the figures of a snapshot, and the buckets read just after it."""
        counted = sum(timed.counts.values())
        return cls(max(count, counted), max(count * mean, timed.total), timed)


NO_TOTALS = Totals(0, 0.0, Buckets({}, 0.0, 0.0))
"""The totals before the first duration."""


class Spread:
    """The durations of a period, in seconds: their number, sum and maximum, and percentiles as good as the buckets."""

    __slots__ = ("count", "total", "most", "_counts")

    def __init__(self) -> None:
        self.count = 0
        self.total = self.most = 0.0
        self._counts: Counter[int] | bytes = b""

    def add(self, before: Totals, after: Totals) -> None:
        """Add what was recorded between two readings; all of ``after`` if the histogram was cleared meanwhile."""
        if after.count < before.count:
            before = NO_TOTALS
        old = before.timed.counts
        new = {place: number - old.get(place, 0) for place, number in after.timed.counts.items()}
        new = {place: number for place, number in new.items() if number > 0}
        timed = sum(new.values())
        count, total = max(timed, after.count - before.count), max(0.0, after.total - before.total)
        if not count:
            return
        short = count - timed  # each shorter than `SHORT`
        mean = min(SHORT, max(0.0, total - (after.timed.total - before.timed.total)) / short) if short else 0.0
        most = after.timed.max
        if not timed:
            most = mean
        elif most <= before.timed.max:  # the longest of all time came before
            most = min(most, bound_of(max(new)))
        if short:
            new[place_of(mean)] = new.get(place_of(mean), 0) + short
        self._merge(count, total, most, new)

    def merge(self, other: Spread) -> None:
        """Add the durations of another period."""
        if other.count:
            self._merge(other.count, other.total, other.most, other.counts())

    def _merge(self, count: int, total: float, most: float, counts: Mapping[int, int]) -> None:
        own = self._counts
        if isinstance(own, bytes):
            own = self._counts = Counter(self.counts())
        own.update(counts)
        self.count += count
        self.total += total
        self.most = max(self.most, most)

    def freeze(self) -> None:
        """Keep the buckets in a few bytes; nothing is lost."""
        self._counts = b"".join(_PAIR.pack(place, min(number, 0xFFFFFFFF)) for place, number in self.counts().items())

    def counts(self) -> Mapping[int, int]:
        """Return the number of durations by bucket."""
        own = self._counts
        return dict(_PAIR.iter_unpack(own)) if isinstance(own, bytes) else own

    @property
    def mean(self) -> float:
        """Their mean; 0.0 if there is none."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, part: float) -> float:
        """Return the duration that this part of all, 0 to 1, did not exceed; 0.0 if there is none."""
        counts = self.counts()
        number = sum(counts.values())  # a foreign pool counts without timing each one
        return percentile(counts, part * number, self.most) if number else self.mean

    def to_dict(self) -> dict[str, Any]:
        """Return count, mean, p50, p95, p99 and max, in seconds."""
        return {
            "count": self.count, "mean": self.mean, "p50": self.percentile(0.50), "p95": self.percentile(0.95),
            "p99": self.percentile(0.99), "max": self.most,
        }  # fmt: skip
