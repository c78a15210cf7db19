"""Redis killed, restarted, cut off, full, not there: what the clients of a `RedisPool` see of it, and what not.

The pool reaches its server through a proxy, which counts connections and attempts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from pooling import PoolSettings, PoolTimeout, RedisPool
from tests.faults.conftest import Note
from tests.faults.load import wait_until
from tests.proxy import Proxy
from tests.redisserver import RedisServer, needs_redis

ROOT = Path(__file__).parents[2]
SIZE = 8
ROUNDS = 30
EIGHT = PoolSettings(min_size=0, max_size=SIZE, acquire_timeout=60)
Make = Callable[..., RedisPool]

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server for this module, which any test may kill; each finds it running."""
    needs_redis()
    with RedisServer("--maxclients", "40") as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    server.start()
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def make(proxy: Proxy) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def made(settings: PoolSettings = EIGHT, **options: Any) -> RedisPool:
            options = {"host": "127.0.0.1", "port": proxy.port, "socket_timeout": 60, **options}
            pool = RedisPool(settings=settings, **options)
            stack.callback(pool.close)
            return pool

        yield made


class Load:
    """Threads that set and read numbers of their own, and write down what they saw."""

    def __init__(self, pool: RedisPool, threads: int) -> None:
        self.client = redis.Redis(connection_pool=pool)
        self.good: list[float] = []
        self.bad: list[tuple[float, float, BaseException]] = []
        self.wrong = 0
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]
        self._stop = False

    def ask(self) -> float:
        """Store a number and read it; return the milliseconds that took."""
        key, began = next(_numbers), time.monotonic()
        try:
            with self.client.pipeline() as pipe:
                pipe.set(f"n{key}", key, ex=60)
                pipe.get(f"n{key}")
                answer = pipe.execute()
            self.wrong += answer != [True, str(key).encode()]
            self.wrong += self.client.get(f"n{key}") not in (str(key).encode(), None)  # None: lost by the kill
            self.good.append(time.monotonic())
        except redis.RedisError as error:
            self.bad.append((began, time.monotonic(), error))
        return (time.monotonic() - began) * 1000

    def _work(self) -> None:
        while not self._stop:
            self.ask()

    def until_good_after(self, moment: float, more: int = 1) -> float:
        """Wait for so many good answers after a moment; return when the first one came."""
        wait_until(lambda: sum(when > moment for when in list(self.good)) >= more)
        return min(when for when in self.good if when > moment)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads), "a borrower hangs"


def warm(pool: RedisPool, number: int = SIZE) -> set[int]:
    """Open so many connections and leave them idle; return their numbers on the server."""
    with contextlib.ExitStack() as stack:
        return {stack.enter_context(pool.acquire()).client_id() for _ in range(number)}


def alone(pool: RedisPool) -> Load:
    """Return a load without threads."""
    return Load(pool, 0)


def kill(server: RedisServer, numbers: set[int]) -> None:
    with server.connect() as admin:
        for number in numbers:
            admin.client_kill_filter(_id=str(number))


# -- deaths ------------------------------------------------------------------------


