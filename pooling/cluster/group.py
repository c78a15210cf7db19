"""The servers of a cluster as one pool, which a `PoolManager` can manage."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from .._masking import shown
from ..adapters.postgres.pool import PostgresPool
from ..adapters.postgres.tracking import Connection
from ..core.clock import SYSTEM, seconds
from ..core.lease import Lease
from ..core.managed import ManagedPool
from ..core.observer import Observer
from ..core.pool import Pool
from ..core.report.holders import Holder
from ..core.report.metrics import PoolMetrics
from ..settings import PoolSettings
from .addresses import places_of
from .routing import Router
from .server import Server, ServerPool
from .standing import Standing
from .watch import Outages, Watch

__all__ = ["ServerGroup"]

_SUMS = ("size", "idle", "in_use", "creating", "checking", "closing", "waiting", "min_size", "max_size")


class ServerGroup(ManagedPool[Connection]):
    """A pool for each server, and what steers them. See `PostgresCluster` for the arguments."""

    def __init__(
        self, primary: str, settings: PoolSettings | None, replicas: Iterable[str] | Mapping[str, str], max_lag: float,
        primary_reads: float | None, name: str, observers: Iterable[Observer], arguments: Mapping[str, Any],
    ) -> None:  # fmt: skip
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be a non-empty string, not {shown(name)}")
        if isinstance(max_lag, bool) or not isinstance(max_lag, (int, float)):
            raise TypeError(f"max_lag must be a number of seconds, not {shown(max_lag)}")
        if not max_lag > 0:
            raise ValueError(f"max_lag must be above 0 seconds, not {shown(max_lag)}")
        _check_share(primary_reads)
        for refused in ("conninfo", "clock"):
            if refused in arguments:
                raise TypeError(f"{refused} is no argument of PostgresCluster")
        observers = tuple(observers)
        places = places_of(primary, replicas)
        self._name = name
        self._all = tuple(
            Server(place.label, ServerPool(
                place.conninfo, settings, name=f"{name}.{place.label}", observers=observers, **arguments
            ))
            for place in places
        )  # fmt: skip
        self.standing = Standing(name, self._all, float(max_lag))
        """What is known of the servers. Internal."""
        self.watch = Watch(self.standing)
        """Finds that out. Internal."""
        self._permits = self._make_permits(primary_reads)
        self._router = Router(self.standing, self.watch, self._permits, primary_reads != 0 or len(self._all) == 1)
        for server in self._all:
            watch, standing = weakref.ref(self.watch), weakref.ref(self.standing)
            server.pool.add_observer(Outages(weakref.ref(server), watch, standing))

    def _make_permits(self, primary_reads: float | None) -> Pool[object] | None:
        """Return a pool with one resource for each read that may be on the primary at once."""
        if not primary_reads or len(self._all) == 1:
            return None
        size = self._all[0].pool.settings.max_size
        number = max(1, round(primary_reads * size)) if isinstance(primary_reads, float) else primary_reads
        own = self._all[0].pool.settings
        permits: Pool[object] = Pool(
            object, min_size=0, max_size=number, acquire_timeout=own.acquire_timeout, health_check_interval=None,
            name=f"{self._name} reads on the primary",
        )  # fmt: skip
        permits.metrics.inner = True
        permits.engine.owner = None  # a part of this one
        return permits

    @property
    def servers(self) -> Mapping[str, PostgresPool]:
        """The pools of the servers, by their names within the cluster: those of the hosts."""
        return MappingProxyType({server.label: server.pool for server in self._all})

    @property
    def primary(self) -> str | None:
        """The name of the server that writes go to, as far as it is known; ``None`` while there is none."""
        server = self.standing.view.primary
        return None if server is None else server.label

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[Connection]:
        """Lend a connection to the primary, see `Pool.acquire`; while there is no primary, wait for one.

        Args:
            timeout: Seconds to wait for the primary and a connection; ``None`` means ``acquire_timeout``.
            lane: As for `Pool.acquire`.

        Raises:
            PoolTimeout: There was no primary, or no connection became available, in time.
            PoolUnavailable, TooManyWaiting, PoolClosed, CreateFailed, ValueError, TypeError: As for `Pool.acquire`.
        """
        return self._router.write(timeout, _depth + 1, lane)

    # -- all pools -------------------------------------------------------------------

    def open(self, timeout: float | None = None) -> None:
        """Warm up the pool of the primary, and find out the role of each server.

        The other pools are warmed up, too, but not waited for.

        Args:
            timeout: Seconds to wait; ``None`` means ``acquire_timeout``.

        Raises:
            PoolTimeout, CreateFailed, PoolClosed: As for `Pool.open`.
        """
        deadline = SYSTEM.now() + (self.settings.acquire_timeout if timeout is None else seconds(timeout))
        self._router.learn(deadline)
        for server in self._all:
            server.pool.fill()
        self.acquire(max(0.0, deadline - SYSTEM.now()), 2).release()  # waits for a primary
        self._primary.open(max(0.0, deadline - SYSTEM.now()))

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Close all pools for good, see `Pool.close`.

        Args:
            timeout: Seconds to wait for all together; ``None`` means ``close_timeout``.
            interrupt: Whether to interrupt connections still in use after that.
        """
        limit = self.settings.close_timeout if timeout is None else seconds(timeout)
        deadline = time.monotonic() + limit
        self.watch.stop()
        self._router.closed = True
        self.standing.wake()
        for pool in self._pools():
            pool.close(max(0.0, deadline - time.monotonic()), interrupt=interrupt)

    def drain(self) -> None:
        """Replace every connection, see `Pool.drain`."""
        for server in self._all:
            server.pool.drain()

    def rotate(self, timeout: float | None = None) -> None:
        """Replace every connection as soon as one with the present parameters was made, see `PostgresPool.rotate`."""
        for server in self._all:
            server.pool.rotate(timeout)

    def reconfigure(self, **changes: Any) -> None:
        """Change settings of each pool, see `Pool.reconfigure`. ``primary_reads`` stays the number that it was."""
        for server in self._all:
            server.pool.reconfigure(**changes)

    def pause(self) -> None:
        """Lend nothing until `resume`, see `Pool.pause`."""
        for server in self._all:
            server.pool.pause()

    def resume(self) -> None:
        """Lend again after `pause`."""
        for server in self._all:
            server.pool.resume()

    def check(self) -> None:
        """Check the idle connections of all pools, and ask each server, now."""
        for server in self._all:
            server.pool.check()
        self.watch.hurry()

    def probe(self, timeout: float | None = None) -> str | None:
        """Make a round trip to the primary, see `Pool.probe`; return a warning if replicas cannot be read."""
        text = self._primary.probe(timeout)
        if text is None and self.watch.current:
            primary = self._primary_server
            missing = [server for server in self._all if server.obstacle is not None and server is not primary]
            if missing:
                text = "replicas not in use: " + ", ".join(f"{one.label} ({one.obstacle})" for one in missing)
        return text

    def add_observer(self, observer: Observer) -> None:
        """Notify an observer of the events of all pools from now on."""
        for server in self._all:
            server.pool.add_observer(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Notify an observer no longer."""
        for server in self._all:
            server.pool.remove_observer(observer)

    def holders(self) -> list[Holder]:
        """Return who holds a connection to any server, longest first."""
        found = [holder for server in self._all for holder in server.pool.holders()]
        return sorted(found, key=lambda holder: -holder.seconds)

    def stats(self) -> dict[str, Any]:
        """Return the counts of all pools together, and under ``"servers"`` what is known of each server.

        ``"down"`` and ``"resets_failing"`` are the primary's. A server has the counts of its pool, and ``"role"``,
        ``"readable"``, ``"obstacle"`` (why it gets no reads), ``"lag"`` and ``"service_time"`` in seconds, and
        ``"position"``.
        """
        now = SYSTEM.now()
        servers = {server.label: server.stats(now) for server in self._all}
        own = servers[self._primary_server.label]
        sums = {name: sum(one[name] for one in servers.values()) for name in _SUMS}
        reads = {} if self._permits is None else self._permits.stats()
        return {
            "name": self.name, **sums, "paused": own["paused"], "closed": self.closed, "down": own["down"],
            "resets_failing": own["resets_failing"], "primary": self.primary, "servers": servers,
            "primary_reads": {name: reads[name] for name in ("in_use", "waiting", "max_size") if reads} or None,
        }  # fmt: skip

    # -- the primary's pool ------------------------------------------------------------

    @property
    def _primary_server(self) -> Server:
        return self.standing.view.primary or self._all[0]

    @property
    def _primary(self) -> ServerPool:
        return self._primary_server.pool

    def _pools(self) -> list[Pool[Any]]:
        return [*(server.pool for server in self._all), *([] if self._permits is None else [self._permits])]

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self._name

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._router.closed

    @property
    def settings(self) -> PoolSettings:
        """The settings of the primary's pool."""
        return self._primary.settings

    @property
    def metrics(self) -> PoolMetrics:
        """Counters and durations of the primary's pool; those of the others are in `servers`."""
        return self._primary.metrics

    def exhaustion(self) -> str | None:
        """Return how many are in use and wait, as text, if every connection to the primary is in use."""
        return self._primary.exhaustion()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.standing.describe()}{', closed' if self.closed else ''}>"


def _check_share(value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"primary_reads must be a number or None, not {shown(value)}")
    if not value >= 0 or (isinstance(value, float) and value > 1):
        raise ValueError(f"primary_reads must be a number from 0, or a part from 0.0 to 1.0, not {shown(value)}")
