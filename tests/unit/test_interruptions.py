"""P8, exhaustively: an exception raised at each point of the core's code where that is possible.

`KeyboardInterrupt`, the `SystemExit` of a worker's time limit, ``gevent.Timeout``: a signal handler may raise
wherever the interpreter looks for signals: on entering a function, after a call, in a loop. `Strikes` raises at
all of these, one run for each, and at each traced line besides. After each run the pool must be whole, its
threads at work (P2, P3, P8), and so must a second pool that shares them.

Nothing here is left to chance: the library's own threads are real, but take turns (`Turns`), and time passes
when all of them wait.
"""

from __future__ import annotations

import _queue
import _thread
import dis
import gc
import itertools
import queue
import sys
import threading
from collections.abc import Callable, Set
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import pooling.core
from pooling import Adapter, Pool, PoolError, PoolSettings, PoolTimeout
from pooling.core.checkout import GRACE
from pooling.core.clock import SYSTEM
from pooling.core.runtime import registry
from pooling.core.runtime.registry import Runtime
from pooling.testing import FakeAdapter, FakeResource
from tests.unit.conftest import Task

_CORE = str(Path(pooling.core.__file__).parent)
_start = _thread.start_new_thread
_PATIENCE = 20.0  # real seconds before a thread is called stuck


class Struck(BaseException):
    """Raised by a signal handler."""


# -- threads that take turns ------------------------------------------------------------------


class _Thread:
    """One of the library's threads, or a borrower."""

    def __init__(self, turns: Turns, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._turns = turns
        self._call: tuple[Callable[..., object], tuple[Any, ...]] | None = (function, args)
        self._go = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self.box: Any = None
        self.deadline: float | None = None
        self.ended = False

    def ready(self, now: float) -> bool:
        if self.ended:
            return False
        late = self.deadline is not None and self.deadline <= now
        return self.box is None or late or not self.box.empty()

    def turn(self) -> None:
        """Let it run until it waits or ends."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        assert self._turns.back.acquire(timeout=_PATIENCE), "a thread is stuck: a lock was not given back"

    def _run(self) -> None:
        try:
            self._do()
        except SystemExit:
            assert self._turns.over
        finally:
            self.ended = True
            self._turns.back.release()

    def _do(self) -> None:
        assert self._call is not None
        function, args = self._call
        self._call = None  # its arguments would live as long as the thread
        function(*args)

    def wait(self, box: Any, deadline: float | None) -> None:
        self.box, self.deadline = box, deadline
        self._turns.back.release()
        self._go.acquire()
        if self._turns.over:
            raise SystemExit
        self.box = self.deadline = None

    def end(self) -> None:
        """Let it end, wherever it waits."""
        self._go.release()


class Turns:
    """A clock, and threads of which one runs at a time: the test's own, until it waits, then the others in order."""

    def __init__(self) -> None:
        self._time = 1000.0
        self._threads: list[_Thread] = []
        self._current: _Thread | None = None
        self.over = False
        self.back = threading.Semaphore(0)
        self.runtime = Runtime(self)
        system = registry.runtime_of(SYSTEM)
        self._others = system.current_workers, system.current_reaper
        turns = self

        class Box(_queue.SimpleQueue):  # type: ignore[type-arg]
            """A queue on which idle workers wait."""

            def get(self, block: bool = True, timeout: float | None = None) -> Any:
                return turns.get(self, timeout) if block else super().get(False)

        self.runtime.workers.queue_class = Box

    def now(self) -> float:
        return self._time

    def wall(self) -> float:
        return self._time

    def start(self, function: Callable[..., object], args: tuple[Any, ...] = ()) -> int:
        """Stand in for ``_thread.start_new_thread``, except for pools that other tests have left."""
        if getattr(function, "__self__", None) in self._others:
            return _start(function, args)
        self._threads.append(_Thread(self, function, args))
        return 0

    def get(self, box: Any, timeout: float | None) -> Any:
        """Wait for an item: let the others run, and time pass when all wait."""
        deadline = None if timeout is None else self._time + timeout
        while True:
            try:
                return box.get(False)
            except queue.Empty:
                if deadline is not None and deadline <= self._time:
                    raise
            if self._current is not None:
                self._current.wait(box, deadline)
            elif not self.run():
                self._skip(deadline)

    def run(self) -> bool:
        """Give each thread that has something to do its turn."""
        ran = False
        for thread in list(self._threads):
            while thread.ready(self._time):
                ran = True
                self._current = thread
                try:
                    thread.turn()
                finally:
                    self._current = None
            if thread.ended:
                self._threads.remove(thread)
        return ran

    def _skip(self, deadline: float | None) -> None:
        """Let time pass until something happens."""
        moments = [deadline, *(thread.deadline for thread in self._threads)]
        known = [moment for moment in moments if moment is not None]
        assert known, "all wait, for ever"
        self._time = max(self._time, min(known))

    def finish(self) -> None:
        """End the threads that a test leaves waiting."""
        self.over = True
        for thread in self._threads:
            thread.end()

    def advance(self, seconds: float) -> None:
        """Let the others run, and so much time pass."""
        try:
            self.get(_queue.SimpleQueue(), seconds)
        except queue.Empty:
            self.run()


# -- where exceptions are raised ----------------------------------------------------------------


_found: dict[int, frozenset[int]] = {}


def _safe(code: CodeType) -> frozenset[int]:
    """The instructions that begin a traced line and yet can never be interrupted.

    The end of a ``with`` block and of an ``except`` clause: the interpreter looks for no signal between the last
    statement there and ``__exit__``, and the locks' is in C.
    """
    if id(code) in _found:  # its hash is slow
        return _found[id(code)]
    line, starts = 0, dict(dis.findlinestarts(code))
    blocks: dict[int, int] = {}
    safe = set()
    for instruction in dis.get_instructions(code):
        line = starts.get(instruction.offset) or line
        if instruction.opname in ("SETUP_WITH", "BEFORE_WITH", "LOAD_SPECIAL"):
            blocks[line] = instruction.offset
        elif line in blocks or instruction.opname == "POP_EXCEPT":
            safe.add(instruction.offset)
    _found[id(code)] = frozenset(safe)
    return _found[id(code)]


class Strikes:
    """Raises at one of the points that a thread passes in the core, once for each call path that leads there.

    Args:
        place: The number of the point.
        known: The points at which another scene was interrupted: they are left out.
    """

    def __init__(self, place: int, known: Set[object] = frozenset()) -> None:
        self._left = place
        self.seen: set[object] = set(known)
        self.where = ""

    def __enter__(self) -> Strikes:
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)
        sys.setprofile(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_CORE):
            return None
        if event == "return" or (event == "line" and frame.f_lasti not in _safe(code)):
            self._visit(frame, event)
        return self._trace

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "c_return" and frame.f_code.co_filename.startswith(_CORE):
            self._visit(frame, f"{event} of {argument}")

    def _visit(self, frame: FrameType, event: str) -> None:
        point: Any = event[:8]
        caller: FrameType | None = frame
        for _ in range(4):
            if caller is not None:
                point = (point, id(caller.f_code), caller.f_lasti)
                caller = caller.f_back
        if point in self.seen:
            return
        self.seen.add(point)
        if self._left == 0:
            sys.settrace(None)
            sys.setprofile(None)
            code = frame.f_code
            self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}(), {event}"
            self._left -= 1
            raise Struck
        self._left -= 1


