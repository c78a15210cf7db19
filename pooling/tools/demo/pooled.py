"""The same work through pools: compare :mod:`pooling.tools.demo.naive`."""

from __future__ import annotations

import io
from types import TracebackType

from ...adapters.http import HTTPPool
from ...settings import PoolSettings
from .job import Job
from .quotes import Quote

__all__ = ["Pooled"]

# SQLite has one writer at a time, so more than a few connections only wait in its busy
# handler; PostgreSQL serves about as many at once as it has cores.
_DATABASE_SIZE = {"sqlite": 4, "postgres": 8}


class Pooled:
    """Sessions from one pool, database connections from another."""

    def __init__(self, job: Job) -> None:
        settings = PoolSettings(acquire_timeout=60.0)  # the machine may be slow and busy
        self._http = HTTPPool(
            settings.replace(max_size=job.threads),
            base_url=job.url,
            verify=job.trusted or True,
            name="market data",
        )
        size = _DATABASE_SIZE[job.place.kind]
        self._db = job.place.pool(settings.replace(max_size=size))
        self._insert = job.place.insert

    def fetch(self, path: str) -> Quote:
        """Get one quote."""
        response = self._http.get(path)
        response.raise_for_status()
        return Quote(**response.json())

    def store(self, quote: Quote) -> None:
        """Insert one row in its own transaction."""
        with self._db.connection() as conn:
            conn.execute(self._insert, quote)

    @property
    def database_connections(self) -> int:
        """The number of connections opened so far."""
        return self._db.metrics.snapshot().created

    def summary(self) -> str:
        """Return the pools' metrics as text."""
        text = io.StringIO()
        self._http.metrics.print_summary(text)
        self._db.metrics.print_summary(text)
        return text.getvalue()

    def __enter__(self) -> Pooled:
        self._http.open()
        self._db.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.close()
        self._http.close()
