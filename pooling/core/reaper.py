"""The one background thread of a process; `sweep` is what it does to a pool when something is due.

It sleeps on its mailbox until a message comes or something is due, and ends
when no pool is left (P11). It holds pools weakly and is a client of their
verbs. Into the mailbox go

- an `Entry` whose key nobody holds any more (put there by the entry itself),
- a `PoolRef` whose pool was collected without `close` (likewise),
- a `Look`: come and see at that time,
- a `Call`: what a destructor or a signal handler wanted of a pool whose lock
  its own thread held at that moment,
- a job of the workers', as a tuple, when the process exits.

Assumes: ``SimpleQueue.put`` is re-entrant.
"""

from __future__ import annotations

import _thread
import heapq
import logging
import queue
import weakref
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from .adapter import Adapter
from .clock import Clock
from .entry import Entry
from .sweep import AUDIT, sweep
from .threads import Life, call_home, hand, mark_native, start
from .workers import Job, Workers

if TYPE_CHECKING:
    from .registry import PoolRef

__all__ = ["Call", "Look", "Reaper"]

logger = logging.getLogger("pooling")


class Look:
    """Sweep the pool when it is due."""

    __slots__ = ("pool", "due")

    def __init__(self, pool: PoolRef, due: float) -> None:
        self.pool = pool
        self.due = due


