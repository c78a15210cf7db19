"""HTTPPool's wait queues, limits, deadlines and retries, dead sockets, and its metrics."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from urllib3.util import Retry

from pooling import HTTPPool, HTTPTimeout, Observer, PoolClosed, PoolSettings, PoolTimeout, TooManyWaiting
from pooling.observe.local import Local
from tests.conftest import Authority
from tests.integration.test_http import ONE, echo, in_thread, wait_until
from tests.web import WebServer

LONG = 20.0  # seconds: a limit of one second was kept, also on a slow machine


@pytest.fixture
def private() -> Iterator[WebServer]:
    """A server for one test, which may kill and restart it."""
    with WebServer() as server:
        yield server


# -- wait queues -------------------------------------------------------------------------------


def test_max_per_host_is_kept_and_waiters_are_served_in_order(private: WebServer) -> None:
    web = private
    served: list[int] = []
    with HTTPPool(PoolSettings(max_size=100, acquire_timeout=60), base_url=web.url, max_per_host=2) as http:

        def request(number: int) -> None:
            served.append(echo(http.get(f"/slow?s=0.02&n={number}"))["serial"])
            order.append(number)

        order: list[int] = []
        blockers = [http.get("/stream", stream=True) for _ in range(2)]
        threads = []
        for number in range(10):
            threads.append(in_thread(request, number))
            wait_until(lambda: http.stats()["waiting"] == len(threads))
        blockers[0].close()  # only one request at a time is served now
        for thread in threads:
            thread.join()
        blockers[1].close()
        assert order == list(range(10))
        assert served == sorted(served)
    assert web.book()["most"] <= 2


def test_stats_repr_and_messages_state_the_same_counts(private: WebServer) -> None:
    """Requests that wait for a host are counted in all of them."""
    settings = PoolSettings(max_size=10, acquire_timeout=60)
    with HTTPPool(settings, base_url=private.url, max_per_host=1, name="web") as http:
        assert http.get("/echo").ok
        assert repr(http) == "<HTTPPool 'web': 0/10 in use, 1 idle, 0 waiting>"
        blocker = http.get("/stream", stream=True)
        threads = [in_thread(http.get, "/echo") for _ in range(3)]
        wait_until(lambda: http.stats()["waiting"] == 3)
        assert repr(http) == "<HTTPPool 'web': 1/10 in use, 0 idle, 3 waiting>"
        http.resize(1)
        with pytest.raises(PoolTimeout) as caught:
            http.connections.slots.acquire(0)
        assert "(1/1 in use, 0 idle, 3 waiting)" in str(caught.value)
        blocker.close()
        for thread in threads:
            thread.join()
    assert repr(http) == "<HTTPPool 'web': 0/1 in use, 0 idle, 0 waiting, closed>"


def test_slow_host_does_not_block_the_others(web: WebServer, private: WebServer) -> None:
    """Of 20 requests to a host that never answers, 3 are in progress; a fourth slot remains for other hosts."""
    settings = PoolSettings(max_size=4, acquire_timeout=60)
    with HTTPPool(settings, max_per_host=3) as http:

        def crawl() -> None:
            with contextlib.suppress(requests.ConnectionError), http.acquire() as session:
                session.get(private.url + "/stall", timeout=60)

        threads = [in_thread(crawl) for _ in range(20)]
        wait_until(lambda: http.stats()["waiting"] == 17)
        for _ in range(20):
            with http.acquire() as session:
                assert session.get(web.url + "/echo").ok
        assert http.stats()["waiting"] == 17  # the slow requests still wait
        assert private.book()["most"] == 3
        http.close(timeout=0)
        for thread in threads:
            thread.join()


def test_max_size_and_max_idle_limit_all_hosts_together() -> None:
    two_in_all, one_idle = PoolSettings(min_size=0, max_size=2), PoolSettings(min_size=0, max_idle=1)
    with (
        WebServer() as one, WebServer() as two, WebServer() as three,
        HTTPPool(two_in_all) as http, HTTPPool(one_idle) as few,
    ):  # fmt: skip
        for server in (one, two, three, one):
            assert http.get(server.url + "/echo").ok
            assert http.stats()["size"] <= 2
        assert http.metrics.snapshot().closed == {"room": 2}  # those that were idle longest
        assert [server.book()["accepted"] for server in (one, two, three)] == [2, 1, 1]
        for server in (one, two, three):
            assert few.get(server.url + "/echo").ok
            assert few.stats()["idle"] == 1
        assert few.metrics.snapshot().closed == {"max_idle": 2}


def test_max_waiting(web: WebServer) -> None:
    with HTTPPool(ONE.replace(max_waiting=0), base_url=web.url) as http:
        with http.request_context("GET", "/stream", stream=True):
            with pytest.raises(TooManyWaiting) as caught:
                http.get("/echo")
            assert isinstance(caught.value, requests.ConnectionError)
        assert http.get("/echo").ok


def test_failed_connect_releases_its_slot(web: WebServer) -> None:
    with HTTPPool(ONE) as http:
        for _ in range(3):
            with pytest.raises(requests.ConnectionError):
                http.get("http://127.0.0.1:1/")
        assert http.get(web.url + "/echo").ok
        assert http.stats()["size"] == 1


# -- ages ----------------------------------------------------------------------------------


def test_idle_timeout(web: WebServer) -> None:
    before = web.book()["open"]
    with HTTPPool(PoolSettings(min_size=0, idle_timeout=0.2), base_url=web.url) as http:
        http.warm_up(each=3)
        wait_until(lambda: http.metrics.snapshot().closed == {"idle_timeout": 3})
        wait_until(lambda: web.book()["open"] <= before)
        assert http.get("/echo").ok


def test_max_lifetime(web: WebServer) -> None:
    with HTTPPool(PoolSettings(min_size=0, max_lifetime=0.3), base_url=web.url) as http:
        first = echo(http.get("/echo"))["connection"]
        deadline = time.monotonic() + 30
        while echo(http.get("/echo"))["connection"] == first:  # it is never idle for long
            assert time.monotonic() < deadline
        assert http.metrics.snapshot().closed["lifetime"] == 1


def test_dns_changes_are_followed_within_max_lifetime(
    web: WebServer, private: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = web
    look_up = socket.getaddrinfo

    def changing(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        address = ("127.0.0.1", now.port) if host == "service.test" else (host, port)
        return look_up(*address, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    with HTTPPool(PoolSettings(min_size=0, max_lifetime=0.3), base_url="http://service.test") as http:
        assert http.get("/echo").ok
        assert (web.book()["requests"], private.book()["requests"]) == (1, 0)
        now = private

        def followed() -> bool:
            assert http.get("/echo").ok  # the old socket is still replaced, although it stays in use
            return bool(private.book()["requests"])

        wait_until(followed)
        asked = web.book()["requests"]
        for _ in range(10):
            assert http.get("/echo").ok
        assert web.book()["requests"] == asked
        assert http.metrics.snapshot().closed["lifetime"] >= 1


# -- deadlines -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/drip", "/drip-head", "/stall", "/stall-body", "/loop", "/status/503?after=1"])
@pytest.mark.parametrize("secure", [False, True])
def test_total_timeout_covers_the_whole_request(
    web: WebServer, secure_web: WebServer, authority: Authority, path: str, secure: bool
) -> None:
    server = secure_web if secure else web
    with HTTPPool(ONE, base_url=server.url, verify=authority.file, retry=100) as http:
        began = time.monotonic()
        with http.acquire() as session:
            session.max_redirects = 10**9
            try:
                response = session.get(server.url + path, timeout=HTTPTimeout(total=1.0))
            except requests.exceptions.Timeout as error:
                assert "longer than its total of 1 s" in str(error)  # noqa: PT017
                assert isinstance(error, requests.ConnectionError)  # noqa: PT017
            else:
                assert response.status_code == 503  # no time left for another attempt
        assert time.monotonic() - began < LONG
        assert http.stats()["in_use"] == 0
        assert http.get("/echo").ok


def test_total_timeout_covers_redirects_with_any_session_factory(web: WebServer) -> None:
    class Mine(requests.Session):
        pass

    for factory in (Mine, lambda: Mine(), lambda: requests.Session()):
        with HTTPPool(base_url=web.url, session_factory=factory) as http, http.acquire() as session:
            assert isinstance(session, requests.Session)
            session.max_redirects = 10**9
            with pytest.raises(requests.exceptions.Timeout, match=r"longer than its total of 0\.5 s"):
                session.get(web.url + "/loop", timeout=HTTPTimeout(total=0.5))
    wrong: Any = object
    with HTTPPool(session_factory=wrong) as http, pytest.raises(TypeError, match="must make a requests.Session"):
        http.acquire()


def test_total_timeout_covers_streams_and_waits(web: WebServer) -> None:
    with HTTPPool(ONE, base_url=web.url, timeout=HTTPTimeout(total=1.0)) as http:
        began = time.monotonic()
        with http.request_context("GET", "/drip", stream=True) as response:
            with pytest.raises(requests.ConnectionError):
                for _ in response.iter_content(1):
                    pass
            with pytest.raises(requests.exceptions.Timeout):
                http.get("/drip")
        with http.request_context("GET", "/stall-body", stream=True, timeout=60), pytest.raises(PoolTimeout):
            http.get("/echo")
        with pytest.raises(requests.exceptions.Timeout):
            http.adapter.send(requests.Request("GET", web.url + "/stall").prepare())
        assert time.monotonic() - began < 4 * LONG


def test_total_timeout_covers_a_connect_without_an_answer(web: WebServer) -> None:
    """The backlog of the server is full, so the system drops further connection attempts."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        with HTTPPool(ONE) as http:
            began = time.monotonic()
            with pytest.raises(requests.exceptions.ConnectTimeout):
                http.get(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout=(0.5, 30))
            with pytest.raises(requests.exceptions.Timeout):
                http.get(f"http://localhost:{full.getsockname()[1]}/", timeout=HTTPTimeout(total=0.5))
            assert time.monotonic() - began < LONG
        for other in others:
            other.close()


