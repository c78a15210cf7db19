"""What a store is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .model import Answer, Request, Terms

__all__ = ["PATIENCE", "Store", "StoreError"]

PATIENCE = 2.0
"""Seconds that a store may take for an answer."""


class StoreError(Exception):
    """A store gave no answer; the message says why."""


class Store(Protocol):
    """Where the members of a budget meet. One object serves one process; a forked child opens its own.

    Attributes:
        ttl: Seconds that a share is valid without a renewal; infinite if the store sees when a process ends.
        reserve: Connections of the total that are not handed out, because the store itself may open them.
    """

    ttl: float
    reserve: int

    def renew(self, request: Request, terms: Terms, pools: Sequence[Any]) -> Answer:
        """Decide on a request as `Ledger.renew` does, within about `PATIENCE`. Called on a worker, one call at a time.

        Args:
            request: Of this process.
            terms: Of the budget.
            pools: The pools of this process with this budget.

        Raises:
            Exception: There is no answer.
        """

    def release(self, member: str, number: int, pools: Sequence[Any]) -> None:
        """Forget a member that holds nothing any more, as `Ledger.release` does."""

    def close(self) -> None:
        """Close what this process has open."""

    def abandon(self) -> None:
        """In a forked child: drop what the parent has open, without a word to the server."""
