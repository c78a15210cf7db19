"""SQLAlchemy: engines whose connections are lent by our pool.

::

    from pooling.adapters.sqlalchemy import Pool

    engine = create_engine("postgresql+psycopg://...", poolclass=Pool, pool_size=10, max_overflow=0)

SQLAlchemy keeps a *record* for each slot of a pool: it connects and pings it,
recycles and invalidates it, and tells its events. What is left to a pool, who
gets which record when, is done by ours. So all of SQLAlchemy's settings keep
their meaning, with any driver. `DBAPIAdapter` is the opposite: our pool of what
any DB-API driver makes, without SQLAlchemy.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from sqlalchemy import exc, pool
from sqlalchemy.pool.base import ConnectionPoolEntry, PoolProxiedConnection, _ConnectionFairy, _ConnectionRecord

from .._masking import shown
from ..core.adapter import Adapter, Verdicts
from ..core.lease import Lease
from ..core.pool import Pool as Core
from ..core.report.holders import Holder, borrower
from ..core.report.metrics import PoolMetrics
from ..core.runtime import fork
from ..core.runtime.fork import SAME_PROCESS
from ..errors import LeaseError, PoolTimeout
from ..settings import PoolSettings
from .dbapi import DBAPIAdapter, leave_to_parent

__all__ = ["DBAPIAdapter", "Pool"]

_UNBOUNDED = 1 << 20
_ANSWER_LIMIT = 5  # seconds for what the server is asked about others' connections
_BETWEEN = ("sqlalchemy.", "contextlib", __name__)  # modules between a borrower and us

# The core keeps what it lends longer than the pool lives, in order to close it; a
# record leads to its pool, so the core gets a weak reference to it.
_Slot = weakref.ref[_ConnectionRecord]


class Pool(pool.Pool):
    """A pool for ``create_engine(poolclass=...)`` with the whole contract of ``QueuePool``.

    Beyond it: who waits is served in the order of arrival; a forked child finds
    the pool empty and usable, and nothing that it does reaches the parent's
    connections: those in its hands close without a word, and refuse all else
    with a `LeaseError`; `holders` tells who has a connection since when, and the
    error of a timeout says so. A connection that was out when the pool was
    disposed of is closed when it comes back (``QueuePool`` keeps and lends it);
    and a record whose connection could not be made anew is not kept, so that
    `overflow` is one less then. The private attributes of ``QueuePool``
    (``_pool``, ``_overflow``) do not exist.

    Connections are made, pinged and closed in the borrower's thread, as
    SQLAlchemy does, so that its events run there and its errors go there.

    Args:
        creator: Makes a DB-API connection.
        pool_size: Connections that are kept; 0 means no limit.
        max_overflow: How many more may be open, closed when they come back;
            a negative number means no limit.
        timeout: Seconds to wait for one (``pool_timeout``); ``None`` means without limit.
        use_lifo: Take the one used last, so that a surplus ages out on the
            server; otherwise each in turn (``pool_use_lifo``).
        stall_timeout: As of `PostgresPool`, for psycopg's connections; they are
            asked by a round trip, too, before they are lent after half a second
            of rest. No effect with other drivers.
        **kw: Those of ``sqlalchemy.pool.Pool``.

    Raises:
        ValueError, TypeError: An argument breaks its rule.
    """

    _is_asyncio = False
    _sqla_logger_namespace = "sqlalchemy.pool.pooling.Pool"  # what is set for "sqlalchemy.pool" holds here

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
        self._patience = threading.TIMEOUT_MAX if timeout is None else timeout
        self._records: set[_ConnectionRecord] = set()  # keeps those of all slots
        self._lent: dict[_ConnectionRecord, Lease[_Slot]] = {}
        self.core = _Core(self)

    # -- SQLAlchemy's hooks ---------------------------------------------------------

    def connect(self) -> PoolProxiedConnection:
        """Lend a connection; its ``close()`` gives it back."""
        fairy = super().connect()
        fairy.__class__ = _Fairy  # SQLAlchemy knows of no other class: it makes one of its own
        return fairy

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            lease = self.core.acquire(self._patience, _steps_to_borrower())
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
        if lease is not None:  # else it is the parent's
            lease.__exit__(None, None, None)

    def recreate(self) -> Pool:
        """Return a new pool like this one."""
        self.logger.info("Pool recreating")
        return type(self)(
            self._creator, pool_size=self._pool_size, max_overflow=self._max_overflow, timeout=self._timeout,
            use_lifo=self._use_lifo, recycle=self._recycle, echo=self.echo, logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return, pre_ping=self._pre_ping, dialect=self._dialect,
            stall_timeout=self._stall_timeout, _dispatch=self.dispatch,
        )  # fmt: skip

    def dispose(self) -> None:
        """Close what is idle now, and what is out when it comes back."""
        self.core.drain()
        self.logger.info("Pool disposed. %s", self.status())

    # -- looking --------------------------------------------------------------------

    def status(self) -> str:
        """Return how many are where, as ``QueuePool`` does."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} Current Checked out connections: {self.checkedout()}"
        )

    def size(self) -> int:
        """Return how many connections are kept."""
        return self._pool_size

    def timeout(self) -> float | None:
        """Return for how many seconds a borrower waits; ``None``: without limit."""
        return self._timeout

    def checkedin(self) -> int:
        """Return how many are idle."""
        return len(self.core.engine.state.idle)

    def checkedout(self) -> int:
        """Return how many are lent."""
        return self.core.engine.state.in_use

    def overflow(self) -> int:
        """Return how many more than ``pool_size`` there are; negative: how many less."""
        return len(self.core.engine.state.entries) - self._pool_size if self._pool_size else 0

    @property
    def metrics(self) -> PoolMetrics:
        """The metrics of the pool beneath."""
        return self.core.metrics

    def holders(self) -> list[Holder]:
        """Return who holds a connection, where it was taken and for how long; longest first."""
        return self.core.holders()


