"""BEGIN is sent together with the first statement of a transaction, with the effects of psycopg's own BEGIN."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pooling import PoolSettings, PostgresPool
from pooling.adapters.postgres import beginning
from tests.replication import Replication
from tests.servers import PostgresServer

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)
TOGETHER = 1 if beginning.AVAILABLE else 2  # round trips

Connection = psycopg.Connection[Any]
Act = Callable[[Connection], object]
needs_a_trace = pytest.mark.skipif(sys.platform != "linux", reason="libpq traces to a file descriptor on Linux only")


@pytest.fixture
def pool(postgres: PostgresServer, kind: Any) -> Iterator[PostgresPool]:
    with PostgresPool(postgres.dsn, ONE, kwargs={"cursor_factory": kind}) as made:
        yield made


def round_trips(conn: Connection, act: Act) -> int:
    """Return how often the connection has sent something and then received something."""
    with tempfile.NamedTemporaryFile() as file:
        conn.pgconn.trace(file.fileno())
        conn.pgconn.set_trace_flags(psycopg.pq.Trace.SUPPRESS_TIMESTAMPS)
        try:
            act(conn)
        finally:
            conn.pgconn.untrace()
        lines = Path(file.name).read_text().splitlines()
    directions = [line[0] for line in lines if line.startswith(("F\t", "B\t"))]
    return sum(1 for direction, _ in groupby(directions) if direction == "F")


def status(conn: Connection) -> TransactionStatus:
    return conn.info.transaction_status


def failure(conn: Connection, act: Act) -> tuple[Any, ...]:
    """Return what an error says."""
    with pytest.raises(psycopg.Error) as caught:
        act(conn)
    error = caught.value
    return type(error), str(error), error.sqlstate, error.diag.statement_position, error.diag.context


def execute(query: str, *args: Any, **options: Any) -> Act:
    return lambda conn: conn.execute(query, *args, **options)


# -- round trips -----------------------------------------------------------------


@needs_a_trace
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT 1", TOGETHER), ("  insert into t values (1);\n", TOGETHER), ("UPDATE t SET n = n", TOGETHER),
        ("DELETE FROM t", TOGETHER), ("VALUES (1)", TOGETHER), ("SELECT 1; SELECT 2", 2), ("SELECT ';'", 2),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING n) SELECT n FROM x", TOGETHER), ("SELECT '$100'", 2),
        ("SET a.b = 'c'", 2), ("/* a comment */ SELECT 1", 2), ("SELECTED", 2), ("", 2),
    ],
)  # fmt: skip
def test_round_trips(pool: PostgresPool, table: str, query: str, expected: int) -> None:
    def act(conn: Connection) -> None:
        with contextlib.suppress(psycopg.errors.SyntaxError):
            conn.execute(query)

    with pool.acquire() as conn:
        assert round_trips(conn, act) == expected
        assert status(conn) in (TransactionStatus.INTRANS, TransactionStatus.INERROR)
        conn.rollback()
        conn.autocommit = True
        assert round_trips(conn, act) == 1


@needs_a_trace
@pytest.mark.parametrize("kind", [psycopg.Cursor, psycopg.RawCursor], indirect=True)
def test_round_trips_of_a_prepared_statement(pool: PostgresPool) -> None:
    prepared = execute("SELECT 'prepared'", prepare=True)
    with pool.acquire() as conn:
        assert round_trips(conn, prepared) == 3  # BEGIN, Parse, the statement
        conn.rollback()
        conn.execute("SELECT 1")
        prepared(conn)
        conn.commit()
        assert round_trips(conn, prepared) == TOGETHER


@needs_a_trace
def test_only_the_first_statement_takes_the_begin(pool: PostgresPool) -> None:
    with pool.acquire() as conn:
        conn.execute("SELECT 1")
        assert round_trips(conn, execute("SELECT 2")) == 1
        conn.commit()
        assert round_trips(conn, execute("SELECT 3")) == TOGETHER


# -- transactions ----------------------------------------------------------------


def test_the_statement_is_part_of_the_transaction(pool: PostgresPool, table: str, postgres: PostgresServer) -> None:
    with pool.acquire() as conn, postgres.connect(autocommit=True) as other:
        conn.execute("INSERT INTO t VALUES (1)")
        assert status(conn) is TransactionStatus.INTRANS
        assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
        conn.rollback()
        conn.execute("INSERT INTO t VALUES (2)")
        conn.commit()
        assert other.execute("SELECT n FROM t").fetchall() == [(2,)]


def test_the_begin_has_the_options_of_the_connection(pool: PostgresPool) -> None:
    asked = "SELECT " + ", ".join(f"current_setting('transaction_{name}')" for name in ("isolation", "read_only"))
    with pool.acquire() as conn:
        conn.isolation_level, conn.read_only = psycopg.IsolationLevel.SERIALIZABLE, True
        assert conn.execute(asked).fetchone() == ("serializable", "on")
        conn.rollback()
        conn.isolation_level = conn.read_only = None
        assert conn.execute(asked).fetchone() == ("read committed", "off")


def test_an_error_aborts_the_transaction(pool: PostgresPool, plain: Connection) -> None:
    with pool.acquire() as conn:
        assert failure(conn, execute("SELECT 1 / 0")) == failure(plain, execute("SELECT 1 / 0"))
        assert status(conn) is TransactionStatus.INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            conn.execute("SELECT 1")
        conn.rollback()
        assert conn.execute("SELECT 2").fetchone() == (2,)


@pytest.mark.parametrize("query", ["SELECT $1", "SELECT 1 + $1::int", "INSERT INTO t VALUES ($1)"])
def test_a_parameter_without_a_value_is_the_same_error(
    pool: PostgresPool, plain: Connection, table: str, query: str
) -> None:
    """In a pipeline it would be a "protocol violation", which is taken for a lost connection."""
    with pool.acquire() as conn:
        assert failure(conn, execute(query)) == failure(plain, execute(query))
        conn.rollback()
        pid = conn.info.backend_pid
    with pool.acquire() as again:
        assert again.info.backend_pid == pid


@pytest.mark.parametrize("prepared", [False, True])
def test_the_error_of_a_begin_that_fails(replication: Replication, kind: Any, prepared: bool) -> None:
    """A standby begins no read-write transaction; the statement is not executed."""
    query = "SELECT pg_advisory_lock(4711)"
    with (
        PostgresPool(replication.replicas[0].dsn, ONE, kwargs={"cursor_factory": kind}) as pool,
        replication.replicas[0].connect(cursor_factory=kind) as plain,
        pool.acquire() as conn,
    ):
        if prepared:
            for each in (conn, plain):
                each.execute("SELECT 1")
                each.execute(query, prepare=True)
                each.execute("SELECT pg_advisory_unlock_all()")
                each.commit()
        conn.read_only = plain.read_only = False
        act = execute(query, prepare=prepared)
        assert failure(conn, act) == failure(plain, act)
        assert status(conn) is TransactionStatus.IDLE
        conn.read_only = None
        assert conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


@pytest.mark.parametrize("options", [{}, {"binary": True}])
def test_a_statement_that_cannot_be_sent(pool: PostgresPool, kind: Any, options: dict[str, Any]) -> None:
    """A value that cannot be converted, a ClientCursor that is asked for a binary result."""
    query = "SELECT $1" if kind is psycopg.RawCursor else "SELECT %s"
    with pool.acquire() as conn:
        with contextlib.suppress(psycopg.NotSupportedError):
            conn.execute(query, [1], **options)
        conn.rollback()
        with pytest.raises((psycopg.ProgrammingError, psycopg.NotSupportedError)):
            conn.execute(query, [object()], **options)
        assert conn.execute("SELECT 1").fetchone() == (1,)
        assert status(conn) is TransactionStatus.INTRANS
        pid = conn.info.backend_pid
    with pool.acquire() as again:
        assert again.info.backend_pid == pid


def test_several_statements_and_copy(pool: PostgresPool, table: str) -> None:
    with pool.acquire() as conn:
        cursor = conn.execute("INSERT INTO t VALUES (1); SELECT n FROM t")
        assert cursor.nextset() and cursor.fetchall() == [(1,)]
        conn.rollback()
        with pytest.raises(psycopg.ProgrammingError, match="use copy"):
            conn.execute("COPY t TO STDOUT")
    with pool.acquire() as conn:
        with conn.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write_row([2])
        assert status(conn) is TransactionStatus.INTRANS
        conn.rollback()
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (0,)


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_stream_after_a_statement_that_failed(pool: PostgresPool, how: str) -> None:
    with pool.acquire() as conn:
        timer = threading.Timer(0.2, conn.cancel)
        if how == "cancelled":
            timer.start()
        with pytest.raises(psycopg.Error):
            conn.execute("SELECT pg_sleep(30)" if how == "cancelled" else "SELECT 1 / 0")
        timer.cancel()
        assert status(conn) is TransactionStatus.INERROR
        conn.rollback()
        assert list(conn.cursor().stream("SELECT generate_series(1, 3)")) == [(1,), (2,), (3,)]
        assert status(conn) is TransactionStatus.INTRANS


# -- interruptions, lost connections -----------------------------------------------


class Stopped(BaseException):
    pass


def interrupted_at(number: int, act: Callable[[], object]) -> bool:
    """Raise an exception in the so-many-th line of the library's modules, as a signal handler could."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(("cursors.py", "beginning.py", "wire.py", "_cursor_base.py")):
            return None
        seen += event == "line"
        if seen == number and event == "line":
            sys.settrace(before)
            raise Stopped
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Stopped:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("query", ["SELECT 1", "SET a.b = 'c'"])
def test_an_exception_at_any_time_leaves_no_statement_without_its_begin(
    pool: PostgresPool, query: str
) -> None:
    number = went_on = 0
    interrupted = True
    while interrupted:
        number += 1
        with pool.acquire() as conn:
            with contextlib.suppress(psycopg.Error):
                interrupted = interrupted_at(number, lambda conn=conn: conn.execute(query))  # type: ignore[misc]
            with contextlib.suppress(psycopg.Error):
                list(conn.cursor().stream("SELECT 2"))
                assert status(conn) is TransactionStatus.INTRANS, number
                conn.rollback()
                went_on += 1
            with contextlib.suppress(psycopg.Error):
                conn.autocommit = True
                conn.execute("SELECT 3")
                assert status(conn) is TransactionStatus.IDLE, number
        with pool.acquire() as again:
            assert again.execute("SELECT 4").fetchone() == (4,) and status(again) is TransactionStatus.INTRANS
    assert number > 20 and went_on > 10


