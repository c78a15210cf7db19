"""Probe: a health check of the server that never waits behind borrowers.

It takes an idle resource, or one that is created for it where a slot is free,
and never enters the wait queue. If every resource is in use, it answers at
once: exhausted, which is no outage, unless creations fail, or the server does
not answer outside of the pool either (`Adapter.ping`). That is asked only if
no resource has heard from the server in the last second, by one thread at a
time, and waited for only briefly; a late answer counts for the next check.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..errors import PoolClosed, PoolTimeout, PoolUnavailable
from .adapter import overridden
from .checkin import Checkin
from .engine import Engine
from .entry import DEAD, Token
from .hangup import connected
from .lanestate import LaneState
from .liveness import Liveness
from .report.messages import format_error, format_exhaustion, format_late
from .schedule import AUDIT
from .waiting import wait_until

__all__ = ["Probe"]

R = TypeVar("R")

_FRESH = 1.0  # seconds for which an answer of the server counts
_STALE = 30.0  # seconds after which a missing answer does not count any more
_PATIENCE = 0.25  # seconds to wait for an answer outside of the pool
_ATTEMPTS = 2  # failed creations in a row after which the server counts as down


class Probe(Generic[R]):
    """Makes round trips for the health checks of one pool."""

    def __init__(self, engine: Engine[R], liveness: Liveness[R], checkin: Checkin[R]) -> None:
        self.engine = engine
        self.liveness = liveness
        self.checkin = checkin
        self._of_state: object = None
        self._renew()

    def _renew(self) -> None:
        """Forget what is known; also in a forked child, which has another state. Needs the lock, except at first."""
        if self._of_state is self.engine.state:
            return
        # All below: guarded by the pool's lock.
        self._of_state = self.engine.state
        self._checking = 0  # resources that health checks hold
        self._succeeded = float("-inf")  # when the last check that succeeded began
        self._asking = False  # outside of the pool
        self._asked_at = float("-inf")
        self._error: BaseException | None = None  # of the last answer outside of the pool

    def run(self, timeout: float, check: Callable[[R, float], object] | None = None) -> str | None:
        """Make a round trip; see `Pool.probe`.

        Args:
            timeout: Seconds for all of it.
            check: Called with a resource and the seconds left instead of `Adapter.validate`; raises if something is
                wrong.
        """
        engine = self.engine
        engine.ensure_usable()
        began = engine.fast.now()
        deadline = began + timeout
        with engine.lock:
            self._renew()
        failed = False
        while True:
            token = self._take(timeout, began)
            if token is None:
                return None
            if isinstance(token, str):
                return self._if_answering(token, deadline)
            error = self._check(token, check or engine.adapter.validate, deadline)
            if error is None:
                return None
            if failed:
                raise error
            failed = True
            del token, error
            self.liveness.check_all_idle()  # they may have died together, while the server works again

    # -- take a resource ------------------------------------------------------

    def _take(self, timeout: float, began: float) -> Token | str | None:
        """Take an idle resource, waiting for a new one where a slot is free.

        Returns:
            The token; why there is none, if the pool is full or paused; ``None`` if another health check has succeeded
            meanwhile.
        """
        engine, state, outage = self.engine, self.engine.state, self.engine.outage
        failures = outage.failures
        while True:
            token = self._take_idle(began + timeout)
            if token is not None:
                return token
            with engine.lock:
                now = engine.fast.now()
                if state.closed:
                    raise PoolClosed(f"pool {engine.name!r} is closed")
                refusal = outage.refusal(engine.name, engine.adapter.noun, state, now)
                if refusal is not None:
                    raise refusal from outage.error
                if self._succeeded >= began:
                    return None
                if state.paused or self._full():
                    return "paused" if state.paused else format_exhaustion(state, now)
                if outage.error is not None and (
                    state.waiters or (outage.failures != failures and outage.failures >= _ATTEMPTS)
                ):
                    self._raise_unavailable(timeout)
                state.started = True
                creations = [] if state.creating else engine.fill_locked(1)
            engine.carry_out(creations, [])
            failed = outage.failures
            left = began + timeout - engine.fast.now()  # a release does not end the wait, so it is in parts
            go_on = functools.partial(self._may_go_on, failed, began)
            if not wait_until(engine, go_on, min(left, AUDIT)) and left <= AUDIT:
                self._raise_unavailable(timeout)

    def _full(self) -> bool:
        """Whether borrowers hold every resource; those of other health checks do not count. Needs the lock."""
        state = self.engine.state
        if isinstance(state, LaneState):
            return not (self._checking or state.lanes.may_have_one(state.probe_lane()))
        return not state.idle and state.in_use - self._checking >= state.max_size

    def _may_go_on(self, failed: int, began: float) -> bool:
        """Whether there is something new for `_take`. Needs the lock."""
        engine, state, outage = self.engine, self.engine.state, self.engine.outage
        mine = not isinstance(state, LaneState) or state.lanes.may_have_one(state.probe_lane())
        if (state.idle and mine) or state.closed or state.paused or self._full() or self._succeeded >= began:
            return True
        if outage.failures > max(failed, 1):
            return True
        if outage.final and not state.live:
            return True
        return not state.creating and state.creatable(outage.allowed(engine.fast.now())) > 0

    def _take_idle(self, deadline: float) -> Token | None:
        """Take an idle resource that is alive as far as that is known without a round trip."""
        engine, state, liveness = self.engine, self.engine.state, self.liveness
        while True:
            token = self._pop()
            if token is None:
                return None
            if state.fast_path_closed or state.unfit(token.entry, engine.fast.now()):
                engine.make_available(token)  # which closes it
            elif not liveness.has_ended_reset(token.entry, max(0.0, deadline - engine.fast.now())) and (
                token.entry.generation is not DEAD
            ):
                liveness.finish_on_worker(token)
            elif token.entry.generation is DEAD or not liveness.is_alive(token.entry):
                liveness.found_dead(token, "dead", None)
            else:
                return token

    def _pop(self) -> Token | None:
        """Remove a resource from the idle stack, unless it is for a waiter, or for another lane."""
        engine, state = self.engine, self.engine.state
        if isinstance(state, LaneState):
            with engine.lock:
                return state.take(state.probe_lane(), engine.fast.now(), engine.fast.pop)
        if state.waiters or state.paused:
            return None
        try:
            return engine.fast.pop()
        except IndexError:
            return None

    def _raise_unavailable(self, timeout: float) -> None:
        engine, noun = self.engine, self.engine.adapter.noun
        with engine.lock:
            error, live, what = engine.outage.error, engine.state.live, f"no {noun} for a health check"
            text = format_late(engine.name, what, timeout, engine.adapter, engine.state, error)
        raise (PoolTimeout if live and error is None else PoolUnavailable)(text) from error

    # -- with a resource ------------------------------------------------------

    def _check(self, token: Token, check: Callable[[R, float], object], deadline: float) -> Exception | None:
        """Check a resource and release it; discard it and return the error if that fails."""
        engine, entry = self.engine, token.entry
        entry.thread, entry.code, entry.lasti = threading.get_ident(), self.run.__code__, 0
        entry.since = engine.fast.now()
        began, state = entry.since, engine.state
        with engine.lock:
            self._checking += 1
        if engine.events.leases_observed:
            engine.events.notify("acquired", 0.0)
        found: Exception | None = None
        reason: str | None = "discarded"
        try:
            check(entry.resource, max(0.0, deadline - engine.fast.now()))
            reason = None
        except Exception as error:
            found = error
        finally:
            self.checkin.run(token, None, reason)
            with engine.lock:
                if engine.state is state:
                    self._checking -= 1
                    self._succeeded = began if reason is None else self._succeeded
            engine.serve()  # wakes other health checks
        return found

    # -- without one ----------------------------------------------------------

    def _if_answering(self, text: str, deadline: float) -> str:
        """Return why no resource could be checked; raise if the server is down as well."""
        engine = self.engine
        error = engine.outage.error
        if error is None:
            error = self._ask(min(_PATIENCE, max(0.0, deadline - engine.fast.now())))
        if error is None:
            return text
        text = f"pool {engine.name!r}: {text}; the server does not answer: {format_error(error)}"
        raise PoolUnavailable(text) from error

    def _ask(self, patience: float) -> BaseException | None:
        """Return the error if the server does not answer outside of the pool; ``None`` if it does, or is not known."""
        engine = self.engine
        ping = overridden(engine.adapter, "ping")
        if ping is None:
            return self._all_hung_up()
        with engine.lock:
            now = engine.fast.now()
            if any(entry.checked > now - _FRESH for entry in engine.state.entries):
                return None
            known = now < self._asked_at + _FRESH
            start = not known and not self._asking
            self._asking = self._asking or start
        if start:
            limit = engine.settings.health_check_timeout
            engine.runtime.workers.submit(self._run_ping, ping, limit, engine.state, engine.ref())
        if not known:
            wait_until(engine, lambda: not self._asking, patience)
        with engine.lock:
            return self._error if engine.fast.now() < self._asked_at + _STALE else None

    def _run_ping(self, ping: Callable[[float], object], limit: float, state: object, owner: object = None) -> None:
        error: BaseException | None = None
        try:
            ping(limit)
        except BaseException as raised:
            error = raised.with_traceback(None)
        engine = self.engine
        with engine.lock:
            if self._of_state is state:
                self._asking, self._asked_at, self._error = False, engine.fast.now(), error
        engine.serve()  # wakes the thread that waits for it

    def _all_hung_up(self) -> BaseException | None:
        """Return an error if the peers of all resources in use have hung up; without a round trip."""
        entries: list[Any] = self.engine.state.lent()
        try:
            if not entries or any(not entry.watched or connected(entry.resource) for entry in entries):
                return None
        except Exception:  # released and closed meanwhile
            return None
        return ConnectionError(f"the server has closed every {self.engine.adapter.noun} in use")
