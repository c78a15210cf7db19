"""The demo's HTTP service: quotes over keep-alive connections, in its own process.

The demo talks to it over its standard input and output, one JSON object per
line. It ends when its input does, so it cannot outlive the demo.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .certificates import ADDRESS, make_certificates
from .child import answer, requests_of_parent
from .quotes import SYMBOLS, Quote, price_of

__all__ = ["QuoteServer", "main"]

# Close without the TIME_WAIT state: a client without a pool opens hundreds of
# connections a second, which would use up the machine's ports within a minute.
_NO_TIME_WAIT = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class QuoteServer(ThreadingHTTPServer):
    """Serves ``/quotes/<symbol>?piece=<number>`` and records every quote.

    Args:
        delay: Average seconds per answer; actual delays are between half of it
            and one and a half times it.
        seed: Determines the prices.
        tls: The context for https; ``None`` means http.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, delay: float, seed: int, tls: ssl.SSLContext | None = None) -> None:
        self.delay, self.seed, self.tls = delay, seed, tls
        self._lock = threading.Lock()
        self._serial = 0  # guarded by _lock, like the next two
        self._served: list[Quote] = []
        self._accepted = 0
        super().__init__((ADDRESS, 0), _Handler)

    @property
    def url(self) -> str:
        """The URL: scheme, address and port."""
        return f"{'https' if self.tls else 'http'}://{ADDRESS}:{self.server_port}"

    def quote(self, symbol: str, piece: int) -> Quote:
        """Invent the next quote and record it."""
        with self._lock:
            self._serial += 1
            price = price_of(self.seed, symbol, self._serial)
            quote = Quote(self._serial, piece, symbol, price)
            self._served.append(quote)
            return quote

    def take_book(self) -> dict[str, Any]:
        """Return the quotes served and the number of connections accepted since the last call."""
        with self._lock:
            book = {"served": self._served, "accepted": self._accepted}
            self._served, self._accepted = [], 0
            return book

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. The slow handshake is left to the connection's own thread."""
        connection, address = super().get_request()
        with self._lock:
            self._accepted += 1
        if self.tls is not None:
            connection = self.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        """Close a connection whose client has closed it."""
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_TIME_WAIT)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, as they do when the demo is interrupted."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: QuoteServer
    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # headers and body are sent in one packet

    def do_GET(self) -> None:
        """Answer with a quote, or with 404."""
        url = urlsplit(self.path)
        symbol = url.path.removeprefix("/quotes/")
        if symbol not in SYMBOLS:
            return self._send(404, {"error": f"no such symbol: {symbol}"})
        piece = int(parse_qs(url.query).get("piece", ["0"])[0])
        quote = self.server.quote(symbol, piece)
        time.sleep(self.server.delay * (0.5 + quote.serial % 101 / 100))
        return self._send(200, quote._asdict())

    def _send(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: thousands of requests a second."""


def _trusted(authority: Path) -> Path:
    """Return a list of trusted authorities of realistic length: certifi's and ours."""
    import certifi  # always installed with requests, which the clients need

    bundle = authority.with_name("trusted.pem")
    bundle.write_bytes(Path(certifi.where()).read_bytes() + authority.read_bytes())
    return bundle


def main() -> None:
    """Serve until the standard input ends.

    The first line has ``folder``, ``delay`` and ``seed``; its answer has
    ``url``, ``trusted`` and ``maker``. Each further line requests the records.
    """
    orders = requests_of_parent()
    order = next(orders)
    certificates = make_certificates(Path(order["folder"]))
    tls = None
    if certificates is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificates.certificate, certificates.key)
    server = QuoteServer(order["delay"], order["seed"], tls)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answer(
        url=server.url,
        trusted=certificates and str(_trusted(certificates.authority)),
        maker=certificates and certificates.maker,
    )
    for _ in orders:
        answer(**server.take_book())


if __name__ == "__main__":
    main()
