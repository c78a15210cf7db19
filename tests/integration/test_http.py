"""HTTPPool against real servers: sessions are private and clean, and behave as those of requests."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import urllib3
from requests.auth import HTTPDigestAuth

from pooling import HTTPPool, HTTPTimeout, LeaseError, PoolClosed, PoolSettings, PoolTimeout
from pooling.core.runtime import registry
from tests.conftest import Authority
from tests.web import ForwardProxy, WebServer

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)


def in_thread(function: Callable[..., object], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)


@pytest.fixture
def http(web: WebServer) -> Iterator[HTTPPool]:
    with HTTPPool(base_url=web.url, name="api") as pool:
        yield pool


def echo(response: requests.Response) -> dict[str, Any]:
    response.raise_for_status()
    return response.json()  # type: ignore[no-any-return]


# -- requests and their sockets ----------------------------------------------------------


def test_requests_share_warm_sockets(http: HTTPPool, web: WebServer) -> None:
    assert len({echo(http.get(f"/echo?n={n}"))["connection"] for n in range(10)}) == 1
    with http.acquire() as session:
        session.get(web.url + "/echo").raise_for_status()
    http.session().get(web.url + "/echo").raise_for_status()
    assert http.request("GET", web.url + "/echo").ok  # a complete URL works too
    assert http.get("/nothing").status_code == 404
    book = web.book()
    assert (book["accepted"], book["requests"]) == (1, 14)


def test_each_verb_sends_its_method(web: WebServer) -> None:
    with HTTPPool(base_url=web.url + "/") as http:
        for name in ("get", "post", "put", "patch", "delete", "options"):
            assert echo(getattr(http, name)("/echo"))["method"] == name.upper()
        assert http.head("/echo").request.method == "HEAD"
        assert echo(http.post("/echo", json={"a": 1}))["body"] == '{"a": 1}'
        assert echo(http.put("/echo", data="text"))["body"] == "text"
        assert http.head("/redirect?to=/echo").status_code == 302  # as requests.head does
    assert web.book()["accepted"] == 1


def test_all_kinds_of_bodies_are_sent_whole(http: HTTPPool, tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"f" * 100_000)
    assert echo(http.post("/echo", data=iter([b"one ", b"two"])))["body"] == "one two"
    with open(tmp_path / "file", "rb") as file:
        assert echo(http.post("/echo", data=file))["body"] == "f" * 100_000
    assert echo(http.post("/echo", data=b"z" * 2_000_000, timeout=HTTPTimeout(total=60)))["body"] == "z" * 2_000_000


def test_a_hundred_threads_on_ten_sockets_each_get_their_own_answer(web: WebServer, secure_web: WebServer,
                                                                    authority: Authority) -> None:
    wrong: list[object] = []
    settings = PoolSettings(max_size=10, acquire_timeout=60)
    with HTTPPool(settings, max_per_host=10, verify=authority.file) as http:

        def work(number: int) -> None:
            try:
                for step in range(5):
                    url = (web.url, secure_web.url)[(number + step) % 2]
                    mark = f"/echo?mark={number}-{step}"
                    with http.acquire() as session:
                        session.headers["X-Mark"] = mark
                        got = echo(session.get(url + mark))
                    if (got["target"], got["fields"]["x-mark"]) != (mark, mark):
                        wrong.append(got)
            except BaseException as error:
                wrong.append(error)

        for thread in [in_thread(work, number) for number in range(100)]:
            thread.join()
        assert not wrong
        snapshot = http.metrics.snapshot()
        assert (snapshot.acquired, snapshot.in_use) == (500, 0)
        assert snapshot.peak_in_use <= 10
    assert web.book()["most"] + secure_web.book()["most"] <= 20
    assert web.book()["most"] <= 10


def test_one_session_serves_many_threads(http: HTTPPool, web: WebServer) -> None:
    wrong: list[object] = []
    session = http.session()
    session.headers["X-Mine"] = "yes"

    def work(number: int) -> None:
        try:
            for step in range(10):
                mark = f"/echo?mark={number}-{step}"
                got = echo(session.post(web.url + mark, data=mark, headers={"X-Mark": mark}))
                fields = got["fields"]
                if (got["target"], got["body"], fields["x-mark"], fields["x-mine"]) != (mark, mark, mark, "yes"):
                    wrong.append(got)
        except BaseException as error:
            wrong.append(error)

    for thread in [in_thread(work, number) for number in range(30)]:
        thread.join()
    assert not wrong
    assert web.book()["requests"] == 300 and http.stats()["in_use"] == 0


# -- clean sessions (P5) ---------------------------------------------------------------------


def test_acquired_session_has_the_pools_defaults_and_no_state_of_the_last_borrower(web: WebServer) -> None:
    http = HTTPPool(headers={"X-From": "pool"}, auth=("pool", "word"), proxies={"ftp": "http://proxy:1"})
    with http:
        with http.acquire() as session:
            clean = state_of(session)
            echo(session.get(web.url + "/cookie?id=s3cret"))
            assert session.cookies.get("id") == "s3cret"
            session.headers["X-Secret"] = "s3cret"
            session.auth = ("user", "s3cret")
            session.params = {"key": "s3cret"}
            session.proxies["http"] = "http://user:s3cret@proxy:1"
            session.hooks["response"].append(lambda *args, **kwargs: None)
            session.verify, session.cert, session.trust_env = False, "s3cret.pem", False
            session.max_redirects, session.stream = 0, True
            session.mount("http://other", requests.adapters.HTTPAdapter())
            session.request = None  # type: ignore[method-assign,assignment]
            session.token = "s3cret"  # type: ignore[attr-defined]
        with http.acquire() as again:
            assert state_of(again) == clean
            assert "s3cret" not in repr(state_of(again))
            seen = echo(again.get(web.url + "/echo"))
            assert seen["fields"]["x-from"] == "pool"
            assert seen["fields"]["authorization"].startswith("Basic ")
            assert "s3cret" not in repr(seen)
        assert "s3cret" not in repr(echo(http.get(web.url + "/echo")))
        assert http.session().proxies == {"ftp": "http://proxy:1"}
    assert web.book()["accepted"] == 1


def state_of(session: requests.Session) -> dict[str, Any]:
    state = dict(vars(session), cookies=session.cookies.get_dict(), headers=dict(session.headers))
    state["adapters"] = {prefix: type(adapter).__name__ for prefix, adapter in session.adapters.items()}
    return {name: repr(value) if isinstance(value, dict) else value for name, value in state.items()}


def test_session_cannot_be_used_after_its_lease(http: HTTPPool, web: WebServer) -> None:
    lease = http.acquire()
    session = lease.resource
    session.get(web.url + "/echo")
    lease.release()
    with pytest.raises(LeaseError, match="was released before"):
        session.get(web.url + "/echo")
    for end in (lease.release, lease.discard, lease.detach, lease.__enter__):
        with pytest.raises(LeaseError, match="was released before"):
            end()
    mine = http.acquire().detach()
    assert mine.get(web.url + "/echo").ok


def test_closing_a_session_leaves_the_pools_sockets_open(http: HTTPPool, web: WebServer) -> None:
    first = echo(http.get("/echo"))["connection"]
    with http.acquire() as session, session:  # requests' own `with` closes it
        assert echo(session.get(web.url + "/echo"))["connection"] == first
    own = http.session()
    own.close()
    http.adapter.close()
    assert echo(own.get(web.url + "/echo"))["connection"] == first
    assert echo(http.get("/echo"))["connection"] == first


def test_unread_bodies_are_closed_with_the_lease(http: HTTPPool, web: WebServer) -> None:
    with http.acquire() as session:
        response = session.get(web.url + "/stream?n=1000&s=0.01", stream=True)
        assert http.stats()["in_use"] == 1
    assert http.stats()["in_use"] == 0
    assert response.raw.closed
    assert http.metrics.snapshot().closed == {"unread": 1}


@pytest.mark.parametrize("kind", ["isolated", "shared"])
def test_cookies(web: WebServer, kind: str) -> None:
    with HTTPPool(base_url=web.url, cookies=kind) as http:
        http.get("/cookie?a=1")
        with http.acquire() as session:
            session.get(web.url + "/cookie?b=2")
            session.get(web.url + "/cookie?c=3")
            assert session.cookies.get("b") == "2"  # one jar during the lease
        sent = echo(http.get("/echo"))["fields"].get("cookie", "")
        assert sent == ("" if kind == "isolated" else "a=1; b=2; c=3")


def test_shared_jar_is_thread_safe(web: WebServer) -> None:
    failed: list[BaseException] = []
    with HTTPPool(base_url=web.url, cookies="shared") as http:

        def work(number: int) -> None:
            try:
                for step in range(10):
                    echo(http.get(f"/cookie?n{number}_{step}=1"))
            except BaseException as error:
                failed.append(error)

        for thread in [in_thread(work, number) for number in range(10)]:
            thread.join()
        assert not failed
        assert len(http.session().cookies) == 100


def test_session_factory(web: WebServer) -> None:
    class Mine(requests.Session):
        def __init__(self) -> None:
            super().__init__()
            self.headers["X-Mine"] = "yes"

    def plain() -> requests.Session:
        session = requests.Session()
        session.headers["X-Mine"] = "made"
        return session

    with HTTPPool(base_url=web.url, session_factory=Mine) as http:
        assert echo(http.get("/echo"))["fields"]["x-mine"] == "yes"
        with http.acquire() as session:
            assert isinstance(session, Mine)
    with HTTPPool(base_url=web.url, session_factory=plain) as http:
        assert echo(http.get("/echo"))["fields"]["x-mine"] == "made"


def test_arguments_override_the_environment(web: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login net password rc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with HTTPPool(base_url=web.url) as http:  # as in requests
        assert "authorization" in echo(http.get("/echo"))["fields"]
    with HTTPPool(base_url=web.url, trust_env=False) as http:
        assert "authorization" not in echo(http.get("/echo"))["fields"]
    with ForwardProxy() as proxy:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("no_proxy", "")
        with HTTPPool(base_url=web.url, proxies={"http": proxy.url}) as http:
            assert echo(http.get("/echo"))["fields"]["via"] == "1.1 tests"
        with HTTPPool(base_url=web.url) as http, pytest.raises(requests.exceptions.ProxyError):
            http.get("/echo")


def test_no_compression(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, compression=False) as http:
        response = http.get("/gzip")
        assert "Content-Encoding" not in response.headers
        assert response.content == b"well compressed " * 100
    with HTTPPool(base_url=web.url) as http:
        response = http.get("/gzip")
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.content == b"well compressed " * 100


# -- streams (P8) ------------------------------------------------------------------------------


def test_stream_holds_its_slot_until_it_is_read(web: WebServer) -> None:
    with HTTPPool(ONE, base_url=web.url, name="api") as http:
        response = http.get("/stream?n=3", stream=True)
        assert http.stats()["in_use"] == 1
        assert "test_stream_holds_its_slot_until_it_is_read" in str(http.holders()[0])
        with pytest.raises(PoolTimeout, match=r"pool 'api.*test_http.py:\d+ test_stream_holds") as caught:
            http.get("/echo", timeout=HTTPTimeout(pool=0.0))
        assert isinstance(caught.value, requests.exceptions.ConnectTimeout)
        assert caught.value.request is not None
        assert response.content == b"x" * 30
        assert http.stats()["in_use"] == 0
        assert http.get("/echo").ok
    assert web.book()["accepted"] == 1


def test_request_context_closes_its_stream(web: WebServer) -> None:
    with HTTPPool(ONE, base_url=web.url) as http:
        with http.request_context("GET", "/stream?n=1000&s=0.01", stream=True) as response:
            assert http.stats()["in_use"] == 1
            assert next(response.iter_content(10)) == b"x" * 10
        assert http.stats()["in_use"] == 0
        with pytest.raises(RuntimeError, match="mine"), http.request_context("GET", "/stream", stream=True):
            raise RuntimeError("mine")
        assert http.stats()["in_use"] == 0
        assert http.get("/echo").ok


@pytest.mark.parametrize("cycle", [False, True])
def test_dropped_stream_releases_its_slot(web: WebServer, caplog: pytest.LogCaptureFixture, cycle: bool) -> None:
    with HTTPPool(ONE, base_url=web.url, name="api") as http:
        response = http.get("/stream?n=1000&s=0.01", stream=True)
        if cycle:
            response.myself = response  # type: ignore[attr-defined]
        with caplog.at_level(logging.WARNING, logger="pooling"):
            del response
            gc.collect()
            assert http.get("/echo").ok
        wait_until(lambda: http.stats()["size"] == 1)
        assert http.metrics.snapshot().orphans == 1
        assert http.metrics.snapshot().closed == {"orphaned": 1}
    (record,) = [record for record in caplog.records if "dropped without release" in record.getMessage()]
    assert "test_dropped_stream_releases_its_slot" in record.getMessage()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interruption_while_a_body_is_read_loses_no_slot(web: WebServer, error: type[BaseException]) -> None:
    def interrupted(*args: object, **kwargs: object) -> Any:
        raise error

    with HTTPPool(ONE, base_url=web.url) as http:
        with pytest.raises(error):
            for _ in http.get("/stream?n=1000&s=0.01", stream=True).iter_content(10):
                raise error
        gc.collect()
        wait_until(lambda: http.stats()["in_use"] == 0)
        response = http.get("/stream?n=1000", stream=True)
        response.raw._fp.fp.raw.readinto = interrupted
        with pytest.raises(error):
            response.content  # noqa: B018
        wait_until(lambda: http.stats()["in_use"] == 0)
        with pytest.raises(error):
            http.get("/echo", hooks={"response": interrupted})
        gc.collect()
        wait_until(lambda: http.stats()["in_use"] == 0)
        assert http.get("/echo").ok


# -- compatibility with requests ---------------------------------------------------------------


def test_redirects_and_credentials(web: WebServer) -> None:
    with WebServer(host="localhost") as other:
        for session in (requests.Session(), HTTPPool().session()):
            response = session.get(f"{web.url}/redirect?to={other.url}/echo", auth=("user", "word"))
            assert [one.status_code for one in response.history] == [302]
            assert "authorization" not in echo(response)["fields"]  # it went to another host
            response = session.get(f"{web.url}/redirect?to={web.url}/echo", auth=("user", "word"))
            assert "authorization" in echo(response)["fields"]
            response = session.post(f"{web.url}/redirect?code=307&to=/echo", data=b"again")
            assert (echo(response)["method"], echo(response)["body"]) == ("POST", "again")
            with pytest.raises(requests.TooManyRedirects):
                session.max_redirects = 3
                session.get(web.url + "/loop")
            assert session.get(f"{web.url}/redirect?to=/echo", allow_redirects=False).next is not None


def test_errors_are_those_of_requests(web: WebServer, http: HTTPPool) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        (web.url + "/half", {}),
        (web.url + "/reset", {}),
        (web.url + "/stall", {"timeout": (5, 0.1)}),
        (web.url + "/stall-body", {"timeout": (5, 0.1)}),
        ("http://127.0.0.1:1/", {}),
        ("http://no-such-host.invalid/", {}),
        ("https" + web.url[4:], {}),
        ("http://[", {}),
        ("http:///", {}),
        (web.url + "/echo", {"proxies": {"http": "http://127.0.0.1:1"}}),
        (web.url + "/echo", {"proxies": {"http": "http:///nothing"}}),
        (web.url + "/echo", {"timeout": (1, 2, 3)}),
        ("nothing", {}),
        ("gopher://x/", {}),
    ]
    for url, kwargs in cases:
        kinds = []
        for session in (requests.Session(), http.session()):
            with pytest.raises((requests.RequestException, ValueError)) as caught:
                session.get(url, **kwargs)
            cause = caught.value.args[0]
            kinds.append((type(caught.value), type(cause), type(getattr(cause, "reason", None))))
        assert kinds[0] == kinds[1], url
    assert http.stats()["in_use"] == 0


def test_digest_authentication(http: HTTPPool, web: WebServer) -> None:
    auth = HTTPDigestAuth("user", "word")
    response = http.get("/digest", auth=auth)
    assert echo(response)["target"] == "/digest" and [one.status_code for one in response.history] == [401]
    assert http.get("/digest", auth=HTTPDigestAuth("user", "guess")).status_code == 401
    assert http.stats()["in_use"] == 0
    assert web.book()["paths"]["/digest"] == 4
    with http.acquire() as session:  # both responses belong to the session
        response = session.get(web.url + "/digest?n=10000000", auth=auth, stream=True)
        assert response.ok and http.stats()["in_use"] == 1
    assert http.stats()["in_use"] == 0 and response.raw.closed
    assert http.metrics.snapshot().closed == {"unread": 1}
    with pytest.raises(LeaseError, match="was released before"):
        response.connection.send(response.request)  # type: ignore[attr-defined]


def test_responses_have_elapsed_and_raw(http: HTTPPool) -> None:
    response = http.get("/redirect?to=/bytes?n=20000", stream=True)
    assert response.elapsed.total_seconds() > 0
    assert isinstance(response.raw, urllib3.HTTPResponse)
    assert response.raw.read(5) == b"bbbbb"
    assert b"".join(response.raw.stream(1000)) == b"b" * 19_995
    assert http.stats()["in_use"] == 0


def test_adapter_can_be_mounted_on_other_sessions(http: HTTPPool, web: WebServer) -> None:
    class Client(requests.Session):
        """A session class of its own, as in OAuth libraries."""

        def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:  # type: ignore[override]
            kwargs.setdefault("headers", {})["Authorization"] = "Bearer token"
            return super().request(method, url, **kwargs)

    http.get("/echo")
    with Client() as client:
        client.mount("http://", http.adapter)
        client.mount("https://", http.adapter)
        assert echo(client.get(web.url + "/echo"))["fields"]["authorization"] == "Bearer token"
        assert client.get(web.url + "/stream", stream=True).content == b"x" * 30
    assert web.book()["accepted"] == 1


# -- TLS ------------------------------------------------------------------------------------------


def test_verify_overrides_the_environment(
    secure_web: WebServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.utils.DEFAULT_CA_BUNDLE_PATH)
    with HTTPPool(base_url=secure_web.url, verify=authority.file) as http:
        assert http.get("/echo").ok
        with http.acquire() as session:
            assert session.get(secure_web.url + "/echo").ok
    with HTTPPool(base_url=secure_web.url) as untrusting, pytest.raises(requests.exceptions.SSLError):
        untrusting.get("/echo")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority.file)
    with HTTPPool() as plain, plain.acquire() as session:
        assert session.get(secure_web.url + "/echo").ok


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_verified_request_never_uses_an_unverified_socket(secure_web: WebServer) -> None:
    with HTTPPool(ONE, base_url=secure_web.url) as http:
        with http.acquire() as session:
            session.verify = False
            assert session.get(secure_web.url + "/echo").ok
        for _ in range(2):
            assert http.get("/echo", verify=False).ok
            with pytest.raises(requests.exceptions.SSLError):
                http.get("/echo")
        failed = []

        def verified() -> None:
            for _ in range(20):
                try:
                    failed.append(http.get("/echo"))
                except requests.exceptions.SSLError:
                    pass

        threads = [in_thread(verified) for _ in range(4)]
        for _ in range(20):
            assert http.get("/echo", verify=False).ok
        for thread in threads:
            thread.join()
        assert not failed
        assert http.stats()["size"] <= 1


def test_trusted_certificates_are_read_once(
    secure_web: WebServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    read = []
    load = ssl.SSLContext.load_verify_locations

    def counting(self: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        read.append((args, kwargs))
        load(self, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", counting)
    with HTTPPool(base_url=secure_web.url, verify=authority.file) as http:
        http.warm_up(each=5)
        wait_until(lambda: secure_web.book()["accepted"] == 5)
        assert read == [((), {"cafile": authority.file})]
        http.drain()
        assert http.get("/echo").ok
        assert len(read) == 2  # a new generation reads it again


def test_error_names_the_missing_certificate_file(secure_web: WebServer) -> None:
    with HTTPPool(verify="/no/such/bundle.pem") as http, pytest.raises(OSError, match=r"/no/such/bundle\.pem"):
        http.get(secure_web.url)
    with HTTPPool(cert="/no/such/client.pem") as http, pytest.raises(OSError, match=r"/no/such/client\.pem"):
        http.get(secure_web.url)


def test_requests_with_another_client_certificate_share_no_socket(secure_web: WebServer, authority: Authority) -> None:
    with HTTPPool(base_url=secure_web.url, verify=authority.file) as http:
        numbers = {echo(http.get("/echo", cert=cert))["connection"] for cert in (None, authority.client) * 2}
    assert len(numbers) == 2


# -- proxies ---------------------------------------------------------------------------------------


def test_proxy(web: WebServer, secure_web: WebServer, authority: Authority) -> None:
    with ForwardProxy() as proxy:
        address = proxy.url.replace("://", "://user:secret@")
        with HTTPPool(verify=authority.file, proxies={"http": address, "https": address}, name="api") as http:
            for _ in range(3):
                assert echo(http.get(secure_web.url + "/echo"))["fields"].get("via") is None
                assert echo(http.get(web.url + "/echo"))["fields"]["via"] == "1.1 tests"
            assert "secret" not in repr(http) + repr(http.stats()) + http.metrics.to_json()
        paths = proxy.book()["paths"]
        assert paths[secure_web.url.partition("//")[2]] == 1  # one tunnel, kept
        assert paths["Basic dXNlcjpzZWNyZXQ="] == 4
        with HTTPPool(verify=authority.file) as direct:
            direct.get(secure_web.url + "/echo")
            direct.get(secure_web.url + "/echo", proxies={"https": address})
            assert direct.stats()["size"] == 2  # the proxy is part of the key
    assert secure_web.book()["accepted"] == 3


def test_proxy_with_tls(secure_web: WebServer, authority: Authority) -> None:
    with ForwardProxy(authority.server) as proxy:
        with HTTPPool(verify=authority.file, proxies={"https": proxy.url}) as http:
            for _ in range(2):
                assert echo(http.get(secure_web.url + "/echo", timeout=HTTPTimeout(total=60)))["method"] == "GET"
        with HTTPPool(proxies={"https": proxy.url}) as http, pytest.raises(requests.exceptions.ProxyError):
            http.get(secure_web.url + "/echo")
        assert sum(proxy.book()["paths"].values()) == 1


# -- life ---------------------------------------------------------------------------------------------


def test_closed_pool_raises_pool_closed(web: WebServer) -> None:
    before = web.book()["open"]
    http = HTTPPool(base_url=web.url, name="api")
    session = http.session()
    assert session.get(web.url + "/echo").ok
    http.close()
    assert http.closed and http.stats()["size"] == 0
    with pytest.raises(PoolClosed, match="'api' is closed"):
        http.acquire()
    with pytest.raises(PoolClosed) as caught:
        session.get(web.url + "/echo")
    assert isinstance(caught.value, requests.ConnectionError)
    wait_until(lambda: web.book()["open"] <= before)


def test_close_interrupts_requests_after_its_timeout(web: WebServer) -> None:
    errors: list[BaseException] = []
    http = HTTPPool(ONE, base_url=web.url)

    def request(path: str) -> None:
        try:
            http.get(path, timeout=(30, 60))
        except Exception as error:
            errors.append(error)

    stalled = in_thread(request, "/stall")
    wait_until(lambda: http.stats()["in_use"])
    waiting = in_thread(request, "/echo")
    wait_until(lambda: http.stats()["waiting"])
    http.close(timeout=0.1)
    for thread in (waiting, stalled):
        thread.join(30)
    kinds = sorted(type(error).__name__ for error in errors)
    assert kinds == ["ConnectionError", "HTTPPoolClosed"]
    assert http.stats()["in_use"] == 0


def test_dropped_pool_closes_its_sockets(web: WebServer) -> None:
    before = web.book()["open"]
    http = HTTPPool(base_url=web.url)
    with http.acquire() as session:
        session.get(web.url + "/echo")
    http.warm_up(each=3)
    wait_until(lambda: web.book()["accepted"] == 3)
    del http, session
    gc.collect()
    wait_until(lambda: web.book()["open"] <= before)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("options", [{}, {"health_url": "/echo"}, {"pooled": False}, {"cookies": "shared"}])
def test_dropped_pool_is_freed_by_reference_count(web: WebServer, options: dict[str, Any], closed: bool) -> None:
    before = registry.pools()
    http = HTTPPool(base_url=web.url, **options)
    with http.acquire() as session:
        session.get(web.url + "/echo")
    with http.request_context("GET", "/stream?n=2", stream=True) as response:
        assert response.content
    http.warm_up(each=2)
    http.health_check(ask=True)
    if closed:
        http.close()
    pools = [pool for pool in registry.pools() if pool not in before]  # of slots, of sockets, of the health probe
    assert len(pools) == 2 + ("health_url" in options)
    references = [weakref.ref(each) for each in (http, http.connections, http.adapter, *pools)]
    gc.disable()
    try:
        del http, session, response, pools, before
        wait_until(lambda: not any(reference() for reference in references))  # a worker may still be ending its job
    finally:
        gc.enable()


def test_session_that_outlives_its_pool_keeps_the_health_probe_running(web: WebServer) -> None:
    http = HTTPPool(health_check_interval=0.02, base_url=web.url, health_url="/bytes")
    session = http.session()
    assert session.get(web.url + "/echo").ok
    reference = weakref.ref(http)
    del http
    assert reference() is None
    probed = web.book()["paths"].get("/bytes", 0)
    wait_until(lambda: web.book()["paths"].get("/bytes", 0) > probed + 2)
    assert session.get(web.url + "/echo").ok


def test_settings_of_a_running_pool(http: HTTPPool, web: WebServer) -> None:
    http.warm_up(each=4)
    assert http.stats()["idle"] == 4
    http.reconfigure(max_idle=2)
    assert http.stats()["idle"] == 2 and http.settings.max_idle == 2
    http.resize(1)
    assert (http.settings.max_size, http.stats()["max_size"]) == (1, 1)
    with pytest.raises(ValueError, match="max_size"):
        http.resize(0)
    http.pause()
    thread = in_thread(http.get, "/echo")
    wait_until(lambda: http.stats()["waiting"])
    http.resume()
    thread.join(30)
    assert web.book()["requests"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"settings": {}}, "settings must be a PoolSettings"),
        ({"base_url": "api.example.com"}, "base_url must begin with"),
        ({"timeout": 0}, "connect must be above 0"),
        ({"timeout": (1, "2")}, "read must be a number"),
        ({"timeout": (1, 2, 3)}, r"must be a number or \(connect, read\)"),
        ({"max_per_host": 0}, "max_per_host must be at least 1"),
        ({"max_per_host": True}, "max_per_host must be a whole number"),
        ({"retry": -1}, "retry must be at least 1"),
        ({"cookies": "mine"}, 'cookies must be "isolated" or "shared"'),
        ({"session_factory": None}, "session_factory must be callable"),
        ({"health_url": 5}, "health_url must be a string"),
    ],
)
def test_errors_name_the_bad_argument(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        HTTPPool(**wrong)
