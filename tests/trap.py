"""A server that asks each client for its password and records all that it receives."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType

__all__ = ["Trap"]

_SSL, _GSS = 80877103, 80877104  # what a client asks for before anything else
_REFUSED = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0"


class Trap:
    """Speaks as much of PostgreSQL's protocol as it takes to be sent a password in clear.

    Example::

        with Trap() as trap:
            ...                                 # connect to 127.0.0.1:{trap.port}
            assert b"secret" not in trap.heard

    Attributes:
        port: Where it listens, on loopback.
        heard: All that clients have sent.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Trap:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(10)
                try:
                    self._talk(client)
                except OSError:
                    pass

    def _talk(self, client: socket.socket) -> None:
        while True:
            (length,) = struct.unpack("!I", self._read(client, 4))
            body = self._read(client, length - 4)
            if struct.unpack("!I", body[:4])[0] not in (_SSL, _GSS):
                break
            client.sendall(b"N")
        client.sendall(b"R" + struct.pack("!II", 8, 3))  # the password, please, in clear
        self._read(client, 1)
        (length,) = struct.unpack("!I", self._read(client, 4))
        self._read(client, length - 4)
        client.sendall(b"E" + struct.pack("!I", 4 + len(_REFUSED)) + _REFUSED)

    def _read(self, client: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = client.recv(size - len(data))
            if not piece:
                raise ConnectionResetError
            data += piece
            self.heard += piece
        return data
