"""What acquire and release of an idle resource read, without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .entry import Token

__all__ = ["FastPath"]


class FastPath:
    """What acquire and release of an idle resource read: slots, which CPython reads fastest.

    One identity test answers many questions: an entry of
    ``lendable_generation`` is lent, and one of ``returnable_generation`` is
    put back, without a look at the state.
    """

    __slots__ = (
        "waiters", "pop", "push", "now", "lendable_generation", "returnable_generation",
        "track_holders", "checks_on_acquire", "slow_release",
    )  # fmt: skip

    waiters: Any
    pop: Callable[[], Token]
    push: Callable[[Token], None]
    now: Callable[[], float]
    lendable_generation: object
    returnable_generation: object
    track_holders: bool
    checks_on_acquire: bool
    slow_release: bool
