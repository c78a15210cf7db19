"""Defects of earlier versions, each with the test that would have found it."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from pooling import Pool, PoolTimeout
from pooling.core.adapter import Adapter
from pooling.core.observer import Observer
from pooling.testing import FakeAdapter, VirtualClock


@pytest.fixture
def by_reference_count() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def threads() -> VirtualClock:
    return VirtualClock(workers="threads")


@pytest.mark.usefixtures("by_reference_count")
@pytest.mark.parametrize("step", ["close", "reset", "validate"])
def test_pool_dropped_during_a_workers_job_closes_the_resource_once_after_it(
    threads: VirtualClock, step: str
) -> None:
    adapter = FakeAdapter(enforces_timeouts=False)
    pool = Pool(adapter=adapter, clock=threads, min_size=0)
    lease = pool.acquire()
    adapter.hold(step)
    if step == "close":
        lease.discard()
    elif step == "reset":
        lease.release()
    else:
        lease.release()
        while not pool.stats()["idle"]:
            pass
        pool.check()
    adapter.until_held(step)
    closed = threading.Event()
    close = adapter.close
    adapter.close = lambda resource: (closed.set(), close(resource))  # type: ignore[assignment, func-returns-value]
    del pool, lease
    threads.settle()
    assert not closed.wait(0.05)  # under its check, or for the second time
    adapter.let_go(step)
    for _ in range(10_000):
        threads.settle()
        if not adapter.open:
            break
        threading.Event().wait(1e-3)
    assert (adapter.calls["close"], adapter.closed) == (1, 1)


@pytest.mark.usefixtures("by_reference_count")
def test_hung_close_of_a_dropped_pool_is_abandoned(threads: VirtualClock) -> None:
    adapter = FakeAdapter()
    pool = Pool(adapter=adapter, clock=threads, min_size=0, close_timeout=5)
    adapter.hold("close")
    pool.acquire().discard()
    adapter.until_held("close")
    del pool
    threads.advance(10)
    assert adapter.calls["abandon"] == 1
    adapter.let_go("close")


class Counted:
    alive = most = 0

    def __init__(self) -> None:
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


@pytest.mark.parametrize("close", [None, lambda resource: None])
def test_resource_is_destroyed_before_its_slot_is_free(close: Any) -> None:
    Counted.alive = Counted.most = 0
    clock = VirtualClock()
    pool = Pool(Counted, close=close, clock=clock, min_size=1, max_size=1, max_lifetime=10)
    pool.acquire().discard()
    clock.advance(30)
    assert pool.stats()["size"] == Counted.most == 1


def test_health_check_follows_a_shortened_interval() -> None:
    clock, adapter = VirtualClock(), FakeAdapter()
    pool = Pool(
        adapter=adapter, clock=clock, health_check_interval=100, max_lifetime=None, idle_timeout=None
    )
    pool.acquire().release()
    clock.advance(101)
    assert adapter.calls["validate"] == 1
    pool.reconfigure(health_check_interval=5)
    clock.advance(51)
    assert adapter.calls["validate"] == 11


def test_max_idle_after_a_harmless_error_closes_the_longest_unused() -> None:
    clock = VirtualClock()
    pool = Pool(adapter=FakeAdapter(), clock=clock, min_size=0, max_size=2, max_idle=1)
    old, new = pool.acquire(), pool.acquire()
    kept = new.resource
    old.release()
    clock.advance(1)
    with pytest.raises(ValueError, match="harmless"), new:
        raise ValueError("harmless")
    with pool.acquire() as resource:
        assert resource is kept


@pytest.mark.usefixtures("by_reference_count")
def test_a_dropped_pool_keeps_no_observer() -> None:
    observer = Observer()
    pool = Pool(object, clock=VirtualClock(), observers=[observer])
    pool.close()
    seen = weakref.ref(observer)
    del pool, observer
    assert seen() is None


class Sockets(Adapter[socket.socket]):
    peers: list[socket.socket] = []

    def create(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.peers.append(theirs)
        return ours

    def close(self, resource: socket.socket) -> None:
        resource.close()


class _Amid(set):  # type: ignore[type-arg]
    """A set that runs a job in another thread at the end of its first iteration."""

    clock: VirtualClock | None

    def __iter__(self) -> Iterator[Any]:
        yield from list(super().__iter__())
        clock, self.clock = self.clock, None
        if clock is not None:
            thread = threading.Thread(target=clock.run_job)
            thread.start()
            thread.join(0.2)


def test_reconfigure_during_a_creation_keeps_its_socket_watched() -> None:
    clock = VirtualClock(workers="manual")
    adapter = Sockets()
    pool = Pool(adapter=adapter, clock=clock, min_size=0, max_size=1)
    pool.fill(1)
    entries = _Amid(pool.engine.state.entries)
    entries.clock = clock
    pool.engine.state.entries = entries
    pool.reconfigure(max_uses=None)
    while not pool.stats()["idle"]:
        pass
    adapter.peers.pop().close()
    with pytest.raises(PoolTimeout):
        pool.acquire(0)
    clock.run_job()  # the close


# -- hooks of the adapter ------------------------------------------------------------------


def _raise(*args: Any) -> Any:
    raise ValueError("a hook failed")


@pytest.mark.parametrize("hook", ["evicted", "refuse", "created"])
@pytest.mark.parametrize("blocking", [True, False])
def test_failing_hook_costs_no_slot_and_raises_nothing(
    hook: str, blocking: bool, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = FakeAdapter(blocking=blocking)
    setattr(adapter, hook, _raise)
    with caplog.at_level(logging.ERROR):
        pool = Pool(adapter=adapter, clock=VirtualClock(), min_size=0, max_size=1)
        pool.acquire().release()
        pool.acquire().discard()
        assert pool.stats()["size"] == 0
    assert f"{hook}() failed" in caplog.text
    assert len(adapter.open) == 0


def test_refuse_alone_is_called_at_each_release() -> None:
    class Refusing(Adapter[object]):
        def create(self) -> object:
            return object()

        def refuse(self, resource: object, waiting: bool) -> str | None:
            return "worn"

    pool = Pool(adapter=Refusing(), clock=VirtualClock(), min_size=0)
    pool.acquire().release()
    assert pool.metrics.snapshot().closed == {"worn": 1}


def test_failing_after_fork_hook_does_not_break_the_pool() -> None:
    adapter = FakeAdapter()
    adapter.after_fork = _raise  # type: ignore[method-assign]
    bad, good = Pool(adapter=adapter, name="bad"), Pool(object, name="good")
    with bad.acquire(), good.acquire():
        pass
    bad.close()
    pid = os.fork()
    if not pid:
        try:
            good.acquire(1).release()
            os._exit(0 if bad.closed else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
