"""Cursors of lent connections behave like psycopg's own, on a real server."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

import pooling
from pooling import PoolSettings, PostgresPool
from pooling.adapters.postgres import cursors
from pooling.adapters.postgres.cursors import FastCursor, fast_cursor
from pooling.adapters.postgres.wire import answers
from pooling.adapters.shared import blocks
from tests.servers import PostgresServer

from .tools import environment, everywhere, in_thread, wait_until

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)
PREPARING = [psycopg.Cursor, psycopg.RawCursor]
MEGABYTES = 30

Connection = psycopg.Connection[Any]
Make = Callable[..., PostgresPool]
needs_a_backlog = pytest.mark.skipif(psycopg.__version__ < "3.2.4", reason="this psycopg keeps none")


@pytest.fixture
def make(postgres: PostgresServer, kind: Any) -> Iterator[Make]:
    """Create pools of one connection, which are closed at the end."""
    with contextlib.ExitStack() as stack:

        def made(*, kwargs: Any = None, **options: Any) -> PostgresPool:
            pool = PostgresPool(postgres.dsn, ONE, kwargs={"cursor_factory": kind, **(kwargs or {})}, **options)
            stack.callback(pool.close)
            return pool

        yield made


def written(query: str, kind: Any) -> str:
    """Return a query in the syntax of this kind of cursor."""
    return query.replace("%s", "$1") if kind is psycopg.RawCursor else query


def works(conn: Connection) -> bool:
    return conn.execute("SELECT 'works'").fetchone() == ("works",)


def wait_for_word(conn: Connection) -> None:
    """Wait until the server has sent something that is still unread."""
    assert select.select([conn.fileno()], [], [], 30)[0]


def terminate(server: PostgresServer, pid: int) -> None:
    with server.connect(autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])


def asleep(server: PostgresServer, name: str) -> bool:
    """Whether a query of this pool is in pg_sleep()."""
    asked = "SELECT FROM pg_stat_activity WHERE application_name = %s AND state = 'active' AND wait_event = 'PgSleep'"
    with server.connect() as conn:
        return conn.execute(asked, [name]).fetchone() is not None


@contextlib.contextmanager
def meanwhile(server: PostgresServer, name: str, act: Callable[[], object]) -> Iterator[None]:
    """Run a function in another thread as soon as a query of this pool sleeps."""

    def do() -> None:
        wait_until(lambda: asleep(server, name))
        act()

    thread = in_thread(do)
    try:
        yield
    finally:
        thread.join()


def throw(ident: int, error: type[BaseException]) -> None:
    """Raise an exception in another thread, at its next Python instruction."""
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(error)) == 1


class Stopped(BaseException):
    pass


def told(error: psycopg.Error) -> dict[str, Any]:
    """All information in an error."""
    names = ("severity", "message_primary", "message_hint", "statement_position", "context", "source_function")
    return {
        "class": type(error), "text": str(error), "sqlstate": error.sqlstate,
        **{name: getattr(error.diag, name) for name in names},
    }  # fmt: skip


# -- classes ---------------------------------------------------------------------


@everywhere
def test_a_cursor_looks_like_one_of_the_configured_class(make: Make, kind: Any) -> None:
    with make().acquire() as conn:
        made = type(conn.cursor())
        assert made is not kind and issubclass(made, kind) and issubclass(made, FastCursor)
        assert [getattr(made, name) for name in ("__name__", "__qualname__", "__module__", "__doc__")] == [
            getattr(kind, name) for name in ("__name__", "__qualname__", "__module__", "__doc__")
        ]
        assert repr(conn.cursor()).startswith(f"<{kind.__module__}.{kind.__qualname__} ")
        assert type(conn.execute("SELECT 1")) is made and fast_cursor(kind) is made  # one class for all
        assert hasattr(conn.cursor(), "__dict__") == hasattr(kind(conn), "__dict__")


def test_a_user_cursor_class(make: Make, kind: Any) -> None:
    class Mine(kind):  # type: ignore[misc]
        """The user's."""

        def answer(self) -> Any:
            return self.execute("SELECT 42").fetchone()[0]

    with make(kwargs={"cursor_factory": Mine}).acquire() as conn:
        cursor: Any = conn.cursor()
        assert cursor.answer() == 42 and issubclass(type(cursor), Mine) and issubclass(type(cursor), FastCursor)
        assert repr(cursor).startswith(f"<{__name__}.{Mine.__qualname__} ") and cursor.__doc__ == "The user's."


