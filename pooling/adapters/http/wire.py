"""One connection of urllib3's, with what it lacks: a deadline, a time to write, a count of bytes.

`Wire` is put in front of whatever connection class urllib3 would use (plain,
TLS, through SOCKS), by `wired`. What it adds sits where bytes pass: `send`,
and the reader underneath ``http.client``'s answer. So it holds for every kind
of socket, gevent's included.
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
from typing import TYPE_CHECKING, Any, Protocol

import urllib3.connection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from ...core.hangup import native_poll
from .limits import Limits, OutOfTime

if TYPE_CHECKING:
    _Connection = urllib3.connection.HTTPConnection
else:
    _Connection = object

__all__ = ["Wire", "with_deadline"]

_MOST_INTERIM = 100  # answers of status 1xx before the real one
_PIECE = 16384  # bytes that the time to write is for, and sent between two looks at the deadline; one TLS record


class ConnectTimes(Protocol):
    """Where connect times are counted."""

    def connected(self, seconds: float) -> None:
        """Count a connection that was opened."""


class Wire(_Connection):
    """What is added to a connection.

    Attributes:
        limits: Those of the request that it serves now.
        reused: Whether that request found it connected.
        sent, received: Bytes of that request and its answer so far. Of a
            ``send`` that failed nothing is known, and so nothing counted.
        tried: Whether anything of that request may have left.
        opened: Whether it was ever connected.
        line: The socket, also while the answer of a server that closes after
            it is being read: urllib3 has forgotten the socket by then.
        answer: The last answer, as ``http.client`` reads it.
        spoiled: The socket on which more came than the answer to the request.
        personal: Whether it was logged in for one borrower, see `logins`.
        interrupted: Whether the pool has cut it off; what ends then did not end by itself.
    """

    metrics: ConnectTimes
    limits: Limits | None = None
    reused = tried = opened = personal = interrupted = False
    sent = received = 0
    line: Any = None
    answer: Answer | None = None
    spoiled: Any = None

    def begin(self, limits: Limits) -> None:
        """Serve a request from now on."""
        self.limits = limits
        self.reused = self.sock is not None
        self.tried = False
        self.sent = self.received = 0

    def connect(self) -> None:
        began = monotonic()
        super().connect()
        self.line = self.sock
        self.opened = True
        self.tried = self.interrupted = False
        self.sent = self.received = 0  # a tunnel's do not count
        self.metrics.connected(monotonic() - began)

    def getresponse(self) -> Any:
        sock = self.sock
        response = super().getresponse()
        if self.sock is None:
            self.line = sock  # closed by `http.client`, and open until the answer is read
        return response

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        limits = self.limits
        if limits is None:
            super().send(data)
        elif not isinstance(data, (bytes, bytearray, memoryview)) or (type(data) is bytes and len(data) <= _PIECE):
            self._send(data, limits)
        else:  # a socket's time limit is for all that one call sends
            view = memoryview(data).cast("B")
            for start in range(0, len(view), _PIECE):
                self._send(view[start : start + _PIECE], limits)

    def _send(self, data: Any, limits: Limits) -> None:
        self.sock.settimeout(limits.left(limits.write))
        first = not self.tried
        try:
            super().send(data)
        except ConnectionError:
            # The peer had gone before: the system took nothing of a first piece.
            self.tried = self.tried or not first
            raise
        except BaseException:
            self.tried = True
            raise
        self.tried = True
        self.sent += len(data) if hasattr(data, "__len__") else 0

    def response_class(  # type: ignore[override]  # called like the class that urllib3 has here
        self, sock: Any, *args: Any, **kwargs: Any
    ) -> http.client.HTTPResponse:
        """Make ``http.client``'s answer, reading through a `_Reader`."""
        self.answer = Answer(_Source(self, sock), *args, **kwargs)  # type: ignore[arg-type]
        return self.answer

    def _new_conn(self) -> socket.socket:
        limits = self.limits
        if limits is None or limits.end == math.inf or not _plain(self):
            return super()._new_conn()
        return self._connect_in_time(limits)

    def _connect_in_time(self, limits: Limits) -> socket.socket:
        """Try the host's addresses one by one, all of them within the total."""
        host, connect = self._dns_host, self.timeout
        addresses = _addresses(self, host)
        try:
            for number, address in enumerate(addresses):
                self._dns_host = address
                self.timeout = limits.left(connect)
                try:
                    sock = super()._new_conn()
                    sock.settimeout(limits.left(connect))  # and for the handshake
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
        """Whether it may be used: not connected yet, or connected and silent."""
        sock = self.sock
        if sock is None:
            return True
        if isinstance(sock, ssl.SSLSocket):
            return not sock.pending() and (not _readable(sock.fileno()) or _only_tickets(sock))
        return not _readable(sock.fileno())

    def why_not_again(self) -> str | None:
        """Why it may not serve another request after the last answer; ``None`` if it may.

        What comes behind an answer would be taken for the answer to the next
        request. Bytes that arrive later are found by `is_alive`.
        """
        if self.personal:
            return "authenticated"
        answer = self.answer
        if answer is not None and (not answer.isclosed() or answer.status == http.client.SWITCHING_PROTOCOLS):
            return "unread"
        return None if self.spoiled is None or self.spoiled is not self.sock else "unread"

    def interrupt(self) -> None:
        """Make whoever is blocked on it fail now."""
        sock = self.line
        if sock is None or sock.fileno() < 0:
            return
        # A handle of our own: shutdown() of an SSLSocket would drop what its holder uses.
        self.interrupted = True
        other = socket.socket(fileno=os.dup(sock.fileno())) if os.name != "nt" else sock.dup()
        with other:
            other.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Close the descriptor only: no byte and no goodbye goes to the parent's peer."""
        for sock in (self.sock, self.line):
            if sock is not None:
                sock.close()

    def close(self) -> None:
        super().close()
        self.line = self.spoiled = self.answer = None
        self.personal = False


