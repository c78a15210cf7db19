"""What a server may put on the wire, and whom it may reach: one answer for one request, one borrower's identity."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
import requests

from pooling import HTTPPool, PoolSettings
from tests.conftest import Authority
from tests.integration.test_http import wait_until
from tests.raw import Asked, RawServer, ok

ONE = PoolSettings(max_size=1, acquire_timeout=30)
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"


# -- one answer for one request -----------------------------------------------------------------


@pytest.mark.parametrize(
    "interim",
    [
        HINTS,
        HINTS * 3,
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 199 Whatever\r\n\r\n" + HINTS,
        b"HTTP/1.1 100 Continue\r\n\r\n" + HINTS + b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("pooled", [True, False])
def test_interim_answers_are_skipped(interim: bytes, pieces: int, pooled: bool) -> None:
    def answer(asked: Asked) -> list[bytes]:
        final = ok(asked.target)
        return [interim + final] if pieces == 1 else [interim, final]

    with RawServer(answer) as server, HTTPPool(ONE, base_url=server.url, pooled=pooled) as http:
        for number in range(3):
            response = http.get(f"/{number}")
            assert (response.status_code, response.text) == (200, f"/{number}")
            assert "Link" not in response.headers
        assert server.accepted == (1 if pooled else 3)


def test_interim_answers_without_end_are_an_error() -> None:
    with RawServer(lambda asked: HINTS * 1000) as server, HTTPPool(ONE, base_url=server.url) as http:
        with pytest.raises(requests.ConnectionError, match="interim"):
            http.get("/")
        assert http.stats()["in_use"] == 0


def test_a_switch_of_protocols_ends_the_sockets_use() -> None:
    def answer(asked: Asked) -> bytes:
        if asked.target == "/ws":
            return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
        return ok(asked.target)

    with RawServer(answer) as server, HTTPPool(ONE, base_url=server.url) as http:
        assert http.get("/ws").status_code == 101
        assert http.get("/a").text == "/a"
        assert [one.connection for one in server.asked] == [1, 2]


def surplus(kind: str, asked: Asked) -> tuple[bytes, bytes]:
    """An answer, and what must not come after it."""
    stolen = ok("STOLEN")
    if asked.nth > 0 or asked.target != "/bad":
        return ok(asked.target), b""
    if kind == "two answers":
        return ok("/bad"), stolen
    if kind == "one byte":
        return ok("/bad"), b"x"
    if kind == "a byte after chunks":
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n/bad\r\n0\r\n\r\n", b"x"
    if kind == "a body after 204":
        return b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n", b"STOLEN"
    if kind == "a body after 304":
        return b"HTTP/1.1 304 Not Modified\r\nContent-Length: 45\r\n\r\n", stolen
    if kind == "a body after HEAD":
        return b"HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n", stolen
    assert kind == "a body after 103"
    return HINTS + ok("/bad"), stolen


KINDS = [
    "two answers", "one byte", "a byte after chunks", "a body after 204", "a body after 304", "a body after HEAD",
    "a body after 103",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "a piece of its own"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_socket_with_a_byte_left_is_lent_to_no_one(
    kind: str, together: bool, tls: bool, authority: Authority
) -> None:
    sent = threading.Event()

    def answer(asked: Asked) -> Iterator[bytes]:
        right, wrong = surplus(kind, asked)
        if together:
            yield right + wrong
        else:
            yield right
            yield wrong
        sent.set()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server)
    context.num_tickets = 0  # else the bytes that arrive may be these

    def wrap(sock: socket.socket) -> socket.socket:
        return context.wrap_socket(sock, server_side=True) if tls else sock

    with RawServer(answer, wrap) as server:
        url = server.url.replace("http:", "https:") if tls else server.url
        with HTTPPool(ONE, base_url=url, verify=authority.file) as http:
            first = http.request("HEAD" if kind == "a body after HEAD" else "GET", "/bad")
            assert first.text in ("", "/bad")
            assert sent.wait(30)
            if not together:
                wait_until(lambda: http.stats()["idle"] == 0 or _arrived(http))
            for number in range(3):
                response = http.get(f"/{number}")
                assert (response.status_code, response.text) == (200, f"/{number}")
            assert server.accepted == 2


def _arrived(http: HTTPPool) -> bool:
    """Whether the system has bytes for the idle socket."""
    [host] = http._hosts.all()
    [key] = host.pool._state.idle
    try:
        return bool(socket.socket.recv(key.entry.resource.sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_a_body_given_back_before_its_end_reaches_no_one() -> None:
    """urllib3's `release_conn` says that the body was read; here it was not."""
    with RawServer(lambda asked: ok(asked.target * 10)) as server, HTTPPool(ONE, base_url=server.url) as http:
        response = http.get("/first", stream=True)
        response.raw.release_conn()
        assert http.stats()["in_use"] == 0
        assert http.get("/second").text == "/second" * 10
        assert [one.connection for one in server.asked] == [1, 2]
