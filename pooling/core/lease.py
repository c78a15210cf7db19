"""Lease: what a borrower holds, and the fast path of its release."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from ..errors import LeaseError
from .checkin import Checkin
from .entry import Token
from .fastpath import FastPath
from .report.histogram import SHORT
from .report.messages import no_copy
from .runtime.fork import SAME_PROCESS

__all__ = ["Lease", "once"]

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
_end_lock = threading.Lock()


def once(method: F) -> F:
    """Decorate a method that ends a lease: without the GIL, let only one thread end it."""
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        return method

    def end(self: Lease[Any], *args: Any) -> Any:  # pragma: no cover
        mine: Lease[Any] = Lease()
        mine._pool = self._pool
        with _end_lock:
            mine._token = self._token
            self._token = None
        return method(mine, *args)

    return end  # type: ignore[return-value]  # pragma: no cover


class Lender(Protocol):
    """The pool, as its leases see it."""

    @property
    def name(self) -> str:
        """The pool's name."""

    _fast: FastPath
    _checkin: Checkin[Any]


class Lease(Generic[R]):
    """The right to use one resource until it is released.

    ::

        with pool.acquire() as connection:   # released at the end of the block
            ...

        lease = pool.acquire()               # or without a block
        try:
            lease.resource.do_something()
        finally:
            lease.release()

    If a lease is dropped without a release, its resource is closed and its
    slot is free again when the lease is garbage collected, and a warning says
    where it was acquired. Any thread may release it.
    """

    __slots__ = ("_pool", "_token", "__weakref__")

    _pool: Lender  # set by `Pool.acquire`: an `__init__` would cost as much as reading the clock
    _token: Token | None

    @property
    def resource(self) -> R:
        """The resource itself.

        Raises:
            LeaseError: The lease has ended, or was inherited over a fork.
        """
        token = self._held()
        resource: R = token.entry.resource
        return resource

    @property
    def active(self) -> bool:
        """Whether the lease has not ended and belongs to this process."""
        token = self._token
        if token is None or token.entry.resource is None:  # ended, or inherited over a fork
            return False
        return SAME_PROCESS[0] != 0 or self._pool._checkin.engine.owns(token.entry)

    def __enter__(self) -> R:
        token = self._token
        if token is None:
            token = self._held()  # raises
        resource: R = token.entry.resource
        if resource is None:  # inherited over a fork
            self._held()  # raises
        return resource

    @once
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Consecutive stores are not split by another thread or an asynchronous
        # exception (with the GIL; see `once` for other builds).
        token = self._token
        self._token = None
        if token is None:
            return  # ended inside the block
        entry = token.entry
        pool = self._pool
        fast = pool._fast
        if error is not None or fast.slow_release or entry() is not token:
            pool._checkin.run(token, error)
            return
        clock, push = fast.now, fast.push  # bound first: the cheaper call
        now = clock()
        held = now - entry.since
        entry.idle_since = now
        entry.uses += 1
        entry.busy += held
        if entry.leaked:
            pool._checkin.leak_returned(entry, held)
        push(token)
        # A waiter registers, then looks at the idle stack; a release pushes,
        # then looks at the waiters: one of the two sees the other (P8). The
        # resource cannot be taken from under a waiter, because an acquire that
        # sees a waiter enters the queue (P3).
        if fast.waiters or entry.generation is not fast.returnable_generation:
            engine = pool._checkin.engine
            if SAME_PROCESS[0] or engine.owns(entry):
                engine.serve()
        if held > SHORT:
            pool._checkin.record_use(held)

    def release(self) -> None:
        """Release the resource.

        It is reset first, where the pool has a reset. If that fails it is
        closed, and its slot goes to the next waiter.

        Raises:
            LeaseError: It was already released, or inherited over a fork.
        """
        self._held()
        self.__exit__(None, None, None)

    @once
    def discard(self) -> None:
        """Release the resource as broken: it is closed, and replaced when needed.

        Raises:
            LeaseError: It was already released, or inherited over a fork.
        """
        token = self._held()
        self._token = None
        self._pool._checkin.run(token, None, "discarded")

    @once
    def detach(self) -> R:
        """Remove the resource from the pool; the caller has to close it.

        Raises:
            LeaseError: It was already released, or inherited over a fork.
        """
        token = self._held()
        self._token = None
        resource: R = self._pool._checkin.detach(token)
        return resource

    def _held(self) -> Token:
        token = self._token
        if token is None:
            raise LeaseError(f"pool {self._pool.name!r}: this lease was released before")
        if not self._pool._checkin.engine.owns(token.entry):
            raise LeaseError(
                f"pool {self._pool.name!r}: this lease belongs to the process that forked "
                "this one; acquire a new one here"
            )
        return token

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        no_copy(self, "a resource has one borrower; pass the lease itself on, or acquire another one")

    def __repr__(self) -> str:
        token = self._token
        what = "ended" if token is None else repr(token.entry.resource)
        return f"<{type(self).__name__} of pool {self._pool.name!r}: {what}>"
