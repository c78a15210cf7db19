"""Creations, validations and resets see the borrower's context variables, and keep none alive."""

from __future__ import annotations

import contextvars
import gc
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import flask
import pytest

from pooling import Pool, PoolTimeout
from pooling.core import engine, liveness, waiter
from pooling.core.runtime import workers
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, Task, lent_elsewhere, run_jobs

tenant: contextvars.ContextVar[Any] = contextvars.ContextVar("tenant", default=None)


class Tenant:
    """Can be weakly referred to."""


class Noting:
    """Records the variable's value in each creation, validation and reset."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.validated: list[Any] = []
        self.reset: list[Any] = []

    def functions(self, *names: str) -> dict[str, Any]:
        every: dict[str, Any] = {
            "validate": lambda resource: self.validated.append(tenant.get()),
            "reset": lambda resource: self.reset.append(tenant.get()),
        }
        return {"factory": self.make, **{name: every[name] for name in names}}

    def make(self) -> list[Any]:
        self.made.append(tenant.get())
        return []


def as_tenant(name: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a context of its own, where the variable has this value."""

    def run() -> Any:
        tenant.set(name)
        return function(*args)

    return contextvars.copy_context().run(run)


def until(reached: Callable[[], bool]) -> None:
    """Wait for an effect of another thread."""
    pause = threading.Event()
    for _ in range(2000):
        if reached():
            return
        pause.wait(0.01)
    raise AssertionError("that never came true")


# -- which context is used --------------------------------------------------------------------


def test_factory_runs_in_the_context_of_the_acquire(make: Make, manual: VirtualClock) -> None:
    noting = Noting()
    pool = make(clock=manual, **noting.functions())
    borrower = Task(as_tenant, "a", pool.acquire)
    manual.until_parked(1)
    as_tenant("the worker's", run_jobs, manual)
    borrower.result().release()
    assert noting.made == ["a"]


def test_each_creation_runs_in_the_context_of_a_waiter(make: Make, manual: VirtualClock) -> None:
    noting = Noting()
    pool = make(clock=manual, max_size=3, **noting.functions())
    borrowers = []
    for number, name in enumerate("abc"):
        borrowers.append(Task(as_tenant, name, pool.acquire))
        manual.until_parked(number + 1)
    run_jobs(manual)
    for borrower in borrowers:
        borrower.result()
    assert noting.made == ["a", "b", "c"]


def test_replacement_is_created_in_the_context_of_the_waiter(make: Make, manual: VirtualClock) -> None:
    """Not that of the borrower whose discard freed the slot: it may be another tenant's."""
    noting = Noting()
    pool = make(clock=manual, max_size=1, **noting.functions())
    pool.fill(1)
    run_jobs(manual)
    lease = pool.acquire()
    borrower = Task(as_tenant, "b", pool.acquire)
    manual.until_parked(1)
    as_tenant("a", lease.discard)
    run_jobs(manual)
    borrower.result()
    assert noting.made == [None, "b"]


def test_resources_for_min_size_are_created_in_the_context_of_the_acquire(make: Make, manual: VirtualClock) -> None:
    noting = Noting()
    pool = make(clock=manual, min_size=3, max_size=3, **noting.functions())
    borrower = Task(as_tenant, "a", pool.acquire)
    manual.until_parked(1)
    run_jobs(manual)
    borrower.result()
    assert noting.made == ["a", "a", "a"]


def test_inline_creation_runs_in_the_context_of_the_acquire(make: Make) -> None:
    adapter, seen = FakeAdapter(blocking=False), []
    create = adapter.create

    def noting() -> Any:
        seen.append(tenant.get())
        tenant.set("the factory's")
        return create()

    adapter.create = noting  # type: ignore[method-assign]
    pool = make(adapter=adapter)

    def borrow() -> Any:
        pool.acquire()
        return tenant.get()

    assert as_tenant("a", borrow) == "a"  # the factory's own changes stay in its copy
    assert seen == ["a"]


def test_validation_has_the_context_of_the_acquire_and_reset_that_of_the_release(
    make: Make, manual: VirtualClock
) -> None:
    noting = Noting()
    pool = make(clock=manual, max_size=1, **noting.functions("validate", "reset"))
    pool.fill(1)
    run_jobs(manual)
    manual.advance(1)
    borrower = Task(as_tenant, "a", pool.acquire)
    manual.until_parked(1)
    run_jobs(manual)
    lease = borrower.result()
    assert (noting.validated, noting.reset) == (["a"], [])
    as_tenant("b", lease.release)
    run_jobs(manual)
    assert (noting.validated, noting.reset) == (["a"], ["b"])


def test_deferred_release_keeps_its_context(make: Make, manual: VirtualClock) -> None:
    """By a destructor, for example: then the reaper starts the reset."""
    noting = Noting()
    pool = make(clock=manual, max_size=1, **noting.functions("reset"))
    pool.fill(1)
    run_jobs(manual)
    lease = pool.acquire()

    def release() -> None:
        with pool.engine.lock:
            lease.release()

    as_tenant("a", release)
    manual.settle()
    run_jobs(manual)
    assert noting.reset == ["a"]


