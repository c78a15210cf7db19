"""HTTP/2 against a server of the h2 library, and against Hypercorn."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from pooling import HTTP2Pool, HTTPTimeout, LeaseError, PoolTimeout
from pooling.adapters.http2 import frames
from tests.conftest import Authority
from tests.http2server import HTTP2Server
from tests.integration.tools import wait_until
from tests.servers import _free_port
from tests.web import WebServer


@pytest.fixture
def server(authority: Authority) -> Iterator[HTTP2Server]:
    with HTTP2Server(authority.server) as made:
        yield made


@pytest.fixture
def pool(server: HTTP2Server, authority: Authority) -> Iterator[HTTP2Pool]:
    with HTTP2Pool(base_url=server.url, verify=authority.file, max_size=2, acquire_timeout=30) as made:
        yield made


def closed(pool: HTTP2Pool) -> dict[str, int]:
    return pool.metrics.snapshot().closed


# -- requests ----------------------------------------------------------------------


def test_requests_share_a_connection(pool: HTTP2Pool, server: HTTP2Server) -> None:
    for _ in range(3):
        answer = pool.get("/hello")
        assert (answer.status_code, answer.text, answer.http_version) == (200, "hello", "HTTP/2")
    assert pool.post("/echo", content=b"x" * 300_000).content == b"x" * 300_000
    assert len(pool.get("/big?3000000").content) == 3_000_000
    assert server.opened == 1


@pytest.mark.parametrize("verb", ["get", "options", "head", "post", "put", "patch", "delete"])
def test_every_verb(pool: HTTP2Pool, server: HTTP2Server, verb: str) -> None:
    assert getattr(pool, verb)("/hello").status_code == 200
    assert server.requests == [f"{verb.upper()} /hello"]


def test_prior_knowledge_without_tls() -> None:
    with HTTP2Server() as server, HTTP2Pool(base_url=server.url, prior_knowledge=True) as pool:
        assert pool.get("/hello").http_version == "HTTP/2"


def test_server_without_http2(secure_web: WebServer, authority: Authority) -> None:
    with HTTP2Pool(base_url=secure_web.url, verify=authority.file) as pool:
        assert {pool.get("/hello").http_version for _ in range(2)} == {"HTTP/1.1"}


def test_unknown_certificate_is_refused(server: HTTP2Server) -> None:
    with HTTP2Pool(base_url=server.url) as pool, pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        pool.get("/hello")


def test_body_in_pieces(pool: HTTP2Pool) -> None:
    with pool.stream("GET", "/big?200000") as answer:
        assert sum(map(len, answer.iter_bytes())) == 200_000
    assert closed(pool) == {}


def test_each_thread_has_its_own_connection(pool: HTTP2Pool, server: HTTP2Server) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: pool.post("/echo", content=str(number)).text, range(200)))
    assert found == [str(number) for number in range(200)]
    assert server.opened <= 2


def test_wait_is_bounded(pool: HTTP2Pool) -> None:
    with pool.acquire(), pool.acquire():
        with pytest.raises(PoolTimeout):
            pool.get("/hello", timeout=HTTPTimeout(pool=0.05))
        with pytest.raises(PoolTimeout):
            pool.get("/hello", timeout=HTTPTimeout(total=0.05))


# -- a lease ------------------------------------------------------------------------


def test_nothing_of_a_borrower_reaches_the_next(pool: HTTP2Pool, server: HTTP2Server) -> None:
    pool.resize(1)
    with pool.acquire() as client:
        client.get(f"{server.url}/cookie")
        client.headers["X-Mine"] = "1"
        client.auth = ("me", "secret")
        seen = json.loads(client.get(f"{server.url}/headers").text)
        assert seen["cookie"] == "who=me" and seen["x-mine"] == "1" and "authorization" in seen
    with pool.acquire() as client:
        seen = json.loads(client.get(f"{server.url}/headers").text)
        assert not {"cookie", "x-mine", "authorization"} & set(seen)
    assert server.opened == 1


def test_client_cannot_be_used_after_its_lease(pool: HTTP2Pool, server: HTTP2Server) -> None:
    with pool.acquire() as client:
        client.get(f"{server.url}/hello")
    with pytest.raises(LeaseError, match="ended"):
        client.get(f"{server.url}/hello")
    lease = pool.acquire()
    lease.release()
    with pytest.raises(LeaseError, match="released before"):
        lease.resource.get(f"{server.url}/hello")


def test_two_threads_must_not_use_one_client(pool: HTTP2Pool, server: HTTP2Server) -> None:
    with pool.acquire() as client, ThreadPoolExecutor(1) as thread:
        slow = thread.submit(client.get, f"{server.url}/slow?1")
        wait_until(lambda: server.requests == ["GET /slow"])
        with pytest.raises(LeaseError, match="two threads use one client"):
            client.get(f"{server.url}/hello")
        assert slow.result().text == "hello"
        assert client.get(f"{server.url}/hello").text == "hello"


def test_unread_body_closes_the_connection(pool: HTTP2Pool, server: HTTP2Server) -> None:
    """What the server still sends of it must not fill the window of the next borrower."""
    with pool.stream("GET", "/trickle"):
        pass
    with pool.acquire() as client:
        client.send(client.build_request("GET", f"{server.url}/trickle"), stream=True)
    assert closed(pool) == {"unread": 2}
    assert pool.get("/hello").text == "hello"


@pytest.mark.parametrize("begun", [False, True])
def test_body_read_after_the_lease_is_an_error(pool: HTTP2Pool, server: HTTP2Server, begun: bool) -> None:
    """Neither a short body that looks complete, nor the error of a socket."""
    with pool.acquire() as client:
        response = client.send(client.build_request("GET", f"{server.url}/big?3000000"), stream=True)
        pieces = response.iter_bytes()
        if begun:
            next(pieces)
    with pytest.raises(LeaseError, match="released before its body was read to the end"):
        list(pieces)


def test_two_hosts_share_one_connection_in_turn(pool: HTTP2Pool, server: HTTP2Server, authority: Authority) -> None:
    with HTTP2Server(authority.server) as other, pool.acquire() as client:
        for _ in range(2):
            assert client.get(f"{server.url}/hello").text == client.get(f"{other.url}/hello").text == "hello"
        assert (server.opened, other.opened) == (2, 2)
        wait_until(lambda: len(server.connections) + len(other.connections) == 1)
        with client.stream("GET", f"{other.url}/trickle"), pytest.raises(LeaseError, match="unread: read or close it"):
            client.get(f"{server.url}/hello")


def test_detached_client_keeps_its_connection(pool: HTTP2Pool, server: HTTP2Server) -> None:
    client = pool.acquire().detach()
    assert client.get(f"{server.url}/hello").text == "hello"
    assert pool.stats()["size"] == 0
    client.close()
    wait_until(lambda: not server.connections)


# -- lost connections ------------------------------------------------------------------


def test_connection_closed_while_idle_costs_no_error(pool: HTTP2Pool, server: HTTP2Server) -> None:
    for end in (server.hang_up, lambda: server.each("close_connection")):
        pool.post("/echo", content=b"x")
        end()
        time.sleep(0.1)
        assert pool.post("/echo", content=b"x").text == "x"
    assert closed(pool) == {"dead": 2}


def test_frames_for_an_idle_connection_are_answered(pool: HTTP2Pool, server: HTTP2Server) -> None:
    pool.get("/hello")
    [served] = server.connections
    server.each("ping")
    time.sleep(0.1)
    assert pool.get("/hello").text == "hello"
    wait_until(lambda: served.pongs == 1)
    assert server.opened == 1


def test_without_httpcores_private_names_a_pinged_connection_is_replaced(
    pool: HTTP2Pool, server: HTTP2Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "AVAILABLE", False)
    for _ in range(2):
        assert pool.get("/hello").text == "hello"
    before = server.opened
    server.each("ping")
    time.sleep(0.1)
    assert pool.get("/hello").text == "hello"
    assert server.opened == before + 1


def test_end_announced_with_an_answer(pool: HTTP2Pool, server: HTTP2Server) -> None:
    assert pool.get("/last").text == "hello"
    assert pool.post("/echo", content=b"x").text == "x"
    assert server.opened == 2


def test_lost_request_is_sent_again_if_it_cannot_take_effect_twice(pool: HTTP2Pool, server: HTTP2Server) -> None:
    pool.get("/hello")
    assert pool.get("/lost").text == "hello"
    assert server.requests == ["GET /hello", "GET /lost", "GET /lost"]
    server.lose = True
    with pytest.raises(httpx.RemoteProtocolError):
        pool.post("/lost")
    assert server.requests[3:] == ["POST /lost"]
    assert closed(pool) == {"broken": 1}


def test_restarted_server(authority: Authority) -> None:
    with HTTP2Server(authority.server) as first:
        pool = HTTP2Pool(base_url=first.url, verify=authority.file)
        pool.get("/hello")
    with pytest.raises(httpx.ConnectError):
        pool.get("/hello")
    with HTTP2Server(authority.server, port=first.port):
        assert pool.get("/hello").text == "hello"
    pool.close()


# -- time limits --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/silence", "/trickle"])
def test_total_time(pool: HTTP2Pool, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        pool.get(path, timeout=HTTPTimeout(total=0.3))
    assert 0.25 < time.monotonic() - began < 10
    assert pool.get("/hello").text == "hello"


def test_total_time_of_the_pool_holds_for_lent_clients(server: HTTP2Server, authority: Authority) -> None:
    pool = HTTP2Pool(timeout=HTTPTimeout(total=0.3), verify=authority.file)
    with pool, pool.acquire() as client, pytest.raises(httpx.ReadTimeout):
        client.get(f"{server.url}/trickle")


def test_redirects_share_the_total_time(server: HTTP2Server, authority: Authority) -> None:
    with HTTP2Pool(base_url=server.url, verify=authority.file, follow_redirects=True) as pool:
        assert pool.get("/moved", timeout=HTTPTimeout(total=30)).text == "hello"


def test_close_interrupts(pool: HTTP2Pool, server: HTTP2Server) -> None:
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.get, "/silence")
        wait_until(lambda: server.requests == ["GET /silence"])
        pool.close(timeout=0)
        with pytest.raises(httpx.TransportError):
            waiting.result(30)


# -- health, processes, arguments ------------------------------------------------------------


def test_health_url(server: HTTP2Server, authority: Authority) -> None:
    with HTTP2Pool(base_url=server.url, verify=authority.file, health_url="/hello") as pool:
        pool.probe()
        assert server.requests == ["GET /hello"]
        server.close()
        with pytest.raises(httpx.ConnectError):
            pool.probe()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_child_has_its_own_connections(pool: HTTP2Pool, server: HTTP2Server) -> None:
    pool.get("/hello")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if pool.get("/hello").text == "hello" else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.get("/hello").text == "hello"
    assert server.opened == 2


def test_path_never_leaves_the_base_url(server: HTTP2Server, authority: Authority) -> None:
    with HTTP2Pool(base_url=f"{server.url}/api", verify=authority.file) as pool:
        assert pool.get("/../hello").request.url.path == "/api/hello"
        with pytest.raises(httpx.InvalidURL, match="must not have .. beside a semicolon"):
            pool.get("/..;/hello")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "ftp://x"}, "base_url must begin with http"),
        ({"verify": 3}, "verify must be a bool, a path or an ssl.SSLContext, not of int"),
        ({"timeout": -1}, "must be"),
        ({"max_sise": 3}, "unknown setting 'max_sise'; did you mean 'max_size'"),
        ({"auth": 3}, "auth"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        HTTP2Pool(**arguments)


def test_private_names_of_httpcore_that_are_used(server: HTTP2Server) -> None:
    """If one is gone, idle connections can no longer be checked."""
    with httpx.HTTPTransport(http2=True, verify=False) as transport:
        transport.handle_request(httpx.Request("GET", f"{server.url}/hello")).read()
        [outer] = vars(transport)["_pool"].connections
        inner = vars(outer)["_connection"]
        assert isinstance(inner, httpcore.HTTP2Connection)
        assert hasattr(inner, "_receive_events") and callable(inner.is_available)
        assert vars(inner)["_connection_terminated"] is None
        stream = vars(inner)["_network_stream"]
        assert stream.get_extra_info("is_readable") in (True, False)
        assert isinstance(stream.get_extra_info("socket"), socket.socket)


APP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["http_version"].encode()})
"""


def test_hypercorn(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "app.py").write_text(APP)
    port = _free_port()
    command = ["-m", "hypercorn", "--bind", f"127.0.0.1:{port}", "--certfile", authority.server, "--keyfile"]
    with subprocess.Popen([sys.executable, *command, authority.server, "app:app"], cwd=tmp_path) as process:
        try:
            with HTTP2Pool(base_url=f"https://127.0.0.1:{port}", verify=authority.file) as pool:
                wait_until(lambda: answers(pool))
                threads = [threading.Thread(target=lambda: pool.get("/")) for _ in range(20)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert pool.get("/").text == "2"
                assert pool.stats()["size"] <= 10 and closed(pool).keys() <= {"broken"}
        finally:
            process.terminate()


def answers(pool: HTTP2Pool) -> bool:
    try:
        return pool.get("/").status_code == 200
    except httpx.TransportError:
        return False
