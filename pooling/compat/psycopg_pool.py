"""A drop-in replacement for psycopg_pool::

    from pooling.compat.psycopg_pool import ConnectionPool      # instead of: from psycopg_pool import ...

`ConnectionPool` and `NullConnectionPool` take the arguments of psycopg_pool 3.3
with the same meaning (``max_idle`` is seconds) and behave the same. The errors
are also psycopg_pool's own, so ``except`` clauses elsewhere keep working.
``pool.core`` is the underlying `pooling.PostgresPool`, with its metrics, its
holders and its `advise`.

Differences, and the reasons:

- *Connections that died while idle* are not lent, even without a ``check``: the
  socket is checked without a round trip, and a connection that was idle for more
  than half a second with one. After one such death the others are checked with a
  round trip before they are lent, and replaced at once; psycopg_pool waits between
  two attempts.
- *A silent network* does not block a borrower for ever: see ``stall_timeout`` of
  `PostgresPool`, which is an attribute here.
- *Reconnecting*: one attempt at a time, at most 0.25 s apart while a thread waits,
  where psycopg_pool makes one attempt per worker with a doubling delay. The pool
  notices the server's return sooner and contacts it less often. It never gives up.
  ``reconnect_failed`` is called after ``reconnect_timeout`` seconds of failures, and
  again after each further ``reconnect_timeout``.
- *Errors that are final* (a wrong password, an unknown database) make `getconn`
  raise `PoolTimeout` at once, with the server's error as its ``__cause__``;
  psycopg_pool raises it after ``timeout``, without the cause. `wait` waits its whole
  time.
- *Classes*: there is no ``AsyncConnectionPool`` and no ``AsyncNullConnectionPool``,
  because nothing here runs in an event loop. The classes are not subclasses of
  psycopg_pool's, whose threads and queues they would inherit, so ``isinstance``
  needs the class imported from here.
- *Overriding* ``getconn`` and ``putconn`` in a subclass has no effect on
  ``connection()``, which does not call them.
- ``connection()`` *returns an object* for one ``with`` statement, which costs less
  than a generator. It is not a decorator, and not a ``contextlib`` class.
- *BEGIN and COMMIT* wait within libpq in threads other than the main thread: an
  exception set by another thread is raised when the server has answered.
- *A stream or COPY left open* at the end of a block is an error, and the connection
  is closed; psycopg waits for its end for ever.
- *A block that catches a statement's error* and ends without one is rolled back
  silently, as in psycopg, where `PostgresPool` raises `TransactionRolledBack`.
- *Cursors* belong to a subclass of ``cursor_factory`` that releases the GIL less
  often for each query.
- *Waiting* is strictly in order of arrival, also for connections still being
  created. ``timeout=0`` takes an idle connection or fails; a negative timeout is 0.
  ``max_waiting`` counts the requests that wait for a connection in use.
- *Idle connections* are lent last in, first out, not in rotation. Each is closed
  after it was idle for ``max_idle`` seconds itself, not one every ``max_idle``
  seconds. ``resize`` to a smaller size closes idle ones at once.
- *Age* (``max_lifetime``) is also checked when a connection is lent.
- *The client's side* (``row_factory``, ``autocommit``, adapters, handlers) is
  restored to the state after ``configure`` for each borrower. On the server only
  the transaction is ended: ``session="trust"`` of `PostgresPool`.
- *Closing* happens on a worker, since it may hang. ``close``, and ``putconn`` to a
  closed pool, wait up to 5 seconds for it. A connection returned to an open pool in
  a bad state is closed a moment later.
- *Invalid arguments* are refused by the constructor, not by each attempt to
  connect; ``max_lifetime`` and ``max_idle`` must be above 0.
- *Keyword arguments* for connecting are psycopg's and libpq's. Those that are unset
  get values that detect a silent network: see `PostgresPool`.
- *close_returns* needs psycopg 3.3, whose ``close()`` asks the pool.
- *Forks*: the child's pool is empty and usable. Connections in use at the fork
  belong to the parent: in the child, a ``connection()`` block ends and ``putconn``
  returns without sending anything to the server.
- *Exit*: no thread keeps the process alive, and there are no warnings.
- *A connection of* ``getconn`` to which no reference is left is closed, its slot is
  freed, and a warning says where it was acquired; in psycopg_pool the slot is lost.
- *Statistics* all exist from the start, as zeros. ``usage_ms`` includes
  ``getconn``. ``pool_size`` includes connections being created or closed.
- *Threads*: ``num_workers`` is the number of connections created at once; threads
  are started when needed and end when they are not.
- *Log*: ``psycopg.pool`` gets records of the same events at the same levels, often
  with other texts; further failures in an outage are logged at INFO.
- *A check that fails* closes its connection, where psycopg_pool rolls it back and
  keeps it. If a new connection fails it, that counts as a failed attempt to connect.

Of psycopg_pool's own tests, 144 use its documented behaviour. 136 of them pass, and
three of these not always, because they measure tenths of a second. The intended
exceptions:

- ``test_connect_no_check`` expects a dead connection to be lent.
- ``test_uniform_use``, ``test_resize`` and both of ``test_grow`` measure when the
  pool grows and shrinks, and which connection it lends; see *Idle connections*. This
  pool creates as many as are waited for, ``num_workers`` at once, not one by one.
- ``test_max_lifetime`` and, occasionally, ``test_close_returns_no_loop`` and
  ``test_override_close_no_loop_subclass`` expect an expired connection to be lent
  or kept idle; see *Age*.
- ``test_reconnect_failure``, occasionally, expects the pool to give up after exactly
  ``reconnect_timeout``; see *Reconnecting*. It takes 30 s longer, because it expects
  a dead connection to be lent.
- ``test_check_returns_an_ok_connection`` (two cases): see *A check that fails*.

Tests of private parts (``_workers``, ``_sched_runner``, ``_jitter``,
``_add_to_pool``, ``ShrinkPool``, ``AttemptWithBackoff``) do not apply.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg_pool.abc import CT

from .. import errors
from ..adapters.postgres import PostgresAdapter, PostgresPool
from ..adapters.postgres.session import left_open, notes_of
from ..core.entry import Entry
from ..core.lease import Lease
from ..core.report.holders import borrower
from ..core.report.messages import no_copy
from ..core.report.snapshot import PoolSnapshot
from ..core.runtime import fork
from ..core.runtime.fork import SAME_PROCESS
from ..core.state import UNLIMITED
from ..core.waiting import is_warm, wait_until
from .arguments import (
    Hook,
    leaving_idle,
    not_empty,
    or_never,
    or_none,
    outside,
    pace_of,
    seconds,
    settings_of,
    stand_in,
    tidy,
)  # fmt: skip
from .ledger import BAD, Ledger, logger

__all__ = ["ConnectionPool", "NullConnectionPool", "PoolClosed", "PoolTimeout", "TooManyRequests"]

P = TypeVar("P", bound="ConnectionPool[Any]")
_UNBOUNDED = 1 << 20  # for a null pool, stands for a size of 0
_IDLE = TransactionStatus.IDLE
_PSYCOPG = tuple(map(int, psycopg.__version__.split(".")[:2]))


class PoolClosed(psycopg_pool.PoolClosed, errors.PoolClosed):
    """The pool is not open yet, or was closed."""


class PoolTimeout(psycopg_pool.PoolTimeout, errors.PoolTimeout):
    """No connection in time. If none could be created, the real error is the ``__cause__``."""


class TooManyRequests(psycopg_pool.TooManyRequests, errors.TooManyWaiting):
    """The wait queue is full: ``max_waiting`` requests are already waiting."""


_THEIRS: dict[type[errors.PoolError], type[psycopg.OperationalError]] = {
    errors.PoolClosed: PoolClosed,
    errors.PoolTimeout: PoolTimeout,
    errors.PoolUnavailable: PoolTimeout,
    errors.CreateFailed: PoolTimeout,
    errors.TooManyWaiting: TooManyRequests,
}


class _Core(PostgresPool):
    """The underlying pool; its statistics restart in a forked child."""

    def __init__(self, *args: Any, ledger: Ledger, workers: int, **options: Any) -> None:
        self._ledger = ledger
        self._inspector = 0  # the thread running `check`
        self._came_back_bad: set[int] = set()  # connections by id, until they are closed
        super().__init__(*args, observers=[ledger], query_statistics=False, session="trust", **options)
        adapter = self.engine.adapter
        assert isinstance(adapter, PostgresAdapter)
        adapter.max_creating = self.engine.outage.most = workers
        adapter.renewed += [ledger.renew, self._came_back_bad.clear]
        weakly = weakref.ref(self)
        checks = options["check"] is not None
        self._override(
            create=partial(_create, weakly, adapter.create, checks), close=partial(_close, weakly, adapter.close),
            evicted=partial(_evicted, weakly),
        )

    def _override(self, **hooks: Callable[..., object]) -> None:
        """Replace hooks of this pool's adapter, and have the engine look again which there are."""
        vars(self.engine.adapter).update(hooks)
        with self.engine.lock:
            self.engine.configure(self.engine.settings)

    def check(self) -> None:
        self._inspector = threading.get_ident()
        try:
            super().check()
        finally:
            self._inspector = 0


