"""The pools that are measured, each driven the way its documentation says.

A contender brings two ways to check out: :meth:`Contender.loop`, a tight loop
in its own idiom for what is measured in nanoseconds, and
:meth:`Contender.checkout`, a context manager for what is measured in
microseconds and more. What they lend are stand-ins whose methods do nothing,
so each peer is seen at its best: no rollback, ping or poll costs anything.

Drivers that are extras of this project are imported when their contender is
made; without them it is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from itertools import repeat
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar

from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

from pooling import Adapter, Pool, PoolSettings

__all__ = [
    "Contender",
    "DBUtils",
    "GenericConnectionPool",
    "HandOff",
    "LifoQueue",
    "LockAndDeque",
    "Pooling",
    "PoolingPolled",
    "PoolingWithoutHolders",
    "PsycopgPool",
    "Redis",
    "SQLAlchemy",
    "SimpleQueue",
    "Urllib3",
    "fill",
]

Connecting = Callable[[], object]
"""Called whenever a resource is made: there a benchmark counts, and sleeps."""


def _at_once() -> None:
    """Connect in no time."""


class Resource:
    """What is lent: whatever a driver's connection must have here, doing nothing."""

    threadsafety = 2

    def rollback(self) -> None:
        """Do what DB-API pools ask for on return."""

    def close(self) -> None:
        """End it."""


class Contender:
    """A pool of ``slots`` resources.

    Attributes:
        name: What the tables call it.
        package: What to install for it; ``None`` if it is always there.
        module: What to import for it.
        waits: Whether a borrower waits when all are lent; else it must not happen.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    module: ClassVar[str] = "queue"
    waits: ClassVar[bool] = True

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        self.slots = slots
        self.connecting = connecting

    @classmethod
    def installed(cls) -> bool:
        """Say whether it can be measured here."""
        try:
            importlib.import_module(cls.module)
        except ImportError:
            return False
        return True

    @classmethod
    def version(cls) -> str | None:
        """Return the version of the peer; ``None`` for what is part of Python, or missing."""
        return version(cls.package) if cls.package and cls.installed() else None

    def loop(self, times: int) -> None:
        """Check out and give back that often."""
        raise NotImplementedError

    def checkout(self) -> AbstractContextManager[Any]:
        """Check one out for the length of a ``with`` block."""
        raise NotImplementedError

    def resource(self, handle: Any) -> object:
        """Return what is behind the handle that :meth:`checkout` gave."""
        return handle

    def close(self) -> None:
        """End the pool and its threads."""


def fill(contender: Contender) -> None:
    """Make the pool create all it may, so that what follows finds it idle."""
    with contextlib.ExitStack() as stack:
        for _ in range(contender.slots):
            stack.enter_context(contender.checkout())


# --- ours


class Pooling(Contender):
    """This project's pool with all its defaults: holders and counters, ages, fairness."""

    name = "pooling"
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)
        settings = PoolSettings(min_size=0, max_size=slots, **self.settings)
        self.pool: Pool[Any] = self._pool(settings)

    def _pool(self, settings: PoolSettings) -> Pool[Any]:
        def connect() -> Resource:
            self.connecting()
            return Resource()

        return Pool(connect, settings=settings, name="benchmark")

    def loop(self, times: int) -> None:
        pool = self.pool
        for _ in repeat(None, times):
            with pool.acquire():
                pass

    def checkout(self) -> AbstractContextManager[Any]:
        return self.pool.acquire()

    def close(self) -> None:
        self.pool.close()


class PoolingWithoutHolders(Pooling):
    """The same, not noting who holds what."""

    name = "pooling, track_holders=False"
    settings: ClassVar[dict[str, Any]] = {"track_holders": False}


