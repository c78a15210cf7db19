"""PostgreSQL: a pool of psycopg 3 connections."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import psycopg

from ..._fields import fields
from ..._masking import shown
from ...core.clock import Clock, seconds
from ...core.observer import Observer
from ...core.pool import Pool
from ...core.report.messages import format_error
from ...core.sizing import Budget
from ...lanes import named
from ...settings import PoolSettings, _Options, check_flag, with_options
from ...tools.doctor.cleaning import STEPS
from ...tools.doctor.report import Report
from ..shared.adapted import with_adaptive
from ..shared.budgets import database_budget
from ..shared.hooks import check_hooks, weakly
from ..shared.retrying import run
from ..shared.rotation import Rotation, rotate, try_again_now
from .adapter import PostgresAdapter
from .address import Address, Answer, program
from .advice import advise
from .blocks import Block, CommitUnknown, Transaction, may_run_again
from .executing import Params, execute, execute_each, limit_to
from .limits import CommandTimeout, check_limit, server_limits
from .session import Hook, Session, SessionMode
from .statistics import QueryStatistics, pool_stats
from .tracking import Connection

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CommandTimeout", "CommitUnknown", "PostgresAdapter", "PostgresPool"]

T = TypeVar("T")
logger = logging.getLogger("pooling")


class PostgresPool(Pool[Connection]):
    """Lends psycopg connections.

    Example::

        db = PostgresPool("postgresql://app@db/orders", max_size=20)
        with db.connection() as conn:                 # commit, or roll back on an error
            conn.execute("INSERT INTO orders VALUES (%s)", (order,))
        rows = db.execute_query("SELECT * FROM orders WHERE id = %s", (1,))

    Args:
        conninfo: A URL or ``key=value`` text as for ``psycopg.connect``. Or a
            callable that returns one, called for each connection; see
            `rotate`. If it is empty and ``kwargs`` has none of ``host``,
            ``hostaddr``, ``port``, ``dbname``, ``user``, ``service`` and
            ``servicefile``, ``DATABASE_URL`` is read instead; otherwise that
            variable is ignored. libpq takes what is then still missing from
            its ``PG*`` variables, as always.
        settings: Size, ages and time limits; ``None`` means the defaults.
        kwargs: Further arguments of ``psycopg.connect``, such as
            ``{"autocommit": True}`` or libpq's ``{"sslmode": "verify-full"}``.
            Or a callable, as for ``conninfo``. Defaults of the pool's own are
            ``connect_timeout``, which applies to each host, so that a silent
            one leaves time for the others within ``create_timeout``;
            ``fallback_application_name``: ``name``, or the program's and the
            pool's name; keepalive: 10 + 3 x 3 s; ``tcp_user_timeout``: 10 s.
        connection_class: The class of the connections; they are of a subclass
            that notes whether anything was executed. Its ``connect()`` is called
            with ``conninfo`` and ``kwargs`` as they were given, and
            ``connect_timeout``; its own ``commit()`` and ``rollback()`` are called.
        configure: Called with each new connection, then committed. What a
            cleaning undoes of it is done again with each cleaning: by the
            statements that the hook executed, otherwise by the hook.
        reset: Called with each connection that comes back, after the cleaning.
        check: Called with a connection to validate it, instead of a query;
            raises if it is dead.
        validation_query: The query that validates it; ``None`` means the settings'.
        session: ``"clean"``: each borrower gets a session that is as new, on the
            server too (``SET``, role, temporary tables, advisory locks,
            ``LISTEN``). An unused lease costs nothing, any other a round trip,
            which is that of the COMMIT or ROLLBACK where there is one.
            ``"trust"``: only the transaction and the client's side are reset. A
            callable: the same, and it is called with the connection.
        command_timeout: Seconds that a command may take, ``None`` for no limit.
            The server stops it shortly before; if the server does not respond,
            the holder gets `CommandTimeout` at the limit.
        stall_timeout: Seconds that a holder may wait for one command before the
            server is asked, over a connection outside of the pool, whether it is
            working on it. If it does not have that session any more, or says that
            it is idle, the holder gets a ``psycopg.OperationalError`` that says
            so; otherwise the server is asked again after the same time.
            ``None``: only COMMIT, and a BEGIN without a statement, which the
            pool sends, are asked about, after 60 s. Through a proxy with process ids of its own, such
            as PgBouncer, only those are ended: set ``command_timeout`` there.
        idle_in_transaction_timeout: Seconds after which the server ends a
            session that is idle in a transaction.
        query_statistics: Count and time queries, for some 5 µs each; see
            `query_statistics`.
        name: The pool's name in messages, and on the server (see ``kwargs``).
        budget: A `FleetBudget`, or its text as for `FleetBudget.parse`; ``None`` means that in ``POOLING_BUDGET``,
            if it is set.
        observers: Notified of events, see `Observer`.
        clock: The source of time; tests pass their own.
        options: Fields of `PoolSettings`, which override ``settings``.

    Raises:
        ValueError, TypeError: An argument is invalid. The message leaves
            ``conninfo`` out, because it may contain a password.
    """

    adapter_class = PostgresAdapter

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        settings: PoolSettings | None = None,
        *,
        kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        connection_class: type[Connection] = psycopg.Connection,
        configure: Hook | None = None,
        reset: Hook | None = None,
        check: Hook | None = None,
        validation_query: str | None = None,
        session: SessionMode = "clean",
        command_timeout: float | None = None,
        stall_timeout: float | None = 60.0,
        idle_in_transaction_timeout: float | None = None,
        query_statistics: bool = False,
        name: str | None = None,
        budget: Budget | str | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock | None = None,
        **options: Unpack[_Options],
    ) -> None:
        settings = PoolSettings() if settings is None else settings
        if not isinstance(settings, PoolSettings):
            raise TypeError(f"settings must be a PoolSettings, not a {type(settings).__name__}")
        settings = with_options(settings, options, PostgresPool.__init__)
        if validation_query is not None:
            settings = settings.replace(validation_query=validation_query)
        check_hooks(configure=configure, reset=reset, check=check)
        if not (callable(session) or session in ("clean", "trust")):
            raise ValueError(f"session must be 'clean', 'trust' or a callable, not {shown(session)}")
        connection_class = get_origin(connection_class) or connection_class  # MyConnection for MyConnection[Row]
        if not (isinstance(connection_class, type) and issubclass(connection_class, psycopg.Connection)):
            raise TypeError(f"connection_class must be a psycopg.Connection, not {shown(connection_class)}")
        command = check_limit("command_timeout", command_timeout)
        idle = check_limit("idle_in_transaction_timeout", idle_in_transaction_timeout)
        self._queries = QueryStatistics() if check_flag("query_statistics", query_statistics) else None
        self._learnt_of: object = None  # the generation for which `Session.missing` holds
        self._warned_of: set[str] = set()  # missing steps of the cleaning; guarded by the lock
        self._address = Address(conninfo, kwargs, settings.create_timeout, server_limits(command, idle))
        self._rotation = Rotation(self._address)
        self.session_rules = Session(
            session, configure, reset,
            create_timeout=settings.create_timeout, reset_timeout=settings.reset_timeout,
            command_timeout=command, queries=self._queries, lacks=weakly(self._note_lacking),
        )  # fmt: skip
        """How sessions are configured, cleaned and limited. Internal."""
        adapter = self.adapter_class(
            self._address, self.session_rules, settings, connection_class=connection_class,
            measuring=query_statistics, check=check, proved=weakly(self._note_proved),
            before_create=weakly(self._begin_creation), on_created=weakly(self._replace_if_changed),
            queries=self._queries,
            stall_timeout=check_limit("stall_timeout", stall_timeout),
        )  # fmt: skip
        super().__init__(
            adapter=adapter, settings=settings, name=name, budget=database_budget(budget), observers=observers,
            clock=clock,
        )  # fmt: skip
        called = self.name if name else f"{program()} {self.name}"  # the default name is pool-1 in each program
        self._address.add_default("fallback_application_name", called)

    # -- verbs --------------------------------------------------------------------

    def open(self, timeout: float | None = None) -> None:
        try_again_now(self.engine)
        super().open(timeout)

    open.__doc__ = Pool.open.__doc__

    def connection(self, timeout: float | None = None, lane: str | None = None) -> Block:
        """Lend a connection for one transaction: committed at the end, rolled back on an error.

        Args:
            timeout: Seconds to wait for a connection; ``None`` means the
                pool's ``acquire_timeout``.
            lane: As for `Pool.acquire`.

        Returns:
            A context manager that gives the connection.

        Raises:
            PoolTimeout: No connection became available in time.
            CreateFailed: Connecting failed, and trying again would not help.
            CommitUnknown: The connection was lost during the commit; or before it,
                in a block of less than 0.1 s, and the server has not said why.
            TransactionRolledBack: The block caught the error of a statement and
                went on: nothing was stored. To avoid that, call ``rollback()``, or
                use a savepoint (``conn.transaction()``) around what may fail.
            psycopg.ProgrammingError: The block ended with an open ``stream()``,
                ``copy()``, ``pipeline()`` or ``notifies()``: the transaction is
                rolled back and the connection closed.
            psycopg.Error: As from psycopg, the commit's included.
        """
        return Block(self, timeout, lane)

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
        """Lend a connection in a transaction with these properties, also if the pool's are in autocommit.

        Within it ``commit()`` and ``rollback()`` are refused, and
        ``conn.transaction()`` makes savepoints.

        Args:
            isolation_level: Of ``psycopg.IsolationLevel``; ``None`` means the connection's.
            read_only: Whether writing is refused; ``None`` means the connection's.
            deferrable: Whether a serializable read-only one waits until it can
                run safely; ``None`` means the connection's.
            timeout: Seconds to wait for a connection.
            lane: As for `Pool.acquire`.

        Raises:
            As for `connection`.
        """
        with (
            self.acquire(timeout, 3, *named(lane)) as conn,
            Transaction(self, conn, isolation_level, read_only, deferrable),
        ):
            yield conn

    def execute_query(
        self,
        sql: Any,
        params: Params | None = None,
        *,
        row_factory: psycopg.rows.RowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Execute one statement in a transaction of its own and return its rows.

        Args:
            sql: The statement, with ``%s`` or ``%(name)s`` for parameters.
            params: Their values. With ``None``, a ``%`` in ``sql`` has no special meaning.
            row_factory: Makes the rows; ``None`` means the connection's.
            timeout: Seconds for waiting and executing together. ``None``
                means the pool's ``acquire_timeout`` and ``command_timeout``.

        Returns:
            The rows; none for a statement that has no result.

        Raises:
            PoolTimeout: No connection came in time.
            psycopg.errors.QueryCanceled: The statement took too long;
                `CommandTimeout` if the server could not be made to stop, and
                then it may still take effect.
            CommitUnknown: The connection was lost during the statement; whether
                it took effect is unknown.
            psycopg.Error: As from psycopg.
        """
        deadline = None if timeout is None else self.engine.clock.now() + seconds(timeout)
        with self.acquire(timeout, 2) as conn:
            limit_to(self, conn, timeout, deadline)
            return execute(self, conn, sql, params, row_factory)

    def execute_many(self, sql: Any, params: Iterable[Params], *, timeout: float | None = None) -> int:
        """Execute one statement with many parameters, all in one transaction.

        Args:
            sql: The statement.
            params: Its parameters, for one execution after the other.
            timeout: As for `execute_query`.

        Returns:
            How many rows were affected.

        Raises:
            As for `execute_query`; nothing is stored then.
        """
        deadline = None if timeout is None else self.engine.clock.now() + seconds(timeout)
        with self.acquire(timeout, 2) as conn:
            limit_to(self, conn, timeout, deadline)
            return execute_each(self, conn, sql, params)

    def run(self, function: Callable[[Connection], T], *, retries: int = 3, timeout: float | None = None) -> T:
        """Run a unit of work in a transaction, and again in a new one where that helps.

        It is run again after a serialization failure or a deadlock (40001,
        40P01), if a prepared statement was stale ("cached plan"), and if the
        connection was lost before the commit was sent, or the server rolled it
        back. Other errors are raised, a `CommandTimeout` among them. It is never
        run again when it may have been committed.

        Args:
            function: The work; called with the connection, perhaps several times.
            retries: How often it may be run again, at least 0.
            timeout: Seconds to wait for a connection, for each run.

        Returns:
            What the function returned.

        Raises:
            CommitUnknown: The connection was lost during the commit.
            TransactionRolledBack: As for `connection`; it is not run again then.
            TypeError, ValueError: ``retries`` is invalid.
            As for `connection`: the last error, when there are no retries left.
        """
        return run(
            self, function, retries, timeout, lambda conn: Transaction(self, conn),
            lambda conn, error: may_run_again(self, conn, error),
        )  # fmt: skip

    def rotate(self, timeout: float | None = None) -> None:
        """Replace every connection, as soon as one was made with the current parameters.

        Until then the old ones are lent, and they stay if connecting fails.
        This happens automatically when a connection is made and ``conninfo`` or
        ``kwargs``, as callables, return something new. A callable that returns
        something else each time gives tokens, which are needed for connecting
        only: then nothing is replaced.

        Args:
            timeout: Seconds to wait for the first; ``None`` means ``acquire_timeout``.

        Raises:
            PoolTimeout: No connection was made in time; the last error is the cause.
            CreateFailed: Connecting failed for good; the driver's error is the cause.
            PoolClosed: The pool was closed.
        """
        limit = self.engine.settings.acquire_timeout if timeout is None else seconds(timeout)
        rotate(self, self._rotation, lambda: self._address.asked, limit)

    # -- observation --------------------------------------------------------------

    @property
    def query_statistics(self) -> QueryStatistics | None:
        """How long queries take: ``to_dict()``, ``reset()``. ``None`` if they are not measured."""
        return self._queries

    @property
    def stall_timeout(self) -> float | None:
        """Seconds that a command may take before the server is asked whether it works on it; can be set."""
        assert isinstance(self.engine.adapter, PostgresAdapter)
        return self.engine.adapter.stall_limit

    @stall_timeout.setter
    def stall_timeout(self, value: float | None) -> None:
        assert isinstance(self.engine.adapter, PostgresAdapter)
        self.engine.adapter.stall_limit = check_limit("stall_timeout", value)
        self.engine.schedule_sweep(self.engine.clock.now())

    def get_pool_stats(self) -> dict[str, Any]:
        """Return figures for a health endpoint.

        Returns:
            ``current_state``: the counts of `stats`;
            ``health_metrics``: counters since the start, times in seconds;
            ``queries``: `query_statistics`, if they are measured.
        """
        return pool_stats(self.stats(), self.metrics.to_dict(), self._queries)

    def advise(self, workers: int | None = None) -> Report:
        """Compare the pool's settings with those of the server, over a few connections outside of the pool.

        Args:
            workers: How many processes have a pool like this one; ``None`` if
                it is not known.

        Returns:
            A report: ``str()`` is the text, ``findings`` are its parts,
            ``breaks`` says whether anything will fail.

        Raises:
            psycopg.Error: The server does not answer.
            ValueError, TypeError: ``workers`` is no whole number above 0.
        """
        budget = None if self.budget is None else self.budget.stats()["total"]
        failing = self._liveness.resets.error
        report = advise(self._address, self.session_rules, self.engine.settings, failing, workers, budget)
        return with_adaptive(report, self.stats())

    # -- internals ------------------------------------------------------------------

    def _begin_creation(self) -> None:
        """Before a connection is made: after a drain it may lead to another server."""
        if self._learnt_of is not self.engine.state.generation:
            self._learnt_of = self.engine.state.generation
            self.session_rules.forget_missing()

    def _replace_if_changed(self) -> None:
        """Replace all connections after the first one that was made with changed parameters."""
        if self._rotation.take_change(self.name):
            self.drain()

    def _note_proved(self, answer: Answer) -> None:
        with self.engine.lock:
            self._rotation.note_locked(answer)

    def _note_lacking(self, missing: dict[str, psycopg.Error]) -> None:
        with self.engine.lock:
            new = {step: error for step, error in missing.items() if step not in self._warned_of}
            self._warned_of |= set(new)
        if new:
            logger.warning(
                "pool %r: this server does not execute %s; what a borrower leaves of these stays for the next one: %s",
                self.name, "; ".join(f"{step} ({format_error(error)})" for step, error in new.items()),
                ", ".join(STEPS[step] for step in new), extra=fields("not_cleaned", self.name, what="; ".join(new)),
            )  # fmt: skip


PostgresPool.__module__ = "pooling"  # where users import them from
