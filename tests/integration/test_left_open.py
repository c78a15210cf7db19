"""Blocks that end with a stream, a COPY or a pipeline still open on their connection."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pooling import PoolSettings, PostgresPool, TransactionRolledBack
from pooling.compat.psycopg_pool import ConnectionPool
from tests.integration.tools import wait_until
from tests.servers import PostgresServer

# psycopg warns when an open operation is finally destroyed, some versions with an error.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30, reset_timeout=5)


@pytest.fixture(params=["clean", "trust"])
def db(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[PostgresPool]:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS left_open; CREATE TABLE left_open (n integer)")
    with PostgresPool(postgres.dsn, ONE, session=request.param, stall_timeout=None) as pool:
        yield pool


def stream(conn: Any) -> object:
    rows = conn.cursor().stream("SELECT generate_series(1, 100000)")
    next(rows)
    return rows


def short_stream(conn: Any) -> object:
    rows = conn.cursor().stream("SELECT 1")
    next(rows)
    return rows


def copy_out(conn: Any) -> object:
    context = conn.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    context.__enter__().read()
    return context


def copy_in(conn: Any) -> object:
    context = conn.cursor().copy("COPY left_open FROM STDIN")
    context.__enter__().write(b"1\n")
    return context


def pipeline(conn: Any) -> object:
    context = conn.pipeline()
    context.__enter__()
    conn.execute("SELECT 1")
    return context


def idle_pipeline(conn: Any) -> object:
    context = conn.pipeline()
    context.__enter__()
    return context


LEFT: dict[Callable[[Any], object], str] = {
    stream: "stream()", short_stream: "stream()", copy_out: "COPY", copy_in: "COPY",
    pipeline: "pipeline()", idle_pipeline: "pipeline()",
}  # fmt: skip


class InTime:
    """Calls a function in a thread that may hang, and returns its exception."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._function = function
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "it hangs"

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self.error = error


@pytest.fixture(autouse=True)
def kept() -> Iterator[list[object]]:
    """Objects that borrowers keep beyond their block."""
    things: list[object] = []
    yield things
    things.clear()


@pytest.mark.parametrize("leave", LEFT)
@pytest.mark.parametrize("verb", ["connection", "transaction", "run"])
def test_the_error_names_what_was_left_open(
    db: PostgresPool, verb: str, leave: Callable[[Any], object], kept: list[object]
) -> None:
    runs = []

    def work(conn: Any) -> None:
        runs.append(conn.info.backend_pid)
        conn.execute("INSERT INTO left_open VALUES (1)")
        kept.append(leave(conn))

    def use() -> None:
        if verb == "run":
            db.run(work)
        else:
            with getattr(db, verb)() as conn:
                work(conn)

    error = InTime(use).error
    assert isinstance(error, psycopg.ProgrammingError) and LEFT[leave] in str(error)
    assert len(runs) == 1  # by run(), too
    with db.connection() as conn:  # on another connection; nothing was committed
        assert conn.info.backend_pid != runs[0]
        assert conn.execute("SELECT count(*) FROM left_open").fetchone() == (0,)


@pytest.mark.parametrize("leave", LEFT)
@pytest.mark.parametrize("verb", ["connection", "transaction", "run"])
def test_another_error_is_passed_on(
    db: PostgresPool, verb: str, leave: Callable[[Any], object], kept: list[object]
) -> None:
    def work(conn: Any) -> None:
        kept.append(leave(conn))
        raise KeyError("mine")

    def use() -> None:
        if verb == "run":
            db.run(work)
        else:
            with getattr(db, verb)() as conn:
                work(conn)

    assert isinstance(InTime(use).error, KeyError)
    assert db.execute_query("SELECT 1") == [(1,)]


@pytest.mark.parametrize("leave", LEFT)
def test_a_lease_is_discarded_and_the_log_names_it(
    db: PostgresPool, leave: Callable[[Any], object], kept: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    def use() -> None:
        lease = db.acquire()
        kept.append(leave(lease.resource))
        lease.release()

    with caplog.at_level(logging.INFO, "pooling"):
        assert InTime(use).error is None
    assert LEFT[leave] in caplog.text
    assert db.execute_query("SELECT 1") == [(1,)]
    wait_until(lambda: db.metrics.snapshot().closed == {"reset": 1})


def test_open_operations_are_ended_at_the_server(
    db: PostgresPool, postgres: PostgresServer, kept: list[object]
) -> None:
    pids = []

    def use() -> None:
        with db.transaction() as conn:
            pids.append(conn.info.backend_pid)
            kept.append(stream(conn))

    InTime(use)
    with postgres.connect(autocommit=True) as conn:
        wait_until(lambda: not conn.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pids).fetchall())


