"""Metrics of a pool: counters, histograms, and consistent snapshots of both.

How the figures are collected (P12):

- Each lease is counted in its entry, by its holder only, without a lock. A
  snapshot adds the counters of the entries to the totals of the closed ones.
  These counters only grow; they may lag by the operations in flight and never
  lose one.
- Events on slow paths are counted under the pool's lock, which is held there
  anyway. A snapshot takes the same lock once, so its gauges add up.
- Durations are appended to a deque, which is atomic and safe in a destructor
  and a signal handler. From time to time they are sorted into buckets under
  the lock.
"""

from __future__ import annotations

import itertools
import os
import sys
from bisect import bisect
from collections import Counter, deque
from functools import partial
from typing import IO, Any, NamedTuple, NoReturn

from .clock import Clock
from .entry import Entry
from .state import PoolState
from .words import no_copy

__all__ = ["SHORT", "Histogram", "HistogramSnapshot", "PoolMetrics", "PoolSnapshot"]

SHORT = 1e-4
"""Seconds: uses shorter than this are counted and summed, not timed one by one."""

# 1 µs to about 18 minutes in steps of √2: a percentile is interpolated inside its
# bucket, so it is right within that factor.
_BOUNDS = [1e-6 * 2 ** (step / 2) for step in range(61)]
_bucket = partial(bisect, _BOUNDS)  # the place of a duration's bucket
_FOLD_AT = 256
_numbers = itertools.count()


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
        lock: The pool's lock: re-entrant, and able to say who owns it.
    """

    __slots__ = ("_lock", "_fresh", "_counts", "_total", "_max")

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._fresh: deque[float] = deque()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._fresh.clear()
        self._counts: Counter[int] = Counter()  # by the place of the bucket
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


class PoolSnapshot(NamedTuple):
    """A consistent snapshot of a pool.

    ``idle + in_use + creating + checking + closing == size``. Durations are
    seconds. Counters start at the pool's first use or the last `reset`.
    """

    name: str
    timestamp: float
    duration: float
    # gauges
    size: int
    idle: int
    in_use: int
    creating: int
    checking: int
    closing: int
    waiting: int
    min_size: int
    max_size: int
    peak_in_use: int
    # counters
    acquired: int
    released: int
    created: int
    closed: dict[str, int]
    timeouts: int
    refusals: int
    turned_away: int
    errors: dict[str, int]
    exhausted: int
    validation_failures: int
    health_failures: int
    last_health_check: float | None
    orphans: int
    leaks: int
    audit_repairs: int
    # durations
    wait: HistogramSnapshot
    use: HistogramSnapshot
    create: HistogramSnapshot
    validate: HistogramSnapshot
    release: HistogramSnapshot

    @property
    def utilization(self) -> float:
        """In use / open: 1.0 means that every open resource is in use."""
        return self.in_use / self.size if self.size else 0.0

    @property
    def saturation(self) -> float:
        """In use / ``max_size``: 1.0 means that the next borrower has to wait."""
        return self.in_use / self.max_size if self.max_size else 0.0

    @property
    def requests(self) -> int:
        """Number of acquires: served, timed out, refused, or failed with another error."""
        return self.acquired + self.timeouts + self.refusals + self.turned_away

    @property
    def error_rate(self) -> float:
        """Failed requests and errors as a fraction of the requests, 0 to 1."""
        bad = self.timeouts + self.refusals + self.turned_away + sum(self.errors.values())
        return min(1.0, bad / max(1, self.requests))

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, under our own names and under older ones.

        The older names are those of the pools that this library replaces:
        ``avg_..._ms`` in milliseconds, ``avg_connection_...`` in seconds.
        """
        own = {
            name: value._asdict() if isinstance(value, HistogramSnapshot) else value
            for name, value in self._asdict().items()
        }
        own.update(
            utilization=self.utilization, saturation=self.saturation, error_rate=self.error_rate
        )
        return {**own, **self._older_names()}

    def _older_names(self) -> dict[str, Any]:
        failed = sum(self.errors.values())
        return {
            "duration_seconds": self.duration,
            "total_connections": self.size,
            "active_connections": self.in_use,
            "idle_connections": self.idle,
            "max_connections": self.peak_in_use,
            "waiting_requests": self.waiting,
            "connection_requests": self.requests,
            "connection_timeouts": self.timeouts,
            "connection_errors": failed,
            "total_connections_created": self.created,
            "total_connections_closed": sum(self.closed.values()),
            "avg_acquisition_time_ms": self.wait.mean * 1e3,
            "avg_release_time_ms": self.release.mean * 1e3,
            "avg_connection_acquisition_time": self.wait.mean,
            "max_connection_acquisition_time": self.wait.max,
            "pool_utilization": self.utilization,
            "pool_exhausted_count": self.exhausted,
            "health_check_failures": self.health_failures,
        }