@pytest.mark.parametrize("limit", [HTTPTimeout(connect=50, write=0.5), HTTPTimeout(connect=50, total=0.5)])
@pytest.mark.parametrize("secure", [False, True])
def test_write_timeout(
    web: WebServer, secure_web: WebServer, authority: Authority, limit: HTTPTimeout, secure: bool
) -> None:
    server = secure_web if secure else web
    with HTTPPool(ONE, base_url=server.url, verify=authority.file) as http:
        began = time.monotonic()
        with pytest.raises(requests.exceptions.Timeout):
            http.post("/unread", data=b"u" * 50_000_000, timeout=limit)
        assert time.monotonic() - began < LONG


# -- dead sockets ------------------------------------------------------------------------------


def test_socket_closed_by_the_server_causes_no_error(private: WebServer) -> None:
    with HTTPPool(base_url=private.url) as http:
        http.warm_up(each=5)
        wait_until(lambda: private.book()["open"] == 5)
        private.hang_up()
        time.sleep(0.05)  # requests may detect closed sockets before or while they use them
        for _ in range(5):
            assert http.get("/echo").ok
        http.check()
        assert http.stats()["idle"] == 1
        assert http.metrics.snapshot().closed["dead"] >= 1


def test_idempotent_requests_are_sent_again_after_a_kept_connection_died(web: WebServer) -> None:
    with HTTPPool(ONE, base_url=web.url) as http:
        for method in ("GET", "PUT", "DELETE", "OPTIONS"):
            http.get("/echo")
            assert echo(http.request(method, "/die-when-kept"))["method"] == method
        assert http.metrics.hosts()[0].resent == 4
        http.get("/echo")
        with pytest.raises(requests.ConnectionError):  # it may have taken effect, so it is not repeated
            http.post("/die-when-kept", data=b"order")
        http.get("/echo")
        with pytest.raises(requests.ConnectionError):  # a byte of the response has arrived
            http.get("/half-head-when-kept")
        with pytest.raises(requests.ConnectionError):  # a failure on a new connection is not repeated
            HTTPPool(base_url=web.url).get("/reset")
        assert http.metrics.hosts()[0].resent == 4
        assert http.stats()["in_use"] == 0
    assert web.book()["paths"]["/die-when-kept"] == 9


