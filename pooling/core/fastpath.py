"""The values that acquire and release of an idle resource read without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .entry import Token

__all__ = ["FastPath"]


class FastPath:
    """The values that acquire and release of an idle resource read, in slots, which CPython reads fastest.

    One identity test replaces many checks of the state: an entry of
    ``lendable_generation`` may be lent, and one of ``returnable_generation``
    may be put back.
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
