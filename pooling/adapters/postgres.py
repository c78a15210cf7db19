"""PostgreSQL: a pool of psycopg 3 connections."""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from ..core.adapter import Adapter
from ..core.pool import Pool
from ..settings import PoolSettings

__all__ = ["PostgresPool", "PostgresAdapter"]

Connection = psycopg.Connection[Any]
Params = Sequence[Any] | Mapping[str, Any]

#: Seconds that a close waits for the server to have ended its side.
CLOSE_WAIT = 0.2

# What psycopg keeps of a borrower's wishes on the client's side.
_WISHES = (
    "autocommit", "isolation_level", "read_only", "deferrable",
    "row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold",
)  # fmt: skip
_READ_ONLY_SERVER = "25006"  # a primary became a standby: alive, and useless


class PostgresPool(Pool[Connection]):
    """Lends psycopg connections.

    Example::

        db = PostgresPool("postgresql://app@db/orders", PoolSettings(max_size=20))
        with db.connection() as conn:                 # commit, or roll back on an error
            conn.execute("INSERT INTO orders VALUES (%s)", (order,))
        rows = db.execute_query("SELECT * FROM orders WHERE id = %s", (1,))

    Args:
        conninfo: A URL or ``key=value`` text as for ``psycopg.connect``; empty
            means the ``PG*`` variables of the environment.
        settings: Size, ages and time limits; ``None`` means the defaults.
        kwargs: Further arguments of ``psycopg.connect``, such as
            ``{"autocommit": True}``. Its ``connect_timeout`` is by default the
            settings' ``create_timeout``.
        configure: Called with each new connection; what it did is committed.
        name: How the pool is called in messages.

    Raises:
        ValueError: ``conninfo`` is not one. The message leaves it out, because
            it may hold a password.
    """

    def __init__(
        self,
        conninfo: str = "",
        settings: PoolSettings | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
        configure: Callable[[Connection], object] | None = None,
        name: str | None = None,
    ) -> None:
        settings = settings or PoolSettings()
        adapter = PostgresAdapter(conninfo, settings, kwargs=kwargs, configure=configure)
        super().__init__(adapter=adapter, settings=settings, name=name)

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Connection]:
        """Lend a connection for one transaction: committed at the end, rolled back on an error.

        Args:
            timeout: Seconds to wait for a connection; ``None`` means the
                pool's ``acquire_timeout``.

        Raises:
            PoolTimeout: None came in time.
            CreateFailed: None can be made, and trying again would not help.
            psycopg.Error: As from psycopg, the commit's included.
        """
        # Skipped frames: this one is 0, contextlib's __enter__ is 1, its caller is the holder.
        with self._acquire_for(timeout, 2) as conn, conn:
            yield conn

    def execute_query(self, sql: str, params: Params | None = None) -> list[Any]:
        """Execute one statement in a transaction of its own and return its rows.

        Args:
            sql: The statement, with ``%s`` or ``%(name)s`` for parameters.
            params: Their values. With ``None`` a ``%`` in ``sql`` is just that.

        Returns:
            The rows; none for a statement that has no result.

        Raises:
            PoolTimeout: No connection came in time.
            psycopg.Error: As from psycopg.
        """
        with self._acquire_for(None, 1) as conn, conn:
            cursor = conn.execute(sql, params)
            return cursor.fetchall() if cursor.description else []


