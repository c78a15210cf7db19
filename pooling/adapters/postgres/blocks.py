"""The blocks in which a connection is lent for a transaction, and how they end."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Protocol

import psycopg

from ... import errors
from ...core.runtime import fork, immortal
from ...core.runtime.fork import SAME_PROCESS
from ...errors import LeaseError, TransactionRolledBack
from ..shared import blocks
from ..shared.blocks import LOST, LendingPool
from . import failures
from .session import Session
from .tracking import IDLE, IN_ERROR, IN_TRANSACTION, Connection, notes_of, rolled_back
from .unfinished import cut_off

__all__ = ["Block", "CommitUnknown", "Transaction", "commit", "may_run_again"]

class CommittingPool(LendingPool[Connection], Protocol):
    """The part of a `PostgresPool` that a block needs."""

    session_rules: Session


class CommitUnknown(errors.CommitUnknown, psycopg.OperationalError):
    """`pooling.CommitUnknown`, of PostgreSQL."""


class Transaction:
    """A psycopg transaction with exact errors at its end."""

    def __init__(
        self,
        pool: CommittingPool,
        conn: Connection,
        isolation_level: psycopg.IsolationLevel | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> None:
        self._pool, self._conn, self._state = pool, conn, pool.engine.state
        if isolation_level is not None:
            conn.isolation_level = isolation_level
        if read_only is not None:
            conn.read_only = read_only
        if deferrable is not None:
            conn.deferrable = deferrable
        self._block = conn.transaction()

    def __enter__(self) -> None:
        self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        # `ensure_process` is not enough: a destructor may call this while a child process is being set up.
        inherited = not SAME_PROCESS[0] and not fork.ensure_process()
        if inherited or self._pool.engine.state is not self._state:
            self._leave_to_parent(error)
            return None
        try:
            self._pool.session_rules.refuse_open(self._conn)
        except psycopg.ProgrammingError as problem:
            cut_off(self._conn)  # otherwise psycopg would wait for ever, also when it rolls back
            ending = problem if error is None else error
            with suppress(psycopg.Error):
                self._block.__exit__(type(ending), ending, traceback)
            if error is None:
                raise
            return None
        if error is None:
            try:
                _refuse_lost(self._pool, self._conn)  # psycopg raises nothing in either case
                _refuse_aborted(self._pool, self._conn)
            except psycopg.Error as problem:
                self._block.__exit__(type(problem), problem, None)
                raise
        try:
            return self._block.__exit__(kind, error, traceback)
        except psycopg.Error as problem:
            if error is None:
                _refuse_unknown(self._pool, self._conn, problem)
            raise

    def _leave_to_parent(self, error: BaseException | None) -> None:
        immortal.keep_forever(self._block)  # its generator would roll back when it is destroyed
        if error is None:
            raise LeaseError(
                f"pool {self._pool.name!r}: this transaction belongs to the process that forked this one"
            )


def commit(pool: CommittingPool, conn: Connection, brief: bool) -> None:
    """See `shared.blocks.Block.commit`."""
    if notes_of(conn).foreign:
        conn.commit()
        return
    status = conn.pgconn.transaction_status
    if status == IN_TRANSACTION:
        if not brief:
            _refuse_lost(pool, conn)
    elif status != IDLE:
        if conn.closed and (conn.autocommit or not conn.broken):
            return  # nothing was lost, or the borrower closed it: as psycopg does
        _refuse_lost(pool, conn)
        _refuse_aborted(pool, conn)
    try:
        pool.session_rules.commit(conn)
    except (psycopg.Error, TimeoutError) as error:
        _refuse_unknown(pool, conn, error)
        raise


def _refuse_lost(pool: CommittingPool, conn: Connection) -> None:
    if not pool.engine.adapter.is_alive(conn):
        raise psycopg.OperationalError(LOST)


def _refuse_aborted(pool: CommittingPool, conn: Connection) -> None:
    """The server answers a COMMIT of an aborted transaction with ROLLBACK, and without an error."""
    if not notes_of(conn).foreign and conn.pgconn.transaction_status == IN_ERROR:
        raise rolled_back(conn, f"pool {pool.name!r}: the transaction of this block")


def _refuse_unknown(pool: CommittingPool, conn: Connection, error: Exception) -> None:
    if isinstance(error, TimeoutError) or conn.closed or failures.ended_by(error) is not None:
        if isinstance(error, psycopg.Error) and not failures.in_doubt(error):
            raise psycopg.OperationalError(LOST) from error
        raise CommitUnknown(
            f"pool {pool.name!r}: the connection was lost during the commit: it is unknown whether it took effect"
        ) from error


def may_run_again(pool: CommittingPool, conn: Connection, error: Exception) -> bool:
    """Return whether a unit of work that failed may succeed when it is run again, and was not committed."""
    if isinstance(error, (CommitUnknown, TransactionRolledBack, psycopg.ProgrammingError)):
        return False  # it may be committed; or the work has a mistake, and would fail again
    if notes_of(conn).cancel is not None:
        return False  # it was ended at its time limit, or because the pool was closed
    return failures.repeatable(error) or pool.engine.adapter.is_broken(conn, error)


class Block(blocks.Block[Connection]):
    """The context manager of ``db.connection()``."""

    __slots__ = ()
    commit = staticmethod(commit)
