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

import heapq
import logging
import queue
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from .adapter import Adapter
from .clock import Clock
from .entry import Entry
from .sweep import NEVER, sweep
from .threads import call_home, hand, mark_native, start
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


class _Life:
    """Held by the reaper's thread alone: it ends with it, whatever ended that."""

    __slots__ = ("__weakref__",)


class Reaper:
    """One thread for all pools of one clock.

    A thread that an exception has killed at its birth, where nothing could
    catch it, gives its place back all the same: `ensure` starts another.
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
        self._place: deque[object] = deque([None])  # who takes the token is the thread
        self._life: weakref.ref[_Life] | None = None  # gives the token back if the thread does not
        self._unborn: deque[None] = deque()  # one token for one that has yet to begin
        self._resting = False
        self._stopped = False
        self._heir: Reaper | None = None  # has taken over; our thread only passes on

    def post(self, message: object) -> None:
        """Put a message into the mailbox, and see to it that somebody reads it."""
        hand(self.inbox, message)
        self.ensure()

    def ensure(self) -> None:
        """Start the thread if it does not run."""
        if not self._place or self._stopped or call_home(self.inbox, self.ensure):
            return
        try:
            self._place.pop()
        except IndexError:
            return
        self._unborn.clear()
        self._unborn.append(None)
        life = _Life()
        self._life = weakref.ref(life, self._place.append)
        try:
            start(self._world, self._run, (life,))
        except RuntimeError as error:
            self._life = None
            self._unborn.pop()
            self._place.append(None)
            if "shutdown" not in str(error):  # see `Workers`: it is not needed any more
                logger.warning("no thread for the reaper yet: %s", error)

    def rest(self) -> None:
        """Let the thread end; see `wake`."""
        if not self._place:
            self._resting = True
            self.inbox.put(None)

    @property
    def asleep(self) -> bool:
        """Whether the thread has ended."""
        return bool(self._place)

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
        return not self._unborn

    def do(self, job: Job) -> bool:
        """Do a worker's job; ``False`` if the thread does not run."""
        if self._place:
            return False
        hand(self.inbox, job)
        return True

    def _run(self, life: _Life) -> None:
        self._unborn.pop()
        mark_native(self._world)
        while True:
            self._life = weakref.ref(life, self._place.append)
            while self._heir is None and self._has_work():
                try:
                    self.step(True)
                except Exception:
                    logger.exception("the reaper stumbled; this is a bug in pooling")
            if self._heir is not None:
                self._pass_on(self._heir)
            self._life = None  # from here on it is given back by hand
            self._place.append(None)
            if not self._has_work():
                return
            try:
                self._place.pop()  # something came just now
            except IndexError:
                return  # and another thread takes care of it

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
        if not self._place or not self.inbox.empty():
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
            pool = message.pool()
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
            if pool is not None and pool._due == due:  # not superseded by an earlier look
                pool._due = NEVER
                pool._look_at(sweep(pool, now))
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