def test_body_that_cannot_be_read_twice_is_sent_once(web: WebServer) -> None:
    with HTTPPool(ONE, base_url=web.url) as http:
        http.get("/echo")
        with pytest.raises(requests.ConnectionError):
            http.put("/die-when-kept", data=iter([b"once"]))
    assert web.book()["paths"]["/die-when-kept"] == 1


def test_post_is_sent_again_if_no_byte_of_it_was_sent(private: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is dead, but passes the check; the first write fails."""
    with HTTPPool(ONE, base_url=private.url) as http:
        first = echo(http.get("/echo"))["connection"]
        (host,) = http.connections.hosts.all()
        wire = host.pool.engine.state.idle[0].entry.resource
        monkeypatch.setattr(type(wire), "is_alive", lambda self: True)
        wire.sock.shutdown(socket.SHUT_WR)  # the first write fails with EPIPE
        assert echo(http.post("/echo", data=b"order"))["connection"] != first
        assert http.metrics.hosts()[0].resent == 1
    assert private.book()["requests"] == 2


def test_server_that_closes_connections_without_notice(authority: Authority) -> None:
    with WebServer(authority.server, per_connection=3) as server:
        with HTTPPool(base_url=server.url, verify=authority.file) as http:

            def work() -> None:
                for _ in range(30):
                    try:
                        http.get("/echo").raise_for_status()
                    except BaseException as error:
                        failed.append(error)

            failed: list[BaseException] = []
            for thread in [in_thread(work) for _ in range(5)]:
                thread.join()
            assert not failed
        assert server.book()["requests"] == 150


def test_connection_close_header(web: WebServer) -> None:
    with HTTPPool(ONE, base_url=web.url) as http:
        numbers = {echo(http.get("/goodbye"))["connection"] for _ in range(5)}
        assert len(numbers) == 5
        assert http.stats()["idle"] == 0
        assert http.metrics.snapshot().closed == {"server_closed": 5}


def test_restart_during_load_causes_no_error_with_retries(private: WebServer) -> None:
    """The server is killed while all threads send idempotent requests."""
    again = Retry(1000, backoff_factor=0.01, backoff_max=0.1)
    with HTTPPool(PoolSettings(max_size=8, acquire_timeout=60), base_url=private.url, retry=again) as http:
        failed: list[BaseException] = []
        answers: list[bool] = []
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                try:
                    answers.append(echo(http.get("/slow?s=0.01"))["method"] == "GET")
                except BaseException as error:
                    failed.append(error)

        threads = [in_thread(work) for _ in range(8)]
        try:
            for _ in range(5):
                before = len(answers)
                wait_until(lambda: len(answers) > before + 50)  # noqa: B023
                private.kill()
                private.start()
            before = len(answers)
            wait_until(lambda: len(answers) > before + 50)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not failed and all(answers)
        (host,) = http.metrics.hosts()
        assert host.resent and host.failures.keys() <= {"connect", "connection"}
        assert http.stats()["in_use"] == 0


def test_restart_while_sockets_are_idle_causes_no_error(private: WebServer) -> None:
    """The server is restarted five times between rounds of requests; there are no retries."""
    with HTTPPool(PoolSettings(max_size=8), base_url=private.url) as http:
        failed: list[BaseException] = []

        def work() -> None:
            for _ in range(10):
                try:
                    http.get("/echo").raise_for_status()
                except BaseException as error:
                    failed.append(error)

        for _ in range(5):
            for thread in [in_thread(work) for _ in range(8)]:
                thread.join()
            private.kill()
            private.start()
        assert not failed


def test_requests_succeed_after_an_outage(private: WebServer) -> None:
    with HTTPPool(base_url=private.url) as http:
        assert http.get("/echo").ok
        private.kill()
        for _ in range(3):
            with pytest.raises(requests.ConnectionError):
                http.get("/echo")
        private.start()
        assert http.get("/echo").ok


# -- retries --------------------------------------------------------------------------------------


def test_retries_by_status(web: WebServer) -> None:
    with HTTPPool(ONE, base_url=web.url, retry=3) as http:
        assert echo(http.get("/status/503?times=2&key=a"))["served"] == 2  # on the same socket
        assert http.metrics.hosts()[0].retries == 2
        assert http.get("/status/503?key=b").status_code == 503  # the response is returned, no error raised
        assert http.post("/status/503?times=1&key=c").status_code == 503  # POST is not idempotent
        assert http.get("/status/500?times=1&key=d").status_code == 500
        assert http.metrics.hosts()[0].retries == 5
    with HTTPPool(base_url=web.url, retry=Retry(2, status_forcelist=[500], allowed_methods=["POST"])) as http:
        assert http.post("/status/500?times=2&key=e").ok
        with pytest.raises(requests.exceptions.RetryError):
            http.post("/status/500?key=f")
    with HTTPPool(base_url=web.url) as http:
        assert http.get("/status/503?times=1&key=g").status_code == 503  # no retry, as in requests


def test_retry_after_is_respected(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, retry=1) as http:
        began = time.monotonic()
        assert http.get("/status/429?times=1&key=a&after=1").ok
        assert time.monotonic() - began >= 1
        began = time.monotonic()
        response = http.get("/status/429?times=1&key=b&after=600", timeout=HTTPTimeout(total=30))
        assert response.status_code == 429  # returned at once, because the deadline would pass
        assert http.get("/status/429?times=1&key=c&after=600").status_code == 429  # longer than the maximum backoff
        assert time.monotonic() - began < LONG
    longest = Retry(1, status_forcelist=[429], backoff_max=0.5)
    with HTTPPool(base_url=web.url, retry=longest) as http:
        assert http.get("/status/429?times=1&key=d&after=1").status_code == 429


def test_no_slot_is_held_between_retries(web: WebServer) -> None:
    with HTTPPool(ONE, base_url=web.url, retry=1) as http:
        thread = in_thread(http.get, "/status/429?times=1&key=p&after=2")
        wait_until(lambda: http.metrics.hosts() and http.metrics.hosts()[0].retries)
        assert http.stats()["in_use"] == 0
        assert http.get("/echo", timeout=HTTPTimeout(pool=0)).ok
        thread.join()


def test_failed_connects_are_retried(private: WebServer) -> None:
    private.kill()
    with HTTPPool(base_url=private.url, retry=Retry(50, backoff_factor=0.1, backoff_max=0.2)) as http:
        answers: list[requests.Response] = []
        thread = in_thread(lambda: answers.append(http.get("/echo")))
        wait_until(lambda: http.metrics.hosts() and http.metrics.hosts()[0].retries)
        private.start()
        thread.join(30)
        assert answers[0].ok
        assert http.metrics.hosts()[0].failures["connect"] >= 1


# -- metrics, observers and health ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_stats_of_each_host(web: WebServer, secure_web: WebServer, authority: Authority) -> None:
    with HTTPPool(verify=authority.file, name="market data") as http:
        http.get(web.url + "/echo")
        http.get(secure_web.url + "/echo")
        stream = http.get(secure_web.url + "/stream", verify=False, stream=True)
        assert http.stats()["hosts"] == {
            web.url: {"idle": 1, "in_use": 0, "waiting": 0}, secure_web.url: {"idle": 1, "in_use": 1, "waiting": 0},
        }  # fmt: skip
        assert (http.stats()["size"], http.stats()["idle"]) == (3, 2)
        stream.close()


def test_metrics_of_a_host(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, name="api") as http:
        for _ in range(3):
            http.get("/bytes?n=1000")
        http.get("/nothing")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):  # the name in requests
            http.get("/half")
        with pytest.raises(requests.ConnectionError):
            http.get("/reset")
        with pytest.raises(requests.exceptions.ReadTimeout):
            http.get("/stall", timeout=(5, 0.1))
        (host,) = http.metrics.hosts()
        assert host.host == web.url
        assert host.requests == 8  # /half counts as an answer and as a failure
        assert host.statuses == {200: 4, 404: 1}
        assert host.failures == {"body": 1, "connection": 1, "read_timeout": 1}
        assert (host.opened, host.reused) == (3, 4)
        assert host.bytes_received > 3000 and host.bytes_sent > 500
        assert host.latency.count == 5 and host.latency.p99 > 0
        assert host.connect.count == 3
        whole = json.loads(http.metrics.to_json())
        assert whole["hosts"][0]["statuses"] == {"200": 4, "404": 1}
        assert whole["created"] == 3 and whole["connection_errors"] == 3
        now = http.metrics.snapshot()
        assert now.idle + now.in_use + now.creating + now.checking + now.closing == now.size
        http.metrics.reset()
        assert http.metrics.hosts()[0].requests == 0
        assert http.metrics.snapshot().acquired == 0


@pytest.mark.parametrize("wait_for", ["host", "slot"])
def test_the_wait_for_a_host_and_for_a_slot_is_measured(web: WebServer, wait_for: str) -> None:
    events: list[float] = []

    class Recorder(Observer):
        def acquired(self, pool: str, waited: float) -> None:
            events.append(waited)

    size, per_host = (10, 1) if wait_for == "host" else (1, 10)
    settings = PoolSettings(max_size=size, acquire_timeout=60)
    with HTTPPool(settings, base_url=web.url, max_per_host=per_host, observers=[Recorder()]) as http:
        with http.request_context("GET", "/stream", stream=True):
            thread = in_thread(http.get, "/echo")
            wait_until(lambda: http.stats()["waiting"])
            time.sleep(0.2)
            gauges = Local().read().pools[http.name]["gauges"]
            assert (gauges["pending"], gauges["exhausted"]) == (1, 1) and gauges["oldest_wait"] >= 0.15
            with pytest.raises(PoolTimeout):
                http.get("/echo", timeout=HTTPTimeout(pool=0))
        thread.join()
        now = http.metrics.snapshot()
        assert (now.wait.count, now.timeouts, now.requests) == (2, 1, 3)
        # The slot is released after the connection, so the thread may have to wait for it, too.
        assert now.exhausted == 1 or (now.exhausted == 2 and wait_for == "slot")
        assert now.wait.max >= 0.2 and now.wait.mean >= 0.1
        assert http.metrics.to_dict()["avg_acquisition_time_ms"] >= 100
        assert len(events) == 2 and events[0] < events[1] == now.wait.max
        http.metrics.reset()
        now = http.metrics.snapshot()
        assert (now.wait.count, now.exhausted, now.timeouts) == (0, 0, 0)


def test_latencies_of_a_host(web: WebServer, private: WebServer) -> None:
    """Percentiles are exact to the width of a bucket, a factor of √2."""
    with HTTPPool(PoolSettings(min_size=0, max_size=40)) as http:
        urls = [web.url + "/slow?s=2"] * 6 + [web.url + "/slow?s=0.1"] * 14 + [private.url + "/echo"] * 20
        for thread in [in_thread(http.get, url) for url in urls]:
            thread.join()
        mixed, quick = (
            next(one.latency for one in http.metrics.hosts() if one.host == server.url) for server in (web, private)
        )
        assert (mixed.count, quick.count) == (20, 20)
        assert 0.1 / 1.42 <= mixed.p50 < 2 / 1.42 <= mixed.p95 <= mixed.p99 <= mixed.max < LONG
        assert mixed.mean >= (14 * 0.1 + 6 * 2) / 20 and mixed.max >= 2
        assert 0 < quick.p50 <= quick.p95 < 2 / 1.42


def test_lifetimes_of_the_connections_of_a_host(web: WebServer) -> None:
    """Each socket is counted once, when it is closed: by the pool, by the server, or because it proved dead."""
    with HTTPPool(ONE, base_url=web.url) as http:

        def lifetimes() -> int:
            (host,) = http.metrics.hosts()
            return host.lifetime.count

        http.get("/echo")
        http.get("/slow?s=0.1")
        assert lifetimes() == 0
        http.get("/die-when-kept")  # it is sent again on a new connection
        assert lifetimes() == 1
        with http.request_context("GET", "/goodbye", stream=True) as response:
            assert lifetimes() == 1  # the socket is open until the answer is read
            response.content  # noqa: B018
        assert lifetimes() == 2
        with http.request_context("GET", "/stream", stream=True):
            pass
        assert lifetimes() == 3
        with pytest.raises(requests.ConnectionError):
            http.get("/reset")
        http.get("/echo")
        (host,) = http.metrics.hosts()
        assert (host.opened, host.lifetime.count) == (5, 4)
        assert 0.1 <= host.lifetime.max < LONG and json.loads(http.metrics.to_json())["hosts"][0]["lifetime"]
        with pytest.raises(requests.ConnectionError):
            http.get("http://127.0.0.1:9/")
    assert [host.lifetime.count for host in http.metrics.hosts() if host.host == web.url] == [5]
    assert sum(host.lifetime.count for host in http.metrics.hosts()) == 5  # what never connected has no lifetime


def test_number_of_hosts_with_own_metrics_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    from pooling.adapters.http import hosts

    monkeypatch.setattr(hosts, "MOST_LABELS", 5)
    monkeypatch.setattr(hosts, "MOST_HOSTS", 10)
    with HTTPPool() as http:
        for number in range(50):
            with pytest.raises(requests.ConnectionError):
                http.get("http://127.0.0.1:1/", proxies={"http": f"http://127.0.0.1:{1 + number % 2}"})
            with pytest.raises(requests.ConnectionError):
                http.get(f"http://127.0.1.{number}:1/")
        assert len(http.metrics.hosts()) == 6
        assert http.metrics.hosts()[0].host in ("others", "http://127.0.0.1:1")
        assert sum(host.requests for host in http.metrics.hosts()) == 100
        assert http.metrics.snapshot().closed == {}  # no socket was opened
        assert http.metrics.snapshot().errors == {"connect": 50, "proxy": 50}
        assert len(http.stats()["hosts"]) <= 10


def test_observers_are_notified_of_requests_and_sockets(web: WebServer) -> None:
    events: list[tuple[str, ...]] = []

    class Recorder(Observer):
        def created(self, pool: str, seconds: float) -> None:
            events.append(("created", pool))

        def closed(self, pool: str, reason: str) -> None:
            events.append(("closed", pool, reason))

        def released(self, pool: str, held: float) -> None:
            events.append(("released", pool))

    http = HTTPPool(base_url=web.url, name="api", observers=[Recorder()])
    with http:
        http.get("/echo")
        http.get("/goodbye")
        http.get("/echo")
    assert events == [
        ("created", "api"), ("released", "api"),
        ("closed", "api", "server_closed"), ("released", "api"),
        ("created", "api"), ("released", "api"), ("closed", "api", "closed"),
    ]  # fmt: skip
    with pytest.raises(TypeError, match="observers must be"):
        http.add_observer(object())  # type: ignore[arg-type]


def test_warm_up_opens_sockets_to_each_host(web: WebServer, secure_web: WebServer, authority: Authority) -> None:
    with HTTPPool(verify=authority.file) as http:
        http.warm_up([web.url, secure_web.url + "/whatever"], each=3)
        assert http.stats()["idle"] == 6
        assert echo(http.get(secure_web.url + "/echo"))["served"] == 0
        wait_until(lambda: web.book()["accepted"] == 3)
        assert secure_web.book()["accepted"] == 3  # unread TLS tickets do not make a socket unusable
        assert web.book()["requests"] == 0
        with pytest.raises(requests.ConnectionError):
            http.warm_up([web.url, "http://127.0.0.1:1"])
        with pytest.raises(ValueError, match="base_url"):
            http.warm_up()
        with pytest.raises(TypeError, match="several URLs, not one string"):
            http.warm_up(web.url)
    with HTTPPool(base_url=web.url) as http:
        http.fill(2)
        wait_until(lambda: http.stats()["idle"] == 2)


def test_warm_up_beyond_the_limits_raises_at_once(web: WebServer) -> None:
    with HTTPPool(PoolSettings(min_size=4, max_size=4), base_url=web.url, max_per_host=3) as http:
        for urls, each in ((None, 4), (["/a", web.url + "/b"], 2)):
            with pytest.raises(ValueError, match="cannot open 4 sockets: max_per_host is 3"):
                http.warm_up(urls, each=each)
        with pytest.raises(ValueError, match="cannot open 5 sockets: max_size is 4"):
            http.warm_up(["http://a.invalid", "http://b.invalid", "http://c.invalid", "/", "http://d.invalid"])
        with pytest.raises(ValueError, match="cannot open 4 sockets: max_per_host is 3"):
            http.fill(4)
        assert web.book()["accepted"] == 0
        http.fill()
        wait_until(lambda: http.stats()["idle"] == 3)
        http.warm_up([])


def test_pooling_switched_off(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, pooled=False) as http:
        assert len({echo(http.get("/echo"))["connection"] for _ in range(3)}) == 3
        with http.acquire() as session:
            assert echo(session.get(web.url + "/echo"))["method"] == "GET"
        assert http.session().get(web.url + "/stream", stream=True).content == b"x" * 30
        with pytest.raises(requests.exceptions.ReadTimeout):
            http.get("/stall", timeout=HTTPTimeout(read=0.1))
        assert http.stats()["size"] == 0
        assert http.get("/slow?s=0.2").ok
        with pytest.raises(requests.ConnectionError):
            http.get("/reset")
        with pytest.raises(requests.ConnectionError):
            http.get("http://127.0.0.1:1/")
        first, other = http.metrics.hosts()
        assert (first.host, first.statuses, first.failures) == (web.url, {200: 6}, {"read_timeout": 1, "connection": 1})
        assert first.latency.count == 6 and first.latency.max >= 0.2
        assert other.failures == {"connect": 1}
        session, leased = http.session(), http.acquire().resource
    for closed in (http, session, leased):
        with pytest.raises(PoolClosed, match="is closed") as caught:
            closed.get(web.url + "/echo")
        assert isinstance(caught.value, requests.ConnectionError)


@pytest.mark.parametrize("pooled", [True, False])
def test_hosts_are_not_counted_without_metrics(web: WebServer, pooled: bool) -> None:
    with HTTPPool(PoolSettings(enable_metrics=False), base_url=web.url, pooled=pooled) as http:
        http.get("/echo")
        with pytest.raises(requests.ConnectionError):
            http.get("/reset")
        (host,) = http.metrics.hosts()
        assert (host.requests, host.bytes_received, host.reused, host.latency.count, host.connect.count) == (0,) * 5
        assert http.metrics.snapshot().created == 2 * pooled  # every pool counts these
        http.reconfigure(enable_metrics=True)
        http.get("/echo")
        assert http.metrics.hosts()[0].statuses == {200: 1}


def test_health_is_probed_and_failures_replace_all_sockets(
    private: WebServer, web: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []

    class Recorder(Observer):
        def health_checked(self, pool: str, error: BaseException | None) -> None:
            events.append(f"{pool} {type(error).__name__}")

        def drained(self, pool: str) -> None:
            events.append(f"{pool} drained")

    settings = PoolSettings(health_check_interval=0.05, max_validation_failures=3)
    with HTTPPool(settings, base_url=private.url, health_url="/echo", name="api", observers=[Recorder()]) as http:
        first = echo(http.get(web.url + "/echo"))["connection"]
        wait_until(lambda: http.health_check()["status"] == "healthy")
        private.kill()
        wait_until(lambda: http.health_check()["generations"])
        health = http.health_check()
        assert (health["status"], health["url"]) == ("unhealthy", private.url + "/echo")
        assert health["failures"] >= 3 and "refused" in health["last_error"]
        assert http.metrics.snapshot().health_failures >= 3
        assert echo(http.get(web.url + "/echo"))["connection"] != first
        private.start()
        wait_until(lambda: http.health_check()["status"] == "healthy")
        assert http.health_check(ask=True)["failures"] == 0
    assert http.health_check()["status"] == "closed"
    failure = "api ConnectionError"
    assert "api NoneType" in events and events[events.index("api drained") - 3 :][:3] == [failure] * 3
    assert [r.getMessage() for r in caplog.records if "is unhealthy: " in r.getMessage()]


def test_the_next_probe_can_be_made_due_at_once(web: WebServer) -> None:
    with HTTPPool(RARELY, base_url=web.url, health_url="/echo") as http:
        wait_until(lambda: http.health_check()["status"] == "healthy")
        before = web.book()["requests"]
        http.check_health_now()
        wait_until(lambda: web.book()["requests"] > before)
    HTTPPool().check_health_now()  # no effect without a health_url


def test_server_error_is_unhealthy(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, health_url="/status/500") as http:
        assert http.health_check(ask=True)["status"] == "unhealthy"
    with HTTPPool(base_url=web.url) as http:
        assert http.health_check()["status"] == "unknown"


RARELY = PoolSettings(min_size=0, health_check_interval=3600)


def test_health_is_probed_at_open_or_first_use(web: WebServer) -> None:
    http = HTTPPool(RARELY, base_url=web.url, health_url="/echo/")
    assert http.health_check()["status"] == "unknown"
    with http:
        wait_until(lambda: http.health_check()["status"] == "healthy")
    other = HTTPPool(RARELY, base_url=web.url, health_url="/echo/")
    other.get("/bytes")
    wait_until(lambda: other.health_check()["status"] == "healthy")
    other.close()
    assert web.book()["paths"] == {"/echo/": 2, "/bytes": 1}  # the URL is requested as it was given


def test_probe_without_a_free_connection_has_no_result(web: WebServer) -> None:
    """It waits behind no request, is no failure, and replaces no sockets under peak load."""
    settings = ONE.replace(health_check_interval=None, max_waiting=0, max_validation_failures=1)
    with HTTPPool(settings, base_url=web.url, health_url="/echo") as http:
        assert http.health_check(ask=True)["status"] == "healthy"
        with http.request_context("GET", "/stream", stream=True):
            http.reconfigure(health_check_interval=0.02)
            health = http.health_check(ask=True)
            text = http.probe()
            snapshot = http.metrics.snapshot()
        assert (text, snapshot.timeouts, snapshot.refusals) == ("exhausted: 1 of 1 in use, 0 waiting", 0, 0)
        assert (health["status"], health["failures"], health["generations"]) == ("healthy", 0, 0)
        assert http.metrics.snapshot().health_failures == 0


def test_missing_health_url_is_unhealthy_but_replaces_no_socket(web: WebServer) -> None:
    settings = PoolSettings(health_check_interval=0.02, max_validation_failures=2)
    with HTTPPool(settings, base_url=web.url, health_url="/no-such-thing") as http:
        wait_until(lambda: http.health_check()["failures"] >= 6)
        health = http.health_check()
        assert (health["status"], health["generations"]) == ("unhealthy", 0)
        assert health["last_error"] == "HTTPError: 404 Whatever"


def test_health_settings_of_a_running_pool(private: WebServer) -> None:
    with HTTPPool(RARELY, base_url=private.url, health_url="/echo") as http:
        wait_until(lambda: http.health_check()["status"] == "healthy")
        http.reconfigure(health_check_interval=0.02, max_validation_failures=1)
        asked = private.book()["requests"]
        wait_until(lambda: private.book()["requests"] > asked + 2)
        private.kill()
        wait_until(lambda: http.health_check()["generations"])
