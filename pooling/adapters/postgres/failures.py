"""What an error of PostgreSQL means for a connection, a creation, a transaction.

By SQLSTATE, never by text, which comes in the server's language. The codes are
those of "Appendix A. PostgreSQL Error Codes" of the PostgreSQL 18 manual.

An error while *connecting* has no SQLSTATE: libpq reads it and keeps it to
itself. It tells, though, what goes over the wire (``PQtrace``), TLS or not, and
there the code stands. On Linux, where psycopg has it, and with libpq 18 (before, it
told only of what came after the authentication); elsewhere such an error is
never final.
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

from ... import errors

__all__ = [
    "DEAD", "READ_ONLY", "Listener", "TransactionRolledBack", "connect", "ended_by", "in_doubt", "is_full",
    "is_hopeless", "is_stale", "listening", "repeatable", "sqlstates",
]  # fmt: skip

#: SQLSTATEs after which a connection is no use. A whole class is two characters.
DEAD = {
    "08": "connection exception",
    "25P03": "idle in transaction session timeout",
    "25P04": "transaction timeout",
    "57P01": "admin shutdown",
    "57P02": "crash shutdown",
    "57P03": "cannot connect now",
    "57P04": "database dropped",
    "57P05": "idle session timeout",
}
READ_ONLY = "25006"  # read only SQL transaction: on a standby, a failover has come between
_CREDENTIALS = {"28P01", "28000"}  # invalid password, invalid authorization specification
_HOPELESS = {"3D000", "42501"}  # invalid catalog name, insufficient privilege (to connect)
_FULL = {"53300"}  # too many connections
_REPEATABLE = {"40001", "40P01"}  # serialization failure, deadlock detected

_TEXTS = 64  # that a listener learns at most: libpq keeps some memory for each that it traces
_TOLD = re.compile(rb'^[^\n]*\tErrorResponse\t[^\n]*? C "([0-9A-Z]{5})"', re.M)
_LISTENS = sys.platform == "linux"
_attempt: ContextVar[list[str | None] | None] = ContextVar("attempt", default=None)  # not of a thread: greenlets, too


class TransactionRolledBack(errors.TransactionRolledBack, psycopg.errors.InFailedSqlTransaction):
    """`pooling.TransactionRolledBack`, of PostgreSQL: the block went on after an error, and could not be committed."""


def sqlstates(error: BaseException | None) -> Iterator[str]:
    """Yield the SQLSTATE of an error and of those that it was made from."""
    while error is not None:
        state = getattr(error, "sqlstate", None)
        if state is not None:
            yield state
        error = error.__cause__


def ended_by(error: BaseException) -> str | None:
    """Return the SQLSTATE by which this error says that its connection has ended."""
    for state in sqlstates(error):
        if state in DEAD or state[:2] in DEAD:
            return state
    return None


def in_doubt(error: BaseException) -> bool:
    """Say whether what a connection was lost in the middle of may have been done all the same.

    A server that ends one by order undoes first what it was about, a COMMIT too: while that is done nothing may
    interrupt it, and what waits for a standby then goes without a word (``CommitTransaction`` and
    ``SyncRepWaitForLSN`` in PostgreSQL's source). In a crash it just goes, and of a proxy's server nobody knows.
    """
    state = ended_by(error)
    return state is None or state == "57P02" or state.startswith("08")


def is_stale(error: BaseException) -> bool:
    """Say whether a prepared statement's result has changed, by a migration or a table of the same name.

    On this connection it fails each time from now on; psycopg does not know.
    """
    diagnostic = getattr(error, "diag", None)
    return diagnostic is not None and (
        (diagnostic.sqlstate, diagnostic.source_function) == ("0A000", "RevalidateCachedQuery")
    )


def is_full(error: BaseException) -> bool:
    """Say whether connecting failed because the server has all the clients it takes."""
    return _all_told(error, _FULL)


def is_hopeless(error: BaseException, credentials_change: bool) -> bool:
    """Say whether connecting failed for good.

    A host that does not resolve is not hopeless: containers start in any
    order. A wrong password is not while a callable may give another, nor is
    a parameter that cannot be read, such as ``connect_timeout=abc``.
    """
    unreadable = type(error) is psycopg.ProgrammingError and error.sqlstate is None
    if unreadable or vars(error).get("_needs_password"):
        return not credentials_change
    return _all_told(error, _HOPELESS if credentials_change else _HOPELESS | _CREDENTIALS)


def _all_told(error: BaseException, states: set[str]) -> bool:
    """Whether each host that was tried answered with one of these."""
    told = vars(error).get("_told", ())
    return bool(told) and all(state in states for state in told)


def repeatable(error: BaseException) -> bool:
    """Say whether a transaction that failed thus may succeed when it is run again."""
    return any(state in _REPEATABLE for state in sqlstates(error))


class Listener:
    """Hears the SQLSTATEs of one pool's failed attempts to connect.

    libpq keeps a stream of some 5 kB for each connection that it traced, so
    this listens only while in doubt: at first, and after a failure whose text
    is new. What a text means is learnt; the server says the same again.

    An attempt that fails for what is not known is made once more at once, so
    that it is known whether that is final, or no failure of the server at
    all. Not once the server has hung up without a word: then it is down, its
    next words may be other ones, and it is time enough when the next attempt
    hears those (P7).
    """

    def __init__(self) -> None:
        self.in_doubt = _LISTENS  # what failed last is not known: the next attempt listens
        self._silent = False  # what failed last said nothing
        self._learnt: dict[str, tuple[str | None, ...]] = {}

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Surround one call of ``psycopg.connect``; what it raises can be classified then."""
        listens, self.in_doubt = self.in_doubt, False
        told: list[str | None] = []
        token = _attempt.set(told if listens else None)
        try:
            yield
            self._silent = False
        except psycopg.Error as error:
            text = str(error)
            if listens and len(self._learnt) < _TEXTS:
                self._learnt[text] = tuple(told)
            self.in_doubt = _LISTENS and text not in self._learnt and len(self._learnt) < _TEXTS
            if text in self._learnt:
                self._silent = not any(self._learnt[text])
            _tell(error, self._learnt.get(text, ()))
            raise
        finally:
            _attempt.reset(token)

    def asks_again(self) -> bool:
        """Whether an attempt that has just failed is to be made again at once."""
        return self.in_doubt and not self._silent


def _tell(error: psycopg.Error, told: tuple[str | None, ...]) -> None:
    """Keep with the error what is known of it, and not the connection: its ``repr`` shows the password.

    It is ended at once, not when the last frame that knows it goes: its slot
    is about to be free (P2).
    """
    needs_password = bool(error.pgconn and error.pgconn.needs_password)
    if error.pgconn is not None:
        error.pgconn.finish()
    vars(error).update(_told=told, _needs_password=needs_password)
    if error.sqlstate is None and told:
        error.sqlstate = told[-1]
    error._pgconn = None


def listening() -> list[str | None] | None:
    """Return what an attempt that is under way in this thread collects, ``None`` if it does not listen."""
    return _attempt.get()


def connect(
    conninfo: str, told: list[str | None], timeout: float = 0.0
) -> Generator[Any, Any, pq.abc.PGconn]:
    """Connect as psycopg's own generator does, and add to ``told`` what the server refuses with."""
    place = len(told)
    told.append(None)
    deadline = monotonic() + timeout if timeout else None
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    file = os.memfd_create("trace")  # of all that passes, a password too: it never leaves memory
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
        found = _TOLD.findall(os.pread(file, 1 << 16, 0))
        told[place] = found[-1].decode() if found else None
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
