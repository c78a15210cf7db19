"""The values that acquire and release of an idle resource read without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..settings import PoolSettings
from .adapter import HOOKS, Adapter, overridden
from .entry import Token
from .lanestate import LaneState
from .state import PoolState

__all__ = ["FastPath"]

_NO_GENERATION = object()  # equals the generation of no entry
_ALWAYS = (None,)  # as if there were waiters


class FastPath:
    """The values that acquire and release of an idle resource read, in slots, which CPython reads fastest.

    One identity test replaces many checks of the state: an entry of
    ``lendable_generation`` may be lent, and one of ``returnable_generation``
    may be put back.
    """

    __slots__ = (
        "waiters", "pop", "push", "now", "lendable_generation", "returnable_generation",
        "track_holders", "checks_on_acquire", "slow_release", "notes_release", "hooks", "_always_slow", "_counts_uses",
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
    notes_release: bool  # an observer is notified of it, or the resource's uses are limited
    hooks: frozenset[str]  # what the adapter overrides of `HOOKS`; the pool skips the others
    _always_slow: bool
    _counts_uses: bool

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now

    def use(self, state: PoolState, lifo: bool) -> None:
        """Lend from a state."""
        self.waiters, self.push = state.waiters, state.idle.append
        if isinstance(state, LaneState):  # each acquire and release is decided on under the lock
            self.waiters, self.push = _ALWAYS, state.give_back
        self.pop = state.idle.pop if lifo else state.idle.popleft

    def configure(self, settings: PoolSettings, adapter: Adapter[Any], watched: bool) -> None:
        """Apply settings; `refresh` has to follow.

        Args:
            settings: The settings.
            adapter: The adapter, whose hooks decide what a fast acquire and release must do.
            watched: Whether sockets of resources are watched.
        """
        self.hooks = hooks = frozenset(name for name in HOOKS if overridden(adapter, name) is not None)
        self.track_holders = settings.track_holders
        self.checks_on_acquire = watched or not hooks.isdisjoint(("is_alive", "validate", "finish_reset"))
        self._counts_uses = settings.max_uses is not None
        self._always_slow = not hooks.isdisjoint(("reset", "refuse"))

    def refresh(self, state: PoolState, observed: bool) -> None:
        """Update what a resource's generation is compared with. Needs the pool's lock.

        Args:
            state: The state.
            observed: Whether an observer is notified of each lease.
        """
        current = _NO_GENERATION if state.fast_path_closed else state.generation
        max_idle_binds = state.max_idle < state.max_size
        self.notes_release = observed or self._counts_uses
        self.slow_release = self.notes_release or self._always_slow
        self.lendable_generation = _NO_GENERATION if observed else current
        self.returnable_generation = _NO_GENERATION if max_idle_binds else current
