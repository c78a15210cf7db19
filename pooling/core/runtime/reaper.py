"""The one background thread of a process; it sweeps pools, see `Maintenance`.

It sleeps on its mailbox until a message arrives or a sweep is due, and ends
when no pool is left (P11). It refers to pools weakly. Messages are

- an `Entry` whose token is gone (put there by the entry itself),
- a `PoolRef` whose pool was garbage collected without `close` (likewise),
- a `SweepRequest`: sweep a pool, or anything else with a method `sweep`, at a
  certain time; the thread does not end while such another thing has a request,
  unless that is an `OptionalRef`,
- a job, as a tuple: a call that a destructor or a signal handler made while
  its thread held the pool's lock, or a worker's job during exit.

Assumes: ``SimpleQueue.put`` is re-entrant.
"""

from __future__ import annotations

import _thread
import heapq
import logging
import queue
import weakref
from collections.abc import Callable
from typing import Any

from ..._fields import fields
from ..adapter import Adapter
from ..clock import Clock
from ..entry import Entry
from .gevent import Life, call_in_hub, mark_native, put, start
from .poolref import PoolRef
from .workers import Job, Workers

__all__ = ["LISTENERS", "OptionalRef", "Reaper", "SweepRequest"]

logger = logging.getLogger("pooling")


LISTENERS: list[Callable[[Reaper, PoolRef | None], None]] = []
"""Each is called in a reaper's thread: with ``None`` when the thread begins, which is at the first use of a pool in a
process, and with the reference of a pool that was garbage collected, before its resources are forgotten."""


class SweepRequest:
    """A request to call ``pool().sweep(due, now)`` at a certain time: of a pool, or of something else that has it."""

    __slots__ = ("pool", "due")

    def __init__(self, pool: weakref.ref[Any], due: float) -> None:
        self.pool = pool
        self.due = due


class OptionalRef(weakref.ref):  # type: ignore[type-arg]
    """A reference to something that is swept only as long as the thread runs for pools."""

    __slots__ = ()


