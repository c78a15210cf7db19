"""Durations of a pool's statements, and the slowest of them."""

from __future__ import annotations

import _thread
import re
from typing import Any, NamedTuple, Protocol

from ...core.report.histogram import Buckets, Histogram

__all__ = ["QuerySnapshot", "QueryStats", "SlowQuery"]

KEEP = 5
"""The number of slowest statements that are kept with their text."""

_LITERALS = re.compile(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b")
_LONGEST_TEXT = 200


class SlowQuery(NamedTuple):
    """One of the slowest statements: its duration in seconds, and its text without values."""

    seconds: float
    sql: str


class QuerySnapshot(NamedTuple):
    """The durations of a pool's statements until now, in seconds."""

    count: int  # type: ignore[assignment]  # not the method of a tuple
    mean: float
    p50: float
    p95: float
    p99: float
    max: float
    slowest: list[SlowQuery]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON."""
        return {**self._asdict(), "slowest": [slow._asdict() for slow in self.slowest]}


class Counting(Protocol):
    """A connection that counts its short statements itself, which needs no lock."""

    short: int
    short_seconds: float


class QueryStats:
    """Counts and times the statements of one pool's connections."""

    system = "sqlite"
    """The database's name in OpenTelemetry's conventions (``db.system.name``)."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start from zero with a new lock, as a forked child must."""
        self._lock: Any = _thread.RLock()
        self._times = Histogram(self._lock)
        self._slowest: list[SlowQuery] = []  # the slowest first; guarded by the lock
        self._floor = 0.0  # a statement must take longer to be one of them
        self._open: set[Counting] = set()  # guarded by the lock
        self._short, self._short_seconds = 0, 0.0  # of closed connections

    def join(self, conn: Counting) -> None:
        """Include the counts of a new connection."""
        with self._lock:
            self._open.add(conn)

    def leave(self, conn: Counting) -> None:
        """Keep the counts of a connection that is about to be closed."""
        with self._lock:
            if conn in self._open:
                self._open.remove(conn)
                self._short += conn.short
                self._short_seconds += conn.short_seconds

    def record(self, sql: str, seconds: float) -> None:
        """Count one statement that is not short."""
        self._times.record(seconds)
        if seconds > self._floor:
            with self._lock:
                self._note(SlowQuery(seconds, without_values(sql)))

    def _note(self, slow: SlowQuery) -> None:
        kept = {old.sql: old for old in self._slowest}  # each text once, with its longest duration
        if slow.sql not in kept or kept[slow.sql].seconds < slow.seconds:
            kept[slow.sql] = slow
        self._slowest = sorted(kept.values(), reverse=True)[:KEEP]
        if len(self._slowest) == KEEP:
            self._floor = self._slowest[-1].seconds

    def buckets(self) -> Buckets:
        """Return by bucket the statements that are not short."""
        with self._lock:
            return self._times.buckets()

    def snapshot(self) -> QuerySnapshot:
        """Return the figures until now."""
        with self._lock:
            short = self._short + sum(conn.short for conn in self._open)
            seconds = self._short_seconds + sum(conn.short_seconds for conn in self._open)
            times, slowest = self._times.snapshot(short, seconds), list(self._slowest)
        return QuerySnapshot(
            times.count, times.mean, times.p50, times.p95, times.p99, times.max, slowest
        )


def without_values(sql: str) -> str:
    """Return a statement on one line, shortened, with literals replaced: they may be secrets (P12)."""
    text = " ".join(_LITERALS.sub("?", sql).split())
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