def test_work_of_the_reaper_has_no_borrowers_context() -> None:
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def factory() -> object:
        made.put(tenant.get())
        return Tenant()

    pool = Pool(factory, name="test")
    lease = as_tenant("a", pool.acquire)
    assert made.get(timeout=20) == "a"
    del lease  # dropped: the reaper has another one created
    gc.collect()
    assert made.get(timeout=20) is None
    pool.close()


def test_second_attempt_may_begin_while_the_first_hangs(make: Make, adapter: FakeAdapter) -> None:
    """A context cannot be entered twice at once: each attempt has a copy of its own."""
    clock = VirtualClock(workers="threads")
    pool = make(clock=clock, max_size=1, create_timeout=2, acquire_timeout=20)
    adapter.hold("create")
    borrower = Task(as_tenant, "a", pool.acquire)
    adapter.until_held("create")
    clock.until_parked(1)
    clock.advance(2)  # its slot is freed
    clock.advance(2)  # and the creation is retried
    adapter.until_held("create")
    adapter.let_go("create")
    assert borrower.result().resource.alive
    assert pool.metrics.snapshot().errors == {"TimeoutError": 1}


def test_fast_path_copies_no_context(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(factory=object)
    pool.acquire().release()
    for module in (engine, liveness, waiter):
        monkeypatch.setattr(module, "copy_context", None)
    for _ in range(3):
        with pool.acquire():
            pass
    with pytest.raises(TypeError):  # so a copy would be noticed
        as_tenant("a", lambda: [pool.acquire() for _ in range(2)])


# -- lifetime of contexts ---------------------------------------------------------------------


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle workers stay for the length of the test."""
    monkeypatch.setattr(workers, "LINGER", 600.0)


def gone(reference: weakref.ref[Any]) -> bool:
    gc.collect()
    return reference() is None


@pytest.mark.usefixtures("lingering")
def test_neither_worker_nor_resource_keeps_a_context_alive() -> None:
    pool: Pool[Any] = Pool(list, validate=lambda resource: True, reset=lambda resource: None, name="test")
    references = []

    def borrow() -> None:
        tenant.set(Tenant())
        references.append(weakref.ref(tenant.get()))
        with pool.acquire():
            pass

    contextvars.copy_context().run(borrow)
    until(lambda: pool.stats()["idle"] == 1)
    until(lambda: gone(references[0]))
    pool.reconfigure(validation_interval=0)
    contextvars.copy_context().run(borrow)
    until(lambda: pool.stats()["idle"] == 1)
    until(lambda: gone(references[1]))
    pool.close()


@pytest.mark.usefixtures("lingering")
def test_remembered_failure_keeps_no_context_alive() -> None:
    def factory() -> object:
        raise OSError("refused")

    pool: Pool[Any] = Pool(factory, name="test")
    references, errors = [], []

    def borrow() -> None:
        tenant.set(Tenant())
        references.append(weakref.ref(tenant.get()))
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(timeout=0.2)
        errors.append(caught.value)

    contextvars.copy_context().run(borrow)
    assert pool.stats()["down"] == "OSError: refused"
    until(lambda: gone(references[0]))
    pool.close()


def test_timeout_keeps_no_context_alive(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    references = []

    def borrow() -> None:
        tenant.set(Tenant())
        references.append(weakref.ref(tenant.get()))
        pool.acquire(timeout=0)

    with lent_elsewhere(pool):
        with pytest.raises(PoolTimeout) as caught:
            contextvars.copy_context().run(borrow)
        assert gone(references[0])
        assert caught.tb is not None


# -- Flask ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lingering")
def test_factory_can_read_the_current_flask_application() -> None:
    app = flask.Flask("shop")
    app.config["SERVER"] = "mail.example.com"
    seen: list[str] = []

    def connect() -> list[str]:
        return [flask.current_app.config["SERVER"]]

    def is_ours(resource: list[str]) -> bool:
        return resource == [flask.current_app.config["SERVER"]]

    def note(resource: list[str]) -> None:
        seen.append(flask.request.path)

    pool = Pool(connect, validate=is_ours, reset=note, name="mail", settings=None)
    pool.reconfigure(validation_interval=0, min_size=0)

    @app.get("/<page>")
    def view(page: str) -> str:
        with pool.acquire() as resource:
            return resource[0]

    client = app.test_client()
    for number, page in enumerate(("/a", "/b")):
        assert client.get(page).text == "mail.example.com"
        until(lambda: len(seen) == number + 1 and pool.stats()["idle"] == 1)  # noqa: B023
    assert seen == ["/a", "/b"]
    assert pool.metrics.snapshot().created == 1
    reference = weakref.ref(app)
    del app, client, view
    until(lambda: gone(reference))
    pool.close()
