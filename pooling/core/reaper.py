"""The one background thread of a process, and what it does to a pool when something is due.

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

import gc
import heapq
import logging
import queue
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .adapter import Adapter
from .clock import Clock
from .entry import Entry, Key
from .state import _copy
from .threads import call_home, hand, mark_native, start
from .workers import Job, Workers

if TYPE_CHECKING:
    from .pool import Pool
    from .registry import PoolRef

__all__ = ["AHEAD", "AUDIT", "Call", "Look", "Reaper", "sweep"]

logger = logging.getLogger("pooling")

AUDIT = 0.25
"""Seconds between audits while somebody waits (P8): they should never find anything."""

_OVERDUE = 1.0  # seconds in line after which a lease may have been forgotten in a cycle
_COLLECT_EVERY = 10.0  # seconds between two collections that the reaper asks for

AHEAD = 2.0
"""Seconds before the end of its lifetime that a core member is replaced, at most."""

NEVER = float("inf")


class Look:
    """Sweep the pool when it is due."""

    __slots__ = ("pool", "due")

    def __init__(self, pool: PoolRef, due: float) -> None:
        self.pool = pool
        self.due = due


class Call:
    """Call a verb of the pool."""

    __slots__ = ("pool", "verb", "args")

    def __init__(self, pool: PoolRef, verb: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.pool = pool
        self.verb = verb
        self.args = args


class Reaper:
    """One thread for all pools of one clock."""

    def __init__(self, clock: Clock, pools: dict[int, PoolRef]) -> None:
        self._world = queue.SimpleQueue  # looked up late: gevent replaces it
        self.inbox: Any = self._world()
        self.drop = self.inbox.put  # the callback of every entry: one object for all
        self._clock = clock
        self._pools = pools
        self._due: list[tuple[float, int, PoolRef]] = []
        self._number = 0
        self.collect_after = 0.0
        self._place = deque([None])  # who takes the token is the thread
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
        self._unborn.append(None)
        try:
            start(self._world, self._run, ())
        except RuntimeError as error:
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

    def _run(self) -> None:
        self._unborn.pop()
        mark_native(self._world)
        while True:
            while self._heir is None and self._has_work():
                try:
                    self.step(True)
                except Exception:
                    logger.exception("the reaper stumbled; this is a bug in pooling")
            if self._heir is not None:
                self._pass_on(self._heir)
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
                message.verb(pool, *message.args)
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


def sweep(pool: Pool[Any], now: float) -> float:
    """Do what is due in one pool.

    Returns:
        When to look again; infinity for "when something happens".
    """
    pool._background.workers.nudge()
    if pool._health.jumped(now, pool._clock.wall()):
        logger.info("pool %r: the process was frozen; idle resources are suspect", pool.name)
    return min(
        _overdue_work(pool, now),
        _rested_too_long(pool, now),
        _lived_too_long(pool, now),
        _keepalive(pool, now),
        _health_check(pool, now),
        _leaks(pool, now),
        _audit(pool, now),
    )


def _overdue_work(pool: Pool[Any], now: float) -> float:
    """Take their slots from a creation, a check and a close that hang (P4)."""
    state, settings = pool._state, pool._settings
    due = NEVER
    for entries, limit in (
        (state.creating, settings.create_timeout),
        (state.checking, max(settings.reset_timeout, settings.health_check_timeout)),
        (state.closing, settings.close_timeout),
    ):
        for entry in list(entries):
            if entry.since + limit <= now:
                pool._abandon(entry, now, limit)
            else:
                due = min(due, entry.since + limit)
    return due


def _rested_too_long(pool: Pool[Any], now: float) -> float:
    """Evict what lay idle too long, above ``min_size``; oldest first, from the left end.

    What is not due goes back where it was: through `_deliver` it would land on
    top, the stack would rotate, and nothing would ever age out.
    """
    state, limit = pool._state, pool._settings.idle_timeout
    if limit is None:
        return NEVER
    idle = state.idle
    while idle and len(state.entries) - len(state.closing) > state.min_size:
        try:
            key = idle.popleft()
        except IndexError:
            break
        due = key.entry.idle_since + limit
        if due > now:
            idle.appendleft(key)
            return due
        pool._evict(key, "idle_timeout")
    if len(state.entries) <= state.min_size:
        return NEVER  # a creation brings the next look
    return now + limit


def _lived_too_long(pool: Pool[Any], now: float) -> float:
    """Evict the idle ones past their lifetime, and mark the lent ones for their return.

    Those that `min_size` will miss are replaced a moment before.
    """
    state = pool._state
    due = NEVER
    ahead = pool._ahead
    for key in _copy(state.idle):
        if key.entry.expires <= now:
            _evict_idle(pool, key, "lifetime")
    ending = 0
    for entry in list(state.entries):
        if entry.expires <= now:
            entry.generation = None
        elif entry.expires - ahead <= now:
            ending += 1
            due = min(due, entry.expires)
        else:
            due = min(due, entry.expires - ahead)
    if ending:
        pool._replace_ahead(ending)
    return due


def _evict_idle(pool: Pool[Any], key: Key, reason: str) -> None:
    if _take(pool, key):
        pool._evict(key, reason)


def _take(pool: Pool[Any], key: Key) -> bool:
    """Take a certain key off the idle stack; ``False`` if somebody was faster."""
    try:
        pool._state.idle.remove(key)
    except ValueError:
        return False
    return True


def _keepalive(pool: Pool[Any], now: float) -> float:
    """Make a round trip on what was not heard of for ``keepalive_interval``."""
    interval = pool._settings.keepalive_interval
    if interval is None or pool._validate is None or not pool._state.entries:
        return NEVER
    due = now + interval
    for key in _copy(pool._state.idle):
        seen = max(key.entry.idle_since, key.entry.checked)
        if seen + interval > now:
            due = min(due, seen + interval)
        elif _take(pool, key):
            pool._on_worker(key, pool._check)  # it goes back where it was
    return due


def _health_check(pool: Pool[Any], now: float) -> float:
    """Ask the server how it is, at its interval, over the resource that rests longest."""
    interval = pool._settings.health_check_interval
    if interval is None or pool._validate is None or not pool._state.entries:
        return NEVER
    if now < pool._health.check_at:
        return pool._health.check_at
    pool._health.check_at = now + interval
    for key in _copy(pool._state.idle):
        if _take(pool, key):
            pool._on_worker(key, pool._health_check)
            break
    return now + interval


def _leaks(pool: Pool[Any], now: float) -> float:
    """Report each lease that is out for longer than ``leak_timeout``, once."""
    limit = pool._settings.leak_timeout
    if limit is None or not pool._state.entries:
        return NEVER
    due = now + limit  # somebody may borrow the next moment, without a word to us
    for entry in pool._state.lent():
        if entry.leaked:
            continue
        if entry.since + limit <= now:
            pool._report_leak(entry, now)
        else:
            due = min(due, entry.since + limit)
    return due


def _audit(pool: Pool[Any], now: float) -> float:
    """Pair and plan again; while somebody waits, look again soon, and when a probe is due."""
    pool._serve(audit=True)
    outage = pool._outage
    holding = outage.error is not None or outage.full is not None
    due = outage.retry_at if holding and outage.retry_at > now else NEVER
    try:
        oldest = pool._state.waiters[0].arrived
    except IndexError:
        return due
    if now - oldest >= _OVERDUE:
        _collect(pool, now, now - oldest)
    return min(due, now + AUDIT)


def _collect(pool: Pool[Any], now: float, waited: float) -> None:
    """Look for leases that lie forgotten in a cycle: nobody allocates, so nobody collects."""
    reaper = pool._background.reaper
    if now < reaper.collect_after or not pool._state.in_use or not gc.isenabled():
        return
    reaper.collect_after = now + _COLLECT_EVERY
    logger.info("pool %r: a borrower waits for %.1f s; collecting garbage", pool.name, waited)
    gc.collect()
