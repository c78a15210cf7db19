"""How a session is prepared for its first borrower, and cleaned for each further one (P5).

- *On the client* psycopg keeps everything in the connection; `client_state`
  restores it.
- *On the server* the statement does not tell whether it changes the session:
  ``set_config()`` and ``pg_advisory_lock()`` look like a SELECT. So a session
  is dirty when anything at all was executed, which `tracking` notes.
- A dirty session is cleaned in one round trip, together with the ROLLBACK or
  COMMIT that its transaction needs anyway. If there is no transaction, the
  release only sends it, and the next acquire reads the answer.

Prepared statements are kept: psycopg relies on them. So a borrower may get
"cached plan must not change result type" when a table has the same name as one
of an earlier borrower and other columns (a temporary one, or by the
search_path), once: that connection is replaced. And names given to ``PREPARE``
stay. Only ``DISCARD ALL``, in a ``session`` of the user's own, removes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Literal

import psycopg

from ...tools.doctor.cleaning import LACKING, STEPS
from . import committing, failures
from .beginning import serves_replication
from .client_state import client_state
from .configured import Recorder
from .cursors import fast_cursor
from .libpq import take_notification
from .limits import Limit
from .statistics import QueryStatistics
from .tracking import (
    IDLE,
    IN_ERROR,
    IN_TRANSACTION,
    NO_PIPELINE,
    Configuration,
    Connection,
    Notes,
    bare_of,
    notes_of,
    rolled_back,
)
from .unfinished import PIPELINE, cut_off, is_unfinished, left_open
from .wire import Sent, failed_at, notify, round_trip

__all__ = ["IDLE", "Connection", "Hook", "Session", "SessionMode", "bare_of", "left_open", "notes_of"]

Hook = Callable[[Connection], object]
SessionMode = Literal["clean", "trust"] | Hook
_STEPS = tuple(step.encode() for step in STEPS)


class Session:
    """How one pool's sessions are prepared and cleaned; see `PostgresPool` for the arguments."""

    def __init__(
        self,
        mode: SessionMode = "clean",
        configure: Hook | None = None,
        reset: Hook | None = None,
        *,
        create_timeout: float,
        reset_timeout: float,
        command_timeout: float | None = None,
        queries: QueryStatistics | None = None,
        lacks: Callable[[dict[str, psycopg.Error]], object] = lambda missing: None,
    ) -> None:
        self.steps = _STEPS if mode == "clean" else ()
        self._lacks = lacks
        self.missing: frozenset[bytes] = frozenset()  # steps that this server does not execute
        self.take_steps()
        self._configure = configure
        self._always = [] if reset is None else [reset]
        self._after_use = [mode, *self._always] if callable(mode) else self._always
        self._sends = mode == "clean" and not self._always  # nothing follows the answer, so it can be read later
        self.create_timeout = create_timeout
        self.reset_timeout = reset_timeout
        self.command_timeout = command_timeout
        self._limit = None if command_timeout is None else Limit(command_timeout)
        self._queries = queries

    @property
    def cleans(self) -> bool:
        """Whether a used session is cleaned by statements of the pool."""
        return bool(self._clean)

    def forget_missing(self) -> None:
        """Forget which steps of a cleaning the server does not execute: it may be another one now."""
        if self.missing:
            self.missing = frozenset()
            self.take_steps()

    def take_steps(self) -> None:
        steps = [step for step in self.steps if step not in self.missing]
        self._clean = _joined(steps)
        self.commit_command = b"COMMIT" + self._clean
        self._cleaning = steps, self._clean  # together: another thread may change them

    def limit_to(self, conn: Connection, timeout: float | None, left: float) -> None:
        """Limit the commands of a lease, all together, to what is left of ``timeout``."""
        notes_of(conn).limit = Limit(self.command_timeout, timeout, left)

    def prepare(self, conn: Connection, owner: object) -> None:
        """Configure a new connection, and note what it is like as new.

        Args:
            conn: The connection, or a proxy of one.
            owner: Stored as ``_pool``, as psycopg_pool does: ``with conn`` then
                ends a transaction and does not close the connection.
        """
        notes = notes_of(conn)
        if notes.foreign:
            if self._configure is not None:
                self._configure(conn)
            return
        lent, conn = conn, bare_of(conn) or conn
        conn._pool = owner  # type: ignore[assignment]
        conn.add_notice_handler(notes.on_message)
        if not serves_replication(conn.pgconn):
            conn.cursor_factory = fast_cursor(conn.cursor_factory)
        notes.client = notes.configuration.before = client_state(conn)
        notes.changed = notes.dirty = False
        if self._configure is not None:
            recorder = Recorder(conn)
            vars(conn)["wait"] = recorder.wait
            try:
                self.call(lent, self._configure, self.create_timeout)
            finally:
                vars(conn).pop("wait", None)
            _remember(conn, notes)
            if self.steps and notes.dirty:
                statements = recorder.undone()
                notes.configuration.statements = statements or b""
                notes.configuration.by_hook = statements is None
        notes.limit, notes.queries = self._limit, self._queries
        notes.dirty = notes.configuration.lost = False

    def clean(self, conn: Connection) -> bool | Literal["sent"]:
        """Make a connection as good as new, or raise.

        Returns:
            Whether the server has answered just now; ``"sent"`` if `finish` has to follow.
        """
        notes: Notes = conn._pooling  # type: ignore[attr-defined]
        if notes.foreign:
            return self._clean_foreign(conn)
        answered, notes.answered = notes.answered, False
        sent = False
        status = conn.pgconn.transaction_status
        if answered and status == IDLE and not (self._after_use or notes.configuration.lost):
            _restore(conn, notes)
        elif notes.sends and status == IDLE and notes.dirty and self._takes_one_round_trip(conn, notes.configuration):
            _restore(conn, notes)
            notes.cleaning = Sent(conn, self._clean + notes.configuration.statements, self.reset_timeout)
            sent = True
        else:
            answered = self._clean_up(conn, notes, status) or answered
        notes.limit = self._limit
        notes.dirty = False
        notes.failed = None
        if sent:
            return "sent"
        return answered and not notes.fatal and notes.role is None  # else `is_alive` has more to look at

    def _takes_one_round_trip(self, conn: Connection, configuration: Configuration) -> bool:
        """Whether nothing is under way, and statements are all that a cleaning takes."""
        by_hook = configuration.by_hook or configuration.lost
        return self._sends and bool(self._clean) and not by_hook and not is_unfinished(conn, IDLE)

    def finish(self, conn: Connection, timeout: float) -> bool:
        """Return whether a cleaning that was sent has ended, at most ``timeout`` seconds from now.

        Raises:
            psycopg.Error, TimeoutError: It has failed, or has taken longer than ``reset_timeout``.
        """
        notes = notes_of(conn)
        cleaning = notes.cleaning
        if cleaning is None:
            return True
        try:
            if not cleaning.has_ended(timeout):
                return False
        except (psycopg.Error, TimeoutError):
            notes.cleaning = None  # what the server still does is now a command to be cancelled
            raise
        notes.cleaning = None
        _forget_notifications(conn)
        return True

    def _clean_up(self, conn: Connection, notes: Notes, status: int) -> bool:
        """Clean after a borrower that did not end with a COMMIT of the pool; return whether the server was asked."""
        asked = False
        used = notes.dirty or status != IDLE
        if is_unfinished(conn, status):
            raise psycopg.ProgrammingError(f"it came back with {left_open(conn, 0.0) or 'a command under way'}")
        if status != IDLE and (conn._rolls_back or not committing.AVAILABLE):  # type: ignore[attr-defined]
            self.call(conn, lambda conn: conn.rollback(), self.reset_timeout)
            status = conn.pgconn.transaction_status
        if status != IDLE or (used and self._clean):
            self._clean_server(conn, notes, b"" if status == IDLE else b"ROLLBACK")
            asked = True
            if status != IDLE:
                committing.forget_prepared(conn)
            if self._clean:
                _forget_notifications(conn)
        _restore(conn, notes)
        for hook in self._after_use if used else self._always:
            self.call(conn, hook, self.reset_timeout)
            _restore(conn, notes)
        if notes.configuration.lost:
            self._configure_again(conn, notes)
        return asked

    def _clean_foreign(self, conn: Connection) -> bool:
        """Do what is possible with a connection of an unknown class."""
        conn.rollback()
        for hook in self._after_use:
            hook(conn)
        return False

    def _clean_server(self, conn: Connection, notes: Notes, first: bytes) -> None:
        """Roll back if need be, and clean, in one round trip; without the steps that this server does not execute.

        A step counts as such only after it has failed alone, too, when all the
        others were done: it may have failed because of what a borrower did.
        """
        configuration = notes.configuration
        steps, text = self._cleaning
        timeout, began = self.reset_timeout, monotonic()
        failed: list[bytes] = []

        def left() -> float:
            return Limit(None, self.reset_timeout, self.reset_timeout - (monotonic() - began)).left()

        while True:
            try:
                round_trip(conn, first + text + configuration.statements, timeout)
                configuration.lost = configuration.by_hook
                # Notifications that come later are for the next borrower, if the hook LISTENs.
                notes.sends = not failed and b"LISTEN" not in configuration.statements.upper()
                break
            except psycopg.Error as error:
                timeout = left()
                number = failed_at(error) - bool(first)
                server_says_why = error.sqlstate and failures.ended_by(error) is None
                if number >= len(steps) and configuration.statements and server_says_why:
                    # They cannot be executed all at once: the hook does it from now on.
                    configuration.statements, configuration.by_hook, first = b"", True, b""
                    continue
                if error.sqlstate not in LACKING or not 0 <= number < len(steps):
                    raise
                failed.append(steps[number])
                steps = steps[:number] + steps[number + 1 :]
                text, first = _joined(steps), b""  # the first was done; what came after it was undone
        if not failed:
            return
        missing: dict[str, psycopg.Error] = {}
        for step in failed:
            try:
                round_trip(conn, step, left())
            except psycopg.Error as error:
                if error.sqlstate not in LACKING:
                    raise
                missing[step.decode()] = error
        if missing:
            self.missing |= {step.encode() for step in missing}
            self.take_steps()
            self._lacks(missing)

    def _configure_again(self, conn: Connection, notes: Notes) -> None:
        """Call the hook again: the cleaning has undone what it did, along with what the borrower did."""
        assert self._configure is not None
        notes.client, notes.changed = notes.configuration.before, True
        _restore(conn, notes)
        self.call(conn, self._configure, self.reset_timeout)
        _remember(conn, notes)
        notes.configuration.lost = False

    @staticmethod
    def call(conn: Connection, hook: Hook, limit: float) -> None:
        """Call a function of the user's and commit what it did, all its commands within ``limit`` seconds."""
        notes = notes_of(conn)
        before, notes.limit = notes.limit, Limit(None, limit)
        try:
            hook(conn)
            status = conn.pgconn.transaction_status
            if status == IN_ERROR:
                raise rolled_back(conn, f"what {getattr(hook, '__qualname__', repr(hook))}() did")
            if status != IDLE:
                open_ = left_open(conn, 0.0)
                if open_ is not None:
                    raise psycopg.ProgrammingError(f"{hook!r} has ended with {open_}")
                conn.commit()
        finally:
            notes.limit = before

    def commit(self, conn: Connection, pipelines: bool = False) -> None:
        """Commit what a borrower did, and clean the server's side in the same round trip.

        Args:
            conn: The connection.
            pipelines: Whether a pipeline may be open, as psycopg allows it.

        Raises:
            psycopg.ProgrammingError: A stream, a COPY or the like is open; psycopg would wait for its end for ever.
        """
        notes: Notes = conn._pooling  # type: ignore[attr-defined]
        if notes.foreign:
            conn.commit()
            return
        status = conn.pgconn.transaction_status
        own: bool = conn._commits  # type: ignore[attr-defined]
        by_psycopg = own or committing.in_own_transaction(conn, status) or is_unfinished(conn, status)
        if status != IN_TRANSACTION or by_psycopg:
            if by_psycopg:
                self.refuse_open(conn, pipelines)
            if status != IDLE or by_psycopg:
                conn.commit()
            if by_psycopg and pipelines and conn.pgconn.pipeline_status != NO_PIPELINE:
                cut_off(conn)  # in this thread: another one's close would interrupt the pipeline's own end
            return
        try:
            text = self.commit_command + notes.configuration.statements
            committing.waiting(conn, notes, round_trip, conn, text, notes.limit and notes.limit.left())
        except (psycopg.Error, TimeoutError) as error:
            if failed_at(error):
                notes.sends = False  # `clean` finds out why
                return  # committed all the same; `clean` will find that the session is dirty
            raise
        if conn._notify_handlers:
            notify(conn)
        notes.answered = True
        if self._clean:
            _forget_notifications(conn)
            notes.dirty = False
            notes.configuration.lost = notes.configuration.by_hook

    def refuse_open(self, conn: Connection, pipelines: bool = False) -> None:
        """Refuse a connection on which its borrower has left something open.

        Raises:
            psycopg.ProgrammingError: Names what is open. psycopg would wait for its end, perhaps for ever.
        """
        open_ = None if notes_of(conn).foreign else left_open(conn, self.reset_timeout)
        if open_ is not None and not (pipelines and open_ == PIPELINE):
            raise psycopg.ProgrammingError(
                f"the block has ended with {open_}: its connection is closed, and its transaction rolled back"
            )


def _joined(steps: Iterable[bytes]) -> bytes:
    return b"".join(b"; " + step for step in steps)


def _forget_notifications(conn: Connection) -> None:
    """Drop the notifications that came before the UNLISTEN."""
    while take_notification(conn.pgconn):
        pass


def _remember(conn: Connection, notes: Notes) -> None:
    """Note what the client's side is like, as the state to restore."""
    notes.client = client_state((bare_of(conn) or conn) if notes.wrapped else conn)
    notes.changed = False


def _restore(conn: Connection, notes: Notes) -> None:
    notes.client.restore((bare_of(conn) or conn) if notes.wrapped else conn, notes.changed)
    notes.changed = False
