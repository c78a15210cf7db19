"""One case of life under gevent, in one world: ``gevent_cases.py WORLD CASE``.

Patching is for a whole process, so `test_gevent` runs this script anew for
each. A case makes its pool, yields it, and goes on in greenlets; what happens
at that ``yield`` is the world's:

- ``before``: nothing: all was patched before the library was imported;
- ``preload``: the pool was made, and now the process is patched;
- ``used``: the pool has been used, its native worker and reaper run, patched;
- ``fork``, ``fork_used``: as the two, but a child goes on, and patches itself
  there, as gunicorn's gevent worker does.

A ticker measures that the hub is never blocked. Silence and status 0 mean
that all was well.
"""

from __future__ import annotations

import _thread
import contextvars
import gc
import logging
import os
import random
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

WORLD, CASE = sys.argv[1:3]

native_sleep, start_native, NativeEvent = time.sleep, _thread.start_new_thread, threading.Event


def patch() -> None:
    """Make everything gevent's."""
    from gevent import monkey

    monkey.patch_all()


if WORLD == "before":
    patch()

from pooling import (  # noqa: E402
    Adapter,
    LeaseError,
    Pool,
    PoolClosed,
    PoolSettings,
    PoolTimeout,
)

LONGEST_BLOCK = 1.0  # seconds; 0.01 is usual, but machines that test are busy
SOON = 1.0  # for what takes no time; a lost wake-up takes `LATE`
LATE = 8.0


class Log(logging.Handler):
    """Keeps the library's messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def count(self, words: str) -> int:
        """How many messages contain these words."""
        return sum(words in line for line in self.lines)


log = Log()
logging.getLogger("pooling").addHandler(log)
logging.getLogger("pooling").propagate = False


class Resource:
    """Knows whether it is held and whether it is closed."""

    made: list[Resource] = []

    def __init__(self) -> None:
        self.held = self.closed = False
        self.made.append(self)


class Fake(Adapter[Resource]):
    """Its steps are functions that a case may replace."""

    def create(self) -> Resource:
        return Resource()

    def close(self, resource: Resource) -> None:
        assert not resource.held, "closed under its holder"
        assert not resource.closed, "closed twice"
        resource.closed = True


def make(adapter: Adapter[Resource] | None = None, **settings: Any) -> Pool[Resource]:
    """A pool of two that does not warm up."""
    settings = {"min_size": 0, "max_size": 2, "acquire_timeout": LATE, **settings}
    return Pool(adapter=adapter or Fake(), settings=PoolSettings(**settings), name="case")


def use(pool: Pool[Resource], seconds: float = 0.0, timeout: float | None = None) -> Resource:
    """Hold a resource for a while; no other greenlet has it meanwhile (P1)."""
    with pool.acquire(timeout) as resource:
        assert not (resource.held or resource.closed), "lent twice, or dead"
        resource.held = True
        try:
            time.sleep(seconds)
        finally:
            resource.held = False
    return resource


def settled(pool: Pool[Resource]) -> None:
    """Check that all slots can be lent and no waiter is left."""
    until(lambda: busy(pool) == 0)
    settings = pool.settings
    leases = [pool.acquire(timeout=SOON) for _ in range(settings.max_size)]
    for lease in leases:
        lease.release()
    until(lambda: busy(pool) == 0)
    open_ones = sum(not resource.closed for resource in Resource.made)
    assert WORLD.startswith("fork") or open_ones == pool.stats()["size"] <= settings.max_size
    assert pool.metrics.snapshot().audit_repairs == 0


def busy(pool: Pool[Resource]) -> int:
    stats = pool.stats()
    return sum(stats[key] for key in ("in_use", "creating", "checking", "closing", "waiting"))


def until(reached: Callable[[], object], seconds: float = SOON) -> None:
    """Wait until something is so, or fail."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.002)