class _Core(Core[_Slot]):
    """The pool beneath: of slots, in SQLAlchemy's order, closed by whoever gives them back."""

    def __init__(self, owner: Pool) -> None:
        unbounded = owner._max_overflow == -1
        super().__init__(
            adapter=_PostgresRecords(owner) if owner._is_postgres else _Records(owner),
            settings=PoolSettings(
                min_size=0, max_size=_UNBOUNDED if unbounded else owner._pool_size + owner._max_overflow,
                max_idle=owner._pool_size or None, acquire_timeout=owner._patience,
                max_lifetime=None, idle_timeout=None, health_check_interval=None,
            ),
            name=owner._orig_logging_name,
        )  # fmt: skip


class _Records(Adapter[_Slot]):
    """SQLAlchemy's records as resources; what they connect to is their own business."""

    noun = "connection"
    blocking = False
    close_inline = True  # see `Pool`

    def __init__(self, owner: Pool) -> None:
        self._owner = weakref.ref(owner)
        self.lifo = owner._use_lifo

    def create(self) -> _Slot:
        owner = self._owner()
        assert owner is not None  # it asked
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
            fairy.dbapi_connection = None  # as SQLAlchemy does when one is invalidated: there is nothing to end
        record.dbapi_connection = record.fairy_ref = None  # who holds it can give back nothing

    def _forget(self, resource: _Slot) -> _ConnectionRecord | None:
        record, owner = resource(), self._owner()
        if record is not None and owner is not None:
            owner._records.discard(record)
            owner._lent.pop(record, None)
        return record


class _PostgresRecords(_Records):
    """Those of psycopg's connections, of which more is known."""

    bounded = True

    def __init__(self, owner: Pool) -> None:
        from .postgres.limits import check_limit

        super().__init__(owner)
        self.stall_timeout = check_limit("stall_timeout", owner._stall_timeout)

    def validate(self, resource: _Slot, timeout: float) -> None:
        from .postgres.session import IDLE
        from .postgres.wire import round_trip

        conn = _connection_of(resource)
        # Else it connects when it is lent, or was left in a transaction (reset_on_return=None), which goes on.
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
        """Return what connects as these have; else the creator, without a time limit, where it may have news."""

        def connect(place: Any) -> Any:
            import psycopg

            info = next(conn.info for conn, watch, _ in asked if watch.backend.place == place)
            wish = {name: value for name, value in place._asdict().items() if value and place.is_remote}
            parameters = {**info.get_parameters(), "password": info.password, **wish, "connect_timeout": _ANSWER_LIMIT}
            try:
                return psycopg.connect(**parameters)
            except psycopg.OperationalError:
                owner = self._owner()
                if owner is None or not getattr(owner._dialect, "_has_events", False):
                    raise
                creator: Any = owner._invoke_creator
                return creator(None)  # tokens that have been good for one connection

        return connect


def _connection_of(resource: _Slot) -> Any:
    """Return psycopg's connection of a slot, without what it may be wrapped in."""
    from .postgres.stalls import bare_of

    record: Any = resource()
    return None if record is None else bare_of(record._connected)


def _is_psycopg(dialect: Any) -> bool:
    return (getattr(dialect, "name", None), getattr(dialect, "driver", None)) == ("postgresql", "psycopg")


# A child that C forked learns at the latest when it reaches for a connection that
# it has inherited: SQLAlchemy does, in order to roll back, where one is closed,
# collected or left by an error.


class _Record(_ConnectionRecord):
    """A slot's record."""

    __slots__ = ("_connected",)

    @property
    def dbapi_connection(self) -> Any:
        return self._connected if SAME_PROCESS[0] or fork.ensure_process() else None

    @dbapi_connection.setter
    def dbapi_connection(self, value: Any) -> None:
        if value is not None and self._ConnectionRecord__pool._is_postgres:  # type: ignore[attr-defined]
            from .postgres.stalls import watched

            watched(value)
        self._connected = value


class _Fairy(_ConnectionFairy):
    """What a borrower has in his hands."""

    __slots__ = ()

    @property
    def dbapi_connection(self) -> Any:
        return _carried(self) if SAME_PROCESS[0] or fork.ensure_process() else None

    @dbapi_connection.setter
    def dbapi_connection(self, value: Any) -> None:
        _carry(self, value)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        connection = self.dbapi_connection
        if connection is None:
            self._refuse()
            return super().cursor(*args, **kwargs)  # which says what is wrong
        return connection.cursor(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        connection = self.dbapi_connection
        if connection is None:
            self._refuse()
        return getattr(connection, name)

    def _refuse(self) -> None:
        if self._connection_record is None:
            return  # closed or invalidated, and told as SQLAlchemy tells it
        pool: Any = self._pool
        raise LeaseError(
            f"pool {pool.core.name!r}: this connection belongs to the process that forked this one; "
            "connect anew here"
        )


_hands: Any = _ConnectionFairy.dbapi_connection  # the slot itself
_carried, _carry = _hands.__get__, _hands.__set__


def _steps_to_borrower() -> int:
    """How many frames above what our caller calls stands who called SQLAlchemy: the connection's holder."""
    steps = 1
    frame: FrameType | None = sys._getframe(1).f_back
    while frame is not None:
        steps += 1
        if not frame.f_globals.get("__name__", "").startswith(_BETWEEN):
            return steps
        frame = frame.f_back
    return 1


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, not {shown(value)}")
    if sizes["pool_size"] < 0:
        raise ValueError(f"pool_size must be at least 0, not {sizes['pool_size']!r}")
