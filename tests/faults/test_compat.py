"""What a server and a network do to an application that came from psycopg_pool and changed one import.

No `check`, no setting of ours: psycopg_pool's own arguments and defaults.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pooling.compat.psycopg_pool import ConnectionPool, NullConnectionPool, PoolTimeout
from tests.integration.tools import wait_until
from tests.proxy import Proxy
from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0


def opened(dsn: str, **options: Any) -> ConnectionPool[Any]:
    """Return an open pool of four with all its connections idle."""
    pool: ConnectionPool[Any] = ConnectionPool(dsn, open=True, **options)
    pool.wait(PATIENCE)
    return pool


def elsewhere(server: PostgresServer, database: str) -> str:
    return f"{server.dsn.rpartition('/')[0]}/{database}"


def ask(pool: ConnectionPool[Any], number: int) -> int:
    with pool.connection(PATIENCE) as conn:
        row = conn.execute("SELECT %s::int", [number]).fetchone()
        assert row == (number,), "an answer to another query"
        return conn.info.backend_pid


def backends(pool: ConnectionPool[Any]) -> list[int]:
    conns = [pool.getconn(PATIENCE) for _ in range(pool.max_size)]
    pids = [conn.info.backend_pid for conn in conns]
    for conn in conns:
        pool.putconn(conn)
    return pids


def terminate(server: PostgresServer, pids: list[int]) -> None:
    with server.connect(autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
        find = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)"
        wait_until(lambda: conn.execute(find, [pids]).rowcount == 0)


@pytest.mark.parametrize("number", [1, 4])
def test_backends_terminated_while_idle(postgres: PostgresServer, number: int) -> None:
    with opened(postgres.dsn) as pool:
        pids = backends(pool)
        terminate(postgres, pids[:number])
        assert not set(backends(pool)) & set(pids[:number])
        assert [ask(pool, n) for n in range(8)]
        stats = pool.get_stats()
        assert (stats["requests_errors"], stats["connections_errors"], stats["returns_bad"]) == (0, 0, 0)


def test_backend_terminated_while_lent(postgres: PostgresServer) -> None:
    with opened(postgres.dsn) as pool:
        with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
            terminate(postgres, [conn.info.backend_pid])
            conn.execute("SELECT 1")
        assert conn.closed
        assert [ask(pool, n) for n in range(8)]
        wait_until(lambda: pool.get_stats()["pool_available"] == 4)
        assert pool.get_stats()["returns_bad"] == 1


def test_server_killed_and_restarted_while_idle(private_postgres: PostgresServer) -> None:
    with opened(private_postgres.dsn) as pool:
        private_postgres.kill()
        private_postgres.start()
        assert [ask(pool, n) for n in range(12)]
        assert pool.get_stats()["requests_errors"] == 0


def test_server_killed_and_restarted_under_load(private_postgres: PostgresServer) -> None:
    """One error at most for each connection that was in use at the kill, no wrong answer, no row of a lost block."""
    with private_postgres.connect() as conn:
        conn.execute("CREATE TABLE done (n int)")
    stop, back = threading.Event(), threading.Event()
    results: Counter[str] = Counter()
    numbers = itertools.count()
    committed: list[int] = []

    def work() -> None:
        while not stop.is_set():
            number, late = next(numbers), back.is_set()
            try:
                with pool.connection(PATIENCE) as conn:
                    conn.execute("INSERT INTO done VALUES (%s)", [number])
                    assert conn.execute("SELECT %s::int", [number]).fetchone() == (number,)
            except psycopg.OperationalError:
                results["late" if late else "error"] += 1
            else:
                committed.append(number)
                results["good after" if late else "good"] += 1

    with opened(private_postgres.dsn) as pool:
        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        wait_until(lambda: results["good"] > 50)
        killed = time.monotonic()
        private_postgres.kill()
        wait_until(lambda: pool.get_stats()["connections_errors"] > 0)
        time.sleep(1.0)  # the outage that is to be measured
        asked, away = pool.get_stats()["connections_errors"], time.monotonic() - killed
        private_postgres.start()
        back.set()
        wait_until(lambda: results["good after"] > 50)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert results["error"] <= 4
        assert results["late"] == 0
        assert asked <= 2 + 8 * away  # one, then another at once, then 8 a second, whatever the jitter
        with pool.connection() as conn:
            rows = {n for (n,) in conn.execute("SELECT n FROM done")}
        assert rows >= set(committed)
        assert len(rows - set(committed)) <= results["error"]  # committed as the server died, without an answer
        assert pool.get_stats()["pool_size"] <= 4


def test_server_away_for_a_while(private_postgres: PostgresServer) -> None:
    """Borrowers that arrive meanwhile wait and are served soon after; psycopg_pool retries after a second."""
    with opened(private_postgres.dsn) as pool:
        private_postgres.stop()
        answers: list[int] = []
        threads = [threading.Thread(target=lambda n=n: answers.append(ask(pool, n))) for n in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 2)
        assert answers == []
        private_postgres.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(answers) == 6


def test_server_not_started_yet(private_postgres: PostgresServer) -> None:
    private_postgres.stop()
    told: list[object] = []
    pool: ConnectionPool[Any] = ConnectionPool(
        private_postgres.dsn, open=True, reconnect_timeout=0.2, reconnect_failed=told.append
    )
    with pool:
        wait_until(lambda: told)
        private_postgres.start()
        pool.wait(PATIENCE)  # it has not given up
        assert ask(pool, 1)


def test_unknown_database_is_reported_at_once(postgres: PostgresServer) -> None:
    with ConnectionPool(elsewhere(postgres, "nowhere"), open=True, timeout=PATIENCE) as pool:
        began = time.monotonic()
        with pytest.raises(PoolTimeout, match="nowhere") as caught:
            pool.getconn()
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        if sys.platform == "linux":  # where libpq tells why
            assert time.monotonic() - began < PATIENCE / 2


def test_wait_waits_for_a_database_that_is_being_created(private_postgres: PostgresServer) -> None:
    """`wait` is called while an application and its database start together."""
    with ConnectionPool(elsewhere(private_postgres, "soon"), open=True, min_size=1) as pool:
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 1)
        with private_postgres.connect(autocommit=True) as conn:
            conn.execute("CREATE DATABASE soon")
        pool.wait(PATIENCE)
        assert ask(pool, 1)


def test_name_that_does_not_resolve() -> None:
    with ConnectionPool("host=no.such.host.invalid dbname=x", open=True, min_size=1, timeout=0.5) as pool:
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn()
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)


def test_server_is_full(private_postgres: PostgresServer) -> None:
    """The pool works with the connections that the server allows."""
    private_postgres.configure(max_connections=6, superuser_reserved_connections=0, max_wal_senders=0)
    private_postgres.restart()
    with ConnectionPool(private_postgres.dsn, open=True, min_size=1, max_size=20) as pool:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda n=n: answers.append(ask(pool, n))) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(answers) == 20
        assert pool.get_stats()["requests_errors"] == 0


def test_network_stalls_for_a_while(postgres: PostgresServer) -> None:
    with Proxy(postgres.port) as proxy, opened(postgres.dsn.replace(str(postgres.port), str(proxy.port))) as pool:
        answers: list[int] = []
        with proxy.held():
            threads = [threading.Thread(target=lambda n=n: answers.append(ask(pool, n))) for n in range(8)]
            for thread in threads:
                thread.start()
            time.sleep(1)
            assert answers == []
        for thread in threads:
            thread.join(PATIENCE)
        assert len(answers) == 8
        assert proxy.most_open <= 4


def test_connections_cut(postgres: PostgresServer) -> None:
    with Proxy(postgres.port) as proxy, opened(postgres.dsn.replace(str(postgres.port), str(proxy.port))) as pool:
        assert proxy.cut() == 4
        assert [ask(pool, n) for n in range(8)]
        assert pool.get_stats()["requests_errors"] == 0


class Struck(BaseException):
    """Raised by a signal handler, like SystemExit in a worker that took too long."""


@pytest.fixture
def strike() -> Iterator[Callable[[], None]]:
    """Interrupt the main thread."""

    def handler(number: int, frame: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
def test_interrupted_in_the_block_and_in_the_wait(
    postgres: PostgresServer, kind: type[ConnectionPool[Any]], strike: Callable[[], None]
) -> None:
    sizes = {"min_size": 1} if kind is ConnectionPool else {"max_size": 1}
    with kind(postgres.dsn, open=True, **sizes) as pool:  # type: ignore[arg-type]
        for _ in range(3):
            with pytest.raises(Struck), pool.connection(PATIENCE) as conn:
                conn.execute("SELECT 1")
                raise Struck
        conn = pool.getconn(PATIENCE)

        def when_it_waits() -> None:
            wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
            strike()

        thread = threading.Thread(target=when_it_waits)
        thread.start()
        with pytest.raises(Struck):
            pool.getconn(PATIENCE)
        thread.join(PATIENCE)
        pool.putconn(conn)
        assert ask(pool, 1)  # it was not handed to a waiter that had left


FORKING = """
import os, sys
from pooling.compat.psycopg_pool import ConnectionPool

pool = ConnectionPool(sys.argv[1], open=True)
pool.wait(30)
out = pool.getconn()
mine = out.info.backend_pid

def ask(number):
    for n in range(number, number + 50):
        with pool.connection(30) as conn:
            assert conn.execute("SELECT %s::int", [n]).fetchone() == (n,)

ask(0)
pool.pop_stats()
child = os.fork()
if child == 0:
    ask(1000)
    assert pool.get_stats()["requests_num"] == 50, pool.get_stats()
    pool.putconn(out)  # the parent's: dropped without a word
    print("child ok", flush=True)
    sys.exit()
ask(2000)
assert os.waitpid(child, 0)[1] == 0
assert out.execute("SELECT pg_backend_pid()").fetchone() == (mine,)
out.rollback()
pool.putconn(out)
ask(3000)
print("parent ok", flush=True)
"""


def test_fork(postgres: PostgresServer) -> None:
    """Parent and child query at once; each gets its own answers, and both end by themselves."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, postgres.dsn],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "child ok\nparent ok\n", "")
