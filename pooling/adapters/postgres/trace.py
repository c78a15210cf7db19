"""SQLSTATEs of failed attempts to connect, which libpq reads and does not pass on.

Uses ``PQtrace``, which writes what goes over the wire, TLS or not, to a file;
here to one in memory (``memfd_create``). The SQLSTATE is read from its text,
whose format libpq does not promise. Needs Linux and libpq 18 (earlier versions
trace only what comes after the authentication).

Gain: correctness, not speed. Only with a SQLSTATE it is known that an attempt
failed for good (a wrong password, no such database), so that borrowers get
`CreateFailed` at once, or that the server is up and full.
Without (another system, an older libpq, or ``POOLING_PLAIN=1``) such an error
is never final: borrowers get `PoolTimeout` after ``acquire_timeout``, with the
error as its cause.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg.errors import OperationalError
from psycopg.waiting import Wait

from .internals import available

__all__ = ["AVAILABLE", "Listener", "connect", "listening"]

AVAILABLE = (
    available("trace", "Connection._connect_gen", "PGconn.trace", "PGconn.untrace")
    and sys.platform == "linux"
    and hasattr(os, "memfd_create")
)

_TEXTS = 64  # that a listener learns at most: libpq keeps some memory for each attempt that it traces
_ERROR_RESPONSE = re.compile(rb'^[^\n]*\tErrorResponse\t[^\n]*? C "([0-9A-Z]{5})"', re.M)
# A context variable, not one of a thread: greenlets share a thread.
_attempt: ContextVar[list[str | None] | None] = ContextVar("attempt", default=None)


class Listener:
    """Finds the SQLSTATEs of one pool's failed attempts to connect.

    libpq keeps a stream of some 5 kB for each connection that it traced. So an
    attempt is traced only when the last one failed with an unknown text, and
    the first one. The SQLSTATE of a text is remembered, because the server
    repeats itself.

    An attempt that failed with an unknown text is made again at once, with
    tracing, to find out whether the error is final, or means that the server
    is up. Not if the last traced attempt ended without a message of the server:
    then it is down, and the next regular attempt is soon enough to trace its
    next message (P7).
    """

    def __init__(self) -> None:
        self.in_doubt = AVAILABLE  # the cause of the last failure is unknown: trace the next attempt
        self._silent = False  # the last failure came without a message of the server
        self._learnt: dict[str, tuple[str | None, ...]] = {}

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Surround one call of ``psycopg.connect``, so that `failures` can classify what it raises."""
        listens, self.in_doubt = self.in_doubt, False
        found: list[str | None] = []
        token = _attempt.set(found if listens else None)
        try:
            yield
            self._silent = False
        except psycopg.Error as error:
            text = str(error)
            if listens and len(self._learnt) < _TEXTS:
                self._learnt[text] = tuple(found)
            self.in_doubt = AVAILABLE and text not in self._learnt and len(self._learnt) < _TEXTS
            if text in self._learnt:
                self._silent = not any(self._learnt[text])
            _annotate(error, self._learnt.get(text, ()))
            raise
        finally:
            _attempt.reset(token)

    def asks_again(self) -> bool:
        """Return whether an attempt that has just failed is to be made again at once."""
        return self.in_doubt and not self._silent


def _annotate(error: psycopg.Error, states: tuple[str | None, ...]) -> None:
    """Store with the error what is known of it, and remove its connection, whose ``repr`` shows the password.

    The connection is ended at once, not when the last frame that refers to it
    is gone: its slot is about to be free (P2).
    """
    needs_password = bool(error.pgconn and error.pgconn.needs_password)
    if error.pgconn is not None:
        error.pgconn.finish()
    vars(error).update(_states=states, _needs_password=needs_password)
    if error.sqlstate is None and states:
        error.sqlstate = states[-1]
    error._pgconn = None


def listening() -> list[str | None] | None:
    """Return the list for the SQLSTATEs of the attempt in this context, ``None`` if it is not traced."""
    return _attempt.get()


def connect(
    conninfo: str, states: list[str | None], timeout: float = 0.0
) -> Generator[Any, Any, pq.abc.PGconn]:
    """Connect as psycopg's own generator does, and append the SQLSTATE of a refusal to ``states``."""
    number = len(states)
    states.append(None)
    deadline = monotonic() + timeout if timeout else None
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    file = os.memfd_create("trace")  # the trace contains the password: it never leaves memory
    try:
        pgconn.trace(file)
        try:
            while (status := _poll(pgconn)) != pq.PollingStatus.OK:
                reading = status == pq.PollingStatus.READING
                while not (yield pgconn.socket, Wait.R if reading else Wait.W):
                    if deadline is not None and monotonic() > deadline:
                        raise psycopg.errors.ConnectionTimeout("connection timeout expired")
        finally:
            pgconn.untrace()
    except OperationalError:
        found = _ERROR_RESPONSE.findall(os.pread(file, 1 << 16, 0))
        states[number] = found[-1].decode() if found else None
        raise
    finally:
        os.close(file)
    pgconn.nonblocking = 1
    return pgconn


def _poll(pgconn: pq.abc.PGconn) -> int:
    bad = pgconn.status == pq.ConnStatus.BAD
    status = pq.PollingStatus.FAILED if bad else pgconn.connect_poll()
    if status == pq.PollingStatus.FAILED:
        text = pgconn.error_message.decode("utf-8", "replace").strip()
        raise OperationalError(f"connection {'is bad' if bad else 'failed'}: {text}", pgconn=pgconn)
    return status
