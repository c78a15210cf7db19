"""HTTP servers for the tests, each in a process of its own: well-behaved and misbehaving.

`WebServer` and `ForwardProxy` are the tests' side; ``python -m tests.web`` is
the other. A server ends when its owner does: it reads its commands from a
pipe, and ends with it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

__all__ = ["ForwardProxy", "WebServer"]

ROOT = Path(__file__).parents[1]
LOOPBACK = "127.0.0.1"


class WebServer:
    """A server of HTTP/1.1 with keep-alive.

    What it does depends on the path, see `_Exchange`. It keeps a record of the
    connections that it accepted and the requests that it got.

    Args:
        certificate: File with its certificate and key; ``None``: no TLS.
        per_connection: Number of requests after which it closes a connection without
            announcing it.
        delay: Seconds before each answer.
        port, bind: Where it listens; a free port unless one is given.
        kind: ``"server"``, or ``"proxy"``.
    """

    kind = "server"

    def __init__(
        self, certificate: str | None = None, *, per_connection: int = 0, delay: float = 0.0, host: str = LOOPBACK,
        port: int = 0, bind: str = LOOPBACK,
    ) -> None:  # fmt: skip
        self.port = port
        self.host = host
        self._options = ["--bind", bind, "--per-connection", str(per_connection), "--delay", str(delay)]
        if certificate is not None:
            self._options += ["--certificate", certificate]
        self.scheme = "http" if certificate is None else "https"
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address, which stays the same after a restart."""
        return f"{self.scheme}://{self.host}:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.web", self.kind, "--port", str(self.port), *self._options],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """``kill -9`` it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def tell(self, command: str) -> Any:
        """Send a command and return the answer."""
        with self._lock:
            process = self._process
            assert process is not None and process.stdin is not None and process.stdout is not None
            process.stdin.write(command + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

    def book(self) -> dict[str, Any]:
        """Return its record: ``accepted``, ``open``, ``requests``, ``most`` at once, ``paths``."""
        return self.tell("book")  # type: ignore[no-any-return]

    def new_book(self) -> None:
        """Begin a new record."""
        self.tell("new_book")

    def answer_always(self, status: int, after: str = "") -> None:
        """Answer every request with this status, and this ``Retry-After``; 0 ends it, -1 resets the connection."""
        self.tell(f"status {status} {after}")

    def be_slow(self, seconds: float) -> None:
        """Answer so much later."""
        self.tell(f"delay {seconds}")

    def hang_up(self) -> None:
        """Close all connections, and continue to serve."""
        self.tell("hang_up")

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


class ForwardProxy(WebServer):
    """A proxy for CONNECT and for plain requests with absolute URLs; requires ``user:secret`` if configured."""

    kind = "proxy"


# -- the server process -------------------------------------------------------------


class _Book:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.accepted = self.total = self.serial = self.now = self.most = 0
        self.open: set[Any] = set()
        self.paths: Counter[str] = Counter()
        self.times: Counter[str] = Counter()

    def clear(self) -> None:
        with self.lock:
            self.accepted = self.serial = self.most = 0
            self.paths.clear()
            self.times.clear()

    def as_dict(self) -> dict[str, Any]:
        with self.lock:
            return {
                "accepted": self.accepted, "open": len(self.open), "requests": self.serial,
                "most": self.most, "paths": dict(self.paths),
            }  # fmt: skip


class _Hangup(Exception):
    """End the connection."""


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.book = _Book()
        self.tls = None
        if options.certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(options.certificate)
        self.status, self.after = 0, ""
        super().__init__((options.bind, options.port), _Proxying if options.kind == "proxy" else _Serving)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing about clients that disconnect."""


