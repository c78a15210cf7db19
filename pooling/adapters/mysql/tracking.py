"""What is noted of one connection, by whatever driver."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

from ...core import hangup
from ..shared.limits import Limit
from ..shared.statistics import QueryStatistics
from .failures import rolls_back
from .statistics import text_of
from .wire import ESTABLISHED, PING, QUERY, Commands, spare_handle, tcp_state

__all__ = ["Connection", "Delaying", "Ending", "Noted", "Notes", "notes_of"]

Connection = Any  # of any driver

# The first letters of statements that stay in the session's database; SET AU is SET AUTOCOMMIT.
_STAYING = {
    b"SELECT", b"INSERT", b"UPDATE", b"DELETE", b"REPLAC", b"BEGIN", b"START ", b"COMMIT", b"ROLLBA", b"SAVEPO",
    b"RELEAS", b"SET AU",
}  # fmt: skip


class Configuration:
    """How one session is made as new, and what is known of the ``configure`` hook's effect on it."""

    __slots__ = ("cleaning", "committing", "staying", "committing_staying", "recorded", "by_hook", "lost")

    cleaning: Commands  # makes the session as new
    committing: Commands  # commits before that
    staying: Commands  # the same for a session that is still in its database: one command less
    committing_staying: Commands

    def __init__(self) -> None:
        self.recorded: list[tuple[int, bytes]] | None = None  # the commands of the hook, while it runs
        self.by_hook = False  # the hook itself is to be called after a cleaning
        self.lost = False  # a cleaning has undone what the hook did

    def clean_with(self, *steps: tuple[int, bytes], place: int | None, prefix: bytes) -> None:
        """Clean the session with these commands from now on.

        Args:
            steps: The commands.
            place: Which of them a session that is still in its database does not need; ``None``: it needs all.
            prefix: See `Driver.query_prefix`.
        """
        commit = (QUERY, b"COMMIT")
        staying = steps if place is None else (*steps[:place], *steps[place + 1 :])
        self.cleaning = Commands(*steps, prefix=prefix)
        self.committing = Commands(commit, *steps, prefix=prefix)
        self.staying = Commands(*staying, prefix=prefix)
        self.committing_staying = Commands(commit, *staying, prefix=prefix)


