"""A client on a connection of one's own, which `RedisPool.acquire` lends."""

from __future__ import annotations

import os
from typing import Any

import redis
from redis.connection import ConnectionPool

from ...errors import LeaseError

__all__ = ["Client"]


class OneConnection(ConnectionPool):
    """The pool of a `Client`: it has one connection, so that pipelines, locks and pubsub use that too."""

    def __init__(self, conn: Any, kind: type[Any], kwargs: dict[str, Any]) -> None:  # not redis-py's: no connections
        self._conn = conn
        self.connection_class = kind
        self.connection_kwargs = kwargs
        self.max_connections = 1
        self.himport_registry = kwargs.get("himport_registry")
        self.cache = None
        self.pid = os.getpid()
        self._available_connections: list[Any] = []  # for redis-py's destructor
        self._in_use_connections: set[Any] = set()
        self.lent = False  # whether the client may be used

    def get_connection(self, command_name: object = None, *keys: object, **options: object) -> Any:
        if not self.lent:
            raise LeaseError("this client's lease has ended; acquire another one")
        return self._conn

    def release(self, connection: Any) -> None:
        pass

    def reset(self) -> None:
        pass

    def disconnect(self, inuse_connections: bool = True) -> None:
        if inuse_connections:
            self._conn.disconnect()

    def set_retry(self, retry: Any) -> None:
        self._conn.retry = retry

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._conn!r}>"


class Client(redis.Redis):
    """A client on one connection.

    Attributes:
        own: The connection.
        raw: Whether the present lease is the client's; otherwise it is one of the connection.
    """

    raw = False

    def __init__(self, conn: Any, kind: type[Any], kwargs: dict[str, Any]) -> None:
        self.own = conn
        self.one = OneConnection(conn, kind, kwargs)
        super().__init__(connection_pool=self.one)
        self._callbacks = dict(self.response_callbacks)

    def end_lease(self) -> None:
        """Allow no further use, and remove the callbacks that a borrower has set."""
        self.one.lent = False
        if self.response_callbacks != self._callbacks:
            self.response_callbacks.clear()
            dict.update(self.response_callbacks, self._callbacks)