class _Serving(socketserver.BaseRequestHandler):
    """One connection."""

    server: _Server

    def setup(self) -> None:
        book = self.server.book
        with book.lock:
            book.accepted += 1
            book.total += 1
            self.number = book.total
            book.open.add(self.request)
        self.raw = self.request
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.file = self.request.makefile("rb")

    def finish(self) -> None:
        with self.server.book.lock:
            self.server.book.open.discard(self.raw)
        self.file.close()
        self.request.close()

    def handle(self) -> None:
        served = 0
        most = self.server.options.per_connection
        try:
            while not most or served < most:
                exchange = _read(self, served)
                if exchange is None:
                    return
                self.serve(exchange)
                served += 1
        except (OSError, _Hangup):
            pass

    def serve(self, exchange: _Exchange) -> None:
        book = self.server.book
        with book.lock:
            book.now += 1
            book.most = max(book.most, book.now)
            book.serial += 1
            book.paths[exchange.path] += 1
            exchange.serial = book.serial
        try:
            time.sleep(self.server.options.delay)
            exchange.answer()
        finally:
            exchange.count_out()


def _read(connection: _Serving, served: int) -> _Exchange | None:
    """Read a request with its body."""
    line = connection.file.readline().decode("latin-1").split()
    if len(line) != 3 or not line[2].startswith("HTTP/"):  # a TLS handshake is random, and may contain two spaces
        return None
    headers: list[tuple[str, str]] = []
    while True:
        row = connection.file.readline().decode("latin-1").strip()
        if not row:
            break
        name, _, value = row.partition(":")
        headers.append((name.strip(), value.strip()))
    fields = {name.lower(): value for name, value in headers}
    exchange = _Exchange(connection, line[0], line[1], headers, fields, served)
    if exchange.path != "/unread":
        exchange.body = _read_body(connection, fields)
    return exchange


