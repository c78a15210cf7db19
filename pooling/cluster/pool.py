"""`PostgresCluster`: the public verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import psycopg

from ..adapters.postgres.blocks import Transaction
from ..adapters.postgres.executing import Params, execute, execute_each, limit_to
from ..adapters.postgres.tracking import Connection
from ..adapters.shared.retrying import run
from ..core.clock import SYSTEM, seconds
from ..core.lease import Lease
from ..core.observer import Observer
from ..errors import PoolUnavailable
from ..lanes import named
from ..settings import PoolSettings
from .addresses import split_url
from .group import ServerGroup
from .position import Position
from .replicas import Replicas
from .routing import ReadBlock, Reading, WriteBlock, Writing
from .server import Server, ask

__all__ = ["PostgresCluster"]

T = TypeVar("T")
_SUMS = ("size", "idle", "in_use", "creating", "checking", "closing", "waiting", "min_size", "max_size")


class PostgresCluster(ServerGroup):
    """Lends connections to a PostgreSQL primary and to its replicas.

    ::

        db = PostgresCluster("postgresql://app@db1,db2,db3/orders", max_size=20, max_lag=5)
        with db.connection() as conn:                  # the primary
            conn.execute("INSERT INTO orders VALUES (%s)", (order,))
        token = db.position()
        with db.read() as conn:                        # a replica
            ...
        with db.read(after=token) as conn:             # a replica that has the order, or the primary
            ...

    Each server has a `PostgresPool` of its own, see `servers`. Which server is the primary is found out, and followed:
    after a failover, writers go to the server that was promoted. The servers are asked once a second while the
    cluster is used, over their pools' connections. Nothing is opened before the first use.

    Args:
        primary: The address of the primary, as for `PostgresPool`, but as text; or of all servers, as a URL with
            several hosts. Any of the servers may be the primary.
        settings: Sizes and times of the pool of each server; any of them may become the primary.
        replicas: The addresses of further servers; a mapping gives them names.
        max_lag: Seconds that a replica may be behind; others get no reads. Measured once a second, or four times in
            ``max_lag``, by comparing positions in the log, so an idle primary is no lag.
        primary_reads: How many reads may be on the primary at once when no replica can be read: a number, or, as a
            float up to 1.0, a part of ``max_size``; 0 for none, ``None`` for no limit. Further ones wait. In a cluster
            of one server there is no limit.
        name: The cluster's name; those of the pools are ``"name.host"``.
        observers: Notified of the events of all pools.
        arguments: Further arguments of `PostgresPool`, and fields of `PoolSettings`, for each pool.

    Raises:
        ValueError, TypeError: An argument is invalid.
    """

    def __init__(
        self,
        primary: str = "",
        settings: PoolSettings | None = None,
        *,
        replicas: Iterable[str] | Mapping[str, str] = (),
        max_lag: float = 10.0,
        primary_reads: float | None = 0.5,
        name: str = "cluster",
        observers: Iterable[Observer] = (),
        **arguments: Any,
    ) -> None:
        super().__init__(primary, settings, replicas, max_lag, primary_reads, name, observers, arguments)

    @classmethod
    def from_url(
        cls, url: str, *, settings: PoolSettings | None = None, name: str | None = None, **arguments: Any
    ) -> PostgresCluster:
        """Create a cluster from ``postgresql+cluster://app@db1,db2/orders?max_lag=5&primary_reads=0.5``.

        Args:
            url: As for libpq, but for the scheme; its query may contain ``max_lag`` and ``primary_reads``.
            settings, name, arguments: As for the class; they override the URL.

        Raises:
            ValueError, TypeError: As for the class.
        """
        rest, given = split_url(url)
        return cls(rest, settings, name=name or "cluster", **{**given, **arguments})

    # -- the primary -----------------------------------------------------------------

    def connection(self, timeout: float | None = None, lane: str | None = None) -> AbstractContextManager[Connection]:
        """Lend a connection to the primary for one transaction, see `PostgresPool.connection`.

        After a failover the borrowers get connections to the new primary; those who used one to the old primary get
        its error, once for each connection.
        """
        return WriteBlock(self._router, timeout, lane)

    @contextmanager
    def transaction(
        self,
        *,
        isolation_level: psycopg.IsolationLevel | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        timeout: float | None = None,
        lane: str | None = None,
    ) -> Iterator[Connection]:
        """Lend a connection to the primary in a transaction with these properties, see `PostgresPool.transaction`."""
        lease = self.acquire(timeout, 3, *named(lane))
        pool: Any = lease._pool
        with lease as conn, Transaction(pool, conn, isolation_level, read_only, deferrable):
            yield conn

    def execute_query(
        self,
        sql: Any,
        params: Params | None = None,
        *,
        row_factory: psycopg.rows.RowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Execute one statement on the primary in a transaction of its own, see `PostgresPool.execute_query`."""
        deadline = _deadline(timeout)
        lease = self.acquire(timeout, 2)
        pool: Any = lease._pool
        with lease as conn:
            limit_to(pool, conn, timeout, deadline)
            return execute(pool, conn, sql, params, row_factory)

    def execute_many(self, sql: Any, params: Iterable[Params], *, timeout: float | None = None) -> int:
        """Execute one statement with many parameters on the primary, see `PostgresPool.execute_many`."""
        deadline = _deadline(timeout)
        lease = self.acquire(timeout, 2)
        pool: Any = lease._pool
        with lease as conn:
            limit_to(pool, conn, timeout, deadline)
            return execute_each(pool, conn, sql, params)

    def run(self, function: Callable[[Connection], T], *, retries: int = 3, timeout: float | None = None) -> T:
        """Run a unit of work in a transaction on the primary, and again where that helps, see `PostgresPool.run`.

        After a failover it is run again on the new primary, unless it may have been committed.
        """
        turn = Writing(self._router)
        return run(
            turn, function, retries, timeout, lambda conn: Transaction(turn.lent_by, conn), turn.may_run_again
        )  # fmt: skip

    def position(self, timeout: float | None = None) -> str:
        """Return a token for the present state of the primary, for ``read(after=token)``. Makes a round trip.

        Call it after the end of the block that has written: what was committed by then is included. The token is a
        short text, which may be stored in a session or a cookie, and used in other processes.

        Args:
            timeout: Seconds to wait; ``None`` means ``acquire_timeout``.

        Raises:
            PoolTimeout, PoolUnavailable: The primary cannot be asked.
            psycopg.NotSupportedError: The server, or the role's privileges, do not allow that.
            psycopg.Error: As from psycopg.
        """
        lease = self.acquire(timeout, 2)
        with lease as conn:
            asked_at = SYSTEM.now()
            answer = ask(conn, self.settings.health_check_timeout if timeout is None else timeout)
            if answer.standby:
                raise PoolUnavailable(f"cluster {self.name!r}: the server is not the primary any more")
            if not answer.lsn:
                raise psycopg.NotSupportedError(f"cluster {self.name!r}: the server does not tell its position")
            self.standing.learned(self._of(lease), answer, asked_at)
            return answer.position.token

    def _of(self, lease: Lease[Connection]) -> Server:
        return next(server for server in self._all if server.pool is lease._pool)

    @property
    def replicas(self) -> Replicas:
        """The replicas as a pool: its ``acquire()`` is `acquire_read`. For what takes a pool."""
        return Replicas(self)

    # -- replicas --------------------------------------------------------------------

    def read(
        self, timeout: float | None = None, *, after: str | None = None, lane: str | None = None
    ) -> AbstractContextManager[Connection]:
        """Lend a connection to a replica, for one transaction that only reads.

        If no replica can be read, because they are down or too far behind, it is one to the primary, within
        ``primary_reads``. A write fails, there too. If the server goes down within the block, the block gets its
        error; `read_query` and `run_read` read on another server then.

        Args:
            timeout: Seconds to wait for a connection; ``None`` means ``acquire_timeout``.
            after: A token from `position`, or an LSN of the primary as text: the server has what was committed before
                it. A replica whose timeline cannot be seen gets such reads only if there has never been a failover:
                make the role a member of ``pg_read_all_stats``.
            lane: As for `Pool.acquire`.

        Returns:
            A context manager that gives the connection.

        Raises:
            PoolTimeout: No connection became available in time, or the primary's budget was used up.
            PoolUnavailable: No replica can be read, and ``primary_reads`` is 0.
            ValueError, TypeError: ``after`` is no token.
            psycopg.errors.ReadOnlySqlTransaction: In the block, after a write.
        """
        return ReadBlock(self._router, _position(after), timeout, lane)

    def acquire_read(
        self, timeout: float | None = None, _depth: int = 1, lane: str | None = None, *, after: str | None = None
    ) -> Lease[Connection]:
        """Lend a connection for reading without a transaction around it, as `acquire` does for writing.

        Args, Raises:
            As for `read`.
        """
        return self._router.read(_position(after), timeout, _depth + 1, lane)

    def read_query(
        self,
        sql: Any,
        params: Params | None = None,
        *,
        after: str | None = None,
        row_factory: psycopg.rows.RowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Execute one statement that only reads on a replica, and return its rows.

        If the server is lost meanwhile, or cancels the statement because of a conflict with its recovery, the
        statement is executed again on another server, at last on the primary.

        Args:
            sql, params, row_factory: As for `PostgresPool.execute_query`.
            after: As for `read`.
            timeout: Seconds for waiting and executing together, on all servers. ``None`` means ``acquire_timeout``
                and ``command_timeout``, on each.

        Raises:
            As for `read` and `PostgresPool.execute_query`.
        """
        deadline, turn = _deadline(timeout), Reading(self._router, _position(after))
        for _ in self._all:
            lease = turn.acquire(timeout, 2)
            conn, pool = lease.__enter__(), turn.lent_by
            try:
                with lease:
                    limit_to(pool, conn, timeout, deadline)
                    return execute(pool, conn, sql, params, row_factory)
            except Exception as error:
                if not turn.may_run_again(conn, error) or len(turn.tried) == len(self._all):
                    raise
            if deadline is not None:
                timeout = max(0.0, deadline - SYSTEM.now())
        raise AssertionError("the last one returns or raises")

    def run_read(
        self, function: Callable[[Connection], T], *, after: str | None = None, retries: int = 3,
        timeout: float | None = None,
    ) -> T:  # fmt: skip
        """Run a unit of work that only reads in a transaction on a replica, and on another server where that helps.

        It is run again if the server is lost, or has cancelled it because of a conflict with its recovery, and as
        `PostgresPool.run` does.

        Args:
            function: The work; called with the connection, perhaps several times.
            after: As for `read`.
            retries: How often it may be run again, at least 0.
            timeout: Seconds to wait for a connection, for each run.

        Returns:
            What the function returned.

        Raises:
            As for `read` and `PostgresPool.run`.
        """
        turn = Reading(self._router, _position(after))
        return run(
            turn, function, retries, timeout, lambda conn: Transaction(turn.lent_by, conn), turn.may_run_again
        )  # fmt: skip


def _position(after: str | None) -> Position | None:
    return None if after is None else Position.parse(after)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else SYSTEM.now() + seconds(timeout)


PostgresCluster.__module__ = "pooling"  # where users import it from