def error_of(kind: type[BaseException], function: Callable[..., object], *args: Any) -> BaseException | None:
    """Call a function, return what it raised."""
    try:
        function(*args)
    except kind as error:
        return error
    return None


class Stopwatch:
    """``with Stopwatch(0.1, 0.5):`` the block takes that long."""

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        took = time.monotonic() - self.start
        assert error or self.least <= took <= self.most, f"{took:.3f} s"


# -- the cases -------------------------------------------------------------------

Case = Iterator[Pool[Resource]]


def hundreds_in_order() -> Case:
    """300 greenlets share 3 resources and are served in order of arrival (P1, P2, P3)."""
    pool = make(max_size=3)
    yield pool
    import gevent

    served: list[int] = []

    def borrow(number: int) -> None:
        with pool.acquire() as resource:
            assert not resource.held
            resource.held = True
            served.append(number)
            gevent.sleep(0.001 * (number % 3))
            resource.held = False

    gevent.joinall([gevent.spawn(borrow, number) for number in range(300)], raise_error=True)
    assert served == list(range(300)), served
    settled(pool)


def main_greenlet_waits() -> Case:
    """The main greenlet waits for what a greenlet holds: the hub runs meanwhile."""
    pool = make(max_size=1)
    yield pool
    import gevent

    holder = gevent.spawn(use, pool, 0.2)
    gevent.sleep(0.05)
    with Stopwatch(0.1, SOON):
        use(pool)
    holder.get()
    settled(pool)


def cooperative_factory() -> Case:
    """Workers are greenlets: five creations of 0.2 s take 0.2 s together."""
    adapter = Fake()
    pool = make(adapter, max_size=5)
    yield pool
    import gevent

    pool.drain()
    until(lambda: pool.stats()["size"] == 0)
    threads: set[int] = set()

    def create() -> Resource:
        time.sleep(0.2)
        threads.add(threading.get_native_id())
        return Resource()

    adapter.create = create  # type: ignore[method-assign]
    with Stopwatch(0.2, 0.9):
        gevent.joinall([gevent.spawn(use, pool, 0.3) for _ in range(5)], raise_error=True)
    assert threads == {threading.get_native_id()}, "not in greenlets"
    settled(pool)


def native_factory() -> Case:
    """A native blocking call blocks the hub, as always under gevent; the pool still works."""
    adapter = Fake()
    adapter.create = lambda: native_sleep(0.05) or Resource()  # type: ignore[method-assign]
    pool = make(adapter, max_size=3)
    yield pool
    import gevent

    gevent.joinall([gevent.spawn(use, pool, 0.01) for _ in range(20)], raise_error=True)
    settled(pool)


def open_and_close() -> Case:
    """Warm-up waits for creations, close for a holder; the hub runs meanwhile."""
    adapter = Fake()
    adapter.create = lambda: time.sleep(0.1) or Resource()  # type: ignore[method-assign]
    pool = make(adapter, min_size=2, max_size=3)
    yield pool
    import gevent

    with pool:
        assert pool.stats()["idle"] >= 2
        holder = gevent.spawn(use, pool, 0.2)
        gevent.sleep(0.01)
    holder.get()
    assert pool.closed and busy(pool) == 0 and pool.stats()["size"] == 0
    assert WORLD.startswith("fork") or all(resource.closed for resource in Resource.made)


def close_with_waiters() -> Case:
    """Waiters fail at once; a resource in use when the pool closes is closed on release."""
    pool = make(max_size=1, close_timeout=0.2)
    yield pool
    import gevent

    lease = pool.acquire()
    waiting = [gevent.spawn(error_of, PoolClosed, use, pool) for _ in range(3)]
    gevent.sleep(0.01)
    with Stopwatch(0.0, SOON):
        pool.close()
    assert all(waiter.get(timeout=SOON) for waiter in waiting)
    resource = lease.resource
    lease.release()
    until(lambda: resource.closed)


