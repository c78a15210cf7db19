"""The pools in a manager, ours and other libraries', behind one interface.

Other libraries' pools are recognised by the name and module of their class, so
that no driver has to be imported.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from .core.managed import ManagedPool
from .core.report.holders import depth_of_borrower
from .core.report.messages import format_error
from .errors import PoolTimeout
from .settings import PoolSettings

__all__ = ["Member", "in_parallel", "member_of", "reason_of"]

T = TypeVar("T")


class Member:
    """One pool in a manager.

    Attributes:
        pool: The pool itself.
        kind: Its kind, as shown in tables.
        critical: Whether the application counts as down without it.
        owned: Whether the manager closes it.
        recipe: The arguments it was created with, compared when the same name
            is requested again.
    """

    def __init__(self, pool: Any, critical: bool, owned: bool, recipe: object) -> None:
        self.pool = pool
        self.kind = type(pool).__name__
        self.critical = critical
        self.owned = owned
        self.recipe = recipe

    @property
    def name(self) -> str | None:
        """The pool's own name."""
        return getattr(self.pool, "name", None)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return bool(getattr(self.pool, "closed", False))

    @property
    def settings(self) -> PoolSettings:
        """The settings in force; the defaults for another library's pool."""
        return getattr(self.pool, "settings", None) or PoolSettings()

    def open(self, timeout: float) -> None:
        """Warm it up."""
        raise NotImplementedError

    def close(self, timeout: float) -> None:
        """Close it for good."""
        raise NotImplementedError

    def probe(self, timeout: float) -> str | None:
        """Make a round trip to the server, or raise; return a warning if there is one."""
        raise NotImplementedError

    def trouble(self) -> str | None:
        """Return why it is degraded, as far as known without contacting the server."""
        return None

    def is_down(self) -> bool:
        """Whether the last attempt to connect to the server failed."""
        return False

    def lease(self, timeout: float | None) -> AbstractContextManager[Any]:
        """Acquire a resource."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Any]:
        """Return its metrics under the names of `PoolSnapshot.to_dict`."""
        raise NotImplementedError


_BETWEEN = ("pooling.manager", "pooling.web.", "werkzeug.local")  # modules that are never the holder (P12)


class Ours(Member):
    """A pool of this package."""

    pool: ManagedPool[Any]

    def open(self, timeout: float) -> None:
        self.pool.open(timeout)

    def close(self, timeout: float) -> None:
        self.pool.close(timeout)

    def lease(self, timeout: float | None) -> AbstractContextManager[Any]:
        return self.pool.acquire(timeout, depth_of_borrower(_BETWEEN))

    def probe(self, timeout: float) -> str | None:
        return self.pool.probe(timeout)

    def is_down(self) -> bool:
        return self.pool.stats()["down"] is not None

    def trouble(self) -> str | None:
        stats = self.pool.stats()
        if stats["paused"]:
            return "paused"
        if stats["down"]:
            return f"last connection error: {stats['down']}"
        if stats["resets_failing"]:
            return f"resets keep failing: {stats['resets_failing']}"
        return self.pool.exhaustion()

    def metrics(self) -> dict[str, Any]:
        found = self.pool.metrics.to_dict()
        found["success_rate"] = 1.0 - found["error_rate"]
        queries, readers = getattr(self.pool, "queries", None), getattr(self.pool, "readers", None)
        statistics = queries() if callable(queries) else getattr(self.pool, "query_statistics", None)
        if statistics is not None:
            found["queries"] = statistics.to_dict()
        if isinstance(readers, ManagedPool):
            found["readers"] = readers.metrics.to_dict()
        servers = getattr(self.pool, "servers", None)  # of a cluster: pools of their own
        if isinstance(servers, Mapping):
            found["servers"] = {name: pool.metrics.to_dict() for name, pool in servers.items()}
        return found


class Psycopg(Member):
    """A ``psycopg_pool.ConnectionPool``."""

    def open(self, timeout: float) -> None:
        self.pool.open(wait=True, timeout=timeout)

    def close(self, timeout: float) -> None:
        self.pool.close(timeout=timeout)

    def lease(self, timeout: float | None) -> AbstractContextManager[Any]:
        return self.pool.connection(timeout)  # type: ignore[no-any-return]

    def probe(self, timeout: float) -> str | None:
        lent = self.trouble()
        if lent is None:  # otherwise it would wait behind borrowers
            try:
                with self.pool.connection(timeout=timeout) as conn:
                    conn.execute("SELECT 1")
            except Exception as error:
                lent = self.trouble() if type(error).__name__ == "PoolTimeout" else None
                if lent is None:
                    raise
        return lent

    def trouble(self) -> str | None:
        return None if self.closed else self._all_lent()

    def _all_lent(self) -> str | None:
        stats: dict[str, int] = self.pool.get_stats()
        size, most = stats.get("pool_size", 0), stats.get("pool_max", 0)
        if not 0 < most <= size or stats.get("pool_available", 0):
            return None
        return f"exhausted: {size} of {most} in use, {stats.get('requests_waiting', 0)} waiting"

    def metrics(self) -> dict[str, Any]:
        stats: dict[str, int] = self.pool.get_stats()
        size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
        requests, errors = stats.get("requests_num", 0), stats.get("requests_errors", 0)
        return _figures(
            size, idle, stats.get("pool_max", size),
            waiting_requests=stats.get("requests_waiting", 0),
            connection_requests=requests,
            connection_errors=stats.get("connections_errors", 0),
            total_connections_created=stats.get("connections_num", 0),
            avg_acquisition_time_ms=stats.get("requests_wait_ms", 0) / max(1, requests),
            error_rate=min(1.0, errors / max(1, requests)),
        )  # fmt: skip


class SQLAlchemy(Member):
    """A SQLAlchemy ``Engine``."""

    @property
    def name(self) -> None:
        return None  # an engine's name is its database's kind

    def open(self, timeout: float) -> None:
        self.probe(timeout)

    def close(self, timeout: float) -> None:
        self.pool.dispose()

    def lease(self, timeout: float | None) -> AbstractContextManager[Any]:
        if timeout is not None:
            raise ValueError("timeout must be None for a SQLAlchemy engine, which uses its own pool_timeout")
        return self.pool.connect()  # type: ignore[no-any-return]

    def probe(self, timeout: float) -> str | None:
        lent = self.trouble()
        if lent is None:  # otherwise it would wait for its own timeout, 30 s by default
            with self.pool.connect() as conn:
                conn.exec_driver_sql("SELECT 1")
        return lent

    def trouble(self) -> str | None:
        found = self.metrics()
        if not 0 < found["max_size"] <= found["in_use"]:
            return None
        return f"exhausted: {found['in_use']} of {found['max_size']} in use"

    def metrics(self) -> dict[str, Any]:
        pool = self.pool.pool
        idle, lent = (_number(pool, name) for name in ("checkedin", "checkedout"))
        overflow = getattr(pool, "_max_overflow", 0)
        return _figures(idle + lent, idle, 0 if overflow < 0 else _number(pool, "size") + overflow)


class OurEngine(SQLAlchemy):
    """A SQLAlchemy ``Engine`` on our pool class."""

    @property
    def core(self) -> ManagedPool[Any]:
        """The pool beneath it; another one after ``engine.dispose()``."""
        return self.pool.pool.core  # type: ignore[no-any-return]

    @property
    def settings(self) -> PoolSettings:
        return self.core.settings

    def is_down(self) -> bool:
        return self.core.stats()["down"] is not None

    def trouble(self) -> str | None:
        return super().trouble() or Ours(self.core, self.critical, self.owned, self.recipe).trouble()

    def metrics(self) -> dict[str, Any]:
        return Ours(self.core, self.critical, self.owned, self.recipe).metrics()


class Mongo(Member):
    """A ``pymongo.MongoClient``, which has a pool for each server.

    Whatever it is asked for and has not is a database to it, so it is asked for nothing else.
    """

    closed = False

    def __init__(self, pool: Any, critical: bool, owned: bool, recipe: object) -> None:
        from .adapters.mongo import PoolEvents

        super().__init__(pool, critical, owned, recipe)
        found = [each for each in pool.options.event_listeners if isinstance(each, PoolEvents)]
        if not found:
            raise ValueError(
                "pool must be a MongoClient that is created with event_listeners=[pooling.adapters.mongo.PoolEvents()]"
            )
        self._events = found[0]
        self._limit = pool.options.pool_options.max_pool_size or 0  # for each server

    @property
    def name(self) -> None:
        return None

    @property
    def settings(self) -> PoolSettings:
        return PoolSettings()

    def open(self, timeout: float) -> None:
        self.probe(timeout)

    def close(self, timeout: float) -> None:
        self.closed = True
        self.pool.close()

    def lease(self, timeout: float | None) -> AbstractContextManager[Any]:
        if timeout is not None:
            raise ValueError("timeout must be None for a MongoClient, which uses its own waitQueueTimeoutMS")
        return nullcontext(self.pool)

    def probe(self, timeout: float) -> str | None:
        lent = self.trouble()
        if lent is None:  # otherwise it would wait behind borrowers
            try:
                with sys.modules["pymongo"].timeout(max(timeout, 0.001)):
                    self.pool.admin.command("ping")
            except Exception as error:
                lent = self.trouble() if type(error).__name__ == "WaitQueueTimeoutError" else None
                if lent is None:
                    raise
        return lent

    def trouble(self) -> str | None:
        found = self._events.figures()
        if not 0 < self._limit <= found.fullest:
            return None
        return f"exhausted: {found.fullest} of {self._limit} in use, {found.waiting} waiting"

    def metrics(self) -> dict[str, Any]:
        found = self._events.figures()
        requests = found.acquired + found.timeouts + found.failed
        return _figures(
            found.size, found.size - found.in_use, self._limit * max(1, found.servers),
            waiting_requests=found.waiting,
            connection_requests=requests,
            connection_timeouts=found.timeouts,
            connection_errors=found.failed,
            total_connections_created=found.created,
            total_connections_closed=sum(found.closed.values()),
            avg_acquisition_time_ms=found.waited / max(1, found.acquired) * 1e3,
            error_rate=(found.timeouts + found.failed) / max(1, requests),
        )  # fmt: skip


def _number(pool: Any, name: str) -> int:
    method = getattr(pool, name, None)  # NullPool and similar pools have no counts
    return int(method()) if callable(method) else 0


def _figures(size: int, idle: int, limit: int, **more: float) -> dict[str, Any]:
    """Another library's counts under our names, as far as it has them; a ``limit`` of 0 means none."""
    lent = size - idle
    found: dict[str, Any] = {
        "size": size, "idle": idle, "in_use": lent, "max_size": limit,
        "total_connections": size, "idle_connections": idle, "active_connections": lent,
        "pool_utilization": lent / size if size else 0.0,
        "saturation": lent / limit if limit > 0 else 0.0,
        "error_rate": 0.0, **more,
    }  # fmt: skip
    return {**found, "success_rate": 1.0 - found["error_rate"]}


