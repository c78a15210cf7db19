"""MariaDB killed, restarted, cut off, full, read-only: what borrowers of a `MySQLPool` see of it, and what not.

As ``test_postgres``: the pool reaches its server through a proxy, which counts
connections and attempts. Times are noted, not asserted, but where a second more
or less does not matter.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymysql
import pytest

import pooling
from pooling import CommitUnknown, CreateFailed, MySQLPool, PoolSettings, PoolTimeout
from pooling.adapters.mysql.driver import NAMES
from pooling.adapters.mysql.failures import code_of
from tests.faults.conftest import Note
from tests.faults.load import Load, wait_until
from tests.mariadb import MariaDBServer, needs_mariadb, needs_mysqlclient
from tests.proxy import Proxy

ROOT = Path(__file__).parents[2]
SIZE = 8
ROUNDS = 30
EIGHT = PoolSettings(min_size=0, max_size=SIZE, acquire_timeout=60)
Make = Callable[..., MySQLPool]
OTHERS = "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND user = 'root'"


class MySQLLoad(Load):
    """Asks a `MySQLPool`."""

    @property
    def expected(self) -> tuple[type[Exception], ...]:  # type: ignore[override]
        return self.pool.driver.error, pooling.PoolError

    def ask(self, conn: Any, number: int) -> Any:
        return run(conn, "INSERT INTO orders VALUES (%s) RETURNING n" if self.insert else "SELECT %s", number)[0][0]


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDBServer]:
    """A server for this module, which any test may kill; each finds it running."""
    needs_mariadb()
    # What was committed is with the system, and so survives a kill.
    with MariaDBServer("--max-connections=40", "--innodb-flush-log-at-trx-commit=2", grants=True) as server:
        server.ask("CREATE TABLE orders (n BIGINT PRIMARY KEY) ENGINE=InnoDB")
        yield server


@pytest.fixture
def proxy(server: MariaDBServer) -> Iterator[Proxy]:
    if not server.running:
        server.start()
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    """PyMySQL, unless the test is for `each_driver`."""
    name = getattr(request, "param", "pymysql")
    needs_mysqlclient(name)
    return str(name)


each_driver = pytest.mark.parametrize("driver", NAMES, indirect=True)


@pytest.fixture
def make(server: MariaDBServer, proxy: Proxy, driver: str) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def made(settings: PoolSettings = EIGHT, **options: Any) -> MySQLPool:
            url = f"mysql://root@127.0.0.1:{proxy.port}/test"
            pool = MySQLPool(options.pop("conninfo", url), settings, driver=driver, **options)
            stack.callback(pool.close)
            return pool

        yield made


def run(conn: Any, sql: str, *params: object) -> list[Any]:
    """Execute a statement with any driver, and return its rows."""
    cursor = conn.cursor()
    cursor.execute(sql, params or None)
    rows = list(cursor.fetchall()) if cursor.description else []
    cursor.close()
    return rows


def warm(pool: MySQLPool, number: int = SIZE) -> set[int]:
    """Open so many connections and leave them idle."""
    with contextlib.ExitStack() as stack:
        return {pool.driver.thread_id(stack.enter_context(pool.acquire())) for _ in range(number)}


def kill_sessions(server: MariaDBServer, numbers: set[int]) -> None:
    for number in numbers:
        server.ask(f"KILL {number}")
    wait_until(lambda: not numbers & {row[0] for row in server.ask(OTHERS)})


class Tally:
    """What single queries see: counted first and judged at the end, so that the figures tell it either way."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.wrong = 0
        self._numbers = itertools.count(1)

    def query(self, pool: MySQLPool) -> float:
        """Ask for a number of its own, and return the milliseconds that took."""
        number, began = next(self._numbers), time.monotonic()
        try:
            self.wrong += pool.execute_query("SELECT %s", [number]) != [(number,)]
        except (pool.driver.error, pooling.PoolError) as error:
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


def leaked(server: MariaDBServer) -> int:
    """Return how many transactions are left over once those that are ending have had the time."""

    def count() -> int:
        return int(server.ask("SELECT count(*) FROM information_schema.innodb_trx")[0][0])

    with contextlib.suppress(AssertionError):
        wait_until(lambda: count() == 0, 10)
    return count()


