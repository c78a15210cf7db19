"""Checkout: one acquire that could not take an idle resource at once (P3, P4, P8).

A borrower enters the wait queue, ordered by the time its acquire began, and
blocks on its own box. It leaves the queue with a resource, or through
`_cancel_wait`, which passes on anything that it was given meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

from ..errors import CircuitOpen, PoolClosed, PoolError, PoolTimeout, PoolUnavailable, TooManyWaiting
from .engine import EMPTY_PLAN, Engine
from .entry import DEAD, LaneEntry, Token
from .lanestate import LaneState
from .liveness import Liveness
from .report.holders import borrower, describe, has_ended, holders_of
from .report.messages import format_counts, format_error
from .schedule import AUDIT
from .waiter import Waiter

__all__ = ["Checkout", "instead_of_lease"]

R = TypeVar("R")
logger = logging.getLogger("pooling")

GRACE = 0.05
"""Seconds that a borrower waits for the end of a reset, even with ``timeout=0``: a release that does not wait for it
makes the resource available all the same. After that, a worker waits, and the borrower takes what comes first."""


class Checkout(Generic[R]):
    """One slow acquire, with one deadline for everything.

    If a resource may not be lent, the borrower first queues again, and only
    then is the resource closed, so that its slot cannot go to a borrower that
    came later (P3).
    """

    __slots__ = ("engine", "liveness", "timeout", "arrived", "waited", "lane", "late", "_reject")

    def __init__(
        self, engine: Engine[R], liveness: Liveness[R], timeout: float | None, arrived: float, lane: str | None = None
    ) -> None:
        self.engine = engine
        self.liveness = liveness
        self.timeout = engine.settings.acquire_timeout if timeout is None else timeout
        self.arrived = arrived
        self.waited = False
        self.late = False  # it has waited for the end of a reset
        self.lane = lane  # without effect in a pool without lanes
        self._reject: Callable[[], object] | None = None  # disposes of the rejected resource

    def run(self, doubtful: list[Token] | None = None) -> tuple[Token, float]:
        """Check a doubtful resource, or wait for one.

        Args:
            doubtful: The resource that the fast path did not lend, in a list
                that gives up its reference: a waiter must hold none.

        Returns:
            The token, and the time at which it is lent.
        """
        engine = self.engine
        engine.ensure_usable()
        take = engine.state.lanes is not None  # in other pools, the fast path has done so
        token = doubtful.pop() if doubtful else (take and self._take_idle()) or self._wait()
        now = engine.fast.now()
        while not self._is_lendable(token, now):
            del token
            token = self._wait()
            now = engine.fast.now()
        if self.late:
            now, self.waited = engine.fast.now(), True
        if self.waited and engine.settings.enable_metrics:
            engine.metrics.durations.wait.record(now - self.arrived)
            if isinstance(token.entry, LaneEntry):
                token.entry.lane.wait.record(now - self.arrived)
            if engine.events.observers:
                engine.events.notify("waited", now - self.arrived)
        if engine.events.leases_observed:
            engine.events.notify("acquired", now - self.arrived)
        if engine.fast.track_holders:
            token.entry.borrower = (borrower(), now)
        return token, now

    def _is_lendable(self, token: Token, now: float) -> bool:
        """Check a resource; reject it if it may not be lent."""
        engine, liveness, entry = self.engine, self.liveness, token.entry
        if (
            entry.generation is engine.fast.lendable_generation
            and now < entry.expires
            # Its peer may have answered during a release while this borrower waited.
            and (
                not engine.fast.checks_on_acquire
                or (entry.answered and entry.checked > self.arrived)
                or liveness.is_sound(entry, now)
            )
        ):
            return True
        state, adapter = engine.state, engine.adapter
        if entry.generation is DEAD:
            self._reject = lambda: liveness.found_dead(token, "dead", None)
        elif state.fast_path_closed or state.unfit(entry, now):
            self._reject = lambda: engine.make_available(token)  # which keeps it idle or closes it
        elif entry.answered is None and not self._has_ended_reset(token):
            if entry.generation is DEAD:
                self._reject = lambda: liveness.found_dead(token, "dead", None)
            else:
                self._reject = lambda: liveness.finish_on_worker(token)  # it comes back through `make_available`
        elif not liveness.is_alive(entry):
            self._reject = lambda: liveness.found_dead(token, "dead", None)
        elif self.timeout == 0 or liveness.validate_hook is None or entry.checked >= self.arrived:
            return True  # no time for a round trip, not needed, or already made for this borrower
        elif liveness.suspicion.trusts(entry, now, engine.clock.wall(), liveness.validation_interval):
            return True
        elif not adapter.enforces_timeouts:
            self._reject = lambda: liveness.validate_on_worker(token)  # it comes back through `make_available`
        else:
            limit = min(engine.settings.health_check_timeout, max(0.0, self.arrived + self.timeout - now))
            error = liveness.validate(token, limit)
            if error is None:
                return True
            self._reject = lambda: liveness.found_dead(token, "invalid", error)
        return False

    def _has_ended_reset(self, token: Token) -> bool:
        try:
            self.late = self.liveness.has_ended_reset(token.entry, 0.0 if self.waited else GRACE)
            return self.late
        except BaseException:
            self.engine.evict(token, "interrupted")
            raise

    def _take_idle(self) -> Token | None:
        """Take an idle resource that no waiter may have, in a pool with lanes; in others, the fast path does this."""
        engine, state = self.engine, self.engine.state
        assert isinstance(state, LaneState)
        lane = state.lane(self.lane)
        with engine.lock:
            return state.take(lane, engine.fast.now(), engine.fast.pop)

    # -- wait -----------------------------------------------------------------

    def _wait(self) -> Token:
        """Wait in the queue for a resource, or for the error that another thread puts into the box."""
        engine, rejected, first = self.engine, self._reject is not None, not self.waited
        self.waited = True
        state = engine.state  # a forked child has another one, with other lanes
        lane = state.lane(self.lane) if isinstance(state, LaneState) else None
        waiter = Waiter(self.arrived, threading.get_ident(), rejected, lane)
        item: Token | BaseException | None
        try:
            creations, closes = EMPTY_PLAN
            deadlocked = False
            with engine.lock:
                exhausted = self._admit_locked(waiter)
                if lane is not None and first and rejected:
                    lane.at_once -= 1  # the resource that it took proved dead
                if not (state.exhausted if lane is None else state.lanes.blocks(waiter, state.exhausted)):
                    if not rejected:  # otherwise plan after the rejected resource is disposed of
                        creations, closes = engine.plan_locked()
                        engine.metrics.note_in_use()
                elif engine.fast.track_holders:
                    deadlocked = self._is_deadlocked_locked(waiter)
            if rejected:
                self._dispose_rejected()
            elif creations or closes:
                engine.carry_out(creations, closes)
            if exhausted and engine.events.observers:
                engine.events.exhausted(len(state.waiters))
            if deadlocked and self.timeout:
                engine.events.deadlocked(describe(holders_of(engine.state.lent(), engine.fast.now())))
            item = engine.clock.get(waiter.box, self.arrived + self.timeout - engine.fast.now())
        except queue.Empty:
            with engine.lock:
                item = engine.state.waiters.leave(waiter)
            if item is None:
                engine.serve()  # a free slot may have been meant for this waiter
                self._raise_timeout(waiter)
        except BaseException as error:
            self._dispose_rejected()
            self._cancel_wait(waiter)
            if isinstance(error, TooManyWaiting):
                engine.events.refused()
            elif isinstance(error, PoolError) and not isinstance(error, PoolTimeout):
                engine.events.count("turned_away")
            raise
        if not waiter.given:
            with engine.lock:  # the thread that gave the item may have been interrupted
                engine.state.waiters.leave(waiter)
        if isinstance(item, Token):
            return item
        engine.events.count("turned_away")
        raise item

    def _dispose_rejected(self) -> None:
        reject, self._reject = self._reject, None
        if reject is not None:
            reject()

    def _admit_locked(self, waiter: Waiter) -> bool:
        """Put a waiter into the queue; return whether the pool becomes exhausted with it."""
        engine = self.engine
        state, limit, outage = engine.state, engine.settings.max_waiting, engine.outage
        now = engine.fast.now()
        if state.closed:
            raise PoolClosed(f"pool {engine.name!r} is closed")
        if outage.error is not None and outage.hurry(now, engine.settings.backoff):
            engine.schedule_sweep(outage.retry_at)
        refusal = outage.refusal(engine.name, engine.adapter.noun, state, now)
        if refusal is not None:
            raise refusal from outage.error
        if limit is not None and not waiter.again and (
            state.waiters.needing_release(waiter, state.waiting_for_release, len(state.closing)) >= limit
        ):
            if waiter.lane is not None:
                waiter.lane.refusals += 1
            counts, where = format_counts(engine.adapter, state), _lane(waiter, "of")
            raise TooManyWaiting(f"pool {engine.name!r}: the wait queue{where} is full (max_waiting={limit}; {counts})")
        state.started = True
        queue = state.waiters if waiter.lane is None else waiter.lane.queue
        if not queue:
            queue.exhaustion_reported = False  # the wait queue begins anew
        # A waiter whose resource proved dead has a slot once that is closed, unless the pool was shrunk meanwhile.
        exhausted: bool = not (queue.exhaustion_reported or (waiter.again and state.surplus <= 0)) and (
            state.exhausted if waiter.lane is None else state.lanes.blocks(waiter, state.exhausted)
        )
        if exhausted:
            queue.exhaustion_reported = True
            engine.metrics.count["exhausted"] += 1
            engine.metrics.note_in_use()
        state.waiters.join(waiter)
        if now + AUDIT < engine.sweep_due:
            engine.schedule_sweep(now + AUDIT)
        else:
            engine.runtime.reaper.ensure()
        return exhausted

    def _cancel_wait(self, waiter: Waiter) -> None:
        """Leave the queue because of an exception; what the waiter was given goes to the next one."""
        with self.engine.lock:
            item = self.engine.state.waiters.leave(waiter)
        if isinstance(item, Token):
            self.engine.make_available(item)
        else:
            self.engine.serve()

    # -- timeout --------------------------------------------------------------

    def _raise_timeout(self, waiter: Waiter) -> NoReturn:
        engine, timeout = self.engine, self.timeout
        with engine.lock:
            counts, down = format_counts(engine.adapter, engine.state), engine.outage.error
            cause = down or engine.outage.full
            lent = engine.state.lent()
            now = engine.fast.now()
            if waiter.lane is not None:
                waiter.lane.timeouts += 1
        when = f"within {timeout:.1f} s" if timeout else "at once"
        text = f"pool {engine.name!r}: no {engine.adapter.noun} {when}{_lane(waiter, 'in')} ({counts})"
        if lent and engine.fast.track_holders:
            mine = [entry for entry in lent if entry.thread == waiter.thread and not has_ended(entry)]
            if mine:
                text += f"; this thread holds {len(mine)} itself: {describe(holders_of(mine, now))}"
            text += f"; held by: {describe(holders_of(lent, now))}"
        if cause is not None:
            text += f"; last {engine.adapter.noun} error: {format_error(cause)}"
        engine.runtime.reaper.ensure()  # the reaper audits for waiters; if it was killed, this starts it again
        engine.events.timed_out(now - waiter.arrived)
        if down is not None and timeout == 0:
            raise PoolUnavailable(text) from cause
        raise PoolTimeout(text) from cause

    def _is_deadlocked_locked(self, waiter: Waiter) -> bool:
        """Whether this thread holds a resource, and every resource is held by a thread that waits here.

        Only called when nothing is idle and no slot is free. In a pool with lanes: nothing that the waiter's lane may
        use, and the resources are those of which one must be released.
        """
        state, me = self.engine.state, waiter.thread
        if isinstance(state, LaneState):
            return not waiter.given and state.is_stuck(waiter.lane, me) and not any(map(has_ended, state.lent()))
        first: Any = next(iter(state.entries), None)
        if first is None or first.thread not in state.waiters.threads or not first.held:
            return False  # the usual case: the holder is working
        if any(has_ended(entry) for entry in state.entries):
            return False  # its identifier may belong to another thread now
        if not any(entry.thread == me and entry.held for entry in state.entries):
            return False  # reported in the thread that closes the circle
        if state.creating or state.checking or state.closing or waiter.given:
            return False
        if state.max_size < self.engine.settings.max_size:
            return False  # a limit may be raised
        return all(entry.held and entry.thread in state.waiters.threads for entry in state.entries)


def instead_of_lease(engine: Engine[R], error: CircuitOpen) -> Any:
    """Return what the breaker's ``fallback`` gives in place of a lease, or raise the error if there is none."""
    breaker = engine.settings.breaker
    if breaker is None or breaker.fallback is None or engine.owner is None:
        raise error
    return breaker.fallback(engine.owner(), error)


def _lane(waiter: Waiter, word: str) -> str:
    return "" if waiter.lane is None else f" {word} lane {waiter.lane.name!r}"