def close_while_another_greenlet_holds() -> Case:
    """Two greenlets are two holders: close waits for the other one's lease."""
    pool = make()
    yield pool
    import gevent

    mine = pool.acquire()
    other = gevent.spawn(use, pool, 0.2)
    gevent.sleep(0.01)
    with Stopwatch(0.1, SOON):
        pool.close(timeout=LATE)
    assert other.ready()
    mine.release()


def drain_and_resize() -> Case:
    """A new generation, and bounds that change, under greenlets that wait."""
    pool = make(max_size=1)
    yield pool
    import gevent

    lease = pool.acquire()
    old = lease.resource
    waiter = gevent.spawn(use, pool)
    gevent.sleep(0.01)
    pool.resize(2)
    assert waiter.get(timeout=SOON) is not old
    pool.drain()
    lease.release()
    until(lambda: old.closed)
    assert use(pool) is not old
    pool.resize(1)
    settled(pool)


def timeout_in_the_wait() -> Case:
    """``gevent.Timeout`` and ``kill`` end waits; the other waiters keep their order."""
    pool = make(max_size=1)
    yield pool
    import gevent

    lease = pool.acquire()
    killed = gevent.spawn(use, pool)
    gevent.sleep(0)
    with Stopwatch(0.0, SOON):
        try:
            with gevent.Timeout(0.05):
                pool.acquire()
        except gevent.Timeout:
            pass
        else:
            raise AssertionError("served")
    last = gevent.spawn(use, pool)
    gevent.sleep(0)
    killed.kill()
    assert pool.stats()["waiting"] == 1
    lease.release()
    last.get(timeout=SOON)
    settled(pool)


def own_timeout_and_none() -> Case:
    """Our own time limits hold in greenlets too (P4)."""
    pool = make(max_size=1)
    yield pool
    with pool.acquire():
        for timeout, most in ((0, 0.3), (0.2, 0.2 + SOON)):
            with Stopwatch(timeout - 0.01, most):  # libuv counts milliseconds
                try:
                    pool.acquire(timeout=timeout)
                except PoolTimeout:
                    continue
                raise AssertionError("served")
    settled(pool)


def timeout_in_the_block() -> Case:
    """A resource whose borrower was interrupted is closed; its slot serves the next waiter."""
    pool = make(max_size=1)
    yield pool
    import gevent

    waiter = None
    try:
        with gevent.Timeout(0.05), pool.acquire() as cut:
            waiter = gevent.spawn(use, pool)
            gevent.sleep(LATE)
    except gevent.Timeout:
        pass
    assert waiter is not None and waiter.get(timeout=SOON) is not cut
    assert cut.closed
    settled(pool)


def contexts() -> Case:
    """The factory sees its borrower's context variables, and no greenlet of ours keeps them alive."""
    adapter = Fake()
    pool = make(adapter, max_size=1)
    yield pool
    import gevent

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)
    seen: list[str] = []
    values: list[weakref.ref[Any]] = []

    def create() -> Resource:
        seen.append(type(variable.get()).__name__)
        time.sleep(0.01)
        return Resource()

    def borrow() -> None:
        value = type("Value", (), {})()
        values.append(weakref.ref(value))
        variable.set(value)
        pool.drain()
        use(pool)

    def collected() -> bool:
        gc.collect()
        return all(value() is None for value in values)

    adapter.create = create  # type: ignore[method-assign]
    for _ in range(2):  # the first one may start our greenlets, the second finds them
        gevent.joinall([gevent.spawn(borrow)], raise_error=True)
    assert seen == ["Value"] * 2, seen
    until(collected)
    assert pool.engine.runtime.workers.idle, "the worker has gone, and so proves nothing"
    settled(pool)


