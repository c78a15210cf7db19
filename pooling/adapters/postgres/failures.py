"""What an error of PostgreSQL means for a connection, a creation, a transaction.

Decided by the SQLSTATE, never by the text, which is in the server's language.
The codes are those of "Appendix A. PostgreSQL Error Codes" of the PostgreSQL 18
manual. For errors while *connecting* `trace` finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg

from ... import errors

__all__ = [
    "DEAD", "READ_ONLY", "TransactionRolledBack", "ended_by", "in_doubt", "is_answer", "is_full", "is_hopeless",
    "is_stale", "repeatable", "sqlstates",
]  # fmt: skip

#: SQLSTATEs after which a connection is useless. Two characters stand for a whole class.
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
READ_ONLY = "25006"  # read only SQL transaction: after a failover the server is a standby
_CREDENTIALS = {"28P01", "28000"}  # invalid password, invalid authorization specification
_HOPELESS = {"3D000", "42501"}  # invalid catalog name, insufficient privilege (to connect)
_FULL = {"53300"}  # too many connections
_REPEATABLE = {"40001", "40P01"}  # serialization failure, deadlock detected
_MESSAGE = re.compile(r": \w+:  \S")  # libpq writes "failed: FATAL:  text" for a message of the server, in any language


class TransactionRolledBack(errors.TransactionRolledBack, psycopg.errors.InFailedSqlTransaction):
    """`pooling.TransactionRolledBack`, of PostgreSQL: the block continued after an error, and was not committed."""


def sqlstates(error: BaseException | None) -> Iterator[str]:
    """Yield the SQLSTATE of an error and of its causes."""
    while error is not None:
        state = getattr(error, "sqlstate", None)
        if state is not None:
            yield state
        error = error.__cause__


def ended_by(error: BaseException) -> str | None:
    """Return the SQLSTATE that says that the connection has ended, ``None`` if there is none."""
    for state in sqlstates(error):
        if state in DEAD or state[:2] in DEAD:
            return state
    return None


def in_doubt(error: BaseException) -> bool:
    """Return whether the statement during which a connection was lost may have been executed all the same.

    A server that is told to end a session rolls back first, a COMMIT too: it cannot be interrupted while it commits,
    and one that waits for a standby then ends without a message (``CommitTransaction`` and ``SyncRepWaitForLSN`` in
    PostgreSQL's source). After a crash, and behind a proxy, it is not known.
    """
    state = ended_by(error)
    return state is None or state == "57P02" or state.startswith("08")


def is_stale(error: BaseException) -> bool:
    """Return whether a prepared statement is stale, after a migration or because of a table of the same name.

    It fails on this connection each time from now on; psycopg does not notice.
    """
    diagnostic = getattr(error, "diag", None)
    return diagnostic is not None and (
        (diagnostic.sqlstate, diagnostic.source_function) == ("0A000", "RevalidateCachedQuery")
    )


def is_full(error: BaseException) -> bool:
    """Return whether connecting failed because the server has reached its limit of connections."""
    return _all_hosts_in(error, _FULL)


def is_answer(error: BaseException) -> bool:
    """Return whether connecting failed with a message of a server that works: a wrong password, too many connections.

    Where the SQLSTATE is not known (see `trace`), any message of a server counts.
    """
    states = [state for state in vars(error).get("_states", ()) if state is not None]
    if states:
        return any(state not in DEAD and state[:2] not in DEAD for state in states)
    return _MESSAGE.search(str(error)) is not None


def is_hopeless(error: BaseException, credentials_change: bool) -> bool:
    """Return whether connecting failed for good.

    A host that does not resolve may do so later: containers start in any
    order. A wrong password is not final while a callable may return another
    one, nor is an invalid parameter, such as ``connect_timeout=abc``.
    """
    unreadable = type(error) is psycopg.ProgrammingError and error.sqlstate is None
    if unreadable or vars(error).get("_needs_password"):
        return not credentials_change
    return _all_hosts_in(error, _HOPELESS if credentials_change else _HOPELESS | _CREDENTIALS)


def _all_hosts_in(error: BaseException, states: set[str]) -> bool:
    """Return whether each host that was tried refused with one of these SQLSTATEs."""
    found = vars(error).get("_states", ())
    return bool(found) and all(state in states for state in found)


def repeatable(error: BaseException) -> bool:
    """Return whether a transaction that failed with this error may succeed when it is run again."""
    return any(state in _REPEATABLE for state in sqlstates(error))