# -- what is interrupted ------------------------------------------------------------------------


class Scene:
    """A pool, and what happens in it."""

    settings: dict[str, Any] = {}
    size = 2
    where = ""  # where it was interrupted
    may_lose_it = False  # a resource may be left to the garbage collector

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.adapter = self.make_adapter()
        self.pool = self.make_pool()
        self.served: list[str] = []
        self.borrowers = 0

    def make_adapter(self) -> FakeAdapter:
        return FakeAdapter()

    def make_pool(self) -> Pool[Any]:
        settings: dict[str, Any] = {
            "min_size": 0, "max_size": self.size, "max_lifetime": None, "idle_timeout": None,
            "health_check_interval": None, "health_check_timeout": 600, "create_timeout": 600,
            "reset_timeout": 600, "close_timeout": 600, **self.settings,
        }  # fmt: skip
        return Pool(adapter=self.adapter, clock=self.turns, name="struck", settings=PoolSettings(**settings))

    def prepare(self) -> None:
        """Prepare the pool."""

    def act(self) -> None:
        """The call that is interrupted."""

    def let_go(self) -> None:
        """Drop what the interrupted thread held."""

    def borrow(self, name: str) -> None:
        """Have a borrower wait."""

        def wait() -> None:
            with self.pool.acquire(timeout=60):
                self.served.append(name)

        self.turns.start(wait)
        self.borrowers += 1
        self.turns.run()

    def fill(self, number: int) -> None:
        self.pool.fill(number)
        self.turns.advance(0)


class First(Scene):
    """The first acquire, which starts the reaper and a worker, and its release."""

    def act(self) -> None:
        self.pool.acquire(timeout=60).release()


