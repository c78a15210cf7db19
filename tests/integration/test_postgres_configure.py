"""What `configure` did is kept, or done again with a cleaning, at the price of what it changed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.multirange import MultirangeInfo
from psycopg.types.range import RangeInfo

from pooling import PoolSettings, PostgresPool
from pooling.adapters.postgres.configured import kind_of
from tests.servers import PostgresServer

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)
Hook = Callable[[Any], object]
Make = Callable[..., PostgresPool]


@pytest.fixture
def make(postgres: PostgresServer) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def made(configure: Hook, **options: Any) -> PostgresPool:
            pool = PostgresPool(postgres.dsn, ONE, configure=configure, **options)
            return stack.enter_context(contextlib.closing(pool))

        yield made


@pytest.fixture
def types(postgres: PostgresServer) -> Iterator[None]:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE TYPE pair AS (a int, b text); CREATE TYPE mood AS ENUM ('sad', 'happy')")
        yield
        conn.execute("DROP TYPE pair; DROP TYPE mood")


def register(conn: psycopg.Connection[Any]) -> None:
    """Look types up, as pgvector's register_vector() does."""
    pair = CompositeInfo.fetch(conn, "pair")
    mood = EnumInfo.fetch(conn, "mood")
    assert pair is not None and mood is not None
    register_composite(pair, conn)
    register_enum(mood, conn)
    info = TypeInfo.fetch(conn, "box")
    assert info is not None
    info.register(conn)
    assert TypeInfo.fetch(conn, "missing") is None


class Counting:
    """Counts calls of a hook."""

    def __init__(self, hook: Hook) -> None:
        self.hook, self.calls = hook, 0

    def __call__(self, conn: Any) -> None:
        self.calls += 1
        self.hook(conn)


def spoil(pool: PostgresPool, how: str = "block") -> None:
    """Leave as much as a borrower can."""
    with contextlib.suppress(ValueError), pool.connection() as conn:
        conn.execute("SET search_path = nowhere; SET app.tenant = 'other'; SET work_mem = '9MB'; UNLISTEN *")
        conn.execute("CREATE TEMP TABLE IF NOT EXISTS rates (n int); DELETE FROM rates")
        conn.execute("SELECT pg_advisory_unlock_all()")
        conn.row_factory = psycopg.rows.dict_row
        conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)
        if how == "error":
            raise ValueError


def statements(server: PostgresServer, work: Callable[[], object]) -> list[str]:
    """What the server executes meanwhile, by its log."""
    server.configure(log_statement="all")
    try:
        mark = server.log.stat().st_size
        work()
        text = server.log.read_bytes()[mark:].decode()
    finally:
        server.configure(log_statement="none")
    return [line for line in text.splitlines() if "statement:" in line or "execute <unnamed>" in line]


@pytest.mark.parametrize("how", ["block", "error"])
def test_look_ups_of_types_are_made_once(make: Make, types: None, how: str) -> None:
    hook = Counting(register)
    pool = make(hook)
    for _ in range(3):
        spoil(pool, how)
        with pool.connection() as conn:
            row = conn.execute("SELECT (1, 'x')::pair, 'sad'::mood").fetchone()
            assert type(row) is tuple and row[0].b == "x" and row[1].name == "sad"
    assert hook.calls == 1


def lease_often(pool: PostgresPool, times: int) -> None:
    """Lease a connection, and wait for the end of the last cleaning."""
    for _ in range(times):
        pool.execute_query("SELECT 1")
    with pool.acquire():
        pass


def test_a_lease_costs_no_look_up(make: Make, postgres: PostgresServer, types: None) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None:
        register(conn)
        conn.execute("SET work_mem = '5MB'")

    pools = [make(lambda conn: None), make(register), make(configure)]
    counts = []
    for pool in pools:
        lease_often(pool, 1)
        counts.append(len(statements(postgres, lambda: lease_often(pool, 5))))  # noqa: B023
    assert counts[0] == counts[1]
    assert counts[2] == counts[0]  # it is set again in the same round trip


@pytest.mark.parametrize("session", ["clean", "trust"])
@pytest.mark.parametrize("how", ["block", "error"])
def test_what_a_cleaning_undoes_is_done_again(make: Make, how: str, session: str) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None:
        conn.execute("SET work_mem = '5MB'")
        conn.execute("SELECT set_config('app.tenant', %s, false)", ["o'ne"])
        conn.execute(sql.SQL("SET search_path TO {}, public").format(sql.Identifier("Mine")))
        conn.execute("LISTEN news; -- of the day")
        conn.execute("CREATE TEMP TABLE rates AS SELECT 7 AS n -- by name")
        conn.execute("INSERT INTO rates (n) VALUES (%(n)s)", {"n": 8})
        with conn.pipeline():
            conn.execute("SELECT pg_advisory_lock(42)")

    hook = Counting(configure)
    pool = make(hook, session=session)
    for _ in range(3):
        if session == "clean":
            spoil(pool, how)
        else:
            with pool.connection() as conn:
                conn.execute("SELECT 1")
        with pool.connection() as conn:
            assert conn.execute(
                "SELECT current_setting('work_mem'), current_setting('app.tenant'), current_setting('search_path'),"
                " (SELECT array_agg(n) FROM rates), (SELECT array_agg(c) FROM pg_listening_channels() AS c),"
                " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
            ).fetchone() == ("5MB", "o'ne", '"Mine", public', [7, 8], ["news"], 1)
    assert hook.calls == 1


