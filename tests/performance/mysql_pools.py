"""Pools of real MySQL connections, each driven the way its documentation says."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pymysql

from pooling import MySQLPool, PoolSettings
from tests.mariadb import MariaDBServer

__all__ = ["MAKERS", "Contender", "Ours"]

PATIENCE = 60.0  # seconds that a borrower waits: no wait is to time out


class Contender:
    """A pool of ``size`` connections.

    Attributes:
        name: What the table calls it.
        module: What to import for it.
        family: Those that are compared with each other: the same driver, and the same layers above it.
        ours: Whether it is of this project.
    """

    name: ClassVar[str]
    module: ClassVar[str] = "pymysql"
    family: ClassVar[str] = "PyMySQL"
    ours: ClassVar[bool] = False

    def __init__(self, server: MariaDBServer, size: int) -> None:
        self.arguments = {"host": "127.0.0.1", "port": server.port, "user": "root", "database": "test"}
        self.size = size
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
        """Lend a connection for one transaction."""
        raise NotImplementedError

    def execute(self, sql: str) -> None:
        """Execute a statement in a transaction."""
        with self.connection() as conn:
            cursor = conn.cursor()
            cursor.execute(sql)
            if cursor.description:
                cursor.fetchall()
            cursor.close()

    def close(self) -> None:
        """End it."""


class Ours(Contender):
    """``db.connection()``, all defaults: each connection looked at, each session cleaned."""

    name = "pooling"
    ours = True
    options: ClassVar[dict[str, Any]] = {"driver": "pymysql"}

    def open(self) -> None:
        settings = PoolSettings(min_size=0, max_size=self.size, acquire_timeout=PATIENCE)
        self.pool = MySQLPool(settings=settings, kwargs=self.arguments, **self.options)
        self.connection = self.pool.connection  # type: ignore[method-assign]

    def close(self) -> None:
        self.pool.close()


class OursTrusting(Ours):
    """The same without cleaning the server's side but for the transaction, as the peers do it."""

    name = "pooling, session='trust'"
    options = {"driver": "pymysql", "session": "trust"}


class OursQuery(Ours):
    """``db.execute_query()``."""

    name = "pooling, execute_query"

    def execute(self, sql: str) -> None:
        self.pool.execute_query(sql)


class Returning(Contender):
    """A peer whose connections go back to the pool by their ``close()``."""

    connect: Callable[[], Any]

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        conn = self.connect()
        try:
            yield conn
            conn.commit()
        finally:
            conn.close()


class QueuePool(Returning):
    """SQLAlchemy's QueuePool without an engine: it rolls back when a connection comes back."""

    name = "SQLAlchemy QueuePool"
    module = "sqlalchemy"

    def open(self) -> None:
        pools = importlib.import_module("sqlalchemy.pool")
        self.pool = pools.QueuePool(
            lambda: pymysql.connect(**self.arguments), pool_size=self.size, max_overflow=0, timeout=PATIENCE,
            dialect=importlib.import_module("sqlalchemy.dialects.mysql.pymysql").dialect(),
        )  # fmt: skip
        self.connect = self.pool.connect

    def close(self) -> None:
        self.pool.dispose()


class DBUtils(Returning):
    """DBUtils' PooledDB: it pings what it lends, and rolls back what comes back."""

    name = "DBUtils"
    module = "dbutils.pooled_db"

    def open(self) -> None:
        make = importlib.import_module(self.module).PooledDB
        self.pool = make(pymysql, maxconnections=self.size, maxcached=self.size, blocking=True, **self.arguments)
        self.connect = self.pool.connection

    def close(self) -> None:
        self.pool.close()


class OursConnector(Ours):
    """Ours with mysql-connector-python."""

    name = "pooling, connector"
    module = "mysql.connector"
    family = "mysql-connector"
    options = {"driver": "connector"}


