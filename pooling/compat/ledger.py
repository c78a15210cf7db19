"""The books of a psycopg_pool facade: its statistics, its log, and the outages it tells of."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from ..core.observer import Observer
from ..core.report.messages import format_error
from ..core.report.snapshot import PoolSnapshot

__all__ = ["BAD", "Ledger", "logger"]

logger = logging.getLogger("psycopg.pool")

_LOST = {"dead", "invalid", "check_timeout"}  # found so while idle, or when it was to be lent
BAD = {"broken", "reset", "interrupted"}  # came back so


class Ledger(Observer):
    """Keeps psycopg_pool's statistics of one core; no event of the hot path is listened to.

    Args:
        facade: The facade, weakly: called, it gives the pool or ``None``.
        waits: Whether whoever waits for a connection to be made counts as queued.
    """

    def __init__(self, facade: Any, waits: bool = True) -> None:
        self._facade, self._waits = facade, waits
        self.renew()

    def renew(self) -> None:
        """Start anew: in a forked child, whose core counts from nothing."""
        self._heard: Counter[str] = Counter()  # guarded by the core's lock, which a child has anew
        self._popped: Counter[str] = Counter()  # what the totals were at the last pop; likewise
        self._told = 0  # how often this outage was reported
        self._down_since: float | None = None

    # -- what is heard ------------------------------------------------------------

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
            return  # an attempt that was under way when it was closed
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
        """Leave out a request that was the pool's own."""
        self._count(requests_num=-1)

    def leaves(self, reason: str) -> None:
        """Count a connection that is about to be closed."""
        self._count(connections_lost=reason in _LOST, returns_bad=reason in BAD)

    def closed(self, pool: str, reason: str) -> None:
        self._count(connections_lost=reason == "check_timeout")  # the others were counted before
        logger.info("pool %r: a connection was closed: %s", pool, reason)

    def _overdue(self, facade: Any) -> bool:
        """Whether the outage has lasted for one more ``reconnect_timeout`` since it was told of."""
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

    # -- what is told -------------------------------------------------------------

    def counters(self, pop: bool) -> dict[str, int]:
        """Return what was counted since the last pop; ``pop`` makes this one."""
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
