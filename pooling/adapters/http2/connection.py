"""One connection, and the requests on it."""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

import httpx

from ...errors import LeaseError
from .frames import is_alive

__all__ = ["Body", "Connection"]

_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
"""RFC 9110, section 9.2.2: their effect is the same if they arrive twice."""

_LOST = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class Connection:
    """The resource of the pool: one connection at most, opened by its first request.

    A request to another host replaces it.

    Args:
        options: Arguments of ``httpx.HTTPTransport``.

    Attributes:
        answers: Bodies that were neither read to the end nor replaced.
        cut_off: Whether a body was closed before its end. The server may still send the rest of it.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._busy = threading.Lock()
        self.answers: weakref.WeakSet[Body] = weakref.WeakSet()
        self.cut_off = False
        self._stream: Any = None  # of the connection: httpcore's `NetworkStream`
        self._open()

    def _open(self) -> None:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
        self._transport = httpx.HTTPTransport(http2=True, limits=limits, **self._options)
        self.used = False

    # -- requests -----------------------------------------------------------------

    def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the response, with its body unread.

        It is sent again, on a new connection, if the kept one proves lost, and it cannot take effect twice.

        Raises:
            LeaseError: Another thread uses the connection, or an unread body keeps it from being replaced.
            httpx.HTTPError: As from httpx.
        """
        with self.alone():
            limit(request)
            try:
                response = self._send(request)
            except _LOST:
                if not self.used or self.answers or not _repeatable(request):
                    raise
                self.close()
                self._open()
                limit(request)
                response = self._send(request)
            except httpx.PoolTimeout:
                raise LeaseError(
                    "a response from another host is unread: read or close it first, or acquire another client; "
                    "each has one connection"
                ) from None
        self._stream = response.extensions.get("network_stream", self._stream)
        self.used = True
        body = Body(self, request, response)
        self.answers.add(body)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=body, extensions=response.extensions
        )

    def _send(self, request: httpx.Request) -> httpx.Response:
        if self._stream is None:
            request.extensions = {**request.extensions, "trace": self._note_stream}
        return self._transport.handle_request(request)

    def _note_stream(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]

    def alone(self) -> _Alone:
        """Return a context manager that refuses a second thread."""
        return _Alone(self._busy)

    # -- the connection -------------------------------------------------------------

    def is_alive(self) -> bool:
        """Whether the server has not closed the connection, and has not announced to.

        Frames that came while it was idle (settings, pings, windows) are handled here.
        """
        return is_alive(self._transport, self._stream)

    def close(self) -> None:
        """Close the connection; sends nothing."""
        for body in self.answers:
            body.lost = True
        self._stream = None
        self._transport.close()

    def abandon(self) -> None:
        """After a fork: close the descriptor, and touch no lock, which the parent may have held."""
        sock = self._socket()
        if sock is not None:
            with suppress(OSError):
                sock.close()

    def interrupt(self) -> None:
        """Make a thread that waits for the server fail now."""
        sock = self._socket()
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the TCP connection, beneath TLS

    def _socket(self) -> Any:
        return None if self._stream is None else self._stream.get_extra_info("socket")


class Body(httpx.SyncByteStream):
    """The body of a response.

    Attributes:
        lost: Whether the connection was closed before its end.
    """

    def __init__(self, connection: Connection, request: httpx.Request, response: httpx.Response) -> None:
        self._connection = connection
        self._request = request
        self._stream: Any = response.stream
        self._complete = self.lost = False

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._stream)
        while True:
            if self.lost:
                raise LeaseError("this response was released before its body was read to the end")
            with self._connection.alone():
                limit(self._request)
                chunk = next(chunks, None)
            if chunk is None:
                self._complete = True
                return
            yield chunk

    def close(self) -> None:
        if not self._complete and self in self._connection.answers:
            self._connection.cut_off = True
        self._connection.answers.discard(self)
        self._stream.close()


class _Alone:
    """Refuses a second thread while one is inside."""

    __slots__ = ("_busy",)

    def __init__(self, busy: Any) -> None:
        self._busy = busy

    def __enter__(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise LeaseError("two threads use one client: acquire one for each, streams must not be shared")

    def __exit__(self, *error: object) -> None:
        self._busy.release()


def limit(request: httpx.Request) -> None:
    """Shorten the time limits of a request to what is left of its total.

    Raises:
        httpx.ReadTimeout: Nothing is left.
    """
    timeouts, total = request.extensions.get("timeout", {}), request.extensions.get("total")
    timeouts["pool"] = 0  # the one who could give the connection back is the one who waits
    if total is None:
        return
    deadline = request.extensions.setdefault("deadline", monotonic() + total)
    left = deadline - monotonic()
    if left <= 0:
        raise httpx.ReadTimeout(f"the total time of {total:g} s is over", request=request)
    for name in ("connect", "read", "write"):
        given = timeouts.get(name)
        timeouts[name] = left if given is None else min(given, left)


def _repeatable(request: httpx.Request) -> bool:
    return request.method in _IDEMPOTENT and isinstance(request.stream, httpx.ByteStream)
