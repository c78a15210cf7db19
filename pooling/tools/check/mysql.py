"""The checks of MySQL and MariaDB."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

from ..._urls import from_url, normal
from .general import general_checks, replaced
from .outcome import Failed, Skipped
from .resource import TIMEOUT, Check, Target

__all__ = ["MySQL"]

# No database selected; access denied to a database, a table or a command; read-only.
_NOT_ALLOWED = {1046, 1044, 1142, 1227, 1290, 1792, 1836}


class MySQL(Target):
    """A server, by its URL.

    Raises:
        ValueError, ImportError: The URL is invalid, or no driver is installed.
    """

    kind = "MySQL"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        normal(address)
        self.pool().close()  # nothing is opened; it only checks the address

    def pool(self, *, session: Any = "clean", **settings: Any) -> Any:
        return from_url(
            self.address, name=self.tag, session=session,
            **{"min_size": 0, "acquire_timeout": TIMEOUT, "create_timeout": TIMEOUT, **settings},
        )  # fmt: skip

    def ping(self, resource: Any) -> None:
        nonce = secrets.token_hex(4)
        answer = _query(resource, "SELECT %s", (nonce,))[0]
        if answer != nonce:
            raise Failed(f"the server answered {answer!r} to {nonce!r}")

    def identity(self, resource: Any) -> Any:
        return _query(resource, "SELECT CONNECTION_ID()")[0]

    def link(self, resource: Any) -> Any:
        found = getattr(resource, "thread_id", None) or getattr(resource, "connection_id", None)
        return found() if callable(found) else found

    def describe(self, resource: Any) -> str:
        version = str(_query(resource, "SELECT VERSION()")[0])
        self.kind = "MariaDB" if "maria" in version.lower() else "MySQL"
        cipher = _query(resource, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        return f"{self.kind} {version}, {'TLS' if cipher and cipher[-1] else 'not encrypted'}"

    def checks(self) -> list[Check]:
        general = general_checks(self)
        return [
            general["connect"], general["acquire"], Check("clean", 0.2, self._clean), general["timeout"],
            general["fairness"], Check("dead connection", 0.3, self._dead),
            Check("transaction", 0.2, self._transaction), general["fork"], general["close"],
        ]  # fmt: skip

    def _clean(self) -> str:
        lock = f"pooling_check_{secrets.token_hex(8)}"
        seen = ["variables", "lock by name"]
        with self.pool(max_size=1) as pool:
            with pool.acquire() as conn:
                zone = _query(conn, "SELECT @@session.time_zone")
                me = self.identity(conn)
                _run(conn, "SET SESSION time_zone = '+07:30'")
                _run(conn, "SET @pooling_check = 1")
                _query(conn, "SELECT GET_LOCK(%s, 0)", (lock,))
                with _allowed() as refused:
                    _run(conn, "CREATE TEMPORARY TABLE pooling_check (n INTEGER)")
                if not refused:
                    seen.append("temporary table")
                _run(conn, "START TRANSACTION")
                seen.append("open transaction")
            with pool.acquire() as conn:
                if self.identity(conn) != me:
                    raise Failed("a connection in good health was replaced")
                if _query(conn, "SELECT @@session.time_zone") != zone or _query(conn, "SELECT @pooling_check")[0]:
                    raise Failed("the next borrower finds a variable of the one before")
                if _query(conn, "SELECT IS_USED_LOCK(%s)", (lock,))[0]:
                    raise Failed("the next borrower finds a lock of the one before")
                if not refused:
                    try:
                        _query(conn, "SELECT count(*) FROM pooling_check")
                    except Exception as error:
                        if _number(error) != 1146:  # no such table
                            raise
                    else:
                        raise Failed("the next borrower finds a temporary table of the one before")
        return f"the next borrower of the connection sees nothing of these: {', '.join(seen)}"

    def _dead(self) -> str:
        def end(number: Any, conn: Any) -> None:
            if self.link(conn) != self.identity(conn):
                raise Skipped("not tried: behind a proxy, the connection may be another client's by now")
            try:
                _run(conn, f"KILL {int(number)}")
            except Exception as error:
                if _number(error) in (1094, 1095, 1227):
                    raise Skipped(f"not tried: {self.clean(str(error))}") from None
                raise

        return replaced(self, end)

    def _transaction(self) -> str:
        # With session="trust" the temporary table outlives a lease, so it can show what was committed.
        with self.pool(max_size=1, session="trust") as pool:
            with pool.connection() as conn, _allowed() as refused:
                _run(conn, "CREATE TEMPORARY TABLE pooling_check (n INTEGER) ENGINE=InnoDB")
            if refused:
                raise Skipped(f"not tried: {self.clean(str(refused[0]))}")
            with pool.connection() as conn:
                _run(conn, "INSERT INTO pooling_check VALUES (1)")
            with contextlib.suppress(_Intended), pool.connection() as conn:
                _run(conn, "INSERT INTO pooling_check VALUES (2)")
                raise _Intended
            rows = [tuple(row) for row in pool.execute_query("SELECT n FROM pooling_check")]
        if rows != [(1,)]:
            raise Failed(f"the temporary table has the rows {rows}, not the committed one alone")
        return "a block is committed at its end and rolled back on an error, in a temporary table"


class _Intended(Exception):
    pass


@contextlib.contextmanager
def _allowed() -> Any:
    """Collect the error of a statement that this user may not execute."""
    refused: list[Exception] = []
    try:
        yield refused
    except Exception as error:
        if _number(error) not in _NOT_ALLOWED:
            raise
        refused.append(error)


def _number(error: Exception) -> int | None:
    """Return the server's number of an error, with every driver."""
    found = getattr(error, "errno", None) or (error.args[0] if error.args else None)
    return found if isinstance(found, int) else None


def _run(conn: Any, sql: str, parameters: tuple[Any, ...] | None = None) -> None:
    with contextlib.closing(conn.cursor()) as cursor:
        cursor.execute(sql, parameters)


def _query(conn: Any, sql: str, parameters: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
    with contextlib.closing(conn.cursor()) as cursor:
        cursor.execute(sql, parameters)
        rows = cursor.fetchall()
    return tuple(rows[0]) if rows else ()
