"""The thin adapters against real servers: what is lent is clean, alive and bounded in time."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from psycopg.rows import dict_row

from pooling import CreateFailed, PoolSettings, PoolTimeout
from pooling.adapters.http import HTTPPool
from pooling.adapters.postgres import PostgresPool
from pooling.adapters.sqlite import SQLitePool
from pooling.demo.certificates import make_certificates
from pooling.demo.service import QuoteServer
from tests.servers import PostgresServer, requires

ROOT = Path(__file__).parents[2]
ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)
QUOTE = "/quotes/BALC"


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
    """Run a program that forks in a process without pytest's threads; it prints what it saw."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the child as well, which may be what hangs
        process.communicate()
        raise
    assert (process.returncode, output, errors) == (0, "child ok\nparent ok\n", "")


# -- HTTP ------------------------------------------------------------------------


@contextmanager
def serving(server: QuoteServer) -> Iterator[QuoteServer]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def market() -> Iterator[QuoteServer]:
    with serving(QuoteServer(delay=0.0, seed=1)) as server:
        yield server


@pytest.fixture
def secure_market(tmp_path: Path) -> Iterator[tuple[QuoteServer, str]]:
    """A server with TLS, and the file that has to be trusted."""
    made = make_certificates(tmp_path)
    requires("a maker of certificates", made, "pip install cryptography")
    assert made is not None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(made.certificate, made.key)
    with serving(QuoteServer(delay=0.0, seed=1, tls=tls)) as server:
        yield server, str(made.authority)


def test_requests_share_warm_sockets(market: QuoteServer) -> None:
    http = HTTPPool(base_url=market.url)
    with http:
        serials = [http.get(f"{QUOTE}?piece={piece}").json()["serial"] for piece in range(10)]
        assert http.request("GET", market.url + QUOTE).json()["serial"] == 11  # a whole URL as well
        assert http.get("/nothing").status_code == 404
    assert serials == list(range(1, 11))
    assert market.take_book()["accepted"] == 1


def test_every_method_is_sent_as_what_it_is(market: QuoteServer) -> None:
    http = HTTPPool(base_url=market.url + "/")
    with http:
        for name in ("post", "put", "patch", "delete", "options", "head"):
            response = getattr(http, name)(QUOTE)
            assert (response.request.method, response.status_code) == (name.upper(), 501)
        assert http.post(QUOTE, json={"a": 1}).request.body == b'{"a": 1}'
        assert http.put(QUOTE, data="text").request.body == "text"


def test_a_session_comes_back_as_good_as_new_with_its_sockets(market: QuoteServer) -> None:
    http = HTTPPool(ONE, headers={"X-From": "pool"})
    foreign = requests.adapters.HTTPAdapter()
    with http:
        with http.acquire() as session:
            clean = session_state(session)
            session.get(market.url + QUOTE)
            session.headers["X-Secret"] = "s3cret"
            session.cookies.set("id", "s3cret")
            session.auth = ("user", "s3cret")
            session.params = {"key": "s3cret"}
            session.proxies["http"] = "http://user:s3cret@proxy:1"
            session.hooks["response"].append(lambda *args, **kwargs: None)
            session.verify, session.cert, session.trust_env = False, "s3cret.pem", False
            session.mount("http://other", foreign)
            session.request = None  # type: ignore[method-assign,assignment]
            session.token = "s3cret"  # type: ignore[attr-defined]
        with http.acquire() as again:
            assert again is session
            assert session_state(again) == clean
            assert again.headers["X-From"] == "pool"
            again.get(market.url + QUOTE)
    assert market.take_book()["accepted"] == 1


def session_state(session: requests.Session) -> dict[str, Any]:
    state = dict(vars(session), cookies=session.cookies.get_dict(), headers=dict(session.headers))
    return {name: repr(value) if isinstance(value, dict) else value for name, value in state.items()}


