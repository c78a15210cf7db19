"""Events of a pool: one method per event counts it, logs it and notifies the observers.

Called after the pool's lock has been released, because observers and logging
handlers are foreign code. Counters that must change together with the state
(those of a closed entry) are updated inside the critical section instead.
"""

from __future__ import annotations

import logging
from typing import Any

from .._fields import fields
from ..errors import PoolError
from .entry import Entry
from .observer import Observer, notify
from .outage import Outage
from .report.holders import place_of
from .report.messages import format_error
from .report.metrics import PoolMetrics

__all__ = ["Events", "Resets", "report_circuit"]

logger = logging.getLogger("pooling")


class Events:
    """Reports what happens in one pool."""

    __slots__ = ("name", "noun", "metrics", "observers", "leases_observed")

    def __init__(self, name: str, noun: str, metrics: PoolMetrics) -> None:
        self.name = name
        self.noun = noun
        self.metrics = metrics
        self.observers: tuple[Observer, ...] = ()
        self.leases_observed = False  # an observer overrides `acquired` or `released`

    def observe(self, observers: tuple[Observer, ...]) -> None:
        """Notify these observers from now on."""
        self.observers = observers
        self.leases_observed = any(
            getattr(getattr(observer, event), "__func__", None) is not getattr(Observer, event)
            for observer in observers
            for event in ("acquired", "released")
        )

    def notify(self, event: str, *args: Any) -> None:
        """Call one method of each observer."""
        if self.observers:
            notify(self.observers, event, self.name, *args)

    def count(self, what: str) -> None:
        """Add one to a counter."""
        with self.metrics.lock:
            self.metrics.count[what] += 1

    # -- creations and outages ------------------------------------------------

    def created(self, seconds: float) -> None:
        """A resource was created."""
        if self.observers:
            self.notify("created", seconds)

    def create_failed(self, error: BaseException) -> None:
        """A creation failed; it was counted together with its slot."""
        self.notify("create_failed", error)

    def server_full(self, error: BaseException) -> None:
        """The server is up but accepts no more resources."""
        logger.warning(
            "pool %r: server connection limit reached; keeping the open %ss: %s",
            self.name, self.noun, format_error(error),
            extra=fields("server_full", self.name, error=format_error(error)),
        )

    def outage_began(self, error: BaseException, log: bool) -> None:
        """The first creation failed. Not logged if the outage belongs to an incident that was logged before."""
        if log:
            why = format_error(error)
            logger.warning(
                "pool %r: cannot create a %s: %s", self.name, self.noun, why,
                extra=fields("outage", self.name, error=why),
            )  # fmt: skip
        self.notify("outage_began", error)

    def outage_ended(self, seconds: float) -> None:
        """A creation succeeded again; logged by `recovered`, when that has lasted."""
        self.notify("outage_ended", seconds)

    def recovered(self, seconds: float, flaps: int) -> None:
        """Creations have succeeded for some seconds after an outage, which may have ended and begun several times."""
        again = f"; creations succeeded and failed again {flaps} times meanwhile" if flaps else ""
        logger.warning(
            "pool %r: recovered after %.1f s%s", self.name, seconds, again,
            extra=fields("recovered", self.name, seconds=seconds, flaps=flaps),
        )  # fmt: skip

    # -- acquire and release --------------------------------------------------

    def exhausted(self, waiting: int) -> None:
        """A borrower has to wait for a release; counted when it entered the wait queue."""
        self.notify("exhausted", waiting)

    def timed_out(self, waited: float) -> None:
        """An acquire timed out."""
        self.count("timeouts")
        self.notify("timed_out", waited)

    def refused(self) -> None:
        """An acquire was refused because the wait queue is full."""
        self.count("refusals")
        self.notify("refused")

    def deadlocked(self, holders: str) -> None:
        """Every resource is held by a thread that waits for another one."""
        logger.warning(
            "pool %r: probable deadlock: every %s is held by a thread that is itself waiting; held by: %s",
            self.name, self.noun, holders, extra=fields("deadlock", self.name, holders=holders),
        )

    def leaked(self, entry: Entry, held: float, limit: float) -> None:
        """A lease has been held for longer than ``leak_timeout``."""
        self.count("leaks")
        where = place_of(entry)
        logger.warning(
            "pool %r: a %s has been in use for %.1f s (leak_timeout=%g), acquired at %s",
            self.name, self.noun, held, limit, where,
            extra=fields("leak", self.name, seconds=held, limit=limit, where=where),
        )
        self.notify("leaked", where, held)

    def leak_returned(self, entry: Entry, held: float) -> None:
        """A lease that was reported as a leak was released."""
        where = place_of(entry)
        logger.warning(
            "pool %r: the leaked %s acquired at %s was released after %.1f s",
            self.name, self.noun, where, held, extra=fields("leak_returned", self.name, seconds=held, where=where),
        )

    def lease_dropped(self, entry: Entry) -> None:
        """A lease was garbage collected without a release."""
        where = place_of(entry)
        logger.warning(
            "pool %r: a lease was dropped without release, acquired at %s; closing its %s",
            self.name, where, self.noun, extra=fields("dropped", self.name, where=where),
        )
        self.notify("orphaned", where)

    # -- checks, resets, closes -----------------------------------------------

    def validation_failed(self, error: BaseException | None, reason: str) -> None:
        """A resource proved dead."""
        self.count("validation_failures")
        if self.observers:
            self.notify("validation_failed", error or PoolError(reason))

    def health_checked(self, error: Exception | None, wall: float) -> None:
        """A health check ended."""
        with self.metrics.lock:
            self.metrics.last_health_check = wall
            if error is not None:
                self.metrics.count["health_failures"] += 1
        self.notify("health_checked", error)

    def reset_failed(self, error: BaseException) -> None:
        """A reset failed; the resource is closed."""
        why = format_error(error)
        extra = fields("reset_failed", self.name, error=why)
        logger.info("pool %r: reset failed, closing: %s", self.name, why, extra=extra)
        with self.metrics.lock:
            self.metrics.errors["reset"] += 1

    def close_failed(self, error: BaseException) -> None:
        """A close failed; its slot is free nevertheless."""
        why = format_error(error)
        logger.debug("pool %r: close() failed: %s", self.name, why, extra=fields("close_failed", self.name, error=why))
        with self.metrics.lock:
            self.metrics.errors["close"] += 1

    def hung(self, what: str, seconds: float) -> None:
        """A check or a close exceeded its time limit."""
        logger.warning(
            "pool %r: %s a %s took over %.1f s; its slot is free again", self.name, what, self.noun, seconds,
            extra=fields("hung", self.name, what=what, seconds=seconds),
        )

    def all_suspect_replaced(self, failures: int) -> None:
        """So many round trips failed in a row that the whole generation is replaced."""
        logger.warning(
            "pool %r: %d %ss in a row proved dead; replacing all", self.name, failures, self.noun,
            extra=fields("replaced", self.name, failures=failures),
        )
        self.drained()

    def drained(self) -> None:
        """A new generation began."""
        self.notify("drained")

    def closed(self, reason: str) -> None:
        """A resource was closed; it was counted together with its slot."""
        if self.observers:
            self.notify("closed", reason)