def a_peer_that_hung_up() -> Case:
    """Seen by the system's own poll, which neither waits nor switches greenlets."""
    pairs: list[tuple[Any, Any]] = []

    class Client(Resource):
        """Has a socket of this world: native or gevent's."""

        def __init__(self) -> None:
            super().__init__()
            pairs.append(socket.socketpair())
            self.sock: Any = pairs[-1][0]

    adapter = Fake()
    adapter.create = Client  # type: ignore[method-assign]
    pool = make(adapter, max_size=1)
    yield pool
    import gevent

    first = use(pool)
    pairs[-1][1].sendall(b"something unasked for")
    assert use(pool) is first
    pairs[-1][1].close()
    switched: list[int] = []
    gevent.spawn(switched.append, 1)
    assert not pool.engine.ref().liveness.is_alive(next(iter(pool.engine.state.entries))) and not switched
    assert use(pool) is not first
    settled(pool)
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def timeout_in_an_inline_create() -> Case:
    """It is not a failure of the server, and the next waiter is served."""
    adapter = Fake()
    adapter.blocking = False
    pool = make(adapter, max_size=1)
    yield pool
    import gevent

    pool.drain()
    until(lambda: pool.stats()["size"] == 0)
    adapter.create = lambda: time.sleep(0.2) or Resource()  # type: ignore[method-assign]
    waiters = []
    try:
        with gevent.Timeout(0.05):
            waiters = [gevent.spawn(use, pool) for _ in range(2)]
            pool.acquire()
    except gevent.Timeout:
        pass
    else:
        raise AssertionError("served")
    gevent.joinall(waiters, timeout=2, raise_error=True)
    assert all(waiter.ready() for waiter in waiters)
    assert pool.stats()["down"] is None and not log.count("cannot create a resource")
    settled(pool)


def timeout_in_the_reset() -> Case:
    """After an interrupted reset the resource is closed, and the next waiter is served."""
    adapter = Fake()
    adapter.enforces_timeouts = True
    slow: list[float] = []
    adapter.reset = lambda resource: time.sleep(slow.pop() if slow else 0)  # type: ignore[method-assign]
    pool = make(adapter, max_size=1)
    yield pool
    import gevent

    lease = pool.acquire()
    resource = lease.resource
    waiter = gevent.spawn(use, pool)
    gevent.sleep(0)
    slow.append(LATE)
    try:
        with gevent.Timeout(0.05):
            lease.release()
    except gevent.Timeout:
        pass
    else:
        raise AssertionError("not cut off")
    assert waiter.get(timeout=SOON) is not resource and resource.closed
    settled(pool)


def timeout_in_the_validation() -> Case:
    """After an interrupted validation the resource is closed, and the slot is free."""
    adapter = Fake()
    adapter.enforces_timeouts = True
    slow: list[float] = []
    adapter.validate = lambda resource, limit: time.sleep(slow.pop() if slow else 0)  # type: ignore[method-assign]
    pool = make(adapter, max_size=1, validation_interval=0)
    yield pool
    import gevent

    resource = use(pool)
    slow.append(LATE)
    gevent.sleep(0.01)
    try:
        with gevent.Timeout(0.05):
            pool.acquire()
    except gevent.Timeout:
        pass
    else:
        raise AssertionError("not cut off")
    until(lambda: resource.closed)
    settled(pool)


def timeout_right_after_being_served() -> Case:
    """A timeout between hand-over and wake-up: the resource goes to the next waiter."""
    pool = make(max_size=1)
    yield pool
    import gevent

    for kill_first in (True, False) * 10:
        lease = pool.acquire()
        struck = gevent.spawn(error_of, gevent.Timeout, use, pool)
        behind = gevent.spawn(use, pool)
        gevent.sleep(0)
        if kill_first:
            struck.kill(gevent.Timeout, block=False)
        lease.release()
        if not kill_first:
            struck.kill(gevent.Timeout, block=False)
        with Stopwatch(0.0, 0.2):  # an audit would be later
            behind.get(timeout=SOON)
        assert struck.get()
    assert pool.metrics.snapshot().orphans == 0, "lost and found"
    settled(pool)