def check(load: Load, server: MariaDBServer, proxy: Proxy, note: Note, refused: int = 0, **figures: Any) -> None:
    """What holds after every fault, and what every fault test states."""
    assert load.wrong == 0
    assert proxy.most_open <= SIZE + refused
    left = leaked(server)
    if load.insert:
        rows = {row[0] for row in server.ask("SELECT n FROM orders")}
        assert load.committed <= rows, "what was reported as committed is not there"
    note(
        answers=len(load.good), errors=len(load.bad), wrong=load.wrong, transactions_leaked=left,
        most_open=proxy.most_open, longest_s=load.longest, **figures,
    )  # fmt: skip
    assert left == 0


def until_cut(proxy: Proxy) -> None:
    """Wait until the proxy has passed on that the server has gone."""
    wait_until(lambda: proxy.open == 0)


# -- deaths ------------------------------------------------------------------------


@each_driver
def test_one_session_killed(make: Make, server: MariaDBServer, proxy: Proxy, note: Note, tally: Tally) -> None:
    pool = make()
    numbers = warm(pool)
    kill_sessions(server, {min(numbers)})
    wait_until(lambda: proxy.open == SIZE - 1)
    first = tally.query(pool)
    assert len(warm(pool) & numbers) == SIZE - 1  # the others live on
    assert proxy.most_open <= SIZE
    note(**tally.figures, most_open=proxy.most_open, first_good_ms=first)


@each_driver
def test_wait_timeout_of_the_server(make: Make, proxy: Proxy, note: Note, tally: Tally) -> None:
    pool = make(configure=lambda conn: run(conn, "SET wait_timeout=1"))
    before = warm(pool)
    until_cut(proxy)  # after a second
    first = tally.query(pool)
    assert not warm(pool) & before
    note(**tally.figures, first_good_ms=first)


