"""The figures of one process, and what it holds to record them.

A `Record` is what one process records, by key, as it is stored in its file: ``pid``; ``time``, when it was sampled;
``pools``, see `figures`; ``process``, its command and what it uses; ``minutes``, see `minutes`; ``errors``, the last
one of each pool with its time; and ``events``, see `Incident`.
"""

from __future__ import annotations

import _thread
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..core.clock import SYSTEM
from ..core.managed import ManagedPool
from ..core.runtime import registry
from ..core.runtime.fork import SAME_PROCESS, ensure_process
from ..core.runtime.immortal import keep_forever
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS, Reaper, SweepRequest
from .archive import Archive
from .figures import Figures, PoolsOf, Recorder, all_pools
from .incidents import Incidents, Listener
from .minutes import Book, MinuteLog, compact
from .process import command
from .process import read as read_process
from .slotfile import SlotFile

__all__ = [
    "INTERVAL", "MOST_EVENTS", "PATIENCE", "Local", "LocalHistory", "Past", "Process", "Record", "Source", "Totals",
    "pause",
]  # fmt: skip

Record = dict[str, Any]

INTERVAL = 1.0
"""Seconds between two samples of a process."""

MOST_EVENTS = 50
"""Incidents that one process records."""

_HOUR = 3660.0  # seconds of minutes that a process keeps that shares them with no other

PATIENCE = 5.0
"""Seconds that a reader or writer waits for its turn; only a disk that hangs makes it wait that long."""


class Totals(NamedTuple):
    """The figures of one process or of all.

    Attributes:
        pools: By pool name, see `figures`.
        processes: How many processes they are from; those that have ended do not count.
    """

    pools: dict[str, Figures]
    processes: int


class Past(NamedTuple):
    """What is known of processes that have ended, and of the earlier time of the others.

    Attributes:
        book: The minutes.
        events: The incidents, as dicts, with the ``pid``.
    """

    book: Book
    events: list[dict[str, Any]]


class Process:
    """What one process has open. A forked child gets another one: it must not use a lock or a file of its parent."""

    def __init__(self, pools: PoolsOf | None = None) -> None:
        self.pid = os.getpid()
        self.lock = _thread.allocate_lock()  # native, under gevent too; never waited for, only tried
        self.recorder = Recorder(pools)
        self.log = MinuteLog()
        self.incidents = Incidents(time.time, MOST_EVENTS)
        self.active = False
        self.attached = False  # see `attach`
        self.skips = False  # the minutes begin later than the counters
        self.due = 0.0
        self.writing = False
        self.directory = -1
        self.retired: SlotFile | None = None
        self.file: SlotFile | None = None
        self.name = ""
        self.written: dict[str, Any] = {}
        self.archive: Archive | None = None  # as it was read last
        self.epoch = 0

    @property
    def used(self) -> bool:
        """Whether a pool was used in this process."""
        if not self.active:
            self.active = any(ref.state.started or ref.state.entries for ref, _ in all_pools())
        return self.active

    def sample(self, epoch: int = 0) -> tuple[dict[str, Figures], bool]:
        """Return the figures of now, and whether a minute has ended. Peaks are those since ``epoch`` changed."""
        pools = self.recorder.sample(epoch)
        if self.skips:
            self.log.skip(pools)
            self.skips = False
        ended = self.log.note(pools, time.time())
        for name, figures in pools.items():
            figures.pop("recent", None)
            gauges = figures.get("gauges", {})
            self.incidents.sustain(name, "exhausted", bool(gauges.get("exhausted") and gauges.get("pending")))
            self.incidents.sustain(name, "outage", bool(gauges.get("down")), figures.get("error", ""))
        return pools, ended

    def details(self) -> Record:
        """Return what a record has beside the figures of the pools."""
        now, reading = time.time(), read_process()
        self.log.note_process(reading, now)
        return {
            "process": {
                "command": command(), "cpu_seconds": round(reading.cpu_seconds, 3), "memory": reading.rss,
                "threads": reading.threads, "descriptors": reading.descriptors, "started": round(reading.started, 2),
            },
            "minutes": self.log.to_dict(),
            "errors": {name: list(one) for name, one in self.incidents.errors.items()},
            "events": self.incidents.since(0.0, now),
        }  # fmt: skip

    @property
    def joined(self) -> bool:
        """Whether this process has a file."""
        return self.file is not None and self.file.linked

    def close(self) -> None:
        """Close all files."""
        for file in (self.file, self.retired):
            if file is not None:
                file.close()
        if self.directory >= 0:
            os.close(self.directory)
        self.directory, self.file, self.retired = -1, None, None