def timeout_storm() -> Case:
    """Timeouts are raised anywhere, for a second (P8)."""
    adapter = Fake()
    adapter.enforces_timeouts = True

    def nap(*args: object) -> None:
        time.sleep(random.choice((0, 0, 0.001, 0.005)))

    adapter.reset = adapter.validate = nap  # type: ignore[method-assign]
    adapter.create = lambda: nap() or Resource()  # type: ignore[method-assign, func-returns-value]
    pool = make(adapter, max_size=3, validation_interval=0)
    yield pool
    import gevent

    end = time.monotonic() + 1.0
    done = [0, 0]

    def borrow() -> None:
        while time.monotonic() < end:
            try:
                with gevent.Timeout(random.random() * 0.05):
                    use(pool, random.random() * 0.004)
                done[0] += 1
            except gevent.Timeout:
                done[1] += 1

    gevent.joinall([gevent.spawn(borrow) for _ in range(30)], raise_error=True)
    assert min(done) > 10, done
    settled(pool)


def holders_are_greenlets() -> Case:
    """Each greenlet is a holder of its own; a deadlock among them is logged, and nothing else."""
    pool = make(max_size=2)
    yield pool
    import gevent

    leases = [pool.acquire()]
    other = gevent.spawn(use, pool, 0.1)
    gevent.sleep(0.01)
    names = {holder.thread for holder in pool.holders()}
    assert len(names) == 2 and not any("ended" in name for name in names), names
    third = gevent.spawn(use, pool)  # it waits without holding a lease
    gevent.sleep(0.01)
    leases.append(pool.acquire())  # it holds one, but the other holder does not wait
    assert not log.count("probable deadlock"), log.lines
    for lease in leases:
        lease.release()
    gevent.joinall([other, third], timeout=SOON, raise_error=True)

    def two() -> None:
        with pool.acquire():
            gevent.sleep(0.01)
            try:
                pool.acquire(timeout=0.1)
            except PoolTimeout as error:
                assert "holds 1 itself" in str(error), error

    gevent.joinall([gevent.spawn(two), gevent.spawn(two)], timeout=SOON, raise_error=True)
    assert log.count("probable deadlock") == 1, log.lines
    settled(pool)


def dropped_leases() -> Case:
    """The resource of a dropped lease serves a waiter at once; in a cycle, when it is collected."""
    pool = make(max_size=1)
    yield pool
    import gevent

    for in_a_cycle in (False, True):
        lease: Any = pool.acquire()
        resource = lease.resource
        waiter = gevent.spawn(use, pool)
        gevent.sleep(0.01)
        if in_a_cycle:
            cycle = [lease]
            cycle.append(cycle)
            del cycle
        del lease
        gc.collect()
        with Stopwatch(0.0, 0.2):
            assert waiter.get(timeout=SOON) is not resource
        assert resource.closed
    assert log.count("dropped without release") == 2
    settled(pool)


def dropped_pool() -> Case:
    """A dropped pool closes its idle resources."""
    pool = make()
    yield pool
    resource = use(pool)
    del pool
    gc.collect()
    until(lambda: resource.closed)


def reaper_sweeps() -> Case:
    """A resource idle for too long is closed; a hung creation frees its slot."""
    adapter = Fake()
    validated: list[object] = []
    adapter.validate = lambda resource, limit: None  # type: ignore[method-assign]
    pool = make(adapter, idle_timeout=0.4, keepalive_interval=0.1, create_timeout=0.3)
    yield pool
    import gevent

    def validate(resource: Resource, limit: float) -> None:
        gevent.sleep(0.01)  # not natively: gevent itself may hang in what is half patched
        validated.append(resource)

    adapter.validate = validate  # type: ignore[method-assign]
    rested = use(pool)
    until(lambda: validated)
    until(lambda: rested.closed, 2)
    adapter.create = lambda: time.sleep(LATE) or Resource()  # type: ignore[method-assign]
    waiter = gevent.spawn(use, pool, timeout=0.8)
    until(lambda: pool.stats()["down"], 2)
    del adapter.create  # type: ignore[attr-defined]
    waiter.get(timeout=2)
    settled(pool)


