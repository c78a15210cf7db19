"""Programs that fork while their pools are in use; `test_fork` runs them, and looks at what they leave.

``python -m tests.faults.forked SCENE``, and in the environment:

- ``FORK``: ``hook`` (`os.fork`) or ``bare`` (C's ``fork``, as uWSGI does: no
  hook of Python's runs), with ``-pageless`` behind it where the kernel is to
  offer no page that it wipes in a child;
- ``ADAPTER``: ``abandons`` what was inherited, or is made of ``functions``, and cannot;
- ``PORT``: of a `Recorder`.

Failures are raised, in the parent or in a child, and show in the exit status.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import mmap
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

HOW, KIND = os.environ["FORK"], os.environ["ADAPTER"]
PORT = int(os.environ["PORT"])

if HOW.endswith("-pageless"):
    del mmap.MAP_PRIVATE  # before the import: there is no such page here

collect_in_child = False  # in the hook itself, whose hook this one precedes


def _collect_often() -> None:
    if collect_in_child:
        gc.enable()
        gc.set_threshold(1, 1, 1)


os.register_at_fork(after_in_child=_collect_often)

from pooling import Lease, LeaseError, Observer, Pool, PoolClosed, PoolSettings, PoolTimeout  # noqa: E402
from tests.faults.recorder import Connection, Connections  # noqa: E402
from tests.faults.rest import let_others_come_to_rest  # noqa: E402

CHILDS_TIME = 8  # seconds until a child that is stuck is killed
_libc = ctypes.PyDLL(None)  # calls C with the GIL held, as uWSGI holds it when it forks


def fork() -> int:
    """Fork as HOW says."""
    sys.stderr.flush()
    if HOW.startswith("hook"):
        return os.fork()
    let_others_come_to_rest()
    return int(_libc.fork())


def end_if_stuck() -> None:
    """Have this child killed, and say where it is, when its time is up."""
    if threading.current_thread() is threading.main_thread():  # elsewhere none was set
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.unregister(signal.SIGALRM)
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(CHILDS_TIME)


def fork_into(childs_part: Callable[[], object], ending: Callable[[int], object] = os._exit) -> int:
    """Fork; the child does its part and ends. Return its process id."""
    child = fork()
    if child == 0:
        end_if_stuck()
        status = 1
        try:
            childs_part()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        ending(status)
    return child


def leave(status: int) -> None:
    """End as programs do, destructors and all."""
    sys.exit(status)


def expect_success(*children: int) -> None:
    """Wait for children, and raise if one failed or was stuck."""
    for child in children:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, f"a child ended with {status}; -{signal.SIGALRM} means stuck"


def make_pool(name: str = "lines", observers: tuple[Observer, ...] = (), **settings: Any) -> Pool[Connection]:
    """Make a pool of connections to the recorder."""
    chosen = PoolSettings(**{"min_size": 0, "max_size": 3, "acquire_timeout": 6.0, **settings})
    if KIND == "abandons":
        return Pool(adapter=Connections(PORT), settings=chosen, name=name, observers=observers)
    return Pool(
        lambda: Connection(PORT), close=Connection.close, settings=chosen, name=name, observers=observers
    )


def quiet() -> None:
    """Keep the pools' warnings off standard error, in scenes that earn them."""
    logging.getLogger("pooling").setLevel(logging.ERROR)


def raises(error: type[BaseException], function: Callable[[], object]) -> BaseException:
    """Call a function, and return the error that it must raise."""
    try:
        function()
    except error as raised:
        return raised
    raise AssertionError(f"{function} did not raise {error.__name__}")


