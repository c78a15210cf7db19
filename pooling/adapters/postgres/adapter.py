"""How PostgreSQL connections are made and kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.pq.abc import PGconn

from ...core.adapter import Adapter, Verdicts
from ...settings import PoolSettings
from . import failures, greenlets, stalls
from .address import Address, Answer, completing
from .foreign import adopt
from .session import ACTIVE, BETWEEN, NO_PIPELINE, Connection, Hook, Notes, Session, notes_of, role_of, tracked
from .statistics import QueryStatistics
from .wire import Cancel, hang_up, round_trip, spare_handle, wait_for_end

__all__ = ["PostgresAdapter"]

#: Seconds that a close waits for the server to have ended its side.
CLOSE_WAIT = 0.2
CANCEL_WAIT = 1.0  # to tell it to stop a query that nobody waits for any more
CANCELLED_WAIT = 0.5  # to have ended its side then
_MOST = 100  # reads of one look, at a server that goes on sending
# Whether psycopg keeps notifications that nothing listens to. Before 3.2.4 it drops them, so they are left with libpq,
# and each look reads twice: what has come may have been one.
_KEEPS = "_notifies_backlog" in psycopg.Connection._notify_handler.__code__.co_names
BRIEF = 0.05  # to tell it on behalf of a whole pool that closes, one after the other
OWN_LIMIT = 60.0  # for a BEGIN or COMMIT where no stall_timeout says another
#: The values of ``target_session_attrs`` that say what the server must be.
_CHOOSING = {"host", "hostaddr", "port", "target_session_attrs", "load_balance_hosts"}  # which of several it is
ROLES = {"read-write", "read-only", "primary", "standby"}


class PostgresAdapter(Adapter[Connection]):
    """How connections are made and kept.

    Args:
        address: What to connect to.
        session: How sessions are prepared and cleaned.
        settings: For its times and its validation query.
        connection_class: The class of the connections, or their base.
        measuring: Whether queries are timed.
        check: What validates a connection instead of a query.
        stall_timeout: Seconds of one command after which the server is asked about it.
        proved: Called with the `Answer` that a connection was made with.
        before_create: Called before a connection is made.
        on_created: Called when a new connection is available.
        queries: The statistics of queries, renewed in a forked child.
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
        self._session = session
        self._measuring = measuring
        # A connect() of its own: not psycopg's, nor what has been put in its place for all classes.
        bases = connection_class.__mro__
        self._connects = any("connect" in vars(base) for base in bases[: bases.index(psycopg.Connection)])
        self._class = tracked(connection_class, measuring)  # type: ignore[arg-type]  # mypy: a class is not Hashable
        self._check = check
        self._proved, self._before_create, self._on_created = proved, before_create, on_created
        #: Called in a forked child: statistics start again there.
        self.renewed: list[Callable[[], object]] = [] if queries is None else [queries.renew]
        self._introduces = True  # servers here say which one they are
        self.stall_limit = stall_timeout
        self.settings_changed(settings)
        self._listener = failures.Listener()

    def settings_changed(self, settings: PoolSettings) -> None:
        self._query = (settings.validation_query or "SELECT 1").encode()
        self._answer_limit = settings.health_check_timeout
        self._address.create_timeout = settings.create_timeout
        self._session.create_timeout = settings.create_timeout
        self._session.reset_timeout = settings.reset_timeout

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
            conn = self._connect(answer)  # once more, to hear what it means
        try:
            whole = adopt(conn, self._measuring)
            self._session.prepare(conn, self)
            self._get_to_know(conn)
        except BaseException:
            conn.close()
            raise
        wish = answer.arguments.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
        if wish in ROLES and whole:
            notes_of(conn).role = role_of(conn)
        self._proved(answer)
        return conn

    def _get_to_know(self, conn: Connection) -> None:
        """Note what tells later whether a wait on this connection is in vain."""
        notes = notes_of(conn)
        if notes.foreign:
            return
        notes.begin(conn)
        if self.stall_limit is None or not notes.place.is_remote or not self._introduces:
            return
        try:
            stalls.server_of(conn, notes, self._session.create_timeout)
        except psycopg.Error:
            if conn.closed:
                raise
            self._introduces = False  # of another make, without these functions: nothing is asked of it again

    @property
    def stall_limit(self) -> float | None:
        """Seconds of one command after which the server is asked about it; ``None``: only about a BEGIN or COMMIT."""
        return self._stall_limit

    @stall_limit.setter
    def stall_limit(self, limit: float | None) -> None:
        self._stall_limit = limit
        self.stall_timeout = OWN_LIMIT if limit is None else limit

    def command_of(self, resource: Connection) -> object:
        notes = notes_of(resource)
        return stalls.command_of(resource, notes) if notes.waits or self._stall_limit is not None else None

    def end_stalled(self, waiting: Sequence[tuple[Connection, object]], seconds: float) -> Verdicts:
        greenlets.adopt()
        asked: Any = [(conn, notes_of(conn), command) for conn, command in waiting]
        return stalls.end_stalled(asked, seconds, self._connect_to, self._answer_limit)

    def _connect_to(self, place: stalls.Place) -> Connection:
        answer = self._address.ask()
        others = {name: value for name, value in answer.arguments.items() if name not in _CHOOSING}
        wish = {name: value for name, value in place._asdict().items() if value}
        if not place.is_remote:
            wish.pop("hostaddr", None)
        wish["connect_timeout"] = max(2, int(self._answer_limit))  # less than 2 libpq takes for 2
        if self._connects:  # it is given what was said, and this comes last
            given = {name: value for name, value in answer.given.items() if name not in _CHOOSING}
            return self._connect(answer._replace(arguments=wish, given={**given, **wish}))
        return self._connect(answer._replace(conninfo="", arguments={**others, **wish}))

    def _connect(self, answer: Answer) -> Connection:
        """Call connect() as psycopg_pool does, with what was said and how."""
        arguments, complete = answer.arguments, None
        if self._connects:  # it sees what was said, and the defaults are added to what it makes of that
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

    def is_alive(self, resource: Connection) -> bool:
        # Reads what has come, without waiting, for less than a poll() costs. That there is
        # something is not yet a death: it may be a NOTIFY, which is kept for the borrower.
        notes: Notes = resource._pooling  # type: ignore[attr-defined]
        try:
            pgconn = resource.pgconn
            pgconn.consume_input()
            # Then parse it, which calls notes.hear(). Where nothing runs both do that and no more, but
            # is_busy() lets go of the GIL, and with many threads that is a turn of the whole line.
            if pgconn.transaction_status in BETWEEN and pgconn.pipeline_status == NO_PIPELINE:
                pgconn.get_result()
                found = pgconn.notifies() if _KEEPS else None
                if found is not None or notes.heard or not _KEEPS:
                    _read_on(pgconn, notes, found)
            else:
                pgconn.is_busy()
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
                resource.execute(self._query)
                resource.rollback()
            return
        if self._check is not None:
            self._session.call(resource, self._check, timeout)
        else:
            try:
                round_trip(resource, self._query, timeout)
            except TimeoutError:
                resource.pgconn.finish()  # there is nothing to cancel, and before libpq 17 that may hang, with the GIL
                raise
        if notes_of(resource).role not in (None, role_of(resource)):  # of which failovers make another
            raise psycopg.OperationalError("the server has changed its role: it is, or is no more, a standby")

    def reset(self, resource: Connection) -> bool:
        return self._session.clean(resource) and self._check is None  # which may look for more than an answer

    def close(self, resource: Connection) -> None:
        notes, wait = notes_of(resource), CLOSE_WAIT
        if notes.foreign:
            resource.close()
            return
        if resource.pgconn.transaction_status == ACTIVE:
            notes.cancel = Cancel(resource)
        if notes.cancel is not None:
            wait = CANCELLED_WAIT
            with suppress(Exception):  # else the server would go on with it for nobody, beyond our bounds
                notes.cancel.send(CANCEL_WAIT)
        peer = notes.peer or spare_handle(resource)
        resource.close()
        if peer is not None:
            with peer:
                wait_for_end(peer, wait)

    def interrupt(self, resource: Connection) -> None:
        if notes_of(resource).foreign:
            return  # there is no telling how
        if resource.pgconn.transaction_status == ACTIVE:
            notes_of(resource).cancel = cancel = Cancel(resource)  # once it is shut down its holder could not
            if cancel.bounded:
                with suppress(Exception):  # its close tries on
                    cancel.send(BRIEF)
        hang_up(resource)

    def abandon(self, resource: Connection) -> None:
        if notes_of(resource).foreign:
            return
        # libpq says Terminate when it is freed, at the latest at exit; now to nobody.
        sink = os.open(os.devnull, os.O_RDWR)
        os.dup2(sink, resource.fileno())
        os.close(sink)

    def is_broken(self, resource: Connection, error: BaseException) -> bool:
        if getattr(resource, "closed", False) or failures.ended_by(error) is not None or failures.is_stale(error):
            return True
        # A primary became a standby, unless it was the borrower's wish not to write.
        return failures.READ_ONLY in failures.sqlstates(error) and not getattr(resource, "read_only", False)

    def is_final(self, error: BaseException) -> bool:
        return super().is_final(error) or failures.is_hopeless(error, self._address.changes)

    def is_full(self, error: BaseException) -> bool:
        return failures.is_full(error)


def _read_on(pgconn: PGconn, notes: Notes, found: Any) -> None:
    """Read to the end of what has come: libpq sees the end of the stream only when nothing is left before it.

    Raises:
        psycopg.Error: The server has hung up behind it.
    """
    for _ in range(_MOST):
        notes.heard = False
        while found is not None:
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(found)
            found = pgconn.notifies()
        pgconn.consume_input()
        pgconn.get_result()
        found = pgconn.notifies() if _KEEPS else None
        if found is None and not notes.heard:
            break
