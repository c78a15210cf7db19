"""Programs for `test_http`: ``python -m tests.faults.http_scenes SCENE URL...``."""

from __future__ import annotations

import os
import sys

if sys.argv[1:2] in (["gevent"], ["gevent_hedges"]):  # before other modules import threading and socket
    from gevent import monkey

    monkey.patch_all()

import ctypes
import gc
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import requests

from pooling import Balancing, HTTPPool, HTTPTimeout, LeaseError, PoolSettings, make_http_request
from pooling.core.runtime import registry
from tests.faults.rest import let_others_come_to_rest

TRUST = os.environ.get("TRUST") or True
DRIP = HTTPTimeout(connect=30, read=60)


def fork() -> int:
    """Fork as Python does, or as C does, without any hook."""
    if os.environ["FORK"] == "hook":
        return os.fork()
    let_others_come_to_rest()
    pid: int = ctypes.PyDLL(None).fork()
    return pid


def in_child(work: Callable[[], object]) -> None:
    """Run a function in a child process, which must succeed."""
    pid = fork()
    if not pid:
        code = 1
        signal.alarm(30)  # kills the child if it is stuck
        try:
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status


def connection(response: requests.Response) -> int:
    response.raise_for_status()
    return response.json()["connection"]  # type: ignore[no-any-return]


def scene_fork(url: str) -> None:
    http = HTTPPool(PoolSettings(max_size=3), base_url=url, verify=TRUST, cookies="shared")
    http.get("/cookie?a=1")
    mine = connection(http.get("/echo"))
    stream = http.get("/stream?n=3&s=0.1", stream=True)
    lease = http.acquire()
    session, own = lease.resource, http.session()

    def child() -> None:
        assert http.stats()["in_use"] <= 1  # before its first request
        theirs = connection(http.get("/echo"))
        assert theirs != mine
        assert connection(own.get(url + "/echo")) == theirs
        assert http.get("/echo").json()["fields"]["cookie"] == "a=1"
        assert (http.stats()["in_use"], http.stats()["size"]) == (0, 1)
        for use in (lambda: session.get(url + "/echo"), lease.release, lambda: lease.resource):
            with pytest.raises(LeaseError, match="process that forked"):
                use()
        stream.close()
        http.close()

    for _ in range(3):
        in_child(child)
    assert stream.content == b"x" * 30
    assert connection(session.get(url + "/echo")) != 0
    lease.release()
    assert {connection(http.get("/echo")) for _ in range(3)} == {mine}  # the parent's socket is unaffected
    assert http.metrics.snapshot().created == 1
    http.close()


def scene_fork_hook(url: str) -> None:
    """A hook forks while its response is unread: the child reads nothing of it."""
    http = HTTPPool(PoolSettings(max_size=3), base_url=url, verify=TRUST)
    foreign = requests.Session()
    foreign.mount(url, http.adapter)
    foreign.verify = TRUST
    own = http.session()

    def hook(response: requests.Response, **kwargs: Any) -> None:
        def child() -> None:
            for session in (own, foreign):
                assert session.get(url + "/echo").ok
            assert http.stats()["in_use"] == 0

        in_child(child)

    for session in (own, foreign):
        for _ in range(2):
            answer = session.get(url + "/stream?n=3&s=0.1", hooks={"response": hook})
            assert answer.content == b"x" * 30
    assert http.metrics.snapshot().created == 1
    http.close()


def scene_fork_locked(url: str) -> None:
    http = HTTPPool(PoolSettings(max_size=3), base_url=url, cookies="shared")
    mine = connection(http.get("/echo"))
    hosts = http.connections.hosts
    (host,) = hosts.all()
    locks: list[Any] = [
        http.connections.slots.engine.lock, host.pool.engine.lock, host.metrics.lock, hosts.contexts.lock,
        http.session().cookies._cookies_lock, http.adapter.poolmanager.pools.lock,
    ]  # fmt: skip
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        held.set()
        done.wait()
        for lock in reversed(locks):
            lock.release()

    thread = threading.Thread(target=hold, daemon=True)  # so that a failure ends the program
    thread.start()
    held.wait()
    in_child(lambda: [connection(http.get("/echo")) for _ in range(3)])
    done.set()
    thread.join()
    assert connection(http.get("/echo")) == mine
    http.close()


def scene_fork_client(url: str) -> None:
    mine = connection(make_http_request("GET", url + "/echo"))
    numbers: list[int] = []

    def child() -> None:
        numbers.append(connection(make_http_request("GET", url + "/echo")))
        assert connection(make_http_request("GET", url + "/echo")) == numbers[0] != mine

    in_child(child)
    assert connection(make_http_request("GET", url + "/echo")) == mine