def until(condition: Callable[[], object]) -> None:
    """Wait for something, but not for ever."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.002)


def use_all(pool: Pool[Connection]) -> None:
    """Acquire ``max_size`` resources from an empty pool, and check that this process made them."""
    size = pool.settings.max_size
    leases = [pool.acquire() for _ in range(size)]
    raises(PoolTimeout, lambda: pool.acquire(timeout=0))
    assert pool.stats()["in_use"] == size, pool
    for lease in leases:
        assert lease.resource.maker == os.getpid(), "the parent's resource was lent"
        lease.resource.ask("child")
        lease.release()
    assert pool.stats()["idle"] == size, pool
    used = pool.metrics.snapshot()
    assert (used.acquired, used.created, used.timeouts, used.orphans) == (size, size, 1, 0), used


def use_in_threads(pool: Pool[Connection], threads: int = 4) -> None:
    """Acquire in several threads at once, more than there are resources."""
    problems: list[BaseException] = []

    def borrow() -> None:
        try:
            for _ in range(5):
                with pool.acquire() as line:
                    assert line.maker == os.getpid()
                    line.ask("thread")
        except BaseException as error:
            problems.append(error)

    running = [threading.Thread(target=borrow, daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(CHILDS_TIME)
        assert not thread.is_alive(), "stuck"
    if problems:
        raise problems[0]


def refuses(lease: Lease[Connection]) -> None:
    """See that an inherited lease is refused wherever it is used through the pool."""
    refused = raises(LeaseError, lambda: lease.resource)
    assert "fork" in str(refused), refused
    raises(LeaseError, lease.release)
    raises(LeaseError, lease.discard)
    raises(LeaseError, lease.detach)
    raises(LeaseError, lease.__enter__)


class Holder(threading.Thread):
    """A thread that waits for a resource and uses it once."""

    def __init__(self, pool: Pool[Connection]) -> None:
        super().__init__(daemon=True)
        self.pool = pool
        self.number: int | None = None
        self.start()
        until(lambda: pool.stats()["waiting"])

    def run(self) -> None:
        with self.pool.acquire(timeout=CHILDS_TIME + 4) as line:
            self.number = line.ask("waited")


# -- scenes -------------------------------------------------------------------------


def everything() -> None:
    """With leases, an idle resource, a waiter and held locks in the parent, the child starts empty."""
    pool, full, closed = make_pool(min_size=1), make_pool("full", max_size=1), make_pool("closed")
    pool.open()
    by_hand = pool.acquire()
    idle = pool.acquire()
    idle.release()
    last = full.acquire()
    waiter = Holder(full)
    with closed.acquire():
        pass
    closed.close()
    release, held = threading.Event(), threading.Event()

    def hold_locks() -> None:
        with pool.engine.lock, full.engine.lock:
            held.set()
            release.wait()

    holder = threading.Thread(target=hold_locks, daemon=True)
    holder.start()
    held.wait()

    def child() -> None:
        if HOW.startswith("hook"):
            assert repr(pool) == "<Pool 'lines': 0/3 in use, 0 idle, 0 waiting>", repr(pool)
            assert pool.stats()["size"] == 0
            assert numbers.snapshot().acquired == pool.metrics.snapshot().created == 0
        refuses(by_hand)
        use_all(pool)
        assert numbers.snapshot().acquired == 3, "an exporter reads the parent's numbers"
        use_in_threads(pool)
        refuses(by_hand)
        use_all(full)
        assert raises(PoolClosed, closed.acquire)
        assert closed.closed and not pool.closed
        assert pool.name == "lines"

    numbers = pool.metrics
    with pool.acquire() as line:
        children = [fork_into(child), fork_into(child)]
        expect_success(*children)
        line.ask("parent")
    by_hand.resource.ask("parent")
    release.set()
    holder.join()
    last.release()
    waiter.join()
    assert waiter.number is not None, "the parent's waiter was not served"
    by_hand.release()
    assert pool.stats()["idle"] == 2 and full.stats()["idle"] == 1, (pool, full)
    assert pool.metrics.snapshot().created == 2
    with pool.acquire() as one, pool.acquire() as other:
        assert one.ask("parent") != other.ask("parent")


def leaving_a_block() -> None:
    """A child leaves the block that its parent entered: before its first use, and after."""
    for pool in (make_pool(), make_pool("careful", max_uses=100)):
        for used_before in (False, True):
            with pool.acquire():
                child = fork()
                if child == 0:
                    end_if_stuck()
                    if used_before:
                        use_all(pool)
            if child == 0:
                if used_before:
                    stats = pool.stats()
                    assert (stats["size"], stats["idle"], stats["closing"]) == (3, 3, 0), stats
                    assert pool.metrics.snapshot().use.count == 3
                else:
                    use_all(pool)
                use_in_threads(pool)
                os._exit(0)
            expect_success(child)
            with pool.acquire() as line:
                line.ask("parent")


def leaving_a_block_that_others_wait_for() -> None:
    """As before, while the parent has a waiter and its lock is held: a release then takes the lock."""
    pool = make_pool(max_size=1)
    release, held = threading.Event(), threading.Event()

    def hold_lock() -> None:
        with pool.engine.lock:
            held.set()
            release.wait()

    with pool.acquire():
        waiter = Holder(pool)
        holder = threading.Thread(target=hold_lock, daemon=True)
        holder.start()
        held.wait()
        child = fork()
        if child == 0:
            end_if_stuck()
        else:
            expect_success(child)
            release.set()
            holder.join()
    if child == 0:
        use_all(pool)
        os._exit(0)
    waiter.join()
    assert waiter.number is not None


def leaving_a_block_by_an_error() -> None:
    """A child that leaves its parent's block by an exception."""
    pool = make_pool()
    try:
        with pool.acquire():
            child = fork()
            if child == 0:
                end_if_stuck()
                raise KeyError("child")
            expect_success(child)
    except KeyError:
        use_all(pool)
        os._exit(0)
    with pool.acquire() as line:
        line.ask("parent")


