"""Connection classes that note what a borrower does with a connection.

The connections of a pool are of a subclass of the user's class. It notes in
`Notes` when an attribute is set and when psycopg waits for the server, in
``Connection.wait()``, which is public. What is executed on the raw ``pgconn``
is not noticed.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import pq

from . import beginning, client_state, commands, connecting, failures, steps
from .client_state import ClientState
from .limits import Limit, limited, pace
from .stalls import Watch, bare_of, explained
from .statistics import QueryStatistics, text_of
from .wire import Cancel, Sent, hang_up, notify

__all__ = [
    "ACTIVE", "BETWEEN", "IDLE", "IN_ERROR", "IN_TRANSACTION", "NO_PIPELINE", "Connection", "Measuring", "Notes",
    "Tracking", "bare_of", "notes_of", "role_of", "rolled_back", "tracked",
]  # fmt: skip

Connection = psycopg.Connection[Any]
C = TypeVar("C", bound=Connection)
_COMMIT, _ROLLBACK = psycopg.Connection.commit, psycopg.Connection.rollback

# As libpq gives them: numbers, which are compared much faster than members of an enumeration.
IDLE, IN_TRANSACTION, IN_ERROR, ACTIVE = (
    int(pq.TransactionStatus[name]) for name in ("IDLE", "INTRANS", "INERROR", "ACTIVE")
)
BETWEEN = (IDLE, IN_TRANSACTION, IN_ERROR)  # nothing runs
NO_PIPELINE = int(pq.PipelineStatus.OFF)


class Configuration:
    """What is known of the ``configure`` hook's effect on one session."""

    __slots__ = ("statements", "by_hook", "lost", "before")

    before: ClientState  # the client's side before the hook was called

    def __init__(self) -> None:
        self.statements = b""  # executed again in the round trip of a cleaning
        self.by_hook = False  # the hook itself is to be called again after a cleaning
        self.lost = False  # a cleaning has undone it


