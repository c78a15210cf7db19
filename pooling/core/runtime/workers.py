"""Daemon threads for slow work: started on demand, ended when idle.

A borrower blocks on the pool and on nothing else (P4), so work that can hang
(create, validate, reset, close) runs here.

Threads are started with ``_thread.start_new_thread``, never with
``Thread.start()``, which waits without a limit until the new thread runs: an
exception raised in the borrower at that point could leave it hanging. They are
daemons, so the exit of the process does not wait for them (P10). During exit,
when no thread can be started, work is done without one.
"""

from __future__ import annotations

import _thread
import logging
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..._fields import fields
from .gevent import Life, Weak, call_in_hub, mark_native, start

__all__ = ["Job", "Workers"]

logger = logging.getLogger("pooling")

LINGER = 2.0
"""Seconds that an idle thread waits for another job. Internal; read at each wait."""

Job = tuple[Callable[..., object], tuple[Any, ...]]


class Workers:
    """Runs each job as soon as possible in its own thread.

    The number of threads is limited only by the pools: an entry has one job at
    a time. A job is referred to only by the thread that handles it. If it is
    lost (its thread died at the start, or an exception was raised in the
    borrower that submitted it), its token is dropped with it, and the reaper
    recovers the slot (P8).
    """

    run_at_exit: Callable[[Job], bool]  # the reaper's `do`, for jobs while the process exits

    def __init__(self) -> None:
        # Of the threads that run or are about to start; each removes itself.
        self._lives: set[Weak] = set()
        self._suspended = False
        self._stopped = False
        self._parked: deque[Any] = deque()  # the boxes of idle workers; the last one parked first
        self._backlog: deque[Job] = deque()  # jobs that no thread could be started for
        self.queue_class: Any = queue.SimpleQueue  # looked up at each call: gevent replaces it
        self._hub_box: Any = self.queue_class()  # tells the thread of a gevent hub from others

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        """Run ``function(*args)`` soon, in another thread.

        If no thread can be started, the job waits for `nudge`, or for a worker
        that becomes idle.
        """
        job = (function, args)
        if not call_in_hub(self._hub_box, self._hand_over, job):
            self._hand_over(job)

    def nudge(self) -> None:
        """Try again to start threads for the backlog."""
        while self._backlog:
            try:
                job = self._backlog.popleft()
            except IndexError:
                return
            if not self._hand_over(job):
                return

    def suspend(self) -> None:
        """End idle threads now, and busy ones after their job; see `resume`."""
        self._suspended = True
        while self._parked:
            try:
                self._parked.pop().put(None)
            except IndexError:
                return

    @property
    def ended(self) -> bool:
        """Whether all threads have ended."""
        return not self._lives

    def resume(self) -> None:
        """Keep idle threads again after `suspend`."""
        self._suspended = False
        self.nudge()

    def stop(self) -> None:
        """Start no more threads, during exit."""
        self._stopped = True

    @property
    def idle(self) -> int:
        """How many threads wait for a job. Internal."""
        return len(self._parked)

    @property
    def started(self) -> bool:
        """Whether all started threads have begun to run."""
        lives = [reference() for reference in self._lives.copy()]
        return all(life is None or life.started for life in lives)

    def _hand_over(self, job: Job) -> bool:
        if self._stopped:
            return self._do_without_thread(job)
        try:
            box = self._parked.pop()
        except IndexError:
            return self._start(job)
        box.put(job)
        return True

    def _start(self, job: Job) -> bool:
        # In a box, because a thread's arguments live as long as the thread, and
        # would keep the token of a lost job alive.
        box: queue.SimpleQueue[Job] = self.queue_class()
        box.put(job)
        life = Life()
        try:
            self._lives.add(Weak(life, self._lives.discard))
            start(self.queue_class, self._run, (life, box))
        except RuntimeError as error:  # "can't start new thread"
            if "shutdown" in str(error):  # CPython 3.12+: not once the main thread has ended
                return self._do_without_thread(job)
            self._backlog.append(job)
            logger.warning("no thread for the pool's work yet: %s", error, extra=fields("no_thread", error=str(error)))
            return False
        finally:
            del life  # a stored traceback would keep it alive
        return True

    def _do_without_thread(self, job: Job) -> bool:
        """Run a job during exit.

        A job submitted by an `atexit` handler must not hang the exit, so the
        reaper runs it, if that still runs. Other threads, which may outlive the
        main thread by hours, run their jobs themselves, and the reaper enforces
        the time limits.
        """
        main = threading.main_thread().ident == _thread.get_ident()
        if sys.is_finalizing() or not main or not self.run_at_exit(job):
            self.do(*job)
        return True

    def _run(self, life: Life, box: queue.SimpleQueue[Job]) -> None:
        life.started = True
        mark_native(self.queue_class)
        try:
            job: Job | None = box.get()
            while job is not None:
                self.do(*job)
                job = None  # its arguments must not stay alive here
                job = self._next(box)
        except BaseException:  # raised in this thread from outside: it takes no more jobs
            with suppress(ValueError):
                self._parked.remove(box)
            if not box.empty():
                self._hand_over(box.get(False))
            raise

    def _next(self, box: queue.SimpleQueue[Job]) -> Job | None:
        """Wait for a job; return ``None`` if none came for a while."""
        try:
            return self._backlog.popleft()
        except IndexError:
            self._parked.append(box)
        try:
            return box.get(True, 0.0 if self._suspended else LINGER)
        except queue.Empty:
            pass
        try:
            self._parked.remove(box)
        except ValueError:  # another thread has just removed our box, to put a job into it
            try:
                return box.get(True, LINGER)
            except queue.Empty:  # it was interrupted
                pass
        return None

    @staticmethod
    def do(function: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Run a job in this thread, and log what it raises. Internal."""
        try:
            function(*args)
        except BaseException:
            logger.exception("a worker's job failed; this is a bug in pooling", extra=fields("internal_error"))