class Notes:
    """What is noted of one connection.

    Attributes:
        dirty: A command was sent since the session was clean.
        moved: A command was sent since then that may have chosen another database.
        answered: The server has answered a COMMIT, and nothing was sent since.
        unfinished: A command may still be running on the server, or its answer
            is still to be read: the connection is closed when it comes back.
        waits: Its holder waits for the answer to a command of its own.
        own: Its holder waits for commands of the pool.
        number: How many commands there were.
        stalled: Why another thread has shut the connection down.
        failed: The statement at which the server has rolled back the transaction.
        block: Which block ends the transaction; ``commit()`` is refused in it.
        ended: The last command was a COMMIT or ROLLBACK, so no transaction is open.
        autocommit_due: See `Delaying`.
        gone: The connection is lost, and the driver no longer says so.
    """

    __slots__ = (
        "dirty", "moved", "answered", "unfinished", "failed", "block", "limit", "queries", "client", "configuration",
        "place", "peer", "role", "status", "undoes", "waits", "own", "number", "stalled", "server", "made_at", "fd",
        "ended", "autocommit_due", "gone", "_poll", "_tcp_state",
    )  # fmt: skip

    client: Any  # the client's side as new

    def __init__(self) -> None:
        self.dirty = self.answered = self.unfinished = False
        self.moved = True
        self.failed: str | None = None
        self.block: str | None = None
        self.ended = self.autocommit_due = self.gone = False
        self.limit: Limit | None = None  # of the commands
        self.queries: QueryStatistics | None = None
        self.configuration = Configuration()
        self.place: tuple[int, str] | None = None  # the session's number, and this side's address as the server sees it
        self.peer: socket.socket | None = None  # shows when the server has ended the session
        self.role: str | None = None  # whether the server is read-only, as it said
        self.status = 0  # the server's flags, if the driver does not keep them
        self.undoes = False  # it rolls back the transaction after a lock wait timeout
        self.waits = self.own = False
        self.number = 0
        self.stalled: str | None = None
        self.server: tuple[str, ...] | None = None  # its name and port, if the session's number is its
        self.made_at = monotonic()
        self.fd: int | None = None  # the descriptor of its socket when it was made
        self._poll: Callable[[int], Any] | None = None
        self._tcp_state: Callable[[], bytes] | None = None

    def note_command(self, command: int, text: bytes) -> None:
        """Note a command that is about to be sent."""
        self.dirty = True
        self.answered = self.ended = False
        self.number += 1
        if not self.moved and command != PING:
            # One statement that begins like this cannot contain a USE, nor can what it calls.
            self.moved = command != QUERY or bytes(text[:6]).upper() not in _STAYING or b";" in text
        if self.configuration.recorded is not None:
            self.configuration.recorded.append((command, bytes(text)))

    def watch(self, fd: int | None, sock: Any) -> None:
        """Prepare `silent` and `hung_up` for the connection's descriptor, and its socket, if the driver has one."""
        self.fd, self._tcp_state = fd, tcp_state(sock)
        poll = hangup.native_poll()
        if fd is None or poll is None:
            self._poll = None
            return
        poller = poll()
        poller.register(fd, select.POLLIN | getattr(select, "POLLRDHUP", 0))
        self._poll = poller.poll

    def keep_peer(self, sock: Any) -> None:
        """Keep a second handle of a socket that is about to be closed after an error."""
        if sock is not None and self.peer is None and self.place is not None:
            self.peer = spare_handle(sock.fileno())

    def silent(self) -> bool:
        """Return whether nothing has come from the server, nor the end of the connection.

        A server sends nothing without being asked, but why it ends a session.
        """
        return self._poll is None or not self._poll(0)

    def hung_up(self) -> bool:
        """Return whether the peer has ended the connection.

        Where possible without giving the interpreter's lock away, as `silent` does:
        with 64 threads that cost 5 % of the time of a small transaction.
        """
        return not self.silent() if self._tcp_state is None else self._tcp_state()[0] != ESTABLISHED

    def note_failure(self, error: BaseException, query: Any) -> None:
        """Note a statement after whose failure nothing is left of its transaction."""
        if rolls_back(error) or (self.undoes and error.args and error.args[0] == 1205):
            self.failed = text_of(query)

    def note_success(self, query: Any) -> None:
        """Forget a failure that the borrower has dealt with: it begins again."""
        words = text_of(query).upper().split()
        if words[:1] in (["ROLLBACK"], ["BEGIN"], ["START"], ["COMMIT"]) and "TO" not in words:
            self.failed = None


class Noted:
    """What the pool's subclass of a driver's class of connections begins with."""

    _driver: Any  # the `Driver`, of the class

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["_pooling"] = Notes()
        super().__init__(*args, **kwargs)


class Ending(Noted):
    """Its methods that end a transaction."""

    def commit(self) -> None:
        """As the driver's; refused in a block that commits itself."""
        self._end("commit")

    def rollback(self) -> None:
        """As the driver's; refused in a block that commits itself."""
        self._end("rollback")

    def _end(self, what: str) -> None:
        notes = notes_of(self)
        if notes.block is not None:
            raise self._driver.programming(
                f"{what}() is not possible within {notes.block}, which ends the transaction"
            )
        try:
            getattr(super(), what)()
        except self._driver.error:
            raise
        except BaseException:
            notes.unfinished = True
            raise
        notes.failed = None
        notes.ended = True


class Delaying(Ending):
    """Its methods for autocommit, which can be turned on with the next command: if none follows, nothing is sent."""

    def autocommit(self, value: Any) -> None:
        """As the driver's."""
        notes = notes_of(self)
        if notes.autocommit_due and not value:
            notes.autocommit_due = False  # the server was not told, and need not be
        else:
            super().autocommit(value)  # type: ignore[misc]

    def get_autocommit(self) -> bool:
        """As the driver's."""
        return notes_of(self).autocommit_due or bool(super().get_autocommit())  # type: ignore[misc]

    def turn_autocommit_on(self) -> None:
        """Turn autocommit on, at the latest with the next command.

        If the connection is released before, or autocommit is turned off
        again, the round trip is saved. For connections that are cleaned.
        """
        notes = notes_of(self)
        if notes.ended:
            notes.autocommit_due = True
        else:
            self.autocommit(True)  # commits what was done

    def catch_up(self, notes: Notes) -> None:
        """Turn autocommit on if that is due."""
        try:
            notes.autocommit_due = False
            super().autocommit(True)  # type: ignore[misc]
        except BaseException:
            notes.autocommit_due = True
            raise


def notes_of(conn: Connection) -> Notes:
    """Return the notes of a connection that a pool has made."""
    notes: Notes = conn._pooling
    return notes
