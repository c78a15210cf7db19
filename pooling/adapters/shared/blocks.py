"""The block in which a connection is lent for a transaction."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from ...core.engine import Engine
from ...core.lease import Lease
from ...core.runtime import fork
from ...core.runtime.fork import SAME_PROCESS

__all__ = ["BRIEF", "LOST", "Block", "LendingPool"]

C = TypeVar("C")

BRIEF = 0.1
"""Seconds: a shorter block commits without checking first whether its connection was lost. If it was, and the server
has not said why, the error is `CommitUnknown` where a check could have told more."""

LOST = "the connection was lost before the commit was done"


class LendingPool(Protocol[C]):
    """The part of a pool that a block needs."""

    engine: Engine[C]

    @property
    def name(self) -> str:
        """The pool's name."""

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[C]:
        """Lend a connection."""


class Block(Generic[C]):
    """The context manager of ``db.connection()``; a generator would take longer than the lease itself."""

    __slots__ = ("_pool", "_timeout", "_lane", "_lease")

    def __init__(self, pool: LendingPool[C], timeout: float | None, lane: str | None = None) -> None:
        self._pool, self._timeout, self._lane = pool, timeout, lane

    @staticmethod
    def commit(pool: Any, conn: Any, brief: bool) -> None:
        """Commit at the end of a block, and raise what is known if that fails.

        Args:
            pool: The block's pool.
            conn: Its connection.
            brief: Whether the block was shorter than `BRIEF`.
        """
        raise NotImplementedError

    def __enter__(self) -> C:
        acquire = self._pool.acquire  # perhaps an override from before there were lanes
        self._lease = lease = acquire(self._timeout, 2) if self._lane is None else acquire(self._timeout, 2, self._lane)
        return lease.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not SAME_PROCESS[0]:
            fork.ensure_process()  # in a child of a fork in C: nothing must be sent to the parent's server
        lease = self._lease
        if error is None:
            try:
                conn = lease.__enter__()  # again: the lease may have been inherited through a fork meanwhile
                since = lease._token.entry.since  # type: ignore[union-attr]  # it is lent
                self.commit(self._pool, conn, self._pool.engine.clock.now() - since < BRIEF)
            except BaseException as problem:
                lease.__exit__(type(problem), problem, None)
                raise
        lease.__exit__(kind, error, traceback)
