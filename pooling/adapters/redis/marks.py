"""What a session was left in, known from the commands that were sent (P5).

Each effect is called with the connection's set of marks. While that is empty,
and every command has had its reply, the session is as it was after the login.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .packing import head_of

__all__ = ["COMMANDS", "ERROR", "RAW", "UNFIT", "Noted"]

RAW = "bytes of its own"
"""The mark of a connection to which bytes were sent that it has not packed itself."""

ERROR = "an error during a transaction"
"""The mark of a connection that answered with an error while it had marks: which command took effect is unknown."""

UNFIT = frozenset({
    RAW, "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR", "CLIENT REPLY", "SYNC", "PSYNC", "REPLCONF", "QUIT",
    "CLIENT NO-EVICT", "CLIENT NO-TOUCH", "SCRIPT DEBUG",
})  # fmt: skip
"""Marks that no RESET removes, or with which its reply could not be told from others: the connection is closed."""

_MOST = 500  # names kept: a program may use its keys as names


class Noted(Protocol):
    """A connection, as the effects see it."""

    marks: set[str]
    connecting: int
    db: Any


Effect = Callable[[Noted, Sequence[Any]], None]


def _text(part: object) -> str:
    """Return a part of a command as it is compared."""
    if isinstance(part, (bytes, bytearray, memoryview)):
        return bytes(part).decode("latin-1").upper()
    return str(part).upper()


def _words(args: Sequence[Any]) -> list[str]:
    """Return the first words of a command: its name may be ``"CLIENT REPLY"`` or ``"CLIENT", "REPLY"``."""
    return [*_text(args[0]).split(), *map(_text, args[1:2])]


def _multi(conn: Noted, args: Sequence[Any]) -> None:
    conn.marks.add("MULTI")


def _exec(conn: Noted, args: Sequence[Any]) -> None:
    if "MULTI" in conn.marks:  # otherwise the server refuses it, and the WATCH goes on
        conn.marks -= {"MULTI", "WATCH"}


def _watch(conn: Noted, args: Sequence[Any]) -> None:
    conn.marks.add("WATCH")


def _unwatch(conn: Noted, args: Sequence[Any]) -> None:
    conn.marks.discard("WATCH")


def _select(conn: Noted, args: Sequence[Any]) -> None:
    if _words(args)[1:2] == [str(conn.db or 0)]:
        conn.marks.discard("SELECT")
    else:
        conn.marks.add("SELECT")


def _stays(mark: str) -> Effect:
    def effect(conn: Noted, args: Sequence[Any]) -> None:
        conn.marks.add(mark)

    return effect


def _login(mark: str) -> Effect:
    """Return the effect of a command that the connection itself sends when it is opened."""

    def effect(conn: Noted, args: Sequence[Any]) -> None:
        if not conn.connecting:
            conn.marks.add(mark)

    return effect


def _part_of(command: str, parts: str) -> Effect:
    """Return the effect of a command that changes the session by some of its subcommands only."""
    effects = {part: _login(f"{command} {part}") for part in parts.split()}

    def effect(conn: Noted, args: Sequence[Any]) -> None:
        found = effects.get("".join(_words(args)[1:2]))
        if found is not None:
            found(conn, args)

    return effect


_BY_NAME: dict[str, Effect] = {
    "MULTI": _multi, "EXEC": _exec, "DISCARD": _exec, "WATCH": _watch, "UNWATCH": _unwatch, "SELECT": _select,
    **{name: _stays(name) for name in ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR")},
    **{name: _stays(name) for name in ("SYNC", "PSYNC", "REPLCONF", "QUIT", "RESET")},
    **{name: _login(name) for name in ("AUTH", "HELLO", "READONLY", "READWRITE")},
    "CLIENT": _part_of("CLIENT", "REPLY TRACKING CACHING NO-EVICT NO-TOUCH SETNAME SETINFO MAINT_NOTIFICATIONS"),
    "SCRIPT": _part_of("SCRIPT", "DEBUG"),
}  # fmt: skip


class _Commands(dict[Any, "tuple[Effect | None, str | None]"]):
    """Of each command, by its name as it was sent: its effect, ``None`` if it changes no session; and `head_of` it."""

    def __missing__(self, name: object) -> tuple[Effect | None, str | None]:
        found = _BY_NAME.get("".join(_text(name).split()[:1])), head_of(name)
        if len(self) < _MOST:
            self[name] = found
        return found


COMMANDS = _Commands()
