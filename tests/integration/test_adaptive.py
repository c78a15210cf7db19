"""Adaptive size against a real PostgreSQL whose function `work` slows down beyond 12 sessions that run it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pooling import Observer, PostgresPool
from pooling.core.maintenance import Maintenance
from tests.servers import PostgresServer

THREADS, MOST = 40, 40
KNEE = 12

# Sessions that run it hold a shared advisory lock, and count these. 0.1 s each up to 12 of them, then all share less.
WORK = """
CREATE OR REPLACE FUNCTION work() RETURNS int LANGUAGE plpgsql AS $$
DECLARE n int;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(4242);
    SELECT count(*) INTO n FROM pg_locks WHERE locktype = 'advisory' AND objid = 4242;
    PERFORM pg_sleep(0.1 * greatest(1.0, n / 12.0 * (1 + 0.1 * (n - 12))));
    RETURN n;
END $$
"""


class Diary(Observer):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int, str]] = []

    def adapted(self, pool: str, before: int, after: int, reason: str, applied: bool) -> None:
        if applied:
            self.steps.append((before, after, reason))


@contextmanager
def busy(db: PostgresPool) -> Iterator[list[int]]:
    """Have threads call the function all the time; give the list of completed calls, one number each."""
    done: list[int] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            done.append(db.execute_query("SELECT work()")[0][0])

    threads = [threading.Thread(target=call) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def rate(done: list[int], seconds: float) -> float:
    """Return how many calls complete per second."""
    began, before = time.monotonic(), len(done)
    time.sleep(seconds)
    return (len(done) - before) / (time.monotonic() - began)


def rate_of_fixed(server: PostgresServer, size: int) -> float:
    with PostgresPool(server.dsn, min_size=size, max_size=size, acquire_timeout=60.0) as db, busy(db) as done:
        time.sleep(1.0)
        return rate(done, 5.0)


@pytest.mark.parametrize("counted", [False, True], ids=["sampled", "counted"])
def test_the_size_that_completes_most(postgres: PostgresServer, counted: bool) -> None:
    with postgres.connect(autocommit=True) as conn:
        conn.execute(WORK)
    diary = Diary()
    pool: Any = PostgresPool(
        postgres.dsn, min_size=0, max_size=MOST, adaptive="on", acquire_timeout=60.0, query_statistics=counted,
        observers=[diary],
    )  # fmt: skip
    with pool as db:
        maintenance = db.engine.ref()
        assert isinstance(maintenance, Maintenance) and maintenance.adapting is not None
        maintenance.adapting.windows.seconds = 2.5  # instead of 10
        with busy(db) as done:
            time.sleep(17.0)
            settled, found = db.stats()["max_size"], rate(done, 5.0)
        text = str(diary.steps)
        report = str(db.advise())
    best, most = rate_of_fixed(postgres, KNEE), rate_of_fixed(postgres, MOST)
    print(f"adaptive {found:.1f}/s at {settled}, fixed {KNEE}: {best:.1f}/s, fixed {MOST}: {most:.1f}/s; {text}")
    assert [step[:2] for step in diary.steps][:1] == [(10, 17)], text
    assert 11 <= settled <= 14, text
    assert found >= 0.88 * best and found >= 1.5 * most, text
    assert f"in the driver per lease ({'counted' if counted else 'sampled'}" in text
    assert "adaptive='on'" in report and "completions/s" in report