@each_driver
def test_all_sessions_killed_under_load(make: Make, server: MariaDBServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    with MySQLLoad(pool, 16, insert=True).running() as load:
        load.until_good_after(0, 200)
        in_use = pool.stats()["size"]
        for (number,) in server.ask(OTHERS):
            with contextlib.suppress(pymysql.MySQLError):
                server.ask(f"KILL {number}")
        gone = time.monotonic()
        first = load.until_good_after(gone, 200) - gone
    check(load, server, proxy, note, first_good_ms=first * 1000, in_use=in_use)
    assert len(load.bad) <= in_use


@each_driver
def test_restart_while_idle(make: Make, server: MariaDBServer, proxy: Proxy, note: Note, tally: Tally) -> None:
    pool = make()
    first = []
    for ending in (server.kill, server.stop, server.kill):
        warm(pool)
        ending()
        server.start()
        until_cut(proxy)
        first.append(tally.query(pool))
        assert len(warm(pool)) == SIZE
    assert proxy.most_open <= SIZE
    note(**tally.figures, first_good_ms=sorted(first)[1])


@each_driver
def test_kill_and_restart_under_load(make: Make, server: MariaDBServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    with MySQLLoad(pool, 32, insert=True).running() as load:
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
    assert asked <= 10 * away


@each_driver
def test_a_proxy_that_recycles(make: Make, proxy: Proxy, note: Note, tally: Tally) -> None:
    pool = make()
    for _ in range(5):
        warm(pool)
        assert proxy.cut() == SIZE
        for _ in range(SIZE):
            tally.query(pool)
    note(**tally.figures, most_open=proxy.most_open)
    assert proxy.most_open <= SIZE


# -- failover ----------------------------------------------------------------------


@each_driver
def test_server_becomes_a_replica(make: Make, server: MariaDBServer, proxy: Proxy, note: Note, tally: Tally) -> None:
    """A failover behind one address: the old primary is read-only, its connections stay open."""
    server.ask("CREATE OR REPLACE USER app@localhost")
    server.ask("GRANT ALL ON test.* TO app@localhost")
    pool = make(EIGHT.replace(validation_interval=0.1), conninfo=f"mysql://app@127.0.0.1:{proxy.port}/test")
    before = warm(pool)
    server.ask("DELETE FROM orders")
    try:
        server.ask("SET GLOBAL read_only=1")
        time.sleep(1.2)  # idle for longer than they are trusted
        first = tally.query(pool)
        assert not warm(pool) & before
        with pytest.raises(pool.driver.error, match="read-only") as caught:
            pool.execute_query("INSERT INTO orders VALUES (-1)")
        assert code_of(caught.value) == 1290
        replaced = pool.metrics.snapshot().closed
        server.ask("SET GLOBAL read_only=0")
        time.sleep(1.2)
        pool.execute_query("INSERT INTO orders VALUES (-1)")
    finally:
        server.ask("SET GLOBAL read_only=0")
    note(**tally.figures, first_good_ms=first, closed=dict(replaced))


# -- networks ----------------------------------------------------------------------


def test_network_held_for_a_while(make: Make, server: MariaDBServer, proxy: Proxy, note: Note) -> None:
    pool = make()
    with MySQLLoad(pool, 16, insert=True).running() as load:
        load.until_good_after(0, 200)
        before = len(proxy.attempts)
        with proxy.held():
            time.sleep(3.0)
            asked = len(proxy.attempts) - before
        released = time.monotonic()
        first = load.until_good_after(released, 200) - released
    check(load, server, proxy, note, attempts=asked, first_good_ms=first * 1000)
    assert load.bad == []  # all of them were patient


@each_driver
def test_network_drops_packets_and_old_connections_never_answer(
    make: Make, server: MariaDBServer, proxy: Proxy, note: Note
) -> None:
    limit = 3.0
    pool = make(command_timeout=limit)
    with MySQLLoad(pool, 16).running() as load:
        load.until_good_after(0, 200)
        in_use = proxy.drop()
        dropped = time.monotonic()
        first = load.until_good_after(dropped + limit / 2, 200) - dropped
    slowest = max((ended - began for began, ended, _ in load.bad), default=0.0)
    check(load, server, proxy, note, refused=SIZE, in_use=in_use, longest_in_error_s=slowest, first_good_s=first)
    assert len(load.bad) <= in_use
    assert slowest < limit + 10


@each_driver
def test_silent_death_of_idle_connections(make: Make, proxy: Proxy, note: Note, tally: Tally) -> None:
    pool = make(EIGHT.replace(validation_interval=0.1, health_check_timeout=1.0, max_validation_failures=2))
    warm(pool)
    proxy.drop()
    time.sleep(1.2)  # idle for longer than they are trusted
    first = tally.query(pool)
    assert len(warm(pool)) == SIZE
    note(**tally.figures, first_good_ms=first, closed=dict(pool.metrics.snapshot().closed))
    assert first < 30_000


@each_driver
def test_server_that_hangs(make: Make, server: MariaDBServer, note: Note) -> None:
    pool = make(EIGHT.replace(max_size=1, reset_timeout=1.0, create_timeout=2.0), command_timeout=2.0)
    warm(pool, 1)
    server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(pooling.CommandTimeout), pool.connection() as conn:
            run(conn, "SELECT 1")
        limited = time.monotonic() - began
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=1.0)
    finally:
        server.proceed()
    pool.execute_query("SELECT 1", timeout=30)
    note(limited_s=limited)
    assert limited < 12


@each_driver
def test_server_that_takes_connections_and_never_greets(driver: str, note: Note) -> None:
    """Each attempt to connect ends by itself, so no thread waits for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mysql://root@127.0.0.1:{silent.getsockname()[1]}/test"
        pool = MySQLPool(url, EIGHT.replace(create_timeout=1.0), driver=driver)
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=4.0)
        pool.close()
        wait_until(lambda: not any("connect" in name and "mysql" in file.lower() for file, name in stacks()), 20)
        note(seconds=time.monotonic() - began)


def stacks() -> list[tuple[str, str]]:
    """Return the files and functions in which other threads are."""
    me = threading.get_ident()
    frames = [frame for number, frame in sys._current_frames().items() if number != me]
    return [(entry.filename, entry.name) for frame in frames for entry in traceback.extract_stack(frame)]


GEVENT = """
from gevent import monkey
monkey.patch_all()
import time, gevent
from pooling import MySQLPool, PoolSettings
db = MySQLPool({url!r}, PoolSettings(min_size=0, max_size=4, acquire_timeout=30), driver={driver!r})
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.01)
ticker = gevent.spawn(tick)
began = time.monotonic()
jobs = [gevent.spawn(db.execute_query, "SELECT %s, SLEEP(1)", (number,)) for number in range(8)]
gevent.joinall(jobs)
assert [job.value for job in jobs] == [[(number, 0)] for number in range(8)]
assert time.monotonic() - began < 7  # one after the other it would be 8 s
assert len(ticks) > 20  # the hub was never blocked for long
with gevent.Timeout(0.5, False):
    db.execute_query("SELECT SLEEP(30)")
