"""The cache service: the last quote of each symbol, in SQLite."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass

from pooling import PoolSettings, SQLitePool

from .model import Quote

__all__ = ["CacheConfig", "LegacyCache", "PooledCache", "QuoteCache", "make_cache"]

_TABLE = """
CREATE TABLE IF NOT EXISTS quotes (symbol TEXT PRIMARY KEY, serial INTEGER NOT NULL, price INTEGER NOT NULL,
                                   stored REAL NOT NULL) WITHOUT ROWID
"""
_READ = "SELECT symbol, serial, price FROM quotes WHERE symbol = ? AND stored > ?"
_WRITE = "INSERT OR REPLACE INTO quotes VALUES (?, ?, ?, ?)"
_PRAGMAS = {"synchronous": "NORMAL"}  # a cache may lose its last entries in a power cut


@dataclass(frozen=True)
class CacheConfig:
    """Where and how quotes are cached.

    Attributes:
        path: The SQLite file.
        use_optimized_pool: Whether connections are pooled; otherwise each call opens its own.
        max_connections: The most connections of the pool.
        min_connections: Connections that the pool keeps open.
        pre_ping: Whether a connection is checked before it is lent.
        fresh_for: Seconds for which a quote counts as fresh.
    """

    path: str
    use_optimized_pool: bool = True
    max_connections: int = 20
    min_connections: int = 5
    pre_ping: bool = True
    fresh_for: float = 1.0


class QuoteCache:
    """Reads and writes quotes; subclasses say where connections come from."""

    def __init__(self, config: CacheConfig) -> None:
        self.config = config

    def connection(self) -> AbstractContextManager[sqlite3.Connection]:
        """Return a context manager that gives a connection for one transaction."""
        raise NotImplementedError

    def create_table(self) -> None:
        """Create the table, if it is missing."""
        with self.connection() as conn:
            conn.execute(_TABLE)

    def get(self, symbol: str) -> Quote | None:
        """Return a quote if there is a fresh one."""
        with self.connection() as conn:
            row = conn.execute(_READ, (symbol, time.time() - self.config.fresh_for)).fetchone()
        return None if row is None else Quote(*row)

    def put(self, quote: Quote) -> None:
        """Store a quote."""
        with self.connection() as conn:
            conn.execute(_WRITE, (*quote, time.time()))


class PooledCache(QuoteCache):
    """With a pool of connections.

    Attributes:
        pool: The pool.
    """

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        settings = PoolSettings(
            min_size=config.min_connections, max_size=config.max_connections, validate_on_acquire=config.pre_ping,
            acquire_timeout=30, idle_timeout=300, max_lifetime=3600,
        )  # fmt: skip
        self.pool = SQLitePool(config.path, settings, pragmas=_PRAGMAS, name="cache")

    def connection(self) -> AbstractContextManager[sqlite3.Connection]:
        return self.pool.connection()


class LegacyCache(QuoteCache):
    """With a new connection for each call, as before there was a pool."""

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.config.path, timeout=5.0)) as conn:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA synchronous = NORMAL")
            with conn:
                yield conn


def make_cache(config: CacheConfig) -> QuoteCache:
    """Return the cache that the configuration asks for."""
    return PooledCache(config) if config.use_optimized_pool else LegacyCache(config)
