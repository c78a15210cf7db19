"""The threading primitives of this process, which gevent may replace at any moment.

``gevent.monkey.patch_all()`` may run before the import, after a fork, or while
the pool is in full use. Primitives created afterwards must be gevent's, or they
would block the hub. Those created before stay native, and the two kinds must
not be mixed: a greenlet started by a native thread would never run.

The class of the boxes tells which kind is in use, and `Runtime` switches from
one to the other (see `registry`). The pool's lock is always native: nothing
under it ever waits or switches greenlets, so it never blocks the hub; native
threads that are still working can take it; and no exception can leave it
locked, unlike gevent's lock, which is Python code. One case is not covered: a
destructor that switches greenlets while the garbage collector runs it inside
the lock.

Observed for gevent's ``SimpleQueue`` (compiled since 25.4.1; older versions have
a Python one, which is not re-entrant and is not supported):

- ``put`` is compiled to ``deque.append`` and ``loop.run_callback``, without a
  Python frame, so no asynchronous exception can be raised in it. It is used as
  an entry's callback.
- Giving and waking are two steps: the receiver runs in the hub's next
  iteration, and a ``gevent.Timeout`` may be raised in it in between. The item is
  then still in its box, where `PoolState.leave` finds it. ``Empty`` is raised in
  the same way.
- A destructor's ``put`` during a ``get`` on the same box may be noticed only by
  the next ``put``. For the reaper, while borrowers wait, the next is an audit.
- It wakes only the hub of its own native thread; see `put`.
"""

from __future__ import annotations

import _thread
import queue
import sys
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["NATIVE", "Life", "Weak", "call_in_hub", "mark_native", "may_move", "patched", "put", "start", "wake"]

#: The class of the boxes of native threads.
NATIVE: Any = getattr(sys.modules.get("_queue"), "SimpleQueue", queue.SimpleQueue)
_start_native = _thread.start_new_thread  # gevent's, if it patched before the import: then no thread is native
_here = _thread._local()


class Weak(weakref.ref):  # type: ignore[type-arg]
    """A weak reference that can remove itself from a set when its referent is gone.

    An ordinary one hashes its referent, and cannot do so once that is gone.
    """

    __slots__ = ()
    __hash__ = object.__hash__


class Life:
    """Referred to by one of our threads only: it ends with the thread, however that ends."""

    __slots__ = ("started", "__weakref__")

    def __init__(self) -> None:
        self.started = False  # the thread has begun to run


def patched() -> bool:
    """Whether gevent has replaced threads by greenlets."""
    return queue.SimpleQueue is not NATIVE


def start(queue_class: object, function: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Start a native thread or a greenlet, depending on the class of its boxes.

    While gevent patches, native threads may see patched threads and unpatched
    queues, because it patches threads first.

    Raises:
        RuntimeError: No more threads can be started.
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

    Our own threads do not look for a hub, because that would create one.
    """
    gevent = sys.modules.get("gevent")
    if gevent is None or getattr(_here, "ours", False):
        return gevent is None
    return bool(gevent.get_hub().main_hub)


def put(box: Any, item: object) -> None:
    """Put an item into a box, and wake a greenlet of another native thread."""
    box.put(item)
    if type(box) is not NATIVE:
        wake(box)


def wake(box: Any) -> None:
    """Wake a greenlet of another native thread that waits for this box."""
    call_in_hub(box, _nothing)


def call_in_hub(box: Any, function: Callable[..., object], *args: Any) -> bool:
    """Make the hub of a box call a function, if the hub belongs to another thread.

    Returns:
        ``True`` if the hub will call it; ``False`` if it belongs to this
        thread, so that the caller can call it directly.
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
