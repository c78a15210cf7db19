"""PostgresPool in front of a real PgBouncer: both modes, its restarts, its limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from pooling import PoolSettings, PoolTimeout, PostgresPool
from tests.integration.tools import wait_until
from tests.pgbouncer import PgBouncer, bouncers
from tests.servers import PostgresServer

PATIENCE = 30.0
SETTINGS = PoolSettings(min_size=0, max_size=4, acquire_timeout=PATIENCE)
FOLLOWS = (1, 21)  # the first PgBouncer that can track prepared statements
# The settings of docs/howto/pgbouncer.rst for transaction mode.
TRANSACTION_MODE = {"session": "trust", "kwargs": {"prepare_threshold": None}}


@pytest.fixture
def by_session(postgres: PostgresServer) -> Iterator[PgBouncer]:
    yield from bouncers(postgres, pool_mode="session", default_pool_size=4)


@pytest.fixture
def by_transaction(postgres: PostgresServer) -> Iterator[PgBouncer]:
    yield from bouncers(postgres, pool_mode="transaction", default_pool_size=2)


@pytest.fixture(params=["session", "transaction"])
def bouncer(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[PgBouncer]:
    yield from bouncers(postgres, pool_mode=request.param, default_pool_size=4)


def test_work_in_transaction_mode(by_transaction: PgBouncer, postgres: PostgresServer) -> None:
    """More connections than sessions: each transaction is still complete."""
    with postgres.connect() as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS bounced (n int)")
        conn.execute("TRUNCATE bounced")
    sessions = set()

    def work(number: int) -> None:
        for _ in range(25):
            with db.connection() as conn:
                conn.execute("SET LOCAL application_name TO 'mine'")
                conn.execute("INSERT INTO bounced VALUES (%s)", [number])
                row = conn.execute("SELECT pg_backend_pid(), current_setting('application_name')").fetchone()
                assert row is not None
                assert row[1] == "mine"
                sessions.add(row[0])

    settings = SETTINGS.replace(max_size=8)
    with PostgresPool(by_transaction.dsn, settings, **TRANSACTION_MODE) as db, ThreadPoolExecutor(8) as threads:  # type: ignore[arg-type]
        list(threads.map(work, range(8)))
        assert db.execute_query("SELECT n, count(*) FROM bounced GROUP BY n ORDER BY n") == [(n, 25) for n in range(8)]
    assert 1 <= len(sessions) <= 2


def use_a_statement_on_two_sessions(db: PostgresPool) -> None:
    """Prepare a statement on one session, and execute it again on another one."""
    query = "SELECT %s::int"
    with ExitStack() as stack:
        one = stack.enter_context(db.acquire())
        other = stack.enter_context(db.acquire())
        for _ in range(7):
            one.execute(query, [1])
            one.commit()
        other.execute("SELECT 1")  # occupies the session in which they were prepared
        assert one.execute(query, [1]).fetchone() == (1,)
        one.commit()


def test_a_newer_pgbouncer_tracks_prepared_statements(postgres: PostgresServer) -> None:
    for bouncer in bouncers(postgres, pool_mode="transaction", default_pool_size=2):
        if bouncer.version < FOLLOWS:
            pytest.skip(f"PgBouncer {'.'.join(map(str, bouncer.version))} has no max_prepared_statements; 1.21 has")
        bouncer.configure(max_prepared_statements=100)
        with PostgresPool(bouncer.dsn, SETTINGS, session="trust") as db:
            use_a_statement_on_two_sessions(db)
            assert not any("prepared" in finding.what for finding in db.advise().findings)


def test_prepared_statements_in_transaction_mode(by_transaction: PgBouncer) -> None:
    """They exist only in the session that prepared them, unless PgBouncer (1.21) tracks them."""
    with PostgresPool(by_transaction.dsn, SETTINGS, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]
        use_a_statement_on_two_sessions(db)
    if by_transaction.version < FOLLOWS:
        with PostgresPool(by_transaction.dsn, SETTINGS, session="trust") as db:
            with pytest.raises(psycopg.errors.InvalidSqlStatementName):
                use_a_statement_on_two_sessions(db)
            assert any(finding.level == "breaks" and "prepared" in finding.what for finding in db.advise().findings)


def test_prepared_statements_in_session_mode(by_session: PgBouncer) -> None:
    with PostgresPool(by_session.dsn, SETTINGS) as db:
        for number in range(20):
            with db.connection() as conn:
                assert conn.execute("SELECT %s::int", [number], prepare=True).fetchone() == (number,)


def test_session_state_in_session_mode(by_session: PgBouncer) -> None:
    settings = SETTINGS.replace(max_size=1)
    with PostgresPool(by_session.dsn, settings) as db:
        with db.connection() as conn:
            conn.execute("SET statement_timeout TO '77s'")
            conn.execute("SELECT pg_advisory_lock(7)")
            conn.execute("CREATE TEMP TABLE mine (n int)")
        with db.connection() as conn:  # the same session, cleaned
            assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)
            assert conn.execute("SELECT to_regclass('mine')").fetchone() == (None,)
            assert conn.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").fetchone() is None


def test_server_reset_query_in_session_mode(by_session: PgBouncer) -> None:
    """With "trust" a session is reset only when its client disconnects, by PgBouncer's DISCARD ALL."""
    by_session.configure(default_pool_size=1)
    settings = SETTINGS.replace(max_size=1)
    with PostgresPool(by_session.dsn, settings, session="trust") as db:
        with db.connection() as conn:
            conn.execute("SET statement_timeout TO '77s'")
            session = conn.execute("SELECT pg_backend_pid()").fetchone()
        with db.connection() as conn:
            assert conn.execute("SHOW statement_timeout").fetchone() == ("77s",)
        db.drain()
        with db.connection() as conn:
            assert conn.execute("SELECT pg_backend_pid()").fetchone() == session
            assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_cleaning_in_transaction_mode_is_harmless(by_transaction: PgBouncer) -> None:
    with PostgresPool(by_transaction.dsn, SETTINGS, kwargs={"prepare_threshold": None}) as db:
        for _ in range(3):
            with db.connection() as conn:
                conn.execute("SELECT 1")
        assert db.metrics.snapshot().errors == {}


