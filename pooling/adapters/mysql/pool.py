"""MySQL and MariaDB: a pool of connections of PyMySQL or another driver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ..._fields import fields
from ..._masking import shown
from ...core.clock import Clock, seconds
from ...core.observer import Observer
from ...core.pool import Pool
from ...core.sizing import Budget
from ...errors import CommandTimeout
from ...lanes import named
from ...settings import PoolSettings, _Options, check_flag, with_options
from ...tools.doctor.mysql import examine, read
from ...tools.doctor.plan import Plan
from ...tools.doctor.report import Report
from ..shared.adapted import with_adaptive
from ..shared.budgets import database_budget
from ..shared.hooks import check_hooks, weakly
from ..shared.limits import Limit, check_limit
from ..shared.retrying import run
from ..shared.rotation import Answer, Rotation, rotate, try_again_now
from ..shared.statistics import QueryStatistics, pool_stats
from . import failures
from .adapter import MySQLAdapter
from .address import Address, driver_of
from .blocks import ISOLATION_LEVELS, Block, Transaction, commit, may_run_again
from .drivers import load
from .session import Hook, Session, SessionMode
from .statistics import query_statistics
from .tracking import Connection, notes_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MySQLPool"]

T = TypeVar("T")
logger = logging.getLogger("pooling")
Params = Sequence[Any] | Mapping[str, Any]


class MySQLPool(Pool[Connection]):
    """Lends connections to MySQL or MariaDB.

    Example::

        db = MySQLPool("mysql://app@db/orders", max_size=20)
        with db.connection() as conn, conn.cursor() as cursor:   # commit, or roll back on an error
            cursor.execute("INSERT INTO orders VALUES (%s)", (order,))
        rows = db.execute_query("SELECT * FROM orders WHERE id = %s", (1,))

    Args:
        conninfo: A URL: ``mysql://user:password@host:port/database?charset=utf8mb4``,
            or ``mariadb://``. The scheme may name the driver, as SQLAlchemy does:
            ``mysql+pymysql://``. Or a callable that returns one, called for each
            connection; see `rotate`. If it is empty and ``kwargs`` does not say
            where to connect to, ``DATABASE_URL`` is read instead.
        settings: Size, ages and time limits; ``None`` means the defaults.
        kwargs: Further arguments of the driver's ``connect()``, such as
            ``{"autocommit": True, "cursorclass": DictCursor}``, which override
            those of the URL. Or a callable, as for ``conninfo``. ``ssl_mode`` is
            ``DISABLED``, ``PREFERRED``, ``REQUIRED``, ``VERIFY_CA`` or
            ``VERIFY_IDENTITY``, with every driver. Defaults of the pool's own are
            ``connect_timeout``, which is the ``create_timeout``, the character
            set ``utf8mb4``, and keepalive: 10 + 3 x 3 s.
        driver: ``"pymysql"``, ``"connector"`` (mysql-connector-python) or
            ``"mysqlclient"``; ``None`` means the one of the URL's scheme, or the
            first of these that is installed.
        connection_class: The class of the connections, a subclass of the
            driver's; they are of a subclass that notes whether anything was sent.
        configure: Called with each new connection, then committed. What a
            cleaning undoes of it is done again with each cleaning: if the hook
            only executed SET and USE, in the same round trip, otherwise by the hook.
        reset: Called with each connection that comes back, after the cleaning.
        check: Called with a connection to validate it, instead of a query;
            raises if it is dead.
        validation_query: The query that validates it; ``None`` means the
            settings', or one that also finds out whether the server has become
            read-only.
        session: ``"clean"``: each borrower gets a session that is as new, on the
            server too (COM_RESET_CONNECTION: variables, temporary tables, locks,
            prepared statements; database and character set). An unused lease costs
            nothing, any other a round trip, which is that of the COMMIT where there
            is one. ``"trust"``: only the transaction, autocommit and the client's
            side are reset. A callable: the same, and it is called with the connection.
        command_timeout: Seconds that a command may take, ``None`` for no limit.
            The server stops it shortly before (MySQL only a SELECT). If it does
            not respond, the holder gets `CommandTimeout` at the limit, and the
            session is ended on the server.
        stall_timeout: As for `PostgresPool`: if a holder waits for one command
            for this long, the server is asked about it.
        query_statistics: Count and time queries; see `query_statistics`.
        name: The pool's name in messages, and on the server (``program_name``).
        budget: A `FleetBudget`, or its text as for `FleetBudget.parse`; ``None`` means that in ``POOLING_BUDGET``,
            if it is set.
        observers: Notified of events, see `Observer`.
        clock: The source of time; tests pass their own.
        options: Fields of `PoolSettings`, which override ``settings``.

    Raises:
        ValueError, TypeError: An argument is invalid. The message leaves
            ``conninfo`` out, because it may contain a password.
        ImportError: No driver is installed.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        settings: PoolSettings | None = None,
        *,
        kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        driver: str | None = None,
        connection_class: type[Any] | None = None,
        configure: Hook | None = None,
        reset: Hook | None = None,
        check: Hook | None = None,
        validation_query: str | None = None,
        session: SessionMode = "clean",
        command_timeout: float | None = None,
        stall_timeout: float | None = 60.0,
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
        settings = with_options(settings, options, MySQLPool.__init__)
        if validation_query is not None:
            settings = settings.replace(validation_query=validation_query)
        check_hooks(configure=configure, reset=reset, check=check)
        if not (callable(session) or session in ("clean", "trust")):
            raise ValueError(f"session must be 'clean', 'trust' or a callable, not {shown(session)}")
        command = check_limit("command_timeout", command_timeout)
        self.driver = load(driver or driver_of(conninfo, kwargs), connection_class)
        """What the pool uses of the driver. Internal."""
        self.driver.limit_to(command)
        self._queries = _statistics() if check_flag("query_statistics", query_statistics) else None
        self._unable: set[str] = set()  # what was warned of; guarded by the lock
        create_timeout, complete = settings.create_timeout, self.driver.complete
        self._address = Address(conninfo, kwargs, lambda given: complete(given, create_timeout, name))
        self._rotation = Rotation(self._address)
        self.session_rules = Session(
            self.driver, session, configure, reset, create_timeout=create_timeout,
            reset_timeout=settings.reset_timeout, command_timeout=command, queries=self._queries,
        )  # fmt: skip
        """How sessions are configured, cleaned and limited. Internal."""
        adapter = MySQLAdapter(
            self.driver, self._address, self.session_rules, settings, check=check, proved=weakly(self._note_proved),
            on_created=weakly(self._replace_if_changed), unable=weakly(self._warn_unable), queries=self._queries,
            stall_timeout=check_limit("stall_timeout", stall_timeout),
        )  # fmt: skip
        super().__init__(
            adapter=adapter, settings=settings, name=name, budget=database_budget(budget), observers=observers,
            clock=clock,
        )  # fmt: skip

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
            CommitUnknown: The connection was lost during the commit.
            TransactionRolledBack: The block caught a deadlock, after which the
                server had undone everything before it, and went on: nothing was
                stored. To begin again, call ``rollback()``.
            Exception: As from the driver, the commit's included. A
                ``ProgrammingError`` if the block ended with a half-read result:
                the transaction is rolled back and the connection closed.
        """
        return Block(self, timeout, lane)

    @contextmanager
    def transaction(
        self,
        *,
        isolation_level: str | None = None,
        read_only: bool | None = None,
        timeout: float | None = None,
        lane: str | None = None,
    ) -> Iterator[Connection]:
        """Lend a connection in a transaction with these properties, also if the pool's are in autocommit.

        Within it ``commit()`` and ``rollback()`` are refused.

        Args:
            isolation_level: ``"READ UNCOMMITTED"``, ``"READ COMMITTED"``,
                ``"REPEATABLE READ"`` or ``"SERIALIZABLE"``; ``None`` means the server's.
            read_only: Whether writing is refused; ``None`` means the server's default.
            timeout: Seconds to wait for a connection.
            lane: As for `Pool.acquire`.

        Raises:
            ValueError: The isolation level is none of these.
            As for `connection`.
        """
        level = None if isolation_level is None else str(isolation_level).upper().replace("_", " ")
        if level is not None and level not in ISOLATION_LEVELS:
            raise ValueError(
                f"isolation_level must be one of {', '.join(map(repr, ISOLATION_LEVELS))} or None, "
                f"not {shown(isolation_level)}"
            )
        with self.acquire(timeout, 3, *named(lane)) as conn, Transaction(self, conn, "transaction()", level, read_only):
            yield conn

    def execute_query(
        self, sql: str, params: Params | None = None, *, cursor_class: type[Any] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:  # fmt: skip
        """Execute one statement in a transaction of its own and return its rows.

        Args:
            sql: The statement, with ``%s`` or ``%(name)s`` for parameters.
            params: Their values. With ``None``, a ``%`` in ``sql`` has no special meaning.
            cursor_class: Of the driver, such as ``DictCursor``; ``None`` means the connection's.
            timeout: Seconds for waiting and executing together. ``None``
                means the pool's ``acquire_timeout`` and ``command_timeout``.

        Returns:
            The rows; none for a statement that has no result.

        Raises:
            PoolTimeout: No connection came in time.
            CommandTimeout: The statement took too long, and the server did not
                stop it; it may still take effect.
            CommitUnknown: The connection was lost during the commit, or, in
                autocommit, during the statement; whether it took effect is unknown.
            Exception: As from the driver.
        """
        deadline = None if timeout is None else self.engine.clock.now() + seconds(timeout)
        with self.acquire(timeout, 2) as conn:
            self._limit_to(conn, timeout, deadline)
            autocommit = self.driver.in_autocommit(conn)
            cursor = self.driver.cursor(conn, cursor_class)
            try:
                if params is None:
                    cursor.execute(sql)
                else:
                    cursor.execute(sql, params)
                rows = list(cursor.fetchall()) if cursor.description else []
                cursor.close()
            except self.driver.error as error:
                if autocommit:
                    self._refuse_unknown(conn, error)
                raise
            commit(self, conn, brief=False)
            return rows

    def execute_many(self, sql: str, params: Iterable[Params], *, timeout: float | None = None) -> int:
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
            self._limit_to(conn, timeout, deadline)
            with Transaction(self, conn, "execute_many()"):
                cursor = self.driver.cursor(conn, None)
                rows = list(params)
                if not rows:
                    return 0
                cursor.executemany(sql, rows)
                affected = int(cursor.rowcount)
                cursor.close()
                return affected

    def run(self, function: Callable[[Connection], T], *, retries: int = 3, timeout: float | None = None) -> T:
        """Run a unit of work in a transaction, and again in a new one where that helps.

        It is run again after a deadlock (1213), a lock wait timeout (1205) and
        the like, if the server turned out to be read-only, and if the connection
        was lost before the commit was sent. Other errors are raised, a
        `CommandTimeout` among them. It is never run again when it may have been
        committed.

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
            Exception: An error of the driver: the server does not answer.
            ValueError, TypeError: ``workers`` is no whole number above 0.
        """
        limit = self.session_rules.command_timeout
        plan = Plan(
            settings=self.settings, workers=workers, cleans=self.session_rules.cleans, command_timeout=limit,
            unlimited=limit is None,
        )  # fmt: skip
        arguments = self._address.ask().arguments
        place = arguments.get("unix_socket") or f"{arguments.get('host', 'localhost')}:{arguments.get('port', 3306)}"
        report = examine(read(lambda: self.driver.connect(arguments), self.driver.thread_id, place), plan)
        return with_adaptive(report, self.stats())

    # -- internals ------------------------------------------------------------------

    def _replace_if_changed(self) -> None:
        """Replace all connections after the first one that was made with changed parameters."""
        if self._rotation.take_change(self.name):
            self.drain()

    def _note_proved(self, answer: Answer) -> None:
        with self.engine.lock:
            self._rotation.note_locked(answer)

    def _warn_unable(self, text: str) -> None:
        with self.engine.lock:
            known = text in self._unable
            self._unable.add(text)
        if not known:
            extra = fields("not_cleaned", self.name, what=text)
            logger.warning("pool %r: the server, or a proxy before it, %s", self.name, text, extra=extra)

    def _refuse_unknown(self, conn: Connection, error: Exception) -> None:
        """Raise `CommitUnknown` if a statement outside of a transaction may have taken effect."""
        lost = failures.ended_by(error) is not None or not self.driver.is_open(conn)
        if lost and not isinstance(error, CommandTimeout) and not failures.was_refused(error):
            raise self.driver.commit_unknown(
                f"pool {self.name!r}: the connection was lost during a statement: it is unknown whether it took effect"
            ) from error

    def _limit_to(self, conn: Connection, timeout: float | None, deadline: float | None) -> None:
        """Limit the commands of this lease, all together, to what is left of ``timeout``."""
        if deadline is not None:
            left = deadline - self.engine.clock.now()
            notes_of(conn).limit = Limit(self.session_rules.command_timeout, timeout, left)


_statistics = query_statistics  # the constructor has an argument of that name
MySQLPool.__module__ = "pooling"  # where users import them from
