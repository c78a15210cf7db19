"""The database adapters against real servers: lent connections are clean, alive and limited in time."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

from pooling import CreateFailed, PoolSettings, PoolTimeout
from pooling.adapters.postgres import PostgresPool
from pooling.adapters.sqlite import SQLitePool
from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]
ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def run_forking(program: str) -> None:
    """Run a program that forks in a process without pytest's threads; return its output."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the child as well, which may be the one that hangs
        process.communicate()
        raise
    assert (process.returncode, output, errors) == (0, "child ok\nparent ok\n", "")


# -- SQLite ----------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SQLitePool]:
    pool = SQLitePool(tmp_path / "test.db", PoolSettings(min_size=0, max_size=4, acquire_timeout=30))
    with pool:
        pool.execute_query("CREATE TABLE t (n INTEGER PRIMARY KEY, parent INTEGER REFERENCES t)")
        yield pool


def rows(pool: SQLitePool | PostgresPool) -> list[int]:
    return [row[0] for row in pool.execute_query("SELECT n FROM t ORDER BY n")]


def test_sqlite_commits_or_rolls_back(db: SQLitePool) -> None:
    with db.connection() as conn:
        conn.execute("INSERT INTO t VALUES (1, NULL)")
    with pytest.raises(RuntimeError, match="mine"), db.connection() as conn:
        conn.execute("INSERT INTO t VALUES (2, NULL)")
        raise RuntimeError("mine")
    assert db.execute_query("INSERT INTO t VALUES (:n, NULL) RETURNING n", {"n": 3}) == [(3,)]
    assert rows(db) == [1, 3]
    with pytest.raises(sqlite3.IntegrityError):
        db.execute_query("INSERT INTO t VALUES (4, 99)")  # foreign keys are checked
    assert rows(db) == [1, 3]
    assert db.execute_query("PRAGMA journal_mode") == [("wal",)]
    assert db.stats()["in_use"] == 0


def test_sqlite_lends_clean_connections(tmp_path: Path) -> None:
    db = SQLitePool(tmp_path / "test.db", ONE, timeout=7.0, pragmas={"synchronous": "NORMAL"})
    with db:
        with db.acquire() as conn:
            conn.execute("CREATE TABLE t (n INTEGER)")
            conn.execute("INSERT INTO t VALUES (1)")  # without a commit
            conn.row_factory = sqlite3.Row
            conn.text_factory = bytes
            conn.commit()
            conn.execute("INSERT INTO t VALUES (2)")
        with db.acquire() as again:
            assert again is conn
            assert again.execute("SELECT * FROM t").fetchall() == [(1,)]
            again.isolation_level = None
            again.execute("PRAGMA foreign_keys=OFF")
            again.execute("PRAGMA synchronous=OFF")
            again.execute("PRAGMA busy_timeout=1")
        with db.acquire() as again:
            assert again is conn
            assert again.isolation_level == "IMMEDIATE"
            found = [again.execute(f"PRAGMA {name}").fetchone()[0] for name in
                     ("foreign_keys", "synchronous", "busy_timeout")]  # fmt: skip
            assert found == [1, 1, 7000]


def test_sqlite_replaces_a_connection_that_a_borrower_closed(tmp_path: Path) -> None:
    db = SQLitePool(tmp_path / "test.db", ONE)
    with db:
        with db.acquire() as conn:
            conn.close()
        assert db.execute_query("SELECT 1") == [(1,)]
        with pytest.raises(sqlite3.ProgrammingError), db.acquire() as conn:
            conn.close()
            conn.execute("SELECT 1")
        assert db.execute_query("SELECT 1") == [(1,)]


