"""MySQL behind a network, or a proxy, that keeps connections open and forwards nothing; see `faults.test_stalls`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pooling import CommitUnknown, MySQLPool, PoolSettings
from pooling.adapters.mysql import stalls
from pooling.adapters.mysql.tracking import Notes, notes_of
from tests.faults.load import wait_until
from tests.faults.test_stalls import Workers
from tests.mariadb import MariaDBServer, needs_mariadb, needs_mysqlclient
from tests.proxy import Proxy

LIMIT = 1.0
SETTINGS = PoolSettings(min_size=0, max_size=8, acquire_timeout=60)
Make = Callable[..., MySQLPool]


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDBServer]:
    needs_mariadb()
    with MariaDBServer("--max-connections=60") as server:
        server.ask("CREATE TABLE t (n int) ENGINE=InnoDB")
        yield server


@pytest.fixture
def proxy(server: MariaDBServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(params=["pymysql", "connector", "mysqlclient"])
def make(request: pytest.FixtureRequest, server: MariaDBServer, proxy: Proxy) -> Iterator[Make]:
    driver = request.param
    needs_mysqlclient(driver)
    with contextlib.ExitStack() as stack:

        def make(size: int, **arguments: Any) -> MySQLPool:
            pool = MySQLPool(
                f"mysql://root@127.0.0.1:{proxy.port}/test?ssl_mode=DISABLED", SETTINGS.replace(max_size=size),
                driver=driver, **{"stall_timeout": LIMIT, **arguments},
            )  # fmt: skip
            stack.callback(pool.close)
            return pool

        yield make


def transactions(server: MariaDBServer) -> int:
    return int(server.ask("SELECT count(*) FROM information_schema.innodb_trx")[0][0])


def work(pool: MySQLPool, statement: str = "SELECT SLEEP(0.02)") -> None:
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute("INSERT INTO t VALUES (1)")
        cursor.execute(statement)
        cursor.fetchall()


def test_twelve_threads_on_eight_recover(make: Make, proxy: Proxy, server: MariaDBServer) -> None:
    pool = make(8)
    with Workers(12, lambda: work(pool)) as workers:
        proxy.drop()
        workers.until_all_work_again(60)
    assert len(workers.errors) <= 8  # none, if all were being cleaned
    told = [f"{error}; {error.__cause__}" for error in workers.errors]  # of a CommitUnknown it is the cause
    assert all("stalled" in text for text in told), told
    wait_until(lambda: transactions(server) == 0, 30)  # nor are theirs left open at the server


def test_after_a_stall_of_two_seconds(make: Make, proxy: Proxy) -> None:
    pool = make(4)
    with Workers(8, lambda: work(pool)) as workers:
        proxy.drop(new=True)
        time.sleep(2)
        proxy.heal()
        assert workers.until_all_work_again(60) < 10


def test_long_queries_and_busy_holders_are_left_alone(make: Make, server: MariaDBServer) -> None:
    pool = make(3)
    threads, errors = [], []

    def wait_for_a_lock() -> None:
        work(pool, "SELECT n FROM locked FOR UPDATE")

    def hold() -> None:  # the server calls its session idle
        with pool.connection() as conn:
            cursor = conn.cursor()
            cursor.execute("SELECT 1")
            cursor.fetchall()
            time.sleep(4)
            cursor.execute("SELECT 1")
            cursor.fetchall()

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    server.ask("CREATE TABLE IF NOT EXISTS locked (n int) ENGINE=InnoDB")
    server.ask("INSERT INTO locked VALUES (1)")
    blocker = server.connect()
    blocker.cursor().execute("SELECT n FROM locked FOR UPDATE")
    for function in (wait_for_a_lock, hold, lambda: work(pool, "SELECT SLEEP(4)")):
        threads.append(threading.Thread(target=run, args=(function,), daemon=True))
        threads[-1].start()
    time.sleep(4)  # several limits
    blocker.rollback()
    blocker.close()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads) and errors == []


@pytest.mark.parametrize("can_ask", [True, False])
def test_commit_has_a_limit(make: Make, proxy: Proxy, can_ask: bool) -> None:
    pool = make(1)
    failed: list[BaseException] = []

    def commit() -> None:
        try:
            with pool.connection() as conn:
                conn.cursor().execute("INSERT INTO t VALUES (1)")
                proxy.drop(new=not can_ask)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=commit, daemon=True)
    thread.start()
    thread.join(60)
    proxy.heal()
    assert not thread.is_alive()
    assert isinstance(failed[0], CommitUnknown) and "stalled" in str(failed[0].__cause__)


def test_what_is_known_of_a_server(make: Make) -> None:
    with make(1).acquire() as conn:
        notes: Notes = notes_of(conn)
        here = notes.server
    assert here is not None and len(here) == 2
    notes.made_at = time.monotonic() - 100
    elsewhere = ("other", here[1])
    for row, server, uptime, stalled in (
        (("Query", 100), here, 500, None),
        (("Sleep", 100), here, 500, True),
        (("Sleep", 9), here, 500, None),  # the answer may be under way
        ((b"Sleep", None), here, 500, None),
        (("Query", 100), here, 50, True),  # it was restarted: the number is another session's
        ((), here, 500, True),
        ((), elsewhere, 500, False),
        (("Sleep", 100), elsewhere, 500, False),
        ((), None, 500, False),
    ):
        verdict = stalls.verdict_on(notes, server, uptime, row, 60.0)
        assert (None if verdict is None else verdict[0]) == stalled, (row, server, uptime)


def test_a_bad_limit_is_refused(make: Make) -> None:
    with pytest.raises((ValueError, TypeError), match="stall_timeout"):
        make(1, stall_timeout=-1)