def test_a_class_with_its_own_implementation_is_used_unchanged(make: Make, kind: Any) -> None:
    gone: list[str] = []

    class Own(kind):  # type: ignore[misc]
        def _maybe_prepare_gen(self, *args: Any, **kwargs: Any) -> Any:
            gone.append("own way")
            return super()._maybe_prepare_gen(*args, **kwargs)

    with make(kwargs={"cursor_factory": Own}).acquire() as conn:
        assert type(conn.cursor()) is Own and works(conn)
    assert gone == ["own way"]


def test_a_factory_that_is_not_a_class_is_used_unchanged(make: Make, kind: Any) -> None:
    def function(conn: Any, **options: Any) -> Any:
        return kind(conn, **options)

    for factory in (function, functools.partial(kind)):
        with make(kwargs={"cursor_factory": factory}).acquire() as conn:
            assert conn.cursor_factory is factory and type(conn.cursor()) is kind and works(conn)


def test_a_borrower_may_use_another_class(make: Make, kind: Any) -> None:
    pool = make()
    with pool.acquire() as conn:
        before = conn.cursor_factory
        conn.cursor_factory = psycopg.ClientCursor
        assert type(conn.cursor()) is psycopg.ClientCursor and works(conn)
    with pool.acquire() as again:
        assert again is conn and again.cursor_factory is before


# -- last words ------------------------------------------------------------------


@everywhere
def test_the_error_of_a_terminated_query_says_why(make: Make, postgres: PostgresServer) -> None:
    pool = make(name="terminated")
    with pytest.raises(psycopg.errors.AdminShutdown) as caught, pool.connection() as conn:
        kill = functools.partial(terminate, postgres, conn.info.backend_pid)
        with meanwhile(postgres, "terminated", kill):
            conn.execute("SELECT pg_sleep(30)")
    assert caught.value.sqlstate == "57P01" and conn.closed
    with pool.connection() as another:
        assert works(another)


AFTER = {
    "query": lambda conn: conn.execute("SELECT 1"),
    "several": lambda conn: conn.execute("SELECT 1; SELECT 2"),
    "prepared": lambda conn: conn.execute("SELECT 'prepared'", prepare=True),
    "savepoint": lambda conn: conn.transaction().__enter__(),
    "commit": lambda conn: conn.commit(),
}


@everywhere
@pytest.mark.parametrize("what", AFTER)
@pytest.mark.parametrize("why", [psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.AdminShutdown])
def test_the_error_of_a_session_that_ended_before_says_why(
    make: Make, postgres: PostgresServer, what: str, why: type[psycopg.Error]
) -> None:
    pool = make()
    with pytest.raises(why) as caught, pool.acquire() as conn:
        conn.execute("SELECT 'prepared'", prepare=True)
        end_in_transaction(postgres, conn, why)
        AFTER[what](conn)
    assert type(caught.value) is why and caught.value.sqlstate == why.sqlstate and conn.closed
    with pool.connection() as another:
        assert works(another)


@everywhere
@pytest.mark.parametrize("session", ["clean", "trust"])
@pytest.mark.parametrize("why", [psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.AdminShutdown])
def test_the_error_of_a_session_that_ended_before_the_commit_says_why(
    make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, why: type[psycopg.Error], session: str
) -> None:
    monkeypatch.setattr(blocks, "BRIEF", 60.0)  # a check before the commit would consume the server's error
    pool = make(session=session)
    with pytest.raises(psycopg.OperationalError, match="lost before the commit") as caught, pool.connection() as conn:
        end_in_transaction(postgres, conn, why)
    assert not isinstance(caught.value, pooling.CommitUnknown)
    assert type(caught.value.__cause__) is why
    with pool.connection() as another:
        assert works(another)


@everywhere
@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("why", [psycopg.errors.IdleSessionTimeout, psycopg.errors.AdminShutdown])
def test_the_error_of_a_session_that_ended_before_begin_says_why(
    make: Make, postgres: PostgresServer, why: type[psycopg.Error], autocommit: bool
) -> None:
    pool = make(kwargs={"autocommit": autocommit})
    with pytest.raises(why) as caught, pool.connection() as conn:
        if why is psycopg.errors.AdminShutdown:
            terminate(postgres, conn.info.backend_pid)
        else:
            conn.execute("SET idle_session_timeout = '100ms'")
            conn.commit()
        wait_for_word(conn)
        conn.execute("SELECT 1")
    assert type(caught.value) is why and conn.closed
    with pool.connection() as another:
        assert works(another)


