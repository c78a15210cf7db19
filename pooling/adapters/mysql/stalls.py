"""Stalled connections: the server is asked, over another connection, whether it still works for them.

A network that drops packets, or a proxy that keeps connections open and
forwards nothing, leaves a holder waiting for ever: TCP's own timeouts end at
the proxy. The client cannot tell that from a long command; the server can.

A holder *waits* while it is within the driver's call that sends a command and
reads the answer, and no bytes are transferred (known on Linux only). The
connection has *stalled* if the server does not have its session any more, or if
that has been idle for a while. A session has a number, which a server uses once
between two starts; so the server that answers must be the one that gave it. In
doubt (a proxy with numbers of its own, another server behind the same address) a
command is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from ...core.adapter import Verdicts
from ..shared.progress import bytes_transferred
from .driver import Driver
from .tracking import Connection, Notes, notes_of
from .wire import hang_up

__all__ = ["IDENTITY", "Command", "command_of", "end_stalled", "note_server", "verdict_on"]

IDLE_FOR = 10.0
"""Seconds for which a session must be idle, so that its answer is lost and not just on its way."""

IDENTITY = "CONNECTION_ID(), @@hostname, @@port"
"""What a session's number and its server are asked with."""

_LIMIT = 5.0  # seconds for an answer
_SLACK = 5.0  # seconds by which a server may look younger than a connection to it
_SESSION = (
    "SELECT command, time FROM information_schema.processlist WHERE id = {} AND user = SUBSTRING_INDEX(USER(), '@', 1)"
)


class Command(NamedTuple):
    """A command that a holder waits for; if one of these values differs later, it is another one, or makes progress."""

    number: int
    transferred: tuple[int, int] | None  # bytes
    own: bool  # a START TRANSACTION or COMMIT of the pool, which does not take long


def command_of(driver: Driver, conn: Connection) -> Command | None:
    """Return what the holder of a connection waits for, ``None`` if it does not wait; for other threads."""
    notes = notes_of(conn)
    own, number = notes.own, notes.number
    if not (own or notes.waits):
        return None
    fd = driver.descriptor(conn)
    try:
        transferred = None if fd is None else bytes_transferred(fd)
    except (OSError, ValueError):  # an answer has come, or the connection has just been closed
        return None
    return None if fd is None else Command(number, transferred, own)


def note_server(driver: Driver, conn: Connection, identity: Sequence[Any]) -> None:
    """Note which server a new connection leads to.

    Args:
        driver: The driver.
        conn: The connection.
        identity: Its answer to `IDENTITY`.
    """
    number, *server = identity
    if int(number) == driver.thread_id(conn):  # else it is the number that a proxy gave it
        notes_of(conn).server = tuple(map(_text, server))


def end_stalled(
    driver: Driver, arguments: dict[str, Any], waiting: Sequence[tuple[Connection, Any]], waited: float
) -> Verdicts:
    """Ask the server about connections whose holders wait, and shut down those that have stalled.

    Args:
        driver: The driver.
        arguments: Of a new connection.
        waiting: Connections, each with the command that its holder waits for.
        waited: For how many seconds they have waited, at least.

    Returns:
        Why connections were shut down, why others were left alone, and whether to ask again.
    """
    ended: list[str] = []
    unknown: list[str] = []
    try:
        asking = driver.connect({**arguments, **driver.time_limits(_LIMIT)})
        try:
            note_server(driver, asking, driver.ask(asking, f"SELECT {IDENTITY}", _LIMIT))
            uptime = float(driver.ask(asking, "SHOW GLOBAL STATUS LIKE 'Uptime'", _LIMIT)[1])
            for conn, command in waiting:
                _judge(driver, asking, uptime, conn, command, waited, ended, unknown)
        finally:
            driver.close(asking)
    except Exception as error:
        why = f"the server could not be asked: {error}"
        unknown.append(why)
        for conn, command in waiting:
            _end_own(driver, conn, command, waited, why, ended)
        return Verdicts(ended, unknown, True)
    return Verdicts(ended, unknown)


def _judge(
    driver: Driver, asking: Connection, uptime: float, conn: Connection, command: Command, waited: float,
    ended: list[str], unknown: list[str],
) -> None:  # fmt: skip
    notes = notes_of(conn)
    number = notes.place[0] if notes.place is not None else 0
    row = driver.ask(asking, _SESSION.format(number), _LIMIT)
    verdict = verdict_on(notes, notes_of(asking).server, uptime, row, waited)
    if verdict is None:
        return
    stalled, why = verdict
    if not stalled:
        unknown.append(why)
        _end_own(driver, conn, command, waited, why, ended)
    elif _cut_off(driver, conn, command, waited, why):
        ended.append(why)
        if "idle" in why:  # otherwise it would keep its locks as long as the proxy keeps its side open
            with suppress(driver.error):
                driver.execute(asking, f"KILL {number}", _LIMIT)


def verdict_on(
    notes: Notes, server: tuple[str, ...] | None, uptime: float, row: Sequence[Any], waited: float
) -> tuple[bool, str] | None:
    """Return whether a connection has stalled, and why that is known or not; ``None`` if the server works for it."""
    if notes.server is None or server is None:
        return False, "a proxy has session numbers of its own"
    if notes.server != server:
        return False, "another server has answered"
    if row and uptime >= monotonic() - notes.made_at - _SLACK:  # else the number is that of a later session
        if _text(row[0]) != "Sleep" or float(row[1] or 0) < min(waited, IDLE_FOR):
            return None
        return True, f"the server says that its session has been idle for {float(row[1]):.0f} s"
    return True, "the server does not have its session any more"


def _end_own(driver: Driver, conn: Connection, command: Command, waited: float, why: str, ended: list[str]) -> None:
    """Shut down a connection that waits for a START TRANSACTION or COMMIT which the server does not confirm."""
    if command.own and _cut_off(driver, conn, command, waited, why):
        ended.append(f"a START TRANSACTION or COMMIT had no answer, and {why}")


def _cut_off(driver: Driver, conn: Connection, command: Command, waited: float, why: str) -> bool:
    """Shut a connection down, if its holder still waits for the same command; return whether it does."""
    if command_of(driver, conn) != command:
        return False
    notes = notes_of(conn)
    notes.stalled = f"the connection has stalled: there was no answer for {waited:g} s or more, and {why}"
    notes.unfinished = True
    hang_up(driver.descriptor(conn))
    return True


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, (bytes, bytearray)) else str(value)
