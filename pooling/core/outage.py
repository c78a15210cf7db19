"""Tracks whether the server is up: how many creations may run at once, and when to try again (P7).

- Up: any number.
- Down, after a failed creation: none until the backoff delay has passed, then a
  single attempt; averaged over the outage, never more often than every `PACE`.
- Recovered: 1, 2, 4, ..., so that a server that has just returned is not flooded.
- Final error: one attempt, at growing intervals, but after `REMEMBERED` if a
  borrower asks.
- Full (the server is up, but at its connection limit): none for a while, then
  one, and so on.
- In doubt, after a proven death: 1, 2, 4, ... as well. When a server goes down,
  everything in use breaks at once. If each resource were replaced at once, the
  dead server would see as many attempts as the pool is large before the first
  one fails.

Not every death starts a doubt. When hundreds have died, they are found one by
one, long after the first was replaced; if each started a new doubt, they would
be replaced one at a time. So a death counts only if its resource was proved
alive (created, or seen to answer) after creations were last held back;
otherwise it may have died of the same cause. A doubt ends with the first
creation that succeeds (if that began before the death, the ramp starts with two
instead of one), and after `PATIENCE` in any case, because a creation that hangs
says nothing. Within that time there is no second doubt, so that resources that
die all the time are still replaced. Consequently:

- A doubt holds all creations but one back for the duration of one creation or
  `PATIENCE`, whatever else is found dead meanwhile, or later if it is as old.
- The death of a resource that was proved alive since then starts a new doubt, so
  the next outage begins with one attempt, too. If no resource was (all lent
  before and still in use, or of a kind that does not answer at release), it
  begins with a burst: more attempts than necessary, but better than a pool that
  fills slowly.

With a `CircuitBreaker`, creations that keep failing open a circuit: it says when
the next attempt is, and until then a borrower that would need a creation is
refused instead of waiting for it.

Pure: values in, values out; guarded by the pool's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..breaker import CircuitBreaker
from ..errors import CircuitOpen, CreateFailed, PoolError, PoolUnavailable
from ..settings import Backoff
from .circuit import CLOSED, HALF_OPEN, OPEN, CircuitState
from .report.messages import format_error
from .state import UNLIMITED, PoolState

__all__ = ["Incident", "Outage"]

_NEVER = float("inf")
FULL = 1.0
"""Average seconds without attempts after a server was full."""

PATIENCE = 1.0
"""Maximum seconds for which a death holds creations back: a server that is down usually refuses within milliseconds."""

REMEMBERED = 2.0
"""Seconds after which a final error is tried again when a borrower asks: soon enough after a password was corrected,
and rare enough for a server that locks accounts. Never sooner than the failed attempt took."""

SETTLE = 5.0
"""Seconds for which creations must succeed before the log reports the end of an outage: one that begins again sooner
is the same outage."""

PACE = 0.125
"""Minimum average seconds between attempts during an outage: the mean of full jitter over 0.25 s."""


class Outage:
    """The state of the server, according to the last creations."""

    __slots__ = (
        "error", "final", "failures", "since", "retry_at", "full", "lapses_at", "again_at",
        "incident", "succeeded_at", "most", "_ramp", "_settled", "full_at", "circuit",
    )

    def __init__(self, most: int | None = None) -> None:
        self.most = UNLIMITED if most is None else most  # creations at once, also while the server is up
        self.incident = Incident()
        self.circuit: CircuitState | None = None  # in a pool with a breaker
        self.succeeded_at = -_NEVER  # when a creation worked last
        self.error: BaseException | None = None  # the last real cause; None: up
        self.final = False  # another attempt would not help
        self.failures = 0  # consecutive
        self.since = 0.0
        self.retry_at = 0.0
        self.full: BaseException | None = None  # it is up, but at its connection limit; open resources stay in service
        self.lapses_at = _NEVER  # when the ramp ends by itself
        self.again_at = 0.0  # when a borrower may have a final error tried again
        self._ramp = UNLIMITED
        self._settled = -_NEVER  # when creations were last held back, or will be at the latest
        self.full_at = -_NEVER  # when the server was last full

    @property
    def text(self) -> str | None:
        """The last real cause in one line, or ``None`` while the server is up."""
        return None if self.error is None else format_error(self.error)

    def use(self, breaker: CircuitBreaker | None) -> None:
        """Have this breaker from now on, with a closed circuit if it is another one."""
        if breaker != (self.circuit and self.circuit.policy):
            self.circuit = None if breaker is None else CircuitState(breaker)
            self.retry_at = 0.0

    def stats(self, now: float) -> dict[str, str | None]:
        """Return why the server is down, and the state of the circuit if there is one."""
        return {"down": self.text, **({} if self.circuit is None else {"circuit": self.circuit.at(now)})}

    @property
    def circuit_is_open(self) -> bool:
        """Whether creations are held back by a circuit; also while it is half-open."""
        return self.circuit is not None and self.circuit.state != CLOSED

    def circuit_open(self, pool: str, now: float) -> CircuitOpen:
        """Return the error for a borrower that would need a creation."""
        assert self.circuit is not None
        return self.circuit.error(f"pool {pool!r}", now)

    def refusal(self, pool: str, noun: str, state: PoolState, now: float) -> PoolError | None:
        """Return the error for a borrower that is not to wait for a creation; ``None`` if it may wait."""
        if self.final and not state.live and now < self.retry_at:
            return self.cannot_create(pool, noun)
        if self._circuit_refuses(state) and (now < self.retry_at or state.creating or state.waiters):
            return self.circuit_open(pool, now)
        return None

    def fail_waiters(self, pool: str, noun: str, state: PoolState, now: float, most: int | None) -> None:
        """Fail waiters after a failed creation that is final, opened a circuit, or was their ``most``-th."""
        if self.final and not state.live:
            state.waiters.fail(CreateFailed, str(self.cannot_create(pool, noun)), self.error)
        if self._circuit_refuses(state):
            error = self.circuit_open(pool, now)
            state.waiters.fail(partial(CircuitOpen, retry_after=error.retry_after), str(error), self.error)
        if most is not None:
            for waiter in state.waiters:
                waiter.attempts += 1
            text = f"pool {pool!r}: {most} attempts to create a {noun} failed: {self.text}"
            state.waiters.fail(PoolUnavailable, text, self.error, most)

    def _circuit_refuses(self, state: PoolState) -> bool:
        """Whether a circuit is not closed, and a borrower would need a creation rather than a release."""
        return self.circuit_is_open and not state.idle and state.live < state.max_size

    def cannot_create(self, pool: str, noun: str) -> CreateFailed:
        """Return the error for a creation that can never succeed."""
        return CreateFailed(f"pool {pool!r}: cannot create a {noun}: {self.text}")

    def allowed(self, now: float) -> int:
        """Return how many creations may run at this moment."""
        if self.error is None and self.full is None:
            return min(self.most, self._ramp) if now < self.lapses_at else self.most
        return 1 if now >= self.retry_at else 0

    def died(self, seen: float, now: float) -> bool:
        """Record a proven death; return whether it starts a doubt, which lasts until ``lapses_at``.

        Args:
            seen: When that resource was last proved alive: created, or seen to answer.
            now: The time.
        """
        known = self.error is not None or self.full is not None or now < self.lapses_at < _NEVER
        if known or seen < self._settled:
            return False
        self._ramp = 1
        self._settled = self.lapses_at = now + PATIENCE
        return True

    def failed(
        self,
        error: BaseException,
        final: bool,
        now: float,
        backoff: Backoff,
        waiting: bool,
        uniform: Callable[[], float],
        took: float = 0.0,
    ) -> bool:
        """Record a failed creation that took ``took`` seconds; return whether an outage begins with it.

        Creations that were in progress when the first one failed belong to the
        same outage: their failures do not lengthen the delay.
        """
        begins = self.error is None
        self.full = None
        if begins:
            self.since = now
        if begins or now >= self.retry_at:
            self.failures += 1
            delay = backoff.delay(self.failures, waiting=waiting, random=uniform)
            pace = min(PACE, backoff.probe_interval / 2)  # jitter may give short delays, but not on average
            self.retry_at = max(now + delay, self.since + pace * (self.failures - 1))
        if self.circuit is not None:
            # A creation that was in progress when the circuit opened is not the one that was to try again.
            self.circuit.failed(now, format_error(error), trial=self.circuit.at(now) == HALF_OPEN)
            if self.circuit.state == OPEN:
                self.retry_at = self.circuit.retry_at
        self.again_at = now + max(REMEMBERED, took)
        self.error = _bare(error)
        self.final = final
        self._hold_back()
        return begins

    def refused(self, error: BaseException, now: float, uniform: Callable[[], float]) -> bool:
        """Record that the server is up, but at its connection limit; return whether to report it."""
        news = self.full is None and now > self.full_at + SETTLE
        self.full_at = now
        self.full = _bare(error)
        self.retry_at = now + FULL * (0.5 + uniform())
        self._hold_back()
        return news

    def _hold_back(self) -> None:
        """Allow one creation at a time until one succeeds, then ramp up."""
        self._ramp, self.lapses_at = 1, _NEVER

    def hurry(self, now: float, backoff: Backoff) -> bool:
        """Try again within ``probe_interval``, or `REMEMBERED`, for a borrower; return whether that is sooner."""
        soon = self.again_at if self.final else now + backoff.probe_interval
        if self.error is None or self.retry_at <= soon or self.circuit_is_open:
            return False
        self.retry_at = soon
        return True

    def succeeded(self, enough: int, now: float) -> bool:
        """Record a successful creation; return whether an outage ends with it.

        Args:
            enough: The number of concurrent creations at which the ramp ends.
            now: The time.
        """
        self.succeeded_at = now
        if self.circuit is not None:
            self.circuit.succeeded(now, trial=self.circuit.state != CLOSED)
        ends = self.error is not None
        if ends or self.full is not None or now < self._settled:
            self._settled = now
        self.full = None
        if ends:
            self.error, self.final, self.failures = None, False, 0
        if self._ramp < UNLIMITED:
            self._ramp *= 2
            if self._ramp >= enough:
                self._ramp = UNLIMITED
        return ends


class Incident:
    """Outages as reported in the log: those in quick succession are one incident (P12).

    On a link that sometimes loses packets, creations may fail and succeed again many times a second.
    """

    __slots__ = ("since", "ended", "flaps")

    def __init__(self) -> None:
        self.since: float | None = None  # None: no incident, or it was reported
        self.ended = _NEVER  # when creations began to succeed again
        self.flaps = 0  # how often they failed again after that

    @property
    def due(self) -> float:
        """When to check whether it is over."""
        return _NEVER if self.since is None else self.ended + SETTLE

    def begins(self, now: float) -> bool:
        """Record that creations fail; return whether that is a new incident."""
        news = self.since is None
        if news:
            self.since, self.flaps = now, 0
        else:
            self.flaps += 1
        self.ended = _NEVER
        return news

    def ends(self, now: float) -> None:
        """Record that creations succeed again."""
        self.ended = now

    def over(self, now: float, settle: float = SETTLE) -> tuple[float, int] | None:
        """Return its length and its `flaps`, once, when it has been over for ``settle`` seconds."""
        if self.since is None or now < self.ended + settle:
            return None
        took, self.since = self.ended - self.since, None
        return took, self.flaps


def _bare(error: BaseException) -> BaseException:
    """Remove the tracebacks from an error and its causes: stored ones would keep frames, and leases in them, alive."""
    chain, seen = [error], {id(error)}
    while chain:
        one = chain.pop().with_traceback(None)
        for other in (one.__context__, one.__cause__):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                chain.append(other)
    return error