class Reaper:
    """One thread for all pools of one clock.

    Whether it runs is not recorded but observed: its `Life` exists as long as
    the thread does. `ensure` starts another thread if there is none, whatever
    happened to the last one: an exception may have interrupted its start, or
    ended it before it ran any code of this module. A surplus thread is
    harmless: a thread works only if it finds no other one when it starts.
    """

    def __init__(self, clock: Clock, pools: dict[int, PoolRef]) -> None:
        self._queue_class = queue.SimpleQueue  # looked up at each call: gevent replaces it
        self.inbox: Any = self._queue_class()
        self.drop = self.inbox.put  # the callback of every entry
        self._clock = clock
        self._pools = pools
        self._due: list[tuple[float, int, weakref.ref[Any]]] = []
        self._number = 0
        self.collect_after = 0.0
        self._lock: Any = _thread.RLock()  # native, under gevent too, as the pool's lock
        self._life: weakref.ref[Life] | None = None  # of the thread that runs or is about to start
        self._suspended = False
        self._stopped = False
        self.successor: Reaper | None = None  # has taken over; this thread only forwards messages

    def post(self, message: object) -> None:
        """Put a message into the mailbox, and make sure that the thread runs."""
        put(self.inbox, message)
        self.ensure()

    def ensure(self) -> None:
        """Start the thread if it does not run."""
        life = self._life
        if life is not None and life() is not None:  # as `_runs`, without the call: each borrower that waits comes here
            return
        if self._stopped or call_in_hub(self.inbox, self.ensure):
            return
        if self._lock._is_owned():
            return  # called by a handler that interrupted this thread while it starts the reaper
        try:
            with self._lock:
                if not self._runs():
                    self._start()
        except RuntimeError as error:
            if "shutdown" not in str(error):  # see `Workers`: not needed during exit
                logger.warning("no thread for the reaper yet: %s", error, extra=fields("no_thread", error=str(error)))

    def _runs(self) -> bool:
        """Whether the thread runs or is about to start."""
        life = self._life
        return life is not None and life() is not None

    def _start(self) -> None:
        life = Life()
        mark = weakref.ref(life)
        try:
            self._life = mark
            start(self._queue_class, self._run, (life,))
        except BaseException:
            if self._life is mark:  # a stored traceback would keep that `Life` alive
                self._life = None
            raise

    def suspend(self) -> None:
        """Let the thread end before a fork; see `resume`."""
        if self._runs():
            self._suspended = True
            self.inbox.put(None)

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._runs()

    def resume(self) -> None:
        """Start the thread again after `suspend`."""
        if self._suspended:
            self._suspended = False
            self.ensure()

    def stop(self) -> None:
        """Start no more threads, during exit. A running one continues."""
        self._stopped = True

    @property
    def started(self) -> bool:
        """Whether the thread, if there is one, has begun to run."""
        mark = self._life
        life = None if mark is None else mark()
        return life is None or life.started

    def do(self, job: Job) -> bool:
        """Run a worker's job in this thread; return ``False`` if the thread does not run."""
        if not self._runs():
            return False
        put(self.inbox, job)
        return True

    def _run(self, life: Life) -> None:
        life.started = True
        mark_native(self._queue_class)
        while self._take_over(life):
            self._notify(None)
            while self.successor is None and self._has_work():
                try:
                    self.step(True)
                except Exception:
                    logger.exception("the reaper failed; this is a bug in pooling", extra=fields("internal_error"))
                except BaseException:  # raised in this thread from outside; borrowers may wait for what it does
                    self._life = None
                    self.ensure()
                    raise
            if self.successor is not None:
                self._pass_on(self.successor)
            # A sender posts its message and then checks for the thread. So the
            # thread first marks itself as ended, and then checks for messages.
            self._life = None
            if not self._has_work():
                return

    def _notify(self, dropped: PoolRef | None) -> None:
        for listener in tuple(LISTENERS):  # one may be removed meanwhile
            try:
                listener(self, dropped)
            except Exception:
                logger.exception("a listener of the reaper failed", extra=fields("internal_error"))

    def _take_over(self, life: Life) -> bool:
        """Become the running thread, unless another one is."""
        with self._lock:
            mark = self._life
            other = None if mark is None else mark()
            if other is not None and other is not life:
                return False
            self._life = weakref.ref(life)
        return True

    def _has_work(self) -> bool:
        return not self._suspended and bool(self._pools or not self.inbox.empty() or self.has_other_requests())

    def has_other_requests(self) -> bool:
        """Whether something that is not a pool has a request for which the thread must run."""
        optional = (PoolRef, OptionalRef)
        return any(not isinstance(reference, optional) and reference() is not None for _, _, reference in self._due)

    def retire(self, successor: Reaper) -> None:
        """Forward everything: in a child, where a greenlet of the parent's reaper continues to run."""
        self.successor = successor

    def hand_off_to(self, successor: Reaper) -> None:
        """Hand all work to a greenlet; this thread, if it runs, stays and forwards messages.

        Entries and pools created before still use this inbox.
        """
        self.successor = successor
        if self._runs() or not self.inbox.empty():
            self.post(None)

    def _pass_on(self, successor: Reaper) -> None:
        for due, _, reference in self._due:
            successor.post(SweepRequest(reference, due))
        self._due.clear()
        while True:
            successor.post(self.inbox.get())

    def step(self, block: bool) -> bool:
        """Handle one message, if there is one, and all sweeps that are due; return whether there was any work.

        A separate method, so that its locals end: one of them would keep the last pool alive.
        """
        timeout = 0.0
        if block:
            timeout = max(0.0, self._due[0][0] - self._clock.now()) if self._due else None  # type: ignore[assignment]
        try:
            message = self._clock.get(self.inbox, timeout) if block else self.inbox.get(False)
        except queue.Empty:
            return self._sweep_due() > 0
        self._handle(message)
        del message
        self._sweep_due()
        return True

    def _handle(self, message: Any) -> None:
        if isinstance(message, SweepRequest):
            self._number += 1
            heapq.heappush(self._due, (message.due, self._number, message.pool))
        elif isinstance(message, Entry):
            reference = getattr(message, "pool", None)  # missing if an exception was raised while it was reserved
            pool = reference and reference()
            if pool is not None:
                pool.reclaim(message)
        elif isinstance(message, tuple):
            Workers.do(*message)
        elif message is not None:
            self._close_dropped_pool(message)

    def _sweep_due(self) -> int:
        swept = 0
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            due, _, reference = self._due[0]
            pool = reference()
            try:
                swept += pool is not None and pool.sweep(due, now)
            except Exception:
                heapq.heappop(self._due)
                raise
            heapq.heappop(self._due)  # last: an interruption loses no request
        return swept

    def _close_dropped_pool(self, reference: PoolRef) -> None:
        """Close the resources of a pool that was garbage collected without `close`."""
        self._pools.pop(id(reference), None)
        self._notify(reference)
        # None is lent: a lease would have kept the pool alive.
        for entry in list(reference.state.entries):
            if entry.resource is not None:
                reference.runtime.workers.submit(_close_quietly, reference.adapter, entry)
        reference.state.entries.clear()


def _close_quietly(adapter: Adapter[Any], entry: Entry) -> None:
    try:
        adapter.close(entry.resource)
    except Exception:
        extra = fields("hook_failed", hook="close")
        logger.debug("close() failed for a pool that was dropped", exc_info=True, extra=extra)
