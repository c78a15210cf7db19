"""Known interleavings, by name: what is at risk, and that it holds.

Threads take their steps in a scripted order (`Script`); what is raised between
two bytecodes is raised by the clock that the pool reads at that point.
"""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pooling import CreateFailed, LeaseError, Pool, PoolClosed, PoolError, PoolSettings, PoolTimeout
from pooling.testing import FakeAdapter, FakeResource, Script, VirtualClock
from tests.unit.conftest import maintenance_of


class Struck(BaseException):
    """Raised anywhere, as by a signal handler, ``gevent.Timeout`` or ``SystemExit``."""


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def adapter() -> FakeAdapter:
    return FakeAdapter()


def make(adapter: FakeAdapter, clock: VirtualClock, size: int = 1, **settings: object) -> Pool[FakeResource]:
    return Pool(
        adapter=adapter, clock=clock, name="race",
        settings=PoolSettings(
            min_size=0, max_size=size, max_lifetime=None, idle_timeout=None, health_check_interval=None
        ).replace(**settings),
    )


def nothing_lost(pool: Pool[FakeResource], clock: VirtualClock) -> None:
    """P8: every slot can be lent again, and all created resources are closed in the end."""
    gc.collect()
    clock.settle()
    leases = [pool.acquire(timeout=0) for _ in range(pool.settings.max_size)]
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)  # P2
    assert len({id(lease.resource) for lease in leases}) == len(leases)  # P1
    for lease in leases:
        lease.release()
    pool.close()
    clock.settle()
    assert pool.stats()["size"] == 0
    adapter = pool.engine.adapter
    assert isinstance(adapter, FakeAdapter)
    assert adapter.made == adapter.closed
    assert not adapter.open


# -- hand-over and timeout ----------------------------------------------------------


