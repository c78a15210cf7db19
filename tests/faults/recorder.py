"""A server that records what it receives, and connections that name the sending process.

A process cannot use another process's connection unnoticed: every word carries
the sender's process id, and the server sees the end of each connection.
Imported by the tests, which run the server, and by the programs that they
start, which use the connections.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # else getaddrinfo does, in a thread, and a child waits for that import for ever
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from pooling import Adapter

LOOPBACK = "127.0.0.1"
PATIENCE = 20.0


class Record:
    """What the server knows of one connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.heard: list[tuple[int, str]] = []  # process id, word
        self.ended = False

    @property
    def maker(self) -> int:
        """The process that made the connection: the first to send a word."""
        return self.heard[0][0]

    @property
    def words(self) -> list[str]:
        """All words, of any process."""
        return [word for _, word in self.heard]

    @property
    def foreign(self) -> list[tuple[int, str]]:
        """The words of processes that did not make the connection."""
        return [(speaker, word) for speaker, word in self.heard if speaker != self.maker]


class Recorder:
    """The server; answers each word with the connection's number and the word."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.records: list[Record] = []

    def __enter__(self) -> Recorder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # `close` alone would not end the accept
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            record = Record(len(self.records))
            self.records.append(record)
            threading.Thread(target=self._listen, args=(peer, record), daemon=True).start()

    def _listen(self, peer: socket.socket, record: Record) -> None:
        with peer, peer.makefile("rw") as lines:
            try:
                for line in lines:
                    speaker, word = line.split()
                    record.heard.append((int(speaker), word))
                    lines.write(f"{record.number} {word}\n")
                    lines.flush()
            except (OSError, ValueError):
                pass  # reset, or two processes wrote at the same time
            finally:
                record.ended = True

    def made_by(self, process: int) -> list[Record]:
        """Return the connections that a process made."""
        return [record for record in self.records if record.heard and record.maker == process]

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for something; say whether it came true in time."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


class Connection:
    """A connection to a `Recorder`; as rude as a driver can be: it speaks when it is destroyed."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection((LOOPBACK, port), timeout=PATIENCE)
        self.maker = os.getpid()
        self.number = self.ask("hello")

    def ask(self, word: str) -> int:
        """Make a round trip."""
        self.say(word)
        answer = b""
        while not answer.endswith(b"\n"):
            more = self.sock.recv(256)
            if not more:
                raise ConnectionError("the server hung up")
            answer += more
        number, echo = answer.split()
        assert echo.decode() == word, f"asked {word!r}, and was answered {echo!r}"
        return int(number)

    def say(self, word: str) -> None:
        """Send one word."""
        self.sock.sendall(f"{os.getpid()} {word}\n".encode())

    def close(self) -> None:
        """Send the goodbye and close the connection."""
        self.say("bye")
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def __del__(self) -> None:
        try:
            self.say("destroyed")
            self.sock.close()
        except (AttributeError, OSError):
            pass


class Connections(Adapter[Connection]):
    """Makes connections, and abandons them in a forked child, as the PostgreSQL adapter does."""

    noun = "line"

    def __init__(self, port: int) -> None:
        self.port = port

    def create(self) -> Connection:
        return Connection(self.port)

    def close(self, resource: Connection) -> None:
        resource.close()

    def abandon(self, resource: Connection) -> None:
        sink = os.open(os.devnull, os.O_RDWR)
        os.dup2(sink, resource.sock.fileno(), inheritable=False)
        os.close(sink)
