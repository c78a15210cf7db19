"""The database servers of the matrix, as the test sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.mariadb import MariaDBServer
from tests.servers import PostgresServer

from .answers import ROWS
from .load import token_of

__all__ = ["AMOUNT", "Database", "MariaDB", "Postgres"]

AMOUNT = 1000


class Database:
    """The sessions and the money of one cell."""

    dsn: str

    @contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        """Give a function that counts the cell's sessions, over a connection of its own."""
        raise NotImplementedError

    def sessions(self) -> int:
        """Return how many sessions there are now."""
        with self.counting() as count:
            return count()

    def busy(self) -> int:
        """Return how many sessions are executing something, or in a transaction."""
        raise NotImplementedError

    def total(self) -> int:
        """Return the sum of all amounts."""
        raise NotImplementedError


class Postgres(Database):
    """PostgreSQL, which all cells share; sessions are told apart by the application's name."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self._server, self._name = server, name
        self.dsn = f"{server.dsn}?application_name={name}"

    @staticmethod
    def prepare(server: PostgresServer) -> None:
        """Create the table of the answers."""
        with server.connect() as conn:
            conn.execute("DROP TABLE IF EXISTS matrix")
            conn.execute("CREATE TABLE matrix (n int PRIMARY KEY, token text, amount int)")
            with conn.cursor() as cursor:
                rows = [(n, token_of(n), AMOUNT) for n in range(1, ROWS + 1)]
                cursor.executemany("INSERT INTO matrix VALUES (%s, %s, %s)", rows)

    @contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        with self._server.connect(autocommit=True) as conn:
            yield lambda: self._count(conn)

    def busy(self) -> int:
        with self._server.connect() as conn:
            return self._count(conn, "AND state <> 'idle'")

    def _count(self, conn: object, condition: str = "") -> int:
        query = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = %s {condition}"
        (number,) = conn.execute(query, [self._name]).fetchone()  # type: ignore[attr-defined]
        return int(number)

    def total(self) -> int:
        with self._server.connect() as conn:
            (total,) = conn.execute("SELECT sum(amount) FROM matrix").fetchone() or (0,)
        return int(total)


class MariaDB(Database):
    """MariaDB, a server for each cell, which it may restart."""

    def __init__(self, server: MariaDBServer) -> None:
        self.server = server
        self.dsn = f"mysql://app@127.0.0.1:{server.port}/test"
        conn = server.connect(autocommit=True)
        with conn.cursor() as cursor:
            cursor.execute("CREATE TABLE matrix (n int PRIMARY KEY, token text, amount int) ENGINE=InnoDB")
            rows = [(n, token_of(n), AMOUNT) for n in range(1, ROWS + 1)]
            cursor.executemany("INSERT INTO matrix VALUES (%s, %s, %s)", rows)
        conn.close()

    @contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        conn = self.server.connect(autocommit=True)
        try:
            yield lambda: self._one(conn, "SELECT count(*) FROM information_schema.processlist WHERE user = 'app'")
        finally:
            conn.close()

    def busy(self) -> int:
        return int(self.server.ask(
            "SELECT (SELECT count(*) FROM information_schema.innodb_trx) + (SELECT count(*) FROM "
            "information_schema.processlist WHERE user = 'app' AND command <> 'Sleep')"
        )[0][0])  # fmt: skip

    def total(self) -> int:
        return int(self.server.ask("SELECT sum(amount) FROM matrix")[0][0])

    @staticmethod
    def _one(conn: object, sql: str) -> int:
        with conn.cursor() as cursor:  # type: ignore[attr-defined]
            cursor.execute(sql)
            return int(cursor.fetchone()[0])
