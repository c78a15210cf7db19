"""The client's side of a session: what psycopg keeps in a connection, noted when it is new, restored for each borrower.

psycopg keeps all of it in the attributes of the connection. So a copy of these
is taken, and put back when one was set; what is changed in place is compared.
Uses private attributes of psycopg's for that.

Gain: correctness, not speed (P5). Restored is also what no public name
reaches, such as a ``transaction()`` that was entered and never left.
Without (other names, or ``POOLING_PLAIN=1``) `PlainClientState` restores what
public names reach, and a connection that was left otherwise is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.types import TypesRegistry

from .internals import available

__all__ = ["AVAILABLE", "KEEPS_NOTIFICATIONS", "ClientState", "PlainClient", "begin_autocommit", "client_state"]

AVAILABLE = available(
    "client_state",
    "Connection._autocommit", "Connection._adapters", "Connection._notice_handlers", "Connection._notify_handlers",
    "Connection._prepared.prepare_threshold", "Connection._prepared.prepared_max",
    "Connection._get_tx_start_command",
)  # fmt: skip
#: Whether psycopg keeps notifications that have no handler. Before 3.2.4 it drops them, so they are left with libpq,
#: and each `PostgresAdapter.is_alive` reads twice.
KEEPS_NOTIFICATIONS = tuple(int(part) for part in psycopg.__version__.split(".")[:3] if part.isdigit()) >= (3, 2, 4)


class ClientState:
    """What one connection's attributes were when this object was made.

    From then on the connection has a copy of the adapters of its own, in which
    borrowers' registrations are noticed.
    """

    __slots__ = ("attributes", "adapters", "adapted", "_in_place")

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.adapters: AdaptersMap = conn.adapters
        self.adapted = False
        conn._adapters = _Adapters(self)
        conn._get_tx_start_command()  # is composed and stored: not again for each borrower, 4 to 6 % of a short block
        prepared = conn._prepared
        self._in_place = (
            list(conn._notice_handlers), list(conn._notify_handlers), prepared.prepare_threshold, prepared.prepared_max
        )
        self.attributes: dict[str, Any] = dict(vars(conn))

    def restore(self, conn: psycopg.Connection[Any], changed: bool) -> None:
        """Bring the connection back to this state; ``changed``: an attribute was set since."""
        if self.adapted:
            self.attributes["_adapters"], changed = _Adapters(self), True
        if changed:
            state = vars(conn)
            for name in state.keys() - self.attributes.keys():
                del state[name]
            state.update(self.attributes)
        prepared = conn._prepared
        if self._in_place != (
            conn._notice_handlers, conn._notify_handlers, prepared.prepare_threshold, prepared.prepared_max
        ):
            conn._notice_handlers[:], conn._notify_handlers[:] = self._in_place[:2]
            prepared.prepare_threshold, prepared.prepared_max = self._in_place[2:]
        if backlog := getattr(conn, "_notifies_backlog", None):
            backlog.clear()


class PlainClientState(ClientState):
    """The same with public names only."""

    __slots__ = ("_settings", "_undoable")

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.adapters = conn.adapters
        self.adapted = False
        vars(conn)["_own_adapters"] = _Adapters(self)
        self._undoable = len(vars(conn).setdefault("_undo", []))
        self.attributes = {name: value for name, value in vars(conn).items() if _is_ours(name)}
        self._settings = {name: getattr(conn, name) for name in _SETTINGS}

    def restore(self, conn: psycopg.Connection[Any], changed: bool) -> None:
        state = vars(conn)
        while len(state["_undo"]) > self._undoable:
            undo, handler = state["_undo"].pop()
            with suppress(ValueError):  # it was undone already
                undo(conn, handler)
        if self.adapted:
            self.attributes["_own_adapters"], changed = _Adapters(self), True
        if changed:
            for name in [name for name in state if _is_ours(name) and name not in self.attributes]:
                del state[name]
            state.update(self.attributes)
            for name, value in self._settings.items():
                if getattr(conn, name) != value:
                    setattr(conn, name, value)
        if KEEPS_NOTIFICATIONS:
            for _ in conn.notifies(timeout=0):
                pass


_SETTINGS = ("autocommit", "isolation_level", "read_only", "deferrable", "prepare_threshold", "prepared_max")
_PRIVATE = ("_pool", "_own_adapters")


def _is_ours(name: str) -> bool:
    return not name.startswith("_") or name in _PRIVATE


if TYPE_CHECKING:
    _Base = object  # mypy would compare each method with psycopg's
    Handler = Callable[[Any], Any]
else:
    _Base = psycopg.Connection  # so that an existing connection's class can be changed to a subclass of this one


class PlainClient(_Base):
    """Mixed into connection classes where not `AVAILABLE`: notes what `PlainClientState` is to undo."""

    @property
    def adapters(self) -> Any:
        """The borrower's own copy of the adapters."""
        own = vars(self).get("_own_adapters")
        return super().adapters if own is None else own  # type: ignore[misc]

    def add_notice_handler(self, callback: Handler) -> None:
        """As psycopg's."""
        super().add_notice_handler(callback)  # type: ignore[misc]
        self._note(psycopg.Connection.remove_notice_handler, callback)

    def remove_notice_handler(self, callback: Handler) -> None:
        """As psycopg's."""
        super().remove_notice_handler(callback)  # type: ignore[misc]
        self._note(psycopg.Connection.add_notice_handler, callback)

    def add_notify_handler(self, callback: Handler) -> None:
        """As psycopg's."""
        super().add_notify_handler(callback)  # type: ignore[misc]
        self._note(psycopg.Connection.remove_notify_handler, callback)

    def remove_notify_handler(self, callback: Handler) -> None:
        """As psycopg's."""
        super().remove_notify_handler(callback)  # type: ignore[misc]
        self._note(psycopg.Connection.add_notify_handler, callback)

    def _note(self, undo: Callable[..., Any], callback: Handler) -> None:
        vars(self).setdefault("_undo", []).append((undo, callback))


class _Adapters(AdaptersMap):
    """A borrower's copy (on write) of the adapters, which notes that it was changed.

    A new copy for each borrower would be simpler, and lose what psycopg has looked up.
    """

    def __init__(self, state: ClientState) -> None:
        super().__init__(state.adapters)
        self.types = _Types(state)
        self._state = state
        state.adapted = False

    def register_dumper(self, cls: type | str | None, dumper: type[Any]) -> None:
        self._state.adapted = True
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: int | str, loader: type[Any]) -> None:
        self._state.adapted = True
        super().register_loader(oid, loader)


class _Types(TypesRegistry):
    def __init__(self, state: ClientState) -> None:
        super().__init__(state.adapters.types)
        self._state = state

    def add(self, info: Any) -> None:
        self._state.adapted = True
        super().add(info)


def begin_autocommit(conn: psycopg.Connection[Any]) -> None:
    """Put a connection on which nothing runs in autocommit; `ClientState.restore` undoes it."""
    if AVAILABLE:
        conn._autocommit = True  # the property takes a lock and runs a generator: 4 to 10 % of an `execute_query`
    else:
        conn.autocommit = True


client_state: Callable[[psycopg.Connection[Any]], ClientState] = ClientState if AVAILABLE else PlainClientState
