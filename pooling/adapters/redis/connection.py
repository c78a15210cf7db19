"""The connections that are lent: of the user's class, and they note what a borrower leaves behind.

A borrower gets a *handle*: another object with the same attributes, which is
also a lease, and to which the pool does not refer. When the last reference to
it is gone, the slot of a connection that was never released is recovered (P8).

The usual commands take a short way, without most of redis-py's calls. Where a
class of connections has other methods than redis-py's, they are called.

Assumes: ``send_command``, ``pack_command``, ``pack_commands`` and
``send_packed_command`` of redis-py are the only ways to send a command, and
``read_response`` is the only one to read a reply.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any

from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError, DataError, ResponseError, TimeoutError

from .lease import RedisLease
from .marks import COMMANDS, ERROR, RAW
from .packing import can_pack, packed
from .replies import read_reply

__all__ = ["tracked"]

_SHOULD = getattr(AbstractConnection, "should_reconnect", None)


@functools.lru_cache(maxsize=64)
def tracked(base: type[Any]) -> tuple[type[Any], type[Any]]:
    """Return a subclass of a connection class that notes what is sent, and the class of its handles."""
    connection = _tracked(base)

    class Handle(connection, RedisLease):  # type: ignore[misc, valid-type]
        """What a borrower of a connection holds: a connection that is its own lease."""

        __slots__ = ()

        # In C: redis-py's would close the connection, and could be interrupted by an exception of another thread.
        __del__ = object.__init__

    for made in (connection, Handle):
        made.__name__, made.__qualname__, made.__module__ = base.__name__, base.__qualname__, base.__module__
    return connection, Handle


def _tracked(base: type[Any]) -> type[Any]:
    sends = hasattr(base, "send_command")  # else it is no connection of redis-py
    found: Any = functools.partial(getattr, base)
    send, pack, pack_all = found("send_command", None), found("pack_command", None), found("pack_commands", None)
    send_packed, read = found("send_packed_command", None), found("read_response", None)
    disconnect, connect = found("disconnect"), found("connect")
    connect_checked = getattr(base, "connect_check_health", None)
    reads = _same(base, "read_response")
    as_usual = _same(base, "send_command", "pack_command", "pack_commands", "send_packed_command")

    class Connection(base):  # type: ignore[misc]
        """A connection that notes what a borrower leaves behind.

        Attributes:
            marks: What the session was left in, see `marks`.
            unread: Commands sent less replies read.
            lost: ``"ended"`` or ``"timed out"`` after it failed or did not answer in time, during this lease.
            reported: Its release has reported that.
            connecting: Above 0 while it logs in.
            replied: When the last reply was read.
            packed: The bytes that are sent next were packed here.
            quick: Its attributes alone say whether it may be lent again.
            packs: The usual commands are packed and sent here.
        """

        unread = 0
        packed = reported = False
        lost = ""
        replied = 0.0
        connecting = 0
        quick = sends and getattr(base, "should_reconnect", _SHOULD) is _SHOULD
        _should_reconnect = False  # redis-py 6.2 and older
        poll: Any = None  # the socket, what polls it, and the class of sockets at that time

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.marks: set[str] = set()
            super().__init__(*args, **kwargs)
            self.packs = as_usual and can_pack(self)

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
                effect, head = COMMANDS[args[0]]
                command = None if head is None or not self.packs else packed(args, head)
                self.unread += 1  # first: an effect that removes a mark counts when the reply was read
                if effect is not None:
                    effect(self, args)
                if command is not None and self._sock is not None and not self.health_check_interval:
                    try:
                        self._sock.sendall(command)
                    except BaseException as error:
                        self.packed = True
                        self.send_packed_command(_raising(error), check_health=False)
                    return None
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
                if args or kwargs or not reads or self.health_check_interval:
                    try:
                        reply = read(self, *args, **kwargs)
                    except BaseException as error:
                        _failed(self, error)
                        raise
                else:  # as redis-py does it, with fewer calls
                    try:
                        reply = read_reply(self._parser)
                    except BaseException as error:
                        failure = _failed(self, _as_redis_error(self, error))
                        if failure is error:
                            raise
                        raise failure from error
                    if isinstance(reply, ResponseError):
                        try:
                            raise _failed(self, reply)
                        finally:
                            del reply  # no cycle of references
                self.unread = unread = self.unread - 1
                if not unread:
                    self.replied = monotonic()
                return reply

            def re_auth(self) -> None:
                self.connecting += 1  # a login of the connection's own
                try:
                    super().re_auth()
                finally:
                    self.connecting -= 1

    return Connection


def _same(base: type[Any], *methods: str) -> bool:
    """Whether a class has these methods from redis-py's connection."""
    return all(getattr(base, name, None) is getattr(AbstractConnection, name) for name in methods)


def _raising(error: BaseException) -> Iterator[bytes]:
    """Raise the error of a send where redis-py sends: it disconnects, and raises an error of its own."""
    raise error
    yield


def _as_redis_error(conn: Any, error: BaseException) -> BaseException:
    """Disconnect after an error while a reply was read, as redis-py does; return the error to raise."""
    conn.disconnect()
    if isinstance(error, socket.timeout):
        return TimeoutError(f"Timeout reading from {conn._host_error()}")
    if isinstance(error, OSError):
        return ConnectionError(f"Error while reading from {conn._host_error()} : {error.args}")
    return error


def _failed(conn: Any, error: BaseException) -> BaseException:
    """Note the error that a read has raised, and return it."""
    if isinstance(error, ResponseError):
        conn.unread -= 1
        if conn.marks:
            conn.marks.add(ERROR)
    elif isinstance(error, ConnectionError):
        conn.lost = "ended"
    elif isinstance(error, TimeoutError):
        conn.lost = "timed out"
    return error


def _packed(conn: Any, pack: Callable[..., Any], commands: list[Any], *args: Any) -> Any:
    """Note commands that are about to be sent, and pack them."""
    before = set(conn.marks)
    conn.unread += len(commands)
    pieces: list[bytes] = []
    for each in commands:
        effect, head = COMMANDS[each[0]]
        if effect is not None:
            effect(conn, each)
        piece = None if head is None or not conn.packs else packed(each, head)
        if piece is not None:
            pieces.append(piece)
    conn.packed = True
    if pieces and len(pieces) == len(commands):
        return [b"".join(pieces)]
    try:
        return pack(conn, *args)
    except DataError:  # nothing is sent
        conn.marks = before
        conn.unread -= len(commands)
        conn.packed = False
        raise
