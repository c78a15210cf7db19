"""Tools for tests of code that uses a pool, and of the pool itself. Nothing here sleeps.

- `VirtualClock`: time passes when the test says so, and only threads that the
  test started run.
- `FakeAdapter`: resources without a server, which fail, hang and die on demand.
- `Script`: a named interleaving of threads, step by step.
- `UnpooledPool`: the same API, and a new resource for each lease.
- `no_leaked_leases`: a pytest fixture; import it in ``conftest.py``.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .core.adapter import Adapter
from .core.clock import Box
from .core.engine import Engine
from .core.pool import Pool
from .core.report.holders import holders_of
from .core.runtime import registry
from .core.runtime.reaper import Reaper
from .core.runtime.workers import Workers
from .settings import PoolSettings

__all__ = [
    "FakeAdapter",
    "FakeResource",
    "Script",
    "UnpooledPool",
    "VirtualClock",
    "leaked_leases",
    "no_leaked_leases",
]

R = TypeVar("R")

PATIENCE = 30.0
"""Real seconds after which a test that waits for something fails, because something is stuck."""


class _InlineWorkers(Workers):
    """Runs each job at once, in the thread that submits it."""

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        self.do(function, args)


class _ManualWorkers(Workers):
    """Keeps jobs until a test runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        self.jobs.append((function, args))


class _StillReaper(Reaper):
    """Has no thread: `VirtualClock` calls its steps."""

    def ensure(self) -> None:
        pass


class _Parked:
    """A waiting thread and its deadline; put into the box, it ends the wait."""

    def __init__(self, box: Box, deadline: float | None) -> None:
        self.box = box
        self.deadline = deadline
        self.error: BaseException | None = None
        self.woken = False


class VirtualClock:
    """A clock that stands still until `advance` moves it.

    ::

        clock = VirtualClock()
        pool = Pool(adapter=FakeAdapter(), clock=clock)
        thread = threading.Thread(target=pool.acquire)
        thread.start()
        clock.until_parked(1)   # it is in the wait queue now
        clock.advance(10)       # and has timed out now

    The reaper has no thread here: `advance` and `settle` do its work in the
    thread that calls them, in the order in which it falls due.

    Args:
        start: The monotonic time to begin with, in seconds.
        workers: How slow jobs (creating, closing, ...) are run:
            ``"inline"`` runs each at once in the thread that causes it,
            ``"manual"`` keeps it until `run_job`, ``"threads"`` uses real
            worker threads.

    Raises:
        ValueError: Another value for ``workers``.
    """

    def __init__(self, start: float = 1000.0, workers: str = "inline") -> None:
        kinds: dict[str, Callable[[], Workers]] = {
            "inline": _InlineWorkers,
            "manual": _ManualWorkers,
            "threads": Workers,
        }
        if workers not in kinds:
            raise ValueError(f"workers must be one of {', '.join(kinds)}, not {workers!r}")
        self._time = start
        self._parked: list[_Parked] = []
        self._changed = threading.Condition()
        self._strikes: deque[BaseException | None] = deque()  # what each of the next readings raises
        self.runtime = registry.Runtime(self, kinds[workers], _StillReaper)

    def now(self) -> float:
        """Return the virtual monotonic time."""
        if self._strikes:
            error = self._strikes.popleft()
            if error is not None:
                raise error
        return self._time

    def wall(self) -> float:
        """Return the virtual time of day: the epoch is at monotonic zero."""
        return self._time

    def get(self, box: Box, timeout: float | None) -> Any:
        """Wait for an item until `advance` has moved the clock by ``timeout``."""
        try:
            return box.get(False)
        except queue.Empty:
            if timeout is not None and timeout <= 0:
                raise
        place = _Parked(box, None if timeout is None else self._time + timeout)
        with self._changed:
            self._parked.append(place)
            self._changed.notify_all()
        try:
            return self._wait(place)
        finally:
            with self._changed:
                self._parked.remove(place)
                self._changed.notify_all()

    def _wait(self, place: _Parked) -> Any:
        while True:
            try:
                item = place.box.get(True, PATIENCE)
            except queue.Empty:
                raise AssertionError("a thread waits, and the clock is not advanced") from None
            if item is place:
                if place.error is not None:
                    raise place.error
                raise queue.Empty
            if not isinstance(item, _Parked):
                return item

    # -- for the test ---------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass, and do the work that falls due meanwhile, in order."""
        if not seconds >= 0:
            raise ValueError(f"seconds must be at least 0, not {seconds!r}")
        end = self._time + min(seconds, threading.TIMEOUT_MAX)
        while True:
            self.settle()
            upcoming = [at for at in self.upcoming() if self._time < at <= end]
            if not upcoming:
                break
            self._time = min(upcoming)
            self.wake_due()
        self._time = end
        self.wake_due()
        self.settle()

    def skip(self, seconds: float) -> None:
        """Let time pass without doing the work that falls due, as if the process were suspended."""
        self._time += seconds

    def settle(self) -> None:
        """Do what the reaper would do now: handle messages, reclaim dropped leases, sweep."""
        while self.runtime.reaper.step(False):
            pass

    def upcoming(self) -> list[float]:
        """Return the times at which a sweep is due or a wait ends, in no order."""
        due = [at for at, _, _ in self.runtime.reaper._due]
        with self._changed:
            return due + [p.deadline for p in self._parked if p.deadline is not None]

    def wake_due(self) -> None:
        """End the waits that are over; `advance` calls it. Internal, for subclasses that park threads themselves."""
        with self._changed:
            for place in self._parked:
                if place.deadline is not None and place.deadline <= self._time:
                    self._end_wait(place)

    def _end_wait(self, place: _Parked) -> None:
        if not place.woken:
            place.woken = True
            place.box.put(place)

    def until_parked(self, number: int) -> None:
        """Wait, in real time, until exactly so many threads are parked in `get`.

        Raises:
            AssertionError: That did not happen in time.
        """
        with self._changed:
            parked = self._changed.wait_for(lambda: self._still() == number, PATIENCE)
        assert parked, f"{self._still()} threads are parked, not {number}"

    def _still(self) -> int:
        return sum(1 for place in self._parked if not place.woken)

    def interrupt(self, error: BaseException, place: int = 0) -> None:
        """Raise ``error`` in a parked thread, as a signal or ``gevent.Timeout`` would.

        Args:
            error: The exception.
            place: The thread's number in the order of parking, from 0.
        """
        with self._changed:
            parked = self._parked[place]
            parked.error = error
            self._end_wait(parked)

    def strike(self, error: BaseException, after: int = 0) -> None:
        """Raise ``error`` from a later reading of the clock, in the thread that reads it.

        Args:
            error: The exception.
            after: How many readings succeed before it.
        """
        self._strikes.extend([None] * after)
        self._strikes.append(error)

    def call_off(self) -> None:
        """Forget the errors planned by `strike`."""
        self._strikes.clear()

    @property
    def jobs(self) -> int:
        """Number of jobs that wait for `run_job` (``workers="manual"``)."""
        return len(self._manual().jobs)

    def run_job(self, number: int = 0) -> None:
        """Run one of the waiting jobs; the oldest by default."""
        workers = self._manual()
        workers.do(*workers.jobs.pop(number))

    def drop_job(self, number: int = 0) -> None:
        """Drop one of the jobs, as if its worker had died."""
        self._manual().jobs.pop(number)

    def _manual(self) -> _ManualWorkers:
        workers = self.runtime.workers
        assert isinstance(workers, _ManualWorkers), 'this needs VirtualClock(workers="manual")'
        return workers


