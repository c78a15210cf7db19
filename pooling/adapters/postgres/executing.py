"""Statements of the pool's own verbs, on a connection that is lent to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg

from . import failures
from .blocks import CommittingPool, CommitUnknown, Transaction, commit
from .client_state import begin_autocommit
from .limits import CommandTimeout
from .tracking import Connection, notes_of

__all__ = ["Params", "execute", "execute_each", "limit_to"]

Params = Sequence[Any] | Mapping[str, Any]


def execute(
    pool: CommittingPool, conn: Connection, sql: Any, params: Params | None,
    row_factory: psycopg.rows.RowFactory[Any] | None,
) -> list[Any]:  # fmt: skip
    """See `PostgresPool.execute_query`."""
    # A statement outside of a transaction is one by itself, which saves two round trips.
    if not notes_of(conn).foreign and (conn.isolation_level, conn.read_only, conn.deferrable) == (None,) * 3:
        begin_autocommit(conn)
    cursor = conn.cursor(row_factory=row_factory) if row_factory else conn.cursor()
    try:
        cursor.execute(sql, params)
    except psycopg.OperationalError as error:
        _refuse_unknown(pool, conn, error)
        raise
    rows = cursor.fetchall() if cursor.description else []
    commit(pool, conn, brief=False)
    return rows


def execute_each(pool: CommittingPool, conn: Connection, sql: Any, params: Iterable[Params]) -> int:
    """See `PostgresPool.execute_many`."""
    with Transaction(pool, conn), conn.cursor() as cursor:
        cursor.executemany(sql, params)
        return cursor.rowcount


def limit_to(pool: CommittingPool, conn: Connection, timeout: float | None, deadline: float | None) -> None:
    """Limit the commands of this lease, all together, to what is left of ``timeout``."""
    if deadline is not None:
        pool.session_rules.limit_to(conn, timeout, deadline - pool.engine.clock.now())


def _refuse_unknown(pool: CommittingPool, conn: Connection, error: psycopg.OperationalError) -> None:
    """Raise `CommitUnknown` if a statement outside of a transaction may have taken effect."""
    if conn.closed and conn.autocommit and not isinstance(error, CommandTimeout) and failures.in_doubt(error):
        raise CommitUnknown(
            f"pool {pool.name!r}: the connection was lost during a statement: it is unknown whether it took effect"
        ) from error
