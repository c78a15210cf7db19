"""Several servers of one service, against real servers that are slow, fail, die and come back."""

from __future__ import annotations

import contextlib
import gc
import logging
import textwrap
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from requests.auth import HTTPDigestAuth
from urllib3.util import Retry

from pooling import Balancing, CircuitBreaker, CircuitOpen, HTTPPool, HTTPTimeout, LeaseError, Observer
from pooling.adapters.http import transport
from pooling.adapters.http.balancing import group as group_module
from tests.integration.tools import run_forking, wait_until
from tests.proxy import Proxy
from tests.web import WebServer

QUICK = Balancing(eject_for=0.5, eject_for_max=0.5, slow_start=1.0)
FOR_EVER = Balancing(eject_for=600.0, eject_for_max=600.0)


@pytest.fixture(scope="module")
def _three() -> Iterator[list[WebServer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(WebServer()) for _ in range(3)]


@pytest.fixture
def three(_three: list[WebServer]) -> list[WebServer]:
    """Three servers that answer at once; tests leave them running."""
    for server in _three:
        server.answer_always(0)
        server.be_slow(0.0)
        server.new_book()
    return _three


def urls(servers: list[WebServer]) -> list[str]:
    return [server.url for server in servers]


def requests_of(servers: list[WebServer]) -> list[int]:
    return [server.book()["requests"] for server in servers]


def states(pool: HTTPPool) -> list[str]:
    return [one["state"] for one in pool.stats()["backends"].values()]


class Traffic:
    """Requests from several threads, until the end of a block; `errors` has all that went wrong."""

    def __init__(self, pool: HTTPPool, threads: int = 4, method: str = "GET", pause: float = 0.0) -> None:
        self.statuses: Counter[int] = Counter()
        self.errors: list[object] = []
        self._pool, self._method, self._pause = pool, method, pause
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def _run(self) -> None:
        while not self._end.wait(self._pause):
            try:
                status = self._pool.request(self._method, "/echo").status_code
            except Exception as error:
                self.errors.append(error)
                continue
            self.statuses[status] += 1
            if status != 200:
                self.errors.append(status)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


# -- distribution -------------------------------------------------------------------------


def test_most_requests_go_to_the_good_server(three: list[WebServer]) -> None:
    """One is 10 x slower, and one fails within a millisecond."""
    good, slow, bad = three
    good.be_slow(0.02)
    slow.be_slow(0.2)
    bad.answer_always(500)
    with HTTPPool(base_urls=urls([bad, slow, good]), retry=0) as pool, Traffic(pool, threads=4):
        time.sleep(5)
        for server in three:
            server.new_book()
        time.sleep(3)
        found = requests_of(three)
        assert found[0] >= 0.9 * sum(found) > 100, found
        assert found[2] == 0 and states(pool)[0] == "ejected"


def test_equal_servers_share(three: list[WebServer]) -> None:
    for server in three:
        server.be_slow(0.005)
    with HTTPPool(base_urls=urls(three)) as pool, Traffic(pool, threads=6) as traffic:
        time.sleep(3)
    found = requests_of(three)
    assert traffic.errors == [] and min(found) > 0.15 * sum(found) > 50, found


def test_a_recovered_server_gets_its_share_without_an_error(
    three: list[WebServer], caplog: pytest.LogCaptureFixture
) -> None:
    class Events(Observer):
        def __init__(self) -> None:
            self.seen: list[tuple[Any, ...]] = []

        def server_ejected(self, pool: str, server: str, reason: str, seconds: float) -> None:
            self.seen.append(("ejected", pool, server, reason, seconds))

        def server_returned(self, pool: str, server: str) -> None:
            self.seen.append(("returned", pool, server))

    events, bad = Events(), three[0]
    for server in three:
        server.be_slow(0.005)
    bad.answer_always(503)
    policy = Balancing(eject_for=2.0, eject_for_max=2.0, slow_start=3.0)
    with HTTPPool(base_urls=urls(three), balancing=policy, name="api", observers=[events]) as pool:
        with caplog.at_level(logging.WARNING, "pooling"), Traffic(pool) as traffic:
            wait_until(lambda: events.seen)
            bad.answer_always(0)
            wait_until(lambda: states(pool)[0] == "slow start")
            bad.new_book()
            time.sleep(0.5)
            first = bad.book()["requests"]
            wait_until(lambda: states(pool)[0] == "in service")
            bad.new_book()
            time.sleep(0.5)
            later = bad.book()["requests"]
        assert traffic.errors == []  # the retries went to the others
        assert first < later / 2
        assert events.seen == [("ejected", "api", bad.url, "status 503", 2.0), ("returned", "api", bad.url)]
        records = [vars(record) for record in caplog.records]
        assert [one["pooling_event"] for one in records] == ["server_ejected", "server_returned"]
        assert (records[0]["pooling_server"], records[0]["pooling_seconds"]) == (bad.url, 2.0)
        assert pool.metrics.snapshot() and [one.ejections for one in pool.metrics.hosts() if one.host == bad.url] == [1]


def test_requests_that_cannot_be_repeated_do_not_try_an_ejected_server(three: list[WebServer]) -> None:
    bad = three[0]
    bad.answer_always(500)
    with HTTPPool(base_urls=urls(three), balancing=Balancing(eject_for=2.0, slow_start=0.0)) as pool:
        with Traffic(pool):
            wait_until(lambda: states(pool)[0] == "ejected")
        bad.new_book()
        with Traffic(pool, method="POST") as posts:
            time.sleep(2.5)  # the ejection is over, but not yet for POST
        assert posts.errors == [] and bad.book()["requests"] == 0
        for _ in range(10):
            pool.get("/echo")
        assert bad.book()["requests"] == 1


def test_at_most_half_are_ejected(three: list[WebServer]) -> None:
    with WebServer() as fourth:
        four = [*three, fourth]
        for server in four:
            server.answer_always(500)
        with HTTPPool(base_urls=urls(four), balancing=FOR_EVER) as pool:
            for _ in range(100):
                assert pool.get("/echo").status_code == 500
            assert Counter(states(pool)) == {"ejected": 2, "in service": 2}


# -- retries ------------------------------------------------------------------------------


def test_a_retry_goes_to_another_server(three: list[WebServer], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(transport, "time", SimpleNamespace(sleep=pauses.append))
    three[0].answer_always(-1)
    three[1].answer_always(502)
    with HTTPPool(base_urls=urls(three), balancing=Balancing(eject_after=1000)) as pool:
        for _ in range(10):
            response = pool.get("/echo")
            assert (response.status_code, response.url) == (200, f"{three[2].url}/echo")
        assert pauses == []
        assert pool.stats()["backends"][three[0].url]["failures"] <= 10


def test_what_was_sent_is_not_repeated_unless_it_is_idempotent(three: list[WebServer]) -> None:
    for server in three:
        server.answer_always(-1)
    with HTTPPool(base_urls=urls(three)) as pool:
        with pytest.raises(requests.ConnectionError):
            pool.post("/echo", data="x")
        assert sum(requests_of(three)) == 1
        with pytest.raises(requests.ConnectionError):
            pool.put("/echo", data=iter([b"x"]))  # cannot be read again
        assert sum(requests_of(three)) == 2
        with pytest.raises(requests.ConnectionError):
            pool.put("/echo", data="x")
        assert sum(requests_of(three)) == 5


def test_retries_are_limited_to_a_fifth_of_the_requests(three: list[WebServer]) -> None:
    for server in three:
        server.answer_always(502)
    with HTTPPool(base_urls=urls(three), retry=5) as pool:
        for number in range(1, 301):
            assert pool.get("/echo").status_code == 502
            if number in (1, 10):
                assert sum(requests_of(three)) <= number + 10
        assert 300 < sum(requests_of(three)) <= 300 * 1.2


def test_no_retries(three: list[WebServer]) -> None:
    three[0].answer_always(-1)
    with HTTPPool(base_urls=urls(three[:1]), retry=0) as pool, pytest.raises(requests.ConnectionError):
        pool.get("/echo")
    none = Balancing(retry_budget=0.0)
    with HTTPPool(base_urls=urls(three[:1]), balancing=none) as pool, pytest.raises(requests.ConnectionError):
        pool.get("/echo")
    assert requests_of(three[:1]) == [2]


def test_retry_after_is_for_one_server(three: list[WebServer]) -> None:
    busy = three[0]
    busy.answer_always(503, after="60")
    with HTTPPool(base_urls=urls(three), balancing=Balancing(eject_for_max=60.0)) as pool:
        for _ in range(30):
            assert pool.get("/echo").status_code == 200
        assert busy.book()["requests"] == 1
        assert states(pool) == ["resting", "in service", "in service"]
        assert pool.stats()["backends"][busy.url]["failures"] == 0
        for server in three:
            server.answer_always(503, after="60")
        assert pool.get("/echo").status_code == 503  # nothing else is left
        policy = Retry(5, status_forcelist=[503], raise_on_status=True, backoff_max=10)
    with HTTPPool(base_urls=urls(three), retry=policy) as pool:
        assert pool.get("/echo").status_code == 503  # it asks for a longer pause than the policy allows


def test_a_dead_server_is_no_error_for_anybody() -> None:
    with WebServer() as one, WebServer() as other, HTTPPool(base_urls=urls([one, other]), balancing=QUICK) as pool:
        with Traffic(pool) as traffic, Traffic(pool, method="POST", pause=0.01) as posts:
            time.sleep(0.5)
            posts.errors.clear()
            one.kill()
            time.sleep(1.5)
            assert states(pool)[0] in ("ejected", "being tried")
            one.start()
            wait_until(lambda: states(pool)[0] == "in service")
            wait_until(lambda: one.book()["requests"] > 10)
        assert traffic.errors == []
        assert len(posts.errors) <= 4  # those in progress at the server that died


def test_a_server_that_hangs_is_ejected(three: list[WebServer]) -> None:
    with Proxy(three[0].port) as proxy:
        bases = [f"http://127.0.0.1:{proxy.port}", three[1].url]
        timeout = HTTPTimeout(connect=2.0, read=0.3)
        policy = Balancing(eject_for=600.0, eject_for_max=600.0, decay=0.2)  # it is slow, and soon tried again
        with HTTPPool(base_urls=bases, timeout=timeout, balancing=policy) as pool:
            wait_until(lambda: pool.get("/echo") and proxy.attempts)
            proxy.hold()
            with Traffic(pool) as traffic:
                wait_until(lambda: states(pool)[0] == "ejected")
            proxy.release()
            assert traffic.errors == []


# -- circuit breakers -----------------------------------------------------------------------

BREAKER = CircuitBreaker(failures=3, open_for=5.0)


def test_an_open_circuit_leaves_its_server_out(three: list[WebServer]) -> None:
    three[0].answer_always(502)
    policy = Balancing(eject_after=1000, slow_start=0.5)
    with HTTPPool(base_urls=urls(three[:2]), breaker=BREAKER, balancing=policy, retry=0) as pool:
        statuses = Counter(pool.get("/echo").status_code for _ in range(50))
        wait_until(lambda: pool.get("/echo") and pool.stats()["backends"][three[0].url]["circuit"] == "open")
        assert statuses[502] <= 3
        assert {pool.get("/echo").status_code for _ in range(50)} == {200}
        three[0].answer_always(0)
        wait_until(lambda: pool.get("/echo").ok and pool.stats()["backends"][three[0].url]["circuit"] == "closed")
        assert states(pool)[0] in ("slow start", "in service")


def test_all_circuits_open(three: list[WebServer]) -> None:
    for server in three:
        server.answer_always(502)
    policy = Balancing(eject_after=1000)
    with HTTPPool(base_urls=urls(three), breaker=BREAKER, balancing=policy, retry=0) as pool:
        with pytest.raises(CircuitOpen) as caught:
            for _ in range(20):
                pool.get("/echo")
        assert 0 < caught.value.retry_after <= 5.0
        before = sum(requests_of(three))
        assert before == 9
        with pytest.raises(CircuitOpen):
            pool.post("/echo")
        assert sum(requests_of(three)) == before


def test_an_interrupted_trial_is_made_by_the_next(three: list[WebServer], monkeypatch: pytest.MonkeyPatch) -> None:
    three[0].answer_always(500)
    with HTTPPool(base_urls=urls(three), balancing=Balancing(eject_for=0.3, slow_start=0.0)) as pool:
        wait_until(lambda: pool.get("/echo") and states(pool)[0] == "ejected")
        three[0].answer_always(0)
        time.sleep(1.0)
        with monkeypatch.context() as patched:
            patched.setattr(type(pool.connections), "take", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.get("/echo")
        assert states(pool)[0] == "ejected"
        assert pool.get("/echo").url == f"{three[0].url}/echo"
        assert states(pool)[0] == "in service"


def interrupted(*args: object) -> None:
    raise KeyboardInterrupt


# -- as with one server -----------------------------------------------------------------------


def until_from(server: WebServer, ask: Callable[[], requests.Response]) -> requests.Response:
    """Repeat a request until this server answers; one that seems slow is asked again after some seconds."""
    found: list[requests.Response] = []

    def answered() -> bool:
        found.append(ask())
        return found[-1].url.startswith(server.url)

    wait_until(answered)
    return found[-1]


def test_cookies_are_those_of_the_group(three: list[WebServer]) -> None:
    with HTTPPool(base_urls=urls(three)) as pool, pool.acquire() as session:
        session.get("/cookie?a=1")
        for server in three:
            until_from(server, lambda: session.get("/echo"))
        found = {session.get("/echo").json()["fields"].get("cookie") for _ in range(30)}
        assert found == {"a=1"}
        assert len({session.get("/echo").url for _ in range(50)}) > 1
    with HTTPPool(base_urls=urls(three), cookies="shared") as pool:
        pool.get("/cookie?b=2")
        assert {pool.get("/echo").json()["fields"].get("cookie") for _ in range(20)} == {"b=2"}


def test_host_and_path_are_those_of_the_server(three: list[WebServer]) -> None:
    bases = [three[0].url + "/echo/v1", three[1].url + "/echo", three[2].url + "/echo/a%20b"]
    with HTTPPool(base_urls=bases, auth=("ann", "secret")) as pool:
        for server, path in zip(three, ("/echo/v1", "/echo", "/echo/a%20b")):
            response = until_from(server, lambda: pool.get("/x?y=1", params={"z": 2}))
            told = response.json()
            assert told["target"] == f"{path}/x?y=1&z=2" and response.url == server.url + told["target"]
            assert told["fields"]["host"] == f"127.0.0.1:{server.port}" and "authorization" in told["fields"]


def test_untrusted_paths_stay_below_the_base(three: list[WebServer]) -> None:
    with HTTPPool(base_urls=[three[0].url + "/echo/v1"]) as pool:
        assert pool.get("/../../secret").json()["target"] == "/echo/v1/secret"


def test_relative_redirects_stay_in_the_group(three: list[WebServer]) -> None:
    with HTTPPool(base_urls=urls(three), auth=("ann", "secret")) as pool:
        ends = [pool.get("/redirect?to=/echo") for _ in range(50)]
        assert {response.status_code for response in ends} == {200}
        assert all("authorization" in response.json()["fields"] for response in ends)
        assert any(response.url.split("/")[2] != response.history[0].url.split("/")[2] for response in ends)
        for server in three:  # a redirect to one of the servers is one to the group
            response = pool.get(f"/redirect?to={server.url}/echo")
            assert "authorization" in response.json()["fields"]
        assert "authorization" in pool.get(f"/redirect?to=//{three[1].url[7:]}/echo").json()["fields"]


def test_redirects_to_other_hosts_leave_the_group(three: list[WebServer], web: WebServer) -> None:
    with HTTPPool(base_urls=urls(three), auth=("ann", "secret")) as pool:
        other = web.url.replace("127.0.0.1", "localhost")
        response = pool.get(f"/redirect?to={other}/echo")
        assert response.url == f"{other}/echo" and "authorization" not in response.json()["fields"]
        following = pool.get(f"/redirect?to={other}/echo", allow_redirects=False)
        assert following.status_code == 302 and following.next is not None and following.next.url == f"{other}/echo"
        assert set(pool.stats()["backends"]) == set(urls(three))


def test_urls_of_one_server_go_to_that_one(three: list[WebServer]) -> None:
    with HTTPPool(base_urls=urls(three)) as pool, pool.acquire() as session:
        for server in three:
            assert {pool.get(f"{server.url}/echo").url for _ in range(10)} == {f"{server.url}/echo"}
            assert session.get(f"{server.url}/echo").url == f"{server.url}/echo"
        assert requests_of(three) == [11, 11, 11]


def test_digest_authentication_is_answered_to_the_same_server(three: list[WebServer]) -> None:
    with HTTPPool(base_urls=urls(three)) as pool:
        for _ in range(20):
            response = pool.get("/digest", auth=HTTPDigestAuth("user", "word"))
            (challenge,) = response.history
            assert response.status_code == 200 and response.url == challenge.url


def test_hooks_streams_and_prepared_requests(three: list[WebServer]) -> None:
    seen: list[int] = []
    with HTTPPool(base_urls=urls(three)) as pool:
        pool.get("/echo", hooks={"response": lambda response, **_: seen.append(response.status_code)})
        with pool.request_context("GET", "/stream?n=3", stream=True) as response:
            assert sum(one["in_use"] for one in pool.stats()["backends"].values()) == 1
            assert b"".join(response.iter_content()) == b"x" * 30
        with pool.acquire() as session:
            prepared = session.prepare_request(requests.Request("GET", "/echo"))
            assert len({session.send(prepared.copy()).url for _ in range(50)}) > 1
        with pool.acquire() as session:
            kept = session.get("/stream?n=3", stream=True)
        with pytest.raises(LeaseError):
            kept.content  # noqa: B018
        assert sum(one["in_use"] for one in pool.stats()["backends"].values()) == 0
        session = pool.session()
        assert session.get("/echo").ok
    assert seen == [200]


def test_requests_are_not_changed(three: list[WebServer]) -> None:
    class Own(requests.Session):
        def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
            seen.append(request)
            return super().prepare_request(request)

    seen: list[requests.Request] = []
    for factory in (requests.Session, Own):
        with HTTPPool(base_urls=urls(three), session_factory=factory) as pool, pool.acquire() as session:
            for given in (requests.Request("GET", "/echo"), requests.Request("GET", "/echo", params={"a": "b c"})):
                prepared = session.prepare_request(given)
                assert given.url == "/echo"
                assert len({session.send(prepared.copy()).url for _ in range(50)}) > 1
    assert [one.url for one in seen] == [f"{three[0].url}/echo"] * 2 and seen[1].params == {"a": "b c"}


def test_paths_are_quoted_and_fragments_are_not_sent(three: list[WebServer]) -> None:
    bases = [three[0].url, three[1].url + "/echo", three[2].url]
    with HTTPPool(base_urls=bases) as pool:
        for server, base in zip(three, bases):
            response = until_from(server, lambda: pool.get("/echo/a b?c=d e#f g"))
            assert response.url == f"{base}/echo/a%20b?c=d%20e#f%20g"
            assert response.json()["target"] == f"{base[len(server.url) :]}/echo/a%20b?c=d%20e"


def test_the_choice_needs_no_lock(three: list[WebServer]) -> None:
    with HTTPPool(base_urls=urls(three)) as pool:
        group, chosen = pool.group, list[object]()
        assert group is not None

        def choose() -> None:
            chosen.append(group.choose(pool, True, (), False))

        first, second = (threading.Thread(target=choose, daemon=True) for _ in range(2))
        with group.lock:
            first.start()
            first.join(20)
            assert len(chosen) == 1
            group.rest(group.servers[0], 60.0)  # while a server is special, it does
            second.start()
            second.join(0.2)
            assert len(chosen) == 1
        second.join(20)
        assert len(chosen) == 2 and chosen[1] is not group.servers[0]


def test_session_of_ones_own_class(three: list[WebServer]) -> None:
    class Own(requests.Session):
        pass

    def make() -> requests.Session:
        return Own()

    for factory in (Own, make):
        with HTTPPool(base_urls=urls(three), session_factory=factory) as pool, pool.acquire() as session:
            assert isinstance(session, Own) and session.get("/echo").ok
            assert type(session.__reduce_ex__(2)[1][0]) is type(Own)


def test_health_and_warm_up(three: list[WebServer]) -> None:
    with HTTPPool(base_urls=urls(three), health_url="/status/200", max_per_host=50) as pool:
        assert pool.health_check(ask=True)["status"] == "healthy"
        pool.warm_up(each=2)
        assert [one["idle"] for one in pool.stats()["backends"].values()] == [2, 2, 2]
        pool.warm_up(["/x"], each=3)
        assert [one["idle"] for one in pool.stats()["backends"].values()] == [3, 3, 3]
        pool.fill(4)
        wait_until(lambda: pool.stats()["idle"] == 12)
        with pytest.raises(ValueError, match="cannot open 102 sockets: max_size is 100"):
            pool.warm_up(each=34)
        assert repr(pool).endswith("12 idle, 0 waiting>")
    dead = [f"http://127.0.0.1:{port}" for port in unused_ports(2)]
    with HTTPPool(base_urls=[*dead, three[0].url], health_url="/status/200") as pool:
        pool.warm_up()  # one of them works
        assert pool.stats()["idle"] == 1 and pool.health_check(ask=True)["status"] == "healthy"
    bases = [dead[0], three[0].url]
    with HTTPPool(base_urls=bases, health_url="/status/200", max_size=1, balancing=FOR_EVER) as pool:
        wait_until(lambda: pool.get("/echo") and pool.stats()["backends"][dead[0]]["failures"])
        with pool.request_context("GET", "/stream?n=3", stream=True):
            assert str(pool.probe()).startswith("exhausted")  # over a socket of its own, to the server that works
    with HTTPPool(base_urls=dead, health_url="/status/200") as pool:
        with pytest.raises(requests.ConnectionError):
            pool.warm_up()
        assert pool.health_check(ask=True)["status"] == "unhealthy"


def unused_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(1)) for _ in range(number)]
        return [proxy.port for proxy in proxies]


def test_a_proxy_is_asked_for_the_server(three: list[WebServer]) -> None:
    from tests.web import ForwardProxy

    with ForwardProxy() as proxy, HTTPPool(base_urls=urls(three[:2]), proxies={"http": proxy.url}) as pool:
        assert {pool.get("/echo").status_code for _ in range(20)} == {200}
        assert set(proxy.book()["paths"]) == {server.url[7:] for server in three[:2]}


def test_dropped_pool_is_freed_at_once(three: list[WebServer]) -> None:
    pool = HTTPPool(base_urls=urls(three))
    pool.get("/echo")
    pool.stats()
    refs = [weakref.ref(pool.connections), weakref.ref(pool.group)]
    gc.disable()
    try:
        del pool
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_forked_child(three: list[WebServer]) -> None:
    run_forking(textwrap.dedent(f"""
        import os, threading
        from pooling import HTTPPool
        pool = HTTPPool(base_urls={urls(three)!r})
        for _ in range(20):
            assert pool.get("/echo").ok
        locked, over = threading.Event(), threading.Event()

        def hold():
            with pool.group.lock:
                locked.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        locked.wait()
        child = os.fork()
        if not child:
            first = pool.get("/echo").json()
            assert first["served"] == 0, first
            assert len(pool.stats()["backends"]) == 3 and len(pool.stats()["hosts"]) == 1
            print("child ok", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        over.set()
        thread.join()
        assert pool.get("/echo").ok
        print("parent ok", flush=True)
    """))


# -- names ----------------------------------------------------------------------------------


def test_each_address_is_a_server(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[list[str] | OSError] = [["127.0.0.1", "127.0.0.2"]]

    def look_up(url: str) -> list[str]:
        assert url == f"http://service.test:{first.port}/echo"
        found = answers[-1]
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(group_module, "addresses_of", look_up)
    policy = Balancing(resolve=True, resolve_interval=0.2, slow_start=0.5)
    with (
        WebServer() as first,
        WebServer(port=first.port, bind="127.0.0.2") as second,
        WebServer(port=first.port, bind="127.0.0.3") as third,
    ):
        base = f"http://service.test:{first.port}/echo"
        with HTTPPool(base_urls=[base], balancing=policy, name="api") as pool:
            told = [pool.get("/x").json() for _ in range(60)]
            assert {one["fields"]["host"] for one in told} == {f"service.test:{first.port}"}
            wait_until(lambda: pool.get("/x").ok and min(requests_of([first, second])) > 5)  # whichever is faster
            assert requests_of([third]) == [0]
            names = [f"http://127.0.0.{number}:{first.port}/echo" for number in (1, 2, 3)]
            assert set(pool.stats()["backends"]) == set(names[:2])
            answers.append(["127.0.0.2", "127.0.0.3"])
            wait_until(lambda: pool.get("/x").ok and set(pool.stats()["backends"]) == set(names[1:]))
            first.kill()
            assert {pool.get("/x").status_code for _ in range(30)} == {200}
            wait_until(lambda: pool.get("/x").ok and third.book()["requests"] > 5)
            wait_until(lambda: pool.get("/x").ok and names[0][:-5] not in pool.stats()["hosts"])
            answers.append(OSError("no answer"))
            with caplog.at_level(logging.WARNING, "pooling"):
                wait_until(lambda: pool.get("/x").ok and caplog.records)
            assert vars(caplog.records[0])["pooling_event"] == "not_resolved"
            assert caplog.records[0].getMessage() == f"pool 'api': cannot resolve {base}: no answer"
            assert set(pool.stats()["backends"]) == set(names[1:])


def test_certificates_are_those_of_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import trustme

    authority, pem = trustme.CA(), tmp_path / "server.pem"
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("service.test").private_key_and_cert_chain_pem.write_to_path(str(pem))
    monkeypatch.setattr(group_module, "addresses_of", lambda url: ["127.0.0.1"])
    with WebServer(str(pem)) as server:
        for name, works in (("service.test", True), ("other.test", False)):
            base = f"https://{name}:{server.port}"
            policy = Balancing(resolve=True)
            with HTTPPool(base_urls=[base], balancing=policy, verify=str(tmp_path / "ca.pem"), retry=0) as pool:
                if works:
                    assert pool.get("/echo").json()["fields"]["host"] == f"{name}:{server.port}"
                    assert list(pool.stats()["backends"]) == [f"https://127.0.0.1:{server.port}"]
                else:
                    with pytest.raises(requests.exceptions.SSLError):
                        pool.get("/echo")


def test_addresses_of() -> None:
    assert group_module.addresses_of("http://127.0.0.1:80") == [] == group_module.addresses_of("http://[::1]")
    assert group_module.addresses_of("http://localhost") in (["127.0.0.1"], ["::1"])
    with pytest.raises(OSError):
        group_module.addresses_of("http://no-such-name.invalid")


def test_a_name_that_cannot_be_resolved_is_asked_for_by_name() -> None:
    policy = Balancing(resolve=True)
    with HTTPPool(base_urls=["http://no-such-name.invalid"], balancing=policy, retry=0) as pool:
        with pytest.raises(requests.ConnectionError, match="NameResolutionError"):
            pool.get("/")
        assert list(pool.stats()["backends"]) == ["http://no-such-name.invalid"]


# -- metrics ----------------------------------------------------------------------------------


def test_exporters_report_each_server(three: list[WebServer]) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from prometheus_client import CollectorRegistry, generate_latest

    from pooling.observe.opentelemetry import instrument, uninstrument
    from pooling.observe.prometheus import PoolCollector
    from pooling.observe.view import Viewer

    reader = InMemoryMetricReader()
    instrument(meter_provider=MeterProvider([reader]))
    three[0].answer_always(500)
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    bases = urls(three)
    with HTTPPool(base_urls=bases, zone="eu", zones=["eu", "eu", None], name="group", balancing=FOR_EVER) as pool:
        wait_until(lambda: pool.get("/echo") and states(pool)[0] == "ejected")
        page = generate_latest(registry).decode()
        labels = 'backend="{}",pool="group",zone="{}"'
        assert f"pooling_backend_ejected{{{labels.format(bases[0], 'eu')}}} 1.0" in page
        assert f"pooling_backend_ejected{{{labels.format(bases[1], 'eu')}}} 0.0" in page
        assert f"pooling_backend_in_use{{{labels.format(bases[2], '')}}} 0.0" in page
        assert f'pooling_http_ejections_total{{host="{bases[0]}",pool="group"}} 1.0' in page
        (shown,) = [one for one in Viewer.of_process().view()["pools"] if one["name"] == "group"]
        assert [(one["name"], one["zone"], one["ejected"]) for one in shown["servers"]] == sorted(
            [(bases[0], "eu", 1), (bases[1], "eu", 0), (bases[2], "", 0)]
        )
        data = reader.get_metrics_data()
        assert data is not None
        points = {
            (metric.name, point.attributes["pooling.backend"]): point.value
            for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
            if metric.name.startswith("pooling.backend.") for point in metric.data.data_points
        }  # fmt: skip
        assert points["pooling.backend.ejected", bases[0]] == 1 and points["pooling.backend.ejected", bases[1]] == 0
        assert points["pooling.backend.failing", bases[0]] > 0 == points["pooling.backend.failing", bases[1]]
    uninstrument()


# -- without it ------------------------------------------------------------------------------


def test_pools_with_one_server_do_nothing_more(web: WebServer) -> None:
    import sys

    calls: Counter[str] = Counter()
    totals: list[int] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("pooling.adapters.http"):
            calls[module] += 1

    with HTTPPool(base_url=web.url) as pool:
        for observer in pool.connections.observers:
            pool.remove_observer(observer)  # an exporter's, for all pools of this process
        for _ in range(10):
            calls.clear()
            sys.setprofile(note)
            try:
                pool.get("/echo")
            finally:
                sys.setprofile(None)
            assert not [module for module in calls if "balancing" in module]
            totals.append(calls.total())
        assert min(totals) <= OWN_CALLS, calls


OWN_CALLS = 108  # of a warm pool: as before there was balancing