class PoolMetrics:
    """The metrics of one pool, guarded by the pool's lock.

    The pool counts into it; users read :meth:`snapshot` and its other forms.
    """

    def __init__(self, name: str, clock: Clock, stacked: bool = True) -> None:
        self.name = name
        self._clock = clock
        self._stacked = stacked  # a released resource is on top of the idle stack at once

    def renew(self, lock: Any, state: PoolState) -> None:
        """Begin with zeros, for a state and its lock; also in a forked child, where exporters may keep this object."""
        self.lock = lock
        self._state = state
        # All below: guarded by the lock.
        self.count: Counter[str] = Counter()  # created, timeouts, refusals, ...
        self.closed: Counter[str] = Counter()  # by reason
        self.errors: Counter[str] = Counter()  # by kind
        self.last_health_check: float | None = None
        self._done_uses = 0  # of the entries that are closed
        self._done_busy = 0.0
        self._peak = 0
        self._before: dict[Entry, int] = {}  # uses of the entries at the last reset
        self.wait = Histogram(lock)
        self.use = Histogram(lock)
        self.create = Histogram(lock)
        self.validate = Histogram(lock)
        self.release = Histogram(lock)
        self._base_uses = 0
        self._base_busy = 0.0
        self._base_lent = 0
        self._since = self._clock.now()

    # -- counting, by the pool, under the lock -------------------------------

    def count_closed(self, entry: Entry, reason: str) -> None:
        """Count a closed entry and keep its counters. Needs the lock."""
        self.closed[reason] += 1
        self._done_uses += entry.uses
        self._done_busy += entry.busy

    def note_in_use(self) -> None:
        """Record how many are in use now; called on slow paths. Needs the lock."""
        in_use = self._state.in_use
        if in_use > self._peak:
            self._peak = in_use

    def estimate_peak(self) -> None:
        """Estimate the peak from the number of resources ever lent. Needs the lock.

        The stack lends the resource used last first, so all resources that
        were ever lent were in use at the same time at least once. This covers
        leases on the fast path, which takes no lock.
        """
        self.note_in_use()
        if self._stacked:
            known = self._before
            lent = sum(1 for e in self._state.entries if e.uses > known.get(e, 0))
            self._peak = max(self._peak, lent)

    def _uses(self) -> tuple[int, float]:
        entries = list(self._state.entries)
        uses = self._done_uses + sum(entry.uses for entry in entries)
        return uses, self._done_busy + sum(entry.busy for entry in entries)

    def _uses_by_entry(self) -> dict[Entry, int]:
        return {entry: entry.uses for entry in self._state.entries}

    # -- reading -------------------------------------------------------------

    def reset(self) -> None:
        """Reset all counters and durations; gauges are unaffected."""
        with self.lock:
            self._base_uses, self._base_busy = self._uses()
            self._base_lent = self._state.in_use
            self._peak = self._state.in_use
            self._before = self._uses_by_entry()
            self._since = self._clock.now()
            for counter in (self.count, self.closed, self.errors):
                counter.clear()
            for histogram in (self.wait, self.use, self.create, self.validate, self.release):
                histogram.clear()

    def snapshot(self) -> PoolSnapshot:
        """Return an immutable, consistent snapshot of the pool."""
        with self.lock:
            state, count = self._state, self.count
            in_use, idle = state.in_use, len(state.idle)
            idle = min(idle, len(state.entries) - in_use)
            uses, busy = self._uses()
            uses, busy = uses - self._base_uses, busy - self._base_busy
            acquired = max(uses + in_use - self._base_lent, 0)
            self.estimate_peak()
            timed_use, timed_use_total = self.use.timed
            return PoolSnapshot(
                name=self.name,
                timestamp=self._clock.wall(),
                duration=self._clock.now() - self._since,
                size=len(state.entries),
                idle=idle,
                in_use=in_use,
                creating=len(state.creating),
                checking=len(state.checking),
                closing=len(state.closing),
                waiting=len(state.waiters),
                min_size=state.min_size,
                max_size=state.max_size,
                peak_in_use=self._peak,
                acquired=acquired,
                released=uses - self.closed["detached"] - count["forgotten"],
                created=count["created"],
                closed=dict(self.closed),
                timeouts=count["timeouts"],
                refusals=count["refusals"],
                turned_away=count["turned_away"],
                errors=dict(self.errors),
                exhausted=count["exhausted"],
                validation_failures=count["validation_failures"],
                health_failures=count["health_failures"],
                last_health_check=self.last_health_check,
                orphans=count["orphans"],
                leaks=count["leaks"],
                audit_repairs=count["audit_repairs"],
                wait=self.wait.snapshot(acquired - self.wait.timed[0]),
                use=self.use.snapshot(uses - timed_use, busy - timed_use_total),
                create=self.create.snapshot(),
                validate=self.validate.snapshot(),
                release=self.release.snapshot(uses - self.release.timed[0]),
            )

    def to_dict(self) -> dict[str, Any]:
        """Return `PoolSnapshot.to_dict` of a new snapshot."""
        return self.snapshot().to_dict()

    def to_json(self, pretty: bool = False) -> str:
        """Return `to_dict` as JSON, indented if ``pretty``."""
        import json  # here, to keep the package's import light

        return json.dumps(self.to_dict(), indent=2 if pretty else None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file atomically: a reader never sees half of it."""
        beside = f"{os.fspath(path)}.{os.getpid()}-{next(_numbers)}.tmp"
        try:
            with open(beside, "w", encoding="utf-8") as file:
                file.write(self.to_json(pretty=True) + "\n")
            os.replace(beside, path)
        except BaseException:
            if os.path.exists(beside):
                os.unlink(beside)
            raise

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        no_copy(self, "they belong to their pool; snapshot() is what can be kept and sent")

    def print_summary(self, file: IO[str] | None = None) -> None:
        """Print a summary, to standard output by default."""
        print(_summary(self.snapshot()), file=file or sys.stdout)


def _summary(s: PoolSnapshot) -> str:
    closed = ", ".join(f"{number} {reason}" for reason, number in sorted(s.closed.items()))
    errors = ", ".join(f"{number} {kind}" for kind, number in sorted(s.errors.items()))
    lines = [
        f"pool {s.name!r} over {s.duration:.1f} s",
        f"  now       {s.in_use} in use, {s.idle} idle, {s.waiting} waiting, "
        f"{s.size} open of {s.max_size} at most; {s.peak_in_use} in use at the peak",
        f"  requests  {s.requests}: {s.acquired} served, {s.timeouts} timed out, "
        f"{s.refusals} refused, {s.turned_away} failed otherwise; exhausted {s.exhausted} times",
        f"  made      {s.created} created, {sum(s.closed.values())} closed"
        + (f" ({closed})" if closed else ""),
        f"  errors    {sum(s.errors.values())}" + (f" ({errors})" if errors else ""),
    ]
    for label in ("wait", "use", "create", "validate", "release"):
        h: HistogramSnapshot = getattr(s, label)
        if h.count:
            lines.append(
                f"  {label:<9} mean {_time(h.mean)}, p50 {_time(h.p50)}, "
                f"p95 {_time(h.p95)}, p99 {_time(h.p99)}, max {_time(h.max)}"
            )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
