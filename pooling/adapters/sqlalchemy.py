"""SQLAlchemy: a pool class for engines, based on our pool.

::

    from pooling.adapters.sqlalchemy import Pool

    engine = create_engine("postgresql+psycopg://...", poolclass=Pool, pool_size=10, max_overflow=0)

SQLAlchemy keeps a *record* for each slot of a pool. The record connects, pings,
recycles and invalidates its connection, and fires the events. A pool class only
decides which borrower gets which record, and when; here our pool does that. So
all settings of SQLAlchemy keep their meaning, with any driver.

SQLAlchemy's own tests of ``QueuePool`` pass with it, with these intended exceptions:

- those that read private attributes (``_pool``, ``_overflow``), or compare all of two pools (``test_recreate_state``);
- ``test_dispose_closes_pooled`` expects a connection that was in use at `Pool.dispose` to be lent again; it is closed.

`DBAPIAdapter` is for the connections of any DB-API driver without SQLAlchemy.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sqlalchemy import exc, pool
from sqlalchemy.pool.base import ConnectionPoolEntry, PoolProxiedConnection, _ConnectionFairy, _ConnectionRecord

from .._masking import shown
from ..core.adapter import Adapter, Verdicts
from ..core.hangup import connected, watchable
from ..core.lease import Lease
from ..core.pool import Pool as Core
from ..core.report.holders import Holder, borrower, depth_of_borrower
from ..core.report.messages import no_copy
from ..core.report.metrics import PoolMetrics
from ..core.runtime import fork
from ..core.runtime.fork import SAME_PROCESS
from ..errors import LeaseError, PoolTimeout
from ..settings import PoolSettings
from .dbapi import DBAPIAdapter, leave_to_parent

__all__ = ["DBAPIAdapter", "Pool"]

_UNBOUNDED = 1 << 20
_KEPT = ("max_waiting", "leak_timeout", "track_holders")  # settings of the core that the arguments do not determine
_ANSWER_LIMIT = 5  # seconds for a query to the server about stalled connections
_BETWEEN = ("sqlalchemy.", "contextlib", __name__)  # modules between the borrower and this one

# The core keeps its resources after the pool is gone, in order to close them. A record refers
# to its pool, so the core gets a weak reference.
_Slot = weakref.ref[_ConnectionRecord]


class Pool(pool.Pool):
    """A pool for ``create_engine(poolclass=...)`` that fulfils the contract of ``QueuePool``.

    In addition:

    - Waiters are served in the order of their arrival.
    - A forked child finds the pool empty and usable, and does not affect the
      parent's connections. An inherited connection can be closed, which sends
      nothing; any other use raises a `LeaseError`.
    - A connection that the server has closed is not lent, even without
      ``pool_pre_ping``, if the driver provides its socket (psycopg, psycopg2,
      PyMySQL). This takes no round trip.
    - `holders` returns where and when each connection in use was acquired, and
      the error of a timeout contains it.

    Differences: A connection in use during `dispose` is closed when it is
    released (``QueuePool`` keeps it). A record that failed to reconnect is
    dropped, so `overflow` is one less. The private attributes of ``QueuePool``
    (``_pool``, ``_overflow``) do not exist.

    Connections are created, pinged and closed in the borrower's thread, as
    SQLAlchemy does, so that events and errors occur there.

    Args:
        creator: Returns a new DB-API connection.
        pool_size: The number of connections to keep; 0 means no limit.
        max_overflow: How many more may be open; they are closed when released.
            A negative number means no limit.
        timeout: Seconds to wait for a connection (``pool_timeout``); ``None``
            means no limit.
        use_lifo: Lend the connection that was used last, so that a surplus
            reaches the server's idle timeout; otherwise the one unused for
            longest (``pool_use_lifo``).
        stall_timeout: As for `PostgresPool`, for connections of psycopg. They
            are also validated by a round trip if they were idle for half a
            second. No effect with other drivers.
        **kw: As for ``sqlalchemy.pool.Pool``.

    Raises:
        ValueError, TypeError: An argument is out of bounds or of the wrong type.
    """

    _is_asyncio = False
    _sqla_logger_namespace = "sqlalchemy.pool.pooling.Pool"  # inherits the level of "sqlalchemy.pool"

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        stall_timeout: float | None = 60.0,
        **kw: Any,
    ) -> None:
        _check(pool_size=pool_size, max_overflow=max_overflow)
        self._stall_timeout = stall_timeout
        self._is_postgres = _is_psycopg(kw.get("dialect"))
        super().__init__(creator, **kw)
        self._pool_size, self._max_overflow = pool_size, -1 if pool_size == 0 else max(-1, max_overflow)
        self._timeout, self._use_lifo = timeout, use_lifo
        self._acquire_timeout = threading.TIMEOUT_MAX if timeout is None else timeout
        self._records: set[_ConnectionRecord] = set()  # of all slots; the core has weak references only
        self._lent: dict[_ConnectionRecord, Lease[_Slot]] = {}
        self.core = _Core(self)

    # -- SQLAlchemy's hooks ---------------------------------------------------------

    def connect(self) -> PoolProxiedConnection:
        """Return a connection; its ``close()`` releases it.

        Raises:
            sqlalchemy.exc.TimeoutError: None came in time; the message states counts and holders.
        """
        fairy = super().connect()
        fairy.__class__ = _Fairy  # SQLAlchemy always creates one of its own class
        return fairy

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            lease = self.core.acquire(self._acquire_timeout, depth_of_borrower(_BETWEEN))
        except PoolTimeout as error:
            raise exc.TimeoutError(f"{error}; size {self.size()}, overflow {self.overflow()}", code="3o7r") from None
        record = lease.resource()
        assert record is not None and lease._token is not None  # `_records` keeps it
        lease._token.entry.borrower = (borrower(), lease._token.entry.since)
        if record.dbapi_connection is None:
            try:
                record.get_connection()
            except BaseException:
                lease.discard()
                raise
        self._lent[record] = lease
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        lease = self._lent.pop(record, None)  # type: ignore[call-overload]
        if lease is not None:  # otherwise the connection belongs to the parent process
            lease.__exit__(None, None, None)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        no_copy(self, "threads share one, forked processes inherit it, and other processes make their own")

    def recreate(self) -> Pool:
        """Return a new, empty pool with the same settings."""
        self.logger.info("Pool recreating")
        fresh = type(self)(
            self._creator, pool_size=self._pool_size, max_overflow=self._max_overflow, timeout=self._timeout,
            use_lifo=self._use_lifo, recycle=self._recycle, echo=self.echo, logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return, pre_ping=self._pre_ping, dialect=self._dialect,
            stall_timeout=self._stall_timeout, _dispatch=self.dispatch,
        )  # fmt: skip
        fresh.core.reconfigure(**{name: getattr(self.core.settings, name) for name in _KEPT})
        return fresh

    def dispose(self) -> None:
        """Close idle connections now, and those in use when they are released."""
        self.core.drain()
        self.logger.info("Pool disposed. %s", self.status())

    # -- observe --------------------------------------------------------------------

    def status(self) -> str:
        """Return the counts in the words of ``QueuePool``."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} Current Checked out connections: {self.checkedout()}"
        )

    def size(self) -> int:
        """Return the number of connections to keep."""
        return self._pool_size

    def timeout(self) -> float | None:
        """Return how many seconds a borrower waits; ``None`` means no limit."""
        return self._timeout

    def checkedin(self) -> int:
        """Return the number of idle connections."""
        return len(self.core.engine.state.idle)

    def checkedout(self) -> int:
        """Return the number of connections in use."""
        return self.core.engine.state.in_use

    def overflow(self) -> int:
        """Return by how many the connections exceed ``pool_size``; negative if there are fewer."""
        return len(self.core.engine.state.entries) - self._pool_size if self._pool_size else 0

    @property
    def metrics(self) -> PoolMetrics:
        """Counters and durations, see `PoolMetrics`."""
        return self.core.metrics

    def holders(self) -> list[Holder]:
        """Return who holds a connection, where it was acquired and for how many seconds; longest first."""
        return self.core.holders()


