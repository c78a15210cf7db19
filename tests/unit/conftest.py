"""What the unit tests of the core share: a clock that stands still, resources without a server."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pytest

from pooling import Lease, Pool, PoolSettings
from pooling.core.entry import Entry
from pooling.core.maintenance import Maintenance
from pooling.testing import FakeAdapter, VirtualClock

_PATIENCE = 20.0  # real seconds before a thread is called stuck; less than the clock's own
_ARGUMENTS = {"factory", "close", "validate", "reset", "is_broken", "adapter", "name", "observers", "clock"}


class Make(Protocol):
    """Makes a pool; the arguments are those of `Pool` and the settings, side by side."""

    def __call__(self, **given: Any) -> Pool[Any]: ...


class Task(threading.Thread):
    """A thread that keeps its result or error."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self._call: Callable[[], Any] = lambda: function(*args, **kwargs)
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """Wait for the end; return what the function returned, raise what it raised."""
        self.join(_PATIENCE)
        assert not self.is_alive(), "stuck"
        if self._error is not None:
            raise self._error
        return self._value


@pytest.fixture
def clock() -> VirtualClock:
    """Time stands still, and slow work is done at once in the thread that causes it."""
    return VirtualClock()


@pytest.fixture
def manual() -> VirtualClock:
    """Time stands still, and slow work waits until the test does it."""
    return VirtualClock(workers="manual")


@pytest.fixture
def adapter() -> FakeAdapter:
    return FakeAdapter()


@pytest.fixture
def make(clock: VirtualClock, adapter: FakeAdapter) -> Make:
    """Make pools on the test's clock and adapter, without creations ahead, health checks or random numbers."""

    def make(**given: Any) -> Pool[Any]:
        arguments: dict[str, Any] = {"name": "test", "clock": clock}
        if "factory" not in given:
            arguments["adapter"] = adapter
        settings: dict[str, Any] = {
            "min_size": 0, "max_size": 2, "lifetime_jitter": 0, "backoff_jitter": False,
            "health_check_interval": None,
        }  # fmt: skip
        for name, value in given.items():
            (arguments if name in _ARGUMENTS else settings)[name] = value
        return Pool(settings=PoolSettings().replace(**settings), **arguments)

    return make


def fill(pool: Pool[Any], number: int) -> list[Any]:
    """Create so many idle resources; return them, the one that is lent next last."""
    pool.fill(number)
    while getattr(pool.engine.runtime.workers, "jobs", None):
        pool.engine.clock.run_job()  # type: ignore[attr-defined]
    return [key.entry.resource for key in pool.engine.state.idle]


def run_jobs(clock: VirtualClock) -> None:
    """Run all waiting jobs, and those that they cause."""
    while clock.jobs:
        clock.run_job()


@contextmanager
def lent_elsewhere(pool: Pool[Any], number: int = 1) -> Iterator[list[Lease[Any]]]:
    """Have another thread hold leases while the block lasts."""
    leases: list[Lease[Any]] = []
    lent, end = threading.Event(), threading.Event()

    def hold() -> None:
        for _ in range(number):
            leases.append(pool.acquire())
        lent.set()
        assert end.wait(_PATIENCE)

    holder = Task(hold)
    assert lent.wait(_PATIENCE)
    try:
        yield leases
    finally:
        end.set()
        holder.result()


def maintenance_of(pool: Pool[Any]) -> Maintenance[Any]:
    """Return the maintenance of a pool, as the reaper uses it."""
    found = pool.engine.ref()
    assert isinstance(found, Maintenance)
    return found


def entry_of(pool: Pool[Any], resource: object) -> Entry:
    """Return the record of a resource."""
    return next(entry for entry in pool.engine.state.entries if entry.resource is resource)


def oversleep(clock: VirtualClock, seconds: float) -> None:
    """Let time pass without a sweep, as on a busy or suspended machine."""
    clock.skip(seconds)


def collect(clock: VirtualClock) -> None:
    """Run the garbage collector, then the reaper."""
    gc.collect()
    clock.settle()
