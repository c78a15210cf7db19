"""The statistics, log and outage reports of a psycopg_pool facade."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from ..core.observer import Observer
from ..core.report.messages import format_error
from ..core.report.snapshot import PoolSnapshot

__all__ = ["BAD", "Ledger", "logger"]

logger = logging.getLogger("psycopg.pool")

_LOST = {"dead", "invalid", "check_timeout"}  # found while idle, or before it was lent
BAD = {"broken", "reset", "interrupted"}  # returned in this state


class Ledger(Observer):
    """Keeps psycopg_pool's statistics for one core, without observing an event of the hot path.

    Args:
        facade: A weak reference to the facade.
        waits: Whether requests that wait for a new connection count as queued.
    """

    def __init__(self, facade: Any, waits: bool = True) -> None:
        self._facade, self._waits = facade, waits
        self.renew()

    def renew(self) -> None:
        """Reset the counters, in a forked child, whose core also counts from zero."""
        self._heard: Counter[str] = Counter()  # guarded by the core's lock, which is new in a child
        self._popped: Counter[str] = Counter()  # the totals at the last pop; guarded likewise
        self._told = 0  # how often this outage was reported
        self._down_since: float | None = None

    # -- events -------------------------------------------------------------------

    def created(self, pool: str, seconds: float) -> None:
        self._count(connections_num=1, connections_ms=int(seconds * 1000))
        logger.info("pool %r: a new connection", pool)

    def create_failed(self, pool: str, error: BaseException) -> None:
        self._count(connections_num=1, connections_errors=1)
        logger.info("pool %r: connecting failed: %s", pool, format_error(error))
        facade = self._facade()
        if facade is not None and self._overdue(facade):
            logger.warning("pool %r: no connection could be made for %g s", pool, facade.reconnect_timeout)
            facade.reconnect_failed()

    def outage_began(self, pool: str, error: BaseException) -> None:
        facade = self._facade()
        if facade is None or facade.closed:
            return  # an attempt in progress when the pool was closed
        self._told, self._down_since = 0, facade.core.engine.clock.now()
        logger.warning("error connecting in %r: %s", pool, format_error(error))

    def outage_ended(self, pool: str, seconds: float) -> None:
        self._down_since = None

    def timed_out(self, pool: str, waited: float) -> None:
        if self._waits:
            self.queued(waited)

    def queued(self, waited: float) -> None:
        """Count a request that waited in the queue."""
        self._count(requests_queued=1, requests_wait_ms=int(waited * 1000))

    def forget_request(self) -> None:
        """Do not count a request that the pool itself made."""
        self._count(requests_num=-1)

    def leaves(self, reason: str) -> None:
        """Count a connection that is about to be closed."""
        self._count(connections_lost=reason in _LOST, returns_bad=reason in BAD)

    def closed(self, pool: str, reason: str) -> None:
        self._count(connections_lost=reason == "check_timeout")  # `leaves` has counted the others
        logger.info("pool %r: a connection was closed: %s", pool, reason)

    def _overdue(self, facade: Any) -> bool:
        """Whether another ``reconnect_timeout`` of this outage has passed since the last report."""
        with facade.core.engine.lock:
            if self._down_since is None:
                return False
            due = self._down_since + (self._told + 1) * facade.reconnect_timeout
            if facade.core.engine.clock.now() < due:
                return False
            self._told += 1
            return True

    def _count(self, **numbers: int) -> None:
        facade = self._facade()
        if facade is not None:
            with facade.core.engine.lock:
                for name, number in numbers.items():
                    self._heard[name] += number

    # -- statistics ---------------------------------------------------------------

    def counters(self, pop: bool) -> dict[str, int]:
        """Return the counts since the last pop; with ``pop``, start counting again."""
        core = self._facade().core
        with core.engine.lock:
            waits = core.metrics.durations.wait.timed if self._waits else (0, 0.0)
            totals = _totals(core.metrics.snapshot(), waits, self._heard)
            since = {name: totals[name] - self._popped[name] for name in totals}
            if pop:
                self._popped = Counter(totals)
        return since


def _totals(seen: PoolSnapshot, waits: tuple[int, float], heard: Counter[str]) -> dict[str, int]:
    queued, waited = waits
    return {
        "requests_num": seen.requests + heard["requests_num"],
        "requests_queued": queued + heard["requests_queued"],
        "requests_wait_ms": int(waited * 1000) + heard["requests_wait_ms"],
        "requests_errors": seen.timeouts + seen.refusals + seen.turned_away,
        "usage_ms": int(seen.use.mean * seen.use.count * 1000),
        "returns_bad": heard["returns_bad"],
        "connections_num": heard["connections_num"],
        "connections_ms": heard["connections_ms"],
        "connections_errors": heard["connections_errors"],
        "connections_lost": heard["connections_lost"],
    }
