"""Engine: the mechanism of a pool. It fills slots and empties them.

The life of a resource, each step one method: `reserve_locked` → `create` →
`make_available` → (lent, released) → `evict` → `close_entry` → `retire`.

What keeps it correct, whatever exception is raised between two bytecodes:

- One lock guards `PoolState` and the counters. Code that holds it decides and
  counts; it calls no adapter, observer or logger, and does no I/O. It returns a
  plan, which is carried out after the lock is released.
- While no borrower waits, a lease takes no lock at all (see `Pool.acquire` and
  `Lease.__exit__`): one identity test covers close, drain, pause, shrink and
  expiry (see `refresh_fast_path_locked`).
- Every slow step ends in the idempotent, level-triggered `serve`.
- The lock is re-entrant so that re-entry can be *refused*: the garbage
  collector may run a destructor, or a signal its handler, inside our critical
  section, and these may release a lease. Such calls are deferred to the reaper.

Assumes: ``deque.append/pop`` are atomic; consecutive attribute stores are not
split by an asynchronous exception (CPython checks at function entry, backward
jumps and after calls).
"""

from __future__ import annotations

import _thread
import queue
import weakref
from collections.abc import Callable
from contextvars import Context, copy_context
from itertools import islice
from typing import Any, Generic, TypeVar

from ..errors import PoolError
from ..settings import PoolSettings
from .adapter import Adapter, ask, call_hook, overridden
from .clock import Clock
from .entry import Entry, Token
from .events import Events, report_circuit
from .fastpath import FastPath
from .hangup import watchable
from .lanestate import state_for
from .observer import Observer
from .outage import SETTLE, Outage
from .report.metrics import PoolMetrics
from .runtime import fork, registry
from .runtime.fork import SAME_PROCESS
from .runtime.gevent import Weak, put
from .runtime.poolref import PoolRef
from .runtime.reaper import SweepRequest
from .schedule import AUDIT, LOST, NEVER, first_sweep, lifetime, prepare_random, uniform
from .state import FILL_ATTEMPTS, MOST_AHEAD, UNLIMITED

__all__ = ["EMPTY_PLAN", "Engine", "report_recovery"]

R = TypeVar("R")

Creation = tuple[Token, Context]
"""A reserved slot, and the context in which its resource is created: a copy of the context of the acquire that needs
it, or of the caller where it is created ahead of need. Dropped with the job: it may refer to a request or a user."""

Plan = tuple[list[Creation], list[tuple[Token, str]]]
EMPTY_PLAN: Plan = ([], [])

DEATHS = {"broken", "dead", "invalid"}  # close reasons of resources that proved dead


