"""The states of a circuit breaker, see `pooling.breaker`.

`CircuitState` decides, from times and outcomes alone. `Outage` has one for the
creations of a pool with a breaker; `Circuit` is one for calls of many threads,
such as the requests to a host.
"""

from __future__ import annotations

import _thread
import weakref
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..breaker import CircuitBreaker
from ..errors import CircuitOpen

__all__ = ["CLOSED", "Circuit", "CircuitState", "HALF_OPEN", "OPEN"]

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


class CircuitState:
    """Whether calls may be made, from the outcomes of those before.

    Pure: values in, values out; guarded by its owner's lock.
    """

    __slots__ = ("policy", "state", "reason", "retry_at", "reported", "_open_for", "_in_a_row", "_failed", "_outcomes")

    def __init__(self, policy: CircuitBreaker) -> None:
        self.policy = policy
        self.state = CLOSED
        self.reason = ""  # why it is not closed
        self.retry_at = 0.0  # when a call may be made again
        self.reported = False  # that it is open; see `events.report_circuit`
        self._open_for = policy.open_for
        self._in_a_row = 0
        self._failed = 0  # of the outcomes
        self._outcomes: deque[tuple[float, bool]] = deque()  # time, whether it failed

    def at(self, now: float) -> str:
        """Return the state at a time: an open circuit is half-open from ``retry_at`` on."""
        if self.state == OPEN and now >= self.retry_at:
            self.state = HALF_OPEN
        return self.state

    def failed(self, now: float, reason: str, trial: bool) -> bool:
        """Record a failed call; return whether the circuit opens, having been closed.

        Args:
            now: The time.
            reason: In a few words, for messages.
            trial: It was the call of the half-open circuit. Others that end while it is not closed began before.
        """
        if trial:
            self._open_for = min(self._open_for * 2, self.policy.open_for_max)
            self._open(now, reason)
        elif self.state == CLOSED:
            self._in_a_row += 1
            self._count(now, True)
            if self._must_open():
                self._open_for = self.policy.open_for
                self._open(now, f"{self._why()}, the last: {reason}")
                return True
        return False

    def succeeded(self, now: float, trial: bool) -> bool:
        """Record a call that succeeded; return whether the circuit closes."""
        if trial:
            self.state, self.reason = CLOSED, ""
            self._in_a_row = self._failed = 0
            self._outcomes.clear()
        elif self.state == CLOSED:
            self._in_a_row = 0
            self._count(now, False)
        return trial

    def error(self, name: str, now: float) -> CircuitOpen:
        """Return the error for a call that is not made.

        Args:
            name: What the message calls the server.
            now: The time.
        """
        left = max(0.0, self.retry_at - now)
        when = "being tried now" if self.at(now) == HALF_OPEN else f"again in {left:.1f} s"
        return CircuitOpen(f"{name}: circuit open ({self.reason}; {when})", left)

    def _count(self, now: float, failed: bool) -> None:
        if self.policy.rate is None:
            return
        outcomes = self._outcomes
        outcomes.append((now, failed))
        self._failed += failed
        while outcomes[0][0] < now - self.policy.window:
            self._failed -= outcomes.popleft()[1]

    def _must_open(self) -> bool:
        policy, calls = self.policy, len(self._outcomes)
        if self._in_a_row >= policy.failures:
            return True
        return policy.rate is not None and calls >= policy.calls and self._failed >= policy.rate * calls

    def _why(self) -> str:
        if self._in_a_row >= self.policy.failures:
            return "1 failure" if self._in_a_row == 1 else f"{self._in_a_row} failures in a row"
        return f"{self._failed} of {len(self._outcomes)} calls failed within {self.policy.window:g} s"

    def _open(self, now: float, reason: str) -> None:
        self.state, self.reason = OPEN, reason
        self.retry_at = now + self._open_for


class Circuit:
    """The circuit of one server that many threads call.

    Args:
        policy: When it opens.
        name: What messages call the server.
        changed: Called after it has opened, with the reason; and after it has closed again, with ``None``.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        policy: CircuitBreaker,
        name: str,
        changed: Callable[[str | None], object] = lambda reason: None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.name = name
        self._changed = changed
        self._now = now
        # Native and re-entrant, as the pool's own (see `runtime.gevent`): a destructor may end a call.
        self._lock: Any = _thread.RLock()
        self._state = CircuitState(policy)
        # The call of the half-open circuit; weak, because a call may be lost: an exception may interrupt its thread.
        self._trial: weakref.ref[_Call] | None = None

    @property
    def policy(self) -> CircuitBreaker:
        """When it opens."""
        return self._state.policy

    @property
    def state(self) -> str:
        """``"closed"``, ``"open"`` or ``"half-open"``."""
        return self._state.state

    @property
    def reason(self) -> str | None:
        """Why it is not closed."""
        return self._state.reason or None

    def enter(self) -> object:
        """Begin a call.

        Returns:
            A token for the call, which has to be given to exactly one of `succeeded`, `failed` and `left`.

        Raises:
            CircuitOpen: No call may be made now.
        """
        call = _Call()
        with self._lock:
            if self._state.state == CLOSED:
                return call
            now = self._now()
            if self._state.at(now) == HALF_OPEN and (self._trial is None or self._trial() is None):
                self._trial = weakref.ref(call)
                return call
            error = self._state.error(self.name, now)
        raise error

    def succeeded(self, call: object) -> None:
        """End a call that the server has answered."""
        with self._lock:
            closed = self._state.succeeded(self._now(), self._is_trial(call))
        if closed:
            self._changed(None)

    def failed(self, call: object, reason: str) -> None:
        """End a call at which the server failed.

        Args:
            call: From `enter`.
            reason: In a few words, for messages.
        """
        with self._lock:
            opened = self._state.failed(self._now(), reason, self._is_trial(call))
            reason = self._state.reason
        if opened:
            self._changed(reason)

    def left(self, call: object) -> None:
        """End a call that says nothing about the server; harmless after its end."""
        with self._lock:
            self._is_trial(call)

    def _is_trial(self, call: object) -> bool:
        """Whether it was the call of the half-open circuit; another may be made after it. Needs the lock."""
        if self._trial is None or call is not self._trial():
            return False
        self._trial = None
        return True


class _Call:
    """A call, as long as something refers to it."""

    __slots__ = ("__weakref__",)