def outage() -> Case:
    """The server is down for a while: one greenlet probes it, and all waiters are served afterwards."""
    adapter = Fake()
    pool = make(adapter, max_size=3)
    yield pool
    import gevent

    pool.drain()
    until(lambda: pool.stats()["size"] == 0)
    attempts: list[float] = []

    def create() -> Resource:
        attempts.append(time.monotonic())
        raise OSError("down")

    adapter.create = create  # type: ignore[method-assign]
    began = time.monotonic()
    waiters = [gevent.spawn(use, pool) for _ in range(10)]
    gevent.sleep(0.5)
    assert 3 <= len(attempts) <= 3 + 2 + 8 * (time.monotonic() - began), attempts
    del adapter.create  # type: ignore[attr-defined]
    gevent.joinall(waiters, timeout=SOON, raise_error=True)
    assert all(waiter.ready() for waiter in waiters)
    settled(pool)


def native_thread_pool() -> Case:
    """gevent's native threads may acquire too: their waits end, and the hub does the work."""
    adapter = Fake()
    pool = make(adapter, max_size=1)
    yield pool
    import gevent

    threads = gevent.get_hub().threadpool
    hub_thread = threading.get_native_id()
    made_by: list[int] = []

    def create() -> Resource:
        made_by.append(threading.get_native_id())
        gevent.sleep(0.05)
        return Resource()

    lease = pool.acquire()
    waiters = [threads.spawn(use, pool)]
    until(lambda: pool.stats()["waiting"] == 1)
    waiters += [gevent.spawn(use, pool), threads.spawn(use, pool)]
    until(lambda: pool.stats()["waiting"] == 3)
    with Stopwatch(0.0, 0.2):
        lease.release()
        for waiter in waiters:
            waiter.get(timeout=SOON)
    pool.drain()
    until(lambda: pool.stats()["size"] == 0)
    adapter.create = create  # type: ignore[method-assign]
    pool.resize(6)
    with Stopwatch(0.0, SOON):
        for borrower in [threads.spawn(use, pool, 0.1) for _ in range(6)]:
            borrower.get()
    assert set(made_by) == {hub_thread}
    settled(pool)


def leases_over_the_patch() -> Case:
    """Leases of native threads are released or dropped after patching."""
    pool = make(max_size=3)
    leases = [pool.acquire() for _ in range(3)]
    resources = [lease.resource for lease in leases]
    yield pool
    import gevent

    if WORLD.startswith("fork"):
        for lease in leases:
            assert error_of(LeaseError, lease.release)
        use(pool)
        assert not any(resource.closed for resource in resources)
        return
    waiters = [gevent.spawn(use, pool) for _ in range(3)]
    gevent.sleep(0.01)
    leases.pop().release()
    with Stopwatch(0.0, SOON):
        gevent.joinall(waiters, timeout=SOON, raise_error=True)
    assert all(waiter.get() is resources[2] for waiter in waiters)
    leases.pop().discard()
    until(lambda: resources[1].closed)
    leases.pop()  # dropped
    until(lambda: resources[0].closed)
    assert log.count("dropped without release") == 1
    settled(pool)


def native_work_over_the_patch() -> Case:
    """A native worker is busy, one native thread waits and one holds a lease when gevent patches the process."""
    adapter = Fake()
    go = NativeEvent()
    wait = go.wait
    adapter.create = lambda: wait() and Resource()  # type: ignore[method-assign, return-value]
    pool = make(adapter, max_size=1)
    natively: list[object] = []
    if WORLD == "before" or WORLD.startswith("fork"):
        go.set()
    else:
        start_native(lambda: natively.append(use(pool)), ())
        while not pool.stats()["waiting"]:
            native_sleep(0.001)
    yield pool
    import gevent

    waiter = gevent.spawn(use, pool)
    gevent.sleep(0.05)
    assert go.is_set() or not waiter.ready()
    go.set()
    with Stopwatch(0.0, SOON):
        resource = waiter.get(timeout=SOON)
    assert all(one is resource for one in natively)
    settled(pool)


