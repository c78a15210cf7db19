"""The blocks in which a connection is lent for a transaction, and how they end."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Protocol

from ...core.runtime import fork
from ...core.runtime.fork import SAME_PROCESS
from ...errors import CommandTimeout, CommitUnknown, LeaseError, TransactionRolledBack
from ..shared import blocks
from ..shared.blocks import LOST, LendingPool
from . import failures
from .session import Session
from .tracking import Connection, notes_of
from .wire import QUERY, Commands

__all__ = ["ISOLATION_LEVELS", "Block", "CommittingPool", "Transaction", "commit", "may_run_again"]

ISOLATION_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class CommittingPool(LendingPool[Connection], Protocol):
    """The part of a `MySQLPool` that a block needs."""

    session_rules: Session


class Transaction:
    """A transaction with exact errors at its end. After an error the cleaning of the session rolls it back.

    Args:
        pool: The pool.
        conn: A connection of it on which no transaction is open.
        what: What the block is called in messages.
        isolation_level: See `MySQLPool.transaction`.
        read_only: See there.
    """

    def __init__(
        self,
        pool: CommittingPool,
        conn: Connection,
        what: str = "run()",
        isolation_level: str | None = None,
        read_only: bool | None = None,
    ) -> None:
        self._pool, self._conn, self._what, self._state = pool, conn, what, pool.engine.state
        self._begin: list[str] = []
        if isolation_level is not None:
            self._begin.append(f"SET TRANSACTION ISOLATION LEVEL {isolation_level}")
        access = {None: "", True: " READ ONLY", False: " READ WRITE"}[read_only]
        if self._begin or access or pool.session_rules.driver.in_autocommit(conn):
            self._begin.append(f"START TRANSACTION{access}")

    def __enter__(self) -> None:
        notes, rules = notes_of(self._conn), self._pool.session_rules
        if self._begin:
            notes.dirty, notes.answered = True, False
            steps = ((QUERY, text.encode()) for text in self._begin)
            commands = Commands(*steps, prefix=rules.driver.query_prefix(self._conn))
            rules.driver.perform(self._conn, commands, notes.limit and notes.limit.left(), rules.pipelined)
        notes.block = self._what

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        inherited = not SAME_PROCESS[0] and not fork.ensure_process()
        if inherited or self._pool.engine.state is not self._state:
            if error is None:
                raise LeaseError(
                    f"pool {self._pool.name!r}: this transaction belongs to the process that forked this one"
                )
            return
        notes_of(self._conn).block = None
        if error is None:
            commit(self._pool, self._conn, brief=False)


def commit(pool: CommittingPool, conn: Connection, brief: bool) -> None:
    """See `shared.blocks.Block.commit`."""
    notes, rules = notes_of(conn), pool.session_rules
    driver = rules.driver
    if not notes.dirty and driver.notes_use:
        return
    _refuse_unread(pool, conn, driver.unread(conn))
    if notes.failed is not None:
        raise driver.rolled_back(
            f"pool {pool.name!r}: the transaction of this block was rolled back: an error was caught before the end, "
            f"after which the server had undone all that came before; what failed: {notes.failed}"
        )
    if not driver.is_open(conn):
        raise driver.lost(LOST)
    if notes.hung_up():
        why: Exception | None = None
        with suppress(Exception):  # the server may have said so
            try:
                driver.execute(conn, "DO 0", 1.0)
            except driver.error as error:
                why = error
        _refuse_unread(pool, conn, _unread(why))
        raise driver.lost(LOST) from why
    try:
        rules.commit(conn)
    except driver.error as error:
        _refuse_unread(pool, conn, _unread(error))
        _refuse_unknown(pool, conn, error)
        raise


def _unread(error: Exception | None) -> str | None:
    """Return what was left half-read, where the driver says it only at the next command."""
    return "a half-read result" if failures.code_of(error) == failures.OUT_OF_SYNC else None


def _refuse_unread(pool: CommittingPool, conn: Connection, left: str | None) -> None:
    if left is not None:
        notes_of(conn).unfinished = True  # its connection is closed: to read the rest could take for ever
        raise pool.session_rules.driver.programming(
            f"the block has ended with {left}: its connection is closed, and its transaction rolled back"
        )


def _refuse_unknown(pool: CommittingPool, conn: Connection, error: Exception) -> None:
    driver = pool.session_rules.driver
    if failures.ended_by(error) is None and driver.is_open(conn):
        return  # the server refused to commit
    if failures.was_refused(error):
        raise driver.lost(LOST) from error
    if isinstance(error.__cause__, TimeoutError):
        notes_of(conn).unfinished = True  # the server may still be at it
    raise driver.commit_unknown(
        f"pool {pool.name!r}: the connection was lost during the commit: it is unknown whether it took effect"
    ) from error


def may_run_again(pool: CommittingPool, conn: Connection, error: Exception) -> bool:
    """Return whether a unit of work that failed may succeed when it is run again, and was not committed."""
    if isinstance(error, (CommitUnknown, CommandTimeout, TransactionRolledBack)):
        return False  # it may be committed; or the work has a mistake, and would fail again
    return failures.repeatable(error) or pool.engine.adapter.is_broken(conn, error)


class Block(blocks.Block[Connection]):
    """The context manager of ``db.connection()``."""

    __slots__ = ()
    commit = staticmethod(commit)