def test_a_request_context_holds_its_session_to_the_end(market: QuoteServer) -> None:
    http = HTTPPool(ONE, base_url=market.url, name="api")
    with http:
        with http.request_context("GET", QUOTE, stream=True) as response:
            assert http.stats()["in_use"] == 1
            assert "test_a_request_context_holds_its_session_to_the_end" in str(http.holders()[0])
            with pytest.raises(PoolTimeout):
                http.acquire(timeout=0.0)
            assert b"serial" in next(response.iter_content(10_000))
        assert http.stats()["in_use"] == 0
        with pytest.raises(RuntimeError, match="mine"), http.request_context("GET", QUOTE, stream=True):
            raise RuntimeError("mine")
        assert http.stats()["in_use"] == 0
        assert http.get(QUOTE).ok


def test_the_time_limit_holds_without_being_asked_for() -> None:
    with serving(QuoteServer(delay=5.0, seed=1)) as slow:
        http = HTTPPool(ONE, base_url=slow.url, timeout=(5, 0.2))
        with http:
            with pytest.raises(requests.ReadTimeout):
                http.get(QUOTE)
            with http.acquire() as session, pytest.raises(requests.ReadTimeout):
                session.get(slow.url + QUOTE)


def test_the_pools_trust_beats_the_environment(
    secure_market: tuple[QuoteServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, authority = secure_market
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.utils.DEFAULT_CA_BUNDLE_PATH)
    http = HTTPPool(base_url=server.url, verify=authority)
    with http:
        assert http.get(QUOTE).ok
        with http.acquire() as session:
            assert session.get(server.url + QUOTE).ok
    stranger = HTTPPool(base_url=server.url)
    with stranger, pytest.raises(requests.exceptions.SSLError):
        stranger.get(QUOTE)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority)
    with HTTPPool() as plain, plain.acquire() as session:
        assert session.get(server.url + QUOTE).ok


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_socket_of_a_careless_request_serves_no_careful_one(secure_market: tuple[QuoteServer, str]) -> None:
    server, _ = secure_market
    http = HTTPPool(ONE, base_url=server.url)
    with http:
        assert http.get(QUOTE, verify=False).ok
        with pytest.raises(requests.exceptions.SSLError):
            http.get(QUOTE)
        assert http.get(QUOTE, verify=False).ok