def test_what_cannot_be_recorded_calls_the_hook_again(make: Make, postgres: PostgresServer) -> None:
    def copy(conn: psycopg.Connection[Any]) -> None:
        conn.execute("CREATE TEMP TABLE rates (n int)")
        with conn.cursor().copy("COPY rates FROM STDIN") as into:
            into.write("7\n")

    def undone(conn: psycopg.Connection[Any]) -> None:
        conn.execute("CREATE TEMP TABLE rates AS SELECT 7 AS n")
        conn.commit()
        conn.execute("DELETE FROM rates")
        conn.rollback()

    def alone(conn: psycopg.Connection[Any]) -> None:
        conn.commit()
        conn.autocommit = True
        conn.execute("CREATE TEMP TABLE rates AS SELECT 7 AS n")
        conn.execute("VACUUM rates")  # not together with others
        conn.autocommit = False

    for configure in (copy, undone, alone):
        hook = Counting(configure)
        pool = make(hook)
        pids = set()
        for _ in range(3):
            spoil(pool)
            with pool.connection() as conn:
                pids.add(conn.info.backend_pid)
                assert conn.execute("SELECT n FROM rates").fetchall() == [(7,)], configure
        assert hook.calls > 1 and len(pids) == 1, configure
        pool.close()


def test_a_hook_that_fails_is_no_wait_of_its_own(make: Make) -> None:
    seen: list[Any] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        seen.append(conn)
        conn.execute("SELECT 1")

    pool = make(configure)
    with pool.acquire() as conn:
        assert "wait" not in vars(conn) and conn is seen[0]


def test_what_is_written_to_stay_is_not_written_again(make: Make, postgres: PostgresServer) -> None:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE logins (who text)")
    try:
        pool = make(lambda conn: conn.execute("INSERT INTO logins (who) VALUES (%s)", ["me"]))
        for _ in range(3):
            spoil(pool)
        assert pool.execute_query("SELECT count(*) FROM logins") == [(1,)]
        pool.close()
    finally:
        with postgres.connect(autocommit=True) as conn:
            conn.execute("DROP TABLE logins")


def test_no_warning_of_a_reset(make: Make, types: None, caplog: pytest.LogCaptureFixture) -> None:
    pool = make(register)
    for _ in range(5):
        spoil(pool)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert pool.metrics.snapshot().created == 1


@pytest.mark.parametrize("info", [TypeInfo, RangeInfo, MultirangeInfo, CompositeInfo, EnumInfo])
def test_psycopgs_own_look_ups_are_known(postgres: PostgresServer, info: Any) -> None:
    with postgres.connect() as conn:
        query = info._get_info_query(conn)
        assert kind_of(query if isinstance(query, str) else query.as_string(conn)) == ("kept", False)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("kept", "SELECT typname, oid FROM pg_type WHERE typname = ANY(%s)"),
        ("kept", "select pg_catalog.format_type(oid, NULL) from pg_catalog.pg_type -- f(x)"),
        ("kept", "SELECT 'set_config(1)', \"f(\" FROM t"),
        ("kept", "SHOW server_version;"),
        ("kept", "WITH a (x) AS (SELECT 1) SELECT x FROM a"),
        ("kept", "CREATE EXTENSION IF NOT EXISTS vector"),
        ("kept", "PREPARE q AS SELECT f(1)"),
        ("kept", "SET LOCAL work_mem = '1MB'"),
        ("data", "INSERT INTO public.t (a) VALUES (now())"),
        ("data", "WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x"),
        ("undone", "SET search_path = a"),
        ("undone", "SELECT set_config('a.b', 'c', false)"),
        ("undone", "SELECT mine.format_type(1)"),
        ("undone", "SELECT \"lower\"('X')"),
        ("undone", "SELECT prepare_session()"),
        ("undone", "SELECT pg_catalog . set_config('a.b', 'c', false)"),
        ("undone", "SELECT/**/set_config('a.b', 'c', false)"),
        ("undone", "SELECT set_config ('a.b', 'c', false)"),
        ("undone", "SELECT 1; SET work_mem = '1MB'"),
        ("undone", "SELECT E'\\'' || f(1)"),
        ("undone", "SELECT $a$ ' $a$ || f(1) || ' '"),
        ("undone", "SELECT 1 AS n INTO TEMP t"),
        ("undone", "CREATE TEMP TABLE t (n int)"),
        ("undone", "CREATE TABLE pg_temp.t (n int)"),
        ("undone", "DO 'BEGIN END'"),
        ("undone", "CALL p()"),
        ("undone", "EXECUTE q"),
        ("undone", "DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
        ("undone", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"),
        ("undone", "INSERT INTO t SELECT f(1)"),
        ("undone", "ALTER ROLE app SET work_mem = '1MB'"),
        ("undone", ""),
    ],
)  # fmt: skip
def test_kinds_of_statements(kind: str, text: str) -> None:
    assert kind_of(text)[0] == kind
