"""One backend of the provider of quotes: ``python -m examples.market.provider NUMBER PORT``.

It prints its port, serves ``/quotes/<symbol>``, and ends when its standard input does, so that it
cannot outlive its parent.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .model import SYMBOLS, Quote, price_of

__all__ = ["Backend", "main"]

_DELAY = 0.005  # seconds for each quote


class Backend(ThreadingHTTPServer):
    """Invents quotes.

    Args:
        number: Which backend this is; its serials begin with it.
        port: 0 means any free one.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, number: int, port: int) -> None:
        self.serials = itertools.count(number * 10**9)
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Backend
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # headers and body in one packet

    def do_GET(self) -> None:
        symbol = self.path.removeprefix("/quotes/")
        if symbol not in SYMBOLS:
            return self._send(404, {"error": "no such symbol"})
        time.sleep(_DELAY)
        serial = next(self.server.serials)
        return self._send(200, Quote(symbol, serial, price_of(symbol, serial))._asdict())

    def _send(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    """Serve until the standard input ends."""
    number, port = map(int, sys.argv[1:3])
    server = Backend(number, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
