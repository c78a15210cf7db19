"""The replicas of a cluster as a pool, for what takes one: a Django alias, an engine of SQLAlchemy, a `PoolManager`."""

from __future__ import annotations

from typing import Any, Protocol

from ..adapters.postgres.tracking import Connection
from ..core.lease import Lease
from ..core.managed import ManagedPool
from ..core.observer import Observer
from ..core.report.holders import Holder
from ..core.report.metrics import PoolMetrics
from ..settings import PoolSettings

__all__ = ["Replicas"]


class Readable(Protocol):
    """The part of a `PostgresCluster` that is needed beside that of every pool."""

    def acquire_read(
        self, timeout: float | None = None, _depth: int = 1, lane: str | None = None, *, after: str | None = None
    ) -> Lease[Connection]:
        """Lend a connection for reading."""


class Replicas(ManagedPool[Connection]):
    """What a cluster lends for reading. It belongs to the cluster: its `close` does nothing."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self._readable: Readable = cluster

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[Connection]:
        """Lend a connection for reading, see `PostgresCluster.read`."""
        return self._readable.acquire_read(timeout, _depth + 1, lane)

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Do nothing: close the cluster."""

    # -- the cluster's -----------------------------------------------------------------

    @property
    def name(self) -> str:
        """The cluster's name, with ``" replicas"``."""
        return f"{self.cluster.name} replicas"

    @property
    def closed(self) -> bool:
        """Whether the cluster was closed."""
        return bool(self.cluster.closed)

    @property
    def settings(self) -> PoolSettings:
        """The cluster's."""
        found: PoolSettings = self.cluster.settings
        return found

    @property
    def metrics(self) -> PoolMetrics:
        """The cluster's."""
        found: PoolMetrics = self.cluster.metrics
        return found

    def open(self, timeout: float | None = None) -> None:
        """Warm the cluster up."""
        self.cluster.open(timeout)

    def drain(self) -> None:
        """Replace every connection of the cluster."""
        self.cluster.drain()

    def reconfigure(self, **changes: Any) -> None:
        """Change settings of the cluster's pools."""
        self.cluster.reconfigure(**changes)

    def pause(self) -> None:
        """Pause the cluster."""
        self.cluster.pause()

    def resume(self) -> None:
        """Let the cluster lend again."""
        self.cluster.resume()

    def check(self) -> None:
        """Check the idle connections of the cluster."""
        self.cluster.check()

    def probe(self, timeout: float | None = None) -> str | None:
        """Make a round trip with a connection for reading."""
        with self.acquire(timeout) as conn:
            conn.execute("SELECT 1")
        return None

    def exhaustion(self) -> str | None:
        """Return ``None``: a read goes to any of the servers."""
        return None

    def stats(self) -> dict[str, Any]:
        """Return the cluster's."""
        found: dict[str, Any] = self.cluster.stats()
        return {**found, "name": self.name, "down": None}

    def holders(self) -> list[Holder]:
        """Return who holds a connection of the cluster."""
        found: list[Holder] = self.cluster.holders()
        return found

    def add_observer(self, observer: Observer) -> None:
        """Notify an observer of the cluster's events."""
        self.cluster.add_observer(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Notify it no longer."""
        self.cluster.remove_observer(observer)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.cluster!r}>"