class Wire:
    """A real connection without a server: both ends of a socket pair, and a poll on one."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        poll = select.poll()
        poll.register(self.near, select.POLLIN)
        self.poll = poll.poll

    def close(self) -> None:
        self.near.close()
        self.far.close()


class WireAdapter(Adapter[Wire]):
    """Asks the socket on every acquire, as the adapters of the drivers do."""

    blocking = False

    def create(self) -> Wire:
        return Wire()

    def is_alive(self, resource: Wire) -> bool:
        return not resource.poll(0)

    def close(self, resource: Wire) -> None:
        resource.close()


class PoolingPolled(Pooling):
    """The same, with a liveness check: one system call for each acquire."""

    name = "pooling, socket polled"

    def _pool(self, settings: PoolSettings) -> Pool[Any]:
        return Pool(adapter=WireAdapter(), settings=settings, name="benchmark")


# --- the least that could do


class _Lease:
    __slots__ = ("_pool", "_resource")

    def __init__(self, pool: _LockedDeque, resource: Resource) -> None:
        self._pool = pool
        self._resource = resource

    def __enter__(self) -> Resource:
        return self._resource

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pool = self._pool
        with pool.lock:
            pool.idle.append(self._resource)


class _LockedDeque:
    """A pool as anyone would begin it: no waiting, no checks, no counts."""

    def __init__(self, slots: int) -> None:
        self.lock = threading.Lock()
        self.idle = deque(Resource() for _ in range(slots))

    def acquire(self) -> _Lease:
        with self.lock:
            resource = self.idle.pop()
        return _Lease(self, resource)


class LockAndDeque(Contender):
    """A lock around a deque, and a fresh lease for ``with``: the base of the ratios.

    Not a call more than that: the lease itself puts the resource back.

    It cannot wait, so it takes part where there are as many slots as threads.
    """

    name = "Lock + deque + lease"
    waits = False

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)
        self._pool = _LockedDeque(slots)

    def loop(self, times: int) -> None:
        pool = self._pool
        for _ in repeat(None, times):
            with pool.acquire():
                pass

    def checkout(self) -> AbstractContextManager[Any]:
        return self._pool.acquire()


class _Turn:
    __slots__ = ("_pool", "_resource")

    def __init__(self, pool: HandOff) -> None:
        self._pool = pool

    def __enter__(self) -> Resource:
        pool = self._pool
        with pool.lock:
            if pool.idle and not pool.line:
                self._resource = pool.idle.pop()
                return self._resource
            box: queue.SimpleQueue[Resource] = queue.SimpleQueue()
            pool.line.append(box)
        self._resource = box.get()
        return self._resource

    def __exit__(self, *error: object) -> None:
        pool = self._pool
        with pool.lock:
            if pool.line:
                pool.line.popleft().put(self._resource)
            else:
                pool.idle.append(self._resource)


class HandOff(Contender):
    """A line of boxes behind a lock, and not a thing more: the ceiling for pools that are fair.

    A hand-over has to wake a thread, so a fair pool cannot reach the
    throughput of one that lets the thread that just released go on.
    """

    name = "bare hand-off in order"

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)
        self.lock = threading.Lock()
        self.idle = deque(Resource() for _ in range(slots))
        self.line: deque[queue.SimpleQueue[Resource]] = deque()

    def loop(self, times: int) -> None:
        for _ in repeat(None, times):
            with _Turn(self):
                pass

    def checkout(self) -> AbstractContextManager[Any]:
        return _Turn(self)


class SimpleQueue(Contender):
    """``queue.SimpleQueue``: two calls into C, the floor for anything in Python."""

    name = "queue.SimpleQueue"
    queue_class: ClassVar[Any] = queue.SimpleQueue

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)
        self._queue = self.queue_class()
        for _ in range(slots):
            self._queue.put(Resource())

    def loop(self, times: int) -> None:
        idle = self._queue
        for _ in repeat(None, times):
            resource = idle.get()
            idle.put(resource)

    @contextlib.contextmanager
    def checkout(self) -> Iterator[Any]:
        resource = self._queue.get()
        try:
            yield resource
        finally:
            self._queue.put(resource)


class LifoQueue(SimpleQueue):
    """``queue.LifoQueue``: a condition variable around a list, as in most home-made pools."""

    name = "queue.LifoQueue"
    queue_class: ClassVar[Any] = queue.LifoQueue


# --- the peers


class _Connected(HTTPConnection):
    """A connection whose socket need not be looked at."""

    is_connected = True


class Urllib3(Contender):
    """urllib3's pool for one host, by the two methods its ``urlopen`` uses."""

    name = "urllib3"
    package = "urllib3"
    module = "urllib3"

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)
        self._pool = HTTPConnectionPool("localhost", maxsize=slots, block=True)
        self._pool.ConnectionCls = _Connected

    def loop(self, times: int) -> None:
        pool = self._pool
        for _ in repeat(None, times):
            connection = pool._get_conn()
            pool._put_conn(connection)

    @contextlib.contextmanager
    def checkout(self) -> Iterator[Any]:
        connection = self._pool._get_conn()
        try:
            yield connection
        finally:
            self._pool._put_conn(connection)

    def close(self) -> None:
        self._pool.close()


class DBUtils(Contender):
    """DBUtils' ``PooledDB`` with its defaults, blocking; rollback on return costs nothing."""

    name = "DBUtils"
    package = "DBUtils"
    module = "dbutils.pooled_db"

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)

        def connect() -> Resource:
            self.connecting()
            return Resource()

        self._pool: Any = importlib.import_module(self.module).PooledDB(
            connect, maxcached=slots, maxconnections=slots, blocking=True, failures=OSError
        )

    def loop(self, times: int) -> None:
        pool = self._pool
        for _ in repeat(None, times):
            with pool.connection():
                pass

    def checkout(self) -> AbstractContextManager[Any]:
        handle: AbstractContextManager[Any] = self._pool.connection()
        return handle

    def resource(self, handle: Any) -> object:
        return handle.dbapi_connection

    def close(self) -> None:
        self._pool.close()


