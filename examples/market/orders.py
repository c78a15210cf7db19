"""Order storage, in SQLite or PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pooling import PoolSettings, SQLitePool

from .model import Order, Quote

if TYPE_CHECKING:
    from pooling import PostgresPool

__all__ = ["OrderStore", "is_postgres"]

_COLUMNS = ("id", "symbol", "quantity", "serial", "price")


def is_postgres(address: str) -> bool:
    """Return whether this is a DSN of PostgreSQL; otherwise it is a SQLite file."""
    return "://" in address or "=" in address


class OrderStore:
    """Stores orders: all of a basket or none of them, and each only once.

    Args:
        address: The SQLite file, or a DSN of PostgreSQL.
        schema: In PostgreSQL, the schema of the table; ``None`` means that of the connection.
        settings: Of the pool; ``None`` means 10 connections, or in SQLite 4 that read.

    Attributes:
        pool: The pool.
        errors: What the database raises.
    """

    errors: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, address: str, schema: str | None = None, settings: PoolSettings | None = None) -> None:
        settings = settings or PoolSettings(
            min_size=2, max_size=10, acquire_timeout=2.0, leak_timeout=3.0, max_waiting=200
        )
        self.pool: SQLitePool | PostgresPool
        if is_postgres(address):
            import psycopg  # here: SQLite needs neither psycopg nor libpq

            from pooling import PostgresPool

            self.errors = (psycopg.Error,)
            self.pool = PostgresPool(address, settings, command_timeout=5.0, name="orders")
        else:
            # One writer, so that writers wait in the order of arrival instead of polling for SQLite's lock.
            self.pool = SQLitePool(
                address, settings, readers=4, timeout=1.0, pragmas={"synchronous": "NORMAL"}, name="orders"
            )
        self.table = f"{schema}.orders" if schema else "orders"
        mark = "%s" if is_postgres(address) else "?"
        marks = ", ".join([mark] * len(_COLUMNS))
        self._insert = (
            f"INSERT INTO {self.table} ({', '.join(_COLUMNS)}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING"
        )

    def create_table(self) -> None:
        """Create the table, if it is missing."""
        self.pool.execute_query(
            f"CREATE TABLE IF NOT EXISTS {self.table} (id VARCHAR(40) PRIMARY KEY, symbol VARCHAR(8) NOT NULL, "
            "quantity INTEGER NOT NULL, serial BIGINT NOT NULL, price BIGINT NOT NULL)"
        )

    def place(self, orders: Iterable[Order], quotes: Mapping[str, Quote]) -> None:
        """Store orders in one transaction; those that are stored already stay as they are.

        Args:
            orders: The orders.
            quotes: By symbol, the quote at which each is stored.

        Raises:
            PoolError: No connection came in time, or the database is down.
            sqlite3.Error, psycopg.Error: From the database. Nothing was stored.
        """
        rows = [(*order, quotes[order.symbol].serial, quotes[order.symbol].price) for order in orders]
        with self.pool.connection() as conn:
            conn.cursor().executemany(self._insert, rows)

    def rows(self) -> list[tuple[Any, ...]]:
        """Return all orders: id, symbol, quantity, serial, price."""
        return self.pool.execute_query(f"SELECT {', '.join(_COLUMNS)} FROM {self.table}")
