"""`Sampler`: the samples and the history of a monitor in one process."""

from __future__ import annotations

import _thread
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

from .._fields import fields
from .._members import member_of
from ..core.clock import Clock
from ..core.managed import ManagedPool
from ..core.report.messages import format_error
from ..core.runtime import registry
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS, Reaper
from . import process, reading
from .history import Minute, ProcessMinute, Series
from .incidents import Incidents, Listener
from .sources import OfProcess, Source

__all__ = ["MOST_SERIES", "Sampler"]

logger = logging.getLogger("pooling")

MOST_SERIES = 100
"""Pools that are observed at a time, those included that are gone but have a history."""

_KEPT_SETTINGS = (
    "min_size", "max_size", "max_idle", "acquire_timeout", "idle_timeout", "keepalive_interval", "leak_timeout",
    "max_lifetime", "adaptive",
)  # fmt: skip


class Watch:
    """A pool that is observed: weakly, with the reading before.

    Attributes:
        pool: The pool, weakly.
        metrics: Its metrics, weakly; returns ``None`` for a foreign pool.
        series: Its history.
        listener: Its observer; ``None`` for a foreign pool, and for a part of another pool, which has one.
        reading, at: The last reading, and its time.
        closed: The last reading was made after the pool had been closed.
    """

    def __init__(self, pool: Any, series: Series, listener: Listener | None) -> None:
        self.pool: weakref.ref[Any] = weakref.ref(pool)
        self.metrics: Callable[[], Any] = weakref.ref(pool.metrics) if isinstance(pool, ManagedPool) else _nothing
        self.series = series
        self.listener = listener
        self.reading: reading.Reading | None = None
        self.at = 0.0
        self.closed = False

    def listen(self, wanted: bool) -> None:
        """Add the observer to the pool, or remove it; takes the pool's lock, and may run foreign code."""
        pool = self.pool()
        if pool is not None and self.listener is not None:
            (pool.add_observer if wanted else pool.remove_observer)(self.listener)


def _nothing() -> None:
    """Stand in for the reference of metrics."""


def _listen_for(sampler: Sampler) -> None:
    """Tell a sampler of dropped pools, as long as it exists."""

    def listen(reaper: Reaper, dropped: PoolRef | None) -> None:
        found = reference()
        if found is not None and dropped is not None:
            found.drop(dropped)

    def forget(reference: weakref.ref[Sampler]) -> None:
        if listen in LISTENERS:
            LISTENERS.remove(listen)

    reference = weakref.ref(sampler, forget)
    LISTENERS.append(listen)


