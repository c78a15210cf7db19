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
from typing import Any, Protocol

from pooling import Pool, PoolSettings, PoolTimeout

__all__ = ["MAX_SIZE", "PIECES", "ROWS", "SETTINGS", "Database", "Text", "answer"]

MAX_SIZE = 3
SETTINGS = PoolSettings(min_size=1, max_size=MAX_SIZE, acquire_timeout=20.0, idle_timeout=5.0)
ROWS = 100
PIECES = 400  # of 4 kB: more than sockets buffer
Text = str | Iterator[str]


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
    found = database.rows("SELECT n, token, %s::text FROM matrix WHERE n = %s", query["nonce"], int(query["n"]))
    return " ".join(map(str, found[0]))


def transfer(query: Mapping[str, str], database: Database) -> Text:
    """Move one from here to there; the sum stays, even if a worker is killed in between."""
    here, there = int(query["n"]), int(query["m"])
    with database.transaction():
        database.rows("SELECT n FROM matrix WHERE n IN (%s, %s) ORDER BY n FOR UPDATE", here, there)
        database.rows("UPDATE matrix SET amount = amount - 1 WHERE n = %s RETURNING n", here)
        found = database.rows("UPDATE matrix SET amount = amount + 1 WHERE n = %s RETURNING n, token, %s::text",
                              there, query["nonce"])  # fmt: skip
    return " ".join(map(str, found[0]))


def stream(query: Mapping[str, str], database: Database) -> Text:
    pieces = database.stream("SELECT n, %s::text, repeat('x', 4000) FROM generate_series(1, %s) n", query["nonce"],
                             PIECES)  # fmt: skip
    return (f"{n} {nonce} {padding}\n" for n, nonce, padding in pieces)


def sleep(query: Mapping[str, str], database: Database) -> Text:
    """Stay in the middle of a query."""
    database.rows("SELECT pg_sleep(%s)", float(query["s"]))
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
