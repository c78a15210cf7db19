"""How long queries take, which ones are the slowest, and how they fail."""

from __future__ import annotations

import _thread
import heapq
from collections import Counter
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Any

from ...core.report.histogram import Buckets, Histogram

__all__ = ["LONGEST", "SLOWEST", "QueryStatistics", "Timer", "pool_stats"]

SLOWEST = 10
LONGEST = 500  # characters of a text that are kept


class QueryStatistics:
    """Counts and times the queries of one pool: everything that cursors execute, not BEGIN and COMMIT.

    Texts are kept without parameters and comments, with ``'?'`` for literals and
    ``?`` for numbers.

    Args:
        text_of: Returns a statement like that.
        code_of: Returns the code of a driver's error, ``None`` if it has none.
        code: What that is called.
    """

    def __init__(
        self, text_of: Callable[[Any], str], code_of: Callable[[BaseException], str | None], code: str = "sqlstate"
    ) -> None:
        self._text_of, self._code_of, self._code = text_of, code_of, code
        self.renew()

    def renew(self) -> None:
        """Start again with a new lock, in a forked child."""
        self._lock: Any = _thread.RLock()
        self._times = Histogram(self._lock)
        self._errors: Counter[str] = Counter()  # guarded by the lock
        self._slowest: list[tuple[float, str]] = []  # a heap, the fastest first; guarded by the lock
        self._bar = 0.0  # seconds; a slower query belongs to the slowest

    def count(self, query: Any, seconds: float, error: BaseException | None) -> None:
        """Count one query, which took so many seconds and raised ``error``, if not ``None``."""
        self._times.record(seconds)
        if error is not None:
            with self._lock:
                self._errors[self._code_of(error) or type(error).__name__] += 1
        if seconds > self._bar:
            self._note_slow(seconds, self._text_of(query))

    def _note_slow(self, seconds: float, text: str) -> None:
        with self._lock:
            self._note_slow_locked(seconds, text)

    def _note_slow_locked(self, seconds: float, text: str) -> None:
        # Not in the block that holds the lock: CPython 3.13.0 does not release it if a
        # signal handler raises in a loop that ends in a condition.
        slowest = self._slowest
        for index, (known, other) in enumerate(slowest):
            if other == text:  # each text is kept once, with its longest time
                slowest[index] = (max(known, seconds), text)
                heapq.heapify(slowest)
                break
        else:
            heapq.heappush(slowest, (seconds, text))
            if len(slowest) > SLOWEST:
                heapq.heappop(slowest)
        self._bar = slowest[0][0] if len(slowest) == SLOWEST else 0.0

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._times.clear()
            self._errors.clear()
            self._slowest.clear()
            self._bar = 0.0

    @property
    def seconds(self) -> float:
        """What all queries took together."""
        with self._lock:
            return self._times.timed[1]

    def buckets(self) -> Buckets:
        """Return the queries by bucket."""
        with self._lock:
            return self._times.buckets()

    def to_dict(self) -> dict[str, Any]:
        """Return the count, errors, durations in seconds (mean, p50, p95, p99, max) and the slowest texts."""
        with self._lock:
            times = self._times.snapshot()
            errors, slowest = dict(self._errors), sorted(self._slowest, reverse=True)
        return {
            **times._asdict(),
            "errors": sum(errors.values()),
            f"errors_by_{self._code}": errors,
            "slowest": [{"seconds": seconds, "query": text} for seconds, text in slowest],
        }


class Timer:
    """Times one query in a ``with`` block."""

    __slots__ = ("_statistics", "_query", "_began")

    def __init__(self, statistics: QueryStatistics, query: Any) -> None:
        self._statistics, self._query = statistics, query

    def __enter__(self) -> None:
        self._began = monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._statistics.count(self._query, monotonic() - self._began, error)


def pool_stats(counts: dict[str, Any], totals: dict[str, Any], queries: QueryStatistics | None) -> dict[str, Any]:
    """Return what ``get_pool_stats()`` of a pool returns, of a pool's counts and its metrics."""
    return {
        "current_state": {**counts, **{name: totals[name] for name in _STATE_NAMES}},
        "health_metrics": {name: totals[name] for name in _HEALTH_NAMES},
        **({} if queries is None else {"queries": queries.to_dict()}),
    }


_STATE_NAMES = ("active_connections", "idle_connections", "waiting_requests", "pool_utilization", "saturation")
_HEALTH_NAMES = (
    "active_connections", "idle_connections", "waiting_requests", "total_connections_created",
    "total_connections_closed", "connection_errors", "connection_timeouts",
    "avg_connection_acquisition_time", "max_connection_acquisition_time", "health_check_failures",
    "last_health_check", "pool_exhausted_count",
)  # fmt: skip
