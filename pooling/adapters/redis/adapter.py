"""How connections to Redis are created, checked, cleaned and closed."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,
    DataError,
    ResponseError,
)
from redis.retry import Retry

from ..._fields import fields
from ...core.adapter import Adapter
from ...core.hangup import native_poll
from ...core.liveness import ANSWER_TTL
from ...settings import PoolSettings
from .client import Client
from .connection import tracked
from .marks import UNFIT

__all__ = ["RedisAdapter"]

logger = logging.getLogger("pooling")

_EVENTS = select.POLLIN | getattr(select, "POLLRDHUP", 0) if hasattr(select, "poll") else 0
_ONCE = Retry(NoBackoff(), 0)
_SHORTEST = 0.001  # seconds; a socket timeout of 0 would mean not to block


class RedisAdapter(Adapter[Client]):
    """How connections are made and kept.

    Args:
        connection_class: redis-py's class of the connections.
        kwargs: Its arguments; those of later connections may be changed there.
        settings: For its time limits and its validation query.
    """

    noun = "connection"
    enforces_timeouts = True
    close_inline = True  # `disconnect` sends nothing, not even for TLS

    def __init__(self, connection_class: type[Any], kwargs: dict[str, Any], settings: PoolSettings) -> None:
        self.kwargs = kwargs
        self.connection_class, self.handle_class = tracked(connection_class)  # type: ignore[arg-type]  # mypy: a class is not Hashable
        self.settings_changed(settings)
        self.pool_name = ""
        self._resets = True  # the server knows RESET (Redis 6.2)
        self.on_lost: Callable[[], object] = _nothing
        """Called when a connection has ended during a lease. Internal."""
        self._told: set[str] = set()  # what was logged already

    def settings_changed(self, settings: PoolSettings) -> None:
        self._create_timeout = settings.create_timeout
        self._reset_timeout = settings.reset_timeout
        self._query = (settings.validation_query or "PING").split()

    def create(self) -> Client:
        conn = self.connection_class(**self.kwargs)
        if getattr(conn, "socket_connect_timeout", 0.0) is None:
            conn.socket_connect_timeout = self._create_timeout
        retry = getattr(conn, "retry", None)
        conn.retry = _ONCE  # the pool itself tries again, for all who wait, and one at a time
        try:
            conn.connect()
            if hasattr(conn, "send_command"):
                self._ping(conn)  # a server that is still loading its data accepts connections
        except BaseException:
            conn.disconnect()
            raise
        conn.retry = retry
        conn.lost = ""
        _watch(conn)
        return Client(conn, self.connection_class, self.kwargs)

    def _ping(self, conn: Any) -> None:
        try:
            conn.send_command(*self._query, check_health=False)
            conn.read_response()
        except BusyLoadingError:
            raise
        except ResponseError:  # the account may not have the right, but the server has answered
            conn.marks.clear()

    def is_alive(self, resource: Client) -> bool:
        conn = resource.own
        sock = getattr(conn, "_sock", None)
        if sock is None:
            return False
        known = conn.poll
        if known is None or known[0] is not sock:
            known = _watch(conn)
        if known[2] is not socket.socket:
            return False  # gevent has patched since: it would block the hub
        return known[1] is None or not known[1](0)  # nothing may come unasked

    def validate(self, resource: Client, timeout: float) -> None:
        conn = resource.own
        with _limited(conn, timeout):
            self._ping(conn)

    def refuse(self, resource: Client, waiting: bool) -> str | None:
        conn = resource.own
        raw = resource.raw
        if raw:
            resource.end_lease()
        if getattr(conn, "_sock", None) is None:
            if conn.reported:
                return None  # `is_broken` is called next
            return "broken" if conn.lost else "disconnected"
        conn.lost = ""
        if conn.should_reconnect():
            return "reconnect"
        if (conn.marks or conn.unread) and not (raw and self._resets and self._can_reset(conn)):
            self._tell(conn)
            return "unclean"
        return None

    @staticmethod
    def _can_reset(conn: Any) -> bool:
        return not conn.unread and UNFIT.isdisjoint(conn.marks)

    def _tell(self, conn: Any) -> None:
        """Log what a connection was left in, once for each kind."""
        what = ", ".join(sorted(conn.marks)) or "unread replies"
        if what not in self._told:
            self._told.add(what)
            text = "pool %r: a connection was released in this state, and is closed (logged once): %s"
            logger.warning(text, self.pool_name, what, extra=fields("left_unclean", self.pool_name, what=what))

    def reset(self, resource: Client) -> bool:
        conn = resource.own
        if not (conn.marks or conn.unread):
            return bool(monotonic() - conn.replied < ANSWER_TTL)  # its server has just answered
        if not self._can_reset(conn):
            raise ConnectionError("replies were not read")  # `refuse` has closed it, or has failed
        try:
            with _limited(conn, self._reset_timeout):
                conn.send_command("RESET", check_health=False)
                conn.read_response()
                self._log_in_again(conn)
        except BaseException as error:
            conn.disconnect()
            self._resets = not isinstance(error, ResponseError)
            raise
        conn.marks = set()
        return True

    @staticmethod
    def _log_in_again(conn: Any) -> None:
        conn.connecting += 1
        try:
            (conn.redis_connect_func or type(conn).on_connect)(conn)
        finally:
            conn.connecting -= 1

    def evicted(self, resource: Client, reason: str) -> None:
        if resource.own.lost == "ended":
            self.on_lost()

    def close(self, resource: Client) -> None:
        resource.end_lease()
        resource.own.disconnect()

    def interrupt(self, resource: Client) -> None:
        sock = getattr(resource.own, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def abandon(self, resource: Client) -> None:
        resource.end_lease()
        resource.own.disconnect()  # in another process than it was made in, it only closes the descriptor
        resource.own.pid = os.getpid()

    def is_broken(self, resource: Client, error: BaseException) -> bool:
        return not self.is_alive(resource)

    def is_final(self, error: BaseException) -> bool:
        return super().is_final(error) or isinstance(
            error, (AuthenticationError, AuthorizationError, ResponseError, DataError)
        )

    def ping(self, timeout: float) -> None:
        try:
            self.create().own.disconnect()
        except ResponseError:
            pass  # it has answered
        except ConnectionError as error:
            if not self.is_full(error):
                raise

    def is_full(self, error: BaseException) -> bool:
        return isinstance(error, ConnectionError) and "max number of clients" in str(error)


def _nothing() -> None:
    pass


def _watch(conn: Any) -> tuple[Any, Any, type[Any]]:
    """Return, and keep, what `is_alive` needs to know of a connection's socket."""
    sock = getattr(conn, "_sock", None)
    conn.poll = known = (sock, _polls(sock), socket.socket)
    return known


def _polls(sock: Any) -> Any:
    """Return the method that polls a socket; ``None`` on Windows, or for a stand-in of a test."""
    poll = native_poll()
    if poll is None:
        return None
    poller = poll()
    try:
        poller.register(sock.fileno(), _EVENTS)
    except (AttributeError, TypeError, ValueError, OSError):
        return None
    return poller.poll


class _limited:
    """Limits the time of each read and write of a connection in a block."""

    def __init__(self, conn: Any, timeout: float) -> None:
        self._conn, self._timeout = conn, timeout

    def __enter__(self) -> None:
        self._conn._sock.settimeout(max(self._timeout, _SHORTEST))

    def __exit__(self, *error: object) -> None:
        sock = self._conn._sock
        if sock is not None:
            sock.settimeout(self._conn.socket_timeout)
