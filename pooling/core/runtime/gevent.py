"""The threads and boxes of this process, which gevent may replace at any moment.

``gevent.monkey.patch_all()`` may run before the import, after a fork, or while
the pool is in full use. What is made afterwards must be gevent's, or it would
block the hub; what was made before stays native, and must stay together:
a greenlet started by a native thread would never run.

So a *world* is named by the class of its boxes, and `Runtime` moves from
one to the next (see `registry`). The pool's lock stays native in every world:
nothing under it ever waits or switches, so it never blocks the hub, native
threads that are still at work may take it, and no exception leaks it, which
gevent's lock, in Python code, cannot say. A destructor that switches greenlets
while the collector runs it inside the lock is beyond us: others are refused.

Found for gevent's ``SimpleQueue`` (its own, compiled, since 25.4.1; older ones
leave a Python one there, which is not re-entrant and will not do):

- ``put`` is compiled down to ``deque.append`` and ``loop.run_callback``: no
  Python frame, so no asynchronous exception strikes in it. It serves as an
  entry's callback.
- Give and wake are two steps: the receiver runs at the hub's next turn, and a
  ``gevent.Timeout`` may strike it in between. The item is still in its box
  then, where `PoolState.leave` finds it. ``Empty`` is raised likewise.
- A destructor's ``put`` in the middle of ``get`` on the same box may be noticed
  only by the next one. For the reaper, while somebody waits, that is an audit.
- It wakes the hub of its own native thread only; see `hand`.
"""

from __future__ import annotations

import _thread
import queue
import sys
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["NATIVE", "Life", "call_home", "hand", "mark_native", "may_move", "patched", "start", "Weak"]

#: The class of the boxes in a world of native threads.
NATIVE: Any = getattr(sys.modules.get("_queue"), "SimpleQueue", queue.SimpleQueue)
_start_native = _thread.start_new_thread  # gevent's, if it was faster: then no thread is native
_here = _thread._local()


class Weak(weakref.ref):  # type: ignore[type-arg]
    """A weak reference that can remove itself from a set when its referent is gone.

    An ordinary one hashes what it refers to, and cannot once that has gone.
    """

    __slots__ = ()
    __hash__ = object.__hash__


class Life:
    """Held by one of our threads only: it ends with the thread, for whatever reason that ended."""

    __slots__ = ("started", "__weakref__")

    def __init__(self) -> None:
        self.started = False  # the thread has begun to run


def patched() -> bool:
    """Whether gevent has replaced threads by greenlets."""
    return queue.SimpleQueue is not NATIVE


def start(queue_class: object, function: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Start a thread, native or a greenlet, given by the class of its boxes.

    Native threads see a process that is half patched: threads come before queues.

    Raises:
        RuntimeError: There can be no more threads.
    """
    begin = _thread.start_new_thread
    if queue_class is NATIVE and begin.__module__ == "gevent.thread":
        begin = _start_native
    begin(function, args)


def mark_native(queue_class: object) -> None:
    """Record that this thread is one of ours and native, if its boxes are."""
    if queue_class is NATIVE:
        _here.ours = True


def may_move() -> bool:
    """Whether this is the main thread, whose hub runs. Greenlets created in other threads may never run.

    Ours are not even asked: to look for a hub makes one.
    """
    gevent = sys.modules.get("gevent")
    if gevent is None or getattr(_here, "ours", False):
        return gevent is None
    return bool(gevent.get_hub().main_hub)


def hand(box: Any, item: object) -> None:
    """Put an item into a box, and wake a greenlet of another native thread."""
    box.put(item)
    if type(box) is not NATIVE:
        wake(box)


def wake(box: Any) -> None:
    """Wake a greenlet of another native thread that waits for this box."""
    call_home(box, _nothing)


def call_home(box: Any, function: Callable[..., object], *args: Any) -> bool:
    """Have the hub of a box call a function, if the hub belongs to another thread.

    Returns:
        Whether that will be done; ``False`` says: you are at home here, do it.
    """
    hub = getattr(box, "hub", None)
    if hub is None or hub.thread_ident == _native_ident():
        return False
    try:
        hub.loop.run_callback_threadsafe(function, *args)
    except (AttributeError, ValueError):
        pass  # its thread and hub have ended: there is no waiter to wake
    return True


def _nothing() -> None:
    """Only wakes the hub."""


def _native_ident() -> int:
    get_ident = sys.modules["gevent.monkey"].get_original("_thread", "get_ident")
    return get_ident()  # type: ignore[no-any-return]