def test_sqlite_writers_wait_for_each_other(db: SQLitePool) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 25):
            with db.connection() as conn:
                conn.execute("INSERT INTO t VALUES (?, NULL)", (number,))

    threads = [in_thread(lambda first=first: write(first)) for first in range(0, 400, 25)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert rows(db) == list(range(400))


def test_sqlite_interrupts_a_long_query(db: SQLitePool) -> None:
    failed: list[BaseException] = []

    def count_for_ever() -> None:
        try:
            db.execute_query("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c")
        except sqlite3.OperationalError as error:
            failed.append(error)

    thread = in_thread(count_for_ever)
    wait_until(lambda: db.stats()["in_use"])
    while thread.is_alive():  # it may not have started yet
        db.close(timeout=0.05)
        thread.join(0.05)
    assert "interrupted" in str(failed[0])


def test_sqlite_final_errors_fail_at_once(tmp_path: Path) -> None:
    folder = SQLitePool(tmp_path / "missing" / "test.db", ONE)
    with pytest.raises(CreateFailed, match="unable to open database file"):
        folder.execute_query("SELECT 1")
    (tmp_path / "not.db").write_bytes(b"no database " * 1000)
    other = SQLitePool(tmp_path / "not.db", ONE)
    if sys.version_info >= (3, 11):  # earlier versions of sqlite3 do not report which error it was
        with pytest.raises(CreateFailed, match="file is not a database"):
            other.execute_query("SELECT 1")
    folder.close()
    other.close()


def test_sqlite_over_a_fork(tmp_path: Path) -> None:
    run_forking(f"""
import os
from pooling import PoolSettings, SQLitePool
db = SQLitePool({str(tmp_path / "test.db")!r}, PoolSettings(min_size=0, max_size=1))
db.execute_query("CREATE TABLE t (n, filler)")
with db.acquire() as held:
    held.execute("PRAGMA cache_size=1")  # so that most of the transaction is in the WAL already
    held.executemany("INSERT INTO t VALUES (?, zeroblob(2000))", [(n,) for n in range(500)])
    if os.fork() == 0:
        assert db.execute_query("SELECT count(*) FROM t") == [(0,)]
        print("child ok", flush=True)
        raise SystemExit
    assert os.wait()[1] == 0
    assert held.execute("SELECT count(*), sum(length(filler)) FROM t").fetchone() == (500, 1_000_000)
    held.commit()
assert db.execute_query("PRAGMA integrity_check") == [("ok",)]
assert db.execute_query("SELECT count(*) FROM t") == [(500,)]
print("parent ok")
""")


# -- PostgreSQL ------------------------------------------------------------------


@pytest.fixture
def pg(postgres: PostgresServer) -> Iterator[PostgresPool]:
    pool = PostgresPool(postgres.dsn, ONE)
    with pool:
        pool.execute_query("CREATE TABLE t (n INTEGER)")
        yield pool
    with postgres.connect() as conn:
        conn.execute("DROP TABLE t")


def backend(pool: PostgresPool) -> int:
    with pool.acquire() as conn:
        return conn.info.backend_pid


def test_postgres_commits_or_rolls_back(pg: PostgresPool) -> None:
    with pg.connection() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(RuntimeError, match="mine"), pg.connection() as conn:
        conn.execute("INSERT INTO t VALUES (2)")
        raise RuntimeError("mine")
    with pytest.raises(psycopg.errors.DivisionByZero):
        pg.execute_query("SELECT 1 / 0")
    assert pg.execute_query("INSERT INTO t VALUES (%s)", (3,)) == []
    assert pg.execute_query("SELECT 'a%'") == [("a%",)]
    assert rows(pg) == [1, 3]
    assert pg.metrics.snapshot().created == 1


def test_postgres_lends_clean_connections(pg: PostgresPool) -> None:
    with pg.acquire() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
        conn.row_factory = dict_row
    with pg.acquire() as again:
        assert again is conn
        assert again.execute("SELECT * FROM t").fetchall() == []
        again.rollback()
        again.autocommit = True
        again.prepare_threshold = 0
    with pg.acquire() as again:
        assert again is conn
        assert again.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert (again.autocommit, again.prepare_threshold) == (False, 5)


def test_postgres_closes_connections_that_cannot_be_cleaned(pg: PostgresPool) -> None:
    with pg.acquire() as conn:
        before = conn.info.backend_pid
        conn.pgconn.send_query(b"SELECT pg_sleep(600)")  # without waiting for its end
    assert backend(pg) != before
    assert conn.closed


def test_postgres_replaces_a_killed_connection_without_an_error(pg: PostgresPool, postgres: PostgresServer) -> None:
    before = backend(pg)
    with postgres.connect(autocommit=True) as conn:  # within a transaction it would never change
        conn.execute("SELECT pg_terminate_backend(%s)", (before,))
        wait_until(lambda: not conn.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (before,)).fetchall())
    assert backend(pg) != before  # although the server's process may not have disconnected yet


def test_postgres_a_notification_does_not_count_as_dead(pg: PostgresPool, postgres: PostgresServer) -> None:
    with pg.acquire() as conn:
        conn.execute("LISTEN news")
        conn.commit()
        before = conn.info.backend_pid
    with postgres.connect() as other:
        other.execute("NOTIFY news")
    adapter = PostgresPool(postgres.dsn, ONE).engine.adapter
    assert adapter.is_alive(conn) and backend(pg) == before


