"""A release that does not wait for the answer to the cleaning: what each next step does while it is still to come."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pooling import PoolSettings, PoolTimeout, PostgresPool
from pooling.adapters.postgres.tracking import notes_of
from tests.proxy import Proxy
from tests.servers import LOOPBACK, PostgresServer

from .tools import in_thread

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30, health_check_interval=None)
TWO = ONE.replace(max_size=2)


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    with Proxy(postgres.port) as proxy:
        yield proxy


@contextlib.contextmanager
def opened(proxy: Proxy, settings: PoolSettings = ONE, **options: Any) -> Iterator[PostgresPool]:
    dsn = f"host={LOOPBACK} port={proxy.port} user=postgres dbname=postgres"
    with contextlib.closing(PostgresPool(dsn, settings, kwargs={"autocommit": True}, **options)) as pool:
        use_all(pool)
        yield pool


def use_all(pool: PostgresPool) -> None:
    """Use each connection: the first cleaning of each is waited for."""
    with contextlib.ExitStack() as stack:
        for conn in [stack.enter_context(pool.acquire()) for _ in range(pool.settings.max_size)]:
            conn.execute("SELECT 1")


def use(pool: PostgresPool) -> int:
    """Leave a lock and a setting in a session; return its backend."""
    with pool.acquire(30) as conn:
        conn.execute("SELECT pg_advisory_lock(4711)")
        conn.execute("SET application_name = 'left behind'")
        return conn.info.backend_pid


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "never"
        time.sleep(0.01)


def left(pool: PostgresPool) -> list[tuple[Any, ...]]:
    """What the next borrower finds of the last one."""
    with pool.acquire(30) as conn:
        return conn.execute(
            "SELECT count(*), current_setting('application_name') <> 'left behind'"
            " FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        ).fetchall()


@pytest.mark.parametrize("piece", [1, 7, 40])
def test_an_answer_in_pieces_is_read_to_its_end(proxy: Proxy, piece: int) -> None:
    with opened(proxy) as pool:
        proxy.crumble(piece)
        for _ in range(3):
            use(pool)
            assert left(pool) == [(0, True)]
            with pool.connection() as conn:
                conn.autocommit = False
                conn.execute("SET application_name = 'left behind'")
            assert left(pool) == [(0, True)]


def test_a_release_does_not_wait_for_the_answer(proxy: Proxy) -> None:
    with opened(proxy) as pool:
        with pool.acquire() as conn:
            conn.execute("SELECT pg_advisory_lock(4711)")
            backend = conn.info.backend_pid
            proxy.hold()
        assert pool.stats()["idle"] == 1
        proxy.release()
        assert left(pool) == [(0, True)]
        assert use(pool) == backend


def test_locks_are_freed_although_nobody_acquires(proxy: Proxy, postgres: PostgresServer) -> None:
    with opened(proxy) as pool, postgres.connect(autocommit=True) as other:
        use(pool)
        other.execute("SET lock_timeout = '30s'")
        other.execute("SELECT pg_advisory_lock(4711)")
        assert pool.stats()["idle"] == 1


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_borrower_whose_time_is_up_leaves_the_connection_to_the_next(proxy: Proxy, timeout: float) -> None:
    with opened(proxy) as pool:
        backend = use(pool)
        assert left(pool) == [(0, True)]  # also: the cleaning before has ended
        with pool.acquire() as conn:
            conn.execute("SET application_name = 'left behind'")
            proxy.hold()
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout)
        assert time.monotonic() - began < 4  # not reset_timeout
        proxy.release()
        assert left(pool) == [(0, True)]
        assert use(pool) == backend


def test_a_borrower_takes_another_connection_if_the_answer_is_late(postgres: PostgresServer, proxy: Proxy) -> None:
    with opened(proxy, TWO) as pool:
        proxy.accept()
        with pool.acquire() as first, pool.acquire() as second:
            backends = {first.info.backend_pid, second.info.backend_pid}
        with pool.acquire() as conn:
            conn.execute("SELECT 1")
            late = conn.info.backend_pid
            os.kill(late, signal.SIGSTOP)
        try:
            with pool.acquire(30) as conn:
                assert {conn.info.backend_pid} == backends - {late}
                assert pool.stats()["checking"] == 1  # a worker waits for the answer
        finally:
            os.kill(late, signal.SIGCONT)
        soon(lambda: pool.stats()["idle"] == 2)
        with pool.acquire() as first, pool.acquire() as second:
            assert {first.info.backend_pid, second.info.backend_pid} == backends


def test_a_cleaning_that_is_not_answered_in_time_costs_the_connection(proxy: Proxy) -> None:
    with opened(proxy, ONE.replace(reset_timeout=0.5)) as pool:
        with pool.acquire() as conn:
            conn.execute("SELECT 1")
            before = conn.info.backend_pid
            proxy.drop(keep=True)
        assert use(pool) != before
        assert pool.metrics.snapshot().closed["reset"] == 1
        assert pool.metrics.snapshot().errors["reset"] == 1


@pytest.mark.parametrize("when", ["before the answer", "after it"])
def test_a_backend_that_ends_costs_no_borrower_an_error(proxy: Proxy, postgres: PostgresServer, when: str) -> None:
    with opened(proxy) as pool, postgres.connect(autocommit=True) as other:
        for _ in range(5):
            with pool.acquire() as conn:
                conn.execute("SELECT 1")
                backend = conn.info.backend_pid
                if when == "before the answer":
                    proxy.hold()
            assert pool.stats()["idle"] == 1
            if when == "after it":
                soon(lambda backend=backend: is_idle(other, backend))
            other.execute("SELECT pg_terminate_backend(%s, 30000)", [backend])
            proxy.release()
            assert left(pool) == [(0, True)]
        closed = pool.metrics.snapshot().closed
        assert closed["dead"] == 5 and "reset" not in closed


def is_idle(conn: psycopg.Connection[Any], backend: int) -> bool:
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'idle' AND query LIKE %s"
    return bool(conn.execute(query, [backend, "%DISCARD SEQUENCES%"]).fetchall())


def test_a_cleaning_that_fails_costs_the_connection_and_no_borrower(postgres: PostgresServer) -> None:
    with contextlib.closing(PostgresPool(postgres.dsn, ONE, kwargs={"autocommit": True})) as pool:
        session = pool.session_rules
        session.steps = (b"SELECT 1 / current_setting('my.divisor')::int", *session.steps)
        session.take_steps()
        with pool.acquire() as conn:
            conn.execute("SET my.divisor = 1")
        with pool.acquire() as conn:
            conn.execute("SET my.divisor = 0")
            before = conn.info.backend_pid
        assert pool.stats()["idle"] == 1
        with pool.acquire() as conn:
            assert conn.info.backend_pid != before
            conn.execute("SET my.divisor = 1")
        assert pool.metrics.snapshot().errors["reset"] == 1


def test_notifications_of_the_last_borrower_are_dropped_with_the_answer(postgres: PostgresServer) -> None:
    with contextlib.closing(PostgresPool(postgres.dsn, ONE, kwargs={"autocommit": True})) as pool:
        with postgres.connect(autocommit=True) as other:
            with pool.acquire() as conn:
                conn.execute("LISTEN news")
                other.execute("NOTIFY news")
            other.execute("NOTIFY news")
        with pool.acquire() as conn:
            assert list(conn.notifies(timeout=0.2)) == []


@pytest.mark.parametrize("end", ["close", "drain", "check", "health", "probe"])
def test_what_else_can_come_while_the_answer_is_to_come(proxy: Proxy, postgres: PostgresServer, end: str) -> None:
    with opened(proxy, ONE.replace(health_check_timeout=0.5)) as pool, postgres.connect(autocommit=True) as other:
        with pool.acquire() as conn:
            conn.execute("SET application_name = 'being cleaned'")
            backend = conn.info.backend_pid
            proxy.hold()
        if end == "close":
            pool.close()
        elif end == "drain":
            pool.drain()
        elif end == "check":
            pool.check()
            assert pool.stats()["idle"] == 1
        elif end == "health":
            pool.reconfigure(health_check_interval=60)
            pool.check_health_now()
            soon(lambda: pool.metrics.snapshot().closed)
        else:
            began = time.monotonic()
            with pytest.raises(PoolTimeout):
                pool.probe(1)
            assert time.monotonic() - began < 4  # not reset_timeout
        proxy.release()
        if end in ("close", "drain"):
            soon(lambda: not other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]).fetchall())
        if end != "close":
            assert left(pool) == [(0, True)]
            assert (use(pool) == backend) is (end in ("check", "probe"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_leaves_the_answer_to_the_parent(proxy: Proxy) -> None:
    with opened(proxy) as pool:
        with pool.acquire() as conn:
            conn.execute("SELECT 1")
            backend = conn.info.backend_pid
            proxy.hold()
        child = os.fork()
        if not child:
            code = 1
            try:
                code = pool.stats()["size"]
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        proxy.release()
        assert left(pool) == [(0, True)]
        assert use(pool) == backend


def test_under_load_each_borrower_finds_a_clean_session(postgres: PostgresServer) -> None:
    wrong: list[object] = []

    def work() -> None:
        for _ in range(100):
            with pool.acquire(30) as conn:
                found = conn.execute(
                    "SELECT current_setting('application_name') FROM pg_advisory_unlock_all()"
                    " WHERE EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
                    " OR current_setting('application_name') = 'left behind'"
                ).fetchall()
                if found or notes_of(conn).cleaning is not None:
                    wrong.append(found)
                conn.execute("SELECT pg_advisory_lock_shared(4712)")
                conn.execute("SET application_name = 'left behind'")

    settings = ONE.replace(max_size=3)
    with contextlib.closing(PostgresPool(postgres.dsn, settings, kwargs={"autocommit": True})) as pool:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        snapshot = pool.metrics.snapshot()
        assert snapshot.released == 1200 and snapshot.created == 3 and not snapshot.errors


def test_a_waiter_gets_the_connection_before_the_answer(proxy: Proxy) -> None:
    found: list[object] = []
    with opened(proxy) as pool:
        with pool.acquire() as conn:
            conn.execute("SET application_name = 'left behind'")
            backend = conn.info.backend_pid
            waiter = in_thread(lambda: found.append(left(pool)))
            soon(lambda: pool.stats()["waiting"] == 1)
            proxy.hold()
        assert pool.stats()["idle"] == 0
        proxy.release()
        waiter.join(30)
        assert found == [[(0, True)]]
        assert use(pool) == backend


def test_a_free_slot_is_used_while_an_answer_is_late(postgres: PostgresServer) -> None:
    settings = ONE.replace(max_size=1)
    with contextlib.closing(PostgresPool(postgres.dsn, settings, kwargs={"autocommit": True})) as pool:
        use_all(pool)
        pool.resize(max_size=3)
        with pool.acquire() as conn:
            conn.execute("SELECT 1")
            late = conn.info.backend_pid
            os.kill(late, signal.SIGSTOP)
        try:
            with pool.acquire(3) as conn:
                assert conn.info.backend_pid != late
        finally:
            os.kill(late, signal.SIGCONT)


def test_an_answer_in_many_pieces_that_has_come_in_time_is_read_later(postgres: PostgresServer) -> None:
    """Notifications come before it, more than libpq reads at once."""
    settings = ONE.replace(reset_timeout=0.5)
    with contextlib.closing(PostgresPool(postgres.dsn, settings, kwargs={"autocommit": True})) as pool:
        use_all(pool)
        with postgres.connect(autocommit=True) as other, pool.acquire() as conn:
            backend = conn.info.backend_pid
            conn.execute("LISTEN news")
            for number in range(40):
                other.execute("SELECT pg_notify('news', %s)", [f"{number}" + "x" * 7000])
        time.sleep(0.6)
        with pool.acquire() as conn:
            assert conn.info.backend_pid == backend
        assert not pool.metrics.snapshot().errors


def test_a_configure_that_listens_loses_no_notification(postgres: PostgresServer) -> None:
    def listen(conn: psycopg.Connection[Any]) -> None:
        conn.execute("LISTEN news")

    pool = PostgresPool(postgres.dsn, ONE, configure=listen, kwargs={"autocommit": True})
    with contextlib.closing(pool), postgres.connect(autocommit=True) as other:
        use_all(pool)
        use(pool)
        other.execute("NOTIFY news")
        with pool.acquire() as conn:
            assert [one.channel for one in conn.notifies(timeout=5, stop_after=1)] == ["news"]


def test_a_users_check_is_made_also_after_a_wait_for_the_answer(proxy: Proxy) -> None:
    checked: list[int] = []
    settings = ONE.replace(validation_interval=0)
    with opened(proxy, settings, check=lambda conn: checked.append(conn.info.backend_pid)) as pool:
        use(pool)
        checked.clear()
        with pool.acquire():
            pass
        assert len(checked) == 1


def test_a_flood_of_notifications_does_not_keep_locks_for_long(postgres: PostgresServer) -> None:
    """The server cannot go on until somebody reads what it has to say: a sweep does."""
    with contextlib.closing(PostgresPool(postgres.dsn, ONE, kwargs={"autocommit": True})) as pool:
        use_all(pool)
        with postgres.connect(autocommit=True) as other:
            with pool.acquire() as conn:
                conn.execute("SELECT pg_advisory_lock(4711)")
                conn.execute("LISTEN news")
                for _ in range(400):
                    other.execute("SELECT pg_notify('news', i || repeat('x', 7000)) FROM generate_series(1, 8) i")
            other.execute("SET lock_timeout = '30s'")
            other.execute("SELECT pg_advisory_lock(4711)")


def test_a_connection_whose_cleaning_waits_is_not_left_to_the_server(postgres: PostgresServer) -> None:
    """P2: its slot is free only when the server has ended it, or was told to."""
    with contextlib.closing(PostgresPool(postgres.dsn, ONE, kwargs={"autocommit": True})) as pool:
        use_all(pool)
        session = pool.session_rules
        session.steps = (b"SELECT pg_sleep(30)", *session.steps)
        session.take_steps()
        with pool.acquire() as conn:
            conn.execute("SELECT 1")
            backend = conn.info.backend_pid
        pool.drain()
        soon(lambda: not pool.stats()["size"])
        with postgres.connect(autocommit=True) as other:
            assert not other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]).fetchall()