def busy_reaper() -> None:
    """The reaper and a worker are busy at the fork; the child has its own."""
    quiet()
    release, there = threading.Event(), threading.Semaphore(0)
    parent = os.getpid()

    class Slow(Observer):
        def orphaned(self, pool: str, where: str) -> None:
            if os.getpid() == parent:
                there.release()
                release.wait()

        def created(self, pool: str, seconds: float) -> None:
            if os.getpid() == parent and slow_worker:
                there.release()
                release.wait()

    slow_worker = False
    pool = make_pool(max_size=2, observers=(Slow(),))
    pool.acquire()  # and dropped: the reaper logs it
    there.acquire()
    slow_worker = True
    kept = pool.acquire()  # its worker logs it
    there.acquire()

    def child() -> None:
        use_all(pool)
        for _ in range(2):
            pool.acquire()  # dropped, and found again
        with pool.acquire(), pool.acquire():
            pass

    expect_success(fork_into(child))
    release.set()
    kept.resource.ask("parent")
    kept.release()
    with pool.acquire(), pool.acquire():  # its reaper has found the dropped one
        pass


def creation_under_way() -> None:
    """A creation and a close are in progress, and a thread waits for them."""
    release, there = threading.Event(), threading.Semaphore(0)
    parent = os.getpid()

    def create() -> Connection:
        if os.getpid() == parent:
            there.release()
            release.wait()
        return Connection(PORT)

    def close(line: Connection) -> None:
        if os.getpid() == parent:
            there.release()
            release.wait()
        line.close()

    pool = Pool(create, close=close, settings=PoolSettings(min_size=0, max_size=1))
    closing = Pool(create, close=close, settings=PoolSettings(min_size=0, max_size=1))
    release.set()
    lease = closing.acquire()
    there.acquire()
    release.clear()
    lease.discard()
    there.acquire()
    waiter = Holder(pool)
    there.acquire()
    assert pool.stats()["creating"] == closing.stats()["closing"] == 1

    def child() -> None:
        use_all(pool)
        use_all(closing)

    expect_success(fork_into(child))
    release.set()
    waiter.join()
    assert waiter.number is not None
    with closing.acquire() as line:
        line.ask("parent")