def _read_body(connection: _Serving, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding", "").lower() == "chunked":
        parts = []
        while size := int(connection.file.readline(), 16):
            parts.append(connection.file.read(size))
            connection.file.readline()
        connection.file.readline()
        return b"".join(parts)
    return connection.file.read(int(fields.get("content-length", 0)))  # type: ignore[no-any-return]


class _Exchange:
    """A request and its response; each ``do_PATH`` is one behaviour."""

    serial = 0
    counted = True
    body = b""

    def __init__(
        self, connection: _Serving, method: str, target: str, headers: list[tuple[str, str]],
        fields: dict[str, str], served: int,
    ) -> None:  # fmt: skip
        self.connection, self.method, self.target = connection, method, target
        self.headers, self.fields, self.served = headers, fields, served
        parsed = urlsplit(target)
        self.path = parsed.path
        self.query = dict(parse_qsl(parsed.query))

    def number(self, name: str, default: float = 0.0) -> float:
        return float(self.query.get(name, default))

    def answer(self) -> None:
        status, after = self.connection.server.status, self.connection.server.after
        if status < 0:
            self.reset()
        if status:
            self.reply_json(self.described(), *([("Retry-After", after)] if after else []), status=status)
            return
        getattr(self, "do_" + self.path.strip("/").partition("/")[0].replace("-", "_"), self.do_nothing)()

    def count_out(self) -> None:
        """Count it as over. Once it is answered, the client may send the next one before this thread runs again."""
        if self.counted:
            self.counted = False
            with self.connection.server.book.lock:
                self.connection.server.book.now -= 1

    def send(self, data: bytes) -> None:
        self.connection.request.sendall(data)

    def head(self, status: int, *rows: tuple[str, str]) -> None:
        self.send(self.lines(status, rows))

    @staticmethod
    def lines(status: int, rows: tuple[tuple[str, str], ...]) -> bytes:
        if "Content-Type" not in dict(rows):
            rows = (*rows, ("Content-Type", "text/plain"))
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in rows), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def reply(self, data: bytes, *rows: tuple[str, str], status: int = 200) -> None:
        head = self.lines(status, (("Content-Length", str(len(data))), *rows))
        self.count_out()
        self.send(head if self.method == "HEAD" else head + data)

    def reply_json(self, value: Any, *rows: tuple[str, str], status: int = 200) -> None:
        self.reply(json.dumps(value).encode(), ("Content-Type", "application/json"), *rows, status=status)

    def described(self) -> dict[str, Any]:
        return {
            "method": self.method, "target": self.target, "headers": self.headers, "fields": self.fields,
            "body": self.body.decode("latin-1"), "serial": self.serial,
            "connection": self.connection.number, "served": self.served,
        }  # fmt: skip

    def do_nothing(self) -> None:
        self.reply(b"nothing here", status=404)

    def do_echo(self) -> None:
        """Return the request."""
        self.reply_json(self.described())

    def do_slow(self) -> None:
        """The same, after the given number of seconds."""
        time.sleep(self.number("s"))
        self.do_echo()

    def do_status(self) -> None:
        """Answer ``/status/CODE`` for the first ``times`` with this ``key``, then 200."""
        book, key = self.connection.server.book, self.query.get("key", "")
        with book.lock:
            book.times[key] += 1
            done = book.times[key] > self.number("times", 1e9)
        rows = [("Retry-After", self.query["after"])] if "after" in self.query else []
        status = 200 if done else int(self.path.rsplit("/", 1)[1])
        self.reply_json(self.described(), *rows, status=status)

    def do_redirect(self) -> None:
        """Redirect to the URL ``to``."""
        self.reply(b"", ("Location", self.query["to"]), status=int(self.number("code", 302)))

    def do_loop(self) -> None:
        """Redirect to itself."""
        self.reply(b"", ("Location", "/loop"), status=302)

    def do_cookie(self) -> None:
        """Set a cookie for each argument."""
        self.reply_json(self.described(), *(("Set-Cookie", f"{n}={v}; Path=/") for n, v in self.query.items()))

    def do_digest(self) -> None:
        """Describe the request to a client that knows the ``word`` of ``user``; else ask for it (RFC 7616)."""
        kind, _, given = self.fields.get("authorization", "").partition(" ")
        if kind == "Digest" and _proves("user", "word", self.method, parse_keqv_list(parse_http_list(given))):
            length = int(self.number("n"))
            self.reply(b"d" * length) if length else self.do_echo()
        else:
            self.reply(b"who?", ("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth"'), status=401)

    def do_gzip(self) -> None:
        """Compressed, if the client accepts it."""
        data = b"well compressed " * 100
        if "gzip" in self.fields.get("accept-encoding", ""):
            self.reply(gzip.compress(data), ("Content-Encoding", "gzip"))
        else:
            self.reply(data)

    def do_stream(self) -> None:
        """``n`` chunks of ``size`` bytes, ``s`` seconds apart."""
        self.head(200, ("Transfer-Encoding", "chunked"))
        chunk = b"x" * int(self.number("size", 10))
        for _ in range(int(self.number("n", 3))):
            self.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            time.sleep(self.number("s"))
        self.send(b"0\r\n\r\n")

    def do_bytes(self) -> None:
        """The given number of bytes."""
        self.reply(b"b" * int(self.number("n", 10)))

    def do_drip(self) -> None:
        """Single bytes with pauses, for a minute."""
        self.head(200, ("Content-Length", "100000"))
        for _ in range(600):
            self.send(b".")
            time.sleep(0.1)
        raise _Hangup

    def do_drip_head(self) -> None:
        """The same before the headers are complete."""
        self.send(b"HTTP/1.1 200 Whatever\r\nX-Slow: ")
        for _ in range(600):
            self.send(b".")
            time.sleep(0.1)
        raise _Hangup

    def do_stall(self) -> None:
        """Nothing at all, for a minute."""
        time.sleep(60)
        raise _Hangup

    def do_stall_body(self) -> None:
        """The first half of a body, then nothing."""
        self.head(200, ("Content-Length", "1000"))
        self.send(b"h" * 500)
        time.sleep(60)
        raise _Hangup

    def do_half(self) -> None:
        """Half a body, then close."""
        self.head(200, ("Content-Length", "1000"))
        self.send(b"h" * 500)
        raise _Hangup

    def do_reset(self) -> None:
        """Reset without a byte."""
        self.reset()

    def do_reset_body(self) -> None:
        """Reset in the middle of the body."""
        self.head(200, ("Content-Length", "1000"))
        self.send(b"h" * 500)
        time.sleep(0.2)
        self.reset()

    def reset(self) -> None:
        sock = self.connection.raw if self.connection.server.tls is None else self.connection.request
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.file.close()
        sock.close()
        raise _Hangup

    def do_die_when_kept(self) -> None:
        """Answer on a new connection; disconnect without a byte on a reused one."""
        if self.served:
            raise _Hangup
        self.do_echo()

    def do_half_head_when_kept(self) -> None:
        """Answer on a new connection; on a reused one send a few bytes and reset."""
        if self.served:
            self.send(b"HTTP/1.1 200 Whatever\r\nX-")
            time.sleep(0.2)
            self.reset()
        self.do_echo()

    def do_goodbye(self) -> None:
        """Announce that the connection will be closed, and close it."""
        self.reply_json(self.described(), ("Connection", "close"))
        raise _Hangup

    def do_unread(self) -> None:
        """Do not read the request's body, for a minute."""
        time.sleep(60)
        raise _Hangup


def _proves(user: str, word: str, method: str, given: dict[str, str]) -> bool:
    def md5(*parts: str) -> str:
        return hashlib.md5(":".join(parts).encode(), usedforsecurity=False).hexdigest()

    secret, asked = md5(user, "r", word), md5(method, given["uri"])
    return given["response"] == md5(secret, "n", given["nc"], given["cnonce"], "auth", asked)


class _Proxying(_Serving):
    """One connection to the proxy."""

    def serve(self, exchange: _Exchange) -> None:
        book = self.server.book
        with book.lock:
            book.serial += 1
            book.paths[exchange.target if exchange.method == "CONNECT" else urlsplit(exchange.target).netloc] += 1
            if credentials := exchange.fields.get("proxy-authorization"):
                book.paths[credentials] += 1
        if exchange.method == "CONNECT":
            host, _, port = exchange.target.rpartition(":")
            self.tunnel(host, int(port))
        parsed = urlsplit(exchange.target)
        with socket.create_connection((parsed.hostname, parsed.port or 80)) as upstream:
            path = parsed.path + (f"?{parsed.query}" if parsed.query else "")
            rows = [f"{exchange.method} {path} HTTP/1.1", "Connection: close", "Via: 1.1 tests"]
            rows += [f"{name}: {value}" for name, value in exchange.headers if not name.lower().startswith("proxy-")]
            upstream.sendall("\r\n".join([*rows, "", ""]).encode("latin-1") + exchange.body)
            answer = upstream.makefile("rb")
            while data := answer.read1(65536):
                self.request.sendall(data)
                if data.endswith(b"}"):  # the end of the response to ``/echo``, which would keep the connection open
                    return

    def tunnel(self, host: str, port: int) -> None:
        with socket.create_connection((host, port)) as upstream:
            self.request.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=_copy, args=(upstream, self.request), daemon=True)
            back.start()
            _copy(self.request, upstream)
        raise _Hangup


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["server", "proxy"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bind", default=LOOPBACK)
    parser.add_argument("--certificate")
    parser.add_argument("--per-connection", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    server = _Server(parser.parse_args())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    for line in sys.stdin:  # its end is also ours
        if line.strip() == "hang_up":
            with server.book.lock:
                for sock in server.book.open:
                    try:
                        sock.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
        if line.startswith("status "):
            _, status, *after = line.split()
            server.after, server.status = "".join(after), int(status)
        if line.startswith("delay "):
            server.options.delay = float(line.split()[1])
        if line.strip() == "new_book":
            server.book.clear()
        print(json.dumps(server.book.as_dict()), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main()