def end_in_transaction(server: PostgresServer, conn: Connection, why: type[psycopg.Error]) -> None:
    if why is psycopg.errors.AdminShutdown:
        conn.execute("SELECT 1")
        terminate(server, conn.info.backend_pid)
    else:
        conn.execute("SET idle_in_transaction_session_timeout = '100ms'")
    wait_for_word(conn)


# -- results ---------------------------------------------------------------------


def results(cursor: psycopg.Cursor[Any]) -> list[Any]:
    found: list[Any] = []
    while not found or cursor.nextset():
        rows = cursor.fetchall() if cursor.description else None
        found.append((cursor.statusmessage, cursor.rowcount, rows))
    return found


@everywhere
@pytest.mark.parametrize(
    "query",
    [
        "", ";", "SELECT", "SELECT 1", "SELECT 1; SELECT 2, 'b'", "SELECT 1;; SELECT 2;",
        "SET a.b = 'c'; SELECT generate_series(1, 1000); CREATE TEMP TABLE x (n int); INSERT INTO x VALUES (1), (2)",
    ],
)  # fmt: skip
def test_results_are_those_of_psycopg(make: Make, plain: Connection, query: str) -> None:
    expected = results(plain.execute(query))
    with make().connection() as conn:
        assert results(conn.execute(query)) == expected
        assert conn.info.transaction_status is TransactionStatus.INTRANS
        assert works(conn)


class Few(list[Any]):
    def append(self, result: Any) -> None:
        assert len(self) < 10, "it goes on and on"
        super().append(result)


def few_answers(pgconn: Any, results: list[Any], **options: Any) -> Generator[int, Any, None]:
    """Fail if libpq keeps reporting a COPY at every call, which would fill the memory."""
    found = Few()
    yield from answers(pgconn, found, **options)
    results += found


@everywhere
@pytest.mark.parametrize(
    "query", ["COPY t TO STDOUT", "COPY t FROM STDIN", "SELECT 1; COPY t TO STDOUT", "COPY t FROM STDIN; SELECT 1"]
)
def test_a_copy_by_execute_is_refused(make: Make, table: str, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors, "answers", few_answers)
    pool = make()
    with pytest.raises(psycopg.ProgrammingError, match="use copy"), pool.connection() as conn:
        conn.execute(query)
    with pool.connection() as another:
        assert works(another) and another is not conn


@everywhere
def test_copy(make: Make, table: str) -> None:
    with make().connection() as conn:
        with conn.cursor().copy("COPY t FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row([number])
        with conn.cursor().copy("COPY t TO STDOUT") as copy:
            copy.set_types(["int4"])
            assert list(copy.rows()) == [(number,) for number in range(1000)]
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (1000,)


@everywhere
def test_stream(make: Make) -> None:
    with make().connection() as conn:
        assert list(conn.cursor().stream("SELECT generate_series(1, 1000)")) == [(n,) for n in range(1, 1001)]
        with pytest.raises(psycopg.errors.DivisionByZero):
            list(conn.cursor().stream("SELECT 1 / (3 - n) FROM generate_series(1, 5) AS s (n)"))
        conn.rollback()
        assert works(conn)


@everywhere
def test_executemany(make: Make, table: str, kind: Any) -> None:
    numbers = [[number] for number in range(100)]
    with make().connection() as conn:
        cursor = conn.cursor()
        cursor.executemany(written("INSERT INTO t VALUES (%s) RETURNING n * 2", kind), numbers, returning=True)
        assert [row for _, _, (row,) in results(cursor)] == [(2 * number,) for number in range(100)]
        cursor.executemany(written("UPDATE t SET n = n WHERE n < %s", kind), [[10], [20]])
        assert cursor.rowcount == 30


@everywhere
def test_server_side_cursor(make: Make, kind: Any) -> None:
    with make().connection() as conn:
        with conn.cursor("far") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, %s::int)", [1000])
            assert cursor.fetchone() == (1,) and works(conn)
            assert [number for (number,) in cursor] == list(range(2, 1001))
        assert works(conn)


