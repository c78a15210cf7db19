"""CPython's list of parked threads, cleared in the child of a fork that was made in C.

Uses an internal function of CPython (``_PyParkingLot_AfterFork``) and one of
the C library (``__register_atfork``, or ``pthread_atfork``), by ctypes.

Why: CPython 3.13+ keeps a list of waiting threads whose nodes are on the
threads' stacks; a `SimpleQueue` waits there. ``os.fork()`` clears the list in
the child. A fork in C, as uWSGI makes it, does not; when the stack of a new
thread reuses that memory, the list is corrupt and the child crashes. So the
list must be cleared before the child starts a thread.

Gain: correctness, not speed. Without it (CPython before 3.13, another
interpreter or C library, or ``POOLING_PLAIN=1``) the child works as CPython
leaves it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ..._plain import switched_off

__all__ = ["clear_in_children", "register_in_c"]

registered: list[bool] = []  # not empty: the fork handler is registered


def clear_in_children() -> bool:
    """Register the fork handler, once in a process; return whether it is registered."""
    if not registered and _applies() and register():
        registered.append(True)
    return bool(registered)


def _applies() -> bool:
    return sys.version_info >= (3, 13) and hasattr(os, "fork") and not switched_off("parking")


def register() -> bool:
    try:
        import ctypes

        forget = ctypes.cast(ctypes.pythonapi._PyParkingLot_AfterFork, ctypes.c_void_p)
    except (ImportError, AttributeError, OSError):
        return False  # another interpreter
    return register_in_c(None, None, forget)


def register_in_c(before: Any, in_parent: Any, in_child: Any) -> bool:
    """Register functions of C that run at each fork, in the thread that forks; return whether that was possible."""
    try:
        import ctypes

        process = ctypes.CDLL(None)
        # glibc's `pthread_atfork` is linked statically and calls this function.
        register = getattr(process, "__register_atfork", None) or process.pthread_atfork
        register(before, in_parent, in_child, None)
    except (ImportError, AttributeError, OSError):
        return False  # another C library
    return True
