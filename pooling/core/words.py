"""What the pool says in messages (P12)."""

from __future__ import annotations

from .._masking import without_secrets
from .state import PoolState

__all__ = ["counts", "say"]


def counts(state: PoolState) -> str:
    """How many are where, for the end of a message."""
    parts = [f"{state.in_use}/{state.max_size} in use", f"{len(state.idle)} idle"]
    for word in ("creating", "checking", "closing"):
        number = len(getattr(state, word))
        if number:
            parts.append(f"{number} {word}")
    parts.append(f"{len(state.waiters)} waiting")
    if state.paused:
        parts.append("paused")
    return ", ".join(parts)


def say(error: BaseException | None) -> str:
    """An error in one line, without the secrets of an address that it may quote."""
    text = " ".join(without_secrets(str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
