"""examples/reverse_proxy.py under real WSGI servers, attacked with raw sockets from both sides."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.tools import ROOT, environment, in_thread, wait_until

UWSGI = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
KINDS = ("bundled", "sync", "gthread", "gevent", "waitress", "uwsgi")
PATIENCE = 3.0  # seconds that the proxy gives a client for a piece

PROGRAM = """\
import sys
import waitress
from wsgiref.simple_server import make_server
import examples.reverse_proxy as example

if sys.argv[1:] == ["waitress"]:
    server = waitress.create_server(application, host="127.0.0.1", port=0, threads=16)
    print(server.effective_port, flush=True)
    server.run()
elif sys.argv[1:] == ["bundled"]:
    with make_server("127.0.0.1", 0, application, example.Server, example.Quiet) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
"""
MODULE = f"""\
import examples.reverse_proxy as example

example.PATIENCE = example.Quiet.timeout = {PATIENCE}
example.MAX_BODY = 1_000_000
application = example.from_env()
"""


class Got(NamedTuple):
    """The data received on a connection."""

    data: bytes
    reset: bool

    @property
    def status(self) -> int:
        found = re.match(rb"HTTP/1\.[01] (\d{3}) ", self.data)
        return int(found[1]) if found else 0

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0].lower()

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def complete(self) -> bool:
        """Whether a client would accept the response as complete."""
        if self.reset or not self.status:
            return False
        if b"transfer-encoding: chunked" in self.head:
            return self.body.endswith(b"0\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", self.head)
        return length is None or len(self.body) == int(length[1])


def send(port: int, data: bytes) -> Got:
    """Send bytes to a server, and return its output until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(data)
        return read(sock)


def read(sock: socket.socket) -> Got:
    found = b""
    try:
        while piece := sock.recv(65536):
            found += piece
    except ConnectionResetError:
        return Got(found, True)
    return Got(found, False)


def get(port: int, path: str, *lines: str, version: str = "1.1") -> Got:
    head = [f"GET {path} HTTP/{version}", "Host: front", "Connection: close", *lines, "", ""]
    return send(port, "\r\n".join(head).encode("latin-1"))


