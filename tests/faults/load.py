"""Threads that use a pool without a pause, check every answer, and write down what they saw."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import psycopg

from pooling import CommitUnknown, PoolError

__all__ = ["Load", "bare_query_time", "leaked_transactions", "wait_until"]

_numbers = itertools.count(1)


def wait_until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Return when it is so; fail if it never is."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@dataclass
class Load:
    """What the borrowers of one pool did. Times are monotonic.

    Attributes:
        good: When each correct answer was there.
        bad: Each error: when its call began, when it ended, the error.
        wrong: How many answers belonged to another query.
        committed, unknown: The numbers that were inserted, or may have been.
    """

    expected: ClassVar[tuple[type[Exception], ...]] = (psycopg.Error, PoolError)
    """The errors that are written down; any other ends the thread."""

    pool: Any
    threads: int
    insert: bool = False
    good: list[float] = field(default_factory=list)
    bad: list[tuple[float, float, BaseException]] = field(default_factory=list)
    wrong: int = 0
    longest: float = 0.0
    committed: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    _stop: bool = False

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Run for the length of the block, and return when all threads have ended."""
        crew = [threading.Thread(target=self._work) for _ in range(self.threads)]
        for thread in crew:
            thread.start()
        try:
            yield self
        finally:
            self._stop = True
            for thread in crew:
                thread.join(120)
            assert not any(thread.is_alive() for thread in crew), "a borrower hangs"

    def until_good_after(self, moment: float, more: int = 1) -> float:
        """Wait for so many good answers after a moment; return when the first one came."""
        wait_until(lambda: sum(when > moment for when in list(self.good)) >= more)
        return min(when for when in self.good if when > moment)

    def errors_after(self, moment: float) -> list[BaseException]:
        """Return the errors of calls that began after a moment."""
        return [error for began, _, error in self.bad if began > moment]

    def _work(self) -> None:
        while not self._stop:
            number, began = next(_numbers), time.monotonic()
            try:
                with self.pool.connection() as conn:
                    answer = self.ask(conn, number)
            except self.expected as error:
                self.bad.append((began, time.monotonic(), error))
                if isinstance(error, CommitUnknown):
                    self.unknown.add(number)
            else:
                now = time.monotonic()
                if answer == number:
                    self.good.append(now)
                    self.committed.add(number)
                else:
                    self.wrong += 1
                self.longest = max(self.longest, now - began)

    def ask(self, conn: Any, number: int) -> Any:
        """Insert or select a number, and return what the server answers."""
        if self.insert:
            row = conn.execute("INSERT INTO orders VALUES (%s) RETURNING n", [number]).fetchone()
        else:
            row = conn.execute("SELECT %s::bigint", [number]).fetchone()
        return row and row[0]


def leaked_transactions(dsn: str) -> int:
    """Return how many sessions sit in a transaction and do nothing."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def bare_query_time(dsn: str) -> float:
    """Return the seconds of a connect and a query without any pool."""
    began = time.monotonic()
    with psycopg.connect(dsn) as conn:
        conn.execute("SELECT 1")
    return time.monotonic() - began
