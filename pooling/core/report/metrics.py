"""Metrics of a pool: counters, histograms, and consistent snapshots of both.

How the figures are collected (P12):

- Each lease is counted in its entry, by its holder only, without a lock. A
  snapshot adds the counters of the entries to the totals of closed entries.
  These counters only grow; they may lag behind by the operations in progress,
  but never lose one.
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
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO, Any, NamedTuple, NoReturn

from ..clock import Clock
from ..entry import Entry
from ..lanes import clear_counters, lane_snapshots
from ..state import PoolState
from .histogram import Buckets, Histogram
from .messages import no_copy
from .snapshot import PoolSnapshot, summary

__all__ = ["PoolMetrics"]

_numbers = itertools.count()


class Durations:
    """The histograms of a pool."""

    __slots__ = ("wait", "use", "create", "validate", "release")

    def __init__(self, lock: Any) -> None:
        self.wait = Histogram(lock)
        self.use = Histogram(lock)
        self.create = Histogram(lock)
        self.validate = Histogram(lock)
        self.release = Histogram(lock)

    def clear(self) -> None:
        """Forget everything."""
        for name in self.__slots__:
            getattr(self, name).clear()


class _Baseline(NamedTuple):
    """What was counted before the last reset."""

    since: float  # the time of that reset
    uses: int = 0
    busy: float = 0.0
    lent: int = 0  # then, and counted as acquired before
    by_entry: Mapping[Entry, int] = MappingProxyType({})  # uses


class PoolMetrics:
    """The metrics of one pool, guarded by the pool's lock.

    The pool counts into it; users read :meth:`snapshot` and its other forms.
    """

    inner = False
    """Whether the metrics of another pool include these, so that exporters leave them out."""


    def __init__(self, name: str, clock: Clock, stacked: bool = True) -> None:
        self.name = name
        self._clock = clock
        self._stacked = stacked  # a released resource is on top of the idle stack at once

    def renew(self, lock: Any, state: PoolState) -> None:
        """Start from zero for a state and its lock; also in a forked child, where exporters may keep this object."""
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
        self._acquired = 0
        self._baseline = _Baseline(self._clock.now())
        self.durations = Durations(lock)

    # -- counting, by the pool, under the lock -------------------------------

    def count_closed(self, entry: Entry, reason: str) -> None:
        """Count a closed entry and keep its counters. Needs the lock."""
        self.closed[reason] += 1
        self._done_uses += entry.uses
        self._done_busy += entry.busy

    def note_in_use(self) -> None:
        """Record the number of resources in use; called on slow paths. Needs the lock."""
        in_use = self._state.in_use
        if in_use > self._peak:
            self._peak = in_use

    def estimate_peak(self) -> None:
        """Estimate the peak from the number of resources ever lent. Needs the lock.

        The stack lends the most recently used resource first, so all resources
        ever lent were in use at the same time at least once. This includes
        leases on the fast path, which takes no lock.
        """
        self._peak = max(self._peak, len(self._state.lent()))
        if self._stacked:
            known = self._baseline.by_entry
            lent = sum(1 for e in self._state.entries if e.uses > known.get(e, 0))
            self._peak = max(self._peak, lent)

    def _uses(self) -> tuple[int, float]:
        entries = list(self._state.entries)
        uses = self._done_uses + sum(entry.uses for entry in entries)
        return uses, self._done_busy + sum(entry.busy for entry in entries)

    @property
    def completed(self) -> int:
        """Leases that ended since the pool was made, whatever `reset` did. Needs the lock."""
        return self._uses()[0]

    # No loop and no comprehension inside ``with self.lock``: there CPython 3.13.0 does not release
    # a lock if an asynchronous exception is raised.

    def _uses_by_entry(self) -> dict[Entry, int]:
        return {entry: entry.uses for entry in self._state.entries}

    def _uses_by_id(self) -> dict[int, int]:
        return {id(entry): entry.uses + entry.held for entry in self._state.entries}

    # -- reading -------------------------------------------------------------

    @property
    def kept(self) -> PoolMetrics | None:
        """These, if they may be kept longer than their pool; ``None`` if they refer to pools."""
        return self

    @property
    def since(self) -> float:
        """When counting began, by the pool's clock: the first use in this process, or the last `reset`."""
        return self._baseline.since

    def uses(self) -> dict[int, int] | None:
        """Return how often each open resource was lent, the current lease included, by the ``id`` of its entry.

        Of a stack: those whose number has grown since an earlier call were in
        use at the same time. ``None``: the resources are not kept in a stack.
        """
        if not self._stacked:
            return None
        with self.lock:
            return self._uses_by_id()

    def reset(self) -> None:
        """Reset all counters and durations; gauges are unaffected."""
        with self.lock:
            self._peak, self._acquired, lent = self._state.in_use, 0, len(self._state.lent())
            self._baseline = _Baseline(self._clock.now(), *self._uses(), lent, self._uses_by_entry())
            self.count.clear()
            self.closed.clear()
            self.errors.clear()
            self.durations.clear()
            if self._state.lanes is not None:
                clear_counters(self._state.lanes)

    def snapshot(self) -> PoolSnapshot:
        """Return an immutable, consistent snapshot of the pool."""
        with self.lock:
            state, count, base, durations = self._state, self.count, self._baseline, self.durations
            uses, busy = self._uses()  # before `lent`: a lease that ends in between must not count twice
            uses, busy = uses - base.uses, busy - base.busy
            # Not `in_use`, which includes what maintenance has just taken from the idle stack. A lease that ends at
            # this moment may be missing; a counter never decreases, so the most that was seen counts.
            self._acquired = acquired = max(self._acquired, uses + len(state.lent()) - base.lent)
            in_use, idle = state.in_use, len(state.idle)
            idle = min(idle, len(state.entries) - in_use)
            self.estimate_peak()
            timed_use, timed_use_total = durations.use.timed
            return PoolSnapshot(
                name=self.name,
                timestamp=self._clock.wall(),
                duration=self._clock.now() - base.since,
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
                wait=durations.wait.snapshot(acquired - durations.wait.timed[0]),
                use=durations.use.snapshot(uses - timed_use, busy - timed_use_total),
                create=durations.create.snapshot(),
                validate=durations.validate.snapshot(),
                release=durations.release.snapshot(uses - durations.release.timed[0]),
                lanes=None if state.lanes is None else lane_snapshots(state.lanes),
            )

    def buckets(self) -> dict[str, Buckets]:
        """Return the recorded durations by bucket: ``wait``, ``use`` and ``create``.

        The leases that `snapshot` counts beyond these waited for nothing, or were shorter than 0.1 ms.
        """
        durations = self.durations
        with self.lock:
            wait, use, create = durations.wait.buckets(), durations.use.buckets(), durations.create.buckets()
        return {"wait": wait, "use": use, "create": create}

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
        no_copy(self, "they belong to their pool; keep or send a snapshot() instead")

    def print_summary(self, file: IO[str] | None = None) -> None:
        """Print a summary, to standard output by default."""
        print(summary(self.snapshot()), file=file or sys.stdout)