class Opening(Scene):
    settings = {"min_size": 2}

    def act(self) -> None:
        with self.pool:
            self.pool.acquire().release()


class Inline(Scene):
    """A creation in the borrower's thread."""

    def make_adapter(self) -> FakeAdapter:
        return FakeAdapter(blocking=False)

    def act(self) -> None:
        self.pool.acquire(timeout=60).release()


class InlineFails(Inline):
    def prepare(self) -> None:
        self.adapter.fail("create", ConnectionError("down"))

    def act(self) -> None:
        self.pool.acquire(timeout=60).release()


class Fails(Scene):
    """A creation that fails on a worker, while the borrower waits."""

    def act(self) -> None:
        self.adapter.fail("create", ConnectionError("down"))
        self.pool.acquire(timeout=60).release()


class Again(Scene):
    """An acquire of an idle resource, and its release."""

    def prepare(self) -> None:
        self.fill(2)

    def act(self) -> None:
        with self.pool.acquire():
            pass


class WithoutReset(FakeAdapter):
    reset = Adapter.reset


class Bare(Again):
    """The same without a reset."""

    def make_adapter(self) -> FakeAdapter:
        return WithoutReset()


class Checked(Again):
    """A resource that was idle for a while is validated first."""

    def prepare(self) -> None:
        self.fill(2)
        self.turns.advance(10)


class CheckedOnWorker(Checked):
    """... and reset, on a worker."""

    def make_adapter(self) -> FakeAdapter:
        return FakeAdapter(enforces_timeouts=False)


class Dead(Again):
    """The idle resource is dead."""

    def prepare(self) -> None:
        super().prepare()
        for resource in self.adapter.open:
            resource.alive = False

    def act(self) -> None:
        self.pool.acquire(timeout=60).release()


class Sending(FakeAdapter):
    """Its resets are only sent; a worker gets the answer, or also a borrower."""

    late = False
    error: Exception | None = None

    def reset(self, resource: FakeResource) -> str:
        return "sent"

    def finish_reset(self, resource: FakeResource, timeout: float) -> bool:
        if self.late and timeout in (0, GRACE):
            return False
        error, self.error = self.error, None
        if error is not None:
            raise error
        super().reset(resource)
        return True


class Sent(Again):
    """The answer to the reset of the idle resource is read first."""

    adapter: Sending

    def make_adapter(self) -> FakeAdapter:
        return Sending()

    def prepare(self) -> None:
        for lease in [self.pool.acquire() for _ in range(2)]:
            lease.release()


class SentLate(Sent):
    """... on a worker, while the borrower waits."""

    def prepare(self) -> None:
        super().prepare()
        self.adapter.late = True

    def act(self) -> None:
        with self.pool.acquire(timeout=60):
            self.adapter.late = False


class SentFails(Sent):
    """... and says that it has failed."""

    def prepare(self) -> None:
        super().prepare()
        self.adapter.error = OSError("reset")


class Lent(Scene):
    """One is lent."""

    def prepare(self) -> None:
        self.fill(self.size)
        self.lease = self.pool.acquire()

    def let_go(self) -> None:
        del self.lease


class Discard(Lent):
    def act(self) -> None:
        self.lease.discard()


class DiscardAtOnce(Discard):
    """Where a close is done inline."""

    def make_adapter(self) -> FakeAdapter:
        adapter = FakeAdapter()
        adapter.close_inline = True
        return adapter


class Broken(Lent):
    def act(self) -> None:
        try:
            with self.lease:
                raise ConnectionError("gone")
        except ConnectionError:
            pass


class MaxUses(Lent):
    settings = {"max_uses": 1}

    def act(self) -> None:
        self.lease.release()


class Detach(Lent):
    """If detach() is interrupted at its end the resource is lost to the caller, and no longer the pool's."""

    def act(self) -> None:
        resource = self.lease.detach()
        self.adapter.close(resource)

    def let_go(self) -> None:
        super().let_go()
        if self.where.endswith(("detach(), return", " detach(), line")):
            self.adapter.open -= {each for each in self.adapter.open if each is self.resource}

    def prepare(self) -> None:
        super().prepare()
        self.resource = self.lease.resource


class Fill(Scene):
    def act(self) -> None:
        self.pool.fill(2)
        self.pool.metrics.reset()


class Drain(Lent):
    def act(self) -> None:
        self.pool.drain()
        self.lease.release()


class Resize(Lent):
    def act(self) -> None:
        self.pool.resize(3)
        self.pool.resize(2)
        self.lease.release()


class PauseAndCheck(Lent):
    def act(self) -> None:
        self.pool.check()
        self.pool.pause()
        self.pool.resume()
        self.lease.release()