class _NullCore(_Core):
    """For a null pool: requests that wait for a release count as queued, and connections are closed without a reset."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._override(refuse=_refuse)

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[Any]:
        exhausted, began = self.engine.state.exhausted, self.engine.clock.now()
        try:
            return super().acquire(timeout, _depth + 1, lane)
        except errors.TooManyWaiting:
            exhausted = False  # refused, not queued
            raise
        finally:
            if exhausted:
                self._ledger.queued(self.engine.clock.now() - began)


def _refuse(conn: Any, waiting: bool) -> str | None:
    if waiting:
        return None
    return "broken" if conn.closed else "max_idle"


def _evicted(core: weakref.ref[_Core], conn: Any, reason: str) -> None:
    """Count a connection that is about to be closed, and log it as psycopg_pool does."""
    pool = core()
    if pool is None:
        return
    if reason in ("dead", "invalid") and pool._inspector == threading.get_ident():
        logger.warning("discarding broken connection: %s", conn)
    pool._ledger.leaves(reason)
    if reason in BAD:
        pool._came_back_bad.add(id(conn))


def _close(core: weakref.ref[_Core], close: Callable[[Any], None], conn: Any) -> None:
    pool = core()
    bad = pool is not None and id(conn) in pool._came_back_bad
    if pool is not None:
        pool._came_back_bad.discard(id(conn))
    vars(conn)["_pool"] = None  # otherwise `close_returns` would return a forgotten connection
    close(conn)
    if bad:
        logger.warning("discarding closed connection: %s", conn)


def _create(core: weakref.ref[_Core], create: Callable[[], Any], checks: bool) -> Any:
    """Create a connection, and check it if a thread waits for it; a failed check is a failed attempt to connect."""
    conn = create()
    outside(conn)
    pool = core()
    if checks and pool is not None and pool.engine.state.waiters:
        try:
            pool.engine.adapter.validate(conn, pool.settings.health_check_timeout)
        except BaseException:
            conn.close()
            raise
    return conn


class ConnectionPool(Generic[CT]):
    """A pool of psycopg connections; the arguments are those of ``psycopg_pool.ConnectionPool``.

    Args:
        conninfo: Where to connect, or a callable that returns it for each connection.
        connection_class: The class of the connections.
        kwargs: Further arguments of ``psycopg.connect``, or a callable that returns them.
        min_size: Connections kept open.
        max_size: The maximum number of connections; ``None`` means ``min_size``.
        open: Whether to connect at once. ``None`` also does, and the first use
            without an explicit `open` causes a DeprecationWarning.
        configure: Called with each new connection; must not leave a transaction open.
        check: Called with each connection before it is lent; raises if it is bad.
        reset: Called with each returned connection; must not leave a transaction open.
        name: The pool's name in messages.
        close_returns: Whether ``connection.close()`` returns it to the pool instead.
        timeout: Seconds to wait for a connection.
        max_waiting: The maximum number of waiting requests; 0 means no limit.
        max_lifetime: Seconds after which a connection is replaced, less up to 5 %.
        max_idle: Seconds idle after which a connection above ``min_size`` is closed.
        reconnect_timeout: Seconds of failures after which ``reconnect_failed`` is called.
        reconnect_failed: Called with the pool.
        num_workers: How many connections are created at once, at least 1.

    Raises:
        ValueError, TypeError: An argument breaks its rule.
    """

    _core_class = _Core
    _keeps_all = True  # returned connections

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        connection_class: type[CT] = psycopg.Connection,  # type: ignore[assignment]  # the variable's default
        kwargs: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: Hook[CT] | None = None,
        check: Hook[CT] | None = None,
        reset: Hook[CT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        reconnect_timeout: float = 300.0,
        reconnect_failed: Callable[[ConnectionPool[Any]], None] | None = None,
        num_workers: int = 3,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers!r}")
        if close_returns and _PSYCOPG < (3, 3):
            raise TypeError("close_returns needs psycopg 3.3 or newer")
        self.conninfo, self.kwargs, self.connection_class = conninfo, kwargs, connection_class
        self.close_returns, self.num_workers = close_returns, num_workers
        self.reconnect_timeout, self._reconnect_failed = reconnect_timeout, reconnect_failed
        self._min_size, self._max_size = self._check_size(min_size, max_size)
        # By the id of the connection, which its lease keeps alive; weak, so that forgotten leases are reclaimed.
        self._lent: dict[int, weakref.ref[Lease[CT]]] = {}
        self._taken: dict[weakref.ref[CT], Lease[CT]] = {}  # from `getconn`; only the borrower keeps these alive
        self._kept: dict[int, Lease[CT]] = {}  # from `getconn`, of a class for which that is not possible
        self._opened = self._closed = False
        self._owes_warning = open is None
        self._ready = False  # open, and no warning is due
        self.core = self._core_class(
            not_empty(conninfo),
            settings_of(
                min_size=self._min_size, max_size=self._max_size or _UNBOUNDED,
                max_idle=None if self._keeps_all else 0, max_waiting=max_waiting or None, timeout=timeout,
                max_lifetime=max_lifetime, idle_timeout=max_idle, checked=check is not None,
                backoff=pace_of(reconnect_timeout),
            ),
            kwargs=kwargs, connection_class=connection_class,
            configure=leaving_idle(configure, "configure"), reset=leaving_idle(reset, "reset"),
            check=None if check in _ROUND_TRIPS else check, name=name or None,
            ledger=Ledger(weakref.ref(self), self._keeps_all),
            workers=num_workers if self._keeps_all else UNLIMITED,  # psycopg's null pool connects in callers' threads
        )  # fmt: skip
        self.name = self.core.name
        if open is None or open:
            self._open()

    # -- life -----------------------------------------------------------------------

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool: start connecting and accept requests. Idempotent.

        Args:
            wait: Wait until ``min_size`` connections are ready, as `wait` does.
            timeout: Seconds to wait.

        Raises:
            PoolClosed: The pool was closed; it cannot be opened again.
            PoolTimeout: As for `wait`.
        """
        self._open()
        if wait:
            self._wait(timeout, 4)

    def _open(self) -> None:
        if self._closed:
            raise PoolClosed(f"pool {self.name!r} has already been opened and closed, and cannot be reused")
        if not self._opened:
            self._opened = True
            self.core.fill()
        self._ready = not self._owes_warning

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until ``min_size`` connections are ready; close the pool if that fails.

        Raises:
            PoolTimeout: They were not ready in time; the real error is the ``__cause__``.
            PoolClosed: The pool is not open.
        """
        self._wait(timeout, 4)

    def _wait(self, timeout: float, steps: int) -> None:
        self._check_ready(steps)
        state = self.core.engine.state

        def ready() -> bool:
            return state.closed or is_warm(self.core.engine)

        logger.info("pool %r: waiting for %d connections", self.name, self._min_size)
        if not wait_until(self.core.engine, ready, seconds(timeout)):
            cause = self.core.engine.outage.error
            self.close()
            raise PoolTimeout(f"pool {self.name!r}: min_size connections not ready after {timeout} s") from cause
        logger.info("pool %r is ready", self.name)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool: waiters fail, idle connections are closed, those in use when they are returned.

        Args:
            timeout: Seconds to wait until the idle connections have been closed.
        """
        if self._closed or not self._opened:
            return
        self._closed, self._ready = True, False
        core = self.core
        core.close(0, interrupt=False)
        state = core.engine.state
        wait_until(core.engine, lambda: len(state.entries) <= len(state.lent()), seconds(timeout))

    @property
    def closed(self) -> bool:
        """Whether the pool was closed, or is not open yet."""
        return self._closed or not self._opened

    def __enter__(self: P) -> P:
        self._owes_warning = False
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- lending --------------------------------------------------------------------

    def connection(self, timeout: float | None = None) -> Block[CT]:
        """Lend a connection for a ``with`` block, which commits, or rolls back on an error.

        Args:
            timeout: Seconds to wait; ``None`` means the pool's ``timeout``.

        Raises:
            PoolTimeout: No connection became available in time.
            TooManyRequests: ``max_waiting`` requests are already waiting.
            PoolClosed: The pool is not open.
        """
        return Block(self, timeout)

    def getconn(self, timeout: float | None = None) -> CT:
        """Lend a connection, to be returned with `putconn`.

        Raises:
            As for `connection`.
        """
        lease = self._lend(timeout)
        assert lease._token is not None
        entry = lease._token.entry
        conn: CT = entry.resource
        # If the borrower forgets it, the callback (a C function) drops the lease, and the core reclaims the slot.
        entry.resource = stand_in(conn)
        if entry.resource is not conn:
            self._taken[weakref.ref(conn, self._taken.pop)] = lease
            del self._lent[id(conn)]
        else:
            self._kept[id(conn)] = lease
        entry.borrower = (borrower(), entry.since)
        return conn

    def putconn(self, conn: CT) -> None:
        """Return a connection of `getconn`.

        Raises:
            ValueError: This pool has not lent it.
        """
        lent = self._lent.get(id(conn))
        lease = (None if lent is None else lent()) or self._taken.get(weakref.ref(conn))
        if lease is None or lease._token is None or getattr(conn, "_pool", None) is not self:
            raise ValueError(f"pool {self.name!r}: cannot return a connection that this pool has not lent: {conn}")
        # Without a resource it belongs to the parent process.
        if (SAME_PROCESS[0] or fork.ensure_process()) and lease._token.entry.resource is not None:
            self._check_in(lease, conn, None)

    def _lend(self, timeout: float | None) -> Lease[CT]:
        if not self._ready:
            self._check_ready(4)
        logger.info("pool %r: connection requested", self.name)
        if timeout is not None:
            timeout = seconds(timeout)
        try:
            # The holder is the caller of the method that called this.
            lease: Lease[CT] = self.core.acquire(timeout, 3)  # type: ignore[assignment]
        except errors.PoolError as error:
            theirs = _THEIRS.get(type(error))
            if theirs is None:
                raise
            raise theirs(str(error)) from error.__cause__
        conn = lease._token.entry.resource  # type: ignore[union-attr]  # it was lent just now
        self._lent[id(conn)] = weakref.ref(lease)
        vars(conn)["_pool"] = self  # its close() asks this what to do
        return lease

    def _check_in(self, lease: Lease[CT], conn: CT, error: BaseException | None) -> None:
        assert lease._token is not None  # it was lent until now
        entry = lease._token.entry
        try:
            if (
                not notes_of(conn).foreign and conn.pgconn.transaction_status != _IDLE
                and (self._keeps_all or self.core.engine.state.waiters)
            ):  # fmt: skip
                tidy(conn)
            logger.info("pool %r: connection returned", self.name)
        finally:  # free the slot even if that raises
            self._kept.pop(id(conn), None)
            if self._lent.pop(id(conn), None) is None:
                self._taken.pop(weakref.ref(conn), None)
                entry.resource = conn
            vars(conn)["_pool"] = None
            lease.__exit__(None if error is None else type(error), error, None)
        if self._closed or not self._keeps_all:
            self._until_closed(entry, conn)

    def _until_closed(self, entry: Entry, conn: CT) -> None:
        """Wait until a worker has closed a connection that is to be closed: usually at once, but it may hang."""
        core = self.core

        def over() -> bool:
            return conn.closed or entry not in core.engine.state.closing

        if not (over() or core.engine.lock._is_owned()):
            wait_until(core.engine, over, core.settings.close_timeout)

    def _check_ready(self, steps: int) -> None:
        """Refuse a closed pool, or warn about an implicit `open`; ``steps`` is the warning's stack level."""
        if self.closed:
            raise PoolClosed(f"the pool {self.name!r} is {'already closed' if self._closed else 'not open yet'}")
        if self._owes_warning:
            self._owes_warning, self._ready = False, True
            warnings.warn(
                f"{type(self).__name__} will not open by itself in a future release: pass open=True or "
                "open=False, or use a with statement",
                DeprecationWarning, stacklevel=steps,
            )  # fmt: skip

    # -- control --------------------------------------------------------------------

    @property
    def min_size(self) -> int:
        """Connections kept open."""
        return self._min_size

    @property
    def max_size(self) -> int:
        """The maximum number of connections."""
        return self._max_size

    @property
    def timeout(self) -> float:
        """Seconds to wait for a connection, unless a call gives its own."""
        return self.core.settings.acquire_timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        self.core.reconfigure(acquire_timeout=seconds(value))

    @property
    def max_waiting(self) -> int:
        """The maximum number of waiting requests; 0 means no limit."""
        return self.core.settings.max_waiting or 0

    @max_waiting.setter
    def max_waiting(self, value: int) -> None:
        self.core.reconfigure(max_waiting=value or None)

    @property
    def max_lifetime(self) -> float:
        """Seconds after which a connection is replaced; a change applies to new ones."""
        return or_never(self.core.settings.max_lifetime)

    @max_lifetime.setter
    def max_lifetime(self, value: float) -> None:
        self.core.reconfigure(max_lifetime=or_none(value))

    @property
    def max_idle(self) -> float:
        """Seconds idle after which a connection above ``min_size`` is closed."""
        return or_never(self.core.settings.idle_timeout)

    @max_idle.setter
    def max_idle(self, value: float) -> None:
        self.core.reconfigure(idle_timeout=or_none(value))

    @property
    def stall_timeout(self) -> float | None:
        """Seconds of one command after which the server is asked whether it is working on it; see `PostgresPool`."""
        return self.core.stall_timeout

    @stall_timeout.setter
    def stall_timeout(self, value: float | None) -> None:
        self.core.stall_timeout = value

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes; a ``max_size`` of ``None`` means ``min_size``.

        Raises:
            ValueError: As for the constructor.
        """
        self._min_size, self._max_size = self._check_size(min_size, max_size)
        self.core.reconfigure(
            min_size=self._min_size, max_size=self._max_size or _UNBOUNDED,
            max_idle=None if self._keeps_all else 0,
        )  # fmt: skip

    def _check_size(self, min_size: int, max_size: int | None) -> tuple[int, int]:
        most = min_size if max_size is None else max_size
        if min_size < 0:
            raise ValueError(f"min_size must be at least 0, not {min_size!r}")
        if most < max(1, min_size):
            raise ValueError(f"max_size must be at least min_size and 1, not {most!r}")
        return min_size, most

    def drain(self) -> None:
        """Replace all connections: the idle ones now, the others when they are returned."""
        size = self.core.engine.state.live
        self.core.drain()
        if not self.closed:
            self.core.fill(min(size, self.core.settings.max_size))

    def check(self) -> None:
        """Check the idle connections now; those that do not work are replaced."""
        self.core.check()

    @staticmethod
    def check_connection(conn: CT) -> None:
        """Check a connection with a round trip outside of any transaction; can be used as ``check``.

        Raises:
            psycopg.Error: It does not work.
        """
        if conn.autocommit:
            conn.execute("")
            return
        conn.autocommit = True
        try:
            conn.execute("")
        finally:
            if not conn.closed:
                conn.autocommit = False

    def reconnect_failed(self) -> None:
        """Called when no connection could be created for ``reconnect_timeout`` seconds."""
        if self._reconnect_failed is not None:
            self._reconnect_failed(self)

    # -- inspection -----------------------------------------------------------------

    def get_stats(self) -> dict[str, int]:
        """Return the current counts and the statistics; times are milliseconds."""
        return self._stats(pop=False)

    def pop_stats(self) -> dict[str, int]:
        """Return the same, and restart the statistics from zero."""
        return self._stats(pop=True)

    def _stats(self, pop: bool) -> dict[str, int]:
        seen: PoolSnapshot = self.core.metrics.snapshot()
        return {
            "pool_min": self._min_size,
            "pool_max": self._max_size,
            "pool_size": seen.size - seen.closing,
            "pool_available": seen.idle,
            "requests_waiting": seen.waiting,
            **self.core._ledger.counters(pop),
        }

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        no_copy(self, "threads share one, forked processes inherit it, and other processes make their own")

    def __repr__(self) -> str:
        seen = self.core.metrics.snapshot()
        return (
            f"<{type(self).__module__}.{type(self).__name__} {self.name!r} at 0x{id(self):x}: "
            f"{seen.in_use}/{seen.max_size} in use, {seen.idle} idle, {seen.waiting} waiting>"
        )


class NullConnectionPool(ConnectionPool[CT]):
    """Keeps no idle connection: each is created on request, and closed when it is returned and no thread waits.

    It limits the number of connections and serves requests in order of
    arrival. ``min_size`` is 0; a ``max_size`` of 0, or ``None``, means no limit.
    """

    _core_class = _NullCore
    _keeps_all = False

    def __init__(  # in full, for help() and type checkers
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        connection_class: type[CT] = psycopg.Connection,  # type: ignore[assignment]  # the variable's default
        kwargs: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        min_size: int = 0,
        max_size: int | None = None,
        open: bool | None = None,
        configure: Hook[CT] | None = None,
        check: Hook[CT] | None = None,
        reset: Hook[CT] | None = None,
        name: str | None = None,
        close_returns: bool = False,  # no effect: connections are not kept
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        reconnect_timeout: float = 300.0,
        reconnect_failed: Callable[[ConnectionPool[Any]], None] | None = None,
        num_workers: int = 3,
    ) -> None:
        super().__init__(
            conninfo, connection_class=connection_class, kwargs=kwargs, min_size=min_size, max_size=max_size,
            open=open, configure=configure, check=check, reset=reset, name=name, timeout=timeout,
            max_waiting=max_waiting, max_lifetime=max_lifetime, max_idle=max_idle,
            reconnect_timeout=reconnect_timeout, reconnect_failed=reconnect_failed, num_workers=num_workers,
        )  # fmt: skip

    def _check_size(self, min_size: int, max_size: int | None) -> tuple[int, int]:
        if min_size != 0:
            raise ValueError(f"min_size of a null pool must be 0, not {min_size!r}")
        if max_size is not None and max_size < 0:
            raise ValueError(f"max_size must be at least 0, not {max_size!r}")
        return 0, max_size or 0

    def wait(self, timeout: float = 30.0) -> None:
        """Create one connection to check that it works; close the pool if it does not.

        Raises:
            PoolTimeout: It was not ready in time; the real error is the ``__cause__``.
            PoolClosed: The pool is not open.
        """
        self._wait(timeout, 4)

    def _wait(self, timeout: float, steps: int) -> None:
        self._check_ready(steps)
        try:
            lease = self.core.acquire(seconds(timeout))
            entry, conn = lease._token.entry, lease.resource  # type: ignore[union-attr]  # it was lent just now
            lease.release()
            self._until_closed(entry, conn)  # type: ignore[arg-type]
            self.core._ledger.forget_request()
        except errors.PoolError as error:
            self.close()
            raise PoolTimeout(f"pool {self.name!r}: no connection after {timeout} s") from error.__cause__

    def check(self) -> None:
        """Do nothing: no connection is kept."""


class Block(Generic[CT]):
    """``with pool.connection()``: a class, because a generator would cost more than the lease."""

    __slots__ = ("_pool", "_timeout", "_lease")

    def __init__(self, pool: ConnectionPool[CT], timeout: float | None) -> None:
        self._pool, self._timeout = pool, timeout
        self._lease: Lease[CT] | None = None

    def __enter__(self) -> CT:
        self._lease = lease = self._pool._lend(self._timeout)
        conn: CT = lease._token.entry.resource  # type: ignore[union-attr]  # it was lent just now
        return conn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not SAME_PROCESS[0] and not fork.ensure_process():
            return  # destroyed while a child renews itself: it belongs to the parent
        lease, self._lease = self._lease, None
        if lease is None or lease._token is None:
            return  # returned inside the block: it may already be lent again
        conn: CT = lease._token.entry.resource
        try:
            if error is None and not conn.closed:
                self._pool.core.session_rules.commit(conn, pipelines=True)
            elif notes_of(conn).foreign:
                pass  # the reset calls its rollback()
            elif error is None or left_open(conn, 0.0) is None:  # otherwise left to the reset; psycopg would wait
                conn.__exit__(kind, error, traceback)
        except BaseException as problem:
            if conn is None:
                return  # a child's copy: connection and transaction belong to the parent (checked only here, P9)
            self._pool._check_in(lease, conn, problem)
            raise
        self._pool._check_in(lease, conn, error)

    def __del__(self) -> None:
        if getattr(self, "_lease", None) is not None:  # dropped inside the block, as a generator may be
            self.__exit__(GeneratorExit, GeneratorExit(), None)


# The core does the same itself, faster and with a time limit.
_ROUND_TRIPS = (ConnectionPool.check_connection, psycopg_pool.ConnectionPool.check_connection)
