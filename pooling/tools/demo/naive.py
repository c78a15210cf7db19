"""The work of a phase without a pool: everything is new, every time.

Only this module of the demo uses the drivers directly.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import requests

from .job import Job
from .place import BUSY_TIMEOUT, PRAGMAS, Place
from .quotes import Quote

__all__ = ["Naive"]


class Naive:
    """A new session for each request and a new connection for each row."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._connect = _sqlite if job.place.kind == "sqlite" else _postgres
        self._lock = threading.Lock()
        self.database_connections = 0  # guarded by _lock while threads work

    def fetch(self, path: str) -> Quote:
        """Get one quote."""
        with requests.Session() as session:
            response = session.get(
                self._job.url + path, timeout=(30, 30), verify=self._job.trusted or True
            )
        response.raise_for_status()
        return Quote(**response.json())

    def store(self, quote: Quote) -> None:
        """Insert one row in its own transaction."""
        conn = self._connect(self._job.place)
        try:
            with self._lock:
                self.database_connections += 1
            conn.execute(self._job.place.insert, quote)
            conn.commit()
        finally:
            conn.close()

    def summary(self) -> str:
        """Return nothing: code without a pool has no metrics."""
        return ""

    def __enter__(self) -> Naive:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def _sqlite(place: Place) -> Any:
    import sqlite3

    conn = sqlite3.connect(place.target, timeout=BUSY_TIMEOUT)
    conn.execute("PRAGMA journal_mode=WAL")
    for name, value in PRAGMAS.items():
        conn.execute(f"PRAGMA {name}={value}")
    return conn


def _postgres(place: Place) -> Any:
    import psycopg

    return psycopg.connect(place.target)
