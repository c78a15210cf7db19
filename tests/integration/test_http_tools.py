"""What people put around requests: cassettes, mocks, caches, adapters of their own, pickles and copies."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import vcr
from requests.adapters import HTTPAdapter

from pooling import HTTPPool, LeaseError, PoolSettings
from tests.conftest import Authority
from tests.integration.test_http import wait_until
from tests.raw import Asked, RawServer, ok
from tests.web import WebServer


def answer(asked: Asked) -> bytes:
    return ok(f"{asked.target} {asked.fields.get('x-from', '')}".strip())


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer(answer) as one:
        yield one


def ways(http: HTTPPool) -> dict[str, Any]:
    foreign = requests.Session()
    foreign.mount("http://", http.adapter)
    foreign.mount("https://", http.adapter)
    foreign.trust_env = False  # else the environment's list of certificates beats `verify`
    return {"verb": http, "own": http.session(), "foreign": foreign}


# -- cassettes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["verb", "own", "foreign", "lent"])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("tls", [False, True])
def test_cassettes_record_and_replay(
    way: str, pooled: bool, tls: bool, web: WebServer, secure_web: WebServer, authority: Authority, tmp_path: Path
) -> None:
    where = secure_web if tls else web
    url, file = where.url + "/echo", str(tmp_path / "cassette.yaml")
    with HTTPPool(verify=authority.file, pooled=pooled) as http:
        assert http.get(url).ok  # a warm socket is no way around the cassette
        for played in (0, 1):
            where.new_book()
            with vcr.use_cassette(file) as cassette:
                for _ in range(2 if played else 1):
                    cassette.rewind()
                    if way == "lent":
                        with http.acquire() as session:
                            response = session.get(url)
                    else:
                        session = ways(http)[way]
                        if way == "foreign":
                            session.verify = authority.file
                        response = session.get(url)
                    assert response.json()["method"] == "GET"
                assert (len(cassette.responses), bool(cassette.play_count)) == (1, bool(played))
            assert where.book()["requests"] == (0 if played else 1)
        where.new_book()
        for _ in range(2):
            assert http.get(url).ok
        assert where.book()["requests"] == 2 and http.stats()["in_use"] == 0
        assert {one.host: one.statuses for one in http.metrics.hosts()}[where.url][200] == 6


def test_a_pool_that_was_made_amid_a_cassette_pools_after_it(server: RawServer, tmp_path: Path) -> None:
    with vcr.use_cassette(str(tmp_path / "cassette.yaml")):
        http = HTTPPool(base_url=server.url)
        assert http.get("/a").text == "/a"
    with http:
        for _ in range(3):
            assert http.get("/b").text == "/b"
        assert http.metrics.snapshot().created == 1


# -- the socket under an answer ------------------------------------------------------------------


def test_the_socket_of_an_answer_can_be_looked_at(
    server: RawServer, secure_web: WebServer, authority: Authority
) -> None:
    with HTTPPool(verify=authority.file) as http:
        with http.request_context("GET", server.url, stream=True) as response:
            for connection in (response.raw.connection, response.raw._connection):
                assert connection.sock.getpeername() == ("127.0.0.1", server.port)
                assert (connection.host, connection.port) == ("127.0.0.1", server.port)
                with pytest.raises(AttributeError, match="nonsense"):
                    connection.nonsense  # noqa: B018
            kept = response.raw._connection
        assert kept.sock is None  # it may be another's by now
        with pytest.raises(AttributeError):
            kept.port  # noqa: B018
        assert http.get(server.url).raw.connection is None  # as in requests
        with http.request_context("GET", secure_web.url + "/echo", stream=True) as response:
            assert response.raw.connection.sock.getpeercert()["subjectAltName"]
            assert response.raw.connection.is_verified


# -- adapters of one's own -----------------------------------------------------------------------


class Files(requests.adapters.BaseAdapter):
    closed = 0

    def send(self, request: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response._content = b"from a file"
        response._content_consumed = True  # type: ignore[attr-defined]
        return response

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("kind", ["class", "function"])
def test_what_a_factory_mounts_stays(kind: str, server: RawServer) -> None:
    shared = HTTPAdapter()

    class Mine(requests.Session):
        def __init__(self) -> None:
            super().__init__()
            self.mount("file://", Files())
            self.mount(server.url + "/special", shared)

    factory: Any = Mine if kind == "class" else lambda: Mine()
    with RawServer(answer) as other, HTTPPool(session_factory=factory) as http:
        for _ in range(3):
            assert http.get("file:///x").text == "from a file"
            assert http.get(server.url + "/special").text == "/special"
            assert http.get(other.url + "/a").text == "/a"
            with http.acquire() as session:
                assert session.get("file:///x").text == "from a file"
                assert session.get(server.url + "/special").text == "/special"
                assert session.get(other.url + "/a").text == "/a"
        assert (server.accepted, other.accepted) == (1, 1)  # what is shared stays warm over leases
        assert http.metrics.snapshot().created == 1


def test_what_a_borrower_mounts_ends_with_the_lease_and_what_is_shared_stays_warm(web: WebServer) -> None:
    gc.collect()
    before = web.book()["open"]  # other tests' sockets
    shared = HTTPAdapter()
    with HTTPPool() as http:
        for _ in range(3):
            with http.acquire() as session:
                session.mount(web.url + "/echo", shared)
                session.mount(web.url + "/cookie", HTTPAdapter())
                for _ in range(2):
                    assert session.get(web.url + "/echo").ok
                    assert session.get(web.url + "/cookie").ok
            with pytest.raises(LeaseError):
                session.get(web.url + "/echo")
            with pytest.raises(LeaseError):
                session.get(web.url + "/cookie")
    assert web.book()["accepted"] == 4
    wait_until(lambda: web.book()["open"] == before + 1)  # the shared one's
    shared.close()


# -- pickles and copies --------------------------------------------------------------------------


class Mine(requests.Session):
    """A session that pickle can find."""


@pytest.mark.parametrize("factory", [requests.Session, Mine, lambda: Mine()])
@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_session_pickles_as_requests_own(factory: Any, lent: bool, pooled: bool, server: RawServer) -> None:
    with HTTPPool(session_factory=factory, headers={"X-From": "pool"}, retry=2, pooled=pooled) as http:
        lease = http.acquire()
        session = lease.resource if lent else http.session()
        session.cookies.set("a", "b")
        session.mount("https://special", HTTPAdapter(max_retries=7))
        again = pickle.loads(pickle.dumps(session))
        lease.release()
    kind = requests.Session if factory is requests.Session else Mine
    assert type(again) is kind and again.cookies.get("a") == "b"
    assert list(again.adapters) == list(session.adapters) if not lent else True
    assert again.get_adapter("https://special/x").max_retries.total == 7
    assert type(again.get_adapter(server.url)) is HTTPAdapter
    assert again.get_adapter(server.url).max_retries.total == 2
    assert again.get(server.url + "/a").text == "/a pool"  # with sockets of its own: the pool is closed
    again.close()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_session_is_a_session_of_the_pool(make: Any, server: RawServer) -> None:
    with HTTPPool(PoolSettings(max_size=1), headers={"X-From": "pool"}) as http:
        session = http.session()
        session.auth = ("a", "b")
        other = make(session)
        if make is copy.deepcopy:
            other.headers["X-From"] = "copy"
        for one, said in ((session, "pool"), (other, "copy" if make is copy.deepcopy else "pool")):
            assert one.get(server.url + "/a").text == f"/a {said}"
        assert type(other) is type(session) and other.auth == ("a", "b")
        with http.acquire() as lent:
            third = make(lent)
            assert third.get(server.url + "/a").ok
        with pytest.raises(LeaseError):
            third.get(server.url + "/a")
        assert server.accepted == 1
        gc.collect()
        assert http.stats()["in_use"] == 0
