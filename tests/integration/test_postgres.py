"""`PostgresPool` on a real server: clean, alive, in time, counted; who it is and as whom it comes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, scalar_row

import pooling
from pooling import CommandTimeout, CreateFailed, Observer, PoolSettings, PostgresPool
from pooling.adapters.postgres import address, committing, failures, limits, steps, trace, wire
from pooling.adapters.postgres.adapter import PostgresAdapter
from pooling.adapters.postgres.tracking import notes_of, tracked
from pooling.adapters.shared import blocks
from tests.proxy import Proxy
from tests.servers import LOOPBACK, PostgresServer

from .tools import environment, everywhere, in_thread, note_cleanings

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)
TWO = ONE.replace(max_size=2)
Make = Callable[..., PostgresPool]

# libpq traces what the server refused with since 18.
TOLD = trace.AVAILABLE and psycopg.pq.version() >= 180000
needs_to_be_told = pytest.mark.skipif(not TOLD, reason="this libpq does not tell, and nothing is final")
needs_own_commit = pytest.mark.skipif(not committing.AVAILABLE, reason="psycopg commits")
needs_statements = pytest.mark.skipif(not steps.AVAILABLE, reason="no query is counted")


@pytest.fixture
def make(postgres: PostgresServer) -> Iterator[Make]:
    """Make pools that are closed at the end; by default of one connection."""
    with contextlib.ExitStack() as stack:

        def made(conninfo: Any = postgres.dsn, settings: PoolSettings = ONE, **options: Any) -> PostgresPool:
            pool = PostgresPool(conninfo, settings, **options)
            stack.callback(pool.close)
            return pool

        yield made


@pytest.fixture
def table(postgres: PostgresServer) -> Iterator[str]:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS t; CREATE TABLE t (n integer PRIMARY KEY, v integer DEFAULT 0)")
        yield "t"
        conn.execute("DROP TABLE t")


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def backend(pool: PostgresPool) -> int:
    with pool.acquire() as conn:
        return conn.info.backend_pid


def one(pool: PostgresPool, query: str) -> Any:
    return pool.execute_query(query)[0][0]


# -- clean -----------------------------------------------------------------------

GONE_OR_EMPTY = "SELECT coalesce(current_setting('app.tenant', true), '')"  # its name stays known, without a value
# What a borrower may do to the server's side of a session, and how the next one would see it.
LEFT_BEHIND = {
    "SET": ("SET statement_timeout = '7s'", "SHOW statement_timeout"),
    "a setting of one's own": ("SET app.tenant = '42'", GONE_OR_EMPTY),
    "set_config": ("SELECT set_config('app.tenant', '42', false)", GONE_OR_EMPTY),
    "search_path": ("SET search_path = pg_catalog", "SHOW search_path"),
    "isolation": ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                  "SHOW default_transaction_isolation"),
    "role": ("SET ROLE pg_monitor", "SELECT current_user"),
    "session authorization": ("SET SESSION AUTHORIZATION guest", "SELECT session_user"),
    "temporary table": ("CREATE TEMP TABLE mine (n int)", "SELECT to_regclass('mine')"),
    "advisory lock": ("SELECT pg_advisory_lock(4711)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
    "LISTEN": ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()"),
    "held cursor": ("DECLARE held CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors"),
    "sequence": ("CREATE TEMP SEQUENCE s; SELECT nextval('s')", "SELECT to_regclass('s')"),
}  # fmt: skip


@pytest.fixture(scope="module")
def guest(postgres: PostgresServer) -> Iterator[None]:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE ROLE guest")
        yield
        conn.execute("DROP ROLE guest")


@pytest.mark.parametrize("way", ["committed", "rolled back", "autocommit", "error"])
@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_session_is_cleaned_on_the_server(make: Make, guest: None, what: str, way: str) -> None:
    do, look = LEFT_BEHIND[what]
    pool = make()
    before = one(pool, look)
    with contextlib.suppress(ZeroDivisionError):
        if way == "committed":
            with pool.connection() as conn:
                conn.execute(do)
        else:
            with pool.acquire() as conn:
                conn.autocommit = way == "autocommit"
                conn.execute(do)
                seen = conn.execute(look).fetchone()
                if way == "error":
                    conn.commit()
                    1 / 0  # noqa: B018
                assert seen is not None
                # A LISTEN begins when it is committed.
                assert seen[0] != before or (what, way) == ("LISTEN", "rolled back"), "this case shows nothing"
    assert one(pool, look) == before
    assert pool.metrics.snapshot().created == 1


def test_session_is_cleaned_on_the_client(make: Make) -> None:
    pool = make(kwargs={"row_factory": dict_row})

    def state(conn: Any) -> dict[str, Any]:
        noted = {name: value for name, value in vars(conn).items() if name not in ("_adapters", "_own_adapters")}
        noted["handlers"] = (list(conn._notice_handlers), list(conn._notify_handlers))
        noted["prepare"] = (conn.prepare_threshold, conn.prepared_max)
        noted["loader"] = conn.adapters.get_loader(20, psycopg.pq.Format.TEXT)
        noted["dumper"] = conn.adapters.get_dumper(int, psycopg.adapt.PyFormat.TEXT)
        noted["type"] = conn.adapters.types.get("money2")
        return noted

    with pool.acquire() as conn:
        as_new = state(conn)
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.read_only = conn.deferrable = conn.autocommit = True
        conn.row_factory = scalar_row  # type: ignore[assignment]
        conn.cursor_factory = psycopg.ClientCursor
        conn.server_cursor_factory = psycopg.RawServerCursor
        conn.prepare_threshold, conn.prepared_max = None, 7
        conn.add_notice_handler(print)
        conn.add_notify_handler(print)
        conn.adapters.register_loader(20, psycopg.types.string.TextLoader)
        conn.adapters.register_dumper(int, psycopg.types.string.StrDumper)
        psycopg.types.TypeInfo("money2", 99_999, 99_998).register(conn)
        conn.mine = 1  # type: ignore[attr-defined]
        assert state(conn) != as_new
    with pool.acquire() as again:
        assert again is conn
        assert state(again) == as_new
        assert again.execute("SELECT 1 AS n").fetchone() == {"n": 1}


def test_unused_lease_costs_no_round_trip(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make()
    sent = note_cleanings(monkeypatch)
    for _ in range(3):
        with pool.acquire() as conn:
            conn.row_factory = dict_row
        with pool.connection():
            pass
    assert sent == []


@needs_own_commit
def test_cleaning_takes_no_round_trip_of_its_own_after_a_transaction(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make()
    sent = note_cleanings(monkeypatch)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
    assert [query.split(b";")[0] for query in sent] == [b"COMMIT"]  # one for both
    with pool.acquire() as conn:
        conn.execute("SELECT 1")
    assert [query.split(b";")[0] for query in sent[1:]] == [b"ROLLBACK"]


def test_configure_holds_again(make: Make) -> None:
    calls = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        calls.append(conn)
        conn.execute("SET search_path = pg_catalog, public")
        conn.row_factory = dict_row

    pool = make(configure=configure)
    for _ in range(3):
        with pool.connection() as conn:
            assert conn.execute("SHOW search_path").fetchone() == {"search_path": "pg_catalog, public"}
            conn.execute("SET search_path = 'elsewhere'")
    with pool.acquire() as conn:
        conn.row_factory = scalar_row  # and runs nothing
    number = len(calls)
    with pool.acquire() as conn:
        assert conn.row_factory is dict_row
    assert len(calls) == number


def test_configure_that_only_touches_the_client_is_called_once(make: Make) -> None:
    calls = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        calls.append(conn)
        conn.adapters.register_loader("text", psycopg.types.string.TextLoader)

    pool = make(configure=configure)
    for _ in range(3):
        one(pool, "SELECT 1")
    assert len(calls) == 1


def test_trust_keeps_the_session_and_not_the_transaction(make: Make, table: str) -> None:
    pool = make(session="trust")
    with pool.acquire() as conn:
        conn.execute("SET app.tenant = '42'")
        conn.commit()
        conn.execute("INSERT INTO t VALUES (1)")
        conn.row_factory = dict_row
    assert one(pool, "SHOW app.tenant") == "42"
    assert one(pool, "SELECT count(*) FROM t") == 0


def test_a_session_may_be_cleaned_by_hand(make: Make) -> None:
    seen: list[TransactionStatus] = []

    def clean(conn: psycopg.Connection[Any]) -> None:
        seen.append(conn.info.transaction_status)
        conn.execute("RESET app.tenant")

    pool = make(session=clean)
    with pool.acquire() as conn:
        conn.execute("SET app.tenant = '42'")
        conn.execute("SET app.other = '43'")
        conn.commit()
    assert one(pool, "SHOW app.tenant") == ""
    assert one(pool, "SHOW app.other") == "43"
    assert seen == [TransactionStatus.IDLE] * 3
    with pool.acquire():
        pass
    assert len(seen) == 3  # who ran nothing costs nothing


def test_reset_is_called_with_what_comes_back(make: Make) -> None:
    calls: list[int] = []
    pool = make(reset=lambda conn: calls.append(conn.execute("SELECT 1").fetchone()[0]))
    with pool.acquire() as conn:
        conn.row_factory = dict_row  # would break the one above
    assert calls == [1]
    broken = make(reset=lambda conn: conn.execute("SELECT 1 / 0"))
    first = backend(broken)
    assert backend(broken) != first  # what cannot be reset is closed
    assert broken.metrics.snapshot().closed["reset"] >= 1


def leave_copy(conn: Any) -> None:
    conn.mine = conn.cursor().copy("COPY (SELECT * FROM generate_series(1, 100000)) TO STDOUT")
    conn.mine.__enter__().read()


def leave_pipeline(conn: Any) -> None:
    conn.mine = conn.pipeline()
    conn.mine.__enter__()


def leave_stream(conn: Any) -> None:
    conn.mine = conn.cursor().stream("SELECT * FROM generate_series(1, 100000)")
    next(conn.mine)


def leave_notifies(conn: Any) -> None:
    conn.autocommit = True
    conn.execute("LISTEN news")
    with psycopg.connect(conn.info.dsn, autocommit=True) as other:
        other.execute("NOTIFY news")
    conn.mine = conn.notifies()  # holds the connection's lock until it is closed
    next(conn.mine)


@pytest.mark.parametrize("leave", [leave_copy, leave_pipeline, leave_stream, leave_notifies])
def test_connection_with_an_unfinished_operation_is_closed(make: Make, leave: Callable[[Any], None]) -> None:
    pool = make()
    kept = []
    with pool.acquire() as conn:
        before = conn.info.backend_pid
        leave(conn)
        kept.append(vars(conn).pop("mine", None))
    assert backend(pool) != before
    assert conn.closed
@everywhere
def test_open_savepoint_is_not_passed_to_the_next_borrower(make: Make) -> None:
    pool = make()
    with pool.acquire() as conn:
        conn.transaction().__enter__()
        conn.execute("SELECT 1")
    with pool.connection() as again:
        assert again is conn
        again.execute("SELECT 1")
        again.commit()  # would be refused within the other's block


def test_notifications_of_the_last_borrower_are_dropped(make: Make, postgres: PostgresServer) -> None:
    pool = make(kwargs={"autocommit": True})
    with postgres.connect(autocommit=True) as other:
        with pool.acquire() as conn:
            conn.execute("LISTEN news")
            other.execute("NOTIFY news, 'old'")
            conn.execute("SELECT 1")
        with pool.acquire() as again:
            assert again is conn
            again.execute("LISTEN news")
            other.execute("NOTIFY news, 'new'")
            got = [notify.payload for notify in again.notifies(timeout=10, stop_after=1)]
    assert got == ["new"]
@everywhere
def test_notifications_that_come_with_the_commit_reach_the_handlers(make: Make) -> None:
    """As psycopg's own commit() does it. Where sessions are cleaned, LISTEN has ended by then."""
    pool = make(session="trust")
    heard: list[str] = []
    with pool.connection() as conn:
        conn.execute("LISTEN news")
        conn.commit()
        conn.add_notify_handler(lambda notify: heard.append(notify.payload))
        conn.execute("NOTIFY news, 'first'")
        conn.commit()
        assert heard == ["first"]
        conn.execute("NOTIFY news, 'second'")
    assert heard == ["first", "second"]
    with pool.connection() as again:
        again.execute("SELECT 1")
    assert heard == ["first", "second"]


