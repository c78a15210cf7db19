"""Round trips with a time limit, and sockets of connections.

Round trips use libpq's non-blocking calls, because psycopg's have no limit: on
a network that drops packets they never return.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Wait

from .libpq import is_busy, take_notification

__all__ = [
    "Cancel", "Sent", "answers", "copying", "exchange", "failed_at", "hang_up", "is_lost", "notify",
    "refuse_failed", "round_trip", "spare_handle", "wait_for_end",
]  # fmt: skip

Connection = psycopg.Connection[Any]
_FATAL = int(pq.ExecStatus.FATAL_ERROR)
_BAD = int(pq.ConnStatus.BAD)
_SQLSTATE = int(pq.DiagnosticField.SQLSTATE)
_ABORTED = int(pq.ExecStatus.PIPELINE_ABORTED)
_COPYING = frozenset(int(pq.ExecStatus[name]) for name in ("COPY_IN", "COPY_OUT", "COPY_BOTH"))
_MOST_LAST = 4  # results of a lost connection: of the BEGIN, its end, the error
_LAST = _COPYING | {int(pq.ExecStatus.PIPELINE_SYNC)}
WAIT_R, WAIT_W, WAIT_RW, READY_NONE = int(Wait.R), int(Wait.W), int(Wait.RW), 0


def round_trip(conn: Connection, query: bytes, timeout: float | None) -> list[PGresult]:
    """Execute ``query``, without parameters, and return its results.

    Args:
        conn: A connection on which nothing is under way.
        query: One statement, or several separated by semicolons.
        timeout: Seconds for all of it; ``None`` means no limit.

    Raises:
        TimeoutError: The answer was not complete in time; it may still come.
        psycopg.Error: A statement failed; those after it were not executed.
            `failed_at` tells which one it was, for both errors.
    """
    pgconn, deadline = conn.pgconn, _Deadline(timeout)
    results: list[PGresult] = []
    try:
        pgconn.send_query(query)
        for wanted in answers(pgconn, results):
            deadline.wait(pgconn.socket, wanted)
    except (psycopg.Error, TimeoutError) as problem:
        refuse_failed(results, pgconn)  # the server's last message says more than that it has closed the connection
        vars(problem)["_failed_at"] = len(results)
        raise
    refuse_failed(results, pgconn)
    return results


class Sent:
    """A query that was sent, and whose answer is still to come.

    Args:
        conn: A connection on which nothing is under way.
        query: As for `round_trip`; none of it is a COPY.
        timeout: Seconds for all of it.
    """

    __slots__ = ("_answers", "_end", "_pgconn", "_results", "_timeout")

    def __init__(self, conn: Connection, query: bytes, timeout: float) -> None:
        self._timeout, self._end = timeout, time.monotonic() + timeout
        self._pgconn = conn.pgconn
        self._results: list[PGresult] = []
        self._pgconn.send_query(query)
        self._answers = answers(self._pgconn, self._results)
        next(self._answers)  # as far as the wait for the answer

    def has_ended(self, timeout: float) -> bool:
        """Return whether the answer is complete; wait for that at most ``timeout`` seconds.

        Raises:
            TimeoutError, psycopg.Error: As `round_trip`.
        """
        until = time.monotonic() + timeout
        try:
            for wanted in self._answers:
                now = time.monotonic()
                if timeout <= 0 and now < self._end:
                    return False  # what has come was read
                # First: more may have come than was read at once.
                if _ready(self._pgconn.socket, max(0.0, min(until, self._end) - now), wanted):
                    continue
                if now >= self._end:
                    raise TimeoutError(f"no answer from the server within {round(self._timeout, 3):g} s")
                if now >= until:
                    return False
        except (psycopg.Error, TimeoutError) as problem:
            refuse_failed(self._results, self._pgconn)
            vars(problem)["_failed_at"] = len(self._results)
            raise
        refuse_failed(self._results, self._pgconn)
        return True


def exchange(pgconn: PGconn, query: bytes, results: list[PGresult]) -> Generator[int, Any, None]:
    """Send ``query``, and collect the results as `answers` does."""
    pgconn.send_query(query)
    return answers(pgconn, results)


def answers(pgconn: PGconn, results: list[PGresult], pipeline: bool = False) -> Generator[int, Any, None]:
    """Collect the results of a query that was sent; yields for what to wait.

    As psycopg's ``generators.execute()`` does, but without releasing the GIL
    before each result, see `libpq`, and without looking for notifications.

    Args:
        pgconn: The connection.
        results: Where to put them; also those that came before an error.
        pipeline: Whether to end a pipeline first; the last result is that of this ``pipeline_sync()``.
    """
    get_result = pgconn.get_result
    try:
        if pipeline:
            pgconn.pipeline_sync()
        while pgconn.flush():  # more than the socket's buffer takes: the network is stuck
            yield WAIT_RW
            pgconn.consume_input()
        while True:
            if (yield WAIT_R) == READY_NONE:
                continue  # psycopg wakes up at intervals, to handle signals
            pgconn.consume_input()
            while not is_busy(pgconn):
                result = get_result()
                if result is None:
                    return
                results.append(result)
                if result.status in _LAST:  # libpq returns that of a COPY again until it has ended
                    return
                if pipeline:
                    get_result()  # the end of the command: nothing to wait for
    except psycopg.Error:
        _last_words(pgconn, results)
        raise


def _last_words(pgconn: PGconn, results: list[PGresult]) -> None:
    """Add what libpq has read when it could not send: why the server has closed the connection."""
    for _ in range(_MOST_LAST):
        if pgconn.status != _BAD:
            return  # libpq would wait
        last = pgconn.get_result()
        if last is None:
            continue  # the end of a command
        if is_lost(last):
            return
        results.append(last)
        if last.status == _FATAL:
            return


def copying(pgconn: PGconn) -> bool:
    """Return whether a COPY is under way; it may not be continued after this call."""
    with suppress(psycopg.Error):
        pgconn.consume_input()
        result = None if is_busy(pgconn) else pgconn.get_result()
        return result is not None and result.status in _COPYING
    return False


def is_lost(result: PGresult) -> bool:
    """Return whether a result is an error of libpq, not of the server: the connection is lost."""
    return result.status == _FATAL and result.error_field(_SQLSTATE) is None


def notify(conn: Any) -> None:
    """Pass on the notifications that came, as psycopg does: to the handlers, or else psycopg keeps them."""
    pgconn = conn.pgconn
    while (notification := take_notification(pgconn)) is not None and pgconn.notify_handler is not None:
        pgconn.notify_handler(notification)


def refuse_failed(results: list[PGresult], pgconn: PGconn) -> None:
    """Raise the server's error if a statement failed: the ones after it were not executed."""
    if not results or results[-1].status not in (_FATAL, _ABORTED):
        return
    number, failed = next((at, one) for at, one in enumerate(results) if one.status == _FATAL)
    encoding = psycopg.ConnectionInfo(pgconn).encoding
    error: psycopg.Error = psycopg.errors.error_from_result(failed, encoding=encoding)
    vars(error)["_failed_at"] = number
    raise error from None


