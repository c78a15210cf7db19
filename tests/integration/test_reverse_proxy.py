"""examples/reverse_proxy.py between real clients and real servers."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server
from wsgiref.validate import validator

import pytest
import requests

from pooling import HTTPPool, HTTPTimeout, PoolSettings
from tests.integration.test_http import in_thread, wait_until
from tests.web import WebServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "reverse_proxy.py"
_spec = importlib.util.spec_from_file_location("reverse_proxy", EXAMPLE)
assert _spec is not None and _spec.loader is not None
example: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)


class Front:
    """A proxy with its server."""

    def __init__(self, upstream: str, **arguments: Any) -> None:
        size, wait = arguments.pop("max_size", 20), arguments.pop("wait", 0.2)
        settings = PoolSettings(min_size=0, max_size=size, acquire_timeout=wait)
        self.http = HTTPPool(settings, base_url=upstream, trust_env=False, **arguments)
        self.proxy = example.ReverseProxy(upstream, self.http, "sesame")
        self.server = make_server("127.0.0.1", 0, validator(self.proxy), example.Server, example.Quiet)
        self.server.handle_error = lambda *args: None  # a client that disconnects is not an error
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        self.http.close(0)


@pytest.fixture
def front(web: WebServer) -> Iterator[Front]:
    one = Front(web.url, timeout=HTTPTimeout(connect=5, read=30, write=30))
    yield one
    one.close()


@pytest.fixture
def client() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def test_requests_and_responses_are_passed_on(front: Front, client: requests.Session, web: WebServer) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        seen = client.request(method, front.url + "/echo?a=%20b&c", data=b"body" if method == "POST" else None).json()
        assert (seen["method"], seen["target"]) == (method, "/echo?a=%20b&c")
        assert seen["body"] == ("body" if method == "POST" else "")
    assert client.get(front.url + "/nothing").status_code == 404
    assert client.get(front.url + "/redirect?to=/x", allow_redirects=False).headers["Location"] == "/x"
    assert client.head(front.url + "/bytes?n=7").headers["Content-Length"] == "7"
    assert client.get(front.url + "/gzip").content == b"well compressed " * 100
    assert front.http.stats()["in_use"] == 0
    assert web.book()["accepted"] == 1


def test_hop_by_hop_headers_are_removed(front: Front, client: requests.Session) -> None:
    mine = {
        "Connection": "X-Private, keep-alive", "X-Private": "1", "TE": "trailers", "Proxy-Authorization": "Basic eA==",
        "X-Public": "2", "X-Forwarded-For": "10.0.0.1", "User-Agent": "mine", "Cookie": "a=1",
    }  # fmt: skip
    response = client.get(front.url + "/cookie?a=1&b=2", headers=mine)
    fields = response.json()["fields"]
    assert not {"x-private", "te", "proxy-authorization"} & fields.keys()
    assert (fields["x-public"], fields["user-agent"], fields["cookie"]) == ("2", "mine", "a=1")
    assert fields["x-forwarded-for"] == "10.0.0.1, 127.0.0.1"
    assert fields["x-forwarded-host"] == front.url.partition("//")[2] != fields["host"]
    cookies = response.raw.headers.getlist("Set-Cookie")
    assert cookies == ["a=1; Path=/", "b=2; Path=/"]
    bare = http.client.HTTPConnection("127.0.0.1", front.port)
    bare.putrequest("GET", "/echo", skip_accept_encoding=True)
    bare.endheaders()
    names = json.loads(bare.getresponse().read())["fields"].keys()
    assert not {"user-agent", "accept", "accept-encoding", "cookie"} & names  # no headers of its own
    bare.close()


def test_responses_are_streamed(front: Front, client: requests.Session) -> None:
    with client.get(front.url + "/stream?n=100&s=0.05", stream=True) as response:
        began = time.monotonic()
        assert response.raw.read(10) == b"x" * 10
        assert time.monotonic() - began < 4  # the whole response takes five seconds
        assert front.http.stats()["in_use"] == 1
    wait_until(lambda: front.http.stats()["in_use"] == 0)  # the client has disconnected during the response


def environ_of(path: str = "/echo", body: bytes = b"", **more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST", "PATH_INFO": path, "QUERY_STRING": "", "wsgi.url_scheme": "http",
        "HTTP_HOST": "front", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.input": io.BytesIO(body), **more,
    }  # fmt: skip


def ask(front: Front, environ: dict[str, Any]) -> tuple[str, bytes]:
    sent: list[str] = []
    answer = front.proxy(environ, lambda status, headers: sent.append(status))
    try:
        return sent[0], b"".join(answer)
    finally:
        if hasattr(answer, "close"):
            answer.close()


def test_request_bodies_arrive(front: Front, client: requests.Session) -> None:
    big = b"0123456789" * 500_000
    assert client.post(front.url + "/echo", data=big).json()["body"] == big.decode()
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    for size in (0, 1, example.SMALL, example.SMALL + 1, 300_000):
        status, answer = ask(front, environ_of(body=b"x" * size, **chunked))
        assert status.startswith("200")
        seen = json.loads(answer)
        assert (seen["fields"].get("content-length"), seen["body"]) == (str(size), "x" * size)


def test_a_big_body_uses_no_memory(front: Front) -> None:
    class Zeros:
        def read(self, size: int) -> bytes:
            return bytes(size)

    with example.SpooledTemporaryFile(example.SMALL) as body:
        tracemalloc.start()
        try:
            assert example.read_body(environ_of() | {"wsgi.input": Zeros(), "CONTENT_LENGTH": "30000000"}, body) == 3e7
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()


def test_two_hundred_slow_clients_hold_no_connection(web: WebServer, client: requests.Session) -> None:
    """More clients than connections, each with one byte of ten; then with one byte at a time."""
    front = Front(web.url, timeout=HTTPTimeout(connect=5, read=30, write=30))
    example.PATIENCE, before = 5.0, example.PATIENCE
    slow = [socket.create_connection(("127.0.0.1", front.port), 60) for _ in range(200)]
    try:
        for one in slow:
            one.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\n1")
        for _ in range(5):
            assert client.post(front.url + "/echo", data=b"honest").json()["body"] == "honest"
        assert front.http.metrics.snapshot().acquired == 5
        for one in slow:
            assert one.recv(12) in (b"HTTP/1.0 408", b"HTTP/1.1 408")
        assert web.book()["paths"] == {"/echo": 5}
    finally:
        example.PATIENCE = before
        for one in slow:
            one.close()
        front.close()


@pytest.mark.parametrize(("path", "query", "expected"), [
    ("/a b%2e\xe4", "x=%41", "/a%20b%252e%C3%A4?x=%41"), ("/a/../b", "", "/b"), ("/a/%2e%2e/b", "", "/a/%252e%252e/b"),
    ("/a?b", "c", "/a%3Fb?c"), ("/a#b", "", "/a%23b"), ("//h/x", "", "/h/x"),
    ("/\\h/x", "", "/%5Ch/x"), ("/\0", "", "/%00"),
])  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"SCRIPT_NAME": "/mounted", "REQUEST_URI": "/mounted/elsewhere"}])
def test_a_decoded_path_is_quoted_again(
    front: Front, path: str, query: str, expected: str, more: dict[str, str], web: WebServer
) -> None:
    environ = environ_of(path.encode().decode("latin-1"), QUERY_STRING=query, **more)
    upstream = example.target(environ)
    assert upstream.replace("//", "/", 1) == expected


def test_credentials_and_requests_go_only_to_the_upstream(web: WebServer, client: requests.Session) -> None:
    """Also if the upstream URL has no path."""
    front = Front(web.url.replace("//", "//user:secret@"))
    try:
        for path in ("@127.0.0.1:9/x", ":9/x", ".example.com/x", "//127.0.0.1:9/x", "/@127.0.0.1:9/x"):
            for more in ({}, {"REQUEST_URI": path}, {"RAW_URI": path}):
                assert ask(front, environ_of(path, **more))[0][:3] == ("404" if path.startswith("/") else "400")
        assert web.book()["requests"] == 6  # paths with two slashes or one
        fields = client.get(front.url + "/echo", headers={"Authorization": "mine"}).json()["fields"]
        assert fields["authorization"] == "Basic dXNlcjpzZWNyZXQ="
        assert "secret" not in fields["host"]
        assert [host.host for host in front.http.metrics.hosts()] == [web.url]
    finally:
        front.close()


@pytest.mark.parametrize("upstream", ["", "host", "//h", "ftp://u:secret@h", "http://", "http://h?q", "http://h/#f"])
def test_an_upstream_must_be_the_url_of_a_server(upstream: str, front: Front) -> None:
    with pytest.raises(ValueError, match="upstream must be a URL such as") as error:
        example.ReverseProxy(upstream, front.http)
    assert "secret" not in str(error.value)


def test_a_server_that_refuses_the_response_leaves_no_lease(front: Front) -> None:
    def refuse(status: str, headers: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        front.proxy(environ_of(body=b""), refuse)
    assert front.http.stats()["in_use"] == 0


def test_a_slow_client_holds_no_connection_for_a_small_response(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as slow:
        slow.sendall(b"GET /bytes?n=60000 HTTP/1.0\r\n\r\n")  # and reads nothing
        wait_until(lambda: front.http.metrics.snapshot().acquired)
        wait_until(lambda: front.http.stats()["in_use"] == 0)


def test_a_client_that_disconnects_frees_the_connection(front: Front, client: requests.Session) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as leaving:
        leaving.sendall(b"GET /drip HTTP/1.0\r\n\r\n")
        assert leaving.recv(100)
        wait_until(lambda: front.http.stats()["in_use"])
    wait_until(lambda: front.http.stats()["in_use"] == 0)
    with socket.create_connection(("127.0.0.1", front.port)) as leaving:
        leaving.sendall(b"POST /echo HTTP/1.0\r\nContent-Length: 1000000\r\n\r\nonly this")
    assert client.get(front.url + "/echo").ok
    assert front.http.metrics.snapshot().acquired == 2  # it held none


def test_status_codes_of_failures(web: WebServer, client: requests.Session) -> None:
    front = Front(web.url, max_size=1, timeout=HTTPTimeout(connect=5, read=0.5))
    try:
        assert client.get(front.url + "/stall").status_code == 504
        assert client.get(front.url + "/stall-body").status_code == 504  # too late as well, and small
        assert client.get(front.url + "/reset").status_code == 502
        assert client.get(front.url + "/half").status_code == 502  # small, so the status can still be changed
        with client.get(front.url + "/stream?n=100&s=0.1", stream=True):
            wait_until(lambda: front.http.stats()["in_use"])
            busy = client.get(front.url + "/echo")
            assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
        wait_until(lambda: front.http.stats()["in_use"] == 0)
        assert client.get(front.url + "/echo").ok
    finally:
        front.close()
    down = Front("http://127.0.0.1:1")
    try:
        assert client.get(down.url + "/").status_code == 502
    finally:
        down.close()


@pytest.mark.parametrize("length", ["abc", "-1", "+1", "1_0", "²", "0x5", "1, 1", " 1", "9" * 5000])
def test_an_invalid_length_is_the_clients_fault(front: Front, web: WebServer, length: str) -> None:
    assert ask(front, environ_of(body=b"body", CONTENT_LENGTH=length)) == ("400 Bad Request", b"400 Bad Request\n")
    assert not web.book()["requests"]


def test_a_response_that_is_cut_off_does_not_look_complete(client: requests.Session, web: WebServer) -> None:
    front = Front(web.url, timeout=HTTPTimeout(read=0.5))
    example.SMALL, before = 0, example.SMALL
    try:
        for path in ("/half", "/reset-body", "/stall-body"):
            with pytest.raises(requests.exceptions.RequestException):
                client.get(front.url + path)
        assert front.http.stats()["in_use"] == 0
    finally:
        example.SMALL = before
        front.close()


def test_health(web: WebServer, client: requests.Session) -> None:
    front = Front(web.url, health_url="/echo")
    try:
        client.headers["Authorization"] = "Bearer sesame"
        assert client.get(front.url + "/healthz").json()["status"] == "unknown"
        front.http.health_check(ask=True)
        well = client.get(front.url + "/healthz")
        assert (well.status_code, well.json()["status"]) == (200, "healthy")
        for token in ("", "Bearer ", "Bearer wrong", "sesame"):
            stranger = client.get(front.url + "/healthz", headers={"Authorization": token})
            assert (stranger.status_code, stranger.text) == (200, "up")
    finally:
        front.close()
    sick = Front(web.url, health_url="/status/500")
    try:
        sick.http.health_check(ask=True)
        assert client.get(sick.url + "/healthz").status_code == 503
    finally:
        sick.close()


def test_five_hundred_clients_at_once(web: WebServer) -> None:
    """Each gets its own response, over twenty sockets."""
    front = Front(web.url, wait=120, timeout=HTTPTimeout(connect=60, read=120, write=60))
    failed: list[object] = []
    well: list[int] = []
    together = threading.Barrier(500)

    def ask(number: int) -> None:
        try:
            together.wait()
            for step in range(2):
                seen = requests.get(f"{front.url}/slow?s=0.08&mark={number}-{step}", timeout=120)
                if seen.status_code == 200 and seen.json()["target"] == f"/slow?s=0.08&mark={number}-{step}":
                    well.append(number)
                else:
                    failed.append(seen)
        except BaseException as error:
            failed.append(error)

    try:
        for thread in [in_thread(ask, number) for number in range(500)]:
            thread.join()
        assert not failed
        assert len(well) == 1000
        assert web.book()["accepted"] <= 20
        assert front.http.stats()["in_use"] == 0
    finally:
        front.close()