def test_reload(bouncer: PgBouncer) -> None:
    with PostgresPool(bouncer.dsn, SETTINGS, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]
        for size in (5, 6, 7):
            assert db.execute_query("SELECT 1") == [(1,)]
            bouncer.configure(default_pool_size=size)
        assert db.execute_query("SELECT 1") == [(1,)]
        assert db.metrics.snapshot().created == 1


def test_pause_and_resume(by_transaction: PgBouncer) -> None:
    """Requests wait meanwhile without an error; this is how a server is replaced."""
    with PostgresPool(by_transaction.dsn, SETTINGS, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]
        db.execute_query("SELECT 1")
        by_transaction.admin("PAUSE")
        results: list[object] = []
        threads = [
            threading.Thread(target=lambda: results.append(db.execute_query("SELECT 1", timeout=PATIENCE)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: any(row["cl_waiting"] not in ("0", None) for row in by_transaction.admin("SHOW POOLS")))
        assert results == []
        by_transaction.admin("RESUME")
        for thread in threads:
            thread.join(PATIENCE)
        assert results == [[(1,)]] * 3


def test_pgbouncer_killed_and_restarted(bouncer: PgBouncer) -> None:
    """Idle connections are replaced without an error (P6)."""
    with PostgresPool(bouncer.dsn, SETTINGS, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(db.acquire()).execute("SELECT 1")
        bouncer.kill()
        bouncer.start()
        for _ in range(6):
            assert db.execute_query("SELECT 1") == [(1,)]
        assert db.metrics.snapshot().timeouts == 0


def test_pgbouncer_down_for_a_while(bouncer: PgBouncer) -> None:
    """Requests wait while it is down, and are served when it is back (P7)."""
    with PostgresPool(bouncer.dsn, SETTINGS, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]
        db.execute_query("SELECT 1")
        bouncer.kill()
        results: list[object] = []
        thread = threading.Thread(target=lambda: results.append(db.execute_query("SELECT 1", timeout=PATIENCE)))
        thread.start()
        wait_until(lambda: db.stats()["down"])
        bouncer.start()
        thread.join(PATIENCE)
        assert results == [[(1,)]]


def test_server_restarts_behind_pgbouncer(private_postgres: PostgresServer) -> None:
    for bouncer in bouncers(private_postgres, pool_mode="transaction"):
        with PostgresPool(bouncer.dsn, SETTINGS, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]
            db.execute_query("SELECT 1")
            private_postgres.restart()
            db.run(lambda conn: conn.execute("SELECT 1"))  # the first may use the session that is gone
            assert db.execute_query("SELECT 1") == [(1,)]


def test_max_client_conn_is_reached(by_transaction: PgBouncer) -> None:
    """The pool works with the connections it has, and reports the problem."""
    by_transaction.configure(max_client_conn=3, default_pool_size=4)
    with PostgresPool(by_transaction.dsn, SETTINGS, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(db.acquire()).execute("SELECT 1")
            with pytest.raises(PoolTimeout) as caught:
                db.acquire(timeout=0.5)
            assert "max_client_conn" in str(caught.value) or "no more connections" in str(caught.value)

        def work(number: int) -> object:
            return db.execute_query("SELECT 1", timeout=PATIENCE)

        with ThreadPoolExecutor(6) as threads:
            assert list(threads.map(work, range(60))) == [[(1,)]] * 60
        assert db.stats()["size"] <= 4


def test_options_are_refused_unless_ignored(by_transaction: PgBouncer) -> None:
    settings = SETTINGS.replace(acquire_timeout=0.5)
    with (
        PostgresPool(by_transaction.dsn, settings, command_timeout=5, **TRANSACTION_MODE) as db,  # type: ignore[arg-type]
        pytest.raises(PoolTimeout, match="unsupported startup parameter: options"),
    ):
        db.acquire()
    by_transaction.configure(ignore_startup_parameters="extra_float_digits,options")
    with PostgresPool(by_transaction.dsn, SETTINGS, command_timeout=5, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]
        assert db.execute_query("SELECT 1") == [(1,)]


def test_a_long_query_is_not_a_stall(bouncer: PgBouncer) -> None:
    """PgBouncer has its own process ids, which the server does not know, so no holder is checked or interrupted."""
    done = []
    with PostgresPool(bouncer.dsn, SETTINGS, stall_timeout=0.3, **TRANSACTION_MODE) as db:  # type: ignore[arg-type]

        def work() -> None:
            done.append(db.execute_query("SELECT pg_sleep(2)"))
            with db.connection() as conn:
                conn.execute("SELECT pg_sleep(2)")
            done.append(True)

        with ThreadPoolExecutor(2) as threads:
            for result in [threads.submit(work) for _ in range(2)]:
                result.result()
        assert len(done) == 4
        assert db.metrics.snapshot().created <= 2
