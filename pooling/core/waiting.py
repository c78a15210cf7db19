"""Waits for a state of the pool: warm-up, close, rotation."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from .engine import Engine
from .runtime.gevent import Weak

__all__ = ["Watch", "is_warm", "wait_until"]


class Watch:
    """A thread that waits for a state of the pool. Only that thread holds it."""

    __slots__ = ("reached", "box", "__weakref__")

    def __init__(self, reached: Callable[[], bool], box: Any) -> None:
        self.reached = reached
        self.box = box


def all_lent(engine: Engine[Any]) -> bool:
    """Whether every resource is in use; in a pool with lanes, every one that is not reserved. Needs the lock."""
    state = engine.state
    return (not state.idle and state.in_use >= state.max_size) or (state.lanes is not None and state.lanes.free <= 0)


def is_warm(engine: Engine[Any]) -> bool:
    """Whether ``min_size`` resources are ready, or as many as the limits allow, but at least one."""
    return engine.state.ready >= (engine.state.min_size or min(1, engine.settings.min_size))


def wait_until(engine: Engine[Any], reached: Callable[[], bool], timeout: float) -> bool:
    """Wait until a condition on the state holds; return whether it does.

    Like a waiter, the thread blocks on its own box: a condition variable's lock
    would stay locked if an asynchronous exception was raised inside it.
    """
    box: Any = queue.SimpleQueue()
    watch = Watch(reached, box)
    reference = Weak(watch, engine.watchers.discard)
    deadline = engine.fast.now() + timeout
    try:
        with engine.lock:
            engine.watchers.add(reference)
            if engine.outage.hurry(engine.fast.now(), engine.settings.backoff):
                engine.schedule_sweep(engine.outage.retry_at)
        engine.runtime.reaper.ensure()  # a limit may be raised by what it runs
        while True:
            engine.serve()
            with engine.lock:
                if reached():
                    return True
            try:
                engine.clock.get(box, deadline - engine.fast.now())
            except queue.Empty:
                with engine.lock:
                    return reached()
    finally:
        engine.watchers.discard(reference)
