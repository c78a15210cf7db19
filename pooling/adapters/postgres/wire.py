"""Round trips with a time limit, and sockets of our own.

They go through libpq's non-blocking calls, because psycopg's own wait for
ever: on a network that swallows packets they never return.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Wait

from ...core.runtime.gevent import patched

__all__ = [
    "Cancel", "answers", "copying", "exchange", "execute", "failed_at", "hang_up", "may_block", "notify",
    "refuse_failed", "round_trip", "spare_handle", "wait_for_end"
]  # fmt: skip

Connection = psycopg.Connection[Any]
_FATAL = int(pq.ExecStatus.FATAL_ERROR)
_BAD = int(pq.ConnStatus.BAD)
_SQLSTATE = int(pq.DiagnosticField.SQLSTATE)
_COPYING = frozenset(int(pq.ExecStatus[name]) for name in ("COPY_IN", "COPY_OUT", "COPY_BOTH"))
WAIT_R, WAIT_W, WAIT_RW, READY_NONE = int(Wait.R), int(Wait.W), int(Wait.RW), 0


_PEEKED = 1024  # bytes: what a cleaning is answered with is some 300
try:
    import ctypes

    _Buffer, _byte = ctypes.c_char * _PEEKED, (ctypes.c_char * 1)()
    _MSG_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
    _peek: Any = ctypes.PyDLL(None).recv  # with the GIL: it does not wait
    _peek.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _peek.restype = ctypes.c_ssize_t
except (ImportError, AttributeError, OSError, TypeError):  # Windows, or a Python without it
    _peek = None


def round_trip(conn: Connection, query: bytes, timeout: float | None) -> list[PGresult]:
    """Execute ``query``, without parameters, see that it worked, and return what was answered.

    Args:
        conn: A connection on which nothing is under way.
        query: One statement, or several with semicolons between.
        timeout: Seconds for all of it; ``None`` means no limit.

    Raises:
        TimeoutError: The answer was not complete in time; it may still come.
        psycopg.Error: The first statement that failed; those after it were not
            executed. Of both `failed_at` says at which statement it was.
    """
    pgconn, deadline = conn.pgconn, _Deadline(timeout)
    results: list[PGresult] = []
    try:
        for wish in exchange(pgconn, query, results):
            deadline.wait(pgconn.socket, wish)
    except (psycopg.Error, TimeoutError) as problem:
        refuse_failed(results)  # its last words tell more than that it has hung up
        vars(problem)["_failed_at"] = len(results)
        raise
    refuse_failed(results)
    return results


def exchange(pgconn: PGconn, query: bytes, results: list[PGresult]) -> Generator[int, Any, None]:
    """Send ``query``, and collect what is answered as `answers` does."""
    pgconn.send_query(query)
    return answers(pgconn, results, b";" in query)


def answers(pgconn: PGconn, results: list[PGresult], several: bool = False) -> Generator[int, Any, None]:
    """Collect what is answered to a query that was sent, in steps: each yields what is to be waited for.

    As psycopg's ``generators.execute()`` does it, with about half of its turns at
    the GIL, each of which is a turn of the whole line: psycopg lets go of it for
    some of libpq's calls, and asks ``PQisBusy`` and ``PQnotifies`` before each result.

    Args:
        pgconn: What it was sent with.
        results: Takes them; also those that came before an error.
        several: Whether they are many, and short: with one alone a look ahead
            at all of them would cost more than it saves.
    """
    is_busy, get_result = pgconn.is_busy, pgconn.get_result
    try:
        while pgconn.flush():  # more than the socket's buffer takes: the network is stuck
            yield WAIT_RW
            pgconn.consume_input()
        while True:
            if (yield WAIT_R) == READY_NONE:
                continue  # psycopg looks around while it waits
            complete = several and _has_answered(pgconn.socket)
            pgconn.consume_input()
            # Else libpq would wait itself, without limit and without letting go of the GIL.
            while complete or not is_busy():
                result = get_result()
                if result is None:
                    return
                results.append(result)
                if result.status in _COPYING:  # libpq gives the same again until it is done
                    return
    except psycopg.Error:
        # What libpq has read when it could not send: why the server has hung up. While it has not, libpq would wait.
        last = get_result() if pgconn.status == _BAD else None
        if last is not None and not _is_lost(last):
            results.append(last)
        raise


def copying(pgconn: PGconn) -> bool:
    """Whether a COPY is under way; it may not go on after this look."""
    with suppress(psycopg.Error):
        pgconn.consume_input()
        result = None if pgconn.is_busy() else pgconn.get_result()
        return result is not None and result.status in _COPYING
    return False


def _has_answered(fd: int) -> bool:
    """Whether what has come in ends with ReadyForQuery; the kernel is asked, who tells without a turn at the GIL.

    That cannot be mistaken: no text holds a zero byte. On an encrypted
    connection it is never seen.
    """
    if _peek is None:
        return False
    buffer = _Buffer()
    end = _peek(fd, buffer, _PEEKED, _MSG_PEEK)
    return end > 5 and buffer.raw[end - 6 : end - 1] == b"Z\0\0\0\5"


def may_block(pgconn: PGconn) -> bool:
    """Whether this thread may wait within libpq for a statement: it handles no signals, and is no greenlet of many.

    Nothing may have come, either: that may be why the server has hung up, which is for `answers` to hear.
    """
    if _peek is None or threading.get_ident() == threading.main_thread().ident or patched():
        return False
    return bool(_peek(pgconn.socket, _byte, 1, _MSG_PEEK) < 0)


def execute(pgconn: PGconn, statement: bytes) -> PGresult:
    """Execute one statement, see that it worked and return its result; only if `may_block`.

    That is one turn at the GIL, which takes psycopg nine and `exchange` five; each is a turn of the whole
    line. Nothing but the server's answer ends it. For queries, which may take long, that is too much.

    Raises:
        psycopg.Error: It failed.
    """
    result = pgconn.exec_(statement)
    if _is_lost(result):
        raise psycopg.OperationalError(pq.error_message(pgconn))
    refuse_failed([result])
    return result


def _is_lost(result: PGresult) -> bool:
    """Whether it says in libpq's words, not in the server's, that the connection is lost."""
    return result.status == _FATAL and result.error_field(_SQLSTATE) is None


def notify(conn: Any) -> None:
    """Tell of the notifications that came, as psycopg does: its handlers, or it keeps them."""
    pgconn = conn.pgconn
    while (notification := pgconn.notifies()) is not None and pgconn.notify_handler is not None:
        pgconn.notify_handler(notification)


def refuse_failed(results: list[PGresult]) -> None:
    """Raise what the server said, if it said that a statement failed: the ones after it were not executed."""
    if not results or results[-1].status != _FATAL:
        return
    number, failed = next((at, one) for at, one in enumerate(results) if one.status == _FATAL)
    error: psycopg.Error = psycopg.errors.error_from_result(failed)
    vars(error)["_failed_at"] = number
    raise error from None


def failed_at(error: BaseException) -> int:
    """Return the place of the statement that made `round_trip` raise, from 0."""
    return int(vars(error).get("_failed_at", 0))


class _Deadline:
    __slots__ = ("_end", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        if timeout is not None:
            self._end = time.monotonic() + timeout

    def wait(self, fd: int, wish: int, lacking: str = "no answer from the server") -> None:
        timeout = self._timeout
        left = None if timeout is None else max(0.0, self._end - time.monotonic())
        if not _ready(fd, left, wish):
            raise TimeoutError(f"{lacking} within {round(timeout or 0.0, 3):g} s")


if hasattr(select, "poll"):
    _EVENTS = {WAIT_R: select.POLLIN, WAIT_W: select.POLLOUT, WAIT_RW: select.POLLIN | select.POLLOUT}

    def _ready(fd: int, timeout: float | None, wish: int) -> bool:
        poll = select.poll()  # select.select() knows no descriptor above 1023
        poll.register(fd, _EVENTS[wish])
        return bool(poll.poll(None if timeout is None else timeout * 1000))

else:  # Windows, whose descriptors are few in a set, not low in number

    def _ready(fd: int, timeout: float | None, wish: int) -> bool:
        reads, writes = [fd] if wish & WAIT_R else [], [fd] if wish & WAIT_W else []
        readable, writable, _ = select.select(reads, writes, [], timeout)
        return bool(readable or writable)


def spare_handle(conn: Connection) -> socket.socket | None:
    """Return a socket of our own for the connection, which libpq knows nothing of.

    ``None``: it is closed already, or there is no descriptor to spare.
    """
    with suppress(OSError, psycopg.Error):
        fd = socket.dup(conn.fileno())
        try:
            return socket.socket(fileno=fd)
        except BaseException:
            socket.close(fd)
            raise
    return None


def hang_up(conn: Connection) -> None:
    """End what a connection's holder waits for, without a descriptor of our own, and without libpq."""
    with suppress(OSError, psycopg.Error):  # it has ended
        handle = socket.socket(fileno=conn.fileno())
        try:
            handle.shutdown(socket.SHUT_RDWR)
        finally:
            handle.detach()


