"""Daemon threads for slow work: made on demand, gone when idle.

A borrower blocks on the pool and on nothing else (P4), so what can hang
(making, validating, resetting, closing) runs here.

Threads are started with ``_thread.start_new_thread``, never with
``Thread.start()``: that waits without bound for the child's first steps, and
an exception aimed at the borrower can strike there and leave it hanging.
They are daemons: no exit of the process waits for them (P10).
"""

from __future__ import annotations

import _thread
import logging
import queue
from collections import deque
from typing import Any, Callable

__all__ = ["Workers"]

logger = logging.getLogger("pooling")

_LINGER = 2.0  # seconds an idle worker stays


class Workers:
    """Runs each job as soon as possible in a thread of its own.

    There is no upper bound but the pools': an entry has one job at a time.
    """

    def __init__(self) -> None:
        self._jobs: Any = queue.SimpleQueue()  # looked up late: gevent replaces it
        self._parked: deque[None] = deque()  # one token for each idle worker

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        """Run ``function(*args)`` soon, in another thread.

        Where no thread can be started the job stays queued, and `nudge` or
        the next worker takes it.
        """
        self._jobs.put((function, args))  # first the job, then the hand for it
        try:
            self._parked.pop()
        except IndexError:
            self.nudge()

    def nudge(self) -> None:
        """See to it that what is queued has a worker."""
        if not self._jobs.empty():
            try:
                _thread.start_new_thread(self._run, ())
            except RuntimeError as error:  # "can't start new thread"
                logger.warning("no thread for the pool's work yet: %s", error)

    def _run(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        try:
            job = self._jobs.get(False)
        except queue.Empty:
            self._parked.append(None)
            try:
                job = self._jobs.get(True, _LINGER)
            except queue.Empty:
                return self._unpark()
        self._do(*job)
        return True

    def _unpark(self) -> bool:
        """Take one token back before leaving; none left means that a job is on its way."""
        try:
            self._parked.pop()
        except IndexError:
            return True
        return not self._jobs.empty()

    @staticmethod
    def _do(function: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            function(*args)
        except BaseException:
            logger.exception("a worker's job failed; this is a bug in pooling")
