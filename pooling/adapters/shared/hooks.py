"""Functions of the user's, and callbacks of an adapter to its pool."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from ..._masking import shown

__all__ = ["check_hooks", "weakly"]


def weakly(method: Callable[..., object]) -> Callable[..., object]:
    """Return a function that calls a method while its object lives: an adapter outlives its pool."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(*args)

    return call


def check_hooks(**hooks: object) -> None:
    """Refuse arguments that are neither callable nor ``None``.

    Raises:
        TypeError: Names the argument.
    """
    for name, hook in hooks.items():
        if not (hook is None or callable(hook)):
            raise TypeError(f"{name} must be callable or None, not {shown(hook)}")