class _PsycopgConnection(Resource):
    """A connection that is always idle, and whose ``with`` block has nothing to commit."""

    _pool: object = None

    def __init__(self) -> None:
        status = importlib.import_module("psycopg.pq").TransactionStatus.IDLE
        self.pgconn = SimpleNamespace(transaction_status=status)

    def __enter__(self) -> _PsycopgConnection:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class PsycopgPool(Contender):
    """psycopg_pool by its ``connection()``, with connections that need no server."""

    name = "psycopg_pool"
    package = "psycopg_pool"
    module = "psycopg_pool"

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)
        self._pool: Any = importlib.import_module(self.module).ConnectionPool(
            connection_class=SimpleNamespace(connect=self._connect),
            min_size=0,
            max_size=slots,
            open=True,
        )

    def _connect(self, conninfo: str, **options: object) -> _PsycopgConnection:
        self.connecting()
        return _PsycopgConnection()

    def loop(self, times: int) -> None:
        pool = self._pool
        for _ in repeat(None, times):
            with pool.connection():
                pass

    def checkout(self) -> AbstractContextManager[Any]:
        handle: AbstractContextManager[Any] = self._pool.connection()
        return handle

    def close(self) -> None:
        self._pool.close()


class SQLAlchemy(Contender):
    """SQLAlchemy's ``QueuePool`` with its defaults; rollback on return costs nothing."""

    name = "SQLAlchemy QueuePool"
    package = "SQLAlchemy"
    module = "sqlalchemy.pool"

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)

        def connect() -> Resource:
            self.connecting()
            return Resource()

        self._pool: Any = importlib.import_module(self.module).QueuePool(
            connect, pool_size=slots, max_overflow=0
        )

    def loop(self, times: int) -> None:
        pool = self._pool
        for _ in repeat(None, times):
            connection = pool.connect()
            connection.close()

    def checkout(self) -> AbstractContextManager[Any]:
        return contextlib.closing(self._pool.connect())

    def resource(self, handle: Any) -> object:
        return handle.dbapi_connection

    def close(self) -> None:
        self._pool.dispose()


class _RedisConnection:
    """A connection with nothing to read, made in this process."""

    def __init__(self, connecting: Connecting, **options: object) -> None:
        connecting()
        self.pid = os.getpid()

    def connect(self) -> None:
        pass

    def disconnect(self) -> None:
        pass

    def can_read(self) -> bool:
        return False

    def should_reconnect(self) -> bool:
        return False


class Redis(Contender):
    """redis-py's ``BlockingConnectionPool``."""

    name = "redis-py Blocking"
    package = "redis"
    module = "redis"

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)
        self._pool: Any = importlib.import_module(self.module).BlockingConnectionPool(
            max_connections=slots, connection_class=_RedisConnection, connecting=connecting
        )

    def loop(self, times: int) -> None:
        pool = self._pool
        for _ in repeat(None, times):
            connection = pool.get_connection()
            pool.release(connection)

    @contextlib.contextmanager
    def checkout(self) -> Iterator[Any]:
        connection = self._pool.get_connection()
        try:
            yield connection
        finally:
            self._pool.release(connection)

    def close(self) -> None:
        self._pool.disconnect()


class _Manager:
    """What generic-connection-pool asks of a connection manager, doing as little as it may."""

    def __init__(self, connecting: Connecting) -> None:
        self._connecting = connecting

    def create(self, endpoint: str, timeout: float | None = None) -> Resource:
        self._connecting()
        return Resource()

    def check_aliveness(self, endpoint: str, conn: Resource, timeout: float | None = None) -> bool:
        return True

    def on_acquire(self, endpoint: str, conn: Resource) -> None:
        pass

    def on_release(self, endpoint: str, conn: Resource) -> None:
        pass

    def dispose(self, endpoint: str, conn: Resource, timeout: float | None = None) -> None:
        conn.close()


class GenericConnectionPool(Contender):
    """generic-connection-pool without its collector thread, for one endpoint."""

    name = "generic-connection-pool"
    package = "generic-connection-pool"
    module = "generic_connection_pool.threading"
    endpoint = "localhost"

    def __init__(self, slots: int, connecting: Connecting = _at_once) -> None:
        super().__init__(slots, connecting)
        self._pool: Any = importlib.import_module(self.module).ConnectionPool(
            _Manager(connecting), min_idle=slots, max_size=slots
        )

    def loop(self, times: int) -> None:
        pool = self._pool
        endpoint = self.endpoint
        for _ in repeat(None, times):
            with pool.connection(endpoint):
                pass

    def checkout(self) -> AbstractContextManager[Any]:
        handle: AbstractContextManager[Any] = self._pool.connection(self.endpoint)
        return handle

    def close(self) -> None:
        self._pool.close()