class Engine(Generic[R]):
    """Creates, hands over and closes the resources of one pool.

    Policies stand beside it and use its methods: `Checkout`, `Checkin`,
    `Liveness`, `Maintenance`. It refers to none of them.
    """

    def __init__(self, adapter: Adapter[R], settings: PoolSettings, name: str, clock: Clock) -> None:
        self.name = name
        self.adapter = adapter
        self.clock = clock
        self.runtime = registry.runtime_of(clock)
        prepare_random()
        self.fast = FastPath(clock.now)
        stacked = overridden(adapter, "reset") is None or adapter.enforces_timeouts
        self.metrics = PoolMetrics(name, clock, stacked)
        self.events = Events(name, adapter.noun, self.metrics)
        self.settings = settings
        self.owner: weakref.ref[Any] | None = None  # the public pool; ``None`` for a part of another pool
        self.renew()

    def use_metrics(self, metrics: PoolMetrics) -> None:
        """Count into these metrics; before the pool is used."""
        self.metrics, self.events.metrics, self.ref.metrics = metrics, metrics, metrics.kept
        metrics.renew(self.lock, self.state)

    def renew(self) -> None:
        """Begin with no entry, no waiter, and a new lock; also in a forked child."""
        self.lock: Any = _thread.RLock()  # native, under gevent too: see `runtime.gevent`
        self.state = state_for(self.settings, self.lock)
        self.outage = Outage(self.adapter.max_creating)
        self.metrics.renew(self.lock, self.state)
        self.sweep_due = NEVER  # guarded by the lock
        self.watchers: set[Weak] = set()  # each removes itself when its thread is gone
        self.fast.use(self.state, self.adapter.lifo)
        self.configure(self.settings)

    def configure(self, settings: PoolSettings) -> None:
        """Apply settings. Needs the lock, except in the constructor."""
        self.state.waiters.use(settings.lanes)  # first: it may refuse them
        self.settings = settings
        self.state.resize(settings.min_size, settings.max_size, settings.max_idle)
        self.outage.use(settings.breaker)
        self.fast.configure(settings, self.adapter, any(entry.watched for entry in self.state.entries))
        self.refresh_fast_path_locked()

    def refresh_fast_path_locked(self) -> None:
        """Update what the fast path compares a resource's generation with."""
        self.fast.refresh(self.state, self.events.leases_observed)

    def observe(self, observers: tuple[Observer, ...]) -> None:
        """Notify these observers from now on."""
        with self.lock:
            self.events.observe(observers)
            self.refresh_fast_path_locked()
        self.serve()

    def enlist(self, owner: Any) -> None:
        """Register the pool's `Maintenance` with the reaper, weakly."""
        self.ref = ref = PoolRef(owner, self.runtime.reaper.drop)
        ref.state, ref.adapter, ref.runtime, ref.metrics = self.state, self.adapter, self.runtime, self.metrics.kept
        self.runtime.pools[id(self.ref)] = self.ref
        for entry in self.state.entries:
            entry.pool = self.ref

    def ensure_usable(self) -> None:
        """Guard of every slow path: handle a fork and gevent, refuse re-entry."""
        usable = SAME_PROCESS[0] or fork.ensure_process()
        if queue.SimpleQueue is not self.runtime.queue_class:
            self.runtime.settle()
        if not usable or self.lock._is_owned():
            raise PoolError(
                f"pool {self.name!r}: called by a destructor or signal handler that "
                "interrupted the pool itself in this thread; only a release works there"
            )

    # -- make available, serve ------------------------------------------------

    def make_available(self, token: Token) -> None:
        """Take in a resource that was created, released or checked.

        It goes to the oldest waiter, else onto the idle stack; if it must not
        be lent any more it is closed.
        """
        if self.lock._is_owned():
            self.defer(self.make_available, token)
            return
        with self.lock:
            reason: str | None = None
            more: object = True
            if self.state.owns(token.entry):  # else it is the parent's; a waiter of this pool may have brought it
                reason = self.state.accept(token, self.fast.now())
                self.metrics.note_in_use()
                more = self.watchers or (self.state.waiters and not self.state.exhausted)
        if reason is not None:
            self.evict(token, reason)
        if more:
            self.serve()

    def serve(self, audit: bool = False) -> None:
        """Match waiters with idle resources, free slots and creations, from any state."""
        if self.lock._is_owned():
            self.defer(self.serve)
            return
        with self.lock:
            state = self.state
            # A waiter whose resource is being checked on a worker has not been forgotten.
            if audit and state.idle and state.waiters.demand > len(state.checking) and not state.paused:
                self.metrics.count["audit_repairs"] += 1
            if state.hand_over_one() and not self.watchers:
                return
            creations, closes = self.plan_locked()
        if creations or closes:
            self.carry_out(creations, closes)

    def plan_locked(self) -> Plan:
        """Decide which slots are reserved for creations, and what is to be closed."""
        now = self.fast.now()
        ahead = MOST_AHEAD if self.adapter.blocking else UNLIMITED  # inline, each would start the next within itself
        number, closes = self.state.serve(self.outage.allowed(now), now, ahead)
        creations = self.reserve_locked(number) if number else []
        if self.watchers:
            for reference in self.watchers.copy():
                watch = reference()
                if watch is not None and watch.reached():
                    put(watch.box, None)
        return creations, closes

    def carry_out(self, creations: list[Creation], closes: list[tuple[Token, str]]) -> None:
        """Carry out a plan, without the lock."""
        for token, reason in closes:
            self.close(token, reason)
        while creations:
            token, context = creations.pop(0)
            if self.adapter.blocking:
                self.runtime.workers.submit(context.run, self.create, token, self.ref())
            else:
                context.run(self.create, token)

    def fill_locked(self, missing: int) -> list[Creation]:
        """Reserve up to ``missing`` slots, as far as ``max_size`` and an outage allow."""
        most = self.state.creatable(self.outage.allowed(self.fast.now()))
        return self.reserve_locked(0 if self.state.closed else min(missing, most))

    # -- create ---------------------------------------------------------------

    def reserve_locked(self, number: int) -> list[Creation]:
        """Take slots: for the first waiters that no creation or check will serve, or ahead of need."""
        state, now = self.state, self.fast.now()
        coming, number = len(state.creating) + len(state.checking), max(0, number)
        contexts = [waiter.context for waiter in islice(state.waiters, coming, coming + number)]
        contexts += [None] * (number - len(contexts))
        creations = []
        for context in contexts:
            # First: the sweep reclaims what an exception leaves.
            self.schedule_sweep(now + self.settings.create_timeout)
            token = Token()
            token.entry = entry = state.entry_class(token, self.runtime.reaper.drop)
            entry.pool = self.ref
            entry.begin(state.generation, now + lifetime(self.settings), now)
            state.reserve(entry)  # it counts from here on (P2)
            creations.append((token, copy_context() if context is None else context.copy()))
        if creations:
            self.metrics.note_in_use()
        return creations

    def create(self, token: Token, owner: object = None) -> None:
        """Create the resource of a reserved slot, and make it available. Runs in a copy of the borrower's context.

        Args:
            token: The slot.
            owner: As for `close_entry`.
        """
        entry, started = token.entry, self.fast.now()
        if not self.state.owns(entry):
            return
        try:
            entry.resource = self.adapter.create()
            if entry.resource is None:
                raise TypeError("the factory returned None instead of a resource")
        except BaseException as error:
            if entry.resource is not None:  # interrupted just after it was created
                self.close_entry(entry, None)
                entry.resource = None
            if not (self.adapter.blocking or isinstance(error, Exception)):
                # Interrupted in the borrower's thread: the server did not fail, and the
                # thread must not create resources for others. The reaper serves them.
                with self.lock:
                    self.state.retire(entry)
                self.schedule_sweep(self.fast.now())
                raise
            self.create_failed(entry, error)
            return
        # Without an `is_alive` of the adapter, sockets are watched: see `hangup`.
        watched = self.adapter.blocking and "is_alive" not in self.fast.hooks and watchable(entry.resource)
        entry.checked = now = self.fast.now()
        with self.lock:
            if watched:  # under the lock, because `configure` looks at all entries
                entry.watched = self.fast.checks_on_acquire = True
            if wanted := self.state.owns(entry):
                self.metrics.count["created"] += 1
                down_since = self.outage.since
                recovered = self.outage.succeeded(self.state.max_size, now)
                if recovered:
                    self.outage.incident.ends(now)
                    self.schedule_sweep(self.outage.incident.due)
        if not wanted:  # it came after `create_timeout`, or a greenlet went on in a child
            self.close_entry(entry, None)
            return
        if self.settings.enable_metrics:
            self.metrics.durations.create.record(now - started)
        self.make_available(token)
        self.schedule_sweep(first_sweep(entry, self.settings, self.adapter, "validate" in self.fast.hooks))
        if recovered:
            self.events.outage_ended(now - down_since)
            report_circuit(self.events, self.outage)
        self.events.created(now - started)
        if "created" in self.fast.hooks:
            call_hook(self.adapter, self.name, "created")
        self.serve()

    def create_failed(self, entry: Entry, error: BaseException) -> None:
        """Free the slot, record the outage, fail the waiters that nothing can serve."""
        final, full = (ask(self.adapter, self.name, question, error) for question in ("is_final", "is_full"))
        now = self.fast.now()
        began = refused = news = False
        report_recovery(self, now)  # if it is due, and the reaper has not done it yet
        with self.lock:
            state, outage = self.state, self.outage
            if entry not in state.creating:
                return  # given up and counted before; or it succeeded just in time
            state.retire(entry)
            self.metrics.errors[type(error).__name__] += 1
            if full and state.live and outage.error is None:
                refused = outage.refused(error, now, uniform)
            else:
                # A borrower does not wait for the end of a final error.
                waiting = bool(state.waiters or self.watchers) and not final
                took = now - entry.since
                began = outage.failed(error, final, now, self.settings.backoff, waiting, uniform, took)
                outage.fail_waiters(self.name, self.adapter.noun, state, now, self.settings.max_attempts)
                if final and (state.waiters or self.watchers):  # they wait for a resource in use
                    outage.hurry(now, self.settings.backoff)
                news = began and self.outage.incident.begins(now)
            if full or final or outage.failures > FILL_ATTEMPTS:
                state.filling = 0
            self.schedule_sweep(outage.retry_at)
        if refused:
            self.events.server_full(error)
        if began:
            # Not logged for an attempt that was in progress when the pool was closed.
            self.events.outage_began(error, log=news and not self.state.closed)
        self.events.create_failed(error)
        report_circuit(self.events, self.outage)
        self.serve()

    # -- close ----------------------------------------------------------------

    def drain(self) -> None:
        """Begin a new generation; close the idle resources of the old one."""
        with self.lock:
            self.metrics.estimate_peak()
            closes = self.state.drain()
            self.refresh_fast_path_locked()
        self.carry_out([], closes)

    def evict(self, token: Token, reason: str) -> None:
        """Close a resource and serve the waiters that may miss it."""
        if self.lock._is_owned():
            self.defer(self.evict, token, reason)
            return
        with self.lock:
            if not self.state.owns(token.entry) or token.entry in self.state.closing:
                return  # closed, or being closed, already
            self.metrics.note_in_use()
            resource = token.entry.resource
            self.state.close(token.entry)
            if reason in DEATHS:
                self.note_death_locked(token.entry)  # before its replacement is planned
            self.refresh_fast_path_locked()
        if "evicted" in self.fast.hooks:
            call_hook(self.adapter, self.name, "evicted", resource, reason)
        del resource  # it is to be destroyed before its slot is free (P2)
        self.close(token, reason)
        self.serve()

    def note_death_locked(self, entry: Entry) -> None:
        """Record a proven death: the server may be down too (P7). Inline creations contact no server."""
        if self.adapter.blocking and self.outage.died(entry.checked, self.fast.now()):
            self.schedule_sweep(self.outage.lapses_at)

    def close(self, token: Token, reason: str) -> None:
        """Close the resource of an entry in `closing`: on a worker, unless its close cannot block."""
        entry = token.entry
        entry.since = self.fast.now()
        if "close" in self.fast.hooks and not self.adapter.close_inline:
            # Soon, in case this thread is interrupted before it serves; the sweep looks for closes that hang, too.
            self.schedule_sweep(entry.since + min(AUDIT, self.settings.close_timeout))
            self.runtime.workers.submit(self.close_entry, entry, reason, token, self.ref())
        else:
            self.close_entry(entry, reason)

    def close_entry(
        self, entry: Entry, reason: str | None, token: Token | None = None, owner: object = None
    ) -> None:
        """End the resource of an entry, then free its slot even if the close failed.

        Args:
            entry: The entry; for a resource of the parent process the adapter's ``abandon`` is called.
            reason: Why it is closed; ``None`` for an entry that has no slot any more.
            token: Kept alive until the job has ended: if a job is lost, its slot is reclaimed.
            owner: The pool's `Maintenance`. Kept alive too: a pool that is dropped meanwhile keeps the job's
                time limit, and its resource is not closed by the reaper as well.
        """
        if reason is not None and not self.state.owns(entry):
            return
        resource = entry.resource
        try:
            if resource is not None:
                (self.adapter.close if entry.pool is self.ref else self.adapter.abandon)(resource)
        except BaseException as error:
            if self.adapter.close_inline and not isinstance(error, Exception):
                raise  # raised in the borrower's thread; the reaper reclaims the slot when the token is gone
            self.events.close_failed(error)  # not tried again: an interruption does not tell whether it was closed
        del resource
        if reason is not None:
            entry.resource = None  # it must not be closed twice; and is destroyed before its slot is free (P2)
            if self.retire(entry, reason):
                self.serve()

    def retire(self, entry: Entry, reason: str) -> bool:
        """Free the slot; return ``False`` if it was free already."""
        with self.lock:
            retired = self.state.retire(entry)
            if retired:
                self.metrics.count_closed(entry, reason)
                self.refresh_fast_path_locked()
        if retired:
            self.events.closed(reason)
        return retired

    # -- reaper, process ------------------------------------------------------

    def schedule_sweep(self, due: float) -> None:
        """Ask the reaper for a sweep at that time, unless one is due before."""
        with self.lock:
            if due < self.sweep_due or self.sweep_due < self.fast.now() - LOST:
                self.runtime.reaper.post(SweepRequest(self.ref, due))
                self.sweep_due = due  # after it: an exception between the two loses no sweep
            else:
                self.runtime.reaper.ensure()

    def defer(self, function: Callable[..., object], *args: Any) -> None:
        """Have the reaper call a function that cannot run inside our own critical section, in this context."""
        self.runtime.reaper.inbox.put((copy_context().run, (_run_unless_dropped, self.ref, function, *args)))

    def owns(self, entry: Entry) -> bool:
        """Whether an entry belongs to this process and has not been retired."""
        return (SAME_PROCESS[0] or fork.ensure_process()) and self.state.owns(entry)


def _run_unless_dropped(ref: PoolRef, function: Callable[..., object], *args: Any) -> None:
    owner = ref()
    if owner is not None:
        function(*args)


def report_recovery(engine: Engine[Any], now: float, settle: float = SETTLE) -> float:
    """Log the end of an outage once creations have succeeded for ``settle`` seconds; return when to call again."""
    with engine.lock:
        over, due = engine.outage.incident.over(now, settle), engine.outage.incident.due
    if over is not None:
        engine.events.recovered(*over)
    return due