class Close(Lent):
    def act(self) -> None:
        self.pool.close(timeout=1)
        self.lease.release()


class Waiting(Scene):
    """Two borrowers are in the wait queue."""

    size = 1

    def prepare(self) -> None:
        self.fill(1)
        self.lease = self.pool.acquire()
        self.borrow("first")
        self.borrow("second")

    def let_go(self) -> None:
        del self.lease


class Release(Waiting):
    def act(self) -> None:
        self.lease.release()


class ReleaseSlowly(Waiting):
    """A reset on a worker, then a hand-over to the next waiter."""

    def make_adapter(self) -> FakeAdapter:
        return FakeAdapter(enforces_timeouts=False)

    def act(self) -> None:
        self.lease.release()


class DiscardWithWaiters(Waiting):
    def act(self) -> None:
        self.lease.discard()


class Grow(Waiting):
    size = 1

    def act(self) -> None:
        self.pool.resize(2)
        self.lease.release()


class ThirdWaiter(Waiting):
    """A third borrower waits and times out."""

    def act(self) -> None:
        try:
            self.pool.acquire(timeout=1)
        except PoolTimeout:
            pass


class TimeoutZero(Waiting):
    def act(self) -> None:
        try:
            self.pool.acquire(timeout=0)
        except PoolTimeout:
            pass


class Served(Scene):
    """A borrower that has to wait, and is served by a release."""

    size = 1

    def prepare(self) -> None:
        self.fill(1)
        lease = self.pool.acquire()

        def hold() -> None:
            self.turns.get(_queue.SimpleQueue(), 1)

        def use() -> None:
            try:
                hold()
            except queue.Empty:
                pass
            lease.release()

        self.turns.start(use)
        self.turns.run()

    def act(self) -> None:
        self.pool.acquire(timeout=60).release()


SCENES = [
    First, Opening, Inline, InlineFails, Fails, Again, Bare, Checked, CheckedOnWorker, Dead, Sent, SentLate,
    SentFails, Discard, DiscardAtOnce, Broken, MaxUses, Detach, Fill, Drain, Resize, PauseAndCheck, Close, Release,
    ReleaseSlowly, DiscardWithWaiters, Grow, ThirdWaiter, TimeoutZero, Served,
]  # fmt: skip


# -- what must hold afterwards --------------------------------------------------------------------


def whole(scene: Scene) -> None:
    """Check that the pool lends ``max_size`` resources, in order, and closes all that it created."""
    turns, pool, adapter = scene.turns, scene.pool, scene.adapter
    scene.let_go()
    turns.advance(1)  # a few audits: recovery must not take longer
    if pool.stats()["size"] > pool.stats()["idle"]:
        gc.collect()  # exceptions that refer to each other form a cycle
        turns.advance(1)
    assert scene.served == ["first", "second"][: scene.borrowers]  # P3
    stats = pool.stats()
    assert not (stats["creating"] or stats["checking"] or stats["closing"] or stats["waiting"]), stats  # P8
    assert stats["size"] == stats["idle"] <= stats["max_size"], stats  # P2
    assert not pool.engine.state.waiters.threads
    assert not pool.engine.watchers
    if not stats["closed"]:
        lends_in_order(scene, pool)
    pool.close()
    turns.advance(1)
    assert pool.stats()["size"] == 0
    if not scene.may_lose_it:
        assert not adapter.open
        assert adapter.most_open <= max(scene.size, stats["max_size"])


def lends_in_order(scene: Scene, pool: Pool[Any]) -> None:
    if pool.stats()["paused"]:
        pool.resume()
    number = pool.stats()["max_size"]
    leases = [pool.acquire(timeout=2) for _ in range(number)]
    assert len({id(lease.resource) for lease in leases}) == number  # P1
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)  # P2
    scene.served.clear()
    for name in "AB":
        scene.borrow(name)
    for lease in leases:
        lease.release()
    scene.turns.advance(1)
    assert scene.served == ["A", "B"]  # P3


def at_work(turns: Turns) -> None:
    """Use a second pool of the same process: create, lend, drop, reclaim and close (P8, P10)."""
    adapter = FakeAdapter()
    settings = PoolSettings(min_size=0, max_size=1, idle_timeout=30, health_check_interval=None)
    pool: Pool[Any] = Pool(adapter=adapter, clock=turns, name="second", settings=settings)
    lease = pool.acquire(timeout=1)
    del lease
    pool.acquire(timeout=1).release()  # the first one was found by the reaper
    turns.advance(31)
    assert pool.stats()["size"] == 0  # the reaper keeps time limits, too
    pool.close()
    assert adapter.made == adapter.closed == 2