def scene_gevent(url: str, secure: str) -> None:
    import gevent

    failed: list[BaseException] = []
    longest = 0.0

    def tick() -> None:
        nonlocal longest
        before = time.monotonic()
        while True:
            gevent.sleep(0.005)
            now = time.monotonic()
            longest, before = max(longest, now - before), now

    ticker = gevent.spawn(tick)
    http = HTTPPool(PoolSettings(max_size=5, acquire_timeout=60), max_per_host=3, verify=TRUST)

    def work(number: int) -> None:
        try:
            for step in range(5):
                base = (url, secure)[(number + step) % 2]
                got = http.get(f"{base}/slow?s=0.01&mark={number}-{step}").json()
                assert got["target"].endswith(f"mark={number}-{step}")
        except BaseException as error:
            failed.append(error)

    gevent.joinall([gevent.spawn(work, number) for number in range(40)])
    assert not failed, failed
    assert http.metrics.snapshot().peak_in_use <= 5
    for base in (url, secure):
        with pytest.raises(requests.exceptions.Timeout):
            http.get(base + "/drip", timeout=HTTPTimeout(total=0.5))
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.3):
            http.get(base + "/drip", timeout=DRIP)
        gc.collect()
        deadline = time.monotonic() + 30
        while http.stats()["in_use"]:
            assert time.monotonic() < deadline
            gevent.sleep(0.01)
        assert http.get(base + "/echo").ok
    http.warm_up([url, secure], each=2)
    assert longest < 1.0, longest
    ticker.kill()
    http.close()


def scene_gevent_hedges(slow: str, other: str) -> None:
    """Other greenlets run while one waits for two servers; one that is killed meanwhile loses nothing."""
    import gevent

    policy = Balancing(hedge_after=0.1, retry_budget=1.0)
    with HTTPPool(base_urls=[slow, other], balancing=policy, verify=TRUST) as http:
        group = http.group
        assert group is not None

        def prefer_slow() -> None:
            for _ in range(20):
                group.succeeded(group.servers[0], http, time.monotonic())
                group.succeeded(group.servers[1], http, time.monotonic() - 10.0)

        ticks = 0

        def tick() -> None:
            nonlocal ticks
            while True:
                gevent.sleep(0.01)
                ticks += 1

        ticker = gevent.spawn(tick)
        prefer_slow()
        with gevent.Timeout(10):
            assert http.get("/slow?s=0.4").url == f"{other}/slow?s=0.4"  # the slow one takes 20 s more
        assert ticks > 20 and http.stats()["in_use"] == 0
        for path in ("/slow?s=9", "/slow?s=9"):
            prefer_slow()
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.6):
                http.get(path)
            stats = http.stats()
            assert stats["in_use"] == 0 == sum(one["in_use"] for one in stats["hosts"].values())
        prefer_slow()
        greenlet = gevent.spawn(http.get, "/slow?s=9")
        gevent.sleep(0.4)
        assert http.stats()["in_use"] == 2
        greenlet.kill()
        assert http.stats()["in_use"] == 0
        assert sum(host.hedges for host in http.metrics.hosts()) == 4
        ticker.kill()


def scene_descriptors(url: str, secure: str) -> None:
    process = psutil.Process()
    requests.Session().get(url + "/echo").close()  # load what is loaded once
    gc.collect()
    before = process.num_fds()
    use_and_close(url, secure)
    gc.collect()
    deadline = time.monotonic() + 30
    while process.num_fds() > before or len(threading.enumerate()) > 1 or registry.pools():
        assert time.monotonic() < deadline, (process.num_fds(), before, threading.enumerate(), registry.pools())
        gc.collect()
        time.sleep(0.05)


def use_and_close(url: str, secure: str) -> None:
    http = HTTPPool(PoolSettings(max_size=8, acquire_timeout=60), verify=TRUST, retry=1)

    def work(number: int) -> None:
        for step in range(12):
            base = (url, secure)[(number + step) % 2]
            path = ("/echo", "/half", "/reset", "/stream?n=2", "/goodbye", "/gzip")[step % 6]
            try:
                with http.request_context("GET", base + path, stream=bool(number % 3)) as response:
                    if number % 2:
                        response.content  # noqa: B018
            except requests.RequestException:
                assert path in ("/half", "/reset")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = http.metrics.snapshot()
    assert snapshot.in_use == 0 and snapshot.size <= 8
    assert sum(snapshot.closed.values()) == snapshot.created - snapshot.size
    http.close()
    assert http.stats()["size"] == 0


def scene_exit(url: str) -> None:
    global kept
    http = HTTPPool(base_url=url, health_url="/echo")
    session = http.acquire().resource
    session.get(url + "/echo")
    kept = [http, session, http.get("/stream?n=1000&s=0.1", stream=True)]
    threading.Thread(target=http.get, args=("/drip",), daemon=True).start()


kept: list[Any] = []

if __name__ == "__main__":
    globals()["scene_" + sys.argv[1]](*sys.argv[2:])