def fork_of_greenlets() -> Case:
    """A child inherits running greenlets, also the pool's own: they do no harm (P9)."""
    adapter = Fake()
    pool = make(adapter, max_size=3, keepalive_interval=0.05)
    adapter.validate = lambda resource, limit: None  # type: ignore[method-assign]
    yield pool
    import gevent

    pool.drain()
    until(lambda: pool.stats()["size"] == 0)
    with pool.acquire() as lent:
        rested = use(pool)
        adapter.create = lambda: time.sleep(0.1) or Resource()  # type: ignore[method-assign]
        waiter = gevent.spawn(use, pool)
        third = gevent.spawn(use, pool)  # a worker is creating it
        until(lambda: pool.stats()["creating"])
        inherited = [resource for resource in Resource.made if not resource.closed]
        made = len(Resource.made)
        reaper = pool.engine.runtime.reaper
        child = os.fork()
        if not child:
            adapter.create = Resource  # type: ignore[method-assign]
            own = use(pool)
            assert own not in inherited and pool.stats()["size"] == 1
            gevent.sleep(0.3)
            late = Resource.made[made + 1 :]
            assert not any(resource.closed for resource in [*inherited, *late]), "the parent's"
            assert pool.stats()["size"] == 1 and reaper.successor is pool.engine.runtime.reaper
            leases = [pool.acquire(timeout=SOON) for _ in range(3)]
            leases[0].release()
            os._exit(0)
        gevent.joinall([waiter, third], timeout=SOON, raise_error=True)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not (lent.closed or rested.closed)
    settled(pool)


def exit_with_everything_open() -> Case:
    """The process ends at once and silently, whatever is left (P10)."""
    adapter = Fake()
    pool = make(adapter, max_size=3)
    yield pool
    import gevent

    kept = [pool.acquire(), pool.acquire()]
    gevent.spawn(use, pool, 600)
    gevent.sleep(0.01)
    for _ in range(3):
        gevent.spawn(use, pool, 600)
    kept.pop().release()
    adapter.create = lambda: time.sleep(600) or Resource()  # type: ignore[method-assign]
    pool.drain()
    gevent.sleep(0.01)
    globals()["kept"] = kept




# -- the worlds ------------------------------------------------------------------


def use_natively(pool: Pool[Resource]) -> None:
    """Have native workers and a native reaper run, and idle resources left."""
    if pool.stats()["size"] < pool.settings.max_size and not pool.stats()["waiting"]:
        done: list[Resource] = []
        for _ in range(4):
            start_native(lambda: done.append(use(pool, 0.01)), ())
        while len(done) < 4:
            native_sleep(0.001)
    assert not pool.engine.runtime.reaper.ended, "no native reaper"


def watch_the_hub() -> Callable[[], float]:
    """Start a ticker; returns what tells the longest time it could not tick."""
    import gevent

    longest = [0.0]
    last = [time.monotonic()]

    def tick() -> None:
        while True:
            gevent.sleep(0.005)
            now = time.monotonic()
            longest[0] = max(longest[0], now - last[0] - 0.005)
            last[0] = now

    gevent.spawn(tick)
    return lambda: max(longest[0], time.monotonic() - last[0])


def main() -> None:
    case: Case = globals()[CASE]()
    pool = next(case)
    if WORLD.endswith("used"):
        use_natively(pool)
    if WORLD.startswith("fork"):
        child = os.fork()
        if child:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            del pool, case
            sys.exit(status)
    if WORLD != "before":
        patch()
    del pool
    longest = watch_the_hub()
    assert next(case, None) is None
    print(f"{longest():.3f}")
    assert longest() < LONGEST_BLOCK, f"the hub was blocked for {longest():.3f} s"


if __name__ == "__main__":
    main()
