"""The service under the HTTP benchmark, in a process of its own: answers late, counts connections.

``python -m tests.performance.http_server DELAY CERTIFICATE KEY`` prints its port.
It does next to nothing for a request, so that the client's work shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Service", "serving"]

CHECKOUT = Path(__file__).resolve().parents[2]
BODY = b'{"symbol": "ACME", "price": 12.5}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


class Service:
    """The benchmark's side of it."""

    def __init__(self, process: subprocess.Popen[str], secure: bool) -> None:
        self._process = process
        assert process.stdout is not None
        self.url = f"http{'s' if secure else ''}://127.0.0.1:{int(process.stdout.readline())}/quote"

    def accepted(self) -> int:
        """Return how many connections it has accepted since the last time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextlib.contextmanager
def serving(delay: float, certificate: Path | None = None, key: Path | None = None) -> Iterator[Service]:
    """Run a service that answers after so many seconds."""
    files = [str(certificate), str(key)] if certificate else []
    command = [sys.executable, "-m", "tests.performance.http_server", str(delay), *files]
    with subprocess.Popen(
        command, cwd=CHECKOUT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Service(process, certificate is not None)
        finally:
            process.kill()


class _Connection(asyncio.Protocol):
    accepted = 0
    delay = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _Connection.accepted += 1
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):  # requests without a body, one at a time
            asyncio.get_running_loop().call_later(self.delay, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER % (len(BODY), BODY))  # type: ignore[attr-defined]


async def _serve(tls: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, ssl=tls, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while await commands.readline():
        number, _Connection.accepted = _Connection.accepted, 0
        print(number, flush=True)


def _main(delay: str, *files: str) -> None:
    _Connection.delay = float(delay)
    tls = None
    if files:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*files)
    asyncio.run(_serve(tls))


if __name__ == "__main__":
    _main(*sys.argv[1:])
