"""A server that answers with exactly the bytes that a test gives it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NamedTuple

__all__ = ["Asked", "RawServer"]


class Asked(NamedTuple):
    """A request as it arrived.

    ``connection`` counts connections from 1, ``nth`` the requests of one from 0.
    """

    connection: int
    nth: int
    line: str
    fields: dict[str, str]
    body: bytes

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]


Answer = Callable[[Asked], bytes | Iterable[bytes] | None]


class RawServer:
    """Serves HTTP/1.1 on a loopback port, from threads of its own.

    Args:
        answer: Returns what to send for a request, as one piece or several;
            ``None`` closes the connection.
        wrap: Applied to each accepted socket, to add TLS.

    Attributes:
        asked: All requests so far.
    """

    def __init__(self, answer: Answer, wrap: Callable[[socket.socket], socket.socket] | None = None) -> None:
        self.answer, self.wrap = answer, wrap
        self.asked: list[Asked] = []
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in (self._listener, *self._open):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def reset(self) -> None:
        """Reset all connections."""
        for one in self._open:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # shutdown() would send an ordinary end; close() has no effect while a thread reads from a copy.
            socket.close(one.detach())

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(self.accepted, sock), daemon=True).start()

    def _serve(self, number: int, plain: socket.socket) -> None:
        try:
            with plain, (self.wrap or (lambda same: same))(plain) as sock, sock.makefile("rb") as file:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                nth = 0
                while (asked := self._read(number, nth, file)) is not None:
                    self.asked.append(asked)
                    answer = self.answer(asked)
                    if answer is None:
                        return
                    for piece in [answer] if isinstance(answer, bytes) else answer:
                        sock.sendall(piece)
                    nth += 1
        except (OSError, ValueError):
            return  # the client or the test has closed it

    @staticmethod
    def _read(number: int, nth: int, file: object) -> Asked | None:
        line = file.readline().decode("latin-1").rstrip("\r\n")  # type: ignore[attr-defined]
        if not line:
            return None
        fields = {}
        while field := file.readline().decode("latin-1").rstrip("\r\n"):  # type: ignore[attr-defined]
            name, _, value = field.partition(":")
            fields[name.lower()] = value.strip()
        body = file.read(int(fields.get("content-length", 0)))  # type: ignore[attr-defined]
        return Asked(number, nth, line, fields, body)


def ok(body: str | bytes, *fields: str, status: str = "200 OK") -> bytes:
    """Return a complete answer."""
    data = body.encode() if isinstance(body, str) else body
    head = "".join(f"{field}\r\n" for field in (f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(data)}", ""))
    return head.encode() + data
