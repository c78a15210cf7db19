"""How PostgreSQL connections are made and kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import psycopg
from psycopg.pq.abc import PGconn

from ...core.adapter import Adapter, Verdicts
from ...core.descriptors import redirect_to_null
from ...settings import PoolSettings
from . import connecting, failures, greenlets, stalls, trace
from .address import Address, Answer
from .client_state import KEEPS_NOTIFICATIONS
from .connecting import completing
from .foreign import adopt
from .libpq import is_busy, take_notification
from .session import Hook, Session
from .statistics import QueryStatistics
from .tracking import ACTIVE, BETWEEN, NO_PIPELINE, Connection, Notes, notes_of, role_of, tracked
from .wire import Cancel, hang_up, round_trip, spare_handle, wait_for_end

__all__ = ["PostgresAdapter"]

# Seconds:
CLOSE_WAIT = 0.2  # for the server to end its side of a connection that is closed
CANCEL_WAIT = 1.0  # to send a cancel request for an abandoned query
CANCELLED_WAIT = 0.5  # for the server to end its side after that
INTERRUPT_WAIT = 0.05  # to send a cancel request while a pool is closed, one connection after the other
COMMIT_LIMIT = 60.0  # for the answer to a BEGIN or COMMIT, if there is no stall_timeout

_MOST_READS = 100  # in one `is_alive`, from a server that keeps sending
#: The parameters that choose one of several servers.
_CHOOSING = {"host", "hostaddr", "port", "target_session_attrs", "load_balance_hosts"}
#: The values of ``target_session_attrs`` that name a role of the server.
ROLES = {"read-write", "read-only", "primary", "standby"}


class PostgresAdapter(Adapter[Connection]):
    """How connections are made and kept.

    Args:
        address: The connection parameters.
        session: How sessions are prepared and cleaned.
        settings: For its time limits and its validation query.
        connection_class: The class of the connections; they are of a subclass.
        measuring: Whether queries are timed.
        check: Called to validate a connection, instead of a query.
        proved: Called with the `Answer` after a connection was made with it.
        stall_timeout: Seconds that a command may take before the server is asked about it; ``None``: see `stall_limit`.
        before_create: Called before a connection is made.
        on_created: Called when a new connection is available.
        queries: The statistics of queries, which start again in a forked child.
    """

    noun = "connection"
    enforces_timeouts = True

    def __init__(
        self,
        address: Address,
        session: Session,
        settings: PoolSettings,
        *,
        connection_class: type[Connection] = psycopg.Connection,
        measuring: bool = False,
        check: Hook | None = None,
        proved: Callable[[Answer], object] = lambda answer: None,
        stall_timeout: float | None = None,
        before_create: Callable[[], object] = lambda: None,
        on_created: Callable[[], object] = lambda: None,
        queries: QueryStatistics | None = None,
    ) -> None:
        self._address = address
        self.session_rules = session
        self._measuring = measuring
        # Whether the class has a connect() of its own; a replaced psycopg.Connection.connect is none.
        bases = connection_class.__mro__[: connection_class.__mro__.index(psycopg.Connection)]
        self._connects = connecting.AVAILABLE and any("connect" in vars(base) for base in bases)
        self._class = tracked(connection_class, measuring)  # type: ignore[arg-type]  # mypy: a class is not Hashable
        self._check = check
        self._proved, self._before_create, self._on_created = proved, before_create, on_created
        #: Called in a forked child: statistics start again there.
        self.renewed: list[Callable[[], object]] = [] if queries is None else [queries.renew]
        self._queries = queries
        self._identifies = True  # the server has the functions that identify it
        self.stall_limit = stall_timeout
        self.settings_changed(settings)
        self._listener = trace.Listener()

    def settings_changed(self, settings: PoolSettings) -> None:
        self.query = (settings.validation_query or "SELECT 1").encode()
        self._answer_limit = settings.health_check_timeout
        self._address.create_timeout = settings.create_timeout
        self.session_rules.create_timeout = settings.create_timeout
        self.session_rules.reset_timeout = settings.reset_timeout

    def created(self) -> None:
        self._on_created()

    def after_fork(self) -> None:
        for renew in self.renewed:
            renew()

    def threads_patched(self) -> None:
        greenlets.adopt()

    def create(self) -> Connection:
        greenlets.adopt()
        self._before_create()
        answer = self._address.ask()
        try:
            conn = self._connect(answer)
        except psycopg.Error:
            if not self._listener.asks_again():
                raise
            conn = self._connect(answer)  # again, to find out the SQLSTATE
        try:
            whole = adopt(conn, self._measuring)
            self.session_rules.prepare(conn, self)
            self._identify(conn)
        except BaseException:
            conn.close()
            raise
        role = answer.arguments.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
        if role in ROLES and whole:
            notes_of(conn).role = role_of(conn)
        self._proved(answer)
        return conn

    def _identify(self, conn: Connection) -> None:
        """Note what is needed to find out later whether the server still works for this connection."""
        notes = notes_of(conn)
        if notes.foreign:
            return
        notes.begin(conn)
        if self.stall_limit is None or not notes.backend.place.is_remote or not self._identifies:
            return
        try:
            stalls.server_of(conn, notes, self.session_rules.create_timeout)
        except psycopg.Error:
            if conn.closed:
                raise
            self._identifies = False  # not PostgreSQL itself: it is not asked again

    @property
    def stall_limit(self) -> float | None:
        """Seconds that a command may take before the server is asked about it; ``None``: only BEGIN and COMMIT."""
        return self._stall_limit

    @stall_limit.setter
    def stall_limit(self, limit: float | None) -> None:
        self._stall_limit = limit
        self.stall_timeout = COMMIT_LIMIT if limit is None else limit

    def command_of(self, resource: Connection) -> object:
        notes = notes_of(resource)
        return stalls.command_of(resource, notes) if notes.own or self._stall_limit is not None else None

    def driver_time(self) -> float | None:
        return None if self._queries is None else self._queries.seconds

    def end_stalled(self, waiting: Sequence[tuple[Connection, object]], seconds: float) -> Verdicts:
        greenlets.adopt()
        asked: Any = [(conn, notes_of(conn), command) for conn, command in waiting]
        return stalls.end_stalled(asked, seconds, self._connect_to, self._answer_limit)

    def _connect_to(self, place: stalls.Place) -> Connection:
        answer = self._address.ask()
        others = {name: value for name, value in answer.arguments.items() if name not in _CHOOSING}
        chosen: dict[str, Any] = {name: value for name, value in place._asdict().items() if value}
        if not place.is_remote:
            chosen.pop("hostaddr", None)
        chosen["connect_timeout"] = max(2, int(self._answer_limit))  # libpq takes 1 for 2
        if self._connects:  # it gets the user's arguments, which these override
            given = {name: value for name, value in answer.given.items() if name not in _CHOOSING}
            return self._connect(answer._replace(arguments=chosen, given={**given, **chosen}))
        return self._connect(answer._replace(conninfo="", arguments={**others, **chosen}))

    def _connect(self, answer: Answer) -> Connection:
        """Call connect() as psycopg_pool does, with the arguments as the user gave them."""
        arguments, complete = answer.arguments, None
        if self._connects:  # the defaults are added to the conninfo that it makes of the user's arguments
            arguments, complete = dict(answer.given), self._address.complete
            if "connect_timeout" in answer.arguments:
                arguments["connect_timeout"] = answer.arguments["connect_timeout"]
        token = completing.set(complete)
        try:
            with self._listener.attempt():
                conn: Connection = self._class.connect(answer.conninfo, **arguments)
                return conn
        finally:
            completing.reset(token)

    def ping(self, timeout: float) -> None:
        try:
            self.connect_aside(timeout).close()
        except psycopg.Error as error:
            if not failures.is_answer(error):
                raise

    def connect_aside(self, timeout: float) -> Connection:
        """Make a connection outside of the pool, which the caller closes.

        Raises:
            psycopg.Error: As from psycopg.
        """
        greenlets.adopt()
        answer = self._address.ask()
        limit = {"connect_timeout": max(2, int(timeout))}  # libpq takes 1 for 2
        answer = answer._replace(arguments={**answer.arguments, **limit})
        try:
            return self._connect(answer)
        except psycopg.Error:
            if not self._listener.asks_again():
                raise
            return self._connect(answer)  # again, to find out the SQLSTATE

    def is_alive(self, resource: Connection) -> bool:
        # Reads what has come, without waiting, and faster than a poll(). Data alone does not mean that the connection
        # has ended: it may be a NOTIFY, which is kept for the borrower.
        notes: Notes = resource._pooling  # type: ignore[attr-defined]
        try:
            pgconn = resource.pgconn
            pgconn.consume_input()
            # Then parse it, which calls notes.on_message(). While nothing runs both calls do only that.
            if pgconn.transaction_status in BETWEEN and pgconn.pipeline_status == NO_PIPELINE:
                pgconn.get_result()
                found = take_notification(pgconn) if KEEPS_NOTIFICATIONS else None
                if found is not None or notes.got_message or not KEEPS_NOTIFICATIONS:
                    _read_on(pgconn, notes, found)
            else:
                is_busy(pgconn)
        except psycopg.Error:
            return False
        except AttributeError:
            return notes.foreign and not getattr(resource, "closed", False)
        return not notes.fatal and (notes.role is None or notes.role == role_of(resource))

    def validate(self, resource: Connection, timeout: float) -> None:
        if notes_of(resource).foreign:
            if self._check is not None:
                self._check(resource)
            else:
                resource.execute(self.query)
                resource.rollback()
            return
        if self._check is not None:
            self.session_rules.call(resource, self._check, timeout)
        else:
            try:
                round_trip(resource, self.query, timeout)
            except TimeoutError:
                resource.pgconn.finish()  # nothing to cancel; before libpq 17 a cancel could hang, with the GIL
                raise
        if notes_of(resource).role not in (None, role_of(resource)):  # after a failover
            raise psycopg.OperationalError("the server has changed its role: it became a standby, or is none any more")

    def reset(self, resource: Connection) -> bool | Literal["sent"]:
        answered = self.session_rules.clean(resource)
        if answered == "sent" or self._check is None:
            return answered
        return False  # a check may look for more than an answer

    def finish_reset(self, resource: Connection, timeout: float) -> bool:
        return self.session_rules.finish(resource, timeout)

    def close(self, resource: Connection) -> None:
        notes, wait = notes_of(resource), CLOSE_WAIT
        if notes.foreign:
            resource.close()
            return
        if resource.pgconn.transaction_status == ACTIVE:
            notes.cancel = Cancel(resource)
        cancels = notes.cancel is not None and notes.cleaning is None  # a cleaning is expected to end by itself
        if cancels:
            wait = CANCELLED_WAIT
            _send(notes.cancel)
        peer = notes.peer or spare_handle(resource)
        resource.close()
        if peer is not None:
            with peer:
                if not wait_for_end(peer, wait) and notes.cancel is not None and not cancels:
                    _send(notes.cancel)
                    wait_for_end(peer, CANCELLED_WAIT)

    def interrupt(self, resource: Connection) -> None:
        if notes_of(resource).foreign:
            return  # there is no known way
        if resource.pgconn.transaction_status == ACTIVE:
            notes_of(resource).cancel = cancel = Cancel(resource)  # impossible after the shutdown
            if cancel.bounded:
                with suppress(Exception):  # its close tries again
                    cancel.send(INTERRUPT_WAIT)
        hang_up(resource)

    def abandon(self, resource: Connection) -> None:
        if notes_of(resource).foreign:
            return
        # libpq sends Terminate when it is freed, at the latest at exit; this way it goes nowhere.
        redirect_to_null(resource.fileno())

    def is_broken(self, resource: Connection, error: BaseException) -> bool:
        if getattr(resource, "closed", False) or failures.ended_by(error) is not None or failures.is_stale(error):
            return True
        # A primary became a standby, unless the borrower asked for a read-only transaction.
        return failures.READ_ONLY in failures.sqlstates(error) and not getattr(resource, "read_only", False)

    def is_final(self, error: BaseException) -> bool:
        return super().is_final(error) or failures.is_hopeless(error, self._address.changes)

    def is_full(self, error: BaseException) -> bool:
        return failures.is_full(error)


def _send(cancel: Cancel | None) -> None:
    """Send a cancel request: otherwise the server would go on with the command, beyond the pool's size."""
    if cancel is not None:
        with suppress(Exception):
            cancel.send(CANCEL_WAIT)


def _read_on(pgconn: PGconn, notes: Notes, found: Any) -> None:
    """Read everything that has come: libpq sees the end of the stream only after all that precedes it.

    Raises:
        psycopg.Error: The server has closed the connection after that.
    """
    for _ in range(_MOST_READS):
        notes.got_message = False
        while found is not None:
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(found)
            found = take_notification(pgconn)
        pgconn.consume_input()
        pgconn.get_result()
        found = take_notification(pgconn) if KEEPS_NOTIFICATIONS else None
        if found is None and not notes.got_message:
            break
