"""What is noted of one connection, by whatever driver."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

from ...core import hangup
from ..shared.limits import Limit
from ..shared.statistics import QueryStatistics
from .failures import rolls_back
from .statistics import text_of
from .wire import QUERY, Commands, spare_handle

__all__ = ["Connection", "Notes", "notes_of"]

Connection = Any  # of any driver


class Configuration:
    """How one session is made as new, and what is known of the ``configure`` hook's effect on it."""

    __slots__ = ("cleaning", "committing", "recorded", "by_hook", "lost")

    cleaning: Commands  # makes the session as new
    committing: Commands  # commits before that

    def __init__(self) -> None:
        self.recorded: list[tuple[int, bytes]] | None = None  # the commands of the hook, while it runs
        self.by_hook = False  # the hook itself is to be called after a cleaning
        self.lost = False  # a cleaning has undone what the hook did

    def clean_with(self, *steps: tuple[int, bytes], prefix: bytes) -> None:
        """Clean the session with these commands from now on."""
        self.cleaning = Commands(*steps, prefix=prefix)
        self.committing = Commands((QUERY, b"COMMIT"), *steps, prefix=prefix)


class Notes:
    """What is noted of one connection.

    Attributes:
        dirty: A command was sent since the session was clean.
        answered: The server has answered a COMMIT, and nothing was sent since.
        unfinished: A command may still be running on the server, or its answer
            is still to be read: the connection is closed when it comes back.
        failed: The statement at which the server has rolled back the transaction.
        block: Which block ends the transaction; ``commit()`` is refused in it.
    """

    __slots__ = (
        "dirty", "answered", "unfinished", "failed", "block", "limit", "queries", "client", "configuration", "place",
        "peer", "role", "status", "undoes", "_poll",
    )  # fmt: skip

    client: Any  # the client's side as new

    def __init__(self) -> None:
        self.dirty = self.answered = self.unfinished = False
        self.failed: str | None = None
        self.block: str | None = None
        self.limit: Limit | None = None  # of the commands
        self.queries: QueryStatistics | None = None
        self.configuration = Configuration()
        self.place: tuple[int, str] | None = None  # the session's number, and this side's address as the server sees it
        self.peer: socket.socket | None = None  # shows when the server has ended the session
        self.role: str | None = None  # whether the server is read-only, as it said
        self.status = 0  # the server's flags, if the driver does not keep them
        self.undoes = False  # it rolls back the transaction after a lock wait timeout
        self._poll: Callable[[int], Any] | None = None

    def watch(self, fd: int | None) -> None:
        """Prepare `silent` for the connection's descriptor."""
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

    def note_failure(self, error: BaseException, query: Any) -> None:
        """Note a statement after whose failure nothing is left of its transaction."""
        if rolls_back(error) or (self.undoes and error.args and error.args[0] == 1205):
            self.failed = text_of(query)

    def note_success(self, query: Any) -> None:
        """Forget a failure that the borrower has dealt with: it begins again."""
        words = text_of(query).upper().split()
        if words[:1] in (["ROLLBACK"], ["BEGIN"], ["START"], ["COMMIT"]) and "TO" not in words:
            self.failed = None


def notes_of(conn: Connection) -> Notes:
    """Return the notes of a connection that a pool has made."""
    notes: Notes = conn._pooling
    return notes