@pytest.mark.parametrize("size", [10, 3_000_000, 30_000_000])
def test_last_words_are_reported(pool: PostgresPool, postgres: PostgresServer, kind: Any, size: int) -> None:
    """While a long statement cannot be sent, libpq reads the available input at once."""
    query = "SELECT length($1::text)" if kind is psycopg.RawCursor else "SELECT length(%s::text)"
    with (
        pytest.raises(psycopg.errors.AdminShutdown),
        pool.acquire() as conn,
        postgres.connect(autocommit=True) as other,
    ):
        other.execute("SELECT pg_terminate_backend(%s, 30000)", [conn.info.backend_pid])
        conn.execute(query, ["x" * size])
    with pool.acquire() as another:
        assert another.execute("SELECT 1").fetchone() == (1,)


def test_a_large_statement_with_a_large_result(pool: PostgresPool, kind: Any) -> None:
    text = "0123456789" * 3_000_000
    with pool.acquire() as conn:
        query = "SELECT $1::text" if kind is psycopg.RawCursor else "SELECT %s::text"
        assert conn.execute(query, [text]).fetchone() == (text,)
        conn.rollback()
        with pytest.raises(psycopg.errors.NumericValueOutOfRange):
            conn.execute(query.replace("text", "int"), [text])
        conn.rollback()
        assert conn.execute("SELECT 1").fetchone() == (1,)