def from_a_thread() -> None:
    """Another thread forks while the main thread is in the wait queue."""
    pool = make_pool(max_size=1)
    problems: list[BaseException] = []
    taken = threading.Event()

    def fork_here() -> None:
        lease = pool.acquire()
        taken.set()

        def child() -> None:
            refuses(lease)
            use_all(pool)
            use_in_threads(pool)

        try:
            until(lambda: pool.stats()["waiting"])
            expect_success(fork_into(child))
        except BaseException as error:
            problems.append(error)
        finally:
            lease.release()

    thread = threading.Thread(target=fork_here)
    thread.start()
    taken.wait()
    with pool.acquire() as line:
        line.ask("parent")
    thread.join()
    if problems:
        raise problems[0]


def from_a_worker() -> None:
    """The factory forks, on the pool's own worker."""
    children: list[int] = []
    parent = os.getpid()

    def create() -> Connection:
        if os.getpid() == parent:
            children.append(fork_into(lambda: (use_all(pool), use_all(other))))
        return Connection(PORT)

    other = make_pool("other")
    with other.acquire():
        pool: Pool[Connection] = Pool(create, close=Connection.close, settings=PoolSettings(min_size=0, max_size=2))
        with pool.acquire() as line:
            line.ask("parent")
    expect_success(*children)


def child_of_a_child() -> None:
    """Each generation of processes has its own resources; one that used no pool passes nothing on."""
    pool = make_pool()
    lease = pool.acquire()

    def child() -> None:
        use_all(pool)
        mine = pool.acquire()
        expect_success(fork_into(lambda: (refuses(lease), refuses(mine), use_all(pool))))
        mine.resource.ask("child")
        mine.release()
        use_in_threads(pool)

    def idle_child() -> None:
        expect_success(fork_into(lambda: (refuses(lease), use_all(pool))))

    expect_success(fork_into(child), fork_into(idle_child))
    lease.resource.ask("parent")