def test_late_hand_over_against_timeout(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """A token given at the instant of the time-out is used: neither lost nor refused."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    got: list[object] = []

    def wait() -> None:
        late = pool.acquire(timeout=5)
        got.append(late.resource)
        late.release()

    original, leases = clock.get, [lease]

    def get(box: object, timeout: float | None) -> object:
        try:
            return original(box, timeout)  # type: ignore[arg-type]
        finally:
            if threading.current_thread() is waiter and leases:
                leases.pop().release()  # after its time was up, before it has left the queue

    pool.engine.clock.get = get
    waiter = threading.Thread(target=wait)
    resource = lease.resource
    waiter.start()
    clock.until_parked(1)
    clock.advance(5)
    waiter.join(30)
    assert got == [resource]
    assert pool.metrics.snapshot().timeouts == 0
    nothing_lost(pool, clock)


def test_timed_out_waiter_accepts_nothing(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """P3, P8: a waiter that has left the queue is passed over; the next one is served."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    outcome: dict[str, object] = {}

    def borrow(name: str, timeout: float) -> None:
        try:
            with pool.acquire(timeout=timeout) as resource:
                outcome[name] = resource
        except PoolTimeout as error:
            outcome[name] = error

    threads = []
    for number, (name, timeout) in enumerate([("first", 1.0), ("second", 9.0)]):
        threads.append(threading.Thread(target=borrow, args=(name, timeout)))
        threads[-1].start()
        clock.until_parked(number + 1)
    clock.advance(1)
    threads[0].join(30)
    resource = lease.resource
    lease.release()
    threads[1].join(30)
    assert isinstance(outcome["first"], PoolTimeout)
    assert outcome["second"] is resource
    nothing_lost(pool, clock)


def test_release_between_the_idle_check_and_the_registration(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """P8: a waiter registers, then looks at the idle stack again: a release in between is seen."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    pool.engine.fast.slow_release = False  # the fast path: no lock, which the borrower holds meanwhile
    script = Script("finds nothing", "comes back", "is served")
    original = pool.engine.state.waiters.join

    def join(waiter: object) -> None:
        script.pass_by("finds nothing")
        with script("is served"):
            original(waiter)  # type: ignore[arg-type]

    pool.engine.state.waiters.join = join  # type: ignore[method-assign]

    def borrow() -> None:
        pool.acquire(timeout=5).release()

    def give_back() -> None:
        with script("comes back"):
            # Without the lock, which the borrower holds; there is no waiter yet.
            lease.release()

    script.run(borrow, give_back)
    pool.engine.state.waiters.join = original  # type: ignore[method-assign]
    nothing_lost(pool, clock)


def test_second_death_while_the_first_is_being_replaced(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """P7: after a second death no creation is started beside the one in progress, and none is missing after it."""
    pool = make(adapter, clock, size=2)
    leases = [pool.acquire(), pool.acquire()]
    waiters = [threading.Thread(target=lambda: pool.acquire(timeout=60).release()) for _ in leases]
    for number, waiter in enumerate(waiters, 1):
        waiter.start()
        clock.until_parked(number)

    def find_dead() -> None:
        with pytest.raises(ConnectionError), leases.pop():
            raise ConnectionError("gone")

    adapter.hold("create")
    first = threading.Thread(target=find_dead)
    first.start()
    adapter.until_held("create")  # A is dead and closed, and a replacement is created
    find_dead()  # B too: it is closed, its slot is free, and there is a waiter
    assert adapter.calls["create"] == 2 + 1
    assert pool.stats()["size"] == 1
    adapter.let_go("create")
    for thread in (first, *waiters):
        thread.join(30)
        assert not thread.is_alive()
    nothing_lost(pool, clock)


# -- close, drain and resize against everything -----------------------------------------


def test_close_against_release(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """A release that passed every check before the close still leaves no idle resource behind."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    push = pool.engine.fast.push

    def late_push(token: object) -> None:
        pool.close(timeout=0)  # between the last check and the append
        push(token)  # type: ignore[arg-type]

    adapter.reset = None  # type: ignore[assignment, method-assign]
    pool.engine.fast.slow_release = False  # the fast path, as without a reset
    pool.engine.fast.push = late_push  # type: ignore[assignment]
    lease.release()
    assert pool.stats()["size"] == 0
    assert adapter.made == adapter.closed == 1


def test_close_against_create(adapter: FakeAdapter) -> None:
    """A resource created after the close is closed, and its borrower gets PoolClosed."""
    clock = VirtualClock(workers="manual")
    pool = make(adapter, clock)
    outcome: list[object] = []

    def borrow() -> None:
        try:
            pool.acquire(timeout=5)
        except PoolClosed as error:
            outcome.append(error)

    thread = threading.Thread(target=borrow)
    thread.start()
    clock.until_parked(1)
    pool.close(timeout=0)
    thread.join(30)
    assert len(outcome) == 1
    clock.run_job()  # the creation
    clock.run_job()  # the close that it led to
    assert pool.stats()["size"] == 0
    assert adapter.made == adapter.closed == 1


def test_drain_against_create(adapter: FakeAdapter) -> None:
    """The generation is set when the creation starts: old credentials do not come in late."""
    clock = VirtualClock(workers="manual")
    pool = make(adapter, clock)
    got: list[FakeResource] = []

    def borrow() -> None:
        with pool.acquire(timeout=5) as resource:
            got.append(resource)

    thread = threading.Thread(target=borrow)
    thread.start()
    clock.until_parked(1)
    pool.drain()
    clock.run_job()  # made with the old ones: closed
    while thread.is_alive() and clock.jobs:
        clock.run_job()
        thread.join(0.2)
    thread.join(30)
    assert [resource.number for resource in got] == [2]
    assert adapter.closed == 1


def test_drain_against_release(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """A resource released while a drain empties the stack does not survive it."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    push = pool.engine.fast.push

    def late_push(token: object) -> None:
        pool.drain()
        push(token)  # type: ignore[arg-type]

    pool.engine.fast.slow_release = False
    pool.engine.fast.push = late_push  # type: ignore[assignment]
    lease.release()
    pool.engine.fast.push = push
    assert adapter.closed == 1
    with pool.acquire() as resource:
        assert resource.number == 2
    nothing_lost(pool, clock)


def test_resize_against_release(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """P2: the surplus of a shrink is closed on release, even on the fast path."""
    pool = make(adapter, clock, size=2)
    first, second = pool.acquire(), pool.acquire()
    push = pool.engine.fast.push

    def late_push(token: object) -> None:
        pool.engine.fast.push = push
        pool.resize(1)
        push(token)  # type: ignore[arg-type]

    pool.engine.fast.slow_release = False
    pool.engine.fast.push = late_push  # type: ignore[assignment]
    first.release()
    assert pool.stats()["size"] == 1
    second.release()
    nothing_lost(pool, clock)


# -- BaseException anywhere --------------------------------------------------------------


def test_interrupted_inside_the_wait(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """LESSONS of psycopg_pool: a dead waiter that stays queued accepts, and a slot is gone."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    outcome: list[BaseException] = []

    def borrow() -> None:
        try:
            pool.acquire(timeout=5)
        except Struck as error:
            outcome.append(error)

    thread = threading.Thread(target=borrow)
    thread.start()
    clock.until_parked(1)
    clock.interrupt(Struck())
    thread.join(30)
    assert len(outcome) == 1
    assert pool.stats()["waiting"] == 0
    lease.release()
    nothing_lost(pool, clock)


def test_interrupted_after_being_served(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """The resource given to an interrupted waiter goes to the next one."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    resource = lease.resource
    got: list[object] = []
    original = clock.get

    def get(box: object, timeout: float | None) -> object:
        if threading.current_thread() is victim:
            pool.engine.clock.get = original
            lease.release()  # the victim is served ...
            raise Struck  # ... and interrupted before it takes the resource
        return original(box, timeout)  # type: ignore[arg-type]

    def be_struck() -> None:
        with pytest.raises(Struck):
            pool.acquire(timeout=5)

    def borrow() -> None:
        with pool.acquire(timeout=5) as lent:
            got.append(lent)

    victim = threading.Thread(target=be_struck)
    pool.engine.clock.get = get
    victim.start()
    victim.join(30)
    borrow()
    assert got == [resource]
    nothing_lost(pool, clock)


@pytest.mark.parametrize("reading", range(6))
def test_interrupted_between_acquire_and_return(adapter: FakeAdapter, clock: VirtualClock, reading: int) -> None:
    """Whichever reading of the clock during the acquire raises, nothing is lost."""
    pool = make(adapter, clock)
    pool.acquire().release()
    clock.strike(Struck(), after=reading)
    try:
        lease = pool.acquire(timeout=0)
    except (Struck, PoolError):
        pass
    else:
        clock.call_off()
        lease.release()
    clock.call_off()
    nothing_lost(pool, clock)


@pytest.mark.parametrize("reading", range(6))
def test_interrupted_during_release(adapter: FakeAdapter, clock: VirtualClock, reading: int) -> None:
    """Whichever reading of the clock during the release raises, nothing is lost."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    clock.strike(Struck(), after=reading)
    try:
        lease.release()
    except Struck:
        pass
    clock.call_off()
    del lease
    nothing_lost(pool, clock)


def test_interrupted_inside_reset(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """The resource is closed, the slot is free, and the borrower sees the exception."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    adapter.fail("reset", Struck())
    with pytest.raises(Struck):
        lease.release()
    assert adapter.closed == 1
    nothing_lost(pool, clock)


def test_interrupted_inside_validate(adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make(adapter, clock)
    pool.acquire().release()
    clock.advance(10)
    adapter.fail("validate", Struck())
    with pytest.raises(Struck):
        pool.acquire()
    nothing_lost(pool, clock)


def test_interrupted_inside_an_inline_create(clock: VirtualClock) -> None:
    """A creation in the borrower's thread: an interruption there is raised in the borrower."""
    adapter = FakeAdapter(blocking=False)
    pool = make(adapter, clock)
    adapter.fail("create", Struck())
    with pytest.raises(Struck):
        pool.acquire()
    clock.advance(60)
    nothing_lost(pool, clock)


def test_interrupted_in_the_block(adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make(adapter, clock)
    with pytest.raises(Struck), pool.acquire():
        raise Struck
    nothing_lost(pool, clock)


def test_worker_dies_with_its_job() -> None:
    """A lost job drops its token: the slot is freed, and the creation is retried."""
    clock = VirtualClock(workers="manual")
    adapter = FakeAdapter()
    pool = make(adapter, clock)
    got: list[object] = []

    def borrow() -> None:
        with pool.acquire(timeout=5) as resource:
            got.append(resource)

    thread = threading.Thread(target=borrow)
    thread.start()
    clock.until_parked(1)
    clock.drop_job()
    clock.settle()
    clock.run_job()  # the second try
    thread.join(30)
    assert len(got) == 1
    assert pool.metrics.snapshot().orphans == 1


# -- work that ends or begins while the reaper looks for overdue work ------------------------------


def when_the_reaper_has_decided(pool: Pool[FakeResource], happens: Callable[[], object]) -> None:
    """Have something happen between the reaper's decision about overdue work and its action."""
    maintenance = maintenance_of(pool)
    original = maintenance.reclaim_hung

    def abandon(*args: Any) -> None:
        happens()
        original(*args)

    maintenance.reclaim_hung = abandon  # type: ignore[method-assign]


def test_creation_that_ends_exactly_at_its_time_limit(adapter: FakeAdapter) -> None:
    """It was made available: its slot stays, and the server is not considered down."""
    clock = VirtualClock(workers="manual")
    pool = make(adapter, clock, create_timeout=5)
    got: list[object] = []

    def borrow() -> None:
        with pool.acquire(timeout=9) as resource:
            clock.settle()
            got.append(resource)

    thread = threading.Thread(target=borrow)
    thread.start()
    clock.until_parked(1)
    when_the_reaper_has_decided(pool, clock.run_job)
    clock.advance(5)
    thread.join(30)
    assert got[0] in adapter.open
    assert pool.stats()["down"] is None
    assert pool.stats()["idle"] == pool.stats()["size"] == 1


def test_creation_that_ends_just_after_its_time_limit(adapter: FakeAdapter) -> None:
    """Its slot has been freed by then: the resource is closed."""
    clock = VirtualClock(workers="manual")
    pool = make(adapter, clock, create_timeout=5)
    original = adapter.create

    def create() -> FakeResource:
        resource = original()
        clock.advance(5)
        assert pool.stats()["size"] == 0
        return resource

    adapter.create = create  # type: ignore[method-assign]
    pool.fill(1)
    clock.run_job()
    assert adapter.made == adapter.closed == 1
    assert pool.metrics.snapshot().created == 0


@pytest.mark.parametrize("step", ["validate", "reset"])
def test_check_that_ends_exactly_at_its_time_limit(step: str) -> None:
    """The resource may be lent by then, and must not be interrupted."""
    clock, adapter = VirtualClock(workers="manual"), FakeAdapter(enforces_timeouts=False)
    pool = make(adapter, clock, reset_timeout=5, health_check_timeout=5)
    pool.fill(1)
    clock.run_job()
    if step == "validate":
        pool.check()
    else:
        pool.acquire().release()
    assert pool.stats()["checking"] == 1
    leases = []

    def ends() -> None:
        clock.run_job()
        leases.append(pool.acquire(timeout=0))

    when_the_reaper_has_decided(pool, ends)
    clock.advance(5)
    assert not leases[0].resource.interrupted
    assert pool.stats()["in_use"] == 1


def test_check_that_ends_while_it_is_interrupted() -> None:
    """It is not lent any more, and closed once."""
    clock, adapter = VirtualClock(workers="manual"), FakeAdapter(enforces_timeouts=False)
    pool = make(adapter, clock, reset_timeout=5, health_check_timeout=5)
    pool.fill(1)
    clock.run_job()
    pool.check()
    original = adapter.interrupt

    def interrupt(resource: FakeResource) -> None:
        clock.run_job()
        assert pool.stats()["size"] == 1 and not pool.stats()["idle"]  # P2: until it is cut off
        original(resource)

    adapter.interrupt = interrupt  # type: ignore[method-assign]
    clock.advance(5)
    assert pool.stats()["size"] == clock.jobs == 0
    assert adapter.made == adapter.closed == 1
    assert pool.metrics.snapshot().closed == {"check_timeout": 1}


def test_long_lent_resource_is_not_overdue_when_its_close_begins(adapter: FakeAdapter) -> None:
    """A sweep runs after a drain has decided, and before it has sent the closes to the workers."""
    clock = VirtualClock(workers="manual")
    pool = make(adapter, clock, size=2, close_timeout=5)
    pool.fill(2)
    clock.run_job()
    clock.run_job()
    with pool.acquire(), pool.acquire():
        pass
    clock.advance(60)
    original = pool.engine.close

    def dispose(*args: Any) -> None:
        maintenance_of(pool).sweep(pool.engine.sweep_due, clock.now())
        original(*args)

    pool.engine.close = dispose  # type: ignore[method-assign]
    pool.drain()
    assert pool.stats()["closing"] == 2
    assert adapter.calls["abandon"] == 0


def test_long_lent_resource_is_not_overdue_when_its_check_begins() -> None:
    clock, adapter = VirtualClock(workers="manual"), FakeAdapter(enforces_timeouts=False)
    pool = make(adapter, clock)
    pool.fill(1)
    clock.run_job()
    lease = pool.acquire()
    clock.advance(60)
    original = pool.engine.schedule_sweep

    def sweep_first(due: float) -> None:
        pool.engine.schedule_sweep = original  # type: ignore[method-assign]
        maintenance_of(pool).sweep(pool.engine.sweep_due, clock.now())
        original(due)

    pool.engine.schedule_sweep = sweep_first  # type: ignore[method-assign]
    lease.release()  # and a reset begins
    assert pool.stats()["checking"] == 1
    assert adapter.calls["interrupt"] == 0


# -- destructors and signal handlers inside the pool's critical section ----------------------


class Releaser:
    """A user's object that releases its lease in its destructor."""

    def __init__(self, lease: object) -> None:
        self.lease = lease

    def __del__(self) -> None:
        try:
            self.lease.release()  # type: ignore[attr-defined]
        except LeaseError:
            pass


def test_destructor_releases_inside_the_critical_section(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """redis-py#1583, celery#6969: with a plain lock this is a deadlock."""
    pool = make(adapter, clock, size=2)
    dying = [Releaser(pool.acquire())]
    original = pool.engine.state.serve

    def serve(*args: Any) -> Any:
        assert pool.engine.lock._is_owned()
        dying.clear()  # the garbage collector runs here, in our own critical section
        return original(*args)

    pool.engine.state.serve = serve  # type: ignore[method-assign]
    pool.acquire().release()
    clock.settle()
    assert pool.stats()["idle"] == 2
    nothing_lost(pool, clock)


def test_destructor_acquires_inside_the_critical_section(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """Refused, not deadlocked."""
    pool = make(adapter, clock)
    with pool.engine.lock, pytest.raises(PoolError, match="destructor or signal handler"):
        pool.acquire()
    nothing_lost(pool, clock)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this platform")
def test_signal_handler_releases_inside_the_critical_section(adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make(adapter, clock, size=2)
    lease = pool.acquire()
    original = pool.engine.state.serve
    handled = []

    def handler(number: int, frame: object) -> None:
        handled.append(pool.engine.lock._is_owned())
        lease.release()

    def serve(*args: Any) -> Any:
        if not handled:
            signal.raise_signal(signal.SIGUSR1)
        return original(*args)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        pool.engine.state.serve = serve  # type: ignore[method-assign]
        pool.acquire().release()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [True]
    clock.settle()
    nothing_lost(pool, clock)


def test_lease_and_its_user_in_a_cycle(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """The garbage collector orphans the entry first and runs the destructor afterwards: closed once."""
    pool = make(adapter, clock)
    user = Releaser(pool.acquire())
    user.me = user  # type: ignore[attr-defined]
    gone = weakref.ref(user)
    del user
    gc.collect()
    clock.settle()
    assert gone() is None
    assert adapter.closed == adapter.made == 1
    nothing_lost(pool, clock)


def test_two_threads_release_one_lease(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """P1: one of them ends the lease, the other gets an error or does nothing; the resource is idle once."""
    pool = make(adapter, clock)
    lease = pool.acquire()
    barrier = threading.Barrier(2)
    told = []

    def release() -> None:
        barrier.wait(30)
        try:
            lease.release()
        except LeaseError as error:
            told.append(error)

    threads = [threading.Thread(target=release) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(told) <= 1
    assert pool.stats()["idle"] == 1
    nothing_lost(pool, clock)


# -- borrowers of dead resources keep their queue position -------------------------------------


def test_borrower_of_a_dead_resource_keeps_its_queue_position(adapter: FakeAdapter) -> None:
    """P3: it arrived before those that queued while its resource was checked."""
    clock = VirtualClock(workers="manual")
    order: list[str] = []
    adapter_alive = adapter.is_alive
    second = threading.Thread(target=lambda: borrow("second"))

    def borrow(name: str) -> None:
        with pool.acquire(timeout=50):
            order.append(name)

    def is_alive(resource: FakeResource) -> bool:
        if resource.number == 1 and not second.is_alive():
            second.start()  # arrives while the first one checks its resource
            clock.until_parked(1)
        return adapter_alive(resource)

    adapter.is_alive = is_alive  # type: ignore[method-assign]
    pool = make(adapter, clock)
    first = threading.Thread(target=lambda: borrow("first"))
    pool.fill(1)
    clock.run_job()
    next(iter(adapter.open)).alive = False
    first.start()
    clock.until_parked(2)
    while first.is_alive() or second.is_alive():
        if clock.jobs:
            clock.run_job()
        first.join(0.05)
        second.join(0.05)
    assert order == ["first", "second"]


def test_final_error_fails_only_waiters_that_no_resource_can_serve(adapter: FakeAdapter, clock: VirtualClock) -> None:
    """A live resource is in use: its waiter goes on waiting."""
    pool = make(adapter, clock, size=2)
    lease = pool.acquire()
    adapter.final = (ValueError,)
    adapter.fail("create", ValueError("wrong password"), times=99)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(pool.acquire(timeout=5).resource))
    thread.start()
    clock.until_parked(1)
    lease.release()
    thread.join(30)
    assert len(got) == 1
    lonely = make(adapter, clock)
    with pytest.raises(CreateFailed, match="wrong password"):
        lonely.acquire(timeout=5)
