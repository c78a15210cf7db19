"""Pools of real PostgreSQL connections, each driven the way its documentation says."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import psycopg

from pooling import PoolSettings, PostgresPool

__all__ = ["MAKERS", "Database", "Ours"]

PATIENCE = 60.0  # seconds that a borrower waits: no wait is to time out


class Database:
    """A pool of ``size`` connections to the server at ``dsn``; in autocommit, if asked for.

    Attributes:
        name: What the tables call it.
        module: What to import for it.
    """

    name: ClassVar[str]
    module: ClassVar[str] = "psycopg"

    def __init__(self, dsn: str, size: int, autocommit: bool = False) -> None:
        self.dsn, self.size, self.autocommit = dsn, size, autocommit
        self.open()

    @classmethod
    def installed(cls) -> bool:
        """Say whether it can be measured here."""
        try:
            importlib.import_module(cls.module)
        except ImportError:
            return False
        return True

    def open(self) -> None:
        """Make the pool."""

    def connection(self) -> contextlib.AbstractContextManager[Any]:
        """Lend a connection: for one transaction, or in autocommit."""
        raise NotImplementedError

    def ask(self) -> None:
        """``SELECT 1``."""
        with self.connection() as conn:
            conn.execute("SELECT 1").fetchone()

    def order(self, number: int) -> None:
        """Insert an order."""
        with self.connection() as conn:
            conn.execute(
                "INSERT INTO orders (pool, number, symbol, quantity) VALUES (%s, %s, %s, %s)",
                (self.name, number, "ACME", 100),
            )

    def fill(self) -> None:
        """Have it open all its connections."""
        with contextlib.ExitStack() as stack:
            for _ in range(self.size):
                stack.enter_context(self.connection())

    def close(self) -> None:
        """End it."""


class Ours(Database):
    """All defaults: each connection looked at, each session cleaned. In autocommit by ``db.acquire()``."""

    name = "pooling"
    options: ClassVar[dict[str, Any]] = {}

    def open(self) -> None:
        settings = PoolSettings(min_size=0, max_size=self.size, acquire_timeout=PATIENCE)
        self.pool = PostgresPool(self.dsn, settings, kwargs={"autocommit": self.autocommit}, **self.options)
        self.connection = self.pool.acquire if self.autocommit else self.pool.connection  # type: ignore[method-assign]

    def close(self) -> None:
        self.pool.close()


class OursTrusting(Ours):
    """The same without cleaning the server's side, as the peers do it."""

    name = "pooling, session='trust'"
    options = {"session": "trust"}


class OursQuery(Ours):
    """``db.execute_query()``: one statement, in a transaction of its own."""

    name = "pooling, execute_query"

    def ask(self) -> None:
        self.pool.execute_query("SELECT 1")

    def order(self, number: int) -> None:
        self.pool.execute_query(
            "INSERT INTO orders (pool, number, symbol, quantity) VALUES (%s, %s, %s, %s)",
            (self.name, number, "ACME", 100),
        )


class PsycopgPool(Database):
    """psycopg_pool without a look at what it lends."""

    name = "psycopg_pool"
    module = "psycopg_pool"
    checked: ClassVar[bool] = False

    def open(self) -> None:
        pools = importlib.import_module(self.module)
        check = pools.ConnectionPool.check_connection if self.checked else None
        self.pool = pools.ConnectionPool(
            self.dsn, min_size=self.size, max_size=self.size, timeout=PATIENCE, open=True, check=check,
            kwargs={"autocommit": self.autocommit},
        )  # fmt: skip
        self.pool.wait(PATIENCE)
        self.connection = self.pool.connection  # type: ignore[method-assign]

    def close(self) -> None:
        self.pool.close()


class PsycopgPoolChecked(PsycopgPool):
    """psycopg_pool with a round trip for each checkout."""

    name = "psycopg_pool, check"
    checked = True


class SQLAlchemy(Database):
    """SQLAlchemy's QueuePool; what it lends is asked for the driver's connection."""

    name = "SQLAlchemy"
    module = "sqlalchemy"
    ping: ClassVar[bool] = False

    def open(self) -> None:
        self.engine = importlib.import_module(self.module).create_engine(
            self.dsn.replace("postgresql:", "postgresql+psycopg:"),
            pool_size=self.size, max_overflow=0, pool_timeout=PATIENCE, pool_pre_ping=self.ping,
            **({"isolation_level": "AUTOCOMMIT"} if self.autocommit else {}),
        )  # fmt: skip

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        with self.engine.connect() if self.autocommit else self.engine.begin() as conn:
            yield conn.connection.driver_connection

    def close(self) -> None:
        self.engine.dispose()


class SQLAlchemyPinged(SQLAlchemy):
    """SQLAlchemy's QueuePool with a round trip for each checkout."""

    name = "SQLAlchemy, pre_ping"
    ping = True


class DBUtils(Database):
    """DBUtils' PooledDB."""

    name = "DBUtils"
    module = "dbutils.pooled_db"
    driver: ClassVar[Any] = psycopg

    def open(self) -> None:
        make = importlib.import_module(self.module).PooledDB
        self.pool = make(
            self.driver, maxconnections=self.size, maxcached=self.size, blocking=True, conninfo=self.dsn,
            autocommit=self.autocommit,
        )  # fmt: skip

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        conn = self.pool.connection()
        try:
            yield _Executing(conn)
            if not self.autocommit:
                conn.commit()
        finally:
            conn.close()

    def close(self) -> None:
        self.pool.close()


class _Pinged(psycopg.Connection[Any]):
    def ping(self, reconnect: bool = False) -> None:
        self.execute("SELECT 1")


class DBUtilsPinged(DBUtils):
    """DBUtils' PooledDB with a round trip for each checkout: psycopg has no ``ping()``, so its connections get one."""

    name = "DBUtils, ping"
    driver = SimpleNamespace(
        connect=_Pinged.connect, threadsafety=psycopg.threadsafety, OperationalError=psycopg.OperationalError,
        InterfaceError=psycopg.InterfaceError, InternalError=psycopg.InternalError,
    )  # fmt: skip


class _Executing:
    """psycopg's ``execute`` by way of a cursor: DBUtils passes on no more than DB-API."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    def execute(self, sql: str, params: Any = None) -> Any:
        self._cursor = cursor = self._conn.cursor()  # DBUtils closes one that is dropped
        cursor.execute(sql, params)
        return cursor


class Unpooled(Database):
    """A new connection each time, as many at once as the pools have."""

    name = "connect per query"

    def open(self) -> None:
        self._turns = threading.BoundedSemaphore(self.size)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        with self._turns, psycopg.connect(self.dsn) as conn:
            yield conn

    def fill(self) -> None:
        with self.connection():
            pass


MAKERS: tuple[type[Database], ...] = (
    Ours, OursTrusting, OursQuery, PsycopgPool, PsycopgPoolChecked, SQLAlchemy, SQLAlchemyPinged,
    DBUtils, Unpooled,
)  # fmt: skip