def while_waiting() -> None:
    """A signal handler forks while its thread waits: in the child, that thread waits in the child's queue."""
    pool = make_pool(max_size=1)
    leases: list[Lease[Connection]] = []
    thread = threading.Thread(target=lambda: leases.append(pool.acquire()))
    thread.start()
    thread.join()
    children: list[int] = []

    def fork_here(*_: object) -> None:
        children.append(fork())
        if children[0] == 0:
            end_if_stuck()
        else:
            leases.pop().release()

    signal.signal(signal.SIGUSR1, fork_here)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        until(lambda: pool.stats()["waiting"])
        signal.pthread_kill(main, signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()
    with pool.acquire() as line:
        assert line.maker == os.getpid(), "it was given the parent's"
        line.ask("waited")
    if children[0] == 0:
        with pool.acquire() as line:
            line.ask("again")
        os._exit(0)
    expect_success(*children)


def at_any_moment() -> None:
    """A signal handler forks at any point of the pool's code; the child continues from there."""
    pool = make_pool(max_size=2, max_lifetime=0.05, idle_timeout=0.03)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            with pool.acquire() as line:
                line.ask("churn")

    threads = [threading.Thread(target=churn, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    children: list[int] = []

    def fork_here(*_: object) -> None:
        child = fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            end_if_stuck()
            children.clear()
        else:
            children.append(child)

    parent = os.getpid()
    signal.signal(signal.SIGALRM, fork_here)
    forks = 0
    while forks < 40:
        if not children:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))
        try:
            while not children and os.getpid() == parent:
                with pool.acquire() as line:
                    line.ask("main")
                if random.random() < 0.1:
                    pool.acquire().discard()
        except (LeaseError, OSError):
            assert os.getpid() != parent  # it was the parent's, and is cut off
        if os.getpid() != parent:
            with pool.acquire() as one, pool.acquire() as other:
                assert one.maker == other.maker == os.getpid()
            os._exit(0)
        expect_success(children.pop())
        forks += 1
    stop.set()
    for thread in threads:
        thread.join()


def unused() -> None:
    """A child that uses no pool ends like any program, and its destructors run."""
    pool = make_pool()
    leases = [pool.acquire(), pool.acquire()]
    leases.pop().release()
    expect_success(fork_into(lambda: None, ending=leave))
    leases[0].resource.ask("parent")


def used() -> None:
    """A child that used a pool ends like any program: it closes its own, and only those."""
    pool = make_pool()
    leases = [pool.acquire(), pool.acquire()]
    leases.pop().release()
    expect_success(fork_into(lambda: use_all(pool), ending=leave))
    leases[0].resource.ask("parent")


def dropped() -> None:
    """A child drops what it inherited: leases, and pools, before and after its first use."""
    pool, other = make_pool(), make_pool("other")
    globals()["dropped_ones"] = [pool.acquire(), other.acquire(), pool.acquire()]
    reference = weakref.ref(pool)
    pool.acquire().release()
    del pool, other

    def child() -> None:
        lease, other_lease, last = globals().pop("dropped_ones")
        pool = reference()
        assert pool is not None
        del lease
        gc.collect()
        use_all(pool)
        del last
        del other_lease  # and with it the last reference to its pool
        gc.collect()
        use_in_threads(pool)
        globals()["kept_to_the_end"] = pool

    expect_success(fork_into(child, ending=leave))
    for lease in globals()["dropped_ones"]:
        lease.resource.ask("parent")


def held_across_a_fork() -> None:
    """A child that goes on using an inherited resource reaches no server, where a fork hook can run."""
    pool = make_pool()
    with pool.acquire() as line:

        def child() -> None:
            try:
                line.say("stolen")
            except OSError:
                pass

        expect_success(fork_into(child))
        line.ask("parent")


def nothing_held_open() -> None:
    """A child that uses no pool does not keep its parent's connections from ending."""

    class Terse(Connections):
        def close(self, resource: Connection) -> None:
            resource.sock.close()  # no goodbye, no shutdown: only the end of the connection shows it

    pool: Pool[Connection] = Pool(adapter=Terse(PORT), settings=PoolSettings(min_size=0))
    with pool.acquire():
        pass
    go, stop = os.pipe()
    child = fork_into(lambda: (os.close(stop), os.read(go, 1)))
    pool.close()
    assert sys.stdin.readline() == "ended\n"  # printed for the test
    os.close(stop)
    expect_success(child)


def destructors() -> None:
    """The garbage collector runs destructors that use inherited leases, anywhere in the child."""
    pools = [make_pool(f"pool {number}") for number in range(5)]

    class Cycle:
        def __init__(self, lease: Lease[Connection]) -> None:
            self.lease, self.me = lease, self

        def __del__(self) -> None:
            try:
                self.lease.release()
            except LeaseError:
                released.append(False)
            else:
                released.append(True)

    released: list[bool] = []
    gc.disable()
    for pool in pools:
        Cycle(pool.acquire())
        Cycle(pool.acquire())
    global collect_in_child
    collect_in_child = True

    def child() -> None:
        _collect_often()
        for pool in pools:
            use_all(pool)
        gc.collect()
        assert released == [False] * 10, released

    expect_success(fork_into(child))
    for pool in pools:
        assert pool.stats()["in_use"] == 2
    os._exit(0)  # the parent's own destructors are another matter


def failing_abandon() -> None:
    """A failing abandon() does not prevent the others, nor the use of the pool in the child."""

    class Failing(Connections):
        def abandon(self, resource: Connection) -> None:
            if resource.number % 2:
                raise OSError("cannot")
            super().abandon(resource)

    pool: Pool[Connection] = Pool(adapter=Failing(PORT), settings=PoolSettings(min_size=0, max_size=4))
    leases = [pool.acquire() for _ in range(4)]
    expect_success(fork_into(lambda: use_all(pool), ending=leave))
    for lease in leases:
        lease.resource.ask("parent")


def no_warning() -> None:
    """CPython 3.12+ warns of a fork beside threads; ours end before it, and go on after it."""
    quiet()
    pool = make_pool(idle_timeout=1.0)
    for turn in range(5):
        with pool.acquire() as line:
            line.ask("parent")
        assert threading.active_count() == 1
        expect_success(fork_into(lambda: use_all(pool)))
        assert turn or pool.stats()["idle"] == 1
    until(lambda: not pool.stats()["size"])  # the reaper runs again
    pool.acquire()  # and dropped
    with pool.acquire(), pool.acquire(), pool.acquire():
        pass


def churn() -> None:
    """Many forks while eight threads borrow and release; a third of them with a lease held."""
    pool = make_pool(max_size=4, max_lifetime=0.2, idle_timeout=0.1)
    stop = threading.Event()
    operations, problems = [0] * 8, []

    def borrow(place: int) -> None:
        try:
            while not stop.is_set():
                with pool.acquire() as line:
                    if random.random() < 0.3:
                        line.ask("churn")
                    if random.random() < 0.05:
                        raise KeyError
                operations[place] += 1
        except KeyError:
            borrow(place)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=borrow, args=(place,), daemon=True) for place in range(8)]
    for thread in threads:
        thread.start()

    def child() -> None:
        with pool.acquire() as line:
            assert line.maker == os.getpid()
            line.ask("child")
        leases = [pool.acquire() for _ in range(4)]
        raises(PoolTimeout, lambda: pool.acquire(timeout=0))
        for lease in leases:
            lease.release()

    children: list[int] = []
    for number in range(int(os.environ.get("FORKS", "200"))):
        if number % 3:
            children.append(fork_into(child))
        else:
            with pool.acquire() as line:
                children.append(fork_into(child))
                line.ask("parent")
        if len(children) == 4:
            expect_success(*children)
            children.clear()
    expect_success(*children)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems, problems
    assert all(operations), operations
    leases = [pool.acquire() for _ in range(4)]
    for lease in leases:
        lease.release()