def _plain(wire: Any) -> bool:
    """Whether its `_new_conn` is urllib3's own (one through SOCKS is not)."""
    return type(wire)._new_conn_below is urllib3.connection.HTTPConnection._new_conn  # late: a cassette replaces it


def _addresses(wire: Any, host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, wire.port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [host]  # urllib3 fails again, and has the right words for it
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class Answer(http.client.HTTPResponse):
    """``http.client``'s answer; it skips every interim answer, not only a 100."""

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM):
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if not 100 <= found[1] < 200 or found[1] == http.client.SWITCHING_PROTOCOLS:
                return found
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {_MOST_INTERIM} interim answers")


class _Source:
    """Stands for the socket where ``http.client`` asks for a file to read from."""

    def __init__(self, wire: Wire, sock: Any) -> None:
        self._wire, self._sock = wire, sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return _Buffer(_Reader(self._wire, self._sock))


class _Buffer(io.BufferedReader):
    """Notes at its end whether it has read more from the socket than the answer."""

    raw: _Reader

    def close(self) -> None:
        if not self.closed:
            self.raw.end_at(self.tell())
        super().close()


class _Reader(io.RawIOBase):
    """Reads from a socket, within the deadline, and counts."""

    def __init__(self, wire: Wire, sock: Any) -> None:
        self._wire, self._sock = wire, sock
        self._raw = sock.makefile("rb", buffering=0)
        self._count = 0

    def tell(self) -> int:
        """Return how many bytes were read; the buffer above tells by it how many of them it has left."""
        return self._count

    def end_at(self, position: int) -> None:
        """Note that the answer ended there."""
        if position < self._count:
            self._wire.spoiled = self._sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        wire = self._wire
        limits = wire.limits
        if limits is not None and limits.end != math.inf:
            self._sock.settimeout(limits.left(wire.timeout))
        count: int | None = self._raw.readinto(buffer)
        if count == 0 and wire.interrupted:
            raise ConnectionAbortedError("the pool has cut off this answer")
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
    """Whether what can be read is TLS's own business: a server of TLS 1.3 sends tickets when it likes."""
    timeout = sock.gettimeout()
    try:
        sock.settimeout(0.0)
        sock.recv(1)  # a byte, or the end
    except ssl.SSLWantReadError:
        return True
    except OSError:
        pass
    finally:
        sock.settimeout(timeout)
    return False


@functools.cache
def with_deadline(connection_class: type[Any]) -> type[Wire]:
    """Return a class of connections that are `Wire` as well."""
    added = {"_new_conn_below": connection_class._new_conn}
    return type(connection_class.__name__, (Wire, connection_class), added)


_poll = native_poll()


def _readable_by_select(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def _readable_by_poll(fd: int) -> bool:
    poll = _poll()  # select() knows no descriptor above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


_readable: Callable[[int], bool] = _readable_by_select if _poll is None else _readable_by_poll