def test_postgres_checks_respect_their_time_limit(postgres: PostgresServer) -> None:
    adapter = PostgresPool(postgres.dsn, PoolSettings(reset_timeout=0.2)).engine.adapter
    conn = adapter.create()
    adapter.validate(conn, 30.0)
    conn.execute("SELECT 1")
    os.kill(conn.info.backend_pid, signal.SIGSTOP)  # the server is silent, the connection is open
    try:
        with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
            adapter.reset(conn)
    finally:
        os.kill(conn.info.backend_pid, signal.SIGCONT)
        adapter.close(conn)
    with pytest.raises(psycopg.OperationalError):
        adapter.validate(conn, 30.0)
    assert not adapter.is_alive(conn)
    adapter.close(conn)  # idempotent


def test_postgres_close_returns_when_the_server_has_closed(postgres: PostgresServer) -> None:
    adapter = PostgresPool(postgres.dsn, ONE).engine.adapter
    with postgres.connect(autocommit=True) as observer:
        for conn in [adapter.create() for _ in range(20)]:
            pid = conn.info.backend_pid
            adapter.close(conn)
            assert observer.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall() == []


def test_postgres_interrupts_a_blocked_holder(pg: PostgresPool) -> None:
    failed: list[BaseException] = []

    def sleep() -> None:
        try:
            pg.execute_query("SELECT pg_sleep(600)")
        except psycopg.OperationalError as error:
            failed.append(error)

    thread = in_thread(sleep)
    wait_until(lambda: pg.stats()["in_use"])
    while thread.is_alive():
        pg.close(timeout=0.1)
        thread.join(0.1)
    assert failed


def test_postgres_recognises_errors_that_break_a_connection(postgres: PostgresServer) -> None:
    adapter = PostgresPool(postgres.dsn, ONE).engine.adapter
    conn = adapter.create()
    assert not adapter.is_broken(conn, ValueError("the borrower's own"))
    assert not adapter.is_broken(conn, psycopg.errors.UniqueViolation())
    assert adapter.is_broken(conn, psycopg.errors.ReadOnlySqlTransaction())  # has become a standby
    adapter.close(conn)
    assert adapter.is_broken(conn, psycopg.OperationalError())


def test_postgres_configures_each_connection(postgres: PostgresServer) -> None:
    pool = PostgresPool(
        postgres.dsn, ONE, kwargs={"autocommit": False, "row_factory": dict_row},
        configure=lambda conn: conn.execute("SET statement_timeout = '7s'"),
    )  # fmt: skip
    with pool:
        with pool.acquire() as conn:
            conn.execute("SELECT 1")
        assert pool.execute_query("SHOW statement_timeout") == [{"statement_timeout": "7s"}]


def test_postgres_never_shows_a_password(private_postgres: PostgresServer) -> None:
    server = private_postgres
    with server.connect() as conn:
        conn.execute("CREATE ROLE app LOGIN PASSWORD 's3cret'")
    (server.data / "pg_hba.conf").write_text(
        "host all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n"
    )
    server.restart()
    dsn = server.dsn.replace("postgres@", "app:s3cret@")
    assert PostgresPool(dsn, ONE).execute_query("SELECT 1") == [(1,)]
    soon = PoolSettings(min_size=0, acquire_timeout=1.0)
    none = PostgresPool(dsn.replace(":s3cret", ""), soon)
    with pytest.raises(CreateFailed):  # at once, instead of a password prompt
        none.execute_query("SELECT 1")
    wrong = PostgresPool(dsn.replace("s3cret", "wr0ng"), soon)
    with pytest.raises((CreateFailed, PoolTimeout)) as caught:
        wrong.execute_query("SELECT 1")
    text = "".join(traceback.format_exception(caught.value)) + repr(wrong) + repr(vars(caught.value.__cause__))
    assert "wr0ng" not in text and 'user "app"' in text
    with pytest.raises(ValueError, match="conninfo is neither") as bad:
        PostgresPool(dsn.replace("://", "//"))
    assert "s3cret" not in "".join(traceback.format_exception(bad.value))


def test_postgres_over_a_fork(postgres: PostgresServer) -> None:
    run_forking(f"""
import os
from pooling import PoolSettings, PostgresPool
db = PostgresPool({postgres.dsn!r}, PoolSettings(min_size=0, max_size=2))
with db.acquire() as held, db.acquire() as idle:
    mine = [held.info.backend_pid, idle.info.backend_pid]
with db.acquire() as held:
    if os.fork() == 0:
        with db.acquire() as conn:
            assert conn.info.backend_pid not in mine
        idle.close()  # says nothing to the parent's server
        held.close()
        print("child ok", flush=True)
        raise SystemExit
    assert os.wait()[1] == 0
    assert held.execute("SELECT pg_backend_pid()").fetchone()[0] in mine
    assert db.execute_query("SELECT pg_backend_pid()")[0][0] in mine
print("parent ok")
""")