assert [db.execute_query("SELECT %s", (number,)) for number in range(4)] == [[(number,)] for number in range(4)]
ticker.kill()
db.close()
print("well")
"""


@pytest.mark.parametrize("driver", ["pymysql", "connector"])
def test_gevent(server: MariaDBServer, proxy: Proxy, driver: str) -> None:
    program = GEVENT.format(url=server.url.replace("+pymysql", ""), driver=driver)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "well\n", "")


# -- borrowers ----------------------------------------------------------------------


@each_driver
def test_leases_that_are_forgotten_or_kept(make: Make, note: Note) -> None:
    pool = make(EIGHT.replace(max_size=2, acquire_timeout=30, leak_timeout=0.2))
    kept = [pool.acquire(), pool.acquire()]
    with pytest.raises(PoolTimeout, match=r"held by: .*test_mysql.py:\d+ .*×2"):
        pool.acquire(timeout=0.5)
    wait_until(lambda: pool.metrics.snapshot().leaks == 2)
    kept.clear()  # forgotten, without a release
    with pool.acquire(timeout=30) as conn:
        run(conn, "SELECT 1")
    seen = pool.metrics.snapshot()
    note(leaks_reported=seen.leaks, forgotten=seen.orphans, lost=2 - len(warm(pool, 2)))


@each_driver
def test_base_exceptions_in_the_block_and_in_the_wait(
    make: Make, server: MariaDBServer, proxy: Proxy, note: Note
) -> None:
    pool = make(EIGHT.replace(max_size=2))

    class Stop(BaseException):
        pass

    def on_alarm(*_: object) -> None:
        raise Stop

    struck, seconds = 0, 30.0
    if pool.driver.name == "mysqlclient":
        seconds = 0.05  # a signal does not interrupt the library; it is handled when that returns
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        for round_ in range(ROUNDS):
            held = [pool.acquire(), pool.acquire()] if round_ % 2 else []  # then the wait is struck
            signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0005 * (round_ % 20))
            try:
                with pool.connection() as conn:
                    run(conn, f"SELECT SLEEP({seconds})")
            except Stop:
                struck += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for lease in held:
                lease.release()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert struck == ROUNDS
    for lease in (pool.acquire(timeout=30), pool.acquire(timeout=30)):  # no slot was lost
        run(lease.resource, "SELECT 1")
        lease.discard()
    pool.close()
    left = leaked(server)
    note(struck=struck, transactions_leaked=left, most_open=proxy.most_open)
    assert left == 0
    assert proxy.most_open <= 2 * 2  # two sessions, and what ends what they were doing


@pytest.mark.parametrize("driver", ["pymysql", "connector"], indirect=True)  # the third cannot limit a call in time
def test_an_abandoned_command_is_ended_on_the_server(make: Make, server: MariaDBServer) -> None:
    """Otherwise the server would have more sessions than the pool's size. The proxy hides who is who: no kill there."""
    running = "SELECT id FROM information_schema.processlist WHERE info LIKE 'UPDATE busy%'"
    server.ask("CREATE OR REPLACE TABLE busy (n INT PRIMARY KEY) ENGINE=InnoDB")
    server.ask("INSERT INTO busy VALUES (1)")
    blocker = server.connect()  # a wait for a lock does not notice that the client has gone
    blocker.query("UPDATE busy SET n = 2")
    try:
        for address, ended in ((server.url, True), (None, False)):
            one = EIGHT.replace(max_size=1)
            pool = make(one) if address is None else make(one, conninfo=address)
            with pytest.raises(pooling.CommandTimeout):
                pool.execute_query("UPDATE busy SET n = 3", timeout=1.0)
            pool.execute_query("SELECT 1", timeout=30)  # on another connection: the first one is closed
            if ended:
                wait_until(lambda: not server.ask(running), 20)
            else:
                time.sleep(1.0)
                assert len(server.ask(running)) == 1
    finally:
        blocker.close()


