"""What an error of MySQL or MariaDB means for a connection, a creation, a transaction.

Decided by the error's number, which all drivers pass on. The numbers are those
of "MySQL 8.4 Error Message Reference" and of MariaDB's "Error Codes".
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "LOST", "OUT_OF_SYNC", "code_of", "codes", "ended_by", "is_answer", "is_full", "is_hopeless", "is_read_only",
    "repeatable", "rolls_back", "was_refused",
]  # fmt: skip

OUT_OF_SYNC = 2014  # commands out of sync: a result was not read to its end
LOST = 2013  # lost connection to the server during a query, as the C client's library numbers it

#: The server says that it ends the session, before or instead of executing a command.
_ENDED = {
    1053: "server shutdown in progress",
    1927: "connection was killed",  # MariaDB
    3169: "session was killed",
    4031: "disconnected because of inactivity",
}
#: The connection is useless: lost, or client and server do not agree any more on what comes next.
_DEAD = {
    **_ENDED,
    1152: "aborted connection", 1154: "read error from pipe", 1156: "packets out of order",
    1158: "error reading packets", 1159: "timeout reading packets", 1160: "error writing packets",
    1161: "timeout writing packets", 1184: "aborted connection", 2006: "server has gone away",
    LOST: "lost connection", OUT_OF_SYNC: "commands out of sync", 2027: "malformed packet", 2045: "shared memory lost",
    2055: "lost connection, system error",
}  # fmt: skip
_READ_ONLY = {1290, 1836}  # an option such as --read-only prevents it; running in read-only mode
_CREDENTIALS = {1045, 1698, 1862, 3118, 4151}  # access denied, password expired, account locked
_HOPELESS = {1044, 1049, 1130, 1251, 1524, 2059}  # database denied or unknown, host denied, unknown authentication
_FULL = {1040, 1203, 1226}  # too many connections: of the server, of the user, of the user's resources
_REPEATABLE = {1020, 1205, 1213, 1614}  # record has changed, lock wait timeout, deadlock, XA deadlock
# The server has rolled back the whole transaction: a deadlock, also of XA; the lock table is full; a record has changed
# (InnoDB of MariaDB with innodb_snapshot_isolation, the default since 11.6.2).
_ROLLED_BACK = {1020, 1206, 1213, 1614}
_NO_COMMAND = 1047  # unknown command; of Galera: the node is not prepared


def code_of(error: BaseException | None) -> int | None:
    """Return the number of a driver's error, ``None`` if it has none."""
    if error is None or isinstance(error, OSError):
        return None
    number = getattr(error, "errno", None)  # mysql-connector-python
    if type(number) is not int and error.args:
        number = error.args[0]
    return number if type(number) is int else None


def codes(error: BaseException | None) -> Iterator[int]:
    """Yield the numbers of an error and of its causes."""
    while error is not None:
        code = code_of(error)
        if code is not None:
            yield code
        error = error.__cause__


def ended_by(error: BaseException) -> int | None:
    """Return the number that says that the connection has ended, ``None`` if there is none."""
    for code in codes(error):
        if code in _DEAD or (code == _NO_COMMAND and "WSREP" in str(error)):
            return code
    return None


def was_refused(error: BaseException) -> bool:
    """Return whether the server said that it ended the session *instead of* executing the last command.

    A KILL, a timeout or a shutdown is noticed between two commands. A server that is
    in the middle of a COMMIT finishes it.
    """
    return any(code in _ENDED for code in codes(error))


def is_read_only(error: BaseException) -> bool:
    """Return whether the server refused to write because it is a replica, or became one."""
    for code in codes(error):
        if code in _READ_ONLY:
            text = str(error)  # in the server's language, but for the option's name
            return code != 1290 or "read-only" in text or "read_only" in text
    return False


def rolls_back(error: BaseException) -> bool:
    """Return whether the server has rolled back the whole transaction, not just the statement."""
    return code_of(error) in _ROLLED_BACK


def repeatable(error: BaseException) -> bool:
    """Return whether a transaction that failed with this error may succeed when it is run again."""
    return any(code in _REPEATABLE for code in codes(error))


def is_answer(error: BaseException) -> bool:
    """Return whether an error came from the server. Those of the client have codes from 2000 to 2999."""
    return any(not 2000 <= code < 3000 for code in codes(error))


def is_full(error: BaseException) -> bool:
    """Return whether connecting failed because the server, or the user, has reached a limit of connections."""
    return any(code in _FULL for code in codes(error))


def is_hopeless(error: BaseException, credentials_change: bool) -> bool:
    """Return whether connecting failed for good.

    A wrong password is not final while a callable may return another one. A
    host that does not resolve may do so later.
    """
    return any(code in _HOPELESS or (code in _CREDENTIALS and not credentials_change) for code in codes(error))
