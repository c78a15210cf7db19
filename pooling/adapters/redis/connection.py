"""The connections that are lent: of the user's class, and they note what a borrower leaves behind.

A borrower gets a *handle*: another object with the same attributes, which the
pool does not refer to. When the last reference to it is gone, so is its lease,
and the slot of a connection that was never released is recovered (P8).

Assumes: ``send_command``, ``pack_command``, ``pack_commands`` and
``send_packed_command`` of redis-py are the only ways to send a command, and
``read_response`` is the only one to read a reply.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from redis.exceptions import ConnectionError, DataError, ResponseError, TimeoutError

from ...core.lease import Lease
from .marks import EFFECTS, ERROR, RAW

__all__ = ["handle_of", "tracked"]


@functools.lru_cache(maxsize=64)
def tracked(base: type[Any]) -> tuple[type[Any], type[Any]]:
    """Return a subclass of a connection class that notes what is sent, and the class of its handles."""
    connection = _tracked(base)

    class Handle(connection):  # type: ignore[misc, valid-type]
        """What a borrower of a connection holds."""

        __slots__ = ("lease",)
        lease: Lease[Any] | None

        # In C: redis-py's would close the connection, and could be interrupted by an exception of another thread.
        __del__ = object.__init__

    for made in (connection, Handle):
        made.__name__, made.__qualname__, made.__module__ = base.__name__, base.__qualname__, base.__module__
    return connection, Handle


def handle_of(conn: Any, kind: type[Any], lease: Lease[Any]) -> Any:
    """Return a handle of a connection, which ends the lease when it is forgotten."""
    handle = object.__new__(kind)
    handle.__dict__ = conn.__dict__
    handle.lease = lease
    return handle


def _tracked(base: type[Any]) -> type[Any]:
    sends = hasattr(base, "send_command")  # else it is no connection of redis-py
    found: Any = functools.partial(getattr, base)
    send, pack, pack_all = found("send_command", None), found("pack_command", None), found("pack_commands", None)
    send_packed, read = found("send_packed_command", None), found("read_response", None)
    disconnect, connect = found("disconnect"), found("connect")
    connect_checked = getattr(base, "connect_check_health", None)

    class Connection(base):  # type: ignore[misc]
        """A connection that notes what a borrower leaves behind.

        Attributes:
            marks: What the session was left in, see `marks`.
            unread: Commands sent less replies read.
            lost: ``"ended"`` or ``"timed out"`` after it failed or did not answer in time, during this lease.
            told: Its release has reported that.
            connecting: Above 0 while it logs in.
            replied: When the last reply was read.
            packed: The bytes that are sent next were packed here.
        """

        unread = 0
        packed = told = False
        lost = ""
        replied = 0.0
        connecting = 0
        poll: Any = None  # the socket, what polls it, and the class of sockets at that time

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.marks: set[str] = set()
            super().__init__(*args, **kwargs)

        def __eq__(self, other: object) -> bool:
            return getattr(other, "__dict__", None) is self.__dict__

        def __hash__(self) -> int:
            return id(self.__dict__)

        def disconnect(self, *args: Any, **kwargs: Any) -> None:
            disconnect(self, *args, **kwargs)
            self.marks = set()  # after it: an exception in between must not make a session look clean
            self.unread = 0

        def connect(self, *args: Any, **kwargs: Any) -> Any:
            self.connecting += 1
            try:
                return connect(self, *args, **kwargs)
            finally:
                self.connecting -= 1

        if connect_checked is not None:

            def connect_check_health(self, *args: Any, **kwargs: Any) -> Any:
                self.connecting += 1
                try:
                    return connect_checked(self, *args, **kwargs)
                finally:
                    self.connecting -= 1

        if not hasattr(base, "should_reconnect"):  # redis-py 6.2 and older

            def should_reconnect(self) -> bool:
                return False

        if sends:

            def send_command(self, *args: Any, **kwargs: Any) -> Any:
                self.unread += 1  # first: an effect that removes a mark counts when the reply was read
                effect = EFFECTS[args[0]]
                if effect is not None:
                    effect(self, args)
                self.packed = True
                try:
                    return send(self, *args, **kwargs)
                except DataError:  # an argument could not be packed
                    self.unread -= 1
                    self.packed = False
                    if effect is not None:
                        self.marks.add(ERROR)
                    raise

            def pack_command(self, *args: Any) -> Any:
                return _packed(self, pack, [args], *args)

            def pack_commands(self, commands: Iterable[Any]) -> Any:
                commands = list(commands)
                return _packed(self, pack_all, commands, commands)

            def send_packed_command(self, command: Any, *args: Any, **kwargs: Any) -> Any:
                if self.packed:
                    self.packed = False
                else:
                    self.marks.add(RAW)
                try:
                    return send_packed(self, command, *args, **kwargs)
                except ConnectionError:
                    self.lost = "ended"
                    raise
                except TimeoutError:
                    self.lost = "timed out"
                    raise

            def read_response(self, *args: Any, **kwargs: Any) -> Any:
                try:
                    reply = read(self, *args, **kwargs)
                except ResponseError:
                    self.unread -= 1
                    if self.marks:
                        self.marks.add(ERROR)
                    raise
                except ConnectionError:
                    self.lost = "ended"
                    raise
                except TimeoutError:
                    self.lost = "timed out"
                    raise
                self.unread -= 1
                self.replied = monotonic()
                return reply

            def re_auth(self) -> None:
                self.connecting += 1  # a login of the connection's own
                try:
                    super().re_auth()
                finally:
                    self.connecting -= 1

    return Connection


def _packed(conn: Any, pack: Callable[..., Any], commands: list[Any], *args: Any) -> Any:
    """Note commands that are about to be sent, and pack them."""
    before = set(conn.marks)
    conn.unread += len(commands)
    for each in commands:
        effect = EFFECTS[each[0]]
        if effect is not None:
            effect(conn, each)
    conn.packed = True
    try:
        return pack(conn, *args)
    except DataError:  # nothing is sent
        conn.marks = before
        conn.unread -= len(commands)
        conn.packed = False
        raise