@everywhere
@pytest.mark.skipif(psycopg.__version__ < "3.2.4", reason="this psycopg keeps none")
def test_notifications_without_a_handler_are_kept(make: Make) -> None:
    """Until a caller asks for them, as psycopg does it; here they come with a COMMIT of psycopg's own."""
    pool = make()
    with pool.acquire() as conn:
        conn.execute("LISTEN news")
        conn.commit()
        conn.execute("NOTIFY news, 'mine'")
        conn.commit()
        assert [notify.payload for notify in conn.notifies(timeout=10, stop_after=1)] == ["mine"]


def test_a_prepared_statement_that_a_migration_made_stale_fails_once(
    make: Make, postgres: PostgresServer, table: str
) -> None:
    """The server says "cached plan must not change result type", and would say so for ever."""
    pool = make(kwargs={"prepare_threshold": 0})
    for _ in range(2):
        with pool.connection() as conn:
            conn.execute(f"SELECT * FROM {table}")
    with postgres.connect(autocommit=True) as other:
        other.execute(f"ALTER TABLE {table} ADD COLUMN added int")
    with pytest.raises(psycopg.errors.FeatureNotSupported), pool.connection() as again:
        assert again is conn
        again.execute(f"SELECT * FROM {table}")
    with pool.connection() as other_one:
        columns = [column.name for column in other_one.execute(f"SELECT * FROM {table}").description or ()]
    assert other_one is not conn and "added" in columns


def test_users_check_runs_also_if_the_server_has_just_answered(make: Make) -> None:
    """It may look for more than a server that answers, and of that a COMMIT tells nothing."""
    checked: list[object] = []
    pool = make(settings=ONE.replace(validation_interval=0), session="trust", check=checked.append)
    for _ in range(5):
        with pool.connection() as conn:
            conn.execute("SELECT 1")
    with pool.connection():
        waiting = threading.Thread(target=lambda: pool.acquire().release())
        waiting.start()
        wait_until(lambda: pool.stats()["waiting"])
    waiting.join()
    assert len(checked) == 6


def test_answer_that_arrives_in_pieces_is_read_whole(make: Make, postgres: PostgresServer) -> None:
    with Proxy(postgres.port) as proxy:
        proxy.crumble(40)
        pool = make(postgres.dsn.replace(str(postgres.port), str(proxy.port)))
        for _ in range(20):
            with pool.connection() as conn:
                conn.execute("SELECT set_config('a.b', 'c', false)")
        assert pool.stats()["size"] == 1
        pool.close()