def failed_at(error: BaseException) -> int:
    """Return the number of the statement that made `round_trip` raise, from 0."""
    return int(vars(error).get("_failed_at", 0))


class _Deadline:
    __slots__ = ("_end", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        if timeout is not None:
            self._end = time.monotonic() + timeout

    def wait(self, fd: int, wanted: int, failure: str = "no answer from the server") -> None:
        timeout, left = self._timeout, None
        if timeout is not None:
            left = self._end - time.monotonic()
            if left < 0.0:
                left = 0.0
        if not _ready(fd, left, wanted):
            raise TimeoutError(f"{failure} within {round(timeout or 0.0, 3):g} s")


if hasattr(select, "poll"):
    _EVENTS = {WAIT_R: select.POLLIN, WAIT_W: select.POLLOUT, WAIT_RW: select.POLLIN | select.POLLOUT}

    def _ready(fd: int, timeout: float | None, wanted: int) -> bool:
        poll = select.poll()  # select.select() takes no descriptor above 1023
        poll.register(fd, _EVENTS[wanted])
        return bool(poll.poll(None if timeout is None else timeout * 1000))

else:  # Windows, where select() limits the number of descriptors, not their values

    def _ready(fd: int, timeout: float | None, wanted: int) -> bool:
        reads, writes = [fd] if wanted & WAIT_R else [], [fd] if wanted & WAIT_W else []
        readable, writable, _ = select.select(reads, writes, [], timeout)
        return bool(readable or writable)


def spare_handle(conn: Connection) -> socket.socket | None:
    """Return a second socket for the connection, which outlives libpq's own.

    ``None``: it is closed already, or the process has no descriptor left.
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
    """Shut a connection's socket down, so that its holder stops waiting; uses no descriptor and no call of libpq."""
    with suppress(OSError, psycopg.Error):  # it is closed already
        handle = socket.socket(fileno=conn.fileno())
        try:
            handle.shutdown(socket.SHUT_RDWR)
        finally:
            handle.detach()


class Cancel:
    """A cancel request for what the server does for a connection, which may be closed here meanwhile.

    Not psycopg's, which needs an open connection and starts again with each
    attempt. Before libpq 17 it is unencrypted and has no time limit but
    ``tcp_user_timeout``; ``bounded`` is false then.
    """

    def __init__(self, conn: Connection) -> None:
        self.bounded = psycopg.capabilities.has_cancel_safe()
        self._handle: Any = conn.pgconn.cancel_conn() if self.bounded else conn.pgconn.get_cancel()
        self._step = self._start if self.bounded else self._send_blocking
        self.done = False

    def send(self, timeout: float) -> None:
        """Send it, or continue where the last attempt ended.

        Args:
            timeout: Seconds for this attempt.

        Raises:
            TimeoutError: It is not sent yet.
            psycopg.Error: The server cannot be reached; the next attempt starts again.
        """
        deadline = _Deadline(timeout)
        while not self.done:
            self._step(deadline)

    def _send_blocking(self, deadline: _Deadline) -> None:
        self._handle.cancel()
        self.done = True

    def _start(self, deadline: _Deadline) -> None:
        self._handle.start()
        self._wanted, self._step = WAIT_W, self._continue

    def _continue(self, deadline: _Deadline) -> None:
        deadline.wait(self._handle.socket, self._wanted, "the cancel request was not sent")
        status = self._handle.poll()
        self._wanted = WAIT_W if status == pq.PollingStatus.WRITING else WAIT_R
        self.done = status == pq.PollingStatus.OK
        if status == pq.PollingStatus.FAILED:
            text = self._handle.get_error_message()
            self._handle.reset()
            self._step = self._start
            raise psycopg.OperationalError(f"the cancel request could not be sent: {text}")


def wait_for_end(peer: socket.socket, timeout: float) -> bool:
    """Wait until the server closes its side, at most ``timeout`` seconds: until then it counts the connection.

    Returns:
        Whether it has closed it.
    """
    deadline = time.monotonic() + timeout
    with suppress(OSError):  # a timeout, or the peer's reset
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(4096):
                return True
    return False