class _Core(Core[_Slot]):
    """The pool of slots; they are closed in the thread that releases them."""

    def __init__(self, owner: Pool) -> None:
        unbounded = owner._max_overflow == -1
        super().__init__(
            adapter=_adapter_for(owner),
            settings=PoolSettings(
                min_size=0, max_size=_UNBOUNDED if unbounded else owner._pool_size + owner._max_overflow,
                max_idle=owner._pool_size or None, acquire_timeout=owner._acquire_timeout,
                max_lifetime=None, idle_timeout=None, health_check_interval=None,
            ),
            name=owner._orig_logging_name,
        )  # fmt: skip


class _Records(Adapter[_Slot]):
    """SQLAlchemy's records as resources; the records manage their connections themselves."""

    noun = "connection"
    blocking = False
    close_inline = True  # see `Pool`

    def __init__(self, owner: Pool) -> None:
        self._owner = weakref.ref(owner)
        self.lifo = owner._use_lifo

    def create(self) -> _Slot:
        owner = self._owner()
        assert owner is not None  # it called `acquire`
        record = _Record(owner, connect=False)
        owner._records.add(record)
        return weakref.ref(record)

    def close(self, resource: _Slot) -> None:
        record = self._forget(resource)
        if record is not None:
            record.close()

    def abandon(self, resource: _Slot) -> None:
        record = self._forget(resource)
        if record is None:
            return
        if record.dbapi_connection is not None:
            leave_to_parent(record.dbapi_connection)
            leave_to_parent(record.driver_connection)
        fairy: Any = None if record.fairy_ref is None else record.fairy_ref()
        if fairy is not None:
            fairy.dbapi_connection = None  # as in an invalidation: no rollback follows
        record.dbapi_connection = record.fairy_ref = None  # a later close by its holder does nothing

    def _forget(self, resource: _Slot) -> _ConnectionRecord | None:
        record, owner = resource(), self._owner()
        if record is not None and owner is not None:
            owner._records.discard(record)
            owner._lent.pop(record, None)
        return record


