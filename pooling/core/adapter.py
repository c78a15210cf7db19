"""The seam between the pool and one kind of resource.

An adapter says how a resource is made, checked, cleaned and ended. The pool
knows nothing else about it, and calls none of these under its lock.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["Adapter", "FunctionAdapter", "Verdicts", "own"]

R = TypeVar("R")
_FAULTS = (TypeError, NameError, AttributeError, ImportError, NotImplementedError)
_ENDED = (ConnectionError, EOFError)
_LOST = {  # what else the system says of a descriptor that is of no use any more
    getattr(errno, name, None)
    for name in (
        "EBADF", "ENOTCONN", "ENOTSOCK", "ESHUTDOWN", "ETIMEDOUT", "ENETDOWN", "ENETRESET", "ENETUNREACH",
        "EHOSTDOWN", "EHOSTUNREACH", "ENODEV", "ENXIO", "EIO",
    )
} - {None}  # fmt: skip


class Verdicts(NamedTuple):
    """What :meth:`Adapter.end_stalled` found."""

    ended: Sequence[str] = ()  # why, for each holder that was made to fail
    unknown: Sequence[str] = ()  # why nothing could be known about others
    again: bool = False  # the question itself failed, and is worth another try soon


class Adapter(Generic[R]):
    """How one kind of resource is made and kept: a new kind is one subclass.

    Only :meth:`create` is required. What a subclass does not override costs
    nothing: the pool leaves the step out.

    Attributes:
        noun: What messages call the resource (``"connection"``, ``"session"``).
        blocking: ``False`` says that :meth:`create` does no I/O, so that the
            pool may run it in the borrower's thread instead of on a worker.
        bounded: ``True`` says that :meth:`validate` and :meth:`reset` keep to
            their time limits themselves (a socket timeout, or no I/O at all).
            They then run in the borrower's thread. Otherwise they run on a
            worker, a thread hop dearer, so that one that hangs holds nobody.
        stall_timeout: Seconds that a holder may wait for one command before
            :meth:`end_stalled` is called; ``None``: never.
        closes_at_once: ``True`` says that :meth:`close` waits for nobody, so
            that it runs where the pool decides to close, not on a worker.
    """

    noun: str = "resource"
    blocking: bool = True
    bounded: bool = False
    closes_at_once: bool = False
    stall_timeout: float | None = None

    def create(self) -> R:
        """Make a resource, or raise."""
        raise NotImplementedError(f"{type(self).__name__}.create")

    def is_alive(self, resource: R) -> bool:
        """Say without a round trip whether the resource can still be used.

        A look at the socket (readable means closed), at a flag: microseconds,
        because every acquire asks. ``True`` where only a round trip could tell.
        Where it is not overridden the pool itself looks at a resource that was
        made as a connected socket (``fileno()``), or with one in its ``sock``:
        it is dead when the peer has hung up.
        """
        return True

    def validate(self, resource: R, timeout: float) -> None:
        """Make a round trip of at most ``timeout`` seconds; raise if it is dead."""

    def reset(self, resource: R) -> bool | None:
        """Make the resource as good as new for the next borrower, or raise.

        Returns:
            ``True`` if its peer has answered just now, in this reset or right
            before it: then it is not looked at again for whoever waits for it,
            or acquires it within a tenth of a millisecond.
        """
        return None

    def close(self, resource: R) -> None:
        """End the resource; return when its peer has ended it too, where that shows."""

    def interrupt(self, resource: R) -> None:
        """Make whoever is blocked on the resource fail now; called from another thread.

        A network adapter shuts the socket down. It must not free anything
        that the blocked thread still uses.
        """

    def command_of(self, resource: R) -> object:
        """Say what the holder of a lent resource is blocked in; called from another thread, now and then.

        Returns:
            ``None`` if it is not blocked, else a value that equals the last
            one only if nothing has moved since then.
        """
        return None

    def end_stalled(self, waiting: Sequence[tuple[R, object]], seconds: float) -> Verdicts:
        """Find out which holders wait in vain, and make those fail.

        Called on a worker, for one question at a time; it keeps to a time limit of its own.

        Args:
            waiting: Resources, with what their holders are blocked in.
            seconds: For how long, at least.
        """
        return Verdicts()

    def abandon(self, resource: R) -> None:
        """After a fork: drop the parent's resource without a word to the peer."""

    def is_broken(self, resource: R, error: BaseException) -> bool:
        """Say whether ``error``, raised while it was lent, means the resource is dead.

        As it stands: if the connection has ended, by what Python itself and the
        system say (``ConnectionError``, ``EOFError``, ``ssl.SSLError``, an
        ``OSError`` such as ``EBADF``).
        """
        if isinstance(error, _ENDED) or (isinstance(error, OSError) and error.errno in _LOST):
            return True
        ssl = sys.modules.get("ssl")  # an error of it is raised by who has imported it
        return ssl is not None and isinstance(error, ssl.SSLError)

    def is_final(self, error: BaseException) -> bool:
        """Say whether :meth:`create`, having raised ``error``, can never succeed.

        As it stands: if the program is at fault and not the server (a wrong
        argument, a name that does not exist, a module that is missing). Who
        overrides it asks this one too.
        """
        return isinstance(error, _FAULTS)

    def is_full(self, error: BaseException) -> bool:
        """Say whether ``error``, raised by :meth:`create`, means that the server is up but has no room.

        Such a refusal is no outage: the pool makes do with what it has for a
        while, and tries again.
        """
        return False


class FunctionAdapter(Adapter[R]):
    """The adapter behind ``Pool(factory, close=..., validate=..., reset=...)``.

    Nothing is known about the functions, so all of them run on workers, with
    the pool's time limits around them.
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
            return True  # cut off in the middle of who knows what
        answer = self._is_broken(resource, error)
        return super().is_broken(resource, error) if answer is None else bool(answer)


def own(adapter: Adapter[Any], method: str) -> Callable[..., Any] | None:
    """An adapter's method if it overrides it: what it does not override costs nothing."""
    if getattr(type(adapter), method) is getattr(Adapter, method) and method not in vars(adapter):
        return None
    return getattr(adapter, method)  # type: ignore[no-any-return]
