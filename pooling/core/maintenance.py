"""Maintenance: what the reaper does for one pool.

A sweep does all work that is due: it frees the slots of hung work, evicts by
idle time and lifetime, sends keepalives and health checks, reports leaks, and
audits the wait queue. It also reclaims orphans for the reaper, and handles fork
and exit. A `Maintenance` lives as long as its pool; the reaper refers to it
weakly.
"""

from __future__ import annotations

import _thread
import gc
import logging
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from .._fields import fields
from .adapter import call_hook
from .engine import Engine, report_recovery
from .entry import Entry
from .liveness import ABANDONED, Liveness
from .report.holders import describe, holders_of
from .runtime import shutdown
from .schedule import AUDIT, NEVER, replace_ahead
from .stalls import Stalls
from .state import NOT_BEGUN

if TYPE_CHECKING:
    from .adapting import Adapting

__all__ = ["Maintenance"]

R = TypeVar("R")
logger = logging.getLogger("pooling")

_OVERDUE = 1.0  # seconds of waiting after which dropped leases in reference cycles are collected
_COLLECT_EVERY = 10.0  # minimum seconds between two such collections
_RECLAIMED = object()  # the generation of an orphan that is being closed


class Maintenance(Generic[R]):
    """Maintains the resources of one engine."""

    def __init__(self, engine: Engine[R], liveness: Liveness[R]) -> None:
        self.engine = engine
        self.liveness = liveness
        self.stalls = Stalls(engine)
        self.health_check_at = -NEVER
        self.adapting: Adapting[R] | None = None
        engine.enlist(self)
        self._adapt(-NEVER)

    # -- called by the reaper --------------------------------------------------

    def sweep(self, due: float, now: float) -> bool:
        """Do all work that is due, and schedule the next sweep.

        Returns:
            ``False`` if an earlier sweep has superseded this one.
        """
        engine = self.engine
        with engine.lock:  # when the lock is free, the thread that requested this sweep has stored its time
            if engine.sweep_due != due:
                return False
            engine.sweep_due = NEVER
        try:
            upcoming = self._sweep(now)
        except BaseException:
            engine.schedule_sweep(now + AUDIT)
            raise
        engine.schedule_sweep(upcoming)
        return True

    def _sweep(self, now: float) -> float:
        engine = self.engine
        engine.runtime.workers.nudge()
        self.liveness.suspicion.compare(now, engine.clock.wall())
        self.liveness.report_frozen()
        return min(
            self._hung_work(now),
            self._idle_too_long(now),
            self._expired(now),
            self.liveness.finish_resets(now),
            self._keepalive(now),
            self._health_check(now),
            self._leaks(now),
            self.stalls.sweep(now),
            self._adapt(now),
            report_recovery(self.engine, now),
            self._audit(now),
        )

    def reclaim(self, entry: Entry) -> None:
        """Close the resource of an entry whose token is gone, and report the dropped lease."""
        engine = self.engine
        with engine.lock:
            state = engine.state
            if not state.owns(entry) or (entry.generation is _RECLAIMED and entry in state.closing):
                return
            dropped = entry.resource is not None and entry.held and not (
                entry in state.closing or entry in state.checking
            )
            engine.metrics.count["orphans"] += 1
            if dropped:
                engine.metrics.count["forgotten"] += 1
                entry.uses += 1
                entry.busy += engine.fast.now() - entry.since
            unmade = entry.resource is None and entry not in state.closing
            if unmade:
                state.retire(entry)
            else:
                state.close(entry)
            engine.refresh_fast_path_locked()
        if not unmade:
            if dropped:
                engine.events.lease_dropped(entry)
            engine.schedule_sweep(engine.fast.now() + engine.settings.close_timeout)
            # First: whatever interrupts this thread or the worker, it is not closed twice. Its slot is free after
            # `close_timeout`, and the garbage collector has the resource.
            entry.generation, entry.since = _RECLAIMED, engine.fast.now()
            engine.runtime.workers.submit(engine.close_entry, entry, "orphaned", None, self)
        engine.serve()

    # -- parts of a sweep ------------------------------------------------------
    # Each does what is due and returns when it is due next.

    def _hung_work(self, now: float) -> float:
        """Free the slots of creations, checks and closes that hang (P4)."""
        state, settings = self.engine.state, self.engine.settings
        limits = [(entry, settings.create_timeout) for entry in list(state.creating)]
        limits += [(entry, settings.close_timeout) for entry in list(state.closing)]
        limits += [(entry, task.limit) for entry, task in list(state.checking.items())]
        due = NEVER
        for entry, limit in limits:
            if entry.since + limit > now:
                due = min(due, entry.since + limit)
            else:
                self.reclaim_hung(entry, now, limit)
        return due

    def reclaim_hung(self, entry: Entry, now: float, limit: float) -> None:
        """Free the slot of work that has exceeded its limit, unless it has just ended.

        Whether it has ended, and which side owns the resource, is decided under the lock.
        """
        engine = self.engine
        state, noun, took = engine.state, engine.adapter.noun, now - entry.since
        with engine.lock:
            creating, closing, task = entry in state.creating, entry in state.closing, state.checking.get(entry)
            if not (creating or closing or task) or entry.since + limit > now:
                return
            if not creating:
                entry.generation = ABANDONED
                state.close(entry)
        if creating:
            engine.create_failed(entry, TimeoutError(f"creating a {noun} took over {limit:g} s"))
            return
        engine.events.hung("closing" if closing else "checking", took)
        resource = entry.resource
        try:
            if resource is not None:  # otherwise its close has just returned
                (engine.adapter.abandon if closing else engine.adapter.interrupt)(resource)
        except Exception:
            extra = fields("hook_failed", engine.name, hook="abandon")
            logger.exception("pool %r: abandoning a %s failed", engine.name, noun, extra=extra)
        if task is not None and task.round_trip:
            with engine.lock:
                engine.note_death_locked(entry)
        engine.retire(entry, "close_timeout" if closing else "check_timeout")
        if task is not None and task.round_trip:
            self.liveness.no_answer(task)
        elif task is not None:
            self.liveness.resets.failed(TimeoutError(f"a reset took over {limit:g} s"), now)
        engine.serve()

    def _idle_too_long(self, now: float) -> float:
        """Evict resources idle for longer than ``idle_timeout``, oldest first, down to ``min_size``.

        A resource that is not due returns to the left end. `make_available`
        would put it on top, the stack would rotate, and no resource would ever
        be due.
        """
        state, limit = self.engine.state, self.engine.settings.idle_timeout
        if limit is None:
            return NEVER
        idle = state.idle
        while idle and len(state.entries) - len(state.closing) > state.min_size:
            try:
                token = idle.popleft()
            except IndexError:
                break
            due = token.entry.idle_since + limit
            if due > now:
                idle.appendleft(token)
                return due
            self.engine.evict(token, "idle_timeout")
        if len(state.entries) <= state.min_size:
            return NEVER  # the next creation schedules a sweep
        return now + limit

    def _expired(self, now: float) -> float:
        """Evict idle resources past their lifetime, and mark lent ones to be closed at release.

        Resources that ``min_size`` needs are replaced shortly before they expire.
        """
        engine, due, expiring = self.engine, NEVER, 0
        for token in engine.state.idle.tokens():
            if token.entry.expires <= now and engine.state.idle.take(token):
                engine.evict(token, "lifetime")
        ahead = replace_ahead(engine.settings)
        for entry in list(engine.state.entries):
            if entry.expires <= now:
                entry.generation = None
            elif entry.expires - ahead <= now:
                expiring += 1
                due = min(due, entry.expires)
            else:
                due = min(due, entry.expires - ahead)
        if expiring:
            with engine.lock:
                state = engine.state
                staying = len(state.entries) - len(state.closing) - expiring
                creations = engine.fill_locked(state.min_size - staying)
            engine.carry_out(creations, [])
        return due

    def _keepalive(self, now: float) -> float:
        """Validate idle resources that were neither used nor checked for ``keepalive_interval``."""
        state, interval = self.engine.state, self.engine.settings.keepalive_interval
        if interval is None or self.liveness.validate_hook is None or not state.entries:
            return NEVER
        due = now + interval
        for token in state.idle.tokens():
            seen = max(token.entry.idle_since, token.entry.checked)
            if seen + interval > now:
                due = min(due, seen + interval)
            elif state.idle.take(token):
                self.liveness.validate_on_worker(token)  # it returns to its former position
        return due

    def _health_check(self, now: float) -> float:
        """Make a round trip at ``health_check_interval``, on the resource that has been idle longest."""
        engine, interval = self.engine, self.engine.settings.health_check_interval
        if interval is None or self.liveness.validate_hook is None or not engine.state.entries:
            return NEVER
        # A creation also proves that the server is up. The interval may have been shortened.
        self.health_check_at = min(self.health_check_at, now + interval)
        due = min(max(self.health_check_at, engine.outage.succeeded_at + interval), now + interval)
        if now < due:
            return due
        self.health_check_at = now + interval
        for token in engine.state.idle.tokens():
            if engine.state.idle.take(token):
                self.liveness.validate_on_worker(token, health=True)
                break
        return self.health_check_at

    def _leaks(self, now: float) -> float:
        """Report each lease held for longer than ``leak_timeout``, once."""
        engine, limit = self.engine, self.engine.settings.leak_timeout
        if limit is None or not engine.state.entries:
            return NEVER
        due = now + limit  # an acquire on the fast path does not schedule a sweep
        for entry in engine.state.lent():
            if entry.leaked:
                continue
            if entry.since + limit <= now:
                entry.leaked = True
                engine.events.leaked(entry, now - entry.since, limit)
            else:
                due = min(due, entry.since + limit)
        return due

    def _adapt(self, now: float) -> float:
        """Steer the size, or propose to; see `Adapting`. It begins with the pool, or when the settings ask for it."""
        if self.adapting is None:
            if self.engine.settings.adaptive == "off":
                return NEVER
            from .adapting import Adapting  # imported only where it is used

            self.adapting = Adapting(self.engine)
        return self.adapting.sweep(now)

    def _audit(self, now: float) -> float:
        """Serve waiters again; due soon while borrowers wait, and when a probe of the server is due."""
        engine = self.engine
        for entry in list(engine.state.entries):
            # Its message is still to come, or was lost when the reaper was interrupted. If the close has begun, it has
            # its time limit, and is not repeated: the resource may be closed already.
            if entry() is None and (entry not in engine.state.closing or entry.since == NOT_BEGUN):
                self.reclaim(entry)
        engine.serve(audit=True)
        outage = engine.outage
        holding = outage.error is not None or outage.full is not None
        due = outage.retry_at if holding and outage.retry_at > now else NEVER
        if outage.lapses_at > now:  # more may be created then, though nothing has happened
            due = min(due, outage.lapses_at)
        try:
            oldest = engine.state.waiters[0].arrived
        except IndexError:
            return due
        if now - oldest >= _OVERDUE:
            self._collect(now, now - oldest)
        return min(due, now + AUDIT)

    def _collect(self, now: float, waited: float) -> None:
        """Collect dropped leases in reference cycles: a process that only waits allocates nothing, so never does."""
        reaper = self.engine.runtime.reaper
        if now < reaper.collect_after or not self.engine.state.in_use or not gc.isenabled():
            return
        reaper.collect_after = now + _COLLECT_EVERY
        logger.info(
            "pool %r: a borrower has waited for %.1f s; collecting garbage", self.engine.name, waited,
            extra=fields("collecting", self.engine.name, seconds=waited),
        )  # fmt: skip
        gc.collect()

    # -- close, fork, gevent, exit ----------------------------------------------

    def interrupt_holders(self) -> None:
        """Interrupt the resources that other threads hold when the pool closes."""
        engine, me = self.engine, threading.get_ident()
        lent = [entry for entry in engine.state.lent() if entry.thread != me]
        if not lent:
            return
        holders = describe(holders_of(lent, engine.fast.now()))
        logger.warning(
            "pool %r: closed with %d still in use; held by: %s", engine.name, len(lent), holders,
            extra=fields("closed_in_use", engine.name, in_use=len(lent), holders=holders),
        )  # fmt: skip
        for entry in lent:
            try:
                engine.adapter.interrupt(entry.resource)
            except Exception:
                extra = fields("hook_failed", engine.name, hook="interrupt")
                logger.exception("pool %r: interrupt() failed", engine.name, extra=extra)

    def after_fork(self) -> None:
        """In a child: start empty. Inherited resources were invalidated and kept before."""
        engine, before = self.engine, self.engine.state
        engine.runtime.pools.pop(id(engine.ref), None)
        engine.renew()
        engine.state.limits.follow(before.limits)
        engine.configure(engine.settings)
        engine.enlist(self)
        self.liveness.renew()
        self.stalls.renew()
        if self.adapting is not None:
            self.adapting.renew()
        engine.state.closed = before.closed
        engine.refresh_fast_path_locked()
        call_hook(engine.adapter, engine.name, "after_fork")

    def threads_patched(self) -> None:
        """Follow gevent, which has replaced the threading primitives; keep all resources."""
        engine = self.engine
        call_hook(engine.adapter, engine.name, "threads_patched")
        with engine.lock:
            before = engine.ref
            engine.enlist(self)
        engine.runtime.pools.pop(id(before), None)

    def close_idle(self) -> None:
        """At exit: close idle resources, on the reaper if it runs."""
        engine = self.engine
        state = engine.state
        state.min_size = 0  # create nothing ahead of need
        for _ in range(len(state.idle)):
            try:
                token = engine.fast.pop()
            except IndexError:
                return
            with engine.lock:
                state.close(token.entry)
            engine.close_entry(token.entry, "exit")

    def go_on_as_last_thread(self) -> None:
        """During finalization: replace the lock, which a vanished thread may hold; wait for no other thread."""
        engine = self.engine
        engine.lock = _thread.RLock()
        engine.metrics.renew(engine.lock, engine.state)
        engine.clock = shutdown.ALONE
