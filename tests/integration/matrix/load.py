"""Clients that know the expected response to each request."""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlencode

from .answers import PIECES, ROWS

__all__ = ["Load", "Tally", "disconnect", "fetch", "token_of"]

PATIENCE = 30.0
"""Seconds after which an answer that has not come never will."""


def token_of(n: int) -> str:
    """Return the contents of the row with that number."""
    return hashlib.sha256(str(n).encode()).hexdigest()


def fetch(port: int, what: str, timeout: float = PATIENCE, **query: object) -> bytes:
    """Send one request on a new connection.

    Raises:
        ConnectionError, http.client.HTTPException: Cut off by a worker that died, or a server that restarts.
        ValueError: The response is an error.
        TimeoutError: There was no response.
    """
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        client.request("GET", f"/{what}?{urlencode(query)}", headers={"Connection": "close"})
        answer = client.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ValueError(f"{answer.status}: {text[:500]!r}")
        return text
    finally:
        client.close()


def disconnect(port: int, pieces: int = 1) -> None:
    """Request a stream, read a little, and reset the connection."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET /stream?nonce=x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        for _ in range(pieces):
            client.recv(1000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN


@dataclass
class Tally:
    """The counts of the responses."""

    right: int = 0
    cut: int = 0
    wrong: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


class Load:
    """Threads that send requests until they are stopped.

    Args:
        port: The server's port.
        threads: The number of threads.
    """

    def __init__(self, port: int, threads: int) -> None:
        self.tally = Tally()
        self._port = port
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Tally:
        """Wait for the responses to requests in progress, and return the counts."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            if thread.is_alive():
                self.tally.wrong.append("a client was never answered")
        return self.tally

    def wait(self, answers: int) -> None:
        """Wait until the given number of further responses has arrived, or one is wrong."""
        goal, deadline = self.tally.right + answers, time.monotonic() + 2 * PATIENCE
        while self.tally.right < goal and not self.tally.wrong:
            if time.monotonic() > deadline:
                self.tally.wrong.append(f"{goal - self.tally.right} of {answers} answers never came")
            self._stop.wait(0.02)

    def _run(self) -> None:
        chance = random.Random()
        while not self._stop.is_set():
            what = chance.choices(("row", "transfer", "stream"), (12, 6, 1))[0]
            try:
                complaint = _ask(self._port, what, chance)
            except TimeoutError as error:
                complaint = f"{what}: {error!r}"
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.tally.cut += 1
                self._stop.wait(0.01)
                continue
            except ValueError as error:
                complaint = f"{what}: {error}"
            with self._lock:
                if complaint is None:
                    self.tally.right += 1
                    self.tally.kinds[what] += 1
                else:
                    self.tally.wrong.append(complaint)


def _ask(port: int, what: str, chance: random.Random) -> str | None:
    """Send a request; return a complaint if the response is wrong."""
    n, m = chance.sample(range(1, ROWS + 1), 2)
    nonce = f"{chance.getrandbits(64):x}"
    told = fetch(port, what, n=n, m=m, nonce=nonce).decode()
    if what == "stream":
        expected = "".join(f"{piece} {nonce} {'x' * 4000}\n" for piece in range(1, PIECES + 1))
    else:
        about = n if what == "row" else m
        expected = f"{about} {token_of(about)} {nonce}"
    if told != expected and expected.startswith(told):  # without a Content-Length a cut-off looks like the end
        raise ConnectionError("cut off in the middle")
    return None if told == expected else f"{what} n={n} m={m} nonce={nonce}: {told[:200]!r}"
