"""As `test_interruptions`, for what was added to the core later: lanes, limits of the size, probes, adaptive sizes.

And for the library's own threads: an exception is raised at each point of the reaper and of the workers, too, as
``PyThreadState_SetAsyncExc`` and ``gevent.Timeout`` do.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest

from pooling import CircuitBreaker, Lane, PoolError, PoolTimeout
from pooling.core.circuit import Circuit
from pooling.core.sizing import limit_size
from pooling.testing import FakeAdapter
from tests.unit import test_interruptions as base
from tests.unit.test_interruptions import (
    Again,
    CheckedOnWorker,
    Discard,
    First,
    Lent,
    Release,
    Scene,
    Strikes,
    Struck,
    Waiting,
    quiet,
    strike_everywhere,
)

__all__ = ["quiet"]

_LANES = {"web": Lane(weight=2), "batch": Lane(most=1)}


class LaneFirst(First):
    settings = {"lanes": _LANES}

    def act(self) -> None:
        self.pool.acquire(timeout=60, lane="web").release()
        self.pool.acquire(timeout=60, lane="batch").release()


class LaneAgain(Again):
    settings = {"lanes": _LANES}

    def act(self) -> None:
        with self.pool.acquire(lane="web"), self.pool.acquire():
            pass


class LaneWaiting(Waiting):
    """Borrowers of a lane that has all it may have wait, while another lane's place is free."""

    settings = {"lanes": {"batch": Lane(most=1)}}
    size = 2

    def prepare(self) -> None:
        self.fill(2)
        self.lease = self.pool.acquire(lane="batch")
        for name in ("first", "second"):
            self.borrow(name)

    def borrow(self, name: str) -> None:
        def wait() -> None:
            with self.pool.acquire(timeout=60, lane=None if name in "AB" else "batch"):
                self.served.append(name)

        self.turns.start(wait)
        self.borrowers += 1
        self.turns.run()


class LaneRelease(LaneWaiting):
    def act(self) -> None:
        self.lease.release()


class LaneTimeout(LaneWaiting):
    def act(self) -> None:
        try:
            self.pool.acquire(timeout=1, lane="batch")
        except PoolTimeout:
            pass
        self.pool.acquire(timeout=1).release()


class Limited(Lent):
    """Its size is limited, and the limit ends."""

    def act(self) -> None:
        limit_size(self.pool.engine, "test", 1)
        self.lease.release()
        limit_size(self.pool.engine, "test", None)

    def let_go(self) -> None:
        super().let_go()
        limit_size(self.pool.engine, "test", None)


class LimitedLanes(Limited):
    """A lane loses its reserve for a while."""

    settings = {"lanes": {"web": Lane(reserve=1)}}

    def let_go(self) -> None:
        super().let_go()
        self.pool.reconfigure(lanes={"web": Lane()})


class Probing(Again):
    def act(self) -> None:
        self.pool.probe(1)


class ProbeDead(Again):
    def prepare(self) -> None:
        super().prepare()
        self.adapter.fail("validate", ConnectionError("gone"))

    def act(self) -> None:
        self.pool.probe(1)


class ProbeFull(Waiting):
    def make_adapter(self) -> FakeAdapter:
        adapter = FakeAdapter()
        adapter.ping = lambda timeout: None  # type: ignore[attr-defined]
        return adapter

    def prepare(self) -> None:
        super().prepare()
        self.turns.advance(2)

    def act(self) -> None:
        self.pool.probe(1)


class Trial(Scene):
    """The creation with which a pool with a circuit breaker finds out whether the server is up again."""

    settings = {"breaker": CircuitBreaker(failures=1, open_for=0.1)}

    def prepare(self) -> None:
        self.adapter.fail("create", ConnectionError("down"))
        with pytest.raises(PoolError):
            self.pool.acquire(timeout=60)
        self.turns.advance(2)

    def act(self) -> None:
        self.pool.acquire(timeout=60).release()


