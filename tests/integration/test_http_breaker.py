"""The circuit breaker of an HTTP pool, against a real server that fails, dies and comes back."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections import Counter
from typing import Any

import pytest
import requests

from pooling import CircuitBreaker, CircuitOpen, HTTPPool, Observer
from pooling.observe.view import Viewer
from tests.integration.tools import wait_until
from tests.web import WebServer

QUICK = CircuitBreaker(failures=3, open_for=0.5)


class Events(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def circuit_opened(self, pool: str, host: str | None, reason: str) -> None:
        self.seen.append(("opened", pool, host, reason))

    def circuit_closed(self, pool: str, host: str | None) -> None:
        self.seen.append(("closed", pool, host))


def circuit(pool: HTTPPool, server: WebServer) -> Any:
    return pool.stats()["hosts"][server.url]["circuit"]


def fail(pool: HTTPPool, path: str = "/status/502", times: int = 3) -> None:
    for _ in range(times):
        pool.get(path)


def test_failing_server_is_left_alone(web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    with HTTPPool(base_url=web.url, breaker=QUICK, name="api", observers=[events]) as pool:
        with caplog.at_level(logging.WARNING, "pooling"):
            fail(pool)
            assert circuit(pool, web) == "open"
            (shown,) = [one for one in Viewer.of_process().view()["pools"] if one["name"] == "api"]
            assert shown["circuits_open"] == 1
            with pytest.raises(requests.ConnectionError) as caught:
                pool.get("/echo")
            assert isinstance(caught.value, CircuitOpen) and 0 < caught.value.retry_after <= 0.5
            text = f"{web.url}: circuit open (3 failures in a row, the last: status 502; again in 0."
            assert str(caught.value).startswith(text)
            assert web.book()["requests"] == 3
            time.sleep(0.6)
            assert pool.get("/echo").status_code == 200
        assert circuit(pool, web) == "closed"
        reason = "3 failures in a row, the last: status 502"
        assert events.seen == [("opened", "api", web.url, reason), ("closed", "api", web.url)]
        assert [vars(record)["pooling_event"] for record in caplog.records] == ["circuit_opened", "circuit_closed"]


def test_what_counts(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, breaker=QUICK, timeout=(5, 0.2)) as pool:
        for path in ("/status/404", "/status/429", "/status/500", "/status/503?after=1"):
            fail(pool, path, 4)
        assert circuit(pool, web) == "closed"
        for _ in range(3):
            with pytest.raises(requests.ReadTimeout):
                pool.get("/slow?s=1")
        with pytest.raises(CircuitOpen, match="3 failures in a row, the last: read timeout"):
            pool.get("/echo")


def test_reconfigure_gives_all_hosts_another_breaker(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, breaker=QUICK) as pool:
        fail(pool)
        pool.reconfigure(breaker=CircuitBreaker(failures=1))
        assert circuit(pool, web) == "closed"
        fail(pool, times=1)
        assert circuit(pool, web) == "open"
        pool.reconfigure(breaker=None)
        assert pool.get("/echo").status_code == 200
        assert "circuit" not in pool.stats()["hosts"][web.url]


def test_dead_server_and_its_return() -> None:
    with WebServer() as server, HTTPPool(base_url=server.url, breaker=QUICK) as pool:
        assert pool.get("/echo").status_code == 200
        server.kill()
        found: Counter[str] = Counter()
        for _ in range(10):
            with pytest.raises(requests.ConnectionError) as caught:
                pool.get("/echo")
            found[type(caught.value).__name__] += 1
        assert found == {"ConnectionError": 3, "HTTPCircuitOpen": 7}
        server.start()
        wait_until(lambda: answers(pool))
        assert circuit(pool, server) == "closed"


def answers(pool: HTTPPool) -> bool:
    try:
        return pool.get("/echo").ok
    except requests.ConnectionError:
        return False


def test_a_hundred_threads_make_one_request_when_it_is_time(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, breaker=QUICK, max_size=100, max_per_host=100) as pool:
        fail(pool)
        time.sleep(0.6)
        web.new_book()
        outcomes: list[object] = []

        def ask() -> None:
            try:
                outcomes.append(pool.get("/slow?s=1").status_code)
            except CircuitOpen:
                outcomes.append("open")

        threads = [threading.Thread(target=ask) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(outcomes) == {200: 1, "open": 99}
        assert web.book()["requests"] == 1


def test_interrupted_trial_is_made_by_the_next(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPPool(base_url=web.url, breaker=QUICK) as pool:
        fail(pool)
        time.sleep(0.6)
        with monkeypatch.context() as patched:
            patched.setattr(type(pool.connections), "take", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.get("/echo")
        assert circuit(pool, web) == "half-open"
        assert pool.get("/echo").ok
        assert circuit(pool, web) == "closed"


def interrupted(*args: object) -> None:
    raise KeyboardInterrupt


def test_retries_end_when_it_opens(web: WebServer) -> None:
    with HTTPPool(base_url=web.url, breaker=QUICK, retry=10) as pool:
        with pytest.raises(CircuitOpen):
            pool.get("/status/502")
        assert web.book()["requests"] == 3


def test_hosts_have_their_own(web: WebServer) -> None:
    with WebServer() as other, HTTPPool(base_url=web.url, breaker=QUICK) as pool:
        fail(pool)
        assert pool.get(f"{other.url}/echo").ok
        assert (circuit(pool, web), circuit(pool, other)) == ("open", "closed")


def test_fallback(web: WebServer) -> None:
    def stale(request: requests.PreparedRequest, error: CircuitOpen) -> requests.Response:
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = 203, str(request.url), request
        return answer

    with HTTPPool(base_url=web.url, breaker=CircuitBreaker(failures=3, fallback=stale)) as pool:
        fail(pool)
        assert pool.get("/echo").status_code == 203
        with pool.acquire() as session:
            assert session.post(f"{web.url}/echo").status_code == 203


def test_dropped_pool_is_freed_at_once(web: WebServer) -> None:
    pool = HTTPPool(base_url=web.url, breaker=QUICK)
    fail(pool)
    ref = weakref.ref(pool.connections)
    gc.disable()
    try:
        del pool
        assert ref() is None
    finally:
        gc.enable()


def test_breaker_must_be_one() -> None:
    with pytest.raises(TypeError, match="breaker must be a CircuitBreaker or None, not True"):
        HTTPPool(breaker=True)  # type: ignore[arg-type]
