"""`Pool`: what users make, and steer."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from .._masking import masked, shown
from ..errors import PoolClosed, PoolTimeout
from ..settings import PoolOptions, PoolSettings, with_options
from .adapter import Adapter, FunctionAdapter, own
from .clock import SYSTEM, Clock, seconds
from .entry import Key
from .holders import Holder, describe, holders_of
from .lending import Lending
from .observer import Observer, tell
from .slots import Watch
from .state import _copy
from .threads import Weak
from .words import say

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Pool"]

R = TypeVar("R")
logger = logging.getLogger("pooling")
_numbers = itertools.count(1)


class Pool(Lending[R]):
    """Lends resources that are costly to make to one thread at a time.

    ::

        pool = Pool(connect, close=Connection.close, max_size=20, name="ldap")
        with pool.acquire(timeout=2.0) as connection:
            connection.search(...)

    Nothing is opened and no thread is started before the first use. The pool
    may be made at import, used by any number of threads, and carried over a
    fork: the child finds it empty.

    Args:
        factory: Makes a resource. May block; runs on a worker thread, in a copy
            of the context (``contextvars``) of the acquire that asks for it.
            What is replaced to keep ``min_size`` has no borrower's context.
        close: Ends one.
        validate: Makes a round trip to prove one alive: raises, or returns
            ``False``, if it is dead. Whatever else it returns, ``None``
            included, means alive.
        reset: Makes one as good as new after a lease; raises, or returns
            ``False``, if that fails.
        is_broken: Called with a resource and the error that left the block:
            ``True`` closes the resource, ``False`` keeps it, ``None`` leaves it
            to `Adapter.is_broken`. Without this argument that decides, and
            after any other error ``validate`` is asked.
        adapter: All of the above and more in one object; instead of ``factory``.
        settings: Sizes and times, see `PoolSettings`.
        name: For messages and metrics.
        observers: Told what happens, see `Observer`.
        clock: Where time comes from; tests pass their own.
        options: Fields of `PoolSettings`; they beat ``settings``.

    Raises:
        TypeError: Neither or both of ``factory`` and ``adapter``, or one of
            the arguments is not of its kind, or unknown.
        ValueError: An option breaks its field's rule.
    """

    def __init__(
        self,
        factory: Callable[[], R] | None = None,
        *,
        close: Callable[[R], object] | None = None,
        validate: Callable[[R], bool | None] | None = None,
        reset: Callable[[R], bool | None] | None = None,
        is_broken: Callable[[R, BaseException], bool | None] | None = None,
        adapter: Adapter[R] | None = None,
        settings: PoolSettings | None = None,
        name: str | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        given = {"factory": factory, "close": close, "validate": validate, "reset": reset, "is_broken": is_broken}
        adapter = _adapter(adapter, given)
        if settings is not None and not isinstance(settings, PoolSettings):
            # Never the value: whoever mixes up the order of arguments gives an address, with its password.
            raise TypeError(f"settings must be a PoolSettings, not of type {type(settings).__name__}")
        if name is not None and not (isinstance(name, str) and name):
            raise TypeError(f"name must be a text that is not empty, not {shown(name)}")
        if isinstance(name, str) and "://" in name and masked(name) != name:
            raise ValueError("name must not be an address with a password: it stands in every message")
        if clock is not None and not (callable(getattr(clock, "now", None)) and hasattr(clock, "get")):
            raise TypeError(f"clock must have now(), wall() and get(), not be {shown(clock)}")
        if not isinstance(observers, Iterable):
            raise TypeError(f"observers must be several of pooling.Observer, not {shown(observers)}")
        settings = with_options(settings or PoolSettings(), options, Pool.__init__)
        number = next(_numbers)
        super().__init__(adapter, settings, name or f"pool-{number}", clock or SYSTEM)
        for observer in observers:
            self.add_observer(observer)

    # -- life -------------------------------------------------------------------

    def open(self, timeout: float | None = None) -> None:
        """Warm up: wait until ``min_size`` resources are ready, or say why not.

        Not needed before `acquire`, which opens what it needs.

        Args:
            timeout: Seconds to wait; ``None`` means ``acquire_timeout``.

        Raises:
            PoolTimeout: They were not ready in time; the real error is the cause.
            CreateFailed: They never will be.
            PoolClosed: The pool was closed.
        """
        self._enter()
        limit = self._settings.acquire_timeout if timeout is None else seconds(timeout)
        state, outage = self._state, self._outage
        with self._lock:
            if state.closed:
                raise PoolClosed(f"pool {self.name!r} is closed")
            state.started = True

        def ready() -> int:
            return state.live - len(state.checking)

        def over() -> bool:
            return ready() >= state.min_size or state.closed or outage.final

        self._until(over, limit)
        with self._lock:
            if ready() >= state.min_size:
                return
            if state.closed:
                raise PoolClosed(f"pool {self.name!r} was closed while it opened")
            if outage.final:
                raise self._cannot_create() from outage.error
            text = (
                f"pool {self.name!r}: {ready()} of {state.min_size} {self._adapter.noun}s "
                f"ready within {limit:.1f} s ({self._counts()})"
            )
            if outage.error is not None:
                text += f"; making one fails: {say(outage.error)}"
            raise PoolTimeout(text) from outage.error

    def close(self, timeout: float | None = None) -> None:
        """Close the pool for good.

        Waiters fail at once with `PoolClosed`; idle resources are closed now
        and those in use when they are returned. Those that are still in use
        after ``timeout`` are interrupted, so that a holder who is blocked on
        one fails, but never closed under their holders. Closing twice is fine.

        Args:
            timeout: Seconds to wait for what is in use or being closed;
                ``None`` means ``close_timeout``.
        """
        self._enter()
        limit = self._settings.close_timeout if timeout is None else seconds(timeout)
        state = self._state
        with self._lock:
            state.closed = True
            state.generation = object()
            self._gate_locked()
            state.fail_waiters(PoolClosed, f"pool {self.name!r} was closed during the wait")
        self._serve()
        me = threading.get_ident()

        def over() -> bool:  # what this thread holds itself cannot come back while it waits
            lent = state.lent()
            return all(entry.thread == me for entry in lent) and len(state.entries) == len(lent)

        if not self._until(over, limit) or state.entries:
            self._interrupt_holders()

    def _interrupt_holders(self) -> None:
        me = threading.get_ident()
        lent = [entry for entry in self._state.lent() if entry.thread != me]
        if not lent:
            return
        logger.warning(
            "pool %r: closed with %d still in use; held by: %s",
            self.name, len(lent), describe(holders_of(lent, self._now())),
        )
        for entry in lent:
            try:
                self._adapter.interrupt(entry.resource)
            except Exception:
                logger.exception("pool %r: interrupt() failed", self.name)

    def __enter__(self) -> Pool[R]:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._state.closed

    # -- steering ----------------------------------------------------------------

    @property
    def settings(self) -> PoolSettings:
        """The settings in force."""
        return self._settings

    def fill(self, size: int | None = None) -> None:
        """Make resources ahead of need, without waiting for them.

        Args:
            size: How many there should be in all; ``None`` means ``min_size``.

        Raises:
            ValueError: More than ``max_size``, or less than 0.
        """
        self._enter()
        state = self._state
        goal = state.min_size if size is None else size
        if not isinstance(goal, int) or isinstance(goal, bool):
            raise TypeError(f"size must be a whole number, not {shown(size)}")
        if not 0 <= goal <= state.max_size:
            raise ValueError(f"size must be from 0 to max_size={state.max_size}, not {shown(size)}")
        with self._lock:
            if state.closed:
                raise PoolClosed(f"pool {self.name!r} is closed")
            state.started = True
            allowed = self._outage.allowed(self._now()) - len(state.creating)
            number = min(goal - (len(state.entries) - len(state.closing)), allowed)
            number = min(number, state.max_size - len(state.entries))
            makings = self._reserve_locked(number)
        self._carry_out(makings, [])
        self._serve()

    def drain(self) -> None:
        """Begin a new generation: replace every resource.

        Idle ones are closed now, those in use when they are returned; new
        ones are made as they are needed.
        """
        self._enter()
        with self._lock:
            self.metrics.survey()
            closes = self._state.drain()
            self._gate_locked()
        self._carry_out([], closes)
        tell(self._observers, "drained", self.name)
        self._serve()

    def resize(self, max_size: int, min_size: int | None = None) -> None:
        """Change the bounds of a running pool.

        Growing serves waiters at once. After shrinking, idle ones are closed
        now and the rest of the surplus when it is returned.

        Raises:
            ValueError, TypeError: As for `PoolSettings`.
        """
        changes = {"max_size": max_size}
        if min_size is not None:
            changes["min_size"] = min_size
        self.reconfigure(**changes)

    def reconfigure(self, **changes: Any) -> None:
        """Change settings of a running pool.

        Lifetimes hold for resources made from now on, all else at once.

        Raises:
            ValueError, TypeError: As for `PoolSettings`; nothing was changed.
        """
        self._enter()
        with self._lock:
            settings = self._settings.replace(**changes)
            self._configure(settings)
            state = self._state
            state.min_size, state.max_size = settings.min_size, settings.max_size
            state.max_idle = settings.max_idle
            self._gate_locked()
            self._look_at(self._now())
        self._serve()

    def pause(self) -> None:
        """Lend nothing until `resume`: borrowers wait in line, and may time out there.

        What is in use stays with its holders.
        """
        self._set_paused(True)

    def resume(self) -> None:
        """Lend again after `pause`; those in line are served in their order."""
        self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        self._enter()
        with self._lock:
            self._state.paused = paused
            self._gate_locked()
        self._serve()

    def check(self) -> None:
        """Look at the idle resources now; the dead ones are closed and replaced.

        Returns when each has been looked at, or is being validated on a worker.
        """
        self._enter()
        for key in _copy(self._state.idle):
            try:
                self._state.idle.remove(key)
            except ValueError:
                continue  # lent meanwhile: it was looked at there
            self._check_idle(key)
        self._serve()

    def _check_idle(self, key: Key) -> None:
        if self._is_alive is not None and not self._alive(key.entry):
            self._found_dead(key, "dead", None)
        elif self._validate is None:
            self._deliver(key)
        elif not self._adapter.bounded:
            self._ask_on_worker(key)
        else:
            self._check(key)

    # -- looking -----------------------------------------------------------------

    def add_observer(self, observer: Observer) -> None:
        """Tell an observer from now on what happens."""
        if not isinstance(observer, Observer):
            raise TypeError(f"observers must be of pooling.Observer, not {shown(observer)}")
        self._set_observers((*self._observers, observer))

    def remove_observer(self, observer: Observer) -> None:
        """Tell an observer nothing any more."""
        self._set_observers(tuple(one for one in self._observers if one is not observer))

    def _set_observers(self, observers: tuple[Observer, ...]) -> None:
        with self._lock:
            self._observers = observers
            self._noise = self._wants_noise()
            self._configure(self._settings)
            self._gate_locked()
        self._serve()

    def stats(self) -> dict[str, Any]:
        """Return how many are where, and the settings that bound them."""
        with self._lock:
            state = self._state
            return {
                "name": self.name,
                "size": len(state.entries),
                "idle": len(state.idle),
                "in_use": state.in_use,
                "creating": len(state.creating),
                "checking": len(state.checking),
                "closing": len(state.closing),
                "waiting": len(state.waiters),
                "min_size": state.min_size,
                "max_size": state.max_size,
                "paused": state.paused,
                "closed": state.closed,
                "down": None if self._outage.error is None else say(self._outage.error),
            }

    def holders(self) -> list[Holder]:
        """Return who holds a resource, where it was acquired and for how long; longest first."""
        with self._lock:
            return holders_of(self._state.lent(), self._now())

    def __repr__(self) -> str:
        with self._lock:
            text, closed = self._counts(), self._state.closed
        return f"<{type(self).__name__} {self.name!r}: {text}{', closed' if closed else ''}>"

    # -- waiting for a state -------------------------------------------------------

    def _until(self, reached: Callable[[], bool], timeout: float) -> bool:
        """Wait until the state is as wished for; say whether it is.

        On a box of its own, like a waiter and for the same reason: a condition
        variable's lock would leak when an exception strikes in it.
        """
        box: Any = queue.SimpleQueue()
        watch = Watch(reached, box)
        reference = Weak(watch, self._watchers.discard)
        deadline = self._now() + timeout
        try:
            with self._lock:
                self._watchers.add(reference)
                if self._outage.hurry(self._now(), self._settings.backoff):
                    self._look_at(self._outage.retry_at)
            while True:
                self._serve()
                with self._lock:
                    if reached():
                        return True
                try:
                    self._clock.get(box, deadline - self._now())
                except queue.Empty:
                    with self._lock:
                        return reached()
        finally:
            self._watchers.discard(reference)


def _adapter(adapter: Adapter[R] | None, given: dict[str, Any]) -> Adapter[R]:
    """Check what the pool was given to make resources with."""
    if (adapter is None) == (given["factory"] is None):
        raise TypeError("Pool() takes either a factory or an adapter")
    if adapter is not None:
        extra = [name for name, function in given.items() if function is not None]
        if extra:
            raise TypeError(f"Pool() takes no {extra[0]} beside an adapter, which has its own")
        if not isinstance(adapter, Adapter):
            raise TypeError(f"adapter must be a pooling.Adapter, not {shown(adapter)}")
        if own(adapter, "create") is None:
            raise TypeError(f"adapter must override create(), and {adapter!r} does not")
        return adapter
    for name, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, not {shown(function)}")
    return FunctionAdapter(**given)