class _RemoteRecords(_Records):
    """Records of connections to a server: one that the server has closed is not lent."""

    def is_alive(self, resource: _Slot) -> bool:
        record: Any = resource()
        watched = None if record is None else record._watched
        return watched is None or connected(watched)


class _PostgresRecords(_RemoteRecords):
    """Records of psycopg's connections, with validation and stall detection."""

    enforces_timeouts = True

    def __init__(self, owner: Pool) -> None:
        from .shared.limits import check_limit

        super().__init__(owner)
        self.stall_timeout = check_limit("stall_timeout", owner._stall_timeout)

    def validate(self, resource: _Slot, timeout: float) -> None:
        from .postgres.session import IDLE
        from .postgres.wire import round_trip

        conn = _connection_of(resource)
        # None: it connects when it is lent. In a transaction (reset_on_return=None): the next borrower continues it.
        if conn is not None and conn.pgconn.transaction_status == IDLE:
            round_trip(conn, b"SELECT 1", timeout)

    def command_of(self, resource: _Slot) -> object:
        from .postgres.stalls import command_of

        conn = _connection_of(resource)
        watch = None if conn is None else vars(conn).get("_pooling")
        return None if watch is None else command_of(conn, watch)

    def end_stalled(self, waiting: Sequence[tuple[_Slot, object]], seconds: float) -> Verdicts:
        from .postgres.stalls import end_stalled

        asked: list[Any] = []
        for resource, command in waiting:
            conn = _connection_of(resource)
            if conn is not None:
                asked.append((conn, vars(conn)["_pooling"], command))
        return end_stalled(asked, seconds, self._connect_like(asked), _ANSWER_LIMIT)

    def _connect_like(self, asked: list[Any]) -> Callable[[Any], Any]:
        """Return a function that connects with the parameters of these connections.

        If that fails and the engine has events that may change the parameters,
        the creator is called, which has no time limit.
        """

        def connect(address: Any) -> Any:
            import psycopg

            info = next(conn.info for conn, watch, _ in asked if watch.backend.place == address)
            remote = {name: value for name, value in address._asdict().items() if value and address.is_remote}
            parameters = {**info.get_parameters(), "password": info.password, **remote}
            parameters["connect_timeout"] = _ANSWER_LIMIT
            try:
                return psycopg.connect(**parameters)
            except psycopg.OperationalError:
                owner = self._owner()
                if owner is None or not getattr(owner._dialect, "_has_events", False):
                    raise
                creator: Any = owner._invoke_creator
                return creator(None)  # for tokens that are valid for one connection only

        return connect


def _connection_of(resource: _Slot) -> Any:
    """Return psycopg's connection of a slot, without any wrapper."""
    from .postgres.stalls import bare_of

    record: Any = resource()
    return None if record is None else bare_of(record._connected)


def _adapter_for(owner: Pool) -> _Records:
    if owner._is_postgres:
        return _PostgresRecords(owner)
    return _Records(owner) if getattr(owner._dialect, "name", None) == "sqlite" else _RemoteRecords(owner)


def _is_psycopg(dialect: Any) -> bool:
    return (getattr(dialect, "name", None), getattr(dialect, "driver", None)) == ("postgresql", "psycopg")


# After a fork in C, a child detects the fork at the latest when it accesses an inherited
# connection. SQLAlchemy does so to roll back, when one is closed, collected or left by an error.


class _Record(_ConnectionRecord):
    """A slot's record."""

    __slots__ = ("_connected", "_watched")

    @property
    def dbapi_connection(self) -> Any:
        return self._connected if SAME_PROCESS[0] or fork.ensure_process() else None

    @dbapi_connection.setter
    def dbapi_connection(self, value: Any) -> None:
        if value is not None and self._ConnectionRecord__pool._is_postgres:  # type: ignore[attr-defined]
            from .postgres.stalls import watched

            watched(value)
        self._watched = value if value is not None and watchable(value) else None
        self._connected = value


class _Fairy(_ConnectionFairy):
    """The proxy of a connection that a borrower holds."""

    __slots__ = ()

    @property
    def dbapi_connection(self) -> Any:
        return _get_connection(self) if SAME_PROCESS[0] or fork.ensure_process() else None

    @dbapi_connection.setter
    def dbapi_connection(self, value: Any) -> None:
        _set_connection(self, value)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        connection = self.dbapi_connection
        if connection is None:
            self._refuse()
            return super().cursor(*args, **kwargs)  # which raises
        return connection.cursor(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        connection = self.dbapi_connection
        if connection is None:
            self._refuse()
        return getattr(connection, name)

    def _refuse(self) -> None:
        if self._connection_record is None:
            return  # closed or invalidated: SQLAlchemy raises its own error
        pool: Any = self._pool
        raise LeaseError(
            f"pool {pool.core.name!r}: this connection belongs to the parent process; "
            "connect again in this one"
        )


_slot: Any = _ConnectionFairy.dbapi_connection  # the descriptor of the attribute
_get_connection, _set_connection = _slot.__get__, _slot.__set__


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, not {shown(value)}")
    if sizes["pool_size"] < 0:
        raise ValueError(f"pool_size must be at least 0, not {sizes['pool_size']!r}")
