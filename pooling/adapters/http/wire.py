"""A connection of urllib3 with a deadline, a write timeout and counts of bytes.

`with_deadline` adds `Wire` to the connection class that urllib3 would use
(plain, TLS, through SOCKS). `Wire` overrides `send`, and the reader under the
answer of ``http.client``. So it works for every kind of socket, including
gevent's.
"""

from __future__ import annotations

import functools
import http.client
import io
import math
import os
import select
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import urllib3.connection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from ...core.hangup import native_poll
from .limits import Limits, OutOfTime

if TYPE_CHECKING:
    _Connection = urllib3.connection.HTTPConnection
else:
    _Connection = object

__all__ = ["Wire", "with_deadline"]

_MAX_INTERIM = 100  # answers of status 1xx before the final one
_CHUNK = 16384  # bytes sent at once: the write timeout applies to each chunk; one TLS record


class Wire(_Connection):
    """What is added to a connection class of urllib3.

    Attributes:
        on_connected: Called with the seconds that it took to connect.
        on_closed: Called with the seconds from then until its socket was closed.
        limits: The time limits of the current request.
        reused: Whether it was connected already when that request began.
        sent, received: Bytes of that request and its answer so far, without
            those of a ``send`` that failed.
        maybe_sent: Whether the server may have received a part of that request.
        opened: Whether it was ever connected.
        connected_at: When it was connected, by the monotonic clock; it has no such attribute while it is not.
        address: To connect to, instead of the addresses of the host.
        open_socket: The socket. Unlike ``sock``, which urllib3 resets when the
            server announces that it will close the connection, it is kept
            until the answer is read.
        answer: The last answer, as ``http.client`` reads it.
        surplus_socket: The socket, if it received more bytes than the answer.
        authenticated: Whether it was logged in for one user, see `logins`.
        interrupted: Whether the pool has shut it down, so that an end of the
            body is not the real end.
    """

    on_connected: Callable[[float], object]
    on_closed: Callable[[float], object]
    connected_at: float
    limits: Limits | None = None
    reused = maybe_sent = opened = authenticated = interrupted = False
    sent = received = 0
    open_socket: Any = None
    address: str | None = None
    answer: Answer | None = None
    surplus_socket: Any = None

    def begin(self, limits: Limits) -> None:
        """Begin a request with these limits."""
        self.limits = limits
        self.reused = self.sock is not None
        self.maybe_sent = False
        self.sent = self.received = 0

    def connect(self) -> None:
        began = monotonic()
        super().connect()
        self.open_socket = self.sock
        self.opened = True
        self.maybe_sent = self.interrupted = False
        self.sent = self.received = 0  # bytes of a proxy's tunnel do not count
        self.connected_at = monotonic()
        self.on_connected(self.connected_at - began)

    def getresponse(self) -> Any:
        sock = self.sock
        response = super().getresponse()
        if self.sock is None:
            self.open_socket = sock  # `http.client` has closed it, but it stays open until the answer is read
        return response

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        limits = self.limits
        if limits is None:
            super().send(data)
        elif not isinstance(data, (bytes, bytearray, memoryview)) or (type(data) is bytes and len(data) <= _CHUNK):
            self._send(data, limits)
        else:  # a socket's timeout is for all data of one call
            view = memoryview(data).cast("B")
            for start in range(0, len(view), _CHUNK):
                self._send(view[start : start + _CHUNK], limits)

    def _send(self, data: Any, limits: Limits) -> None:
        limit, sock = limits.left(limits.write), self.sock
        # Setting a timeout is a system call, which releases the GIL; urllib3 has set that to connect, often the same.
        if not isinstance(sock, socket.socket) or sock.gettimeout() != limit:
            sock.settimeout(limit)
        try:
            super().send(data)
        except ConnectionError:
            raise  # the peer was gone before: if this was the first chunk, nothing of it was sent
        except BaseException:
            self.maybe_sent = True
            raise
        self.maybe_sent = True
        self.sent += len(data) if hasattr(data, "__len__") else 0

    def response_class(  # type: ignore[override]  # called like the class that urllib3 has here
        self, sock: Any, *args: Any, **kwargs: Any
    ) -> http.client.HTTPResponse:
        """Return an answer of ``http.client`` that reads through a `_Reader`."""
        self.answer = Answer(_Source(self, sock), *args, **kwargs)  # type: ignore[arg-type]
        return self.answer

    def _new_conn(self) -> socket.socket:
        limits = self.limits
        if limits is None or (limits.end == math.inf and self.address is None) or not _plain(self):
            return super()._new_conn()
        return self._connect_in_time(limits)

    def _connect_in_time(self, limits: Limits) -> socket.socket:
        """Try the addresses of the host one by one, within the total time."""
        host, connect = self._dns_host, self.timeout
        addresses = [self.address] if self.address is not None else _addresses(self, host)
        try:
            for number, address in enumerate(addresses):
                self._dns_host = address
                self.timeout = limits.left(connect)
                try:
                    sock = super()._new_conn()
                    sock.settimeout(limits.left(connect))  # for the TLS handshake
                    return sock
                except (NewConnectionError, ConnectTimeoutError):
                    if number == len(addresses) - 1:
                        raise
        except OutOfTime as error:
            raise ConnectTimeoutError(self, f"Connection to {host} timed out: {error}") from error
        finally:
            self._dns_host, self.timeout = host, connect
        raise NewConnectionError(self, f"{host} has no address")

    # -- for the pool ---------------------------------------------------------------

    def is_alive(self) -> bool:
        """Whether it can be used: not connected yet, or connected with nothing to read."""
        sock = self.sock
        if sock is None:
            return True
        if isinstance(sock, ssl.SSLSocket):
            return not sock.pending() and (not _readable(sock.fileno()) or _only_tickets(sock))
        return not _readable(sock.fileno())

    def discard_reason(self) -> str | None:
        """Return why it must not be used for another request; ``None`` if it may.

        Bytes that follow an answer would be read as the answer to the next
        request. Bytes that arrive later are detected by `is_alive`.
        """
        if self.authenticated:
            return "authenticated"
        answer = self.answer
        if answer is not None and (not answer.isclosed() or answer.status == http.client.SWITCHING_PROTOCOLS):
            return "unread"
        return "unread" if self.surplus_socket is not None and self.surplus_socket is self.sock else None

    def interrupt(self) -> None:
        """Make the thread that is blocked on it fail now."""
        sock = self.open_socket
        if sock is None or sock.fileno() < 0:
            return
        # A duplicate, because shutdown() of an SSLSocket would remove the TLS state that its holder uses.
        self.interrupted = True
        other = socket.socket(fileno=os.dup(sock.fileno())) if os.name != "nt" else sock.dup()
        with other:
            other.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Close the descriptor only: nothing may be sent on the parent process's connection."""
        for sock in (self.sock, self.open_socket):
            if sock is not None:
                sock.close()

    def close(self) -> None:
        # `http.client` calls this when the server announces the end, but the answer still reads from the socket.
        is_read_later = self.sock is not None and self.answer is not None and self._ends_with(self.answer)
        super().close()
        self.open_socket = self.surplus_socket = self.answer = None
        self.authenticated = False
        if not is_read_later:
            since = vars(self).pop("connected_at", None)  # atomic: two threads may close it at once
            if since is not None:
                self.on_closed(monotonic() - since)

    @staticmethod
    def _ends_with(answer: Answer) -> bool:
        return bool(answer.will_close) and not answer.isclosed()