class FakeResource:
    """A resource of `FakeAdapter`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.dirty = False
        self.closed = 0
        self.interrupted = False

    def __repr__(self) -> str:
        return f"<FakeResource {self.number}>"


class FakeAdapter(Adapter[FakeResource]):
    """Resources without a server, which fail, hang and die on demand.

    ``fail("create", error)`` makes the next call of that step raise;
    ``hold("create")`` makes calls of that step hang until ``let_go("create")``.

    Attributes:
        made, closed: How many resources were created and closed.
        open: Resources created and not yet closed.
        most_open: The most that were open or being created at once.
        calls: How often each step was called.
    """

    noun = "thing"

    def __init__(self, *, blocking: bool = True, enforces_timeouts: bool = True) -> None:
        self.blocking = blocking
        self.enforces_timeouts = enforces_timeouts
        self.made = self.closed = self.most_open = 0
        self.open: set[FakeResource] = set()
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.final: tuple[type[BaseException], ...] = ()
        self.broken_by: tuple[type[BaseException], ...] = (ConnectionError,)
        self._lock = threading.Lock()
        self._being_made = 0
        self._failures: defaultdict[str, deque[BaseException]] = defaultdict(deque)
        self._gates: dict[str, threading.Event] = {}
        self._arrivals: defaultdict[str, queue.SimpleQueue[None]] = defaultdict(queue.SimpleQueue)

    # -- for the test ---------------------------------------------------------

    def fail(self, step: str, error: BaseException, times: int = 1) -> None:
        """Make the next calls of a step raise."""
        self._known(step)
        self._failures[step].extend([error] * times)

    def mend(self, step: str) -> None:
        """Cancel the planned failures of a step."""
        self._known(step)
        self._failures[step].clear()

    def hold(self, step: str) -> None:
        """Make calls of a step hang until `let_go`."""
        self._known(step)
        self._gates[step] = threading.Event()

    @staticmethod
    def _known(step: str) -> None:
        if step not in vars(Adapter) or step.startswith("_"):
            raise ValueError(f"step must be a method of Adapter, not {step!r}")

    def let_go(self, step: str) -> None:
        """End `hold`: hanging calls continue."""
        self._gates.pop(step).set()

    def until_held(self, step: str) -> None:
        """Wait, in real time, until one more call hangs in a held step."""
        self._arrivals[step].get(timeout=PATIENCE)

    # -- for the pool -----------------------------------------------------------

    def _at(self, step: str) -> None:
        with self._lock:
            self.calls[step] += 1
        gate = self._gates.get(step)
        if gate is not None:
            self._arrivals[step].put(None)
            assert gate.wait(PATIENCE), f"let_go({step!r}) was not called"
        if self._failures[step]:
            raise self._failures[step].popleft()

    def create(self) -> FakeResource:
        with self._lock:
            self._being_made += 1
            self.most_open = max(self.most_open, len(self.open) + self._being_made)
        try:
            self._at("create")
            with self._lock:
                self.made += 1
                resource = FakeResource(self.made)
                self.open.add(resource)
            return resource
        finally:
            with self._lock:
                self._being_made -= 1

    def is_alive(self, resource: FakeResource) -> bool:
        self._at("is_alive")
        return resource.alive

    def validate(self, resource: FakeResource, timeout: float) -> None:
        self._at("validate")
        if not resource.alive:
            raise ConnectionError("dead")

    def reset(self, resource: FakeResource) -> None:
        self._at("reset")
        resource.dirty = False

    def close(self, resource: FakeResource) -> None:
        try:
            self._at("close")
        finally:
            with self._lock:
                resource.closed += 1
                resource.alive = False
                self.closed += 1
                self.open.discard(resource)

    def interrupt(self, resource: FakeResource) -> None:
        self._at("interrupt")
        resource.interrupted = True

    def abandon(self, resource: FakeResource) -> None:
        self._at("abandon")

    def is_broken(self, resource: FakeResource, error: BaseException) -> bool:
        self._at("is_broken")
        return isinstance(error, self.broken_by)

    def is_final(self, error: BaseException) -> bool:
        return isinstance(error, self.final)


class Script:
    """A named interleaving: threads take their steps in a given order.

    ::

        script = Script("A takes", "B asks", "A returns")

        def a():
            with script("A takes"):
                lease = pool.acquire()
            with script("A returns"):
                lease.release()

        def b():
            script.pass_by("B asks")     # ends at once, because acquire() blocks
            with pool.acquire(): ...

        script.run(a, b)

    Args:
        steps: The names of all steps, in order.
    """

    def __init__(self, *steps: str) -> None:
        self._steps = list(steps)
        self._next = 0
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Wait for this step's turn; the next step may begin at the end of the block."""
        self._await(step)
        try:
            yield
        finally:
            self._done()

    def pass_by(self, step: str) -> None:
        """Wait for this step's turn, and let the next step begin at once."""
        self._await(step)
        self._done()

    def _await(self, step: str) -> None:
        assert step in self._steps, f"no step {step!r} in this script"
        with self._changed:
            ready = self._changed.wait_for(
                lambda: self._next < len(self._steps) and self._steps[self._next] == step,
                PATIENCE,
            )
        assert ready, f"step {step!r} never had its turn; step {self._next} is next"

    def _done(self) -> None:
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def run(self, *actors: Callable[[], object]) -> None:
        """Run each actor in a thread of its own, and raise the first error of one.

        Raises:
            AssertionError: An actor is stuck, or a step was not taken.
        """
        errors: list[BaseException] = []

        def act(actor: Callable[[], object]) -> None:
            try:
                actor()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=act, args=(actor,), daemon=True) for actor in actors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        if errors:
            raise errors[0]
        assert not any(thread.is_alive() for thread in threads), "an actor is stuck"
        assert self._next == len(self._steps), f"not taken: {self._steps[self._next:]}"


