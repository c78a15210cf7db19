"""A reverse proxy as a WSGI application: streams responses over the pool's sockets.

Serve it with any threaded WSGI server (needs urllib3 2.2 or newer)::

    UPSTREAM=https://api.example.com gunicorn --threads 100 "examples.reverse_proxy:from_env()"
    UPSTREAM=... UPSTREAM_HEALTH=/health ...         # probed periodically, for our own /healthz
    UPSTREAM=... HEALTH_TOKEN=secret ...             # "Authorization: Bearer secret" shows counts there
    python examples/reverse_proxy.py --upstream https://api.example.com --port 8080

Without arguments it starts its own service, sends requests to it through the
proxy from several threads, and prints the pool's metrics.

What the proxy guarantees:

- A request goes only to the upstream: its path is appended to the upstream's
  path. Dot segments are resolved first; percent-escapes are kept.
- Hop-by-hop headers end here (RFC 9110, 7.6.1). Anything that cannot be passed
  on unambiguously is refused in both directions: 400 or 502.
- A request's body is read before a connection to the upstream is taken, with a
  minimum rate and a size limit, into memory if it is small, otherwise into a
  file. Slow clients therefore hold no connection: 408 if the body is late, 413
  if it is too long.
- Responses are passed on as they arrive, and never decoded. A response that is
  cut off does not look complete.
- The connection is released when the response has been read (a small one before
  a slow client has received the first byte), or when the client has
  disconnected.
- No wait is endless: 503 and ``Retry-After`` when all connections are in use,
  504 when the upstream is too slow, 502 when it is down or cuts a response off.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from tempfile import SpooledTemporaryFile
from threading import Thread, Timer
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import requests
from requests import exceptions
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import SKIP_HEADER

if __name__ == "__main__":  # from a checkout, too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pooling import HTTPPool, HTTPTimeout, PoolError, PoolSettings

PIECE = 65_536
SMALL = 65_536  # largest body in bytes that is kept in memory
MAX_BODY = 100_000_000  # largest request body in bytes
PATIENCE = 30.0  # seconds for a client to send or receive a piece
HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "trailers", "transfer-encoding", "upgrade",
))  # fmt: skip
NOT_THE_CLIENTS = frozenset((
    "Content-Length", "Expect", "Forwarded", "Host", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix",
    "X-Forwarded-Proto", "X-Real-Ip",
))  # set by the proxy, or dropped  # fmt: skip
METHOD = re.compile(r"(?!CONNECT$|TRACE$)[A-Z][A-Z-]*")
NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
LENGTH = re.compile(r"[0-9]{1,18}")
FOLDED = re.compile(r"[ \t]*[\r\n]+[ \t]*")  # in a header value that spans several lines
DOTS = re.compile(r"(?:^|[/\\])\.\.?(?:[/\\;]|$)")  # what other servers may interpret as dot segments

Environ = dict[str, Any]
Headers = list[tuple[str, str]]


class Refused(Exception):
    """The request is refused; the message is the status of the response."""


class ReverseProxy:
    """The application.

    Args:
        upstream: The URL to forward to; its path is prepended to each request's.
        http: The pool; ``None`` creates a suitable one.
        health_token: Callers that send it to ``/healthz`` see counts; others only up or down.

    Raises:
        ValueError: The upstream is not the URL of an HTTP server.
    """

    def __init__(self, upstream: str, http: HTTPPool | None = None, health_token: str | None = None) -> None:
        parts = urlsplit(upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("upstream must be a URL such as https://api.example.com/v1")
        self.upstream = upstream.rstrip("/")
        self.host = parts.netloc.rpartition("@")[2]
        self.http = http or pool_for(upstream)
        self.health_token = health_token

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            return self.health(environ, start_response)
        if sock := environ.get("gunicorn.socket"):
            sock.settimeout(PATIENCE)
        try:
            return self.forward(environ, start_response)
        except Refused as error:
            status, headers = str(error), {}
        except PoolError:
            status, headers = "503 Service Unavailable", {"Retry-After": "1"}
        except exceptions.Timeout:
            status, headers = "504 Gateway Timeout", {}
        except (exceptions.RequestException, HTTPError):
            status, headers = "502 Bad Gateway", {}
        return reply(environ, start_response, status, f"{status}\n".encode(), headers)

    def forward(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Forward a request, and return its response."""
        method, path, headers = environ["REQUEST_METHOD"], target(environ), request_headers(environ, self.host)
        if not METHOD.fullmatch(method):
            raise Refused("501 Not Implemented")
        with SpooledTemporaryFile(SMALL) as body:
            small = read_body(environ, body) <= SMALL
            body.seek(0)
            lease = self.http.acquire()
            try:
                session = lease.resource
                session.headers.clear()  # send only the client's headers
                data = body.read() if small else body
                request = session.prepare_request(requests.Request(method, self.upstream, headers, data=data))
                assert request.url is not None
                request.url = request.url.rstrip("/") + path  # unchanged: requests would decode part of it
                # Not `session.send`, which reads the body of a redirect even if it does not follow it.
                settings: Any = session.merge_environment_settings(request.url, {}, True, None, None)
                response = session.get_adapter(request.url).send(request, **settings)
                answer = Answer(response, lease.release, environ)
                start_response(answer.status, answer.headers)
            except BaseException:
                lease.release()
                raise
        return answer

    def health(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Report the health of the pool, and of the upstream if it is probed."""
        found = self.http.health_check()
        well = found["status"] in ("healthy", "unknown")
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        status = "200 OK" if well else "503 Service Unavailable"
        body, headers = b"up" if well else b"down", {"Cache-Control": "no-store"}
        if self.health_token and hmac.compare_digest(given, f"Bearer {self.health_token}".encode()):
            names = ("status", "in_use", "idle", "waiting", "max_size")
            body = json.dumps({name: found[name] for name in names}).encode()
            headers["Content-Type"] = "application/json"
        return reply(environ, start_response, status, body, headers)


class Answer:
    """The upstream's response; the WSGI server reads it, and always closes it."""

    def __init__(self, response: requests.Response, done: Callable[[], object], environ: Environ) -> None:
        self._raw, self._done, self._environ = response.raw, done, environ
        self.status = f"{response.status_code} {response.reason if VALUE.fullmatch(response.reason or '') else ''}"
        self.headers = answer_headers(response)
        length = CaseInsensitiveDict(self.headers).get("Content-Length")
        small = length is not None and int(length) <= SMALL
        try:  # the server sends the headers with the first piece, so an error here can still change the status
            self._first = self._raw.read(decode_content=False) if small else self._piece()
        except ReadTimeoutError as error:
            raise exceptions.ReadTimeout(error) from error
        except Exception as error:
            raise exceptions.ConnectionError(error) from error

    def _piece(self) -> bytes:
        """Return the data that has arrived; `stream` would wait until a piece is full."""
        data: bytes = self._raw.read1(PIECE, decode_content=False)
        return data

    def __iter__(self) -> Iterator[bytes]:
        data = self._first
        while data:
            yield data
            try:
                data = self._piece()
            except Exception:
                reset(self._environ)
                raise  # the server closes the connection

    def close(self) -> None:
        """Release the connection to the upstream."""
        done, self._done = self._done, lambda: None
        done()


def pool_for(upstream: str, health_url: str | None = None) -> HTTPPool:
    """Return a pool for several hundred clients."""
    return HTTPPool(
        PoolSettings(min_size=0, max_size=200, max_idle=50, acquire_timeout=5.0), base_url=upstream, max_per_host=200,
        timeout=HTTPTimeout(connect=5, read=30, write=30), trust_env=False, health_url=health_url, name="upstream",
    )  # fmt: skip


def from_env() -> ReverseProxy:
    """Return the application for ``UPSTREAM``, ``UPSTREAM_HEALTH`` and ``HEALTH_TOKEN``."""
    upstream = os.environ["UPSTREAM"]
    http = pool_for(upstream, os.environ.get("UPSTREAM_HEALTH") or None)
    return ReverseProxy(upstream, http, os.environ.get("HEALTH_TOKEN"))


# -- requests --------------------------------------------------------------------------


def target(environ: Environ) -> str:
    """Return path and query as the client wrote them, without dot segments.

    Most servers provide them unchanged, under one of two names. The standard
    variable is decoded, so it cannot distinguish ``%2F`` from a slash.
    """
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if not raw or environ.get("SCRIPT_NAME"):  # the application is mounted below a prefix, which is not forwarded
        query = environ.get("QUERY_STRING")
        raw = quote(environ["PATH_INFO"].encode("latin-1"), safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")
    raw = re.sub(r"^(?i:https?)://[^/?]*", "", raw)  # some clients send the whole URL
    if not raw.startswith("/") or re.search(r"[\x00-\x20\x7f]", raw):
        raise Refused("400 Bad Request")
    raw = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", raw)
    raw = quote(raw.encode("latin-1"), safe="/%:@!$&'()*+,;=~?")
    path, mark, query = raw.partition("?")
    path = without_dots(path)
    if DOTS.search(unquote(path, "latin-1")):
        raise Refused("400 Bad Request")
    return path + mark + query


def without_dots(path: str) -> str:
    """Resolve ``.`` and ``..``, also if they are escaped (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        plain = segment.lower().replace("%2e", ".")
        if plain == "..":
            kept[-1:] = []
        elif plain != ".":
            kept.append(segment)
    if plain in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def request_headers(environ: Environ, host: str) -> dict[str, str]:
    """Return the client's headers, with headers that identify the client."""
    given = end_to_end(
        [(name[5:].replace("_", "-").title(), value) for name, value in environ.items() if name.startswith("HTTP_")]
    )
    headers = {name: value for name, value in given if name not in NOT_THE_CLIENTS}
    if environ.get("CONTENT_TYPE"):
        headers["Content-Type"] = environ["CONTENT_TYPE"]
    before, client = headers.get("X-Forwarded-For"), environ.get("REMOTE_ADDR") or "unknown"
    headers |= {
        "Host": host,
        "X-Forwarded-For": f"{before}, {client}" if before else client,
        "X-Forwarded-Proto": environ["wsgi.url_scheme"],
    }
    if environ.get("HTTP_HOST"):
        headers["X-Forwarded-Host"] = environ["HTTP_HOST"]
    if not all(NAME.fullmatch(name) and VALUE.fullmatch(value) for name, value in headers.items()):
        raise Refused("400 Bad Request")
    for name in ("User-Agent", "Accept-Encoding"):
        headers.setdefault(name, SKIP_HEADER)  # otherwise urllib3 would add its own
    return headers


def read_body(environ: Environ, body: SpooledTemporaryFile[bytes]) -> int:
    """Write the request's body to a file; return its length."""
    rest, size = request_length(environ), 0
    while rest is None or size < rest:
        if max(rest or 0, size) > MAX_BODY:
            raise Refused("413 Content Too Large")
        piece = read_piece(environ, PIECE if rest is None else min(PIECE, rest - size))
        if not piece and rest is None:
            break
        if not piece:  # the client has disconnected, or is late
            raise Refused("408 Request Timeout")
        size += body.write(piece)
    return size


def request_length(environ: Environ) -> int | None:
    """Return the length of the body; ``None`` means that it is known only after reading."""
    length, coding = environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING")
    if coding is None:
        if length and not LENGTH.fullmatch(length):
            raise Refused("400 Bad Request")
        return int(length or 0)
    if length:  # two lengths: chained servers may use different ones
        raise Refused("400 Bad Request")
    if coding.strip().lower() != "chunked":
        raise Refused("501 Not Implemented")
    if not environ.get("wsgi.input_terminated"):  # the server does not support reading it
        raise Refused("411 Length Required")
    return None


def read_piece(environ: Environ, size: int) -> bytes:
    """Read a piece of the body; return nothing if it takes longer than ``PATIENCE``."""
    sock = connection(environ)
    timer = Timer(PATIENCE, stop_reading, [sock])
    timer.daemon = True
    if sock is not None:
        timer.start()
    try:
        piece: bytes = environ["wsgi.input"].read(size)
    except OSError:  # the server's own time limit
        raise Refused("408 Request Timeout") from None
    finally:
        timer.cancel()
        if sock is not None:
            sock.close()
    return piece


# -- answers ---------------------------------------------------------------------------


def answer_headers(response: requests.Response) -> Headers:
    """Return a response's headers, which must determine its end unambiguously."""
    headers = [(name, FOLDED.sub(" ", value)) for name, value in response.raw.headers.items()]
    clean = all(NAME.fullmatch(name) and VALUE.fullmatch(value) for name, value in headers)
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    codings = [value.lower() for name, value in headers if name.lower() == "transfer-encoding"]
    if response.status_code < 200 or not clean or codings not in ([], ["chunked"]):
        raise Refused("502 Bad Gateway")
    if len(lengths) > 1 or not all(LENGTH.fullmatch(length) for length in lengths):
        raise Refused("502 Bad Gateway")
    if codings or response.status_code == 204:
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
    return end_to_end(headers)


def end_to_end(headers: Headers) -> Headers:
    """Remove hop-by-hop headers."""
    values = [value for name, value in headers if name.lower() == "connection"]
    named = {part.strip().lower() for part in ",".join(values).split(",")}
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | named]


def reply(
    environ: Environ, start_response: Callable[..., Any], status: str, body: bytes, headers: dict[str, str]
) -> list[bytes]:
    """Return a response of the proxy itself."""
    headers = {"Content-Type": "text/plain", "Content-Length": str(len(body)), **headers}
    start_response(status, list(headers.items()))
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


# -- the client's connection -----------------------------------------------------------


def connection(environ: Environ) -> socket.socket | None:
    """Return a duplicate of the client's socket, if the server provides it; waitress does not."""
    sock = environ.get("gunicorn.socket") or environ.get("reverse_proxy.socket")
    if sock is not None:
        return socket.socket(fileno=os.dup(sock.fileno()))
    uwsgi = sys.modules.get("uwsgi")
    return socket.socket(fileno=os.dup(uwsgi.connection_fd())) if uwsgi else None


def stop_reading(sock: socket.socket) -> None:
    """End a read that waits for the client."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RD)


def reset(environ: Environ) -> None:
    """End the client's connection with a reset, because a normal close may look like the end of the body."""
    sock = connection(environ) if environ["SERVER_PROTOCOL"].startswith("HTTP/1") else None
    if sock is not None:
        with sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if gunicorn := environ.get("gunicorn.socket"):
                gunicorn.close()  # otherwise gunicorn would shut it down properly first


# -- running it ------------------------------------------------------------------------


class Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each client, enough for trying it out."""

    daemon_threads = True
    request_queue_size = 1024

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without a shutdown, see `reset`


class Quiet(WSGIRequestHandler):
    """Logs nothing, and provides the raw path and the socket of a request."""

    timeout = PATIENCE

    def get_environ(self) -> Environ:
        environ = super().get_environ()
        if "Content-Type" not in self.headers:
            environ["CONTENT_TYPE"] = ""
        return environ | {"REQUEST_URI": self.path, "reverse_proxy.socket": self.connection}

    def log_message(self, *args: object) -> None:
        pass


class Example(BaseHTTPRequestHandler):
    """A service behind the proxy."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"you asked for {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def show() -> None:
    """Send requests to a service through the proxy, from ten threads."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Example) as service:
        Thread(target=service.serve_forever, daemon=True).start()
        proxy = ReverseProxy(f"http://127.0.0.1:{service.server_port}")
        with make_server("127.0.0.1", 0, proxy, Server, Quiet) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"

            def ask() -> None:
                for number in range(20):
                    assert requests.get(f"{url}/page/{number}", timeout=30).text == f"you asked for /page/{number}"

            threads = [Thread(target=ask) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.shutdown()
        (host,) = proxy.http.metrics.hosts()
        proxy.http.close()
        service.shutdown()
    print(f"{host.statuses[200]} answers over {host.opened} sockets, p99 {host.latency.p99 * 1e3:.1f} ms")


def main() -> None:
    """Serve, or run the demonstration."""
    parser = argparse.ArgumentParser(description="A streaming reverse proxy.")
    parser.add_argument("--upstream", metavar="URL", default=os.environ.get("UPSTREAM"))
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    if not options.upstream:
        show()
        return
    with make_server("127.0.0.1", options.port, ReverseProxy(options.upstream), Server, Quiet) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
