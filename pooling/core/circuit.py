"""Circuit breaker: calls fail at once while a server keeps failing.

Closed: every call is made, and counted. It opens after ``failures`` failed
calls in a row, or when ``rate`` of at least ``calls`` calls in the last
``window`` seconds have failed: the first is for a server that is down, the
second for one that fails now and then.

Open: every call raises `CircuitOpen` until ``open_for`` seconds have passed.

Half-open: exactly one call is made. If it succeeds, the circuit closes; if it
fails, it opens again, for twice as long (at most ``open_for_max``). Any other
end of the call, such as a ``KeyboardInterrupt`` or a wait that timed out, says
nothing about the server: the next call is the one that is made.

The terms are those of M. Nygard, Release It! (2007); consecutive failures and
a rate over a window are the two triggers of Envoy's outlier detection and of
resilience4j.
"""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from time import monotonic
from typing import Any

from .._masking import shown
from ..errors import CircuitOpen

__all__ = ["Circuit", "CircuitBreaker"]

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker:
    """When a circuit opens, and for how long.

    Attributes:
        failures: It opens after so many failed calls in a row.
        rate: It opens when this part of the calls of the last ``window`` seconds has failed; ``None`` for never.
        calls: The least number of calls in the window for which the ``rate`` counts.
        window: Seconds.
        open_for: Seconds before a call is made again; doubled after each that fails.
        open_for_max: The longest that it is doubled to, in seconds.
        fallback: Called with the request and the `CircuitOpen` instead of raising that; its result is the answer.

    Raises:
        TypeError, ValueError: A value has the wrong type, or is out of its range.
    """

    failures: int = 5
    rate: float | None = 0.5
    calls: int = 20
    window: float = 10.0
    open_for: float = 5.0
    open_for_max: float = 60.0
    fallback: Callable[[Any, CircuitOpen], Any] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "fallback":
                if value is not None and not callable(value):
                    raise TypeError(f"fallback must be callable, not {shown(value)}")
            elif field.name in ("failures", "calls"):
                if isinstance(value, bool) or not isinstance(value, int):
                    raise TypeError(f"{field.name} must be a whole number, not {shown(value)}")
                if value < 1:
                    raise ValueError(f"{field.name} must be at least 1, not {value}")
            elif not (field.name == "rate" and value is None):
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise TypeError(f"{field.name} must be a number, not {shown(value)}")
                if not 0 < value < float("inf"):
                    raise ValueError(f"{field.name} must be above 0 and finite, not {value}")
        if self.rate is not None and self.rate > 1:
            raise ValueError(f"rate must be at most 1, not {self.rate}")
        if self.open_for_max < self.open_for:
            raise ValueError(f"open_for_max must be at least open_for={self.open_for}, not {self.open_for_max}")


CircuitBreaker.__module__ = "pooling"


class Circuit:
    """The state of one circuit.

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
        self.policy = policy
        self.name = name
        self._changed = changed
        self._now = now
        # Native and re-entrant, as the pool's own (see `runtime.gevent`): a destructor may end a call.
        self._lock: Any = _thread.RLock()
        self._state = CLOSED
        self._in_a_row = 0
        self._failed = 0  # of the outcomes
        self._outcomes: deque[tuple[float, bool]] = deque()  # time, whether it failed
        self._retry_at = 0.0
        self._open_for = policy.open_for
        self._reason = ""
        self._trial: object = None  # the call of the half-open circuit

    @property
    def state(self) -> str:
        """``"closed"``, ``"open"`` or ``"half-open"``."""
        return self._state

    @property
    def reason(self) -> str | None:
        """Why it is not closed."""
        return None if self._state == CLOSED else self._reason

    def enter(self) -> object:
        """Begin a call.

        Returns:
            A token for the call, which has to be given to exactly one of `succeeded`, `failed` and `left`.

        Raises:
            CircuitOpen: No call may be made now.
        """
        call = object()
        with self._lock:
            if self._state == CLOSED:
                return call
            now = self._now()
            if self._state == OPEN and now >= self._retry_at:
                self._state = HALF_OPEN
            if self._state == HALF_OPEN and self._trial is None:
                self._trial = call
                return call
            when = f"again in {self._retry_at - now:.1f} s" if self._state == OPEN else "being tried now"
        raise CircuitOpen(f"{self.name}: circuit open ({self._reason}; {when})", max(0.0, self._retry_at - now))

    def succeeded(self, call: object) -> None:
        """End a call that the server has answered."""
        with self._lock:
            if call is self._trial:
                self._trial = None
                self._close()
                closed = True
            else:
                closed = False
                if self._state == CLOSED:
                    self._in_a_row = 0
                    self._count(False)
        if closed:
            self._changed(None)

    def failed(self, call: object, reason: str) -> None:
        """End a call at which the server failed.

        Args:
            call: From `enter`.
            reason: In a few words, for messages.
        """
        with self._lock:
            opened = False
            if call is self._trial:
                self._trial = None
                self._open_for = min(self._open_for * 2, self.policy.open_for_max)
                self._open(reason)
            elif self._state == CLOSED:  # else it began before the circuit opened
                self._in_a_row += 1
                self._count(True)
                opened = self._must_open()
                if opened:
                    self._open_for = self.policy.open_for
                    self._open(f"{self._why()}, the last: {reason}")
            reason = self._reason
        if opened:
            self._changed(reason)

    def left(self, call: object) -> None:
        """End a call that says nothing about the server; harmless after its end."""
        with self._lock:
            if call is self._trial:
                self._trial = None

    # -- internals, with the lock ----------------------------------------------------

    def _count(self, failed: bool) -> None:
        if self.policy.rate is None:
            return
        now, outcomes = self._now(), self._outcomes
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
            return f"{self._in_a_row} failures in a row"
        return f"{self._failed} of {len(self._outcomes)} calls failed within {self.policy.window:g} s"

    def _open(self, reason: str) -> None:
        self._state, self._reason = OPEN, reason
        self._retry_at = self._now() + self._open_for

    def _close(self) -> None:
        self._state, self._reason = CLOSED, ""
        self._in_a_row = self._failed = 0
        self._outcomes.clear()
