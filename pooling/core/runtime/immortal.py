"""Objects that are never destroyed, not even at interpreter exit.

Destructors of drivers send a goodbye message to the server. On a connection
that a child process has inherited it would reach the parent's server session.
An additional reference keeps such an object.

Uses an internal function of CPython, ``_ctypes.Py_INCREF``. Gain: correctness,
not speed. Without it (another interpreter, or ``POOLING_PLAIN=1``) the objects
are kept in a list; at interpreter exit they are then destroyed.
"""

from __future__ import annotations

from collections.abc import Callable

from ..._plain import switched_off
from . import parking

__all__ = ["keep_forever", "prepare"]

incref: Callable[[object], object] | None = None
kept: list[object] = []


def keep_forever(thing: object) -> None:
    """Prevent the destruction of an object, also at interpreter exit."""
    if incref is None:
        kept.append(thing)
    else:
        incref(thing)


def prepare() -> None:
    """Import what `keep_forever` needs, before a process forks."""
    global incref
    if not switched_off("immortal"):
        try:
            # Imported here, not in a child: a thread of the parent may hold the import lock at the fork.
            from _ctypes import Py_INCREF as incref
        except ImportError:
            pass
    parking.clear_in_children()