FORK = """
import os, threading
from pooling import PoolSettings, MySQLPool
db = MySQLPool({url!r}, driver={driver!r}, settings=PoolSettings(min_size=0, max_size=4, acquire_timeout=30))
leases = [db.acquire() for _ in range(4)]
held = [lease.resource for lease in leases]
parents = {{db.driver.thread_id(lease.resource) for lease in leases}}
for lease in leases[2:]:
    lease.release()  # two idle, two in use

def ask(own, base):
    for number in range(base, base + 200):
        assert db.execute_query("SELECT %s", [number]) == [(number,)]
        if own is not None:
            cursor = own.cursor()
            cursor.execute("SELECT %s", [-number])
            assert cursor.fetchall()[0] == (-number,)
            cursor.close()

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
            assert db.driver.thread_id(conn) not in parents
        for conn in held:
            try:
                conn.close()  # must not reach the parent's session
            except Exception:
                pass
        many(100_000 * (child + 1), [])
        os._exit(0)
    children.append(pid)
many(0, leases[:2])  # at the same time; an error or a wrong answer ends it
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
for lease in leases[:2]:
    lease.release()
assert parents >= {{db.execute_query("SELECT CONNECTION_ID()")[0][0]}}
print("well", flush=True)
"""


@each_driver
@pytest.mark.parametrize("exits", [False, True])
def test_fork_with_idle_and_lent_connections(
    server: MariaDBServer, proxy: Proxy, note: Note, exits: bool, driver: str
) -> None:
    program = FORK.format(url=server.url.replace("+pymysql", ""), driver=driver)
    if exits:  # in good order, with all destructors
        program = program.replace("os._exit(0)", "raise SystemExit(0)")
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "well\n", "")
    note(processes=4, questions=4 * 800 + 400)  # and each answer was right, or there would be no "well"


# -- servers that will not ------------------------------------------------------------


@each_driver
def test_server_full(make: Make, server: MariaDBServer, proxy: Proxy, note: Note) -> None:
    server.ask("CREATE OR REPLACE USER app@localhost")
    server.ask("GRANT ALL ON test.* TO app@localhost")
    url = f"mysql://app@127.0.0.1:{proxy.port}/test"
    pool = make(EIGHT.replace(max_attempts=3), conninfo=url)
    events: list[str] = []

    class Events(pooling.Observer):
        def outage_began(self, pool: str, error: BaseException) -> None:
            events.append(str(error))

    pool.add_observer(Events())
    warm(pool, 2)
    others: list[Any] = []
    with contextlib.suppress(pymysql.MySQLError):
        while True:
            others.append(pymysql.connect(host="127.0.0.1", port=server.port, user="app", ssl_disabled=True))
    try:
        with MySQLLoad(pool, 16).running() as load:
            load.until_good_after(0, 500)
            time.sleep(1.0)  # those that were under way when the first was refused have been, too
            wait_until(lambda: not pool.stats()["creating"])
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
            with contextlib.suppress(pymysql.MySQLError):
                conn.close()
    assert events == [] and asked <= 2 * 2 + 1  # one every 0.5 to 1.5 s
    check(load, server, proxy, note, refused=SIZE, attempts_in_2_s=asked, size_when_full=size)