def threads_end(turns: Turns) -> None:
    """Check that no thread is counted that does not run: a fork and the exit would wait for it."""
    turns.advance(10)
    runtime = turns.runtime
    assert runtime.workers.ended and runtime.workers.started
    assert not has_work(runtime)
    assert runtime.reaper.ended and runtime.reaper.started
    assert not turns._threads


def has_work(runtime: Runtime) -> bool:
    """Whether there is anything left for the reaper to do."""
    return bool(runtime.pools or not runtime.reaper.inbox.empty())


def strike(
    kind: type[Scene], place: int, monkeypatch: pytest.MonkeyPatch, known: Set[object] = frozenset()
) -> Strikes:
    """Run a scene, interrupted at one point, if it has so many."""
    with monkeypatch.context() as patch:  # otherwise it keeps the threads of each run, for the garbage collector to see
        return _strike(kind, place, patch, known)


def _strike(kind: type[Scene], place: int, patch: pytest.MonkeyPatch, known: Set[object]) -> Strikes:
    turns = Turns()
    patch.setattr("_thread.start_new_thread", turns.start)
    scene = kind(turns)
    scene.prepare()
    strikes = Strikes(place, known)
    try:
        with strikes:
            scene.act()
    except Struck:
        pass
    except PoolError as error:
        assert strikes.where, error
    scene.where = strikes.where
    try:
        whole(scene)
        at_work(turns)
        del scene
        if has_work(turns.runtime):
            gc.collect()
        threads_end(turns)
    except BaseException as error:
        raise AssertionError(f"struck at point {place}, {strikes.where or 'nowhere'}: {error}") from error
    finally:
        turns.finish()
    return strikes


def strike_everywhere(kind: type[Scene], known: Set[object], monkeypatch: pytest.MonkeyPatch) -> set[object]:
    """Do all runs of a scene; return its points."""
    failures: list[str] = []
    for place in itertools.count():
        try:
            strikes = strike(kind, place, monkeypatch, known)
        except AssertionError as error:
            failures.append(str(error))
            if "nowhere" in str(error):
                break
        else:
            if not strikes.where:
                break
    assert not failures, "\n".join([f"{len(failures)} of {place}", *failures])
    assert place > 5
    return strikes.seen


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, small_heap: None) -> None:
    """Do not report what the interruptions cause."""
    caplog.set_level("CRITICAL", "pooling")
    hook = sys.unraisablehook
    # What is raised while a generator is closed goes no further.
    monkeypatch.setattr(sys, "unraisablehook", lambda it: isinstance(it.exc_value, Struck) or hook(it))


_known: set[object] = set()


@pytest.mark.parametrize("kind", SCENES, ids=lambda kind: kind.__name__)
def test_interrupted_anywhere(kind: type[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where other borrowers are served meanwhile, the same points are in another state, so all are interrupted."""
    alike = not issubclass(kind, (Waiting, Served)) or issubclass(kind, (ThirdWaiter, TimeoutZero))
    points = strike_everywhere(kind, _known if alike else frozenset(), monkeypatch)
    if alike:
        _known.update(points)


def test_pools_of_other_tests_start_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that becomes due meanwhile would wait in a turn, for ever."""
    turns, workers = Turns(), registry.runtime_of(SYSTEM).workers
    monkeypatch.setattr("_thread.start_new_thread", turns.start)
    number = workers.idle + 1
    all_run = threading.Barrier(number + 1)
    for _ in range(number):
        workers.submit(all_run.wait, _PATIENCE)
    all_run.wait(_PATIENCE)
    assert not turns.run()


def test_kept_traceback_does_not_prevent_a_thread_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interactive session keeps the last traceback with all its frames, and so do error reporters."""
    kept = []
    for place in itertools.count():
        turns = Turns()
        monkeypatch.setattr("_thread.start_new_thread", turns.start)
        scene, strikes = First(turns), Strikes(place)
        try:
            with strikes:
                scene.act()
        except Struck as error:
            kept.append(error)
        if not strikes.where:
            break
        if strikes.where.startswith(("gevent", "reaper", "workers")):
            at_work(turns)
        kept.clear()
        turns.finish()
    assert place > 100


@pytest.mark.parametrize("kind", [First, Release], ids=lambda kind: kind.__name__)
def test_interrupted_anywhere_in_another_thread(kind: type[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(strike_everywhere, kind, frozenset(), monkeypatch)
    task.join(600)  # hundreds of runs, on a busy machine
    task.result()