class Sampler:
    """Takes the samples of one monitor in one process, and keeps their history.

    A forked child makes another one: it never uses the lock of this one.

    Args:
        source: Where the pools come from.
        clock: The source of time.
        retention: Seconds for which the history is kept.
        incidents_of: For listeners: returns the incidents of the process that they are in.
        forked: This is a forked child, in which pools of this library begin with zeros.
    """

    def __init__(
        self,
        source: Source,
        clock: Clock,
        retention: float,
        incidents_of: Callable[[], Incidents | None],
        forked: bool,
    ) -> None:
        self.lock: Any = _thread.RLock()  # native under gevent, too: nothing waits or switches while it is held
        self.since, self.since_wall = clock.now(), clock.wall()
        self.incidents = Incidents(clock.wall)
        self.due = float("-inf")  # of the next sweep
        self._source, self._clock, self._retention = source, clock, retention
        self._incidents_of, self._forked = incidents_of, forked
        # All below: guarded by the lock.
        self.samples = 0
        self.series: dict[str, Series] = {}
        self.process = Series("process", "process", ProcessMinute, retention)
        self.process_reading: process.ProcessReading | None = None
        self._watches: dict[int, Watch] = {}
        self._coming: list[Watch] = []  # whose observers are to be added
        self._leaving: list[Watch] = []  # whose observers are to be removed
        self._complained: set[str] = set()
        self._sampled_at = self.since
        self._ended = False
        self._process = os.getpid()
        _listen_for(self)

    def sample(self) -> None:
        """Take a sample now."""
        with self.lock:
            now, wall = self._clock.now(), self._clock.wall()
            self._sample_process(now, wall)
            for watch in self._find():
                self._sample_pool(watch, now, wall)
            self._sampled_at = now
            self.samples += 1
            coming, leaving, self._coming, self._leaving = self._coming, self._leaving, [], []
        for watch in leaving:
            watch.listen(False)
        for watch in coming:
            watch.listen(True)

    def take_watches(self) -> list[Watch]:
        """Forget which pools are observed and return them, so that their observers can be removed; without the lock."""
        self._ended = True
        watches = list(self._watches.values())
        self._watches.clear()
        return watches

    def drop(self, dropped: PoolRef) -> None:
        """Note what a pool has counted since the last sample: it was garbage collected. Called by the reaper.

        Of an HTTP pool, and of queries, that is no longer known.
        """
        metrics = dropped.metrics
        if self._process != os.getpid() or dropped.runtime not in registry.runtimes or metrics is None or metrics.inner:
            return
        with self.lock:
            if self._ended or not self.samples:  # switched off
                return
            now, wall, after = self._clock.now(), self._clock.wall(), reading.read_metrics(metrics)
            watch = next((one for one in self._watches.values() if one.metrics() is metrics), None)
            if watch is None:
                series, before, seconds = self._series_of_brief(metrics.name, after, now), None, after.duration
            else:
                series = None if watch.closed else watch.series  # closed: nothing came after its last reading
                before, seconds = watch.reading, now - watch.at
                self._watches = {number: one for number, one in self._watches.items() if one is not watch}
            if series is not None:
                reading.note(series, before, after, seconds, wall)
                series.state = "closed" if dropped.state.closed else "dropped"

    @property
    def observed(self) -> int:
        """How many pools are observed now."""
        return len(self._watches)

    def named(self) -> dict[str, Any]:
        """Return the pools that exist now by the labels of their histories; pools of one name are told apart."""
        found: dict[str, Any] = {}
        with self.lock:
            for name, pool in self._source.pools():
                watch, label, number = self._watches.get(id(pool)), name, 1
                if watch is not None and not watch.closed:
                    label = watch.series.label
                while label in found:
                    number += 1
                    label = f"{name} ({number})"
                found[label] = pool
        return found

    # -- with the lock ------------------------------------------------------------

    def _sample_process(self, now: float, wall: float) -> None:
        try:
            after = process.read()
        except Exception as error:  # psutil reads what the system shows, and a sandbox may hide it
            self._complain("the process", error)
            return
        process.note(self.process.at(wall), self.process_reading, after, now - self._sampled_at)
        self.process_reading = after

    def _find(self) -> list[Watch]:
        """Return the pools that are observed: new ones get a series, and those that are gone are marked."""
        wanted: dict[int, tuple[str, Any, bool]] = {}
        for label, pool in self._source.pools():
            wanted[id(pool)] = (label, pool, False)
            readers = getattr(pool, "readers", None)  # of a SQLite pool: a pool of its own
            if isinstance(readers, ManagedPool):
                wanted[id(readers)] = (f"{label}-readers", readers, True)
        for number, watch in list(self._watches.items()):
            pool = watch.pool()
            if pool is None or number not in wanted:
                self._watches.pop(number)
                self._leaving.append(watch)
                if not watch.closed:
                    watch.series.state = "dropped" if pool is None else "closed"
        found = (self._watches.get(number) or self._watch(*one) for number, one in wanted.items())
        return [watch for watch in found if watch is not None]

    def _watch(self, name: str, pool: Any, part: bool) -> Watch | None:
        """Begin to observe a pool; ``None`` if it is closed, or there are too many."""
        if getattr(pool, "closed", False) is True:
            return None
        series = self._series(name, type(pool).__name__)
        if series is None:
            return None
        listener = Listener(series.label, self._incidents_of) if isinstance(pool, ManagedPool) and not part else None
        watch = self._watches[id(pool)] = Watch(pool, series, listener)
        self._coming.append(watch)
        return watch

    def _series(self, name: str, kind: str) -> Series | None:
        """Return the history of a pool that is new; ``None`` if there are too many."""
        live = {watch.series.label for watch in self._watches.values() if not watch.closed}
        label, number = name, 1
        while label in live:  # pools of one name
            number += 1
            label = f"{name} ({number})"
        if label not in self.series and not self._make_room(live):
            return None
        series = self.series.setdefault(label, Series(label, kind, Minute, self._retention))
        series.kind, series.state = kind, "open"
        return series

    def _series_of_brief(self, name: str, found: reading.Reading, now: float) -> Series | None:
        """Return a history for a pool that was made, used and dropped since the last sample; ``None`` for others."""
        wanted = isinstance(self._source, OfProcess) and any(found.counts) and self._is_new(found, now)
        return self._series(name, "Pool") if wanted else None

    def _is_new(self, found: reading.Reading, now: float) -> bool:
        """Whether a pool was made since the last sample, or began anew after a fork: all that it counts is new."""
        return found.duration <= now - self._sampled_at + 1e-6 if self.samples else self._forked

    def _make_room(self, live: set[str]) -> bool:
        """Forget the oldest history of a pool that is gone, if there are too many."""
        if len(self.series) < MOST_SERIES:
            return True
        gone = [one for one in self.series.values() if one.label not in live]
        if not gone:
            self._complain("another pool", ValueError(f"at most {MOST_SERIES} are observed at a time"))
            return False
        self.series.pop(min(gone, key=lambda one: one.last).label)
        return True

    def _sample_pool(self, watch: Watch, now: float, wall: float) -> None:
        pool = watch.pool()
        if pool is None or watch.closed:
            return
        ours = isinstance(pool, ManagedPool)
        try:
            if ours:
                after = reading.read(pool)
                watch.series.settings = {name: getattr(pool.settings, name) for name in _KEPT_SETTINGS}
            else:
                after = reading.read_foreign(member_of(pool).metrics(), now - self.since)
        except Exception as error:
            self._complain(watch.series.label, error)
            return
        before, seconds = watch.reading, now - watch.at
        if before is None:
            seconds = after.duration
            if not ours or not self._is_new(after, now):
                before, seconds = after, 0.0
        reading.note(watch.series, before, after, seconds, wall)
        watch.reading, watch.at = after, now
        if getattr(pool, "closed", False) is True:
            watch.closed, watch.series.state = True, "closed"

    def _complain(self, about: str, error: Exception) -> None:
        if about not in self._complained:
            self._complained.add(about)
            why = format_error(error)
            logger.warning(
                "monitor: %s cannot be observed: %s", about, why, extra=fields("not_observed", target=about, error=why)
            )
