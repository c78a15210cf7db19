"""Programs that end while their pools are in use; `test_exit` runs them, and looks at how they end.

``python -m tests.faults.ending STATE END``: get into a state, then end in one of
the ways that programs end. The last thing printed before is the time, so that
the test knows how long the end took. Nothing here closes a pool.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

at_the_end: list[Callable[[], object]] = []  # called when the pools' own handler has run
atexit.register(lambda: [function() for function in at_the_end])  # so before it is registered

from pooling import LeaseError, Observer, Pool, PoolSettings, PoolTimeout  # noqa: E402
from tests.faults.recorder import Connection  # noqa: E402

PORT = int(os.environ.get("PORT", "0"))
EVER = 3600.0  # seconds, for a call that would never return

kept: list[Any] = []  # to the very end, like an application's globals


class Resource:
    """Complains when it is destroyed and was not closed, as sockets and connections do."""

    def __init__(self) -> None:
        self.open = True

    def close(self) -> None:
        self.open = False

    def __del__(self) -> None:
        if self.open:
            print("a resource was destroyed, and was not closed", file=sys.stderr)


def hang() -> Any:
    """Hang like a server that does not answer."""
    while True:
        time.sleep(EVER)


def make_pool(factory: Callable[[], Resource] = Resource, **given: Any) -> Pool[Resource]:
    """Make a pool that lives as long as the process."""
    extra = {name: given.pop(name) for name in ("validate", "reset", "observers") if name in given}
    close = given.pop("close", Resource.close)
    settings = PoolSettings(**{"min_size": 0, "max_size": 2, "acquire_timeout": EVER, **given})
    pool = Pool(factory, close=close, settings=settings, **extra)
    kept.append(pool)
    return pool


def in_thread(function: Callable[..., Any], *args: Any, daemon: bool = True) -> threading.Thread:
    """Run something beside the main thread."""
    thread = threading.Thread(target=function, args=args, daemon=daemon)
    thread.start()
    return thread


def until(condition: Callable[[], object]) -> None:
    """Wait for something, but not for ever."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.002)


# -- states: each returns what the main thread is to be interrupted in, if anything ----------


def unused() -> None:
    make_pool()


def in_use() -> None:
    """One resource is idle; others are held by a global, by a thread, by a reference cycle."""
    pool = make_pool(max_size=5, min_size=2)
    pool.open()
    kept.append(pool.acquire())
    lend(pool)
    gc.disable()
    cycle: list[Any] = [pool.acquire()]
    cycle.append(cycle)
    pool.acquire().release()


def lend(pool: Pool[Resource]) -> None:
    """Have a thread acquire a resource and keep it."""
    lent = threading.Event()

    def use() -> None:
        with pool.acquire():
            lent.set()
            hang()

    in_thread(use)
    lent.wait()


def waiting() -> None:
    """Threads are in the wait queue."""
    pool = make_pool(max_size=1)
    lend(pool)
    for _ in range(3):
        in_thread(lambda: kept.append(pool.acquire()))
    until(lambda: pool.stats()["waiting"] == 3)


def main_waiting() -> Callable[[], object]:
    """The main thread itself is in the wait queue."""
    pool = make_pool(max_size=1)
    lend(pool)
    return pool.acquire


def main_holding() -> Callable[[], object]:
    """The main thread uses a resource that other threads wait for."""
    pool = make_pool(max_size=1)

    def hold() -> None:
        with pool.acquire():
            in_thread(lambda: kept.append(pool.acquire()))
            until(lambda: pool.stats()["waiting"])
            hang()

    return hold


def main_opening() -> Callable[[], object]:
    """The main thread warms a pool up, and a creation hangs."""
    pool = make_pool(hang, min_size=1)
    return lambda: pool.open(EVER)


def main_churning() -> Callable[[], object]:
    """The main thread acquires and releases continuously beside others; it is interrupted anywhere."""
    pool = make_pool(max_size=2, max_lifetime=0.01)

    def churn() -> None:
        while True:
            with pool.acquire():
                pass

    for _ in range(3):
        in_thread(churn)
    return churn


def creating() -> None:
    """A creation hangs, and a thread waits for it."""
    pool = make_pool(hang)
    in_thread(lambda: kept.append(pool.acquire()))
    until(lambda: pool.stats()["creating"])


def main_creating() -> Callable[[], object]:
    """The main thread waits for a creation that hangs."""
    return make_pool(hang).acquire