# -- other ways to start a child -------------------------------------------------------

shared: Pool[Connection] | None = None  # in a module, as an application has it


def use_shared(_: object = None) -> tuple[int, int]:
    """Use the module's pool in a child of `multiprocessing`."""
    global shared
    signal.alarm(CHILDS_TIME * 2)
    if shared is None:  # spawned, not forked
        shared = make_pool()
    with shared.acquire() as line:
        assert line.maker == os.getpid()
        number = line.ask("child")
    leases = [shared.acquire() for _ in range(shared.settings.max_size)]
    for lease in leases:
        lease.release()
    signal.alarm(0)
    return os.getpid(), number


def processes(kind: str) -> None:
    """`multiprocessing` with one of its three start methods, and an executor on top of it."""
    global shared
    shared = make_pool()
    context = multiprocessing.get_context(kind)
    with shared.acquire() as line, shared.acquire():
        children = [context.Process(target=use_shared) for _ in range(2)]  # type: ignore[attr-defined]
        for child in children:
            child.start()
        for child in children:
            child.join()
            assert child.exitcode == 0, child
        line.ask("parent")
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            for process, _ in executor.map(use_shared, range(6)):
                assert process != os.getpid()
        line.ask("parent")
    with shared.acquire() as line:
        line.ask("parent")


def subprocesses() -> None:
    """`subprocess` forks too, in C, now with hooks and now without."""
    pool = make_pool()
    with pool.acquire() as line:
        subprocess.run(["true"], check=True)
        subprocess.run(["true"], check=True, close_fds=False)
        subprocess.run(["true"], check=True, preexec_fn=lambda: None)
        os.posix_spawn("/bin/true", ["true"], {})
        os.wait()
        line.ask("parent")
    with pool.acquire() as line:
        line.ask("parent")
    assert pool.metrics.snapshot().created == 1


if __name__ == "__main__":
    signal.alarm(60)
    name, _, argument = sys.argv[1].partition("-")
    globals()[name](*([argument] if argument else []))