@everywhere
def test_pipeline(make: Make, kind: Any) -> None:
    query = written("SELECT %s::int", kind)
    with make().connection() as conn:
        with conn.pipeline():
            cursors = [conn.execute(query, [number]) for number in range(20)]
            assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(20)]
        with pytest.raises(psycopg.errors.DivisionByZero), conn.pipeline():
            conn.execute("SELECT 1 / 0")
        conn.rollback()
        assert conn.execute(query, [1]).fetchone() == (1,)


# -- prepared statements -----------------------------------------------------------


def prepared(conn: Connection) -> int:
    asked = "SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'AS doubled$'"
    found = conn.execute(asked, prepare=False).fetchone()
    assert found is not None
    return int(found[0])


@everywhere
@pytest.mark.parametrize("prepare", [None, True, False])
def test_a_statement_is_prepared_when_psycopg_would(
    make: Make, plain: Connection, kind: Any, prepare: bool | None
) -> None:
    query = written("SELECT 2 * %s::int AS doubled", kind)
    expected = {None: [0] * 5 + [1] * 3, True: [1] * 8, False: [0] * 8}[prepare]

    def counts(conn: Connection) -> list[int]:
        found = []
        for number in range(8):
            assert conn.execute(query, [number], prepare=prepare).fetchone() == (2 * number,)
            found.append(prepared(conn))
        return found

    with make().connection() as conn:
        assert counts(conn) == counts(plain) == (expected if kind in PREPARING else [0] * 8)