class UnpooledPool(Pool[R]):
    """A pool that does not pool: the same API, and a new resource for each lease.

    For comparisons, or to switch pooling off without changes in the caller.
    ``max_size`` still limits the number of resources at once.
    """

    def __init__(
        self,
        factory: Callable[[], R] | None = None,
        *,
        settings: PoolSettings | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(factory, settings=settings, **{**kwargs, "max_uses": 1, "min_size": 0})


@contextmanager
def leaked_leases() -> Iterator[list[str]]:
    """Collect the leases of all pools that were acquired in the block and not released.

    Gives a list, which is filled at the end of the block with a text for each lease.
    """
    found: list[str] = []
    before = {pool: _taken(pool.engine) for pool in registry.pools()}
    yield found
    gc.collect()  # a dropped lease in a cycle becomes an orphan
    for pool in registry.pools():
        leases, orphans = _taken(pool.engine)
        old_leases, old_orphans = before.get(pool, ([], 0))
        new = [text for key, text in leases if key not in [old for old, _ in old_leases]]
        found.extend(f"pool {pool.engine.name!r}: still held by {text}" for text in new)
        if orphans > old_orphans:
            found.append(f"pool {pool.engine.name!r}: {orphans - old_orphans} dropped without release")


def _taken(engine: Engine[Any]) -> tuple[list[tuple[object, str]], int]:
    with engine.lock:
        lent, now = engine.state.lent(), engine.clock.now()
    named: list[tuple[object, str]] = [((id(entry), entry.uses), str(holders_of([entry], now)[0])) for entry in lent]
    return named, engine.metrics.count["orphans"]


try:
    import pytest
except ImportError:  # the rest of this module does not need it
    pass
else:

    @pytest.fixture
    def no_leaked_leases() -> Iterator[None]:
        """Fail a test that does not release a lease, and name the place where it was acquired."""
        with leaked_leases() as found:
            yield
        assert not found, "; ".join(found)
