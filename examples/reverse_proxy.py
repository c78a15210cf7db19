"""A reverse proxy as a WSGI application: streams both ways over the pool's sockets.

Serve it with any threaded WSGI server (urllib3 must be 2.1 or newer)::

    UPSTREAM=https://api.example.com gunicorn --threads 100 "examples.reverse_proxy:from_env()"
    UPSTREAM=... UPSTREAM_HEALTH=/health ...         # asked now and then, for our own /healthz
    python examples/reverse_proxy.py --upstream https://api.example.com --port 8080

Without arguments it starts a service of its own, asks it through itself from
some threads, and says what the pool has done.

What a proxy owes to both sides, and where it is kept here:

- Headers that are meant for the next hop end here (RFC 9110, 7.6.1).
- Bodies are passed on as they come, in either direction, and never decoded.
- The place at the upstream is given back when the answer has been read,
  small ones before a slow client has taken the first byte, or when the client
  has gone: the server then calls ``close``.
- A request whose length is no number is refused: 400.
- Nobody waits for ever: 503 and ``Retry-After`` when all connections are in
  use, 504 when the upstream is late, 502 when it is down or breaks off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from urllib.parse import quote, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import requests
from requests import exceptions
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import SKIP_HEADER

if __name__ == "__main__":  # from a checkout, too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pooling import HTTPPool, HTTPTimeout, PoolError, PoolSettings

PIECE = 65536
SMALL = 65_536  # bytes of an answer that are read at once, so that a slow client holds nothing
HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "trailers", "transfer-encoding", "upgrade",
))  # fmt: skip

Environ = dict[str, Any]
Headers = list[tuple[str, str]]


class ReverseProxy:
    """The application.

    Args:
        upstream: Where requests go; its path is put before theirs.
        http: The pool; ``None`` makes one that suits.
    """

    def __init__(self, upstream: str, http: HTTPPool | None = None) -> None:
        self.upstream = upstream.rstrip("/")
        self.host = urlsplit(upstream).netloc.rpartition("@")[2]
        self.http = http or pool_for(upstream)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            return self.health(start_response)
        length = environ.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdigit()):
            return refuse(start_response, "400 Bad Request")
        try:
            return self.forward(environ, start_response)
        except PoolError:
            return refuse(start_response, "503 Service Unavailable", [("Retry-After", "1")])
        except exceptions.Timeout:
            return refuse(start_response, "504 Gateway Timeout")
        except exceptions.RequestException:
            return refuse(start_response, "502 Bad Gateway")

    def forward(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Pass a request on, and its answer back."""
        lease = self.http.acquire()
        try:
            session = lease.resource
            session.headers.clear()  # only the client's own
            response = session.request(
                environ["REQUEST_METHOD"], self.upstream + target(environ), headers=request_headers(environ, self.host),
                data=request_body(environ), stream=True, allow_redirects=False,
            )  # fmt: skip
            answer = Answer(response, lease.release)
        except BaseException:
            lease.release()
            raise
        start_response(f"{response.status_code} {response.reason}", answer.headers)
        return answer

    def health(self, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Say how the pool is, and the upstream if it is probed."""
        found = self.http.health_check()
        well = found["status"] in ("healthy", "unknown")
        body = json.dumps({name: found[name] for name in ("status", "in_use", "idle", "waiting", "max_size")}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("200 OK" if well else "503 Service Unavailable", headers)
        return [body]


class Answer:
    """What the upstream answered; the WSGI server reads it, and closes it whatever happens."""

    def __init__(self, response: requests.Response, done: Callable[[], object]) -> None:
        self._raw, self._done = response.raw, done
        self.headers = end_to_end(list(response.raw.headers.items()))
        self._small = b""
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) <= SMALL:
            try:
                self._small = self._raw.read(decode_content=False)
            except ReadTimeoutError as error:  # before a byte was passed on: there is still time to say so
                raise exceptions.ReadTimeout(error) from error
            except Exception as error:
                raise exceptions.ConnectionError(error) from error

    def __iter__(self) -> Iterator[bytes]:
        if self._small:
            yield self._small
        # As it comes: `stream` would wait until a piece is full. An error in here
        # must not look like the end: the server closes the connection.
        while data := self._raw.read1(PIECE, decode_content=False):
            yield data

    def close(self) -> None:
        """Give the place at the upstream back."""
        done, self._done = self._done, lambda: None
        done()


def pool_for(upstream: str, health_url: str | None = None) -> HTTPPool:
    """Return a pool for some hundreds of clients."""
    return HTTPPool(
        PoolSettings(min_size=0, max_size=200, max_idle=50, acquire_timeout=5.0), base_url=upstream, max_per_host=200,
        timeout=HTTPTimeout(connect=5, read=30, write=30), trust_env=False, health_url=health_url, name="upstream",
    )  # fmt: skip


def from_env() -> ReverseProxy:
    """Return the application for what ``UPSTREAM`` and ``UPSTREAM_HEALTH`` name."""
    upstream = os.environ["UPSTREAM"]
    return ReverseProxy(upstream, pool_for(upstream, os.environ.get("UPSTREAM_HEALTH")))


def target(environ: Environ) -> str:
    """Return path and query as the client wrote them, or near enough."""
    path = quote(environ.get("PATH_INFO", "").encode("latin-1"), safe="/:@!$&'()*+,;=~%")
    query = environ.get("QUERY_STRING")
    return f"{path}?{query}" if query else path


def end_to_end(headers: Headers) -> Headers:
    """Leave out what is meant for this hop only."""
    values = [value for name, value in headers if name.lower() == "connection"]
    named = {part.strip().lower() for part in ",".join(values).split(",")}
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | named]


def request_headers(environ: Environ, host: str) -> dict[str, str]:
    """Return the client's headers, and where the request came from."""
    given = [
        (name[5:].replace("_", "-").title(), value) for name, value in environ.items() if name.startswith("HTTP_")
    ]
    headers = dict(end_to_end(given))
    if environ.get("CONTENT_TYPE"):
        headers["Content-Type"] = environ["CONTENT_TYPE"]
    before = headers.get("X-Forwarded-For")
    client = environ.get("REMOTE_ADDR", "unknown")
    headers |= {
        "Host": host,
        "X-Forwarded-For": f"{before}, {client}" if before else client,
        "X-Forwarded-Host": environ.get("HTTP_HOST", ""),
        "X-Forwarded-Proto": environ["wsgi.url_scheme"],
    }
    for name in ("User-Agent", "Accept-Encoding"):
        headers.setdefault(name, SKIP_HEADER)  # else urllib3 would speak for the client
    return headers


def request_body(environ: Environ) -> Body | Iterator[bytes] | None:
    """Return what the client sends, to be read as it comes."""
    length = environ.get("CONTENT_LENGTH")
    if length:
        return Body(environ["wsgi.input"], int(length)) if int(length) else None
    if environ.get("wsgi.input_terminated"):  # chunked
        return iter(lambda: environ["wsgi.input"].read(PIECE), b"")
    return None


class Body:
    """A request's body of known length."""

    def __init__(self, source: Any, length: int) -> None:
        self._source, self._length = source, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        rest = self._length
        while rest:
            data = self._source.read(min(PIECE, rest))
            if not data:
                raise OSError("the client has gone amid its request")
            rest -= len(data)
            yield data


def refuse(start_response: Callable[..., Any], status: str, headers: Iterable[tuple[str, str]] = ()) -> list[bytes]:
    """Answer in the upstream's stead."""
    body = (status + "\n").encode()
    start_response(
        status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers], sys.exc_info()
    )
    return [body]


# -- to run it -------------------------------------------------------------------------


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each client: enough to try it out."""

    daemon_threads = True
    request_queue_size = 1024


class Quiet(WSGIRequestHandler):
    """Keeps no log."""

    def log_message(self, *args: object) -> None:
        pass


class Example(BaseHTTPRequestHandler):
    """A service to stand behind the proxy."""

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
    """Ask a service through the proxy, from ten threads."""
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
    """Serve, or show."""
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