def closing() -> Callable[[], object]:
    """A close hangs; the main thread waits for its slot."""
    pool = make_pool(close=lambda resource: hang(), close_timeout=EVER, max_size=1)
    pool.acquire().discard()
    until(lambda: pool.stats()["closing"])
    return pool.acquire


def checking() -> Callable[[], object]:
    """A validation and a reset hang; the main thread waits."""
    patient = {"max_size": 1, "health_check_timeout": EVER, "reset_timeout": EVER, "validation_interval": 0.0}
    first, second = make_pool(validate=hang_for, **patient), make_pool(reset=hang_for, **patient)
    in_thread(second.acquire().release)
    until(lambda: second.stats()["checking"])
    first.acquire().release()
    return first.acquire


def hang_for(resource: Resource) -> None:
    hang()


def idle_with_hanging_close() -> None:
    """Closing an idle resource hangs."""
    pool = make_pool(close=lambda resource: hang())
    pool.acquire().release()


def stuck_reaper() -> None:
    """An observer holds the reaper up."""
    there = threading.Event()

    class Stuck(Observer):
        def leaked(self, pool: str, where: str, held: float) -> None:
            there.set()
            hang()

    logging.getLogger("pooling").setLevel(logging.ERROR)  # a leak is reported, and should be
    pool = make_pool(observers=[Stuck()], leak_timeout=0.05)
    kept.append(pool.acquire())
    there.wait()


def churning() -> None:
    """Threads acquire and release continuously; some forget to release."""
    logging.getLogger("pooling").setLevel(logging.ERROR)  # what they forget is reported
    pool = make_pool(max_size=3, max_lifetime=0.01, idle_timeout=0.005)

    def churn(number: int) -> None:
        while True:
            with pool.acquire():
                pass
            if number % 3 == 0:
                pool.acquire().discard()
            elif number % 3 == 1:
                pool.acquire()

    for number in range(8):
        in_thread(churn, number)
    until(lambda: pool.metrics.snapshot().released > 300)


def dropped_pool() -> None:
    """A pool of a function that has returned."""
    make_pool().acquire().release()
    kept.clear()


def closed() -> Callable[[], object]:
    """The main thread closes a pool and waits for resources in use."""
    pool = make_pool()
    lend(pool)
    return lambda: pool.close(EVER)


# -- ends ----------------------------------------------------------------------------------


def mark() -> None:
    """Tell the test when the end began."""
    print(time.monotonic(), flush=True)


def returns() -> None:
    mark()


def exits() -> None:
    mark()
    sys.exit(3)


def fails() -> None:
    mark()
    raise KeyError("the error itself")


def is_killed() -> None:
    mark()
    signal.raise_signal(signal.SIGTERM)
    hang()


def is_told_to_exit() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    mark()
    signal.raise_signal(signal.SIGTERM)


def is_interrupted() -> None:
    mark()
    signal.raise_signal(signal.SIGINT)


def while_it_waits(wait: Callable[[], object], end: Callable[[], None]) -> None:
    """Interrupt the main thread with a signal during a call that would never return."""
    main = threading.main_thread().ident
    assert main is not None
    struck = threading.Event()

    def handler(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        struck.set()
        end()

    signal.signal(signal.SIGUSR1, handler)

    def strike() -> None:
        if wait.__name__ == "churn":
            time.sleep(random.uniform(0, 0.05))
        else:
            until(lambda: _waits(sys._current_frames()[main]))
        while not struck.is_set():  # CPython misses a signal that arrives between its last check and the wait
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.05)

    in_thread(strike)
    wait()
    raise AssertionError("it did not wait")


