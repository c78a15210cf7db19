"""What a borrower holds, and the hot path's way back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from ..errors import LeaseError
from .entry import Key
from .metrics import SHORT
from .registry import PAGE
from .words import no_copy

if TYPE_CHECKING:
    from .lending import Lending

__all__ = ["Lease"]

R = TypeVar("R")


class Lease(Generic[R]):
    """The right to use one resource until it is given back.

    ::

        with pool.acquire() as connection:   # given back at the end of the block
            ...

        lease = pool.acquire()               # or by hand
        try:
            lease.resource.do_something()
        finally:
            lease.release()

    A lease that is dropped without a release is not lost: its slot comes back
    when it is garbage collected, its resource is closed, and a warning says
    where it was acquired. It may be given back by another thread than the one
    that acquired it.
    """

    __slots__ = ("_pool", "_key")

    _pool: Lending[R]  # set by `Lending.acquire`: an `__init__` would cost as much as the clock
    _key: Key | None

    @property
    def resource(self) -> R:
        """The resource itself.

        Raises:
            LeaseError: The lease has ended, or was inherited over a fork.
        """
        key = self._held()
        resource: R = key.entry.resource
        return resource

    def __enter__(self) -> R:
        key = self._key
        if key is None:
            key = self._held()  # raises
        resource: R = key.entry.resource
        if resource is None:  # inherited over a fork
            self._held()  # raises
        return resource

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Straight-line stores are not split by another thread or an
        # asynchronous exception (GIL builds; see the end of this file).
        key = self._key
        self._key = None
        if key is None:
            return  # ended by hand inside the block
        entry = key.entry
        pool = self._pool
        if error is not None or pool._careful or entry() is not key:
            pool._take_back(key, error)
            return
        clock, push = pool._now, pool._push  # bound first: the cheaper call
        now = clock()
        held = now - entry.since
        entry.idle_since = now
        entry.uses += 1
        entry.busy += held
        if entry.leaked:
            pool._came_back(entry, held)
        push(key)
        # A waiter registers, then looks at the idle ones; we put ours there,
        # then look at the waiters: one of us sees the other (P8). Nobody takes
        # it from under a waiter: who finds somebody waiting queues (P3).
        if (pool._waiters or entry.generation is not pool._home) and (PAGE[0] or pool._knows(entry)):
            pool._serve()
        if held > SHORT:
            pool._time_use(held)

    def release(self) -> None:
        """Give the resource back.

        It is reset first, where the pool has a reset; if that fails it is
        closed instead, and the slot goes to the next waiter.

        Raises:
            LeaseError: It was given back before, or inherited over a fork.
        """
        self._held()
        self.__exit__(None, None, None)

    def discard(self) -> None:
        """Give the resource back as broken: it is closed and replaced when needed.

        Raises:
            LeaseError: It was given back before, or inherited over a fork.
        """
        key = self._held()
        self._key = None
        self._pool._give_up(key, "discarded")

    def detach(self) -> R:
        """Take the resource out of the pool for good; closing it is up to you.

        Raises:
            LeaseError: It was given back before, or inherited over a fork.
        """
        key = self._held()
        self._key = None
        resource: R = self._pool._detach(key)
        return resource

    def _held(self) -> Key:
        key = self._key
        if key is None:
            raise LeaseError(f"pool {self._pool.name!r}: this lease was given back before")
        if not self._pool._knows(key.entry):
            raise LeaseError(
                f"pool {self._pool.name!r}: this lease belongs to the process that forked "
                "this one; acquire a new one here"
            )
        return key

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        no_copy(self, "a resource has one borrower; pass the lease itself on, or acquire another one")

    def __repr__(self) -> str:
        key = self._key
        what = "ended" if key is None else repr(key.entry.resource)
        return f"<{type(self).__name__} of pool {self._pool.name!r}: {what}>"


def _one_at_a_time(way_out: Callable[..., Any]) -> Callable[..., Any]:
    """Let one thread alone end a lease, where no GIL sees to that."""

    def end(self: Lease[Any], *args: Any) -> Any:
        mine: Lease[Any] = Lease()
        mine._pool = self._pool
        with _turnstile:
            mine._key = self._key
            self._key = None
        return way_out(mine, *args)

    return end


_turnstile = threading.Lock()
if not getattr(sys, "_is_gil_enabled", lambda: True)():  # pragma: no cover
    for _name in ("__exit__", "discard", "detach"):
        setattr(Lease, _name, _one_at_a_time(getattr(Lease, _name)))