class Source:
    """Where totals come from. One object serves a process and all its forked children.

    Args:
        pools: As for `Recorder`.
    """

    def __init__(self, pools: PoolsOf | None = None) -> None:
        self._pools = pools
        self.processes: dict[int, Process] = {}  # by process id: this one's, or its parent's
        self._locks: dict[int, Any] = {}  # by process id: never one that a thread of the parent held
        self._observed: dict[int, tuple[weakref.ref[Any], Listener]] = {}  # by the id of the pool
        self.reference: Any = self._itself
        """Refers to this in the reaper; an `OptionalRef` lets the reaper end meanwhile."""

    def process(self) -> Process:
        """Return what this process has open."""
        if not SAME_PROCESS[0]:
            ensure_process()  # forked in C, and no pool was used since
        pid = os.getpid()
        found = self.processes.get(pid)
        return self._begin(pid) if found is None else found

    def _begin(self, pid: int) -> Process:
        with self._locks.setdefault(pid, _thread.RLock()):
            if pid not in self.processes:
                # Before this process has a lock on these files, which it would lose. The parent keeps its own.
                for inherited in self.processes.values():
                    inherited.close()
                    keep_forever(inherited)  # it refers to resources of the parent
                self.processes = {pid: Process(self._pools)}
                self._locks = {pid: self._locks[pid]}
            return self.processes[pid]

    @contextmanager
    def exclusive(self, process: Process) -> Iterator[None]:
        """Let the threads of this process take turns. Never blocks the hub of gevent."""
        deadline = time.monotonic() + PATIENCE
        while not process.lock.acquire(False):
            pause(deadline, "another thread of this process reads or writes them")
        try:
            yield
        finally:
            process.lock.release()

    # -- samples, about once a second ------------------------------------------------

    def begin(self, reaper: Reaper) -> None:
        """Call `step` about once a second from now on, as long as this reaper runs."""
        process = self.process()
        process.active = True
        process.due = SYSTEM.now()
        reaper.inbox.put(SweepRequest(self.reference, process.due))

    def _itself(self) -> Source:
        return self

    def sweep(self, due: float, now: float) -> bool:
        """Take a step on a worker thread, and schedule the next one. Called by the reaper."""
        process = self.process()
        if due != process.due:
            return False  # requested by a reaper that ended since
        runtime = registry.runtime_of(SYSTEM)
        process.due = now + INTERVAL
        runtime.reaper.post(SweepRequest(self.reference, process.due))
        if not process.writing:  # else the disk hangs
            process.writing = True
            runtime.workers.submit(self._step_on_worker, process)
        return True

    def _step_on_worker(self, process: Process) -> None:
        try:
            self.step()
        finally:
            process.writing = False

    def step(self) -> None:
        """Take a sample, and do with it what is to be done."""
        raise NotImplementedError

    def observe(self) -> None:
        """Note incidents of all pools of this process from now on."""
        for ref, metrics in all_pools():
            engine = getattr(ref(), "engine", None)
            pool = None if engine is None or engine.owner is None else engine.owner()
            known = self._observed.get(id(pool))
            if (known is None or known[0]() is not pool) and isinstance(pool, ManagedPool):
                listener = Listener(metrics.name, self._incidents)
                self._observed[id(pool)] = weakref.ref(pool), listener
                pool.add_observer(listener)
        for number, (reference, _) in list(self._observed.items()):
            if reference() is None:
                self._observed.pop(number, None)

    def observe_no_more(self) -> None:
        """Remove the observers from the pools."""
        while self._observed:
            reference, listener = self._observed.popitem()[1]
            pool = reference()
            if pool is not None:
                pool.remove_observer(listener)

    def _incidents(self) -> Incidents:
        return self.process().incidents

    # -- pools that are dropped ------------------------------------------------------

    def listen(self, reaper: Reaper, dropped: PoolRef | None) -> None:
        """Count a pool that was dropped. Called by the reaper."""
        process = self.process()
        if dropped is None or dropped.runtime not in registry.runtimes:
            return
        metrics = dropped.metrics
        if metrics is not None and not metrics.inner:
            process.recorder.drop(metrics)
            if process.lock.acquire(False):  # else the thread that has it takes a sample, or another one does later
                try:
                    process.recorder.count_dropped()
                finally:
                    process.lock.release()


class Local(Source):
    """The figures of this process alone."""

    def read(self) -> Totals:
        """Return the figures of all pools of this process; peaks since the last call."""
        if self.listen not in LISTENERS:
            LISTENERS.append(self.listen)
        process = self.process()
        with self.exclusive(process):
            process.epoch += 1
            pools = process.recorder.sample(process.epoch - 1)
            for figures in pools.values():
                figures.pop("recent", None)
            return Totals(pools, 1)


class LocalHistory(Source):
    """The figures of this process alone, with the minutes of the last hour and what happened."""

    def __init__(self) -> None:
        super().__init__()
        self.process().skips = True
        self.step()  # what comes after it is counted
        LISTENERS.append(self.listen)
        for runtime in registry.runtimes:
            if not runtime.current_reaper.ended:
                self.begin(runtime.current_reaper)

    def listen(self, reaper: Reaper, dropped: PoolRef | None) -> None:
        """Begin to take samples, or count a pool that was dropped. Called by the reaper."""
        super().listen(reaper, dropped)
        if dropped is None and reaper in (runtime.current_reaper for runtime in registry.runtimes):
            self.begin(reaper)

    def step(self) -> None:
        """Take a sample."""
        process = self.process()
        with self.exclusive(process):
            self._step(process)

    def _step(self, process: Process) -> tuple[dict[str, Figures], Record]:
        self.observe()
        pools, ended = process.sample()
        details = process.details()
        if ended:
            process.log.book = compact(process.log.book, time.time(), _HOUR)
        return pools, details

    def all_records(self) -> tuple[dict[str, Record], Past]:
        """Return the record of this process, by its name, and the past of the others, of which there is none."""
        process = self.process()
        with self.exclusive(process):
            now = time.time()
            pools, details = self._step(process)
        return {"": {"pid": os.getpid(), "time": now, "pools": pools, **details}}, Past({}, [])


def pause(deadline: float, why: str) -> None:
    """Wait a moment for a turn.

    Raises:
        TimeoutError: It is later than ``deadline``.
    """
    if time.monotonic() > deadline:
        raise TimeoutError(f"no turn to read or write the metrics: {why}")
    time.sleep(0.001)
