"""A unit of work that was rolled back is never reported as done: every method that commits raises an error."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus

import pooling
from pooling import PoolSettings, PostgresPool, SQLitePool, TransactionRolledBack
from pooling.compat.psycopg_pool import ConnectionPool
from tests.servers import PostgresServer

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)


@pytest.fixture(params=["clean", "trust"])
def db(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[PostgresPool]:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS work; CREATE TABLE work (n integer PRIMARY KEY)")
    with PostgresPool(postgres.dsn, ONE, session=request.param, kwargs={"cursor_factory": Lenient}) as pool:
        yield pool


def swallowing(conn: Any, statement: Any = "INSERT INTO work VALUES (1 / 0)", params: Any = None) -> None:
    """A unit of work whose second statement fails, and that continues as if it had not."""
    conn.execute("INSERT INTO work VALUES (1)")
    with contextlib.suppress(psycopg.Error):
        conn.execute(statement, params)
    with contextlib.suppress(psycopg.errors.InFailedSqlTransaction):
        conn.execute("INSERT INTO work VALUES (2)")


def by_connection(db: PostgresPool) -> None:
    with db.connection() as conn:
        swallowing(conn)


def by_transaction(db: PostgresPool) -> None:
    with db.transaction() as conn:
        swallowing(conn)


def by_run(db: PostgresPool) -> None:
    db.run(swallowing)


class Lenient(psycopg.Cursor[Any]):
    """Logs errors itself, as some user cursors do."""

    def executemany(self, *args: Any, **options: Any) -> None:
        self.connection.execute("INSERT INTO work VALUES (1)")
        with contextlib.suppress(psycopg.Error):
            super().executemany(*args, **options)


def by_execute_many(db: PostgresPool) -> None:
    db.execute_many("INSERT INTO work VALUES (%s / 0)", [(1,), (2,)])


VERBS = [by_connection, by_transaction, by_run, by_execute_many]


@pytest.mark.parametrize("verb", VERBS)
def test_every_method_reports_the_rollback(db: PostgresPool, verb: Callable[[PostgresPool], None]) -> None:
    with pytest.raises(TransactionRolledBack) as caught:
        verb(db)
    assert isinstance(caught.value, pooling.PoolError) and isinstance(caught.value, psycopg.Error)
    assert caught.value.sqlstate == "25P02"
    assert "22012" in str(caught.value)
    if verb is not by_execute_many:  # uses a pipeline, where psycopg does not report which one failed
        assert "INSERT INTO work VALUES (? / ?)" in str(caught.value)
    assert db.execute_query("SELECT * FROM work") == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_connection_is_returned_clean(db: PostgresPool, verb: Callable[[PostgresPool], None]) -> None:
    with db.acquire() as conn:
        before = conn.info.backend_pid
    with pytest.raises(TransactionRolledBack):
        verb(db)
    with db.acquire() as conn:
        assert conn.info.backend_pid == before
        assert conn.info.transaction_status == TransactionStatus.IDLE
    assert db.metrics.snapshot().closed == {}


def test_run_does_not_run_it_again(db: PostgresPool) -> None:
    runs = []

    def work(conn: Any) -> None:
        runs.append(1)
        with contextlib.suppress(psycopg.Error):
            conn.execute("DO $$ BEGIN RAISE serialization_failure; END $$")  # an error that `run` retries

    with pytest.raises(TransactionRolledBack, match="40001"):
        db.run(work, retries=5)
    assert runs == [1]


def test_no_parameter_or_literal_is_shown(db: PostgresPool) -> None:
    statements: list[tuple[Any, Any]] = [
        ("SELECT %s::text::int", ("s3cret",)),
        (sql.SQL("SELECT {}::text::int").format("s3cret"), None),
        (b"SELECT 's3cret'::text::int", None),
    ]
    for statement, params in statements:
        with pytest.raises(TransactionRolledBack) as caught, db.connection() as conn:
            swallowing(conn, statement, params)
        assert "s3cret" not in str(caught.value) and "::text::int" in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_the_first_failed_statement_is_named(db: PostgresPool) -> None:
    with pytest.raises(TransactionRolledBack, match="no_such_table"), db.connection() as conn:
        with contextlib.suppress(psycopg.Error), conn.transaction():
            conn.execute("SELECT 1 / 0")  # rolled back with its savepoint
        swallowing(conn, "SELECT 'ä' FROM no_such_table")


@pytest.mark.parametrize("way", ["stream", "executemany", "copy", "server side", "raw", "pipeline"])
def test_all_kinds_of_failed_statements(db: PostgresPool, way: str) -> None:
    def fail(conn: Any) -> None:
        cursor = conn.cursor()
        if way == "stream":
            list(cursor.stream("SELECT 1 / (n - 1) FROM generate_series(1, 3) AS n"))
        elif way == "executemany":
            cursor.executemany("INSERT INTO work VALUES (%s)", [(5,), (5,)])
        elif way == "copy":
            with cursor.copy("COPY work FROM STDIN") as copy:
                copy.write(b"no number\n")
        elif way == "server side":
            with conn.cursor("mine") as server_side:
                server_side.execute("SELECT no_such_column")
        elif way == "raw":
            assert conn.pgconn.exec_(b"SELECT 1 / 0").status == psycopg.pq.ExecStatus.FATAL_ERROR
        else:
            with conn.pipeline():
                conn.execute("SELECT 1 / 0")

    with pytest.raises(TransactionRolledBack, match="rolled back"), db.connection() as conn:
        conn.execute("INSERT INTO work VALUES (1)")
        with contextlib.suppress(psycopg.Error):
            fail(conn)
    assert db.execute_query("SELECT * FROM work") == []


def test_an_error_that_leaves_the_block_is_passed_on(db: PostgresPool) -> None:
    for block in (db.connection, db.transaction):
        with pytest.raises(psycopg.errors.DivisionByZero), block() as conn:
            conn.execute("SELECT 1 / 0")
        with pytest.raises(KeyError), block() as conn:
            swallowing(conn)
            raise KeyError


def test_an_intended_rollback_is_not_an_error(db: PostgresPool) -> None:
    with db.connection() as conn:
        swallowing(conn)
        conn.rollback()
        conn.execute("INSERT INTO work VALUES (3)")
    with db.transaction() as conn:
        conn.execute("INSERT INTO work VALUES (4)")
        with contextlib.suppress(psycopg.Error), conn.transaction():
            conn.execute("SELECT 1 / 0")
    with db.transaction() as conn:
        swallowing(conn)
        raise psycopg.Rollback
    assert db.execute_query("SELECT n FROM work ORDER BY n") == [(3,), (4,)]


def test_a_statement_of_a_previous_borrower_is_not_reported(db: PostgresPool) -> None:
    with db.connection() as conn, contextlib.suppress(psycopg.Error), conn.transaction():
        conn.execute("SELECT 1 / 0 AS mine")
    with pytest.raises(TransactionRolledBack) as caught, db.connection() as conn:
        conn.execute("SELECT 1")
        conn.pgconn.exec_(b"SELECT 1 / 0 AS yours")
    assert "mine" not in str(caught.value)


def test_configure_that_swallows_an_error_has_not_configured(postgres: PostgresServer) -> None:
    def configure(conn: Any) -> None:
        conn.execute("SET application_name = 'configured'")
        with contextlib.suppress(psycopg.Error):
            conn.execute("SET no_such_parameter = 1")

    with contextlib.closing(PostgresPool(postgres.dsn, ONE, configure=configure)) as db:
        with pytest.raises(pooling.PoolError) as caught:
            db.acquire(timeout=1)
        assert isinstance(caught.value.__cause__, TransactionRolledBack)


def test_it_can_be_pickled(db: PostgresPool) -> None:
    with pytest.raises(TransactionRolledBack) as caught:
        by_connection(db)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert type(copied) is type(caught.value) and str(copied) == str(caught.value)


def test_the_drop_in_behaves_like_psycopg(postgres: PostgresServer) -> None:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS work; CREATE TABLE work (n integer PRIMARY KEY)")
    with ConnectionPool(postgres.dsn, min_size=1, open=True) as pool, pool.connection() as conn:
        swallowing(conn)  # without an error


# -- SQLite ------------------------------------------------------------------------


@pytest.fixture(params=[{}, {"readers": 2}], ids=["one pool", "readers"])
def lite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SQLitePool]:
    with SQLitePool(tmp_path / "app.db", statement_timeout=0.2, **request.param) as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TABLE work (n INTEGER PRIMARY KEY ON CONFLICT ROLLBACK, v)")
            conn.execute(
                "CREATE TRIGGER no_nine BEFORE INSERT ON work WHEN NEW.n = 9 "
                "BEGIN SELECT RAISE(ROLLBACK, 'no nine'); END"
            )
        yield pool


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
LITE = {
    "on conflict": "INSERT INTO work VALUES (1, 's3cret')",
    "raise": "INSERT INTO work VALUES (9, 's3cret')",
    "interrupted": f"{ENDLESS} INSERT INTO work SELECT x + 100, 's3cret' FROM c",
}


def stored(lite: SQLitePool) -> list[int]:
    return [n for (n,) in lite.execute_query("SELECT n FROM work ORDER BY n")]


@pytest.mark.parametrize("how", LITE)
@pytest.mark.parametrize("many", [False, True], ids=["execute", "executemany"])
def test_sqlite_that_rolled_back_by_itself(lite: SQLitePool, how: str, many: bool) -> None:
    with pytest.raises(TransactionRolledBack) as caught, lite.connection() as conn:
        conn.execute("INSERT INTO work VALUES (1, 'a')")
        with contextlib.suppress(sqlite3.Error):
            if many:
                conn.executemany(LITE[how], [()])
            else:
                conn.execute(LITE[how])
        conn.execute("INSERT INTO work VALUES (2, 'b')")  # begins another transaction
    assert isinstance(caught.value, pooling.PoolError) and isinstance(caught.value, sqlite3.Error)
    assert "INSERT INTO work" in str(caught.value) and "s3cret" not in str(caught.value)
    assert stored(lite) == []
    with lite.connection() as conn:
        conn.execute("INSERT INTO work VALUES (3, 'c')")
    assert stored(lite) == [3]


def test_sqlite_that_undid_only_the_statement(lite: SQLitePool) -> None:
    with lite.connection() as conn:
        conn.execute("INSERT INTO work VALUES (1, 'a')")
        with contextlib.suppress(sqlite3.Error):
            conn.execute("INSERT OR ABORT INTO work VALUES (1, 'b')")
    with lite.connection() as conn:
        with contextlib.suppress(sqlite3.Error):
            conn.execute("INSERT INTO work VALUES (1, 'first: nothing was undone but itself')")
        conn.execute("INSERT INTO work VALUES (2, 'b')")
    with lite.connection() as conn:
        conn.execute("INSERT INTO work VALUES (3, 'c')")
        with contextlib.suppress(sqlite3.Error):
            conn.execute("INSERT INTO work VALUES (1, 'd')")
        conn.rollback()  # it is reported
        conn.execute("INSERT INTO work VALUES (4, 'e')")
    with pytest.raises(sqlite3.IntegrityError), lite.connection() as conn:
        conn.execute("INSERT INTO work VALUES (5, 'f')")
        conn.execute("INSERT INTO work VALUES (1, 'g')")
    assert stored(lite) == [1, 2, 4]


def test_sqlite_lease_that_commits_itself_is_not_affected_by_the_previous_one(lite: SQLitePool) -> None:
    with lite.acquire() as conn:
        conn.execute("INSERT INTO work VALUES (1, 'a')")
        with contextlib.suppress(sqlite3.Error):
            conn.execute("INSERT INTO work VALUES (1, 'b')")
    with lite.connection() as conn:
        conn.execute("INSERT INTO work VALUES (2, 'b')")
    assert stored(lite) == [2]