@each_driver
@pytest.mark.parametrize("what", ["wrong password", "unknown database"])
def test_error_that_is_final(make: Make, server: MariaDBServer, proxy: Proxy, note: Note, what: str) -> None:
    server.ask("CREATE OR REPLACE USER guarded@localhost IDENTIFIED BY 's3cret'")
    url = f"mysql://guarded:wr0ng@127.0.0.1:{proxy.port}/test"
    if what == "unknown database":
        url = f"mysql://root@127.0.0.1:{proxy.port}/nope"
    pool = make(conninfo=url)
    began, errors = time.monotonic(), 0
    while time.monotonic() < began + 2.0:
        with pytest.raises(CreateFailed) as caught:
            pool.acquire()
        errors += 1
        assert "wr0ng" not in str(caught.value)
    asked, away = len(proxy.attempts), time.monotonic() - began
    note(errors=errors, attempts_in_2_s=asked)
    assert asked <= 10 * away  # not one for each who asks: accounts get locked


def test_server_not_yet_started(make: Make, server: MariaDBServer, proxy: Proxy, note: Note) -> None:
    server.stop()
    pool = make(EIGHT.replace(min_size=2))
    began = time.monotonic()
    with MySQLLoad(pool, 8).running() as load:
        time.sleep(1.5)
        asked, away = len(proxy.attempts), time.monotonic() - began
        server.start()
        back = time.monotonic()
        first = load.until_good_after(0, 100) - back
    check(load, server, proxy, note, attempts_a_second=asked / away, first_good_ms=first * 1000)
    assert load.bad == []
    assert asked <= SIZE + 2 + 8 * away


# -- commits --------------------------------------------------------------------------


@each_driver
def test_connection_lost_during_the_commit(make: Make, server: MariaDBServer, proxy: Proxy) -> None:
    """The server has committed, and its answer was lost."""
    pool = make()
    server.ask("DELETE FROM orders")
    unknown = pytest.raises(CommitUnknown, match="it is unknown whether it took effect")
    with unknown as caught, pool.connection() as conn:
        run(conn, "INSERT INTO orders VALUES (1)")
        proxy.delay(1.0)
        timer = threading.Timer(0.3, proxy.cut)  # while the COMMIT is on its way
        timer.start()
    timer.join()
    assert isinstance(caught.value, pool.driver.operational)
    proxy.delay(0.0)
    assert pool.execute_query("SELECT 1", timeout=30) == [(1,)]


@each_driver
def test_connection_lost_before_the_commit_is_run_again(make: Make, server: MariaDBServer) -> None:
    pool = make()
    server.ask("DELETE FROM orders")
    runs = []

    def work(conn: Any) -> None:
        run(conn, "INSERT INTO orders VALUES (1)")
        runs.append(pool.driver.thread_id(conn))
        if len(runs) == 1:
            kill_sessions(server, set(runs))
            time.sleep(1.0)  # the proxy passes it on

    pool.run(work)
    assert len(set(runs)) == 2
    assert pool.execute_query("SELECT n FROM orders") == [(1,)]
    lost = pytest.raises(pool.driver.operational, match="lost before the commit")
    with lost as caught, pool.connection() as conn:
        run(conn, "INSERT INTO orders VALUES (2)")
        kill_sessions(server, {pool.driver.thread_id(conn)})
        time.sleep(1.0)
    assert not isinstance(caught.value, CommitUnknown)
    assert pool.execute_query("SELECT n FROM orders") == [(1,)]


@each_driver
def test_deadlocks_are_run_again(make: Make, server: MariaDBServer, note: Note) -> None:
    pool = make(query_statistics=True)
    server.ask("CREATE OR REPLACE TABLE accounts (id INT PRIMARY KEY, n INT) ENGINE=InnoDB")
    server.ask("INSERT INTO accounts VALUES (1, 0), (2, 0)")

    def transfer(number: int) -> None:
        def work(conn: Any) -> None:
            for account in (1, 2) if number % 2 else (2, 1):
                run(conn, f"UPDATE accounts SET n = n + 1 WHERE id = {account}")
                time.sleep(0.005)

        pool.run(work, retries=100)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(transfer, range(64)))
    assert pool.execute_query("SELECT n FROM accounts") == [(64,), (64,)]
    assert pool.query_statistics is not None
    deadlocks = pool.query_statistics.to_dict()["errors_by_code"].get("1213", 0)
    note(deadlocks=deadlocks)
    assert deadlocks
