"""Counts and times of pools, sent to StatsD over UDP.

``python examples/statsd.py``; it prints what a StatsD server would receive.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

if __name__ == "__main__":  # from a checkout, too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pooling import Observer, Pool


class StatsD(Observer):
    """Sends events; a UDP packet never blocks, and is lost if no server listens."""

    def __init__(self, host: str = "127.0.0.1", port: int = 8125, prefix: str = "pooling") -> None:
        self._address, self._prefix = (host, port), prefix
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def _send(self, pool: str, name: str, value: float = 1, kind: str = "c") -> None:
        self._socket.sendto(f"{self._prefix}.{pool}.{name}:{value:g}|{kind}".encode(), self._address)

    def created(self, pool: str, seconds: float) -> None:
        self._send(pool, "created", seconds * 1000, "ms")

    def closed(self, pool: str, reason: str) -> None:
        self._send(pool, f"closed.{reason}")

    def exhausted(self, pool: str, waiting: int) -> None:
        self._send(pool, "exhausted")

    def timed_out(self, pool: str, waited: float) -> None:
        self._send(pool, "timeouts")

    def leaked(self, pool: str, where: str, held: float) -> None:
        self._send(pool, "leaks")

    def outage_began(self, pool: str, error: BaseException) -> None:
        self._send(pool, "down", 1, "g")

    def outage_ended(self, pool: str, seconds: float) -> None:
        self._send(pool, "down", 0, "g")


def main() -> None:
    """Use a pool, and print what is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        statsd = StatsD(port=server.getsockname()[1])
        with Pool(object, name="db", observers=[statsd], max_size=1) as pool, pool.acquire():
            try:
                pool.acquire(timeout=0)
            except TimeoutError:
                pass
        for _ in range(4):
            print(server.recv(1024).decode())


if __name__ == "__main__":
    main()
