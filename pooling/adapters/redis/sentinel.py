"""A pool of connections to the master, or the replicas, that sentinels name."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable
from typing import Any

from redis.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from ..._fields import fields
from .adapter import RedisAdapter
from .client import Client
from .pool import RedisPool

__all__ = ["RedisSentinelPool"]

logger = logging.getLogger("pooling")


ASK_INTERVAL = 1.0
"""Seconds between two questions to the sentinels, while the pool is used."""


class SentinelAdapter(RedisAdapter):
    """Has the sentinels asked for the master now and then.

    A master that was replaced answers for some seconds more, as if nothing had happened; what is written to it is lost.
    """

    _ask_at = 0.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ask: Callable[[], object] | None = None
        """Asks them, without waiting for the answer. Internal."""

    def is_alive(self, resource: Client) -> bool:
        now = time.monotonic()
        if now >= self._ask_at and self.ask is not None:
            self._ask_at = now + ASK_INTERVAL
            self.ask()
        return super().is_alive(resource)


class _Service:
    """What redis-py's managed connections ask for the address.

    Attributes:
        master_address: The master of the last connection.
        changed: Called when that is another one than before.
    """

    def __init__(self, service: str, sentinel: Sentinel, is_master: bool, check_connection: bool) -> None:
        self.service_name, self.sentinel_manager = service, sentinel
        self.is_master, self.check_connection = is_master, check_connection
        self.master_address: tuple[str, int] | None = None
        self.changed: Callable[[], object] | None = None
        self._next = 0

    def get_master_address(self) -> Any:
        """Ask the sentinels for the master."""
        manager: Any = self.sentinel_manager
        before, found = self.master_address, manager.discover_master(self.service_name)
        self.master_address = found
        if self.is_master and before not in (None, found) and self.changed is not None:
            self.changed()
        return found

    def reset(self) -> None:
        """Forget the master."""
        self.master_address = None

    def rotate_slaves(self) -> Any:
        """Yield the replicas, each time beginning with another one, then the master."""
        manager: Any = self.sentinel_manager
        replicas = manager.discover_slaves(self.service_name)
        self._next += 1
        for place in range(len(replicas)):
            yield replicas[(self._next + place) % len(replicas)]
        yield self.get_master_address()


class RedisSentinelPool(RedisPool, SentinelConnectionPool):
    """Lends connections to the present master of a service, or to its replicas.

    ::

        sentinel = Sentinel([("sentinel-1", 26379), ("sentinel-2", 26379)])
        client = sentinel.master_for("orders", connection_pool_class=RedisSentinelPool, max_size=20)

    Sentinels are asked for each new connection, and once a second while
    connections to the master are lent. If the master is another one than
    before, or a connection ends during a lease, all connections are replaced (a
    new generation).

    Args:
        service_name: The service.
        sentinel_manager: redis-py's ``Sentinel``.
        is_master: Whether connections to the master are lent, or to replicas.
        check_connection: Whether each new connection is checked; it is, anyway.
        ssl: Whether TLS is used.
        arguments: As for `RedisPool`.

    Raises:
        ValueError, TypeError: As for `RedisPool`.
    """

    def __init__(
        self,
        service_name: str,
        sentinel_manager: Sentinel,
        *,
        is_master: bool = True,
        check_connection: bool = False,
        ssl: bool = False,
        **arguments: Any,
    ) -> None:
        kind = SentinelManagedSSLConnection if ssl else SentinelManagedConnection
        self.is_master, self.check_connection = is_master, check_connection
        self.service_name, self.sentinel_manager = service_name, sentinel_manager
        self.proxy: Any = _Service(service_name, sentinel_manager, is_master, check_connection)
        RedisPool.__init__(self, **{"connection_class": kind, **arguments, "connection_pool": self.proxy})
        # The adapter must not keep the pool alive.
        self.proxy.changed = _weakly(self.drain)
        if is_master and isinstance(self.redis_adapter, SentinelAdapter):
            self.redis_adapter.on_lost = _weakly(self.drain)  # only a new connection finds the present master
            self.redis_adapter.ask = _weakly(self._ask)
            self.answer_ttl = -math.inf  # each acquire looks whether it is time to ask

    adapter_class = SentinelAdapter

    def _ask(self) -> None:
        self.engine.runtime.workers.submit(_ask, self.proxy)

    reset = RedisPool.reset
    owns_connection = RedisPool.owns_connection
    __repr__ = RedisPool.__repr__


def _weakly(method: Callable[[], object]) -> Callable[[], object]:
    """Return a function that calls a method while its object lives."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call


def _ask(service: _Service) -> None:
    try:
        service.get_master_address()
    except Exception as error:
        logger.debug("the sentinels did not answer: %s", error, extra=fields("sentinels_silent", error=str(error)))