# -- all of psycopg works through it -----------------------------------------------
@everywhere
def test_psycopg_features_work(make: Make, table: str) -> None:
    pool = make(settings=TWO)
    with pool.connection() as conn:
        with conn.cursor().copy("COPY t (n) FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row([number])
        with conn.pipeline():
            for number in range(10):
                conn.execute("UPDATE t SET v = 1 WHERE n = %s", [number])
    with pool.connection() as conn:
        with conn.cursor("server") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT n FROM t ORDER BY n")
            assert [row[0] for row in cursor] == list(range(1000))
        assert conn.execute("SELECT sum(v) FROM t").fetchone() == (10,)
        with conn.transaction(), contextlib.suppress(psycopg.errors.UniqueViolation), conn.transaction():
            conn.execute("INSERT INTO t VALUES (1)")
    assert pool.execute_query("SELECT count(*) FROM t") == [(1000,)]


def test_prepared_statements_are_kept(make: Make) -> None:
    pool = make()
    for number in range(10):
        with pool.connection() as conn:
            assert conn.execute("SELECT %s::int", [number]).fetchone() == (number,)
    assert one(pool, "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT $1%'") == 1


def discard_all(conn: psycopg.Connection[Any]) -> None:
    conn.autocommit = True  # it is refused in a transaction
    conn.execute("DISCARD ALL", prepare=False)


def test_session_may_discard_prepared_statements(make: Make) -> None:
    pool = make(session=discard_all)
    for kind in ("int", "text"):
        with pool.connection() as conn:
            assert not conn.autocommit
            conn.execute("PREPARE mine AS SELECT 1")
            conn.execute(f"CREATE TEMP TABLE mine (a {kind})")
            for _ in range(7):  # psycopg prepares it, and the next one's has other columns
                conn.execute("SELECT * FROM mine")
    assert pool.metrics.snapshot().created == 1


def test_connection_class_of_the_user(make: Make) -> None:
    class Mine(psycopg.Connection[Any]):
        """Mine."""

        def answer(self) -> Any:
            return self.execute("SELECT 42").fetchone()[0]  # type: ignore[index]

    pool = make(connection_class=Mine)
    with pool.connection() as conn:
        assert isinstance(conn, Mine) and conn.answer() == 42
        assert type(conn).__qualname__ == Mine.__qualname__ and repr(conn).startswith(f"<{__name__}.")


# -- verbs -------------------------------------------------------------------------


def test_execute_query(make: Make, table: str) -> None:
    pool = make()
    assert pool.execute_query("SELECT %(a)s::int AS n", {"a": 1}, row_factory=dict_row) == [{"n": 1}]
    assert pool.execute_query(sql.SQL("SELECT {}").format(2)) == [(2,)]
    assert pool.execute_query("INSERT INTO t SELECT generate_series(1, 3) RETURNING n") == [(1,), (2,), (3,)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        pool.execute_query("INSERT INTO t VALUES (4), (1)")
    assert one(pool, "SELECT count(*) FROM t") == 3
    assert pool.execute_query("VACUUM t") == []  # would be refused within a transaction
    read_only = make(configure=lambda conn: setattr(conn, "read_only", True))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        read_only.execute_query("INSERT INTO t VALUES (5)")
    assert read_only.metrics.snapshot().closed == {}  # it is its own wish: not a failover


def test_execute_many(make: Make, table: str) -> None:
    pool = make()
    assert pool.execute_many("INSERT INTO t VALUES (%s, %s)", [(n, n) for n in range(100)]) == 100
    with pytest.raises(psycopg.errors.UniqueViolation):
        pool.execute_many("INSERT INTO t VALUES (%s)", [(100,), (1,), (101,)])
    assert one(pool, "SELECT count(*) FROM t") == 100
@everywhere
def test_transaction(make: Make, table: str) -> None:
    pool = make(kwargs={"autocommit": True})
    with pool.transaction(isolation_level=psycopg.IsolationLevel.REPEATABLE_READ) as conn:
        assert conn.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)
        conn.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(psycopg.ProgrammingError):
            conn.commit()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.transaction(read_only=True) as conn:
        conn.execute("INSERT INTO t VALUES (2)")
    with pytest.raises(RuntimeError), pool.transaction() as conn:
        conn.execute("INSERT INTO t VALUES (3)")
        raise RuntimeError
    with pool.acquire() as conn:
        assert (conn.isolation_level, conn.read_only, conn.autocommit) == (None, None, True)
    assert pool.execute_query("SELECT n FROM t") == [(1,)]
@everywhere
def test_run_again_after_a_conflict(make: Make, table: str) -> None:
    serializable = psycopg.IsolationLevel.SERIALIZABLE
    pool = make(settings=TWO, configure=lambda conn: setattr(conn, "isolation_level", serializable))
    pool.execute_query("INSERT INTO t VALUES (1, 0)")
    runs = []
    meet = threading.Barrier(2)

    def increment(conn: psycopg.Connection[Any]) -> int:
        runs.append(threading.get_ident())
        value: int = conn.execute("SELECT v FROM t").fetchone()[0]  # type: ignore[index]
        if runs.count(threading.get_ident()) == 1:
            meet.wait(30)
        conn.execute("UPDATE t SET v = %s", [value + 1])
        return value + 1

    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(pool.run(increment))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [1, 2] and len(runs) == 3
    assert one(pool, "SELECT v FROM t") == 2


def test_run_gives_up_after_its_retries_and_does_not_repeat_what_does_not_help(make: Make) -> None:
    pool = make()
    runs: list[int] = []

    def fail(error: type[Exception]) -> Callable[[Any], None]:
        def work(conn: Any) -> None:
            runs.append(1)
            raise error("so")

        return work

    for error, retries, times in (
        (psycopg.errors.DeadlockDetected, 2, 3),
        (psycopg.errors.SerializationFailure, 0, 1),
        (psycopg.errors.UniqueViolation, 3, 1),
        (ValueError, 3, 1),
    ):
        runs.clear()
        with pytest.raises(error, match="so"):
            pool.run(fail(error), retries=retries)
        assert len(runs) == times
    with pytest.raises(ValueError, match="at least 0"):
        pool.run(lambda conn: None, retries=-1)
    with pytest.raises(TypeError, match="whole number"):
        pool.run(lambda conn: None, retries=1.5)  # type: ignore[arg-type]


def kill(server: PostgresServer, pid: int) -> None:
    with server.connect(autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
@pytest.mark.parametrize("session", ["clean", "trust"])
@everywhere
def test_run_again_when_the_connection_was_lost_before_the_commit(
    make: Make, postgres: PostgresServer, table: str, session: str
) -> None:
    pool = make(session=session)
    for at in ("first", "between", "last"):
        runs: list[str] = []

        def work(conn: psycopg.Connection[Any], at: str = at, runs: list[str] = runs) -> str:
            runs.append(at)
            if len(runs) == 1 and at == "first":
                kill(postgres, conn.info.backend_pid)
            conn.execute("INSERT INTO t SELECT count(*) FROM t")
            if len(runs) == 1 and at == "between":
                kill(postgres, conn.info.backend_pid)
            conn.execute("SELECT 1")
            if len(runs) == 1 and at == "last":
                kill(postgres, conn.info.backend_pid)  # nothing is sent after it but the commit
            return at

        assert pool.run(work) == at
        assert len(runs) == 2
    assert one(pool, "SELECT count(*) FROM t") == 3  # none twice
@pytest.mark.parametrize("session", ["clean", "trust"])
@everywhere
def test_connection_lost_in_the_block_is_no_unknown_commit(
    make: Make, postgres: PostgresServer, table: str, session: str
) -> None:
    pool = make(session=session)
    with pool.connection() as conn:  # nothing was under way: nothing is lost
        kill(postgres, conn.info.backend_pid)
    with pool.connection() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
        conn.commit()
        kill(postgres, conn.info.backend_pid)
    with pytest.raises(psycopg.OperationalError, match="lost before the commit"), pool.connection() as conn:
        conn.execute("INSERT INTO t VALUES (2)")
        kill(postgres, conn.info.backend_pid)
    with pool.connection() as conn:
        conn.execute("INSERT INTO t VALUES (3)")
        conn.close()  # its borrower's own wish
    assert pool.execute_query("SELECT n FROM t") == [(1,)]


@pytest.mark.parametrize("session", ["clean", "trust"])
@everywhere
@pytest.mark.parametrize("verb", ["connection", "transaction", "run"])
def test_connection_lost_during_the_commit_raises_commit_unknown(
    make: Make, postgres: PostgresServer, table: str, session: str, verb: str
) -> None:
    with Proxy(postgres.port) as proxy:
        pool = make(postgres.dsn.replace(str(postgres.port), str(proxy.port)), session=session)
        runs: list[int] = []

        def work(conn: psycopg.Connection[Any]) -> None:
            runs.append(1)
            conn.execute("INSERT INTO t VALUES (1)")
            proxy.hold()  # the commit is sent, and nothing comes back
            threading.Timer(0.5, proxy.cut).start()

        with pytest.raises(pooling.CommitUnknown) as caught:
            if verb == "run":
                pool.run(work)
            else:
                with getattr(pool, verb)() as conn:
                    work(conn)
        assert runs == [1] and isinstance(caught.value, psycopg.OperationalError)
        proxy.release()
        assert pool.execute_query("SELECT 1") == [(1,)]
        pool.close()


@pytest.mark.parametrize("how", ["cut", "terminated"])
def test_statement_lost_in_autocommit_raises_commit_unknown(
    make: Make, postgres: PostgresServer, table: str, how: str
) -> None:
    with Proxy(postgres.port) as proxy:
        pool = make(postgres.dsn.replace(str(postgres.port), str(proxy.port)), name="autocommit")

        def end() -> None:
            wait_until(lambda: asleep(postgres, pool))
            if how == "cut":
                proxy.cut()
            else:
                kill(postgres, pid)

        pid = backend(pool)
        thread = threading.Thread(target=end)
        thread.start()
        with pytest.raises(psycopg.OperationalError) as caught:
            pool.execute_query("INSERT INTO t SELECT 1 FROM pg_sleep(2)")
        thread.join()
        # A server that says that it ends the session undoes what was not done; an old psycopg does not pass it on.
        told = failures.ended_by(caught.value) is not None
        assert isinstance(caught.value, pooling.CommitUnknown) != told and not (told and how == "cut")
        wait_until(lambda: sessions(postgres, pool, "active") == 0)
        assert one(pool, "SELECT count(*) FROM t") == (how == "cut")
        pool.close()


@needs_own_commit
def test_connection_lost_after_the_commit_is_no_error(make: Make, postgres: PostgresServer, table: str) -> None:
    """In the cleaning, which is sent with it: that costs the connection, and no error."""
    pool = make()
    pool.session_rules.commit_command = b"COMMIT; SELECT pg_terminate_backend(pg_backend_pid())"
    with pool.connection() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
    with pool.acquire() as again:
        assert again is not conn
        assert again.execute("SELECT n FROM t").fetchall() == [(1,)]


@everywhere
@pytest.mark.parametrize("brief", [True, False])
def test_only_long_blocks_check_the_connection_before_the_commit(
    make: Make, postgres: PostgresServer, table: str, monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    """A proxy hangs up without a word: who has looked knows that the commit was never sent."""
    monkeypatch.setattr(blocks, "BRIEF", 60.0 if brief else 0.0)
    with Proxy(postgres.port) as proxy:
        pool = make(postgres.dsn.replace(str(postgres.port), str(proxy.port)))
        with pytest.raises(psycopg.OperationalError) as caught, pool.connection() as conn:
            conn.execute("INSERT INTO t VALUES (1)")
            proxy.cut()
            wait_until(lambda: select.select([conn.fileno()], [], [], 0)[0])
        assert isinstance(caught.value, pooling.CommitUnknown) == brief
        pool.close()


@pytest.fixture
def slow(postgres: PostgresServer, table: str) -> Iterator[str]:
    """A statement whose transaction takes a minute to commit."""
    with postgres.connect(autocommit=True) as conn:
        conn.execute(
            "CREATE OR REPLACE FUNCTION doze() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;"
            " CREATE CONSTRAINT TRIGGER dozes AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION doze()"
        )
        yield "INSERT INTO t VALUES (1)"
        conn.execute("SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE query ~ '^COMMIT'")


def commits(server: PostgresServer, name: str) -> bool:
    """Whether a pool's connection is in the middle of a commit."""
    with server.connect() as conn:
        asked = "SELECT 1 FROM pg_stat_activity WHERE application_name ~ %s AND state = 'active' AND query ~ '^COMMIT'"
        return conn.execute(asked, [name]).fetchone() is not None


@pytest.mark.parametrize("session", ["clean", "trust"])
@pytest.mark.parametrize("what", ["its connection", "the pool"])
def test_connection_may_be_closed_by_another_thread_during_a_commit(
    make: Make, postgres: PostgresServer, slow: str, what: str, session: str
) -> None:
    """Also within libpq, which must not lose what it works with: it would crash the process."""
    pool = make(session=session, name="dozing")
    lent: list[psycopg.Connection[Any]] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with pool.connection() as conn:
                lent.append(conn)
                conn.execute(slow)
        except psycopg.OperationalError as error:
            errors.append(error)

    thread = in_thread(work)
    wait_until(lambda: commits(postgres, "dozing"))
    if what == "the pool":
        pool.close(0.1)
    else:
        lent[0].close()
    thread.join(20)
    assert not thread.is_alive()
    wait_until(lambda: lent[0].closed)  # by a worker, where it was the pool
    (error,) = errors
    if what == "the pool":  # asks the server to stop first, whose answer may come in time
        assert isinstance(error, (pooling.CommitUnknown, psycopg.errors.QueryCanceled))
    else:
        assert isinstance(error, pooling.CommitUnknown)
        assert one(pool, "SELECT 1") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT that could be sent to one process")
@pytest.mark.parametrize("session", ["clean", "trust"])
def test_commit_can_be_interrupted(postgres: PostgresServer, slow: str, session: str) -> None:
    program = (
        "import sys, pooling\n"
        "db = pooling.PostgresPool(sys.argv[1], session=sys.argv[2], name='script')\n"
        "with db.connection() as conn: conn.execute(sys.argv[3])"
    )
    script = subprocess.Popen(
        [sys.executable, "-c", program, postgres.dsn, session, slow], env=environment(), stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: commits(postgres, "script"))
        began = time.monotonic()
        script.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in script.communicate(timeout=30)[1]
        assert time.monotonic() - began < 10
    finally:
        script.kill()
        script.wait()


@everywhere
def test_a_connection_lost_before_its_begin_is_an_operational_error(make: Make, postgres: PostgresServer) -> None:
    """From the server or from libpq, of whose words psycopg would make a DatabaseError."""
    with Proxy(postgres.port) as proxy:
        pool = make(postgres.dsn.replace(str(postgres.port), str(proxy.port)))
        with pytest.raises(psycopg.OperationalError), pool.acquire() as conn:
            proxy.cut()
            conn.execute("SELECT 1")
        assert conn.closed
        pool.close()


@everywhere
def test_commit_during_a_query_is_refused(make: Make) -> None:
    """libpq would throw the query's answer away without a word."""
    pool = make()
    with pool.acquire() as conn:
        conn.pgconn.send_query(b"SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            conn.commit()


def test_what_was_cut_off_is_not_run_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "cancel_command", lambda conn, timeout: wire.Cancel(conn))  # not through in time
    pool = make(command_timeout=0.2)
    runs: list[int] = []

    def work(conn: psycopg.Connection[Any]) -> None:
        runs.append(1)
        conn.execute("SET statement_timeout = 0")
        try:
            conn.execute("SELECT pg_sleep(600)")
        finally:
            conn.execute("SELECT 1")  # fails of something else

    with pytest.raises(psycopg.OperationalError):
        pool.run(work)
    assert runs == [1]


# -- alive -------------------------------------------------------------------------


def test_terminated_backend_causes_no_error(make: Make, postgres: PostgresServer) -> None:
    pool = make(settings=PoolSettings(min_size=0, max_size=8))
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            pids = {stack.enter_context(pool.acquire()).info.backend_pid for _ in range(8)}
        for pid in pids:
            kill(postgres, pid)
        for _ in range(8):
            assert one(pool, "SELECT 1") == 1


def test_25006_means_a_failover_unless_the_borrower_asked_for_read_only(make: Make, table: str) -> None:
    pool = make()
    before = backend(pool)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection() as conn:
        conn.read_only = True
        conn.execute("INSERT INTO t VALUES (1)")
    assert backend(pool) == before
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection() as conn:
        conn.execute("SET TRANSACTION READ ONLY")  # cannot be told from a standby
        conn.execute("INSERT INTO t VALUES (1)")
    assert backend(pool) != before


def test_each_sqlstate_that_means_death_is_postgresqls_own() -> None:
    for state in {*failures.DEAD, failures.READ_ONLY} - {"25P04"}:  # new in PostgreSQL 17
        assert [known for known in psycopg.errors._sqlcodes if known.startswith(state)], state
    assert failures.ended_by(psycopg.errors.AdminShutdown()) == "57P01"
    assert failures.ended_by(psycopg.errors.ConnectionDoesNotExist()) == "08003"
    assert failures.ended_by(psycopg.errors.QueryCanceled()) is None
    wrapped = RuntimeError()
    wrapped.__cause__ = psycopg.errors.IdleSessionTimeout()
    assert failures.ended_by(wrapped) == "57P05"


def test_keepalive_is_on_and_can_be_changed(make: Make) -> None:
    if sys.platform != "linux":
        pytest.skip("the names of these options are Linux's")

    def options(pool: PostgresPool) -> tuple[int, ...]:
        with pool.acquire() as conn, socket.socket(fileno=os.dup(conn.fileno())) as sock:
            tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            return (keepalive, *(sock.getsockopt(socket.IPPROTO_TCP, option) for option in tcp))

    assert options(make()) == (1, 10, 3, 3, 10_000)
    assert options(make(kwargs={"keepalives_idle": 60, "tcp_user_timeout": 5000})) == (1, 60, 3, 3, 5000)
    assert options(make(kwargs={"keepalives": 0, "tcp_user_timeout": 0}))[0] == 0


# -- in time -----------------------------------------------------------------------


def test_the_server_stops_a_command_that_takes_too_long(make: Make) -> None:
    pool = make(command_timeout=2.0, idle_in_transaction_timeout=60)
    assert one(pool, "SHOW statement_timeout") == "1800ms"
    assert one(pool, "SHOW idle_in_transaction_session_timeout") == "1min"
    before = backend(pool)
    with pytest.raises(psycopg.errors.QueryCanceled):
        pool.execute_query("SELECT pg_sleep(60)")
    assert backend(pool) == before  # the connection is as good as ever
    options = make(command_timeout=2.0, kwargs={"options": "-c statement_timeout=1234"})
    assert one(options, "SHOW statement_timeout") == "1234ms"  # who says it himself is heard


def test_command_is_cancelled_if_the_borrower_lifted_the_servers_limit(make: Make) -> None:
    pool = make(command_timeout=1.0)
    with pytest.raises(psycopg.errors.QueryCanceled), pool.connection() as conn:
        conn.execute("SET statement_timeout = 0")
        conn.execute("SELECT pg_sleep(60)")
    assert one(pool, "SELECT 1") == 1


def test_limit_applies_if_the_server_does_not_respond(make: Make) -> None:
    pool = make(command_timeout=2.0)
    stopped: list[int] = []
    try:
        with pytest.raises(CommandTimeout) as caught, pool.connection() as conn:
            conn.execute("SELECT 1")
            stopped.append(conn.info.backend_pid)
            os.kill(stopped[0], signal.SIGSTOP)
            began = time.monotonic()
            conn.execute("SELECT 2")
        assert time.monotonic() - began < 30
        assert isinstance(caught.value, (psycopg.errors.QueryCanceled, TimeoutError, pooling.PoolError))
        assert one(pool, "SELECT 3") == 3  # on another one
    finally:
        os.kill(stopped[0], signal.SIGCONT)


def test_a_call_may_have_a_limit_of_its_own(make: Make) -> None:
    pool = make()
    with pytest.raises(psycopg.errors.QueryCanceled):
        pool.execute_query("SELECT pg_sleep(60)", timeout=1.0)
    with pytest.raises(psycopg.errors.QueryCanceled):
        pool.execute_many("SELECT pg_sleep(%s)", [(60,)], timeout=1.0)
    with pool.acquire(), pytest.raises(pooling.PoolTimeout):
        pool.execute_query("SELECT 1", timeout=0.1)
    assert one(pool, "SELECT 'the limit is gone' FROM pg_sleep(1.5)") == "the limit is gone"


def cancelled(pool: PostgresPool, limit: float) -> None:
    """See that a query is cancelled at its limit, and by the server; a busy machine may need several attempts."""
    for _ in range(10):
        with pytest.raises(psycopg.errors.QueryCanceled) as caught:
            pool.execute_query("SELECT pg_sleep(600)", timeout=limit)
        if type(caught.value) is psycopg.errors.QueryCanceled:
            return
    pytest.fail(f"never cancelled within {limit} s: {caught.value!r}")


def sessions(server: PostgresServer, pool: PostgresPool, state: str = "%") -> int:
    """Return how many sessions of a pool the server has, in this state."""
    with server.connect() as conn:
        found = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s AND state LIKE %s",
            ["%" + pool.name, state],
        ).fetchone()
    assert found is not None
    return int(found[0])


def asleep(server: PostgresServer, pool: PostgresPool) -> bool:
    """Whether a session of a pool is in pg_sleep()."""
    with server.connect() as conn:
        return conn.execute(
            "SELECT FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event = 'PgSleep'", ["%" + pool.name]
        ).fetchone() is not None  # fmt: skip


def sleepers(server: PostgresServer) -> int:
    """Return how many sessions of the server sleep for ten minutes."""
    with server.connect() as conn:
        return len(conn.execute(
            "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND state = 'active'"
        ).fetchall())  # fmt: skip


@pytest.mark.parametrize("limit", [0.3, 1.0, 2.5])
def test_a_short_limit_is_cancelled_too(
    make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    pool = make(settings=TWO, name=f"short-{limit}")
    cancelled(pool, limit)
    monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda: False)  # as before libpq 17
    cancelled(pool, limit)
    assert one(pool, "SELECT 1") == 1
    wait_until(lambda: sessions(postgres, pool, "active") == 0)


def test_timed_out_command_ends_on_the_server_before_its_slot_is_free(
    make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(settings=TWO, name="cut-off")
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(limits, "cancel_command", lambda conn, timeout: wire.Cancel(conn))  # not through in time
        for _ in range(6):
            with pytest.raises(CommandTimeout, match="^not done within 0.2 s, and the server did not respond to the c"):
                pool.execute_query("SELECT pg_sleep(600)", timeout=0.2)
            seen.append(sessions(postgres, pool))
    assert max(seen) <= 2
    wait_until(lambda: sessions(postgres, pool, "active") == 0)


def test_running_command_ends_on_the_server_when_the_pool_is_closed(make: Make, postgres: PostgresServer) -> None:
    pool = make(name="closes")
    errors: list[BaseException] = []

    def hold() -> None:
        with pytest.raises(psycopg.Error) as caught:
            pool.execute_query("SELECT pg_sleep(600)")
        errors.append(caught.value)

    thread = threading.Thread(target=hold)
    thread.start()
    wait_until(lambda: asleep(postgres, pool))
    pool.close(0.1)
    thread.join(30)
    assert len(errors) == 1
    wait_until(lambda: sessions(postgres, pool) == 0)


cancels_in_steps = pytest.mark.skipif(
    not psycopg.capabilities.has_cancel_safe(), reason="libpq before 17 sends a cancel in one go"
)


@contextlib.contextmanager
def sleeping(postgres: PostgresServer) -> Iterator[tuple[Proxy, psycopg.Connection[Any]]]:
    """A connection through a proxy that has something to cancel."""
    with Proxy(postgres.port) as proxy, contextlib.closing(
        psycopg.connect(postgres.dsn.replace(str(postgres.port), str(proxy.port)))
    ) as conn:  # fmt: skip
        conn.pgconn.send_query(b"SELECT pg_sleep(600)")
        wait_until(lambda: sleepers(postgres))
        yield proxy, conn


@cancels_in_steps
def test_a_cancel_goes_on_where_its_last_try_ended(postgres: PostgresServer) -> None:
    with sleeping(postgres) as (proxy, conn):
        cancel = wire.Cancel(conn)
        with proxy.held(), pytest.raises(TimeoutError, match="within 0.2 s"):
            cancel.send(0.2)
        conn.pgconn.finish()  # it does not need it any more
        asked = len(proxy.attempts)
        cancel.send(30)
        assert cancel.done and len(proxy.attempts) == asked
        wait_until(lambda: not sleepers(postgres))


@cancels_in_steps
def test_a_cancel_that_cannot_be_sent_may_be_sent_again(postgres: PostgresServer) -> None:
    with sleeping(postgres) as (proxy, conn):
        cancel = wire.Cancel(conn)
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError, match="could not be sent"):
            cancel.send(30)
        proxy.accept()
        cancel.send(30)
        wait_until(lambda: not sleepers(postgres))


def test_one_limit_holds_for_all_commands_of_a_hook(make: Make) -> None:
    def slow(conn: psycopg.Connection[Any]) -> None:
        for _ in range(30):
            conn.execute("SELECT pg_sleep(0.4)")

    checked = make(settings=ONE.replace(validation_interval=0), check=slow)
    backend(checked)
    began = time.monotonic()
    with contextlib.suppress(pooling.PoolTimeout):  # or another one was made in the moment that was left
        checked.acquire(timeout=1.0).release()
    assert time.monotonic() - began < 6
    cleaned = make(settings=ONE.replace(reset_timeout=1.0), reset=slow)
    began = time.monotonic()
    backend(cleaned)
    assert time.monotonic() - began < 6
    wait_until(lambda: cleaned.metrics.snapshot().closed.get("reset") == 1)


def test_timeout_of_a_call_covers_all_its_commands(make: Make) -> None:
    pool = make(command_timeout=60)
    with pool.acquire() as conn:
        pool.session_rules.limit_to(conn, 3.0, 2.0)  # the rest was spent in line
        with pytest.raises(psycopg.errors.QueryCanceled):
            for _ in range(30):
                conn.execute("SELECT pg_sleep(1.2)")
        conn.rollback()  # there is always a moment left for that
        limit = notes_of(conn).limit
        assert limit is not None
        wait_until(lambda: limit.left() == limits.LEAST)  # what is left when the server is to stop
        assert str(limit) == "not done within 3 s"
    with pool.acquire() as conn:
        assert str(notes_of(conn).limit) == "a command took over 60 s"


@pytest.mark.parametrize(("timeout", "error"), [("3", TypeError), (-1, ValueError), (True, TypeError)])
def test_a_timeout_that_is_none_is_refused_by_name(make: Make, timeout: Any, error: type[Exception]) -> None:
    pool = make()
    for call in (lambda: pool.execute_query("SELECT 1", timeout=timeout),
                 lambda: pool.execute_many("SELECT %s", [(1,)], timeout=timeout),
                 lambda: pool.rotate(timeout=timeout)):  # fmt: skip
        with pytest.raises(error, match="timeout must be"):
            call()


def test_waiting_for_notifications_is_not_limited(make: Make, postgres: PostgresServer) -> None:
    pool = make(command_timeout=0.5, kwargs={"autocommit": True})
    with pool.acquire() as conn:
        conn.execute("LISTEN news")
        assert list(conn.notifies(timeout=2.0)) == []

        def notify() -> None:
            with postgres.connect(autocommit=True) as other:
                other.execute("NOTIFY news")

        timer = threading.Timer(2.0, notify)
        timer.start()
        assert [notify.channel for notify in conn.notifies(stop_after=1)] == ["news"]
        timer.join()


def test_a_hook_that_hangs_is_stopped(make: Make) -> None:
    pool = make(settings=ONE.replace(reset_timeout=0.5), reset=lambda conn: conn.execute("SELECT pg_sleep(60)"))
    first = backend(pool)
    assert backend(pool) != first


def test_session_idle_in_a_transaction_is_ended_by_the_server(make: Make) -> None:
    pool = make(idle_in_transaction_timeout=0.3)
    with pytest.raises(psycopg.OperationalError, match="lost before the commit"), pool.connection() as conn:
        conn.execute("SELECT 1")
        wait_until(lambda: not pool.engine.adapter.is_alive(conn))
    assert one(pool, "SELECT 1") == 1


# -- who it is, and as whom it comes -------------------------------------------------


def test_application_name_identifies_the_program(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    look = "SELECT current_setting('application_name')"
    assert one(make(name="orders"), look) == "orders"
    unnamed = make()
    assert one(unnamed, look) == f"{address.program()} {unnamed.name}"
    assert one(make(name="orders", kwargs={"application_name": "mine"}), look) == "mine"
    monkeypatch.setenv("PGAPPNAME", "from the environment")
    assert one(make(name="orders"), look) == "from the environment"


def test_environment_is_used_where_arguments_are_missing(
    make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres.dsn)
    assert one(make(""), "SELECT 1") == 1
    monkeypatch.delenv("DATABASE_URL")
    for name, value in (("PGHOST", LOOPBACK), ("PGPORT", str(postgres.port)), ("PGUSER", "postgres")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=1234kB")
    pool = make("", command_timeout=60)
    assert one(pool, "SHOW work_mem") == "1234kB" and one(pool, "SHOW statement_timeout") == "59s"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"conninfo": "postgresql//u:s3cret@h"}, ValueError, "conninfo is neither"),
        ({"conninfo": 3}, TypeError, "conninfo must be a string or a callable"),
        ({"kwargs": {"pasword": "s3cret"}}, ValueError, "kwargs: .*pasword"),
        ({"kwargs": 3}, TypeError, "kwargs must be a mapping"),
        ({"session": "dirty"}, ValueError, "session must be 'clean', 'trust' or a callable, not 'dirty'"),
        ({"configure": 3}, TypeError, "configure must be callable or None, not 3"),
        ({"reset": 3}, TypeError, "reset must be callable"),
        ({"check": "SELECT 1"}, TypeError, "check must be callable"),
        ({"command_timeout": 0}, ValueError, "command_timeout must be from 0.01"),
        ({"command_timeout": True}, TypeError, "command_timeout must be a number"),
        ({"idle_in_transaction_timeout": "1"}, TypeError, "idle_in_transaction_timeout must be a number"),
        ({"connection_class": psycopg.AsyncConnection}, TypeError, "connection_class must be"),
        ({"validation_query": ""}, ValueError, "validation_query must not be empty"),
        ({"settings": 3}, TypeError, "settings must be a PoolSettings"),
        ({"name": ""}, TypeError, "name must be a non-empty string"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        PostgresPool(**arguments)
    assert "s3cret" not in str(caught.value)


def test_a_silent_host_leaves_time_for_the_next(make: Make, postgres: PostgresServer) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:  # takes connections, and never says a word
        hosts = f"{LOOPBACK}:{silent.getsockname()[1]},{LOOPBACK}:{postgres.port}"
        pool = make(f"postgresql://postgres@{hosts}/postgres", ONE.replace(create_timeout=6))
        assert one(pool, "SELECT 1") == 1
        assert not any(pool.metrics.snapshot().errors.values())


class TLSFront:
    """Answers PostgreSQL's request for TLS with one that works; the server's own programs may lack it."""

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self._target, self._context = target, context
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self._target)) as server, conn:
            assert conn.recv(8)[4:] == b"\x04\xd2\x16\x2f"  # the code of SSLRequest
            conn.sendall(b"S")
            with self._context.wrap_socket(conn, server_side=True) as client:
                while True:
                    ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                    for source, sink in ((client, server), (server, client)):
                        if source in ready:
                            data = source.recv(65536)
                            if not data:
                                return
                            sink.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)


