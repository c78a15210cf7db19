"""The interface between the pool and one kind of resource.

An adapter says how a resource is created, checked, reset and closed. The pool
knows nothing else about it, and calls no method under its lock, except `counts`.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from .._fields import fields
from .._masking import shown
from ..settings import PoolSettings

__all__ = ["HOOKS", "Adapter", "FunctionAdapter", "Verdicts", "as_adapter", "ask", "call_hook", "overridden"]

R = TypeVar("R")
logger = logging.getLogger("pooling")
_FAULTS = (TypeError, NameError, AttributeError, ImportError, NotImplementedError)
_ENDED = (ConnectionError, EOFError)
_LOST = {  # further system errors that mean a descriptor is no longer usable
    getattr(errno, name, None)
    for name in (
        "EBADF", "ENOTCONN", "ENOTSOCK", "ESHUTDOWN", "ETIMEDOUT", "ENETDOWN", "ENETRESET", "ENETUNREACH",
        "EHOSTDOWN", "EHOSTUNREACH", "ENODEV", "ENXIO", "EIO",
    )
} - {None}  # fmt: skip


HOOKS = ("is_alive", "validate", "reset", "close", "created", "refuse", "evicted", "finish_reset")
"""Methods of `Adapter` that are called for each resource or lease, and not at all where they are not overridden."""


class Verdicts(NamedTuple):
    """The result of :meth:`Adapter.end_stalled`."""

    ended: Sequence[str] = ()  # a reason for each holder that was interrupted
    unknown: Sequence[str] = ()  # a reason for each holder whose state could not be determined
    again: bool = False  # the server could not be asked; try again soon


class Adapter(Generic[R]):
    """Creates and maintains one kind of resource; a new kind is one subclass.

    Only :meth:`create` is required. Methods that a subclass does not override
    cost nothing, because the pool skips them; it finds out which when it is
    made or reconfigured. A subclass overrides public methods only.

    Attributes:
        noun: The word for the resource in messages (``"connection"``, ``"session"``).
        blocking: ``False`` if :meth:`create` does no I/O. The pool then runs it
            in the borrower's thread, not on a worker.
        enforces_timeouts: ``True`` if :meth:`validate` and :meth:`reset` enforce their
            time limits themselves (with a socket timeout, or because they do
            no I/O). They then run in the borrower's thread. Otherwise they run
            on a worker, so that a call that hangs blocks no borrower.
        stall_timeout: Seconds that a holder may wait for one command before
            :meth:`end_stalled` is called; ``None`` for never.
        close_inline: ``True`` if :meth:`close` never blocks. It then runs in
            the thread that discards the resource, not on a worker.
        max_creating: Maximum number of creations at once; ``None`` for the
            pool's size.
        lifo: ``True`` lends the most recently used idle resource, so that
            surplus ones reach their idle timeout; ``False`` lends the least
            recently used one.
    """

    noun: str = "resource"
    blocking: bool = True
    enforces_timeouts: bool = False
    close_inline: bool = False
    lifo: bool = True
    stall_timeout: float | None = None
    max_creating: int | None = None

    def create(self) -> R:
        """Create a resource, or raise."""
        raise NotImplementedError(f"{type(self).__name__}.create")

    def is_alive(self, resource: R) -> bool:
        """Return whether the resource is still usable, without a round trip.

        Every acquire calls it, so it should take microseconds: check a flag, or
        the socket (readable means closed). Return ``True`` if only a round trip
        could tell. If it is not overridden, the pool itself checks resources
        that are connected sockets (have ``fileno()``), or keep one in ``sock``:
        they are dead when the peer has closed the connection.
        """
        return True

    def validate(self, resource: R, timeout: float) -> None:
        """Make a round trip of at most ``timeout`` seconds; raise if the resource is dead."""

    def reset(self, resource: R) -> bool | Literal["sent"] | None:
        """Clean the resource for the next borrower, or raise.

        Returns:
            ``True`` if its peer has answered during this reset or right before
            it. The resource is then not checked again for a borrower that is
            already waiting, or acquires it within a tenth of a millisecond.
            ``"sent"`` if the answer is still to come; `finish_reset` is called
            before the resource is used again. Only with `enforces_timeouts`.
        """
        return None

    def finish_reset(self, resource: R, timeout: float) -> bool:
        """Return whether a reset that was sent has ended; wait for its end at most ``timeout`` seconds.

        Called before the next borrower gets the resource, in his thread, and
        again until it returns ``True`` or raises. ``0`` means do not wait.

        Raises:
            Exception: The reset has failed, or has taken longer than ``reset_timeout``.
        """
        return True

    def close(self, resource: R) -> None:
        """Close the resource; return when the peer has closed it too, if that can be detected."""

    def interrupt(self, resource: R) -> None:
        """Make a holder that is blocked on the resource fail now; called from another thread.

        A network adapter shuts down the socket. It must not free anything that
        the blocked thread still uses.
        """

    def command_of(self, resource: R) -> object:
        """Return the command that the holder of a lent resource is blocked in; called periodically from another thread.

        Returns:
            ``None`` if the holder is not blocked. Otherwise a value that equals
            the previous one only if there was no progress in between.
        """
        return None

    def end_stalled(self, waiting: Sequence[tuple[R, object]], seconds: float) -> Verdicts:
        """Find the holders that wait for a command which the server is not working on, and interrupt them.

        Called on a worker, one call at a time; it must enforce its own time limit.

        Args:
            waiting: Resources, with the values of :meth:`command_of`.
            seconds: How long the holders have been blocked, at least.
        """
        return Verdicts()

    def driver_time(self) -> float | None:
        """Return the seconds that all driver calls of this pool have taken so far; ``None`` if they are not counted.

        With ``adaptive``, it is called while borrowers wait. Without it, holders that are blocked (see
        :meth:`command_of`) are counted instead.
        """
        return None

    def ping(self, timeout: float) -> None:
        """Ask the server for an answer outside of the pool; raise if there is none within ``timeout`` seconds.

        Called on a worker, one call at a time and at most once a second, when
        a health check finds every resource in use, and none of them has heard
        from the server for a second. If it is not overridden, nothing is asked.
        """

    def abandon(self, resource: R) -> None:
        """After a fork: drop the parent's resource without sending anything to the peer."""

    def is_broken(self, resource: R, error: BaseException) -> bool:
        """Return whether ``error``, raised while the resource was lent, means that it is dead.

        The default: whether the error says that a connection has ended
        (``ConnectionError``, ``EOFError``, ``ssl.SSLError``, an ``OSError`` such
        as ``EBADF``).
        """
        if isinstance(error, _ENDED) or (isinstance(error, OSError) and error.errno in _LOST):
            return True
        ssl = sys.modules.get("ssl")  # if it is not imported, the error cannot be one of its errors
        return ssl is not None and isinstance(error, ssl.SSLError)

    def is_final(self, error: BaseException) -> bool:
        """Return whether :meth:`create`, which raised ``error``, can never succeed.

        The default: whether the error is the program's and not the server's (a
        wrong argument, an undefined name, a missing module). An override should
        call this method, too.
        """
        return isinstance(error, _FAULTS)

    def is_full(self, error: BaseException) -> bool:
        """Return whether ``error``, raised by :meth:`create`, means that the server is up but at its connection limit.

        This does not count as an outage: the pool works with the resources it
        has for a while, then tries again.
        """
        return False

    # Hooks of the pool's life; none of them has to be overridden.

    def counts(self) -> str | None:
        """Return the counts for messages, if the adapter knows more than the pool; must not block."""
        return None

    def created(self) -> None:
        """Called after a new resource has been made available."""

    def refuse(self, resource: R, waiting: bool) -> str | None:
        """Called at each release, before the reset; return a reason to close the resource instead, or ``None``.

        Args:
            resource: The released resource.
            waiting: Whether a borrower waits for one.
        """
        return None

    def evicted(self, resource: R, reason: str) -> None:
        """Called before an evicted resource is closed, with the reason."""

    def settings_changed(self, settings: PoolSettings) -> None:
        """Called with the settings of a new pool, and after they were changed."""

    def after_fork(self) -> None:
        """Called in a forked child after the pool has been emptied; renew locks and caches here."""

    def threads_patched(self) -> None:
        """Called after gevent has replaced the threading primitives of this process."""


