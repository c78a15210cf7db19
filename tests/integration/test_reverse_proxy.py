"""examples/reverse_proxy.py between real clients and real servers."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import socket
import threading
import time
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
        self.proxy = example.ReverseProxy(upstream, self.http)
        self.server = make_server("127.0.0.1", 0, validator(self.proxy), example.Server, example.Quiet)
        self.server.handle_error = lambda *args: None  # a client that goes away is no news
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


def test_requests_and_answers_pass(front: Front, client: requests.Session, web: WebServer) -> None:
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


def test_headers_meant_for_one_hop_end_there(front: Front, client: requests.Session) -> None:
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
    assert not {"user-agent", "accept", "accept-encoding", "cookie"} & names  # it speaks for nobody
    bare.close()


def test_answers_are_streamed(front: Front, client: requests.Session) -> None:
    with client.get(front.url + "/stream?n=100&s=0.05", stream=True) as response:
        began = time.monotonic()
        assert response.raw.read(10) == b"x" * 10
        assert time.monotonic() - began < 4  # the whole takes five seconds
        assert front.http.stats()["in_use"] == 1
    wait_until(lambda: front.http.stats()["in_use"] == 0)  # the client has gone, amid the answer


def test_requests_are_streamed(front: Front, client: requests.Session) -> None:
    big = b"0123456789" * 500_000
    assert client.post(front.url + "/echo", data=big).json()["body"] == big.decode()
    sent: list[tuple[str, Any]] = []
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/echo", "QUERY_STRING": "", "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b"chunked" * 20_000), "wsgi.input_terminated": True, "HTTP_HOST": "front",
    }  # fmt: skip
    answer = front.proxy(environ, lambda *args: sent.append(args))
    seen = json.loads(b"".join(answer))
    answer.close()
    assert sent[0][0].startswith("200")
    assert (seen["fields"]["transfer-encoding"], seen["body"]) == ("chunked", "chunked" * 20_000)


def test_a_slow_client_holds_no_place_for_a_small_answer(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as slow:
        slow.sendall(b"GET /bytes?n=60000 HTTP/1.0\r\n\r\n")  # and reads nothing
        wait_until(lambda: front.http.metrics.snapshot().acquired)
        wait_until(lambda: front.http.stats()["in_use"] == 0)


def test_a_client_that_goes_away_frees_the_place(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as leaving:
        leaving.sendall(b"GET /drip HTTP/1.0\r\n\r\n")
        assert leaving.recv(100)
        wait_until(lambda: front.http.stats()["in_use"])
    wait_until(lambda: front.http.stats()["in_use"] == 0)
    with socket.create_connection(("127.0.0.1", front.port)) as leaving:
        leaving.sendall(b"POST /echo HTTP/1.0\r\nContent-Length: 1000000\r\n\r\nonly this")
        wait_until(lambda: front.http.stats()["in_use"])
    wait_until(lambda: front.http.stats()["in_use"] == 0)


def test_trouble_has_its_numbers(web: WebServer, client: requests.Session) -> None:
    front = Front(web.url, max_size=1, timeout=HTTPTimeout(connect=5, read=0.5))
    try:
        assert client.get(front.url + "/stall").status_code == 504
        assert client.get(front.url + "/stall-body").status_code == 504  # late as well, and small
        assert client.get(front.url + "/reset").status_code == 502
        assert client.get(front.url + "/half").status_code == 502  # small: it can still be said
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


@pytest.mark.parametrize("length", ["abc", "-1", "+1", "1_0", "²"])
def test_a_length_that_is_no_number_is_the_clients_fault(front: Front, web: WebServer, length: str) -> None:
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/echo", "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(b"body"),
        "CONTENT_LENGTH": length,
    }  # fmt: skip
    sent: list[Any] = []
    assert front.proxy(environ, lambda *args: sent.append(args[0])) == [b"400 Bad Request\n"]
    assert sent == ["400 Bad Request"]
    assert not web.book()["requests"]


def test_a_broken_answer_does_not_look_whole(client: requests.Session, web: WebServer) -> None:
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
        assert client.get(front.url + "/healthz").json()["status"] == "unknown"
        front.http.health_check(ask=True)
        well = client.get(front.url + "/healthz")
        assert (well.status_code, well.json()["status"]) == (200, "healthy")
    finally:
        front.close()
    sick = Front(web.url, health_url="/status/500")
    try:
        sick.http.health_check(ask=True)
        assert client.get(sick.url + "/healthz").status_code == 503
    finally:
        sick.close()


def test_five_hundred_clients_at_once(web: WebServer) -> None:
    """Each has its own answer, over twenty sockets."""
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