def test_the_trusted_list_is_read_once_for_all(
    secure_market: tuple[QuoteServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, authority = secure_market
    read = []
    load = ssl.SSLContext.load_verify_locations

    def counting(self: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        read.append((args, kwargs))
        load(self, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", counting)
    http = HTTPPool(base_url=server.url, verify=authority)
    with http:
        barrier = threading.Barrier(5)

        def fetch() -> None:
            with http.acquire() as session:
                barrier.wait(30)
                session.get(server.url + QUOTE)

        for thread in [in_thread(fetch) for _ in range(5)]:
            thread.join()
    assert server.take_book()["accepted"] == 5
    assert read == [((), {"cafile": authority})]


def test_a_list_that_is_not_there_is_named(market: QuoteServer) -> None:
    http = HTTPPool(verify="/no/such/bundle.pem")
    with http, pytest.raises(OSError, match=r"/no/such/bundle\.pem"):
        http.get(market.url.replace("http:", "https:"))


class CuttingServer(QuoteServer):
    """A server that can hang up on everybody."""

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connection = connection
        return connection, address


def test_a_socket_that_the_server_closed_costs_no_error() -> None:
    with serving(CuttingServer(delay=0.0, seed=1)) as server:
        http = HTTPPool(ONE, base_url=server.url)
        with http:
            assert http.get(QUOTE).ok
            server.connection.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
            assert http.get(QUOTE).ok
        assert server.take_book()["accepted"] == 2


def test_http_over_a_fork_while_urllib3_is_locked(market: QuoteServer) -> None:
    run_forking(f"""
import os, threading
from pooling import HTTPPool, PoolSettings
http = HTTPPool(PoolSettings(min_size=0, max_size=1), base_url={market.url!r})
http.get("{QUOTE}")
with http.acquire() as session:
    manager = session.get_adapter("http://").poolmanager
(pool,) = manager.pools._container.values()
(connection,) = [connection for connection in pool.pool.queue if connection]
locked = threading.Event()
def hold():
    with manager.pools.lock, pool.pool.mutex:
        locked.set()
        done.wait()
done = threading.Event()
thread = threading.Thread(target=hold)
thread.start()
locked.wait()
if os.fork() == 0:
    http.get("{QUOTE}")
    assert connection.sock.fileno() == -1
    print("child ok", flush=True)
    os._exit(0)
assert os.wait()[1] == 0
done.set()
thread.join()
http.get("{QUOTE}")
print("parent ok")
""")
    book = market.take_book()
    assert (len(book["served"]), book["accepted"]) == (3, 2)  # the parent kept its socket


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
            conn.execute("INSERT INTO t VALUES (1)")  # and no commit
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


def test_sqlite_writers_wait_for_their_turn(db: SQLitePool) -> None:
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
    while thread.is_alive():  # it may not have begun
        db.close(timeout=0.05)
        thread.join(0.05)
    assert "interrupted" in str(failed[0])


def test_sqlite_says_at_once_what_can_never_work(tmp_path: Path) -> None:
    folder = SQLitePool(tmp_path / "missing" / "test.db", ONE)
    with pytest.raises(CreateFailed, match="unable to open database file"):
        folder.execute_query("SELECT 1")
    (tmp_path / "not.db").write_bytes(b"no database " * 1000)
    other = SQLitePool(tmp_path / "not.db", ONE)
    if sys.version_info >= (3, 11):  # before, sqlite3 did not tell which error it was
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


def test_postgres_closes_what_cannot_be_cleaned(pg: PostgresPool) -> None:
    with pg.acquire() as conn:
        before = conn.info.backend_pid
        conn.pgconn.send_query(b"SELECT pg_sleep(600)")  # and nobody waits for its end
    assert backend(pg) != before
    assert conn.closed


def test_postgres_replaces_a_killed_connection_unseen(pg: PostgresPool, postgres: PostgresServer) -> None:
    before = backend(pg)
    with postgres.connect(autocommit=True) as conn:  # a transaction would always see the same
        conn.execute("SELECT pg_terminate_backend(%s)", (before,))
        wait_until(lambda: not conn.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (before,)).fetchall())
    assert backend(pg) != before  # though the server's process may not have hung up yet


def test_postgres_is_not_dead_because_of_a_notify(pg: PostgresPool, postgres: PostgresServer) -> None:
    with pg.acquire() as conn:
        conn.execute("LISTEN news")
        conn.commit()
        before = conn.info.backend_pid
    with postgres.connect() as other:
        other.execute("NOTIFY news")
    adapter = PostgresPool(postgres.dsn, ONE)._adapter
    assert adapter.is_alive(conn) and backend(pg) == before


def test_postgres_checks_within_their_time(postgres: PostgresServer) -> None:
    adapter = PostgresPool(postgres.dsn, PoolSettings(reset_timeout=0.2))._adapter
    conn = adapter.create()
    adapter.validate(conn, 30.0)
    conn.execute("SELECT 1")
    os.kill(conn.info.backend_pid, signal.SIGSTOP)  # the server is silent, the connection stands
    try:
        with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
            adapter.reset(conn)
    finally:
        os.kill(conn.info.backend_pid, signal.SIGCONT)
        adapter.close(conn)
    with pytest.raises(psycopg.OperationalError):
        adapter.validate(conn, 30.0)
    assert not adapter.is_alive(conn)
    adapter.close(conn)  # twice is fine


def test_postgres_close_returns_when_the_server_has_closed(postgres: PostgresServer) -> None:
    adapter = PostgresPool(postgres.dsn, ONE)._adapter
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


def test_postgres_tells_what_broke_a_connection(postgres: PostgresServer) -> None:
    adapter = PostgresPool(postgres.dsn, ONE)._adapter
    conn = adapter.create()
    assert not adapter.is_broken(conn, ValueError("the borrower's own"))
    assert not adapter.is_broken(conn, psycopg.errors.UniqueViolation())
    assert adapter.is_broken(conn, psycopg.errors.ReadOnlySqlTransaction())  # a standby by now
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
    with pytest.raises(CreateFailed):  # at once: nobody will type it in
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