def _waits(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code is hang.__code__:
            return True
        if frame.f_code.co_name == "get" and frame.f_code.co_filename.endswith("clock.py"):
            return True
        frame = frame.f_back
    return False


# -- what happens while it ends ------------------------------------------------------------


def handlers() -> None:
    """`atexit` handlers acquire, before the pools have closed idle resources and afterwards."""
    pool = make_pool(max_size=1)

    def borrow() -> None:
        with pool.acquire(timeout=4):
            pass
        pool.acquire(timeout=4).discard()
        pool.acquire(timeout=4).release()
        kept.append(make_pool(min_size=1).acquire(timeout=4))
        print("borrowed", flush=True)

    atexit.register(borrow)
    at_the_end.append(borrow)
    pool.acquire().release()
    mark()


def handlers_and_a_server_that_hangs() -> None:
    """An acquire in an `atexit` handler times out, though no thread can be started any more."""
    pool = make_pool(close=lambda resource: hang())
    hanging = make_pool(hang)

    def borrow() -> None:
        for each in (pool, hanging):
            try:
                each.acquire(timeout=0.3).discard()
            except PoolTimeout:
                print("timed out", flush=True)

    atexit.register(borrow)
    at_the_end.append(borrow)
    pool.acquire().release()
    mark()


def handlers_that_close() -> None:
    """An `atexit` handler closes the pool, as in many programs."""
    pool = make_pool()
    pool.acquire().release()
    atexit.register(pool.close)
    at_the_end.append(pool.close)
    mark()


class User:
    """Uses a pool when it is destroyed."""

    def __init__(self, pool: Pool[Resource], what: str) -> None:
        self.pool, self.what = pool, what
        self.lease = pool.acquire() if what in ("release", "discard", "leave") else None

    def __del__(self) -> None:
        if self.what == "borrow":
            with self.pool.acquire(timeout=EVER):
                pass
        elif self.what == "close":
            self.pool.close()
        elif self.what == "look":
            repr(self.pool), self.pool.stats(), self.pool.metrics.snapshot()
        elif self.lease is not None:
            try:
                {"release": self.lease.release, "discard": self.lease.discard}.get(
                    self.what, lambda: self.lease.__exit__(None, None, None)  # type: ignore[union-attr]
                )()
            except LeaseError:
                pass  # the garbage collector was faster
        os.write(1, f"{self.what}\n".encode())


class InCycle(User):
    """The same, in a reference cycle that only the garbage collector can destroy."""

    def __init__(self, pool: Pool[Resource], what: str) -> None:
        super().__init__(pool, what)
        self.me = self


USES = ["release", "discard", "leave", "borrow", "close"]


def application() -> list[User]:
    """Make a module with a global that is destroyed at the end.

    This module's globals are not: threads that are gone by then refer to them,
    by way of a pool and its factory.
    """
    module = sys.modules["application"] = ModuleType("application")
    users: list[User] = []
    vars(module)["users"] = users
    return users


def destructors() -> None:
    """Destructors use a pool when no other thread runs any more."""
    gc.disable()
    users = application()
    for what in USES:
        for kind in (User, InCycle):
            pool = make_pool()
            pool.acquire().release()
            users.append(kind(pool, what))
        InCycle(make_pool(), what)  # garbage, and not yet found
    at_the_end.append(gc.enable)  # not before: a lease that is found in a cycle is reported
    mark()


def destructors_behind_a_lock() -> None:
    """As before, but threads that are gone by then hold the pools' locks and leases, or wait."""
    users = application()
    for what in USES:
        pool = make_pool(max_size=3 if what == "borrow" else 2)
        users.append(User(pool, what))
        kept.append(pool.acquire())
        if what in ("release", "discard", "leave"):
            in_thread(lambda pool=pool: kept.append(pool.acquire()))
            in_thread(lambda pool=pool: kept.append(pool.acquire()))
            until(lambda pool=pool: pool.stats()["waiting"] == 2)
        in_thread(pool.engine.lock.acquire).join()  # it is never released
    mark()


def outliving() -> None:
    """Non-daemon threads go on after the main thread has ended, without a time limit."""
    pool, other = make_pool(max_size=2), make_pool(max_size=2, validate=lambda resource: True, reset=id)
    main = threading.main_thread()
    done: list[None] = []

    def go_on(used_before: bool) -> None:
        if used_before:
            pool.acquire().release()
        while main.is_alive():
            time.sleep(0.001)
        time.sleep(0.05)
        for each in (pool, other):
            for _ in range(20):
                with each.acquire(timeout=4):
                    pass
                each.acquire(timeout=4).discard()
        done.append(None)
        if len(done) == 8:
            mark()

    for number in range(8):
        in_thread(go_on, os.environ.get("USED") == "before" and number == 0, daemon=False)


def goodbyes() -> None:
    """Idle resources are closed properly; resources in use are not."""
    settings = PoolSettings(min_size=2, max_size=4)
    pool: Pool[Connection] = Pool(lambda: Connection(PORT), close=Connection.close, settings=settings)
    pool.open()
    kept.extend([pool, pool.acquire()])
    mark()


def main() -> None:
    state = globals()[sys.argv[1]]
    if len(sys.argv) < 3:
        state()
        return
    end = globals()[sys.argv[2]]
    wait = state()
    if wait is not None:
        while_it_waits(wait, end)
    else:
        end()


if __name__ == "__main__":
    main()