def test_tls_is_passed_through(postgres: PostgresServer, make: Make, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    front = TLSFront(postgres.port, context)
    try:
        dsn = postgres.dsn.replace(str(postgres.port), str(front.port))
        secure = {"sslmode": "verify-full", "sslrootcert": str(tmp_path / "ca.pem")}
        pool = make(dsn, kwargs=secure)
        for _ in range(3):
            with pool.connection() as conn:
                assert conn.pgconn.ssl_in_use and conn.execute("SELECT 1").fetchone() == (1,)
        assert pool.metrics.snapshot().created == 1  # alive is alive, encrypted or not
        cancelled(pool, 2.0)  # a cancel comes encrypted, too
        kill(postgres, backend(pool))
        wait_until(lambda: not pool.engine.adapter.is_alive(conn))  # the front has to see it first
        assert one(pool, "SELECT 1") == 1
        unknown = make(dsn.removesuffix("postgres") + "nope", kwargs=secure)
        if TOLD:
            with pytest.raises(CreateFailed, match="nope"):  # its code is read under TLS, too
                one(unknown, "SELECT 1")
        pool.close()
        unknown.close()
    finally:
        front.close()


class Rotation(Observer):
    """Counts generations."""

    def __init__(self) -> None:
        self.drained_times = 0

    def drained(self, pool: str) -> None:
        self.drained_times += 1


def users(server: PostgresServer, *names: str) -> None:
    with server.connect(autocommit=True) as conn:
        for name in names:
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 's3cret'").format(sql.Identifier(name)))


def test_changed_parameters_replace_the_connections_once_they_work(
    make: Make, private_postgres: PostgresServer
) -> None:
    server, seen = private_postgres, Rotation()
    users(server, "old", "new")
    asked = {"user": "old"}
    pool = make(server.dsn, PoolSettings(min_size=0, max_size=4), kwargs=lambda: dict(asked), observers=[seen])
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(pool.acquire())
        asked["user"] = "gone"  # does not work: the old ones stay
        with pytest.raises(pooling.PoolTimeout, match="gone"):
            stack.enter_context(pool.acquire(timeout=1))
    assert one(pool, "SELECT user") == "old" and seen.drained_times == 0
    asked["user"] = "new"
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(pool.acquire())
    wait_until(lambda: seen.drained_times)
    with contextlib.ExitStack() as stack:
        assert {stack.enter_context(pool.acquire()).info.user for _ in range(4)} == {"new"}
    assert seen.drained_times == 1


def test_tokens_that_differ_each_time_replace_nothing(make: Make, postgres: PostgresServer) -> None:
    seen, numbers = Rotation(), iter(range(1000))
    pool = make(
        postgres.dsn, PoolSettings(min_size=0, max_size=4), observers=[seen],
        kwargs=lambda: {"password": f"token {next(numbers)}"},
    )  # fmt: skip
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            pids = {stack.enter_context(pool.acquire()).info.backend_pid for _ in range(4)}
    assert len(pids) == 4 == pool.metrics.snapshot().created
    assert seen.drained_times == 0


def test_rotate(make: Make, private_postgres: PostgresServer) -> None:
    server = private_postgres
    users(server, "old", "new")
    asked = {"user": "old"}
    pool = make(server.dsn, PoolSettings(min_size=0, max_size=2), kwargs=lambda: dict(asked))
    with pool.acquire(), pool.acquire():
        pass
    asked["user"] = "gone"
    with pytest.raises(pooling.PoolTimeout, match="the old ones are kept") as caught:
        pool.rotate(timeout=1)
    assert "gone" in str(caught.value.__cause__)
    assert one(pool, "SELECT user") == "old"
    asked["user"] = "new"
    pool.rotate()
    with pool.acquire() as first, pool.acquire() as second:
        assert (first.info.user, second.info.user) == ("new", "new")
    before = backend(pool)
    pool.rotate()  # nothing has changed, and yet
    assert backend(pool) != before
    pool.close()
    with pytest.raises(pooling.PoolClosed):
        pool.rotate()


def test_rotate_and_open_end_an_outage(make: Make, postgres: PostgresServer) -> None:
    forever = pooling.Backoff(initial=600, maximum=600, jitter=False, probe_interval=500)
    for mend in ("rotate", "open"):
        port = ["1"]
        pool = make(
            lambda port=port: postgres.dsn.replace(str(postgres.port), port[0]),
            ONE.replace(min_size=1, acquire_timeout=30, backoff=forever),
        )
        with pytest.raises(pooling.PoolTimeout):
            pool.acquire(timeout=1.0)
        assert pool.stats()["down"]  # and without an acquire it is not tried again for minutes
        port[0] = str(postgres.port)
        getattr(pool, mend)()
        assert one(pool, "SELECT 1") == 1


def test_rotate_tries_again_while_it_waits(make: Make, postgres: PostgresServer) -> None:
    port = [str(postgres.port)]
    pool = make(lambda: postgres.dsn.replace(str(postgres.port), port[0]), TWO)
    before = backend(pool)
    port[0] = "1"
    timer = threading.Timer(1.5, lambda: port.__setitem__(0, str(postgres.port)))
    timer.start()
    pool.rotate(timeout=60)
    timer.join()
    assert backend(pool) != before


@needs_to_be_told
@pytest.mark.parametrize("mend", ["rotate", "open"])
def test_final_failure_ends_with_rotate_or_open(make: Make, postgres: PostgresServer, mend: str) -> None:
    name = ["nope"]
    forever = pooling.Backoff(initial=600, maximum=600, jitter=False)
    pool = make(
        lambda: postgres.dsn.removesuffix("postgres") + name[0], ONE.replace(min_size=1, backoff=forever)
    )
    for _ in range(2):
        with pytest.raises(CreateFailed):
            one(pool, "SELECT 1")
    with pytest.raises(CreateFailed):  # still is
        getattr(pool, mend)()
    name[0] = "postgres"
    getattr(pool, mend)()
    assert one(pool, "SELECT 1") == 1


# -- what it says ------------------------------------------------------------------


@needs_statements
def test_pool_stats_have_the_documented_names(make: Make) -> None:
    pool = make(query_statistics=True)
    one(pool, "SELECT 1")
    with pool.acquire():
        stats = pool.get_pool_stats()
    assert set(stats) == {"current_state", "health_metrics", "queries"}
    state, health = stats["current_state"], stats["health_metrics"]
    assert (state["active_connections"], state["idle_connections"], state["max_size"]) == (1, 0, 1)
    assert set(health) == {
        "active_connections", "idle_connections", "waiting_requests", "total_connections_created",
        "total_connections_closed", "connection_errors", "connection_timeouts",
        "avg_connection_acquisition_time", "max_connection_acquisition_time",
        "health_check_failures", "last_health_check", "pool_exhausted_count",
    }  # fmt: skip
    assert (health["total_connections_created"], health["connection_errors"]) == (1, 0)
    assert stats["queries"]["count"] == 1


@needs_statements
def test_queries_are_counted_and_the_slowest_listed(make: Make, table: str) -> None:
    pool = make(query_statistics=True)
    assert pool.query_statistics is not None
    pool.execute_query("SELECT pg_sleep(0.2), 's3cret', $$s3cret$$", None)
    for number in range(20):
        with pool.connection() as conn:
            conn.execute("INSERT INTO t VALUES (%s)", [number])
    with pytest.raises(psycopg.errors.UniqueViolation):
        pool.execute_query("INSERT INTO t VALUES (1)")
    pool.execute_many(sql.SQL("INSERT INTO t VALUES ({})").format(sql.Placeholder()), [(100,), (101,)])
    found = pool.query_statistics.to_dict()
    assert found["count"] == 23 and found["errors"] == 1
    assert found["errors_by_sqlstate"] == {"23505": 1}
    assert found["slowest"][0]["query"] == "SELECT pg_sleep(?), '?', '?'"
    assert found["slowest"][0]["seconds"] == found["max"] >= 0.2
    assert len([slow for slow in found["slowest"] if slow["query"] == "INSERT INTO t VALUES (%s)"]) == 1
    assert 0 < found["p50"] <= found["p95"] <= found["max"] and found["mean"] > 0
    pool.query_statistics.reset()
    assert pool.query_statistics.to_dict()["count"] == 0
    with pool.connection() as conn:
        with conn.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write_row((200, 0))
        with pytest.raises(psycopg.errors.UndefinedTable), conn.cursor().copy("COPY no FROM STDIN"):
            pass
        conn.rollback()
    found = pool.query_statistics.to_dict()
    assert (found["count"], found["errors"]) == (2, 1)
    assert {slow["query"] for slow in found["slowest"]} == {"COPY t FROM STDIN", "COPY no FROM STDIN"}


def test_query_statistics_are_off_until_they_are_switched_on(make: Make) -> None:
    pool = make()
    one(pool, "SELECT 1")
    assert pool.query_statistics is None and "queries" not in pool.get_pool_stats()


def test_exhaustion_is_counted(make: Make) -> None:
    told: list[int] = []

    class Alarm(Observer):
        def exhausted(self, pool: str, waiting: int) -> None:
            told.append(waiting)

    pool = make(observers=[Alarm()])
    with pool.acquire(), pytest.raises(pooling.PoolTimeout):
        pool.acquire(timeout=0.1)
    assert told == [1] and pool.get_pool_stats()["health_metrics"]["pool_exhausted_count"] == 1


# -- what connecting fails of ----------------------------------------------------------


@needs_to_be_told
def test_final_errors_are_raised_at_once_in_any_language(
    make: Make, private_postgres: PostgresServer
) -> None:
    server = private_postgres
    users(server, "app")
    (server.data / "pg_hba.conf").write_text(
        f"host all postgres {LOOPBACK}/32 trust\nhost all app {LOOPBACK}/32 scram-sha-256\n"
    )
    server.restart()
    for number, (dsn, state) in enumerate((
        (server.dsn.removesuffix("postgres") + "nope", "3D000"),
        (server.dsn.replace("postgres@", "nobody@"), "28000"),
        (server.dsn.replace("postgres@", "app:wr0ng@"), "28P01"),
    )):  # fmt: skip
        pool = make(dsn)
        for _ in range(3):
            with pytest.raises(CreateFailed) as caught:
                one(pool, "SELECT 1")
            assert caught.value.__cause__.sqlstate == state  # type: ignore[union-attr]
            assert "wr0ng" not in repr(vars(caught.value.__cause__))
        changing = make(lambda dsn=dsn: dsn, ONE.replace(acquire_timeout=1))
        with pytest.raises(CreateFailed if number == 0 else pooling.PoolTimeout):
            one(changing, "SELECT 1")  # another password may come any time, another database not


@needs_to_be_told
def test_each_error_text_is_traced_once(postgres: PostgresServer) -> None:
    listener = trace.Listener()
    dsn = postgres.dsn.removesuffix("postgres") + "nope"
    traced = []
    for _ in range(4):
        with pytest.raises(psycopg.OperationalError) as caught, listener.attempt():
            traced.append(trace.listening() is not None)
            tracked(psycopg.Connection, False).connect(dsn)
        assert caught.value.sqlstate == "3D000" and failures.is_hopeless(caught.value, False)
    assert traced == [True, False, False, False]


def refusal(state: str, text: str) -> bytes:
    """What a server sends that refuses a connection, in its own language."""
    fields = {"S": "致命的エラー", "V": "FATAL", "C": state, "M": text, "F": "x.c", "L": "1", "R": "x"}
    body = b"".join(code.encode() + value.encode() + b"\0" for code, value in fields.items()) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


@contextlib.contextmanager
def answering(answer: Callable[[], bytes]) -> Iterator[str]:
    """A server that says one thing to each who connects, and hangs up; yields how to reach it."""
    listener = socket.create_server((LOOPBACK, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = listener.accept()
                with conn, contextlib.suppress(OSError):
                    last = answer()
                    while conn.recv(4096)[4:8] == b"\x04\xd2\x16\x2f":  # TLS?
                        conn.sendall(b"N")
                    conn.sendall(last)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"postgresql://app@{LOOPBACK}:{listener.getsockname()[1]}/orders"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


@needs_to_be_told
def test_attempt_is_repeated_unless_the_server_hung_up_without_a_message() -> None:
    """To hear what it means. In an outage that is heard one attempt later (P7)."""
    starting, wrong = refusal("57P03", "starting"), refusal("28P01", "wrong")
    full, gone = refusal("53300", "full"), refusal("3D000", "gone")
    answers: list[bytes] = []
    asked: list[int] = []

    def answer() -> bytes:
        asked.append(len(answers))
        return answers.pop(0) if answers else b""

    with answering(answer) as dsn, PostgresPool(dsn, ONE) as pool:
        adapter = pool.engine.adapter
        assert isinstance(adapter, PostgresAdapter)

        def attempt(*seen: bytes) -> str | None:
            """Try to connect, with one answer for each time that it may; return what the error says."""
            answers[:], asked[:] = seen, []
            with pytest.raises(psycopg.OperationalError) as caught:
                adapter.create()
            assert len(asked) == len(seen)
            return caught.value.sqlstate

        assert attempt(starting) == "57P03"  # the first one listens
        assert attempt(b"", b"") is None  # hung up without a word: what does that mean?
        for _ in range(3):
            assert attempt(b"") is None  # it is known now
        assert attempt(wrong) is None  # that is new, and was not listened for
        assert attempt(wrong) == "28P01"
        assert attempt(full, full) == "53300"  # it speaks
        assert attempt(b"") is None
        with adapter._listener.attempt():
            pass  # it works again
        assert attempt(gone, gone) == "3D000"


@needs_to_be_told
@pytest.mark.parametrize(("state", "final"), [("3D000", True), ("28P01", True), ("57P03", False), ("53300", False)])
def test_a_refusal_is_understood_in_any_language(state: str, final: bool) -> None:
    last = refusal(state, "データベース「orders」は存在しません")
    with answering(lambda: last) as dsn, PostgresPool(dsn, ONE) as pool:
        with pytest.raises(CreateFailed if final else pooling.PoolTimeout) as caught:
            pool.acquire(timeout=1)
        cause = caught.value.__cause__
        assert isinstance(cause, psycopg.OperationalError) and cause.sqlstate == state
        assert failures.is_full(cause) == (state == "53300")
