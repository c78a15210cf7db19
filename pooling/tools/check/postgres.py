"""The checks of PostgreSQL."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from ..._masking import slip
from ...adapters.postgres import PostgresPool
from .general import general_checks, replaced, wait_for
from .outcome import Failed, Skipped
from .resource import TIMEOUT, Check, Target

__all__ = ["Postgres"]

_NOT_ALLOWED = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)


class Postgres(Target):
    """A server, by its URL or ``key=value`` pairs.

    Raises:
        ValueError: The address is neither. The message leaves it out.
    """

    kind = "PostgreSQL"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        try:
            parameters = conninfo_to_dict(address)
        except psycopg.ProgrammingError:
            raise ValueError("it is neither a postgresql:// URL nor key=value pairs") from None
        wrong = slip(parameters, url="://" in address)
        if wrong is not None:
            raise ValueError(wrong)
        self.secrets.add(str(parameters.get("password") or ""))
        if "://" not in address:
            host, name = parameters.get("host") or "localhost", parameters.get("dbname") or ""
            self.text = f"postgresql://{host}:{parameters.get('port') or 5432}/{name}"

    def pool(self, *, session: Any = "clean", **settings: Any) -> PostgresPool:
        return PostgresPool(
            self.address, kwargs={"application_name": self.tag}, session=session, name="check",
            **{"min_size": 0, "acquire_timeout": TIMEOUT, "create_timeout": TIMEOUT, **settings},
        )  # fmt: skip

    def ping(self, resource: Any) -> None:
        nonce = secrets.token_hex(4)
        row = resource.execute("SELECT %s::text", (nonce,)).fetchone()
        if row[0] != nonce:
            raise Failed(f"the server answered {row[0]!r} to {nonce!r}")

    def identity(self, resource: Any) -> Any:
        return resource.execute("SELECT pg_backend_pid()").fetchone()[0]

    def link(self, resource: Any) -> Any:
        return resource.info.backend_pid

    def describe(self, resource: Any) -> str:
        version = resource.execute("SHOW server_version").fetchone()[0]
        tls = "TLS" if resource.pgconn.ssl_in_use else "not encrypted"
        pooler = ", behind a pooler" if self._behind_pooler(resource) else ""
        return f"PostgreSQL {version}, {tls}{pooler}"

    def _behind_pooler(self, resource: Any) -> bool:
        """Whether the process id that libpq was told is another one than the server's."""
        return bool(self.link(resource) != self.identity(resource))

    def checks(self) -> list[Check]:
        general = general_checks(self)
        return [
            general["connect"], general["acquire"], Check("clean", 0.2, self._clean), general["timeout"],
            general["fairness"], Check("dead connection", 0.3, self._dead),
            Check("transaction", 0.2, self._transaction), general["fork"], general["close"],
            Check("server", 0.5, self._left),
        ]  # fmt: skip

    def _clean(self) -> str:
        key = secrets.randbits(62)
        seen = ["SET"]
        with self.pool(max_size=1) as pool:
            with pool.acquire() as conn:
                before = self.identity(conn), _setting(conn)
                conn.execute("SET statement_timeout = '54321ms'")
                conn.commit()
                try:
                    conn.execute("SELECT pg_advisory_lock(%s)", (key,))
                    conn.execute("CREATE TEMPORARY TABLE pooling_check (n integer)")
                    conn.commit()
                    seen += ["advisory lock", "temporary table"]
                    conn.execute("INSERT INTO pooling_check VALUES (1)")
                except _NOT_ALLOWED:
                    conn.rollback()
                conn.execute("SELECT 1")  # which begins a transaction, and leaves it open
                seen.append("open transaction")
            with pool.acquire() as conn:
                if conn.info.transaction_status is not TransactionStatus.IDLE:
                    raise Failed("the next borrower is in the transaction of the one before")
                if (self.identity(conn), _setting(conn)) != before:
                    raise Failed("the next borrower finds a setting of the one before")
                row: Any = conn.execute(
                    "SELECT to_regclass('pg_temp.pooling_check') IS NOT NULL, (SELECT count(*) FROM pg_locks "
                    "WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
                ).fetchone()
                if row[0] or row[1]:
                    raise Failed("the next borrower finds a temporary table or a lock of the one before")
        return f"the next borrower of the connection sees nothing of these: {', '.join(seen)}"

    def _dead(self) -> str:
        def end(pid: Any, conn: Any) -> None:
            if self._behind_pooler(conn):
                raise Skipped("not tried: behind a pooler, the connection may be another client's by now")
            row = conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND application_name = %s",
                (pid, self.tag),  # so that it can only be ours
            ).fetchone()
            if row is None or not row[0]:
                raise Skipped("not tried: the server does not let this role end its own connection")

        try:
            return replaced(self, end)
        except psycopg.errors.InsufficientPrivilege as error:
            raise Skipped(f"not tried: {self.clean(str(error))}") from None

    def _transaction(self) -> str:
        # With session="trust" the temporary table outlives a lease, so it can show what was committed.
        with self.pool(max_size=1, session="trust") as pool:
            with pool.acquire() as conn:
                if self._behind_pooler(conn):
                    raise Skipped("not tried: behind a pooler, a temporary table may be left in a shared session")
            try:
                with pool.connection() as conn:
                    conn.execute("CREATE TEMPORARY TABLE pooling_check (n integer)")
            except _NOT_ALLOWED as error:
                raise Skipped(f"not tried: {self.clean(str(error))}") from None
            with pool.connection() as conn:
                conn.execute("INSERT INTO pooling_check VALUES (1)")
            with contextlib.suppress(_Intended), pool.connection() as conn:
                conn.execute("INSERT INTO pooling_check VALUES (2)")
                raise _Intended
            rows = pool.execute_query("SELECT n FROM pooling_check")
        if rows != [(1,)]:
            raise Failed(f"the temporary table has the rows {rows}, not the committed one alone")
        return "a block is committed at its end and rolled back on an error, in a temporary table"

    def _left(self) -> str:
        """Ask the server whether one of our connections is left, except the one that asks."""
        with self.pool(max_size=1) as pool, pool.acquire() as conn:
            if self._behind_pooler(conn):
                raise Skipped("behind a pooler, the server's connections stay open")

            def count() -> int:
                row: Any = conn.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND pid <> pg_backend_pid()",
                    (self.tag,),
                ).fetchone()
                conn.rollback()
                return int(row[0])

            wait_for(lambda: not count(), "the server still has connections of these checks")
        return "the server has none of these connections any more"


class _Intended(Exception):
    pass


def _setting(conn: Any) -> str:
    return str(conn.execute("SHOW statement_timeout").fetchone()[0])