# -- others ----------------------------------------------------------------------


def test_the_cursor_class_of_a_lent_connection_may_be_used_for_another(
    pool: PostgresPool, postgres: PostgresServer
) -> None:
    with pool.acquire() as conn, postgres.connect(cursor_factory=conn.cursor_factory) as other:
        assert other.execute("SELECT 1").fetchone() == (1,)
        assert status(other) is TransactionStatus.INTRANS and status(conn) is TransactionStatus.IDLE


def test_a_replication_connection(replication: Replication) -> None:
    """The server takes no pipeline there."""
    with PostgresPool(f"{replication.primary.dsn}?replication=database", ONE) as pool, pool.acquire() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,) and status(conn) is TransactionStatus.INTRANS


def test_notices_and_notifications_arrive_with_the_statement(pool: PostgresPool, postgres: PostgresServer) -> None:
    heard: list[Any] = []
    with pool.acquire() as conn, postgres.connect(autocommit=True) as other:
        conn.add_notify_handler(lambda notify: heard.append(notify.payload))
        conn.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        conn.execute("LISTEN news")
        conn.commit()
        other.execute("NOTIFY news, 'of another'")
        body = "BEGIN RAISE NOTICE $$told$$; RETURN 1; END"
        other.execute(f"CREATE FUNCTION tell() RETURNS integer LANGUAGE plpgsql AS '{body}'")
        conn.execute("SELECT tell()")
        assert sorted(heard) == ["of another", "told"]
        other.execute("DROP FUNCTION tell()")


def test_the_error_of_a_commit_in_another_encoding(pool: PostgresPool, plain: Connection) -> None:
    def act(conn: Connection) -> None:
        conn.execute("SET client_encoding = latin1")
        conn.commit()
        conn.execute('CREATE TEMP TABLE x (n int CONSTRAINT "sch\u00f6n" UNIQUE DEFERRABLE INITIALLY DEFERRED)')
        conn.execute("INSERT INTO x VALUES (1), (1)")
        conn.commit()

    with pool.acquire() as conn:
        assert failure(conn, act) == failure(plain, act)
        assert "sch\u00f6n" in failure(conn, act)[1]