class Call:
    """Call a verb of the pool, in a copy of the context of whoever asks."""

    __slots__ = ("pool", "verb", "args", "context")

    def __init__(self, pool: PoolRef, verb: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.pool = pool
        self.verb = verb
        self.args = args
        self.context = copy_context()


class Reaper:
    """One thread for all pools of one clock.

    Whether it runs is never counted, but seen: its `Life` is alive as long as
    the thread is. `ensure` starts another one when there is none, whatever
    became of the last: an exception may have interrupted its start, or killed
    it before it ran any code of ours. One too many does no harm: a thread
    works only if it finds no other when it begins.
    """

    def __init__(self, clock: Clock, pools: dict[int, PoolRef]) -> None:
        self._world = queue.SimpleQueue  # looked up late: gevent replaces it
        self.inbox: Any = self._world()
        self.drop = self.inbox.put  # the callback of every entry: one object for all
        self._clock = clock
        self._pools = pools
        self._due: list[tuple[float, int, PoolRef]] = []
        self._number = 0
        self.collect_after = 0.0
        self._lock: Any = _thread.RLock()  # native in every world, as the pool's
        self._life: weakref.ref[Life] | None = None  # of the thread that runs, or is about to begin
        self._resting = False
        self._stopped = False
        self._heir: Reaper | None = None  # has taken over; our thread only passes on

    def post(self, message: object) -> None:
        """Put a message into the mailbox, and see to it that somebody reads it."""
        hand(self.inbox, message)
        self.ensure()

    def ensure(self) -> None:
        """Start the thread if it does not run."""
        if self._runs() or self._stopped or call_home(self.inbox, self.ensure):
            return
        if self._lock._is_owned():
            return  # this thread is about to start it, and was interrupted
        try:
            with self._lock:
                if not self._runs():
                    self._start()
        except RuntimeError as error:
            if "shutdown" not in str(error):  # see `Workers`: it is not needed any more
                logger.warning("no thread for the reaper yet: %s", error)

    def _runs(self) -> bool:
        """Whether there is a thread, or will be in a moment."""
        life = self._life
        return life is not None and life() is not None

    def _start(self) -> None:
        life = Life()
        mark = weakref.ref(life)
        try:
            self._life = mark
            start(self._world, self._run, (life,))
        except BaseException:
            if self._life is mark:  # a traceback that somebody keeps would keep that life, too
                self._life = None
            raise

    def rest(self) -> None:
        """Let the thread end; see `wake`."""
        if self._runs():
            self._resting = True
            self.inbox.put(None)

    @property
    def asleep(self) -> bool:
        """Whether the thread has ended."""
        return not self._runs()

    def wake(self) -> None:
        """Start the thread again that `rest` let end."""
        if self._resting:
            self._resting = False
            self.ensure()

    def stop(self) -> None:
        """Start no thread any more: the process exits. One that runs goes on."""
        self._stopped = True

    @property
    def born(self) -> bool:
        """Whether the thread, if it was started, has begun."""
        mark = self._life
        life = None if mark is None else mark()
        return life is None or life.born

    def do(self, job: Job) -> bool:
        """Do a worker's job; ``False`` if the thread does not run."""
        if not self._runs():
            return False
        hand(self.inbox, job)
        return True

    def _run(self, life: Life) -> None:
        life.born = True
        mark_native(self._world)
        while self._take_over(life):
            while self._heir is None and self._has_work():
                try:
                    self.step(True)
                except Exception:
                    logger.exception("the reaper stumbled; this is a bug in pooling")
            if self._heir is not None:
                self._pass_on(self._heir)
            # Whoever posts a message looks for the thread after that; so the
            # thread steps down first, and then looks for messages once more.
            self._life = None
            if not self._has_work():
                return

    def _take_over(self, life: Life) -> bool:
        """Become the thread that runs, unless another one does."""
        with self._lock:
            if self._runs() and self._life() is not life:  # type: ignore[misc]
                return False
            self._life = weakref.ref(life)
        return True

    def _has_work(self) -> bool:
        return not self._resting and bool(self._pools or not self.inbox.empty())

    def retire(self, heir: Reaper) -> None:
        """Do nothing any more: in a child, where a greenlet runs on that served its parent."""
        self._heir = heir

    def bequeath(self, heir: Reaper) -> None:
        """Have a greenlet do all from now on; our thread, if it runs, stays for what comes here.

        Entries and pools that were made before drop into this inbox.
        """
        self._heir = heir
        if self._runs() or not self.inbox.empty():
            self.post(None)

    def _pass_on(self, heir: Reaper) -> None:
        for due, _, reference in self._due:
            heir.post(Look(reference, due))
        self._due.clear()
        while True:
            heir.post(self.inbox.get())

    def step(self, block: bool) -> bool:
        """Handle one message, if there is one, and what is due; say if there was anything.

        Its locals die with it: a lingering one would keep the last pool alive.
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
        if isinstance(message, Look):
            self._number += 1
            heapq.heappush(self._due, (message.due, self._number, message.pool))
        elif isinstance(message, Call):
            pool = message.pool()
            if pool is not None:
                message.context.run(message.verb, pool, *message.args)
        elif isinstance(message, Entry):
            reference = getattr(message, "pool", None)  # none if an exception struck while it was reserved
            pool = reference and reference()
            if pool is not None:
                pool._orphaned(message)
        elif isinstance(message, tuple):
            Workers._do(*message)
        elif message is not None:
            self._bury(message)

    def _sweep_due(self) -> int:
        swept = 0
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            due, _, reference = heapq.heappop(self._due)
            pool = reference()
            if pool is not None and pool._is_due(due):
                try:
                    upcoming = sweep(pool, now)
                except BaseException:
                    pool._look_at(now + AUDIT)
                    raise
                pool._look_at(upcoming)
                swept += 1
        return swept

    def _bury(self, reference: PoolRef) -> None:
        """Close what a pool that was dropped without `close` left on its idle stack."""
        self._pools.pop(id(reference), None)
        # Nothing is lent: a lease would have kept the pool alive.
        for entry in list(reference.state.entries):
            if entry.resource is not None:
                reference.background.workers.submit(_close_quietly, reference.adapter, entry)
        reference.state.entries.clear()


def _close_quietly(adapter: Adapter[Any], entry: Entry) -> None:
    try:
        adapter.close(entry.resource)
    except Exception:
        logger.debug("close() failed for a pool that was dropped", exc_info=True)