class Upstream(socketserver.ThreadingTCPServer):
    """Sends prepared responses, and records the requests."""

    allow_reuse_address = daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Serving)
        self.asked: list[tuple[bytes, bytes]] = []  # head and body of each request
        self.answers: dict[str, bytes] = {}  # by path; the connection is closed afterwards

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A proxy that disconnects is not an error."""

    @property
    def lines(self) -> list[str]:
        return [head.partition(b"\r\n")[0].decode("latin-1") for head, _ in self.asked]


class Serving(socketserver.StreamRequestHandler):
    server: Upstream

    def handle(self) -> None:
        while head := self.head():
            fields = head.lower()
            length = re.search(rb"\r\ncontent-length: (\d+)\r\n", fields)
            body = self.rfile.read(int(length[1])) if length else b""
            if b"\r\ntransfer-encoding: chunked\r\n" in fields:
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            self.server.asked.append((head, body))
            path = head.split(b" ")[1].decode("latin-1")
            if answer := self.server.answers.get(path):
                self.wfile.write(answer)
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: text/plain\r\n\r\nyes")

    def head(self) -> bytes:
        head = b""
        while line := self.rfile.readline():
            head += line
            if line == b"\r\n":
                break
        return head


class Proxy:
    """The proxy in its own process."""

    def __init__(self, kind: str, folder: Path, upstream: str, prefix: str = "") -> None:
        self.kind = kind
        self.log = folder / f"{kind}.log"
        (folder / "proxied.py").write_text(MODULE)
        (folder / "serve.py").write_text("from proxied import application\n" + PROGRAM)
        env = environment(UPSTREAM=upstream + prefix, HEALTH_TOKEN="open sesame")
        env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{folder}"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        gunicorn = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{self.port}", "-k"]
        commands = {
            "sync": [*gunicorn, "sync", "proxied:application"],
            "gthread": [*gunicorn, "gthread", "--threads", "24", "proxied:application"],
            "gevent": [*gunicorn, "gevent", "proxied:application"],
            "uwsgi": [
                str(UWSGI), "--http-socket", f"127.0.0.1:{self.port}", "--master", "--threads", "16", "--need-app",
                "--listen", "100", "--pythonpath", str(folder), "--pythonpath", str(ROOT), "--home", sys.prefix,
                "--wsgi", "proxied", "--die-on-term",
            ],
        }  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                commands.get(kind, [sys.executable, str(folder / "serve.py"), kind]),
                env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        wait_until(self._listens, patience=60)

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.said()
        if self.kind in ("bundled", "waitress"):
            found = re.search(r"^(\d+)$", self.said(), re.M)
            self.port = int(found[1]) if found else 0
        with contextlib.suppress(OSError):
            return self.port > 0 and get(self.port, "/healthz").status == 200
        return False

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def in_use(self) -> int:
        counts = get(self.port, "/healthz", "Authorization: Bearer open sesame").body
        return int(re.search(rb'"in_use": (\d+)', counts)[1])  # type: ignore[index]

    def close(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait()


@pytest.fixture(scope="module")
def running() -> Iterator[Upstream]:
    with Upstream() as upstream:
        thread = threading.Thread(target=upstream.serve_forever)
        thread.start()
        yield upstream
        upstream.shutdown()
        thread.join()


@pytest.fixture
def upstream(running: Upstream) -> Upstream:
    running.asked.clear()
    running.answers.clear()
    return running


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest, running: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param == "uwsgi" and UWSGI is None and not os.environ.get("CI"):
        pytest.skip("no uWSGI: pip install pyuwsgi")
    one = Proxy(request.param, tmp_path_factory.mktemp(request.param), running.url, "/v1")
    try:
        yield one
    finally:
        one.close()


# -- where requests go -------------------------------------------------------------------

PATHS = {
    "/a/b?c=d&e": "/v1/a/b?c=d&e",
    "/a%2Fb%20c%7E~%41?q=%2F%41+%20": "/v1/a%2Fb%20c%7E~%41?q=%2F%41+%20",
    "/a%2fb?%e4": "/v1/a%2Fb?%E4",  # the same escapes: urllib3 writes them in capitals
    "/%252e%252e/%252fadmin": "/v1/%252e%252e/%252fadmin",
    "/100%?q=5%": "/v1/100%25?q=5%25",
    "/a;b=c/d:e@f": "/v1/a;b=c/d:e@f",
    "/\xe4?\xff": "/v1/%E4?%FF",
    "/%00%0D%0A": "/v1/%00%0D%0A",
    "/a'\"<>|{}[]`^\\": "/v1/a'%22%3C%3E%7C%7B%7D%5B%5D%60%5E%5C",
    "/../admin": "/v1/admin",
    "/%2e%2E/admin": "/v1/admin",
    "/a/./b/../c/..": "/v1/a/",
    "/a/../../../b": "/v1/b",
    "/?a=/../b": "/v1/?a=/../b",
    "/": "/v1/",
    "/x@other.example/y": "/v1/x@other.example/y",
    "http://other.example/x?y": "/v1/x?y",
    "/" + "long" * 800: "/v1/" + "long" * 800,
}


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_a_path_is_appended_unchanged_to_the_upstreams(proxy: Proxy, upstream: Upstream, path: str) -> None:
    got = get(proxy.port, path)
    if got.status in (0, 400) and not upstream.asked and proxy.kind != "bundled":
        return  # by the server itself, which has its own limits
    assert got.status == 200, (got, proxy.said())
    assert upstream.lines == [f"GET {PATHS[path]} HTTP/1.1"]
    assert b"\r\nHost: 127.0.0.1:" in upstream.asked[0][0]


@pytest.mark.parametrize("path", [
    "@127.0.0.1:9/x", ":9/x", "//../x/..%2f..", "/..%2fadmin", "/x/%2e%2e%2Fadmin", "/..%5cadmin", "/..\\admin",
    "/..;/a", "*", "", "x", "ftp://other/x", "/a\x00b", "/a\x7f", "/a\x0bb", "/a\tb",
])  # fmt: skip
def test_no_path_leaves_the_upstream(proxy: Proxy, upstream: Upstream, path: str) -> None:
    got = get(proxy.port, path)
    assert got.status in (0, 400, 404, 501) and b"200" not in got.head.partition(b"\r\n")[0], got
    assert not upstream.asked


@pytest.mark.parametrize("path", ["//127.0.0.1:9/x", "/\\127.0.0.1:9/x", "//x@y/..//z"])
def test_no_path_is_interpreted_as_a_host(proxy: Proxy, upstream: Upstream, path: str) -> None:
    assert get(proxy.port, path).status in (200, 400)
    assert all(line.startswith("GET /v1/") for line in upstream.lines)


@pytest.mark.parametrize("line", [
    "OPTIONS * HTTP/1.1", "CONNECT 127.0.0.1:9 HTTP/1.1", "CONNECT /x HTTP/1.1", "TRACE /x HTTP/1.1", "get /x HTTP/1.1",
    "G(T /x HTTP/1.1", "GET /x y HTTP/1.1", "G\x00T /x HTTP/1.1", "GET /x HTTP/9.9",
])  # fmt: skip
def test_a_malformed_request_line_is_refused(proxy: Proxy, upstream: Upstream, line: str) -> None:
    got = send(proxy.port, f"{line}\r\nHost: front\r\nConnection: close\r\n\r\n".encode("latin-1"))
    if line.startswith("GET"):  # uWSGI checks only the beginning
        assert upstream.lines in ([], ["GET /v1/x HTTP/1.1"])
    else:
        assert got.status >= 400 or got.status == 0
        assert not upstream.asked


# -- request smuggling -------------------------------------------------------------------

INNER = b"GET /smuggled HTTP/1.1\r\nHost: front\r\n\r\n"
SHAPES = {
    "CL.TE": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s",
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n%x\r\n%s\r\n0\r\n\r\n",
    "TE.TE": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: %d\r\n\r\n0\r\n\r\n%s",
    "TE, xchunked": b"Transfer-Encoding: xchunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n%s",
    "TE with a space": b"Transfer-Encoding : chunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n%s",
    "TE folded": b"Transfer-Encoding:\r\n chunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n%s",
    "TE with a tab": b"Transfer-Encoding: \x0bchunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n%s",
    "TE by underscore": b"Transfer_Encoding: chunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n%s",
    "CL by underscore": b"Content_Length: %d\r\nContent-Length: 0\r\n\r\n%s",
    "CL by underscore alone": b"Content_Length: %d\r\n\r\n%s",
    "two CL": b"Content-Length: %d\r\nContent-Length: 0\r\n\r\n%s",
    "two CL, the other way": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n%s",
    "CL list": b"Content-Length: 0, %d\r\n\r\n%s",
    "CL +": b"Content-Length: +%d\r\n\r\n%s",
    "CL -": b"Content-Length: -%d\r\n\r\n%s",
    "CL hexadecimal": b"Content-Length: 0x%x\r\n\r\n%s",
    "CL superscript": b"Content-Length: \xb2\r\n\r\n%.0d%s",
    "CL with a blank": b"Content-Length: 1 %d\r\n\r\n%s",
    "CL underscored": b"Content-Length: 1_%d\r\n\r\n%s",
    "CL of many digits": b"Content-Length: " + b"9" * 3000 + b"%d\r\n\r\n%s",
    "CL named by Connection": b"Connection: Content-Length\r\nContent-Length: %d\r\n\r\n%s",
    "TE named by Connection": b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%.0d%s",
    "bare LF": b"X: y\nContent-Length: %d\r\n\r\n%s",
    "bare CR": b"X: y\rTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n%s",
    "a chunk's size too big": b"Transfer-Encoding: chunked\r\n\r\n%xfffffffffffffffff\r\n%s",
    "a chunk's size signed": b"Transfer-Encoding: chunked\r\n\r\n+%x\r\n%s\r\n0\r\n\r\n",
    "no chunk": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n%.0d%s",
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_smuggled(proxy: Proxy, upstream: Upstream, shape: str, method: str) -> None:
    """Each request that the server accepts reaches the upstream as one request with at most one length."""
    with socket.create_connection(("127.0.0.1", proxy.port), 60) as sock:
        data = SHAPES[shape] % (len(INNER), INNER)
        sock.sendall(f"{method} /outer HTTP/1.1\r\nHost: front\r\n".encode() + data)
        sock.shutdown(socket.SHUT_WR)
        got = read(sock)
    assert b" 500 " not in got.head.partition(b"\r\n")[0], (got, proxy.said())
    outer = [head for head, _ in upstream.asked if b"/outer" in head]
    assert len(outer) <= 1
    for head, body in upstream.asked:
        lengths = re.findall(rb"\r\ncontent-length: ([^\r]*)\r\n", head.lower())
        codings = re.findall(rb"\r\ntransfer.encoding: ", head.lower())
        assert len(lengths) + len(codings) <= 1
        assert not re.search(rb"[^\r]\n|\r[^\n]|\n[ \t]", head)
        if lengths:
            assert int(lengths[0]) == len(body)
    # If the server itself parsed a second request, it also answered two.
    assert len(upstream.asked) <= len(re.findall(rb"HTTP/1\.[01] ", got.data))


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_chunked_body_arrives_or_is_refused(proxy: Proxy, upstream: Upstream, method: str) -> None:
    head = f"{method} /x HTTP/1.1\r\nHost: front\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    got = send(proxy.port, head.encode() + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
    if proxy.kind in ("bundled", "uwsgi"):
        assert got.status == 411 and not upstream.asked
    else:
        assert got.status == 200
        assert [body for _, body in upstream.asked] == [b"abcdefg"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_request_without_a_body_gets_none(proxy: Proxy, upstream: Upstream, method: str) -> None:
    got = send(proxy.port, f"{method} /x HTTP/1.1\r\nHost: front\r\nConnection: close\r\n\r\n".encode())
    assert got.status == 200
    ((head, body),) = upstream.asked
    assert b"transfer-encoding" not in head.lower() and not body
    assert b"content-type" not in head.lower() and b"accept" not in head.lower()
    assert method == "DELETE" or b"content-length" not in head.lower()


def test_hop_by_hop_headers_and_our_own(proxy: Proxy, upstream: Upstream) -> None:
    rows = (
        "Connection: close, X-Forwarded-For, X-Secret, Host, Cookie", "X-Secret: 1", "Cookie: a=1", "TE: trailers",
        "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil", "X-Forwarded-Proto: gopher", "Forwarded: for=6.6.6.6",
        "X-Real-IP: 6.6.6.6", "X_Real_IP: 6.6.6.6", "Proxy-Connection: keep-alive", "Upgrade: websocket", "X-Kept: yes",
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", proxy.port), 60) as sock:
        sock.sendall("\r\n".join(["GET /x HTTP/1.0", "Host: front", *rows, "", ""]).encode())
        assert read(sock).status == 200
    lines = upstream.asked[0][0].decode().split("\r\n")
    if proxy.kind == "uwsgi":  # which trusts this header, and sets wsgi.url_scheme
        lines.remove("X-Forwarded-Proto: gopher")
    assert "X-Kept: yes" in lines and "X-Forwarded-For: 127.0.0.1" in lines
    assert [line for line in lines if line.startswith("X-Forwarded-Host")] == ["X-Forwarded-Host: front"]
    assert [line for line in lines if line.lower().startswith("host:")] == [f"Host: {upstream.url[7:]}"]
    assert not re.search("evil|gopher|6.6.6.6|secret|cookie|upgrade|^te:|proxy-", "\n".join(lines), re.I | re.M)


@pytest.mark.parametrize("line", [
    b"X: a\r\n Evil: b", b"X: a\r\n\tEvil: b", b"X: a\rEvil: b", b"X: a\nEvil: b", b"X: a\x00Evil: b", b"X(: a",
    b"X y: a", b"X: a\x85Evil: b", b"X: a\x0bEvil: b", b"X: a\x1cEvil: b", b": a", b"\xe4: a",
])  # fmt: skip
def test_a_header_does_not_become_two(proxy: Proxy, upstream: Upstream, line: bytes) -> None:
    got = send(proxy.port, b"GET /x HTTP/1.1\r\nHost: front\r\nConnection: close\r\n" + line + b"\r\n\r\n")
    assert got.status in (0, 200, 400), got
    for head, _ in upstream.asked:
        assert not re.search(rb"[^\r]\n|\r[^\n]|\n[ \t]|\x00|\x0b|\x1c", head)
        # A line that the server parsed as two headers arrives as two: the proxy has the same interpretation.
        assert line.startswith((b"X: a\r", b"X: a\n")) or b"\nevil" not in head.lower()


# -- slow clients -------------------------------------------------------------------------


def test_slow_clients_hold_no_connection_and_are_refused(proxy: Proxy, upstream: Upstream) -> None:
    number = 1 if proxy.kind == "sync" else 12
    socks = [socket.create_connection(("127.0.0.1", proxy.port), 60) for _ in range(number)]
    try:
        for sock in socks:
            sock.sendall(b"POST /slow HTTP/1.1\r\nHost: front\r\nContent-Length: 10\r\n\r\n1")
        assert get(proxy.port, "/honest").status == 200
        if proxy.kind != "waitress":  # which waits for the whole request before it calls the application
            for sock in socks:
                assert read(sock).status in (0, 408)
        wait_until(lambda: proxy.in_use() == 0)
        assert upstream.lines == ["GET /v1/honest HTTP/1.1"]
    finally:
        for sock in socks:
            sock.close()


def test_a_body_that_drips_is_cut_off(proxy: Proxy, upstream: Upstream) -> None:
    """Each byte arrives in time, but the whole body does not."""
    if proxy.kind == "waitress":
        pytest.skip("waitress waits for the whole request before it tells the application")
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", proxy.port), 60) as sock:
        sock.sendall(b"POST /slow HTTP/1.1\r\nHost: front\r\nContent-Length: 1000\r\n\r\n")
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.2):
                    sock.sendall(b".")

        thread = in_thread(drip)
        got = read(sock)
        stop.set()
        thread.join()
    assert got.status in (0, 408)
    assert time.monotonic() - began < 60
    assert not upstream.asked


def test_a_body_has_a_limit(proxy: Proxy, upstream: Upstream) -> None:
    head = b"POST /x HTTP/1.1\r\nHost: front\r\nConnection: close\r\n"
    assert send(proxy.port, head + b"Content-Length: 2000000000000\r\n\r\n").status in (0, 413)
    fits = send(proxy.port, head + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
    assert fits.status == 200
    if proxy.kind in ("sync", "gthread", "gevent"):
        with socket.create_connection(("127.0.0.1", proxy.port), 60) as sock, contextlib.suppress(OSError):
            sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(20):
                sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            assert read(sock).status in (0, 413)
    assert [len(body) for _, body in upstream.asked] == [1_000_000]


def test_a_client_that_reads_nothing_holds_no_connection(proxy: Proxy, upstream: Upstream) -> None:
    size = 50_000_000
    upstream.answers["/v1/big"] = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    if proxy.kind == "waitress":
        pytest.skip("waitress keeps 16 MB for a client, and forgets it after channel_timeout (120 s)")
    with socket.create_connection(("127.0.0.1", proxy.port), 60) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: front\r\n\r\n")
        wait_until(lambda: upstream.asked)
        wait_until(lambda: proxy.in_use() == 0, patience=60)
        assert not read(sock).complete


# -- responses -----------------------------------------------------------------------------

CUT = {
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "chunked, amid a chunk": b"Transfer-Encoding: chunked\r\n\r\n50\r\nhello",
    "chunked, amid a size": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5",
    "chunked, of a negative size": b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "of a length": b"Content-Length: 100000\r\n\r\nhello",
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("shape", CUT)
def test_a_response_that_is_cut_off_does_not_look_complete(
    proxy: Proxy, upstream: Upstream, shape: str, version: str
) -> None:
    upstream.answers["/v1/cut"] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + CUT[shape]
    got = get(proxy.port, "/cut", version=version)
    # An HTTP/1.0 client needs a reset to notice, and waitress does not provide its socket.
    silent = proxy.kind == "waitress" and version == "1.0" and shape.startswith("chunked")
    assert got.complete == silent, got
    wait_until(lambda: proxy.in_use() == 0)


WRONG = {
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "199": b"HTTP/1.1 199 Strange\r\n\r\n",
    "length superscript": b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nab",
    "length signed": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab",
    "length negative": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nab",
    "length underscored": b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789",
    "length hexadecimal": b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nab",
    "length of many digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nab",
    "length empty": b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nab",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nab",
    "the same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    "two codings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "NUL in a header": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nab",
    "no header name": b"HTTP/1.1 200 OK\r\nX(: a\r\nContent-Length: 2\r\n\r\nab",
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "no status": b"HTTP/1.1 abc OK\r\n\r\n",
}


@pytest.mark.parametrize("shape", WRONG)
def test_an_invalid_response_is_not_passed_on(proxy: Proxy, upstream: Upstream, shape: str) -> None:
    upstream.answers["/v1/wrong"] = WRONG[shape]
    got = get(proxy.port, "/wrong")
    assert (got.status, got.body) == (502, b"502 Bad Gateway\n"), (got, proxy.said())
    wait_until(lambda: proxy.in_use() == 0)
    assert get(proxy.port, "/next").body == b"yes"  # the server's own response


def test_interim_responses_are_skipped(proxy: Proxy, upstream: Upstream) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    upstream.answers["/v1/early"] = early + b"HTTP/1.1 102 Processing\r\n\r\n" + early + (
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"
    )  # fmt: skip
    got = get(proxy.port, "/early")
    assert (got.status, got.body) == (200, b"secret")
    assert b"link" not in got.head


def test_an_interim_response_is_not_the_response(proxy: Proxy, upstream: Upstream) -> None:
    """Either the real response arrives, or none; never the 103, and never for another request."""
    real = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nSet-Cookie: who=first\r\n\r\nsecret"
    upstream.answers["/v1/early"] = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + real
    got = get(proxy.port, "/early")
    assert (got.status, got.body) in ((200, b"secret"), (502, b"502 Bad Gateway\n"))
    for _ in range(3):
        following = get(proxy.port, "/next")
        assert (following.status, following.body) == (200, b"yes")
        assert b"set-cookie" not in following.head


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nX: a\r\n Set-Cookie: evil=1\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nX: a\r\n\tSet-Cookie: evil=1\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 O\rSet-Cookie: evil=1\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nab",
])  # fmt: skip
def test_an_unusual_response_is_normalised(proxy: Proxy, upstream: Upstream, answer: bytes) -> None:
    upstream.answers["/v1/odd"] = answer
    got = get(proxy.port, "/odd")
    assert got.status == 200, (got, proxy.said())
    assert b"\nset-cookie" not in got.head and b"\rset-cookie" not in got.head and b"\n " not in got.head
    assert got.complete
    body = re.sub(rb"\A2\r\n(ab)\r\n0\r\n\r\n\Z", rb"\1", got.body)
    assert body == b"ab"


@pytest.mark.parametrize("place", ["/elsewhere", "http://[", "http://other.example/", "//\xff"])
def test_a_redirect_is_passed_on_like_any_response(proxy: Proxy, upstream: Upstream, place: str) -> None:
    """It is passed on with its body, without following it."""
    head = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\n".encode("latin-1")
    upstream.answers["/v1/short"] = head + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"
    upstream.answers["/v1/long"] = head + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000
    for path, body in (("/short", b"hello"), ("/long", b"x" * 300_000)):
        got = get(proxy.port, path)
        assert (got.status, got.body) == (302, body)
        assert f"\nlocation: {place}".encode("latin-1") in got.head
    assert len(upstream.asked) == 2


@pytest.mark.parametrize("body", [
    b"Transfer-Encoding: chunked\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello",
    b"Content-Length: 100000\r\n\r\n",
])  # fmt: skip
def test_a_response_cut_off_before_its_first_byte_is_502(proxy: Proxy, upstream: Upstream, body: bytes) -> None:
    upstream.answers["/v1/none"] = b"HTTP/1.1 200 OK\r\n" + body
    assert get(proxy.port, "/none").status == 502


@pytest.mark.parametrize("name", ["Content-Length", "content-length", "CONTENT-LENGTH"])
def test_a_short_response_that_is_cut_off_is_502(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    upstream.answers["/v1/short"] = f"HTTP/1.1 200 OK\r\n{name}: 10\r\n\r\nab".encode()
    assert get(proxy.port, "/short").status == 502


def test_a_response_without_a_body_gets_none(proxy: Proxy, upstream: Upstream) -> None:
    upstream.answers["/v1/204"] = b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"
    upstream.answers["/v1/304"] = b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 5\r\n\r\n'
    got = get(proxy.port, "/204")
    assert (got.status, got.body) == (204, b"") and b"content-length: 5" not in got.head
    got = get(proxy.port, "/304")
    assert (got.status, got.body) == (304, b"") and b"transfer-encoding" not in got.head
    upstream.answers["/v1/wrong"] = WRONG["101"]
    head = send(proxy.port, b"HEAD /wrong HTTP/1.1\r\nHost: front\r\nConnection: close\r\n\r\n")
    assert (head.status, head.body) == (502, b"")


# -- unauthenticated callers -----------------------------------------------------------------


def test_health_shows_counts_only_with_the_token(proxy: Proxy) -> None:
    for line in ("X: y", "Authorization: Bearer wrong", "Authorization: Bearer ", "Authorization: open sesame",
                 "Authorization: Bearer open sesam\xe9"):  # fmt: skip
        got = get(proxy.port, "/healthz", line)
        assert (got.status, got.body) == (200, b"up")
        assert b"no-store" in got.head
    assert b"in_use" in get(proxy.port, "/healthz", "Authorization: Bearer open sesame").body
    assert send(proxy.port, b"HEAD /healthz HTTP/1.1\r\nHost: front\r\nConnection: close\r\n\r\n").body == b""
