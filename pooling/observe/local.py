"""The figures of one process, and what it holds to record them."""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..core.runtime import registry
from ..core.runtime.fork import SAME_PROCESS, ensure_process
from ..core.runtime.immortal import keep_forever
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS, Reaper
from .figures import Figures, PoolsOf, Recorder, all_pools
from .slotfile import SlotFile

__all__ = ["PATIENCE", "Local", "Process", "Source", "Totals", "pause"]

PATIENCE = 5.0
"""Seconds that a reader waits for its turn."""


class Totals(NamedTuple):
    """The figures of one process or of all.

    Attributes:
        pools: By pool name, see `figures`.
        processes: How many processes they are from; those that have ended do not count.
    """

    pools: dict[str, Figures]
    processes: int


class Process:
    """What one process has open. A forked child gets another one: it must not use a lock or a file of its parent."""

    def __init__(self, pools: PoolsOf | None = None) -> None:
        self.lock = _thread.allocate_lock()  # native, under gevent too; never waited for, only tried
        self.recorder = Recorder(pools)
        self.active = False
        self.due = 0.0
        self.writing = False
        self.directory = -1
        self.retired: SlotFile | None = None
        self.file: SlotFile | None = None
        self.name = ""
        self.written: dict[str, Any] = {}
        self.epoch = 0

    @property
    def used(self) -> bool:
        """Whether a pool was used in this process."""
        if not self.active:
            self.active = any(ref.state.started or ref.state.entries for ref, _ in all_pools())
        return self.active

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
    def exclusive(self, process: Process, patience: float = PATIENCE) -> Iterator[None]:
        """Let the threads of this process take turns. Never blocks the hub of gevent."""
        deadline = time.monotonic() + patience
        while not process.lock.acquire(False):
            pause(deadline, "another thread of this process reads or writes them")
        try:
            yield
        finally:
            process.lock.release()

    def listen(self, reaper: Reaper, dropped: PoolRef | None) -> None:
        """Count a pool that was dropped. Called by the reaper."""
        process = self.process()
        if dropped is None or dropped.runtime not in registry.runtimes:
            return
        metrics = dropped.metrics
        if metrics is not None and not metrics.inner:
            with self.exclusive(process):
                process.recorder.end(metrics)


class Local(Source):
    """The figures of this process alone."""

    def read(self) -> Totals:
        """Return the figures of all pools of this process; peaks since the last call."""
        if self.listen not in LISTENERS:
            LISTENERS.append(self.listen)
        process = self.process()
        with self.exclusive(process):
            process.epoch += 1
            return Totals(process.recorder.sample(process.epoch - 1), 1)


def pause(deadline: float, why: str) -> None:
    """Wait a moment for a turn.

    Raises:
        TimeoutError: It is later than ``deadline``.
    """
    if time.monotonic() > deadline:
        raise TimeoutError(f"no turn to read or write the metrics: {why}")
    time.sleep(0.001)
