"""The default resources: TCP connections to an echo server that sometimes misbehaves.

The server runs in a separate process (see :mod:`pooling.tools.demo.child`), so
that its memory and descriptors are not part of the soak's figures.
"""

from __future__ import annotations

import random
import select
import socket
import socketserver
import struct
import sys
import threading
import time
from contextlib import suppress

from ...core.adapter import Adapter
from ..demo.child import answer, requests_of_parent

__all__ = ["Connection", "EchoAdapter", "EchoServer", "main"]

_ADDRESS = "127.0.0.1"
_TIMEOUT = 5.0  # seconds a client waits for an answer
_GREETING = b"hello\n"
# Close without the TIME_WAIT state, otherwise a long soak uses up the machine's ports.
_NO_TIME_WAIT = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

_REFUSE, _HANG_UP, _STALL = 0.02, 0.005, 0.01  # probabilities: the first per connection, the others per request
_STALL_SECONDS = 0.1  # maximum
_UP, _DOWN = (2.0, 6.0), (0.2, 0.6)  # ranges in seconds: between two breakdowns, and of one


class Connection:
    """The client's end of one connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((_ADDRESS, port), _TIMEOUT)
        try:
            self._lines = self._socket.makefile("rb")
            if self._lines.readline() != _GREETING:
                raise ConnectionRefusedError("the server hung up without a greeting")
        except BaseException:
            self._socket.close()
            raise

    def ask(self, request: bytes, timeout: float = _TIMEOUT) -> bytes:
        """Send a line and return the reply.

        Raises:
            OSError: The server hung up, or did not answer in time.
        """
        self._socket.settimeout(timeout)
        self._socket.sendall(request + b"\n")
        reply = self._lines.readline()
        if not reply.endswith(b"\n"):
            raise ConnectionResetError("the server hung up without an answer")
        return reply[:-1]

    def quiet(self) -> bool:
        """Whether there is nothing to read: neither an unexpected answer nor the end of the stream."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        """Close it."""
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_TIME_WAIT)
        self._lines.close()
        self._socket.close()

    def shut_down(self) -> None:
        """Make blocked reads fail."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class EchoAdapter(Adapter[Connection]):
    """The adapter for these connections.

    Args:
        port: The server's port.
    """

    noun = "connection"
    enforces_timeouts = True

    def __init__(self, port: int) -> None:
        self._port = port

    def create(self) -> Connection:
        """Connect, and wait for the greeting."""
        return Connection(self._port)

    def is_alive(self, resource: Connection) -> bool:
        """Check whether the server has hung up."""
        return resource.quiet()

    def validate(self, resource: Connection, timeout: float) -> None:
        """Send a ping."""
        if resource.ask(b"ping", max(timeout, 0.001)) != b"ping":
            raise ConnectionError("wrong answer to a ping")

    def close(self, resource: Connection) -> None:
        """Close it."""
        resource.close()

    def interrupt(self, resource: Connection) -> None:
        """Shut it down while it is in use."""
        resource.shut_down()

    def is_broken(self, resource: Connection, error: BaseException) -> bool:
        """Always: after an error an answer may still be pending."""
        return True


class EchoServer(socketserver.ThreadingTCPServer):
    """Greets, echoes lines, and injects faults when told to.

    Args:
        seed: Determines the faults.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, seed: int) -> None:
        super().__init__((_ADDRESS, 0), _Handler)
        self.port: int = self.server_address[1]
        self.dice = random.Random(seed)
        self.faulty = False
        self._lock = threading.Lock()
        self._up = True  # guarded by _lock, like the rest
        self._open: set[socket.socket] = set()
        self._counts = {"refused": 0, "hung up": 0, "stalls": 0, "breakdowns": 0}

    def strikes(self, fault: str, chance: float) -> bool:
        """Decide at random whether a fault occurs, and count it."""
        if not self.faulty or self.dice.random() >= chance:
            return False
        self._count(fault)
        return True

    def _count(self, fault: str) -> None:
        with self._lock:
            self._counts[fault] += 1

    def enter(self, connection: socket.socket) -> bool:
        """Accept a connection, or refuse it."""
        with self._lock:
            if self._up:
                self._open.add(connection)
                return True
        self._count("refused")
        return False

    def leave(self, connection: socket.socket) -> None:
        """Note that a connection has ended."""
        with self._lock:
            self._open.discard(connection)

    def break_down(self) -> None:
        """Repeatedly end every connection and refuse new ones for a moment."""
        while True:
            time.sleep(self.dice.uniform(*_UP))
            if self.faulty:
                self._count("breakdowns")
                with self._lock:
                    self._up = False
                    for connection in self._open:
                        with suppress(OSError):
                            connection.shutdown(socket.SHUT_RDWR)
                time.sleep(self.dice.uniform(*_DOWN))
                with self._lock:
                    self._up = True

    def report(self) -> dict[str, int]:
        """Return the number of faults by kind, and of open connections."""
        with self._lock:
            return {**self._counts, "open": len(self._open)}


class _Handler(socketserver.StreamRequestHandler):
    """One connection."""

    server: EchoServer

    def handle(self) -> None:
        if self.server.strikes("refused", _REFUSE) or not self.server.enter(self.connection):
            return
        with suppress(OSError):
            self.wfile.write(_GREETING)
            for line in self.rfile:
                if self.server.strikes("hung up", _HANG_UP):
                    return
                if self.server.strikes("stalls", _STALL):
                    time.sleep(self.server.dice.random() * _STALL_SECONDS)
                self.wfile.write(line)

    def finish(self) -> None:
        self.server.leave(self.connection)
        with suppress(OSError):
            super().finish()


def main() -> None:
    """Serve for the parent until it sends no more requests or is gone."""
    questions = requests_of_parent()
    order = next(questions, None)
    if order is None:
        return
    server = EchoServer(order["seed"])
    for duty in (server.serve_forever, server.break_down):
        threading.Thread(target=duty, daemon=True).start()
    answer(port=server.port)
    for question in questions:
        server.faulty = question["faults"]
        answer(**server.report())


if __name__ == "__main__":
    main()
