"""What every pool of this package offers, and all that the manager, the metrics and the web layer need of it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

from ..settings import PoolSettings
from .lease import Lease
from .observer import Observer
from .report.holders import Holder
from .report.messages import no_copy
from .report.metrics import PoolMetrics

__all__ = ["ManagedPool"]

R = TypeVar("R")
P = TypeVar("P", bound="ManagedPool[Any]")


class _ByClass(type(Protocol)):  # type: ignore[misc]
    """Before CPython 3.12, ``isinstance`` asks the object, and a ``pymongo.MongoClient`` has every attribute."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return hasattr(type(instance), "exhaustion") and super().__instancecheck__(instance)


@runtime_checkable
class ManagedPool(Protocol[R], metaclass=_ByClass):
    """A pool, whatever it is made of: `Pool` itself, or an object that has pools, as `HTTPPool` and `SQLitePool` do.

    The methods are those of `Pool` and behave as documented there. A class
    that inherits from this one gets those that follow from the others.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """The pool's name in messages and metrics."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        raise NotImplementedError

    @property
    def settings(self) -> PoolSettings:
        """The settings in force."""
        raise NotImplementedError

    @property
    def metrics(self) -> PoolMetrics:
        """Counters and durations."""
        raise NotImplementedError

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[R]:
        """Take a resource, waiting for one if all are in use."""
        raise NotImplementedError

    def open(self, timeout: float | None = None) -> None:
        """Warm up, or raise the reason why that fails."""
        raise NotImplementedError

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Close the pool for good."""
        raise NotImplementedError

    def drain(self) -> None:
        """Replace every resource."""
        raise NotImplementedError

    def reconfigure(self, **changes: Any) -> None:
        """Change settings of a running pool."""
        raise NotImplementedError

    def pause(self) -> None:
        """Lend nothing until `resume`."""
        raise NotImplementedError

    def resume(self) -> None:
        """Lend again after `pause`."""
        raise NotImplementedError

    def check(self) -> None:
        """Check the idle resources now."""
        raise NotImplementedError

    def probe(self, timeout: float | None = None) -> str | None:
        """Make a round trip to the server; return a warning if there is one, or raise what is wrong."""
        raise NotImplementedError

    def exhaustion(self) -> str | None:
        """Return how many are in use and wait, as text, if every resource is in use; otherwise ``None``."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """Return the current counts and the settings that bound them."""
        raise NotImplementedError

    def holders(self) -> list[Holder]:
        """Return who holds a resource, longest first."""
        raise NotImplementedError

    def add_observer(self, observer: Observer) -> None:
        """Notify an observer from now on."""
        raise NotImplementedError

    def remove_observer(self, observer: Observer) -> None:
        """Notify an observer no longer."""
        raise NotImplementedError

    # -- what follows from the above ----------------------------------------------

    def resize(self, max_size: int, min_size: int | None = None) -> None:
        """Change the bounds of a running pool.

        Growing serves waiters at once. After shrinking, idle ones are closed
        now and the rest of the surplus when it is released.

        Raises:
            ValueError, TypeError: As for `PoolSettings`.
        """
        changes = {"max_size": max_size}
        if min_size is not None:
            changes["min_size"] = min_size
        self.reconfigure(**changes)

    def __enter__(self: P) -> P:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        no_copy(self, "threads share one, forked processes inherit it, and other processes make their own")