def report_circuit(events: Events, outage: Outage) -> None:
    """Report that the circuit has opened or closed, if it has since the last call."""
    circuit = outage.circuit
    if circuit is None:
        return
    with events.metrics.lock:
        reason = circuit.reason
        if bool(reason) == circuit.reported:
            return
        circuit.reported = bool(reason)
    if reason:
        logger.warning(
            "pool %r: circuit open, no %s is created for now: %s", events.name, events.noun, reason,
            extra=fields("circuit_opened", events.name, host=None, error=reason),
        )  # fmt: skip
        events.notify("circuit_opened", None, reason)
    else:
        extra = fields("circuit_closed", events.name, host=None)
        logger.warning("pool %r: circuit closed, a %s was created", events.name, events.noun, extra=extra)
        events.notify("circuit_closed", None)


# "Resets keep failing" means three failures in a row, or more than one failure in five resets: a failure counts as
# _WEIGHT successes. Failures within _SAME_INCIDENT of the last report belong to the same incident.
_WEIGHT, _BEGINS, _MOST = 4, 12, 48
_SAME_INCIDENT = 60.0  # seconds


class Resets:
    """Reports once when resets keep failing, and once when they work again.

    Guarded by the lock, except ``trouble``, which each successful reset reads.
    """

    __slots__ = ("trouble", "error", "_events", "_reported", "_quiet_until")

    def __init__(self, events: Events) -> None:
        self.trouble = 0
        self.error: BaseException | None = None  # why resets keep failing
        self._events = events
        self._reported = False
        self._quiet_until = float("-inf")

    def failed(self, error: Exception, now: float) -> None:
        """Record a failed reset; report it if resets keep failing."""
        events = self._events
        with events.metrics.lock:
            self.trouble = min(self.trouble + _WEIGHT, _MOST)
            if self.trouble < _BEGINS:
                return
            self.error = error.with_traceback(None)
            news = not self._reported and now >= self._quiet_until
            if news:
                self._reported, self._quiet_until = True, now + _SAME_INCIDENT
        if news:
            logger.warning(
                "pool %r: resets keep failing, so %ss are closed at release instead of kept: %s",
                events.name, events.noun, format_error(error),
                extra=fields("resets_failing", events.name, error=format_error(error)),
            )
            events.notify("resets_failed", error)

    def succeeded(self) -> None:
        """Record a successful reset after failed ones."""
        events = self._events
        with events.metrics.lock:
            self.trouble = max(0, self.trouble - 1)
            if self.trouble:
                return
            reported, self._reported, self.error = self._reported, False, None
        if reported:
            logger.info("pool %r: resets work again", events.name, extra=fields("resets_recovered", events.name))
            events.notify("resets_recovered")