class Cancel:
    """Asks the server to stop what it does for a connection; also when that is closed here by then.

    By hand, because psycopg's own needs the connection to be open, and begins
    anew with each try. Before libpq 17 it is unencrypted, and has no limit but
    ``tcp_user_timeout``: ``bounded`` says so.
    """

    def __init__(self, conn: Connection) -> None:
        self.bounded = psycopg.capabilities.has_cancel_safe()
        self._handle: Any = conn.pgconn.cancel_conn() if self.bounded else conn.pgconn.get_cancel()
        self._step = self._begin if self.bounded else self._at_once
        self.done = False

    def send(self, timeout: float) -> None:
        """Send it, or go on where the last try ended.

        Raises:
            TimeoutError: It is not through yet.
            psycopg.Error: The server cannot be reached; the next try begins anew.
        """
        deadline = _Deadline(timeout)
        while not self.done:
            self._step(deadline)

    def _at_once(self, deadline: _Deadline) -> None:
        self._handle.cancel()
        self.done = True

    def _begin(self, deadline: _Deadline) -> None:
        self._handle.start()
        self._wish, self._step = WAIT_W, self._go_on

    def _go_on(self, deadline: _Deadline) -> None:
        deadline.wait(self._handle.socket, self._wish, "no cancel was sent")
        status = self._handle.poll()
        self._wish = WAIT_W if status == pq.PollingStatus.WRITING else WAIT_R
        self.done = status == pq.PollingStatus.OK
        if status == pq.PollingStatus.FAILED:
            text = self._handle.get_error_message()
            self._handle.reset()
            self._step = self._begin
            raise psycopg.OperationalError(f"a cancel could not be sent: {text}")


def wait_for_end(peer: socket.socket, timeout: float) -> None:
    """Read until the server closes: until then it counts the connection as open."""
    deadline = time.monotonic() + timeout
    with suppress(OSError):  # a timeout, or the peer's reset
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(4096):
                return
