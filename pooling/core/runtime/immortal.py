"""Objects that are never destroyed, not even at interpreter exit.

Destructors of drivers send a goodbye message to the server. On a connection
that a child process has inherited it would reach the parent's server session.
An additional reference keeps such an object; without ``Py_INCREF`` it lives
until the interpreter exits, and is destroyed then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

__all__ = ["keep_forever", "prepare"]

_incref: Callable[[object], object] | None = None
_kept: list[object] = []  # where there is no `Py_INCREF`
_clears_parked_threads: list[bool] = []  # not empty: the fork handler for parked threads is registered


def keep_forever(thing: object) -> None:
    """Prevent the destruction of an object, also at interpreter exit."""
    if _incref is None:
        _kept.append(thing)
    else:
        _incref(thing)


def prepare() -> None:
    """Import what `keep_forever` needs, before a process forks."""
    global _incref
    try:
        # Imported here, not in a child: a thread of the parent may hold the import lock at the fork.
        from _ctypes import Py_INCREF as _incref
    except ImportError:
        return
    if sys.version_info >= (3, 13) and hasattr(os, "fork") and not _clears_parked_threads:
        _clears_parked_threads.append(True)
        _clear_parked_threads()


def _clear_parked_threads() -> None:
    """Make a fork in C clear CPython's list of parked threads, as a fork in Python does.

    CPython 3.13+ keeps a list of waiting threads whose nodes are on the
    threads' stacks; a `SimpleQueue` waits there. When the stack of a new thread
    reuses that memory, the list is corrupt and the child crashes. So the list
    must be cleared before the child starts a thread. Without the function the
    child works as CPython leaves it.
    """
    import ctypes

    try:
        process = ctypes.CDLL(None)
        forget = ctypes.cast(ctypes.pythonapi._PyParkingLot_AfterFork, ctypes.c_void_p)
        # glibc's `pthread_atfork` is linked statically and calls this function.
        register = getattr(process, "__register_atfork", None) or process.pthread_atfork
        register(None, None, forget, None)
    except (AttributeError, OSError):
        pass  # an interpreter, or a C library, without these
