"""`Sampler`: the samples and the history of a monitor in one process."""

from __future__ import annotations

import _thread
import logging
import weakref
from collections.abc import Callable
from typing import Any

from .._fields import fields
from .._members import member_of
from ..core.clock import Clock
from ..core.managed import ManagedPool
from ..core.report.messages import format_error
from . import process, reading
from .history import Minute, ProcessMinute, Series
from .incidents import Incidents, Listener
from .sources import Source

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
        series: Its history.
        listener: Its observer; ``None`` for a foreign pool, and for a part of another pool, which has one.
        reading, at: The last reading, and its time.
        closed: The last reading was made after the pool had been closed.
    """

    def __init__(self, pool: Any, series: Series, listener: Listener | None) -> None:
        self.pool: weakref.ref[Any] = weakref.ref(pool)
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
        watches = list(self._watches.values())
        self._watches.clear()
        return watches

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
        if getattr(pool, "closed", False):
            return None
        live = {watch.series.label for watch in self._watches.values() if not watch.closed}
        label, number = name, 1
        while label in live:  # pools of one name
            number += 1
            label = f"{name} ({number})"
        if label not in self.series and not self._make_room(live):
            return None
        series = self.series.setdefault(label, Series(label, type(pool).__name__, Minute, self._retention))
        series.kind, series.state = type(pool).__name__, "open"
        listener = Listener(label, self._incidents_of) if isinstance(pool, ManagedPool) and not part else None
        watch = self._watches[id(pool)] = Watch(pool, series, listener)
        self._coming.append(watch)
        return watch

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
            # A pool that was made since the last sample, or that began anew after a fork: all that it counts is new.
            seconds = after.duration
            new = seconds <= now - self._sampled_at + 1e-6 if self.samples else self._forked
            if not new or not ours:
                before, seconds = after, 0.0
        reading.note(watch.series, before, after, seconds, wall)
        watch.reading, watch.at = after, now
        if getattr(pool, "closed", False):
            watch.closed, watch.series.state = True, "closed"

    def _complain(self, about: str, error: Exception) -> None:
        if about not in self._complained:
            self._complained.add(about)
            why = format_error(error)
            logger.warning(
                "monitor: %s cannot be observed: %s", about, why, extra=fields("not_observed", target=about, error=why)
            )