@everywhere
@pytest.mark.parametrize("kind", PREPARING, indirect=True)
def test_a_prepared_statement_that_failed(make: Make, plain: Connection, kind: Any) -> None:
    """After a failure at the first execution psycopg prepares it again, later it does not."""
    query = written("SELECT 2 / %s::int AS doubled", kind)

    def counts(conn: Connection) -> list[int]:
        conn.autocommit = True
        found = []
        for number in (0, 1, 0, 2):
            if number:
                assert conn.execute(query, [number], prepare=True).fetchone() == (2 // number,)
            else:
                with pytest.raises(psycopg.errors.DivisionByZero):
                    conn.execute(query, [number], prepare=True)
            found.append(prepared(conn))
        return found

    with make().acquire() as conn:
        assert counts(conn) == counts(plain) == [1, 2, 2, 2]


@everywhere
@pytest.mark.parametrize("kind", PREPARING, indirect=True)
def test_statements_are_prepared_again_after_a_drop_table(make: Make) -> None:
    with make().acquire() as conn:
        conn.execute("CREATE TEMP TABLE mine (n integer)")
        for _ in range(2):
            conn.execute("SELECT * FROM mine", prepare=True)
        conn.execute("DROP TABLE mine")
        conn.execute("CREATE TEMP TABLE mine (n integer, one integer)")
        assert [column.name for column in conn.execute("SELECT * FROM mine").description or ()] == ["n", "one"]


@everywhere
@pytest.mark.parametrize("kind", PREPARING, indirect=True)
def test_a_prepared_statement_whose_table_has_changed_fails_as_in_psycopg(
    make: Make, plain: Connection, postgres: PostgresServer, table: str
) -> None:
    def fail(conn: Connection, name: str) -> dict[str, Any]:
        for _ in range(2):
            conn.execute("SELECT * FROM t", prepare=True)
        conn.commit()
        with postgres.connect(autocommit=True) as other:
            other.execute(f"ALTER TABLE t ADD COLUMN {name} integer")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan must not change") as caught:
            conn.execute("SELECT * FROM t")
        conn.rollback()
        return told(caught.value)

    with make().acquire() as conn:
        assert fail(conn, "one") == fail(plain, "two")
        columns = [column.name for column in conn.execute("SELECT * FROM t").description or ()]
    assert columns == ["n", "one", "two"]  # after a ROLLBACK psycopg prepares again


# -- large results ---------------------------------------------------------------


@everywhere
def test_large_results_arrive_complete(make: Make, kind: Any) -> None:
    text = "0123456789" * (MEGABYTES * 100_000)
    with make().connection() as conn:
        assert conn.execute(written("SELECT length(%s::text)", kind), [text]).fetchone() == (len(text),)
        assert conn.execute(f"SELECT repeat('0123456789', {len(text) // 10}); SELECT 1").fetchone() == (text,)
        assert conn.execute(written("SELECT %s::text", kind), [text]).fetchone() == (text,)
        rows = conn.execute("SELECT generate_series(1, 200000)").fetchall()
        assert len(rows) == 200_000 and rows[-1] == (200_000,)


# -- notices and notifications -----------------------------------------------------


@everywhere
def test_notices_reach_their_handlers(make: Make) -> None:
    heard: list[Any] = []
    with make().connection() as conn:
        conn.add_notice_handler(lambda notice: heard.append((notice.severity, notice.message_primary)))
        conn.execute("DO 'BEGIN RAISE NOTICE $$one$$; RAISE WARNING $$two$$; END'")
        assert heard == [("NOTICE", "one"), ("WARNING", "two")]
        with pytest.raises(psycopg.errors.RaiseException, match="^four"):
            conn.execute("DO 'BEGIN RAISE NOTICE $$three$$; RAISE EXCEPTION $$four$$; END'")
        assert heard[2:] == [("NOTICE", "three")]
        conn.rollback()


@everywhere
def test_notifications_with_an_answer_reach_their_handlers(make: Make, postgres: PostgresServer) -> None:
    heard: list[Any] = []
    pool = make(kwargs={"autocommit": True})
    with pool.acquire() as conn, postgres.connect(autocommit=True) as other:
        conn.add_notify_handler(lambda notify: heard.append((notify.channel, notify.payload, notify.pid)))
        mine, others = conn.info.backend_pid, other.info.backend_pid
        conn.execute("LISTEN news")
        conn.execute("NOTIFY news, 'of its own'")
        assert heard == [("news", "of its own", mine)]
        conn.execute("SELECT 1; NOTIFY news, 'a'; NOTIFY news, 'b'")
        assert heard[1:] == [("news", "a", mine), ("news", "b", mine)]
        for query in ("SELECT 1", "SELECT 1; SELECT 2", "SELECT 1 / 0"):
            heard.clear()
            other.execute("NOTIFY news, 'of another'")
            wait_for_word(conn)
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                conn.execute(query)
            assert heard == [("news", "of another", others)]


@everywhere
@needs_a_backlog
def test_notifications_without_a_handler_are_kept(make: Make, postgres: PostgresServer) -> None:
    pool = make(kwargs={"autocommit": True})
    with pool.acquire() as conn, postgres.connect(autocommit=True) as other:
        conn.execute("LISTEN news")
        other.execute("NOTIFY news, 'of another'")
        wait_for_word(conn)
        assert works(conn)
        assert [notify.payload for notify in conn.notifies(timeout=1, stop_after=1)] == ["of another"]
        conn.execute("NOTIFY news, 'of its own'")
        assert [notify.payload for notify in conn.notifies(timeout=1, stop_after=1)] == ["of its own"]


# -- interrupted queries -----------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 60.0])
def test_waiting_for_an_answer_can_be_interrupted(postgres: PostgresServer, kind: Any, limit: float | None) -> None:
    """The query is cancelled, and the connection remains usable."""
    program = (
        "import sys, psycopg, pooling\n"
        "dsn, kind, limit = sys.argv[1], getattr(psycopg, sys.argv[2]), eval(sys.argv[3])\n"
        "db = pooling.PostgresPool(dsn, name='script', kwargs={'cursor_factory': kind}, command_timeout=limit)\n"
        "with db.acquire() as conn:\n"
        "    try:\n"
        "        conn.execute('SELECT pg_sleep(30)')\n"
        "    except KeyboardInterrupt:\n"
        "        conn.rollback()\n"
        "        print(conn.execute('SELECT 1').fetchone())\n"
        "db.close()"
    )
    script = subprocess.Popen(
        [sys.executable, "-c", program, postgres.dsn, kind.__name__, repr(limit)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: asleep(postgres, "script"))
        began = time.monotonic()
        script.send_signal(signal.SIGINT)
        assert script.communicate(timeout=40) == ("(1,)\n", "")
        assert time.monotonic() - began < 10
        assert not asleep(postgres, "script")
    finally:
        script.kill()
        script.wait()


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
@pytest.mark.parametrize(
    "query", ["SELECT pg_sleep(30)", "DO 'BEGIN RAISE NOTICE $$part of the answer$$; PERFORM pg_sleep(30); END'"]
)
def test_a_thread_that_waits_for_an_answer_can_be_stopped(
    make: Make, postgres: PostgresServer, query: str, error: type[BaseException]
) -> None:
    pool = make(name="stopped")
    stopped: list[float] = []

    def work() -> None:
        try:
            with pool.connection() as conn:
                conn.execute(query)
        except error:
            stopped.append(time.monotonic())

    thread = in_thread(work)
    wait_until(lambda: asleep(postgres, "stopped"))
    began = time.monotonic()
    throw(thread.ident or 0, error)
    thread.join()
    assert stopped and stopped[0] - began < 10
    with pool.connection() as conn:
        assert works(conn)
    wait_until(lambda: not asleep(postgres, "stopped"), 10)


@everywhere
@pytest.mark.parametrize("whose", ["the server's", "ours"])
def test_a_query_that_takes_too_long_is_stopped(make: Make, whose: str) -> None:
    pool = make(command_timeout=0.3)
    with pool.acquire() as conn:
        before = conn.info.backend_pid
        if whose == "ours":
            conn.execute("SET statement_timeout = 0")
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("SELECT pg_sleep(30)")
        assert time.monotonic() - began < 10
        if not conn.closed:  # on a machine too busy to cancel in time
            conn.rollback()
            assert works(conn) and conn.info.backend_pid == before
    with pool.connection() as again:
        assert works(again)


@everywhere
def test_a_query_cancelled_by_another_thread(make: Make, postgres: PostgresServer) -> None:
    pool = make(name="cancelled")
    with pool.connection() as conn:
        before = conn.info.backend_pid
        with pytest.raises(psycopg.errors.QueryCanceled) as caught, meanwhile(postgres, "cancelled", conn.cancel):
            conn.execute("SELECT pg_sleep(30)")
        assert caught.value.diag.message_primary == "canceling statement due to user request"
        assert conn.info.transaction_status is TransactionStatus.INERROR
        conn.rollback()
        assert works(conn) and conn.info.backend_pid == before


# -- errors ------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("encoding", ["utf8", "latin1"])
@pytest.mark.parametrize(
    "query",
    [
        "SELEC 1", "SELECT 1 / 0", "SELECT 1 +, 2", "SELECT n\u00e4mlich", "SELECT nulls(1)", "SELECT 'x'::int",
        "SELECT 1; SELECT 1 / 0; SELECT 2", "DO 'BEGIN RAISE EXCEPTION $$sch\u00f6n$$; END'",
    ],
)  # fmt: skip
def test_errors_are_those_of_psycopg(make: Make, plain: Connection, query: str, encoding: str) -> None:
    def fail(conn: Connection) -> dict[str, Any]:
        conn.execute(f"SET client_encoding = {encoding}")
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(query)
        assert conn.info.transaction_status is TransactionStatus.INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            conn.execute("SELECT 1")
        conn.rollback()
        assert works(conn)
        return told(caught.value)

    with make().connection() as conn:
        assert fail(conn) == fail(plain)


@everywhere
def test_an_invalid_parameter_raises_psycopgs_error(make: Make, plain: Connection, kind: Any) -> None:
    def fail(conn: Connection, **options: Any) -> dict[str, Any]:
        with pytest.raises(psycopg.errors.InvalidTextRepresentation) as caught:
            conn.execute(written("SELECT %s::int", kind), ["none"], **options)
        conn.rollback()
        return told(caught.value)

    with make().connection() as conn:
        assert fail(conn) == fail(plain)
        assert fail(conn, prepare=True) == fail(plain, prepare=True)


def test_a_generic_alias_works_like_its_class(make: Make, kind: Any) -> None:
    with make(kwargs={"cursor_factory": kind[Any]}).acquire() as conn:
        assert isinstance(conn.cursor(), kind) and works(conn)


@everywhere
@pytest.mark.parametrize("size", [10, 300_000, 3_000_000])
def test_last_words_read_while_sending_are_reported(
    make: Make, plain: Connection, postgres: PostgresServer, size: int
) -> None:
    """While a long query cannot be sent, libpq reads the available input at once."""

    def fail(conn: Connection) -> type[Exception]:
        with pytest.raises(psycopg.OperationalError) as caught:
            end_in_transaction(postgres, conn, psycopg.errors.AdminShutdown)
            conn.execute(f"SELECT '{'x' * size}'")
        return type(caught.value)

    pool = make()
    with contextlib.suppress(psycopg.OperationalError), pool.acquire() as conn:
        assert fail(conn) is fail(plain) is psycopg.errors.AdminShutdown
