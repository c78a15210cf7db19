"""The responses of every application of the matrix, independent of its framework.

A response repeats the identity of its request, through the database, so that
a response to another request is detected.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from threading import Thread
from typing import Any, NamedTuple, Protocol

from pooling import Pool, PoolSettings, PoolTimeout

__all__ = ["MAX_SIZE", "PIECES", "ROWS", "SETTINGS", "Database", "Text", "answer"]

MAX_SIZE = 3
SETTINGS = PoolSettings(min_size=1, max_size=MAX_SIZE, acquire_timeout=20.0, idle_timeout=5.0)
ROWS = 100
PIECES = 400  # of 4 kB: more than sockets buffer
Text = str | Iterator[str]


class Statements(NamedTuple):
    """The SQL of the answers, in one dialect."""

    row: str = "SELECT n, token, %s::text FROM matrix WHERE n = %s"
    lock: str = "SELECT n FROM matrix WHERE n IN (%s, %s) ORDER BY n FOR UPDATE"
    add: str = "UPDATE matrix SET amount = amount + %s WHERE n = %s RETURNING n"
    stream: str = "SELECT n, %s::text, repeat('x', 4000) FROM generate_series(1, %s) n"
    sleep: str = "SELECT pg_sleep(%s)"


POSTGRESQL = Statements()
MARIADB = Statements(
    row="SELECT n, token, CAST(%s AS CHAR) FROM matrix WHERE n = %s",
    add="UPDATE matrix SET amount = amount + %s WHERE n = %s",
    stream="SELECT seq, CAST(%s AS CHAR), repeat('x', 4000) FROM seq_1_to_1000 WHERE seq <= %s",
    sleep="SELECT SLEEP(%s)",
)  # fmt: skip
SQL = MARIADB if os.environ.get("MATRIX_DSN", "").startswith("mysql") else POSTGRESQL


class Database(Protocol):
    """What an application must provide."""

    @property
    def pool(self) -> Pool[Any]:
        """The pool."""

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Execute on the request's connection."""

    def transaction(self) -> AbstractContextManager[object]:
        """Run a transaction on the request's connection; commit, or roll back."""

    def stream(self, sql: str, *params: object) -> Iterator[tuple[Any, ...]]:
        """Execute with a server-side cursor."""


def answer(path: str, query: Mapping[str, str], database: Database) -> Text:
    """Answer one request."""
    return ANSWERS[path](query, database)


def row(query: Mapping[str, str], database: Database) -> Text:
    return _row(database, query["nonce"], int(query["n"]))


def _row(database: Database, nonce: str, n: int) -> str:
    return " ".join(map(str, database.rows(SQL.row, nonce, n)[0]))


def transfer(query: Mapping[str, str], database: Database) -> Text:
    """Move one from here to there; the sum stays, even if a worker is killed in between."""
    here, there = int(query["n"]), int(query["m"])
    with database.transaction():
        database.rows(SQL.lock, here, there)
        database.rows(SQL.add, -1, here)
        database.rows(SQL.add, 1, there)
        return _row(database, query["nonce"], there)


def stream(query: Mapping[str, str], database: Database) -> Text:
    pieces = database.stream(SQL.stream, query["nonce"], PIECES)
    return (f"{n} {nonce} {padding}\n" for n, nonce, padding in pieces)


def sleep(query: Mapping[str, str], database: Database) -> Text:
    """Stay in the middle of a query."""
    database.rows(SQL.sleep, float(query["s"]))
    return "slept"


def starve(query: Mapping[str, str], database: Database) -> Text:
    """Stay in the middle of a wait, for one connection more than the maximum."""
    with ExitStack() as stack, suppress(PoolTimeout):
        # In another thread: waiting for itself would log a warning.
        other = Thread(target=lambda: [stack.enter_context(database.pool.acquire()) for _ in range(MAX_SIZE)])
        other.start()
        other.join()
        end = time.monotonic() + float(query["s"])
        while True:  # keep one that another request releases, too
            stack.enter_context(database.pool.acquire(max(0.0, end - time.monotonic())))
    return "waited"


def state(query: Mapping[str, str], database: Database) -> Text:
    """Return the number of leases in this process, without acquiring one."""
    time.sleep(float(query.get("s", 0)))  # busy for a moment, so that other workers are asked, too
    return json.dumps({"pid": os.getpid(), **database.pool.stats()})


ANSWERS = {"row": row, "transfer": transfer, "stream": stream, "sleep": sleep, "starve": starve, "state": state}