class FunctionAdapter(Adapter[R]):
    """The adapter behind ``Pool(factory, close=..., validate=..., reset=...)``.

    Nothing is known about the functions, so all of them run on workers, under
    the pool's time limits.
    """

    def __init__(
        self,
        factory: Callable[[], R],
        close: Callable[[R], object] | None = None,
        validate: Callable[[R], bool | None] | None = None,
        reset: Callable[[R], bool | None] | None = None,
        is_broken: Callable[[R, BaseException], bool | None] | None = None,
    ) -> None:
        self.create = factory  # type: ignore[method-assign]
        if close is not None:
            self.close = close  # type: ignore[method-assign,assignment]
        if validate is not None:
            self._validate = validate
            self.validate = self._checked  # type: ignore[method-assign]
        if reset is not None:
            self._reset = reset
            self.reset = self._cleaned  # type: ignore[method-assign]
        if is_broken is not None:
            self._is_broken = is_broken
            self.is_broken = self._judged  # type: ignore[method-assign]

    def _checked(self, resource: R, timeout: float) -> None:
        if self._validate(resource) is False:
            raise ValueError("validate() returned False")

    def _cleaned(self, resource: R) -> None:
        if self._reset(resource) is False:
            raise ValueError("reset() returned False")

    def _judged(self, resource: R, error: BaseException) -> bool:
        if not isinstance(error, (Exception, GeneratorExit)):
            return True  # interrupted at an unknown point
        answer = self._is_broken(resource, error)
        return super().is_broken(resource, error) if answer is None else bool(answer)


