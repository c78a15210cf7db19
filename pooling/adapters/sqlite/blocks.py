"""The block in which a connection is lent for one transaction."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ...core.managed import ManagedPool
from ...lanes import named
from .connection import TransactionRolledBack
from .turns import let_writers_run

if TYPE_CHECKING:
    from ...core.lease import Lease

__all__ = ["Block"]


class Block:
    """The context manager of ``db.connection()``; a generator would take longer than the lease itself.

    Args:
        lender: The pool whose connection it uses.
        name: The pool's name, for errors.
        writers: Of a pool with ``readers``, the writers, which may wait for the GIL.
        timeout, lane: As for `Pool.acquire`.
    """

    __slots__ = ("_lender", "_name", "_writers", "_timeout", "_lane", "_lease", "_conn")

    _lease: Lease[Any]
    _conn: Any

    def __init__(
        self, lender: ManagedPool[Any], name: str, writers: Any, timeout: float | None, lane: str | None
    ) -> None:
        self._lender, self._name, self._writers = lender, name, writers
        self._timeout, self._lane = timeout, lane

    def __enter__(self) -> sqlite3.Connection:
        acquire = self._lender.acquire
        self._lease = lease = acquire(self._timeout, 2, *named(self._lane))
        try:
            self._conn = conn = lease.__enter__()
            conn.__enter__()
        except BaseException as problem:
            lease.__exit__(type(problem), problem, None)
            raise
        return conn  # type: ignore[no-any-return]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn, undone = self._conn, None
        if error is None and conn.rolled_back_by is not None:
            undone = error = TransactionRolledBack(
                f"pool {self._name!r}: SQLite rolled back the transaction of this block, with an error that did not "
                f"leave the block: {conn.rolled_back_by}"
            )
            kind = TransactionRolledBack
        try:
            conn.__exit__(kind, error, traceback)  # commits, or rolls back
        except BaseException as problem:
            self._lease.__exit__(type(problem), problem, None)
            raise
        self._lease.__exit__(kind, error, traceback)
        if undone is not None:
            raise undone
        if self._writers is not None and error is None:
            let_writers_run(self._writers)