class ConnectorPool(Returning):
    """mysql-connector's own pool, which resets sessions: it pings what it lends, and sends a reset for what comes back.

    It raises when it is empty, so a semaphore lets no more threads in than it has connections.
    """

    name = "mysql-connector's pool"
    module = "mysql.connector"
    family = "mysql-connector"
    resets: ClassVar[bool] = True

    def open(self) -> None:
        make = importlib.import_module("mysql.connector.pooling").MySQLConnectionPool
        self.pool = make(
            pool_size=self.size, pool_reset_session=self.resets, use_pure=True, ssl_disabled=True, **self.arguments
        )
        self.connect = self.pool.get_connection
        self._turns = threading.BoundedSemaphore(self.size)

    def execute(self, sql: str) -> None:
        with self._turns:
            super().execute(sql)

    def close(self) -> None:
        for _ in range(self.size):
            self.pool.get_connection().disconnect()


class ConnectorPoolUnreset(ConnectorPool):
    """The same without the reset: even an open transaction goes on to the next borrower."""

    name = "mysql-connector's pool, no reset"
    resets = False


class Django(Contender):
    """Django's connections in ``atomic()``, and ``close()`` as at the end of a request; PyMySQL beneath."""

    module = "django"
    family = "Django"
    engine: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """Return what stands in ``DATABASES``, besides the engine and the server."""
        raise NotImplementedError

    def open(self) -> None:
        import django
        from django.conf import settings
        from django.db import connections, transaction
        from django.db.utils import ConnectionHandler

        pymysql.install_as_MySQLdb()
        if not settings.configured:
            settings.configure(USE_TZ=True)
            django.setup()
        self.alias, self.atomic, self.connections = f"{self.engine}-{id(self)}", transaction.atomic, connections
        place = self.arguments
        given = {
            "ENGINE": self.engine, "NAME": place["database"], "USER": place["user"], "HOST": place["host"],
            "PORT": place["port"], **self.settings(),
        }  # fmt: skip
        completed = ConnectionHandler({"default": {}, self.alias: given}).settings
        connections.settings[self.alias] = completed[self.alias]

    def execute(self, sql: str) -> None:
        conn = self.connections[self.alias]
        try:
            with self.atomic(using=self.alias), conn.cursor() as cursor:
                cursor.execute(sql)
                if cursor.description:
                    cursor.fetchall()
        finally:
            conn.close()


class OursDjango(Django):
    """Ours, with its defaults: each session cleaned."""

    name = "pooling, Django"
    engine = "pooling.web.django.mysql"
    ours = True

    def settings(self) -> dict[str, Any]:
        return {"OPTIONS": {"pool": {"min_size": 0, "max_size": self.size, "acquire_timeout": PATIENCE}}}

    def close(self) -> None:
        self.connections[self.alias].close_pool()


class DjangoPool(Django):
    """django-db-connection-pool: it pings what it lends (``PRE_PING``, the default), and rolls back what comes back."""

    name = "django-db-connection-pool"
    module = "dj_db_conn_pool"
    engine = "dj_db_conn_pool.backends.mysql"
    ping: ClassVar[bool] = True

    def settings(self) -> dict[str, Any]:
        return {
            "POOL_OPTIONS": {
                "POOL_SIZE": self.size, "MAX_OVERFLOW": 0, "TIMEOUT": PATIENCE, "PRE_PING": self.ping
            }
        }  # fmt: skip

    def close(self) -> None:
        importlib.import_module("dj_db_conn_pool.core").pool_container.get(self.alias).dispose()


class DjangoPoolUnpinged(DjangoPool):
    """The same without the ping."""

    name = "django-db-connection-pool, no ping"
    ping = False


MAKERS: tuple[type[Contender], ...] = (
    Ours, OursTrusting, OursQuery, QueuePool, DBUtils,
    OursConnector, ConnectorPool, ConnectorPoolUnreset,
    OursDjango, DjangoPool, DjangoPoolUnpinged,
)  # fmt: skip
