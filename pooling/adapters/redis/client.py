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


class _Callbacks(redis.client.CaseInsensitiveDict):
    """The functions that convert replies; it notes whether one was changed."""

    changed = False


def _noting(name: str) -> Any:
    method = getattr(_Callbacks, name)

    def change(self: _Callbacks, *args: Any, **kwargs: Any) -> Any:
        self.changed = True
        return method(self, *args, **kwargs)

    return change


for _name in ("__setitem__", "__delitem__", "__ior__", "update", "setdefault", "pop", "popitem", "clear"):
    setattr(_Callbacks, _name, _noting(_name))


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
        self._reset_callbacks()

    def begin_lease(self) -> None:
        """Allow its use."""
        self.raw = self.one.lent = True
        self.connection = self.own  # found at once by its commands

    def end_lease(self) -> None:
        """Allow no further use, and remove the callbacks that a borrower has set."""
        self.raw = self.one.lent = False
        self.connection = None
        if getattr(self.response_callbacks, "changed", True):
            self._reset_callbacks()

    def _reset_callbacks(self) -> None:
        self.response_callbacks = callbacks = _Callbacks(self._callbacks)
        callbacks.changed = False