PARTS = [
    LaneFirst, LaneAgain, LaneRelease, LaneTimeout, LimitedLanes, Probing, ProbeDead, ProbeFull, Trial,
]  # fmt: skip


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_interrupted_anywhere(kind: type[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    strike_anew(kind, kind, _known, monkeypatch)


_known: set[object] = set()
_known_in_threads: set[object] = set()


def strike_anew(kind: type[Scene], scene: type[Scene], known: set[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt a scene at the points that no other one has passed; where a release serves waiters, at all of them."""
    alike = not issubclass(kind, Release) and kind is not LaneRelease
    points = strike_everywhere(scene, known if alike else frozenset(), monkeypatch)
    if alike:
        known.update(points)


def test_circuit_interrupted_anywhere() -> None:
    """A call of the half-open circuit that is interrupted, wherever, is not the last one."""
    for place in itertools.count():
        now = [0.0]
        circuit = Circuit(CircuitBreaker(failures=1, open_for=1), "x", now=lambda now=now: now[0])  # type: ignore[misc]
        circuit.failed(circuit.enter(), "down")
        now[0] = 2.0
        strikes = Strikes(place)
        try:
            with strikes:
                circuit.succeeded(circuit.enter())
        except Struck:
            pass
        now[0] = 4.0
        circuit.succeeded(circuit.enter())
        assert circuit.state == "closed", strikes.where
        if not strikes.where:
            break
    assert place > 10


# -- the library's own threads ------------------------------------------------------------------


class InThreads(Strikes):
    """Strikes in the library's threads instead of the thread that enters it."""

    active: InThreads | None = None

    def __enter__(self) -> Strikes:
        InThreads.active = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        InThreads.active = None

    def _visit(self, frame: Any, event: str) -> None:
        if InThreads.active is self:
            super()._visit(frame, event)


class _Traced(base._Thread):
    """A thread whose calls are traced from its beginning; what is active then is asked."""

    def _do(self) -> None:
        assert self._call is not None
        if not self._call[0].__module__.startswith("pooling."):  # a borrower of the scene
            super()._do()
            return
        sys.setprofile(lambda frame, event, arg: self.pass_on("_profile", frame, event, arg))
        sys.settrace(self._trace)
        try:
            super()._do()
        except Struck:
            pass
        finally:
            sys.settrace(None)
            sys.setprofile(None)

    def _trace(self, frame: Any, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(base._CORE):
            return None
        self.pass_on("_trace", frame, event, arg)
        return self._trace

    def pass_on(self, name: str, frame: Any, event: str, arg: object) -> None:
        if InThreads.active is not None:
            getattr(InThreads.active, name)(frame, event, arg)


class Idle(Again):
    """A sweep that finds idle resources that are due."""

    settings = {"idle_timeout": 2, "keepalive_interval": 1, "min_size": 1, "max_lifetime": 3}

    def act(self) -> None:
        self.turns.advance(3)


class Adaptive(Waiting):
    settings = {"adaptive": "on"}

    def act(self) -> None:
        self.turns.advance(3)
        self.lease.release()
        self.turns.advance(3)


class Dropped(Lent):
    """A lease that nothing refers to any more."""

    settings = {"close_timeout": 2}  # a worker may be interrupted, too

    def act(self) -> None:
        del self.lease
        self.turns.advance(1)

    def let_go(self) -> None:
        vars(self).pop("lease", None)


THREADS = [First, Discard, CheckedOnWorker, Release, Idle, Adaptive, Dropped, ProbeFull, Trial]


@pytest.mark.parametrize("kind", THREADS, ids=lambda kind: kind.__name__)
def test_interrupted_anywhere_in_the_librarys_threads(kind: type[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(kind):  # type: ignore[misc, valid-type]
        # A worker that is interrupted at a close does not try again: the resource may be closed already.
        may_lose_it = kind in (Discard, Idle, Dropped)

        def act(self) -> None:
            super().act()
            self.turns.advance(1)

        def let_go(self) -> None:
            """Use the pool: a call that waits finds what a thread that has ended left."""
            super().let_go()
            leases = []
            try:
                for _ in range(self.pool.stats()["max_size"]):
                    leases.append(self.pool.acquire(timeout=3))
            except PoolError:
                pass
            for lease in leases:
                lease.release()

    monkeypatch.setattr(base, "_Thread", _Traced)
    monkeypatch.setattr(base, "Strikes", InThreads)
    strike_anew(kind, Longer, _known_in_threads, monkeypatch)
