"""MongoDB: pymongo pools its connections itself; a manager shows how these pools are.

::

    from pooling.adapters.mongo import PoolEvents

    client = MongoClient("mongodb://db", event_listeners=[PoolEvents()])
    manager.add_pool(client, "mongo")
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any, NamedTuple

from pymongo import monitoring

__all__ = ["PoolEvents", "PoolFigures"]


class PoolFigures(NamedTuple):
    """The connections of a client, and what was counted since the process began."""

    size: int
    in_use: int
    waiting: int
    fullest: int  # in use to the server that has most
    servers: int
    acquired: int
    failed: int
    timeouts: int
    created: int
    closed: dict[str, int]
    waited: float  # seconds, of those that got a connection


class PoolEvents(monitoring.ConnectionPoolListener):
    """Counts the connections of one ``MongoClient``, for `PoolManager.add_pool`.

    Give each client its own: ``MongoClient(..., event_listeners=[PoolEvents()])``.
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a destructor may give a connection back while this thread has the lock
        # All below: guarded by the lock.
        self._open: set[tuple[Any, int]] = set()  # address and number of each connection
        self._lent: set[tuple[Any, int]] = set()
        self._servers: set[Any] = set()
        self._count: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._waited = 0.0

    def figures(self) -> PoolFigures:
        """Return the counts at this moment."""
        with self._mine():
            count = self._count
            by_server = Counter(address for address, _ in self._lent)
            return PoolFigures(
                size=len(self._open), in_use=len(self._lent), waiting=count["started"] - count["done"],
                fullest=max(by_server.values(), default=0), servers=len(self._servers), acquired=count["acquired"],
                failed=count["failed"], timeouts=count["timeouts"], created=count["created"],
                closed=dict(self._closed), waited=self._waited,
            )  # fmt: skip

    def _mine(self) -> threading.RLock:
        """Return the lock; a forked child begins anew, as its client does."""
        if self._pid != os.getpid():
            self._renew()
        return self._lock

    # -- what pymongo calls -------------------------------------------------------

    def pool_created(self, event: monitoring.PoolCreatedEvent) -> None:
        with self._mine():
            self._servers.add(event.address)

    def pool_ready(self, event: monitoring.PoolReadyEvent) -> None:
        pass

    def pool_cleared(self, event: monitoring.PoolClearedEvent) -> None:
        pass

    def pool_closed(self, event: monitoring.PoolClosedEvent) -> None:
        with self._mine():
            self._servers.discard(event.address)

    def connection_created(self, event: monitoring.ConnectionCreatedEvent) -> None:
        with self._mine():
            self._open.add((event.address, event.connection_id))
            self._count["created"] += 1

    def connection_ready(self, event: monitoring.ConnectionReadyEvent) -> None:
        pass

    def connection_closed(self, event: monitoring.ConnectionClosedEvent) -> None:
        with self._mine():
            self._open.discard((event.address, event.connection_id))
            self._lent.discard((event.address, event.connection_id))
            self._closed[event.reason] += 1

    def connection_check_out_started(self, event: monitoring.ConnectionCheckOutStartedEvent) -> None:
        with self._mine():
            self._count["started"] += 1

    def connection_check_out_failed(self, event: monitoring.ConnectionCheckOutFailedEvent) -> None:
        with self._mine():
            self._count["done"] += 1
            self._count["timeouts" if event.reason == "timeout" else "failed"] += 1

    def connection_checked_out(self, event: monitoring.ConnectionCheckedOutEvent) -> None:
        with self._mine():
            self._lent.add((event.address, event.connection_id))
            self._count["done"] += 1
            self._count["acquired"] += 1
            self._waited += event.duration or 0.0

    def connection_checked_in(self, event: monitoring.ConnectionCheckedInEvent) -> None:
        with self._mine():
            self._lent.discard((event.address, event.connection_id))
