"""Daemon threads for slow work: made on demand, gone when idle.

A borrower blocks on the pool and on nothing else (P4), so what can hang
(making, validating, resetting, closing) runs here.

Threads are started with ``_thread.start_new_thread``, never with
``Thread.start()``: that waits without bound for the child's first steps, and
an exception aimed at the borrower can strike there and leave it hanging.
They are daemons: no exit of the process waits for them (P10).
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable
from typing import Any

from .threads import call_home, mark_native, start

__all__ = ["Workers"]

logger = logging.getLogger("pooling")

_LINGER = 2.0  # seconds an idle worker stays

_Job = tuple[Callable[..., object], tuple[Any, ...]]


class Workers:
    """Runs each job as soon as possible in a thread of its own.

    There is no upper bound but the pools': an entry has one job at a time. A
    job is always in somebody's hands, so that one that is lost (its thread
    died at birth, an exception struck the borrower that submitted it) drops
    the key that it carries, and the reaper takes care of the slot (P8).
    """

    def __init__(self) -> None:
        self._parked: deque[Any] = deque()  # the boxes of idle workers; the last one parked first
        self._backlog: deque[_Job] = deque()  # what no thread could be started for
        self._world = queue.SimpleQueue  # looked up late: gevent replaces it
        self._home: Any = self._world()  # tells a hub's own thread from others

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        """Run ``function(*args)`` soon, in another thread.

        Where no thread can be started the job waits for `nudge`, or for a
        worker that has time.
        """
        job = (function, args)
        if not call_home(self._home, self._hand_over, job):
            self._hand_over(job)

    def nudge(self) -> None:
        """Try again to start threads for what is left over."""
        while self._backlog:
            try:
                job = self._backlog.popleft()
            except IndexError:
                return
            if not self._hand_over(job):
                return

    def _hand_over(self, job: _Job) -> bool:
        try:
            box = self._parked.pop()
        except IndexError:
            return self._start(job)
        box.put(job)
        return True

    def _start(self, job: _Job) -> bool:
        # In a box: a thread's arguments live as long as the thread does, and
        # would keep the job's key from being missed.
        box: queue.SimpleQueue[_Job] = self._world()
        box.put(job)
        try:
            start(self._world, self._run, (box,))
        except RuntimeError as error:  # "can't start new thread"
            self._backlog.append(job)
            logger.warning("no thread for the pool's work yet: %s", error)
            return False
        return True

    def _run(self, box: queue.SimpleQueue[_Job]) -> None:
        mark_native(self._world)
        job: _Job | None = box.get()
        while job is not None:
            self._do(*job)
            job = None  # what it carried must not linger here
            job = self._next(box)

    def _next(self, box: queue.SimpleQueue[_Job]) -> _Job | None:
        """Wait for a job; ``None`` says that there was nothing to do for a while."""
        try:
            return self._backlog.popleft()
        except IndexError:
            self._parked.append(box)
        try:
            return box.get(True, _LINGER)
        except queue.Empty:
            pass
        try:
            self._parked.remove(box)
        except ValueError:  # somebody has our box in his hand
            try:
                return box.get(True, _LINGER)
            except queue.Empty:  # and was interrupted
                pass
        return None

    @staticmethod
    def _do(function: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            function(*args)
        except BaseException:
            logger.exception("a worker's job failed; this is a bug in pooling")