def _plain(wire: Any) -> bool:
    """Whether its `_new_conn` is urllib3's own, unlike for SOCKS."""
    return type(wire)._new_conn_below is urllib3.connection.HTTPConnection._new_conn  # looked up late, for vcrpy


def _addresses(wire: Any, host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, wire.port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [host]  # urllib3 fails again, with the right error
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class Answer(http.client.HTTPResponse):
    """An answer of ``http.client`` that skips every interim answer (1xx), and can be closed by two threads at once."""

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MAX_INTERIM):
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if not 100 <= found[1] < 200 or found[1] == http.client.SWITCHING_PROTOCOLS:
                return found
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {_MAX_INTERIM} interim answers")

    def close(self) -> None:
        """Close the answer, which two threads may do at once.

        urllib3 closes it again after it has released the connection. By then
        another thread may evict the connection, which closes its last answer.
        """
        try:
            super().close()
        except ValueError:  # "I/O operation on closed file": the other thread was faster
            pass


class _Source:
    """Replaces the socket for ``http.client``, which only calls ``makefile`` on it."""

    def __init__(self, wire: Wire, sock: Any) -> None:
        self._wire, self._sock = wire, sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return _Buffer(_Reader(self._wire, self._sock))


class _Buffer(io.BufferedReader):
    """Detects, when it is closed, whether it has read more from the socket than the answer."""

    raw: _Reader

    def close(self) -> None:
        if not self.closed:
            self.raw.end_at(self.tell())
        super().close()


class _Reader(io.RawIOBase):
    """Reads from a socket within the deadline, and counts bytes."""

    def __init__(self, wire: Wire, sock: Any) -> None:
        self._wire, self._sock = wire, sock
        self._raw = sock.makefile("rb", buffering=0)
        self._count = 0

    def tell(self) -> int:
        """Return how many bytes were read; `_Buffer` computes its own position from it."""
        return self._count

    def end_at(self, position: int) -> None:
        """Record where the answer ended; bytes read beyond are surplus."""
        if position < self._count:
            self._wire.surplus_socket = self._sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        wire = self._wire
        limits = wire.limits
        if limits is not None and limits.end != math.inf:
            self._sock.settimeout(limits.left(wire.timeout))
        if limits is None or limits.hedge is None:
            count: int | None = self._raw.readinto(buffer)
        else:
            count = limits.hedge.read(limits, self._sock, buffer)
        if count == 0 and wire.interrupted:
            raise ConnectionAbortedError("the pool was closed while this answer was read")
        if count:
            wire.received += count
            self._count += count
        return count

    def fileno(self) -> int:
        return self._raw.fileno()  # type: ignore[no-any-return]

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._raw.close()


def _only_tickets(sock: ssl.SSLSocket) -> bool:
    """Whether only TLS messages can be read: a server of TLS 1.3 may send session tickets at any time."""
    timeout = sock.gettimeout()
    try:
        sock.settimeout(0.0)
        sock.recv(1)  # a byte, or the end of the connection
    except ssl.SSLWantReadError:
        return True
    except OSError:
        pass
    finally:
        sock.settimeout(timeout)
    return False


@functools.cache
def with_deadline(connection_class: type[Any]) -> type[Wire]:
    """Return a connection class with `Wire` added."""
    added = {"_new_conn_below": connection_class._new_conn}
    return type(connection_class.__name__, (Wire, connection_class), added)


_poll = native_poll()


def _readable_by_select(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def _readable_by_poll(fd: int) -> bool:
    poll = _poll()  # select() supports no descriptor above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


_readable: Callable[[int], bool] = _readable_by_select if _poll is None else _readable_by_poll
