"""Formatting for messages (P12)."""

from __future__ import annotations

from typing import Any, NoReturn

from ..._masking import without_secrets
from ..adapter import Adapter
from ..state import PoolState

__all__ = ["format_counts", "format_error", "format_exhaustion", "format_lanes", "format_late", "no_copy", "printable"]


def format_counts(adapter: Adapter[Any], state: PoolState) -> str:
    """Return the counts of a pool, for messages: the adapter's own, if it counts something else."""
    return adapter.counts() or _format_counts(state)


def _format_counts(state: PoolState) -> str:
    parts = [f"{state.in_use}/{state.max_size} in use", f"{len(state.idle)} idle"]
    for word in ("creating", "checking", "closing"):
        number = len(getattr(state, word))
        if number:
            parts.append(f"{number} {word}")
    parts.append(f"{len(state.waiters)} waiting")
    if state.paused:
        parts.append("paused")
    parts += [f"{limit}: {note}" for limit, note in state.limits.notes.items()]
    return ", ".join(parts) + format_lanes(state)


def format_lanes(state: PoolState) -> str:
    """Return the counts of each lane that has leases or waiters; an empty string in a pool without lanes."""
    if state.lanes is None:
        return ""
    parts = []
    for lane in state.lanes.by_name.values():
        most, reserve = lane.settings.most, lane.reserve
        if lane.lent or lane.queue:
            of = "" if most is None else f"/{most}"
            parts.append(f"{lane.name} {len(lane.lent)}{of} in use, {len(lane.queue)} waiting")
        elif reserve:
            parts.append(f"{lane.name} {reserve} reserved")
    return f"; lanes: {'; '.join(parts)}" if parts else ""


def format_exhaustion(state: PoolState, now: float) -> str:
    """Return that all are in use, and how many wait for how long, for messages. Needs the pool's lock."""
    text = f"exhausted: {state.in_use} of {state.max_size} in use, {len(state.waiters)} waiting"
    text += f", the oldest for {max(0.0, now - state.waiters[0].arrived):.1f} s" if state.waiters else ""
    return text + format_lanes(state)


def printable(text: str) -> str:
    """Escape newlines and control characters in a string from outside, for a terminal or a log."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def no_copy(thing: object, instead: str) -> NoReturn:
    """Refuse to copy or pickle an object, with advice on what to do instead.

    For ``__reduce_ex__``, which ``copy``, ``deepcopy`` and ``pickle`` all call.
    """
    raise TypeError(f"{type(thing).__name__} objects cannot be copied or pickled: {instead}")


def format_late(pool: str, what: str, timeout: float, adapter: Adapter[Any], state: PoolState, error: Any) -> str:
    """Return what was not there in time, with the counts and the last error of a creation. Needs the pool's lock."""
    text = f"pool {pool!r}: {what} within {timeout:.1f} s ({format_counts(adapter, state)})"
    return text if error is None else f"{text}; last {adapter.noun} error: {format_error(error)}"


def format_error(error: BaseException | None) -> str:
    """Return an error in one lane, without the secrets of an address that it may quote."""
    text = printable(" ".join(without_secrets(str(error)).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