def overridden(adapter: Adapter[Any], method: str) -> Callable[..., Any] | None:
    """Return an adapter's method if it overrides the default; otherwise ``None``, and the pool skips the step."""
    if getattr(type(adapter), method) is getattr(Adapter, method) and method not in vars(adapter):
        return None
    return getattr(adapter, method)  # type: ignore[no-any-return]


def call_hook(adapter: Adapter[Any], pool: str, hook: str, *args: Any) -> None:
    """Call a hook. Its errors are logged: they must not cost a slot, or stop a sweep or a fork."""
    try:
        getattr(adapter, hook)(*args)
    except Exception:
        logger.exception("pool %r: %s() failed", pool, hook, extra=fields("hook_failed", pool, hook=hook))


def ask(adapter: Adapter[Any], pool: str, question: str, error: BaseException) -> bool:
    """Ask the adapter what an error means. Its own errors are logged, and mean no."""
    try:
        return bool(getattr(adapter, question)(error))
    except Exception:
        logger.exception("pool %r: %s() failed", pool, question, extra=fields("hook_failed", pool, hook=question))
        return False


def as_adapter(adapter: Adapter[R] | None, given: dict[str, Any]) -> Adapter[R]:
    """Return the adapter of a pool, or one for the given functions.

    Raises:
        TypeError: Neither or both are given, or one is of the wrong type.
    """
    if (adapter is None) == (given["factory"] is None):
        raise TypeError("Pool() takes either a factory or an adapter")
    if adapter is not None:
        extra = [name for name, function in given.items() if function is not None]
        if extra:
            raise TypeError(f"Pool() takes no {extra[0]} together with an adapter, which has its own")
        if not isinstance(adapter, Adapter):
            raise TypeError(f"adapter must be a pooling.Adapter, not {shown(adapter)}")
        if overridden(adapter, "create") is None:
            raise TypeError(f"adapter must override create(), but {adapter!r} does not")
        return adapter
    for name, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, not {shown(function)}")
    return FunctionAdapter(**given)