def test_one_connection_killed(make: Make, server: RedisServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    numbers = warm(pool)
    kill(server, {min(numbers)})
    wait_until(lambda: proxy.open == SIZE - 1)
    load = alone(pool)
    first = load.ask()
    assert len(warm(pool) & numbers) == SIZE - 1  # the others live on
    assert (load.bad, load.wrong) == ([], 0)
    assert proxy.most_open <= SIZE
    note(errors=0, most_open=proxy.most_open, first_good_ms=first)


def test_all_connections_killed_under_load(make: Make, server: RedisServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    with Load(pool, 16) as load:
        load.until_good_after(0, 200)
        in_use = pool.stats()["size"]
        with server.connect() as admin:
            admin.client_kill_filter(_type="normal", skipme=True)
        gone = time.monotonic()
        first = load.until_good_after(gone, 200) - gone
    check(load, proxy, note, in_use=in_use, first_good_ms=first * 1000)
    assert len(load.bad) <= in_use


def check(load: Load, proxy: Proxy, note: Note, refused: int = 0, **figures: Any) -> None:
    """What holds after every fault: the proxy sees for a moment longer those whom the server has refused."""
    assert load.wrong == 0
    assert proxy.most_open <= SIZE + refused
    note(answers=len(load.good), errors=len(load.bad), wrong=load.wrong, most_open=proxy.most_open, **figures)


def test_restart_while_idle(make: Make, server: RedisServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    load = alone(pool)
    first = []
    for _ in range(5):
        warm(pool)
        server.kill()
        server.start()
        wait_until(lambda: proxy.open == 0)
        first.append(load.ask())
        assert len(warm(pool)) == SIZE
    note(errors=len(load.bad), first_good_ms=sorted(first)[2])
    assert (load.bad, load.wrong) == ([], 0)
    assert proxy.most_open <= SIZE


def test_kill_and_restart_under_load(make: Make, server: RedisServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    with Load(pool, 32) as load:
        load.until_good_after(0, 500)
        killed = time.monotonic()
        server.kill()
        wait_until(lambda: pool.stats()["down"])  # noticed
        time.sleep(2.0)  # the outage that is to be measured
        asked = len([when for when in proxy.attempts if when > killed])
        away = time.monotonic() - killed
        server.start()
        back = time.monotonic()
        first = load.until_good_after(back - 0.05, 500) - back
    check(load, proxy, note, attempts_a_second=asked / away, outage_s=away, first_good_ms=first * 1000)
    assert len(load.bad) <= SIZE  # one for each connection that was in use
    assert [error for began, _, error in load.bad if began > back] == []
    assert asked <= 10 * away


def test_server_that_loads_its_data_lends_nothing(
    make: Make, server: RedisServer, proxy: Proxy, note: Note
) -> None:
    """A restarted server accepts connections before it answers commands."""
    with server.connect() as admin:
        admin.flushall()
        with admin.pipeline(transaction=False) as pipe:
            for number in range(20_000):
                pipe.set(f"big{number}", "x" * 100)
            pipe.execute()
    pool = make()
    load = alone(pool)
    load.ask()
    server.extra = ("--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024")  # 2 s in all
    try:
        server.kill()
        server.start(wait=False)
        wait_until(lambda: proxy.open == 0)
        took = load.ask()
    finally:
        server.extra = ()
    note(errors=len(load.bad), first_good_ms=took)
    assert (load.bad, load.wrong) == ([], 0)
    with server.connect() as admin:
        admin.flushall()


def test_a_proxy_that_recycles(make: Make, proxy: Proxy, note: Note) -> None:
    pool = make()
    load = alone(pool)
    for _ in range(5):
        warm(pool)
        assert proxy.cut() == SIZE
        for _ in range(SIZE):
            load.ask()
    note(errors=len(load.bad), most_open=proxy.most_open)
    assert (load.bad, load.wrong) == ([], 0)
    assert proxy.most_open <= SIZE


# -- networks ----------------------------------------------------------------------


def test_network_held_for_a_while(make: Make, proxy: Proxy, note: Note) -> None:
    pool = make()
    with Load(pool, 16) as load:
        load.until_good_after(0, 200)
        before = len(proxy.attempts)
        with proxy.held():
            time.sleep(3.0)
            asked = len(proxy.attempts) - before
        released = time.monotonic()
        first = load.until_good_after(released, 200) - released
    check(load, proxy, note, attempts=asked, first_good_ms=first * 1000)
    assert load.bad == []  # all of them were patient


def test_old_connections_never_answer_any_more(make: Make, proxy: Proxy, note: Note) -> None:
    limit = 2.0
    pool = make(socket_timeout=limit)
    with Load(pool, 16) as load:
        load.until_good_after(0, 200)
        in_use = proxy.drop()
        dropped = time.monotonic()
        first = load.until_good_after(dropped + limit / 2, 200) - dropped
    check(load, proxy, note, in_use=in_use, first_good_s=first)
    assert len(load.bad) <= in_use
    assert all(isinstance(error, redis.TimeoutError) for _, _, error in load.bad)


def test_silent_death_of_idle_connections(make: Make, proxy: Proxy, note: Note) -> None:
    pool = make(EIGHT.replace(validation_interval=0.1, health_check_timeout=1.0, max_validation_failures=2))
    warm(pool)
    proxy.drop()
    time.sleep(0.2)  # idle for longer than they are trusted
    load = alone(pool)
    first = load.ask()
    assert len(warm(pool)) == SIZE
    note(errors=len(load.bad), first_good_ms=first, closed=dict(pool.metrics.snapshot().closed))
    assert (load.bad, load.wrong) == ([], 0)


# -- borrowers ----------------------------------------------------------------------


def test_leases_that_are_forgotten_or_kept(make: Make, note: Note) -> None:
    pool = make(EIGHT.replace(max_size=2, acquire_timeout=0.5, leak_timeout=0.2))
    kept = [pool.get_connection(), pool.acquire()]
    with pytest.raises(PoolTimeout, match=r"held by: .*test_redis.py:\d+ test_leases"):
        pool.acquire()
    wait_until(lambda: pool.metrics.snapshot().leaks == 2)
    kept.clear()  # forgotten, without a release
    assert pool.acquire(timeout=30).resource.ping()
    seen = pool.metrics.snapshot()
    note(leaks_reported=seen.leaks, forgotten=seen.orphans, lost=2 - len(warm(pool, 2)))


class Stop(BaseException):
    """Interrupts a borrower at any point."""


@pytest.mark.parametrize("way", ["client", "own"])
def test_base_exceptions_in_the_block_and_in_the_wait(make: Make, proxy: Proxy, note: Note, way: str) -> None:
    pool = make(EIGHT.replace(max_size=2))
    client = redis.Redis(connection_pool=pool)

    def on_alarm(*_: object) -> None:
        raise Stop

    def use() -> None:
        if way == "client":
            client.blpop("nothing", 30)
        else:
            with pool.acquire() as own:
                own.execute_command("WATCH", "a")
                own.blpop("nothing", 30)

    struck = 0
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        for round_ in range(ROUNDS):
            held = [pool.acquire(), pool.acquire()] if round_ % 2 else []  # then the wait is struck
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0005 * (round_ % 20))
            try:
                use()
            except Stop:
                struck += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for lease in held:
                lease.release()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert struck == ROUNDS
    wait_until(lambda: pool.stats()["in_use"] == 0)
    load = alone(pool)
    for _ in range(10):
        load.ask()
    assert len(warm(pool, 2)) == 2  # no slot was lost
    assert (load.bad, load.wrong) == ([], 0)
    assert proxy.most_open <= 2
    note(struck=struck, most_open=proxy.most_open)


STRUCK = """
import itertools, random, signal, sys, time
import redis
from pooling import RedisPool

class Stop(BaseException):
    pass

def on_alarm(*_):
    raise Stop

sys.unraisablehook = lambda problem: None  # redis-py's destructors are struck too
pool = RedisPool(host="127.0.0.1", port={port}, max_size=2, min_size=0, acquire_timeout=30)
client = redis.Redis(connection_pool=pool)
signal.signal(signal.SIGALRM, on_alarm)
struck = good = wrong = 0
numbers = itertools.count()

def work():
    global good, wrong
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0003, 0.003))
    again = time.monotonic() + 0.01  # a destructor may have swallowed the exception
    while time.monotonic() < again:
        number = next(numbers)
        client.set("s", number)
        wrong += client.get("s") != str(number).encode()
        with client.pipeline() as pipe:
            wrong += pipe.get("s").incr("s").execute() != [str(number).encode(), number + 1]
        with pool.acquire() as own:
            own.execute_command("WATCH", "s")
            wrong += own.get("s") != str(number + 1).encode()
            own.execute_command("UNWATCH")
        good += 1
    signal.setitimer(signal.ITIMER_REAL, 0)

ends = time.monotonic() + 4.0
while time.monotonic() < ends:
    try:
        work()
    except Stop:
        struck += 1
signal.setitimer(signal.ITIMER_REAL, 0)
deadline = time.monotonic() + 20
while pool.stats()["in_use"] and time.monotonic() < deadline:
    time.sleep(0.01)
leases = [pool.acquire(timeout=20), pool.acquire(timeout=20)]
for lease in leases:
    assert lease.resource.client_info()["db"] == 0
print(struck, good, wrong)
"""


def test_exceptions_between_commands_and_replies(server: RedisServer, proxy: Proxy, note: Note) -> None:
    """Struck at random while it works without a pause: no reply reaches the next command, and no slot is lost."""
    run = subprocess.run(
        [sys.executable, "-c", STRUCK.format(port=server.port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    struck, good, wrong = map(int, run.stdout.split())
    note(struck=struck, rounds=good, wrong=wrong)
    assert struck > 100 and good > 0 and wrong == 0


FORK = """
import os, threading
import redis
from pooling import RedisPool
pool = RedisPool(host="127.0.0.1", port={port}, max_size=4, min_size=0, acquire_timeout=30)
client = redis.Redis(connection_pool=pool)
leases = [pool.acquire() for _ in range(3)]
pubsub = client.pubsub()
pubsub.subscribe("news")
parents = {{lease.resource.client_id() for lease in leases}}
for lease in leases[2:]:
    lease.release()  # one idle, three in use

def many(base):
    errors = []
    def work(place):
        try:
            for number in range(base + 1000 * place, base + 1000 * place + 200):
                client.set(f"f{{number}}", number)
                assert client.get(f"f{{number}}") == str(number).encode()
        except BaseException as error:
            errors.append(error)
            raise
    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not errors, errors

children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        with pool.acquire() as own:
            assert own.client_id() not in parents
        try:
            leases[0].__enter__().get("a")
        except Exception as error:
            assert "lease" in str(error), error
        else:
            raise AssertionError("the parent's connection was used")
        pubsub.close()
        many(100_000 * (child + 1))
        os._exit(0)
    children.append(pid)
many(0)  # at the same time; an error or a wrong answer ends it
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
assert {{lease.resource.client_id() for lease in leases[:2]}} < parents
assert pubsub.get_message(timeout=5)["type"] == "subscribe"
client.publish("news", "hello")
assert pubsub.get_message(timeout=5)["data"] == b"hello"
pubsub.close()
for lease in leases[:2]:
    lease.release()
print("well", flush=True)
"""


def test_fork_with_idle_and_lent_connections(server: RedisServer, proxy: Proxy, note: Note) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK.format(port=server.port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "well\n", "")
    note(processes=4, questions=4 * 800)


# -- servers that will not ------------------------------------------------------------


def test_server_full(make: Make, server: RedisServer, proxy: Proxy, note: Note) -> None:
    pool = make(EIGHT.replace(max_attempts=3))
    warm(pool, 2)
    others: list[redis.Redis] = []
    with contextlib.suppress(redis.ConnectionError):
        while True:
            others.append(server.connect(single_connection_client=True, socket_timeout=30))
    try:
        with Load(pool, 16) as load:
            load.until_good_after(0, 500)
            before = len(proxy.attempts)
            time.sleep(2.0)
            asked = len(proxy.attempts) - before
            assert load.bad == []  # served with what there is
            size = pool.stats()["size"]
            for other in others:
                other.close()
                other.connection_pool.disconnect()
            wait_until(lambda: pool.stats()["size"] > size)  # and it has tried again
    finally:
        for other in others:
            other.close()
            other.connection_pool.disconnect()
    assert asked <= 2 * 2 + 1
    check(load, proxy, note, refused=SIZE, attempts_in_2_s=asked, size_when_full=size)


def test_server_not_yet_started(make: Make, server: RedisServer, proxy: Proxy, note: Note) -> None:
    server.kill()
    pool = make(EIGHT.replace(min_size=2))
    with Load(pool, 8) as load:
        time.sleep(1.5)
        asked = len(proxy.attempts)
        server.start()
        back = time.monotonic()
        first = load.until_good_after(0, 100) - back
    check(load, proxy, note, attempts=asked, first_good_ms=first * 1000)
    assert load.bad == []