_FOREIGN: dict[tuple[str, str], type[Member]] = {
    ("psycopg_pool", "ConnectionPool"): Psycopg,
    ("sqlalchemy", "Engine"): SQLAlchemy,
    ("pymongo", "MongoClient"): Mongo,
}


def member_of(
    pool: object, *, critical: bool = True, owned: bool = True, recipe: object = None
) -> Member:
    """Return the member for a pool.

    Raises:
        TypeError: It is not a pool that can be managed.
    """
    if isinstance(pool, ManagedPool):
        return Ours(pool, critical, owned, recipe)
    for base in type(pool).__mro__:
        kind = _FOREIGN.get((base.__module__.partition(".")[0], base.__name__))
        if kind is SQLAlchemy and isinstance(getattr(getattr(pool, "pool", None), "core", None), ManagedPool):
            kind = OurEngine
        if kind is not None:
            return kind(pool, critical, owned, recipe)
    raise TypeError(
        "pool must be a pooling.Pool, a psycopg_pool.ConnectionPool, a SQLAlchemy Engine or a pymongo.MongoClient, "
        f"not {type(pool).__name__}"
    )


def in_parallel(
    jobs: Mapping[str, Callable[[], T]], timeout: float
) -> dict[str, tuple[T | BaseException, float]]:
    """Run each job on its own thread; return results or errors, and the seconds each took.

    A job that does not return in time gives a `TimeoutError`; its thread is a
    daemon and may continue.
    """
    done: Any = queue.SimpleQueue()  # looked up here, because gevent replaces it
    began = time.monotonic()

    def run(name: str, job: Callable[[], T]) -> None:
        result: T | BaseException
        try:
            result = job()
        except BaseException as error:
            result = error.with_traceback(None)  # its frames may hold a lease
        done.put((name, result, time.monotonic() - began))

    for name, job in jobs.items():
        threading.Thread(target=run, args=(name, job), daemon=True, name=f"pooling {name}").start()
    found: dict[str, tuple[T | BaseException, float]] = {}
    try:
        while len(found) < len(jobs):
            name, result, seconds = done.get(timeout=max(0.0, began + timeout - time.monotonic()))
            found[name] = result, seconds
    except queue.Empty:
        pass
    late = TimeoutError(f"no answer within {timeout:g} s")
    return {name: found.get(name, (late, timeout)) for name in jobs}


def reason_of(error: BaseException) -> tuple[bool, str]:
    """Return whether an error means "down" rather than "busy", and its one-line description."""
    busy = isinstance(error, PoolTimeout) and error.__cause__ is None
    return not busy, format_error(error)