class PostgresAdapter(Adapter[Connection]):
    """How connections are made and kept; see :class:`PostgresPool` for the arguments.

    Round trips go through libpq's non-blocking calls, because psycopg's own
    have no time limit: on a network that swallows packets they never return.
    """

    noun = "connection"
    bounded = True

    def __init__(
        self,
        conninfo: str,
        settings: PoolSettings,
        *,
        kwargs: Mapping[str, Any] | None = None,
        configure: Callable[[Connection], object] | None = None,
    ) -> None:
        try:
            given = conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError:
            raise ValueError(
                "conninfo is neither a postgresql:// URL nor key=value pairs"
            ) from None
        # libpq takes whole seconds, two or more
        limit = {"connect_timeout": max(2, math.ceil(settings.create_timeout))}
        self._conninfo = conninfo
        self._kwargs = {key: limit[key] for key in limit.keys() - given} | dict(kwargs or {})
        self._configure = configure
        self._query = (settings.validation_query or "SELECT 1").encode()
        self._reset_timeout = settings.reset_timeout

    def create(self) -> Connection:
        try:
            conn: Connection = psycopg.connect(self._conninfo, **self._kwargs)
        except psycopg.Error as error:
            raise _without_secrets(error)  # noqa: B904
        try:
            self._prepare(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def is_alive(self, resource: Connection) -> bool:
        if resource.closed:
            return False
        notes = _notes(resource)
        try:
            # Readable is not yet dead: it may be a NOTIFY, which libpq keeps. And a dead one
            # can be read without an error first: the server's last words, before it hangs up.
            while not notes.fatal and _ready(resource.fileno(), 0.0):
                resource.pgconn.consume_input()
                resource.pgconn.is_busy()  # parses what came, and so calls notes.hear()
        except (psycopg.Error, OSError, ValueError):
            return False
        return not notes.fatal

    def validate(self, resource: Connection, timeout: float) -> None:
        _round_trip(resource, self._query, timeout)

    def reset(self, resource: Connection) -> None:
        if resource.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            _round_trip(resource, b"ROLLBACK", self._reset_timeout)
            resource._prepared.clear()  # as psycopg does: they may name what is no more
        for name, value in _notes(resource).as_new.items():
            if getattr(resource, name) != value:
                setattr(resource, name, value)

    def close(self, resource: Connection) -> None:
        try:
            peer = _second_handle(resource)
        except (OSError, psycopg.Error):  # closed already, or no descriptor to spare
            resource.close()
            return
        with peer:
            resource.close()
            _wait_for_end(peer, CLOSE_WAIT)

    def interrupt(self, resource: Connection) -> None:
        with suppress(OSError, psycopg.Error), _second_handle(resource) as peer:
            peer.shutdown(socket.SHUT_RDWR)

    def abandon(self, resource: Connection) -> None:
        # libpq says Terminate when it is freed, at the latest at exit; now to nobody.
        sink = os.open(os.devnull, os.O_RDWR)
        os.dup2(sink, resource.fileno())
        os.close(sink)

    def is_broken(self, resource: Connection, error: BaseException) -> bool:
        return resource.closed or getattr(error, "sqlstate", None) == _READ_ONLY_SERVER

    def is_final(self, error: BaseException) -> bool:
        return bool(vars(error).get("_needs_password"))

    def _prepare(self, conn: Connection) -> None:
        conn._pool = self  # type: ignore[assignment]  # `with conn` then ends a transaction only
        notes = vars(conn)["_pooling_notes"] = _Notes()
        conn.add_notice_handler(notes.hear)
        if self._configure is not None:
            self._configure(conn)
            conn.commit()
        notes.as_new = {name: getattr(conn, name) for name in _WISHES}


class _Notes:
    """What the adapter keeps with each connection."""

    def __init__(self) -> None:
        self.fatal = False  # the server has said why it is about to hang up
        self.as_new: dict[str, Any] = {}

    def hear(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Take a message that came while no query ran: a notice, or a last one."""
        if diagnostic.severity_nonlocalized in ("FATAL", "PANIC"):
            self.fatal = True


def _notes(conn: Connection) -> _Notes:
    notes: _Notes = vars(conn)["_pooling_notes"]
    return notes


def _without_secrets(error: psycopg.Error) -> psycopg.Error:
    """Take out the failed connection, whose ``repr`` shows the password.

    What it tells is kept: that the server wants a password and was given none.
    The text is of no use for that, it comes in the server's language; that a
    password was *wrong* does not show at all, since a server that is full also
    refuses after it was sent.
    """
    vars(error)["_needs_password"] = bool(error.pgconn and error.pgconn.needs_password)
    error._pgconn = None
    return error


def _round_trip(conn: Connection, query: bytes, timeout: float) -> None:
    """Execute ``query`` and forget its result, within ``timeout`` seconds or raise."""
    deadline = time.monotonic() + timeout
    pgconn = conn.pgconn
    pgconn.send_query(query)
    pgconn.flush()  # a short query to an idle connection fits the socket's buffer
    while True:
        while pgconn.is_busy():
            if not _ready(conn.fileno(), max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"no answer from the server within {timeout:g} s")
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)


if hasattr(select, "poll"):

    def _ready(fd: int, timeout: float) -> bool:
        poll = select.poll()  # select.select() knows no descriptor above 1023
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

else:  # Windows, whose descriptors are few in a set, not low in number

    def _ready(fd: int, timeout: float) -> bool:
        return bool(select.select([fd], [], [], timeout)[0])


def _second_handle(conn: Connection) -> socket.socket:
    """Return a socket of our own for the connection, which libpq knows nothing of."""
    fd = socket.dup(conn.fileno())
    try:
        return socket.socket(fileno=fd)
    except BaseException:
        socket.close(fd)
        raise


def _wait_for_end(peer: socket.socket, timeout: float) -> None:
    """Read until the server closes: until then it counts the connection as open."""
    deadline = time.monotonic() + timeout
    with suppress(OSError):  # a timeout, or the peer's reset
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(4096):
                return


PostgresPool.__module__ = "pooling"  # where users import it from