def test_notifications(db: PostgresPool, postgres: PostgresServer, kept: list[object]) -> None:
    def use() -> None:
        with db.connection() as conn:
            conn.autocommit = True
            conn.execute("LISTEN left_open")
            with postgres.connect(autocommit=True) as other:
                other.execute("NOTIFY left_open")
            rows = conn.notifies(timeout=10)
            next(rows)
            kept.append(rows)

    error = InTime(use).error
    assert isinstance(error, psycopg.ProgrammingError) and "notifies()" in str(error)


def test_finished_operations_are_not_an_error(db: PostgresPool) -> None:
    for block in (db.connection, db.transaction):
        with block() as conn:
            assert len(list(conn.cursor().stream("SELECT generate_series(1, 1000)"))) == 1000
        with block() as conn:
            with conn.cursor().copy("COPY left_open FROM STDIN") as copy:
                copy.write(b"7\n")
            with conn.pipeline():
                conn.execute("INSERT INTO left_open VALUES (8)")
    assert db.execute_query("SELECT n FROM left_open ORDER BY n") == [(7,), (7,), (8,), (8,)]


def test_a_stream_left_early_is_cancelled_and_aborts_the_transaction(db: PostgresPool) -> None:
    """By psycopg, without an error."""
    with pytest.raises(TransactionRolledBack, match="QueryCanceled"), db.connection() as conn:
        conn.execute("INSERT INTO left_open VALUES (1)")
        rows = conn.cursor().stream("SELECT generate_series(1, 1000000000)")
        next(rows)
        rows.close()  # type: ignore[attr-defined]
    assert db.execute_query("SELECT * FROM left_open") == []


def test_a_command_of_another_thread_is_waited_for(db: PostgresPool) -> None:
    began = threading.Event()

    def slow(conn: Any) -> None:
        began.set()
        conn.execute("INSERT INTO left_open SELECT 9 FROM pg_sleep(1)")

    with db.connection() as conn:
        conn.execute("SELECT 1")
        other = threading.Thread(target=slow, args=(conn,))
        other.start()
        assert began.wait(20)
        wait_until(lambda: conn.info.transaction_status == TransactionStatus.ACTIVE)
    other.join()
    assert db.execute_query("SELECT n FROM left_open") == [(9,)]


def test_a_command_of_another_thread_is_not_waited_for_indefinitely(postgres: PostgresServer) -> None:
    settings = ONE.replace(reset_timeout=1)
    with PostgresPool(postgres.dsn, settings) as db:
        told: list[InTime] = []

        def busy(conn: Any) -> None:
            told.append(InTime(lambda: conn.execute("SELECT pg_sleep(60)")))

        def use() -> None:
            with db.transaction() as conn:
                other = threading.Thread(target=busy, args=(conn,))
                other.start()
                wait_until(lambda: conn.info.transaction_status == TransactionStatus.ACTIVE)

        began = time.monotonic()
        error = InTime(use).error
        assert isinstance(error, psycopg.ProgrammingError) and "another thread" in str(error)
        assert time.monotonic() - began < 20
        wait_until(lambda: told)
        assert isinstance(told[0].error, psycopg.Error)
        assert db.execute_query("SELECT 1") == [(1,)]


@pytest.mark.parametrize("leave", [stream, short_stream, copy_out, copy_in])
@pytest.mark.parametrize("error", [None, KeyError])
def test_the_drop_in(
    postgres: PostgresServer, leave: Callable[[Any], object], error: type[Exception] | None, kept: list[object]
) -> None:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS left_open (n integer)")
    with ConnectionPool(postgres.dsn, min_size=1, max_size=1, open=True) as pool:

        def use() -> None:
            with pool.connection() as conn:
                kept.append(leave(conn))
                if error is not None:
                    raise error

        raised = InTime(use).error
        if error is None:
            assert isinstance(raised, psycopg.ProgrammingError) and LEFT[leave] in str(raised)
        else:
            assert isinstance(raised, error)
        with pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_the_drop_in_commits_statements_of_a_pipeline(postgres: PostgresServer) -> None:
    """As in psycopg. The connection is closed, and ending the pipeline after the block reports it."""
    with ConnectionPool(postgres.dsn, min_size=1, max_size=1, open=True) as pool:
        with pool.connection() as conn:
            conn.execute("DROP TABLE IF EXISTS left_open; CREATE TABLE left_open (n integer)")
        with contextlib.ExitStack() as stack:
            with pool.connection() as conn:
                stack.enter_context(conn.pipeline())
                conn.execute("INSERT INTO left_open VALUES (1)")
            assert conn.closed  # in this thread: a worker could close it during the end of the pipeline
            with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                stack.close()
        with pool.connection() as conn:
            assert conn.execute("SELECT n FROM left_open").fetchall() == [(1,)]


def test_a_hook_that_leaves_something_open(postgres: PostgresServer, kept: list[object]) -> None:
    def configure(conn: Any) -> None:
        kept.append(stream(conn))

    db = PostgresPool(postgres.dsn, ONE.replace(create_timeout=10), configure=configure)
    error = InTime(lambda: db.acquire(timeout=2)).error
    assert "open stream()" in str(error)
    db.close()