class Notes(Watch):
    """What is noted of one connection."""

    foreign = False  # it is no connection of psycopg's: see `ForeignNotes`
    wrapped = False  # what is lent is a proxy of it
    client: ClientState  # the client's side as new

    def __init__(self) -> None:
        super().__init__()
        self.changed = False  # an attribute was set since the connection was as new
        self.dirty = False  # something was executed since the session was clean
        self.answered = False  # the server has answered a COMMIT, and nothing was executed since
        self.sends = False  # the last cleaning succeeded as a whole, so the next release need not wait for its answer
        self.cleaning: Sent | None = None  # one that was sent, and whose answer was not read yet
        # Valid for one wait only: an exception at any time, also of a signal handler, leaves nothing to the next.
        self.begin_within = 0  # the number of the wait in which a cursor sends the BEGIN with its statement
        self.begin_command = b""  # the BEGIN for it, if one is needed
        self.fatal = False  # the server has said that it is about to close the connection
        self.got_message = False  # it has sent a message since the last check
        self.failed: str | None = None  # the statement that aborted the transaction
        self.limit: Limit | None = None  # of the commands
        self.role: tuple[bytes | None, bytes | None] | None = None  # of the server, if it matters
        self.standby = False  # it was one when the connection was made; noted in a cluster only, as the time
        self.made = 0.0
        self.queries: QueryStatistics | None = None
        self.configuration = Configuration()
        # When the connection was closed in the middle of a command:
        self.cancel: Cancel | None = None  # stops the command on the server
        self.peer: socket.socket | None = None  # shows when the server has ended the session

    def on_message(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Take a message that is no answer to a query: a notice, or the last one of a session.

        In a crash and in an immediate shutdown the last one is only a WARNING.
        """
        self.got_message = True
        state = diagnostic.sqlstate or ""
        if diagnostic.severity_nonlocalized in ("FATAL", "PANIC") or state in failures.DEAD:
            self.fatal = True

    def note_failure(self, error: psycopg.Error) -> None:
        """Note which statement aborted a transaction.

        As text, because the error would keep its frames alive, and a lease.
        Without parameters and the server's message, which may repeat them. An
        error that only says that the transaction is aborted is not the cause.
        """
        if isinstance(error, (psycopg.errors.InFailedSqlTransaction, psycopg.errors.PipelineAborted)):
            return
        text = ""
        for query in steps.queries_in(error.__traceback__):
            with suppress(Exception):
                text = text_of(query)
            if text:
                break
        self.failed = f"{text or 'a statement'} ({type(error).__name__}, SQLSTATE {error.sqlstate})"


if TYPE_CHECKING:
    _Base = object  # mypy would compare each method with psycopg's
else:
    _Base = psycopg.Connection  # so that an existing connection's class can be changed to a subclass of this one


class Tracking(_Base):
    """Put before a connection class: notes that an attribute is set and that something runs, and limits its time."""

    _pooling: Notes
    _commits = _rolls_back = False  # the class has a commit() or rollback() of its own, which is to be called
    _wait: Callable[..., Any]  # the class's own; a call by super() would take twice as long

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["_pooling"] = Notes()
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        self._pooling.changed = True
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._pooling.changed = True
        super().__delattr__(name)

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """As psycopg's, within the time limit of the command."""
        notes = self._pooling
        notes.dirty = True
        notes.wait_number += 1
        notes.within = True
        try:
            if notes.limit is not None:
                left = notes.limit.left()
                gen = limited(gen, self, notes.limit, left)  # type: ignore[arg-type]
                if not args:
                    kwargs.setdefault("interval", pace(left))
            elif not (args or kwargs):
                return self._wait(gen)
            return self._wait(gen, *args, **kwargs)
        except psycopg.Error as error:
            if self.pgconn.transaction_status != IDLE:  # type: ignore[attr-defined]  # it aborts a transaction, or may
                notes.note_failure(error)
            if notes.stalled is not None:
                raise explained(notes, error)  # noqa: B904
            raise
        finally:
            notes.within = False

    def close(self) -> None:
        """As psycopg's; during a COMMIT, another thread only wakes the one that waits, which then closes it."""
        if self._pooling.waits:  # without psycopg's lock
            self._pooling.closing = True
            self._closed = True  # to psycopg this means: closed on purpose, not broken
            hang_up(self)  # type: ignore[arg-type]
        else:
            super().close()  # type: ignore[misc]

    def notifies(self, *args: Any, **kwargs: Any) -> Generator[psycopg.Notify, None, None]:
        """As psycopg's, with those that came with an answer that psycopg did not read."""
        notify(self)
        found: Generator[psycopg.Notify, None, None] = super().notifies(*args, **kwargs)  # type: ignore[misc]
        return found


class Measuring(Tracking):
    """Does that, and times queries."""

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Tracking.wait`."""
        queries = self._pooling.queries
        timer = None if queries is None else queries.timed(gen)
        if timer is None:
            return super().wait(gen, *args, **kwargs)
        with timer:
            return super().wait(gen, *args, **kwargs)


@functools.cache
def tracked(connection_class: type[C], measuring: bool) -> type[C]:
    """Return a subclass that looks like the class itself and keeps `Notes`."""
    first = Measuring if measuring else Tracking
    namespace = {
        "__module__": connection_class.__module__, "__doc__": connection_class.__doc__, "_wait": connection_class.wait,
        "_commits": connection_class.commit is not _COMMIT, "_rolls_back": connection_class.rollback is not _ROLLBACK,
    }  # fmt: skip
    made: type[C] = type(connection_class.__name__, (first, *_MIXINS, connection_class), namespace)
    made.__qualname__ = connection_class.__qualname__
    return made


_MIXINS: tuple[type, ...] = (
    *([beginning.Beginning] if beginning.AVAILABLE else []),
    *([commands.FastCommands] if commands.AVAILABLE else []),
    *([connecting.Connecting] if connecting.AVAILABLE else []),
    *([] if client_state.AVAILABLE else [client_state.PlainClient]),
)


def notes_of(conn: Connection) -> Notes:
    """Return the notes of a connection that a pool has made."""
    notes: Notes = conn._pooling  # type: ignore[attr-defined]
    return notes


def role_of(conn: Connection) -> tuple[bytes | None, bytes | None]:
    """Return whether the server is a standby, and read-only, as it reports without being asked (PostgreSQL 14)."""
    status = conn.pgconn.parameter_status
    return status(b"in_hot_standby"), status(b"default_transaction_read_only")


def rolled_back(conn: Connection, what: str) -> failures.TransactionRolledBack:
    """Return the error that says that an aborted transaction was not committed."""
    failed = notes_of(conn).failed or "a statement"
    return failures.TransactionRolledBack(
        f"{what} was rolled back: an error was caught before the end, after which nothing can be committed; "
        f"what failed: {failed}"
    )
