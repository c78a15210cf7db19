"""An attack on a pool by everything at once: threads, faults, asynchronous exceptions, the
collector, resizes, drains, forks. Ends with a verdict: what of P1, P2, P8 and P9 did not hold.

Run by hand for longer than the test does: ``python -m tests.faults.stress --seconds 60``.

The two kinds of attack find different bugs. Strikes raise asynchronous exceptions, whose
effects are repaired by orphan recovery and audits. These would hide bugs of the ordinary
paths, so ``--calm`` raises none and disables the audit: a lost wake-up stays lost, and
every orphan must be a lease that was dropped on purpose. Under constant load the next
release would still wake a forgotten waiter; with ``--rounds`` each thread acquires once
and waits for all others.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import ctypes
import gc
import itertools
import logging
import os
import random
import socket
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

from pooling import Lease, LeaseError, Pool, PoolError, PoolSettings, PoolTimeout
from pooling.settings import Backoff

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]

_PATIENCE = 20.0  # seconds for what takes milliseconds on a machine that is not busy
_CHILDREN = 2  # at once
_FOREVER = 3600.0


class Boom(BaseException):
    """Raised in a thread at a random moment."""


class Resource:
    """A pair of sockets that records its users and whether it was closed."""

    def __init__(self) -> None:
        self.owner: object = None
        self.closed = 0
        self.process = os.getpid()
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.settimeout(_PATIENCE)

    def echo(self, request: bytes) -> bytes:
        """Send a request, and read what has come to the other end."""
        self.near.sendall(request)
        return self.far.recv(64)

    def close(self) -> None:
        self.closed += 1
        self.near.close()
        self.far.close()


class Server:
    """Makes and closes resources with faults, and counts what is open."""

    def __init__(self, fault_rate: float) -> None:
        self.lock = threading.Lock()
        self.fault_rate = fault_rate
        self.open = self.made = self.closed = self.most = self.twice = 0

    def connect(self) -> Resource:
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
        time.sleep(random.random() * 5e-4)
        if random.random() < self.fault_rate:
            with self.lock:
                self.open -= 1
            raise OSError("refused")
        with self.lock:
            self.made += 1
        return Resource()

    def close(self, resource: Resource) -> None:
        time.sleep(random.random() * 5e-4)
        with self.lock:
            self.twice += resource.closed > 0
            resource.close()
            self.open -= 1
            self.closed += 1
        if random.random() < self.fault_rate:
            raise OSError("close")

    def let_go(self) -> None:
        with self.lock:
            self.open -= 1
            self.closed += 1

    def validate(self, resource: Resource) -> None:
        if random.random() < self.fault_rate:
            raise OSError("dead")

    def reset(self, resource: Resource) -> None:
        if random.random() < self.fault_rate:
            raise OSError("reset")


class Cycle:
    """A lease and its user in a reference cycle: the garbage collector runs the destructor."""

    def __init__(self, lease: Lease[Resource]) -> None:
        self.lease = lease
        self.me = self

    def __del__(self) -> None:
        try:
            self.lease.release()
        except LeaseError:
            pass


@dataclass
class Verdict:
    """What was seen; `problems` is empty when every promise held."""

    operations: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What kind of attack."""

    seconds: float = 6.0
    threads: int = 12
    size: int = 4
    seed: int = 1
    careful: bool = False  # with validate and reset
    calm: bool = False  # no strikes, and no audits that would repair what a bug lost
    rounds: bool = False  # calm, and all threads wait for each other after each lease
    forks: bool = False
    switch_interval: float | None = None
    gc_threshold: int | None = None  # allocations between collections


    @property
    def strikes(self) -> bool:
        return not (self.calm or self.rounds)


class Attack:
    """One run of it."""

    extra = 2  # how much a resize adds at most

    def __init__(self, options: Options) -> None:
        self.options = options
        self.verdict = Verdict()
        self.server = Server(0.05)
        self.stop = False
        self.children: dict[int, float] = {}  # process id: when it has to have ended
        self.dropped: list[str] = []  # leases that were dropped on purpose
        self.tickets = itertools.count()
        self.together = threading.Barrier(options.threads, action=self._next_round)
        self.eager = 1.0
        self.pool = self._make_pool()
        self.threads = [threading.Thread(target=self._borrow, daemon=True) for _ in range(options.threads)]

    def _make_pool(self) -> Pool[Resource]:
        careful, server = self.options.careful, self.server
        ages = {"max_lifetime": 0.05, "idle_timeout": 0.02}
        if not self.options.strikes:  # no sweep is ever due: it would wake a waiter that a bug had left asleep
            ages = {"max_lifetime": None, "idle_timeout": None, "health_check_interval": None}
        settings = PoolSettings(
            min_size=1, max_size=self.options.size, acquire_timeout=4.0, validation_interval=0.001, **ages,
            backoff=Backoff(initial=0.001, maximum=0.02, probe_interval=0.02),
        )  # fmt: skip
        return Pool(
            server.connect,
            close=server.close,
            validate=server.validate if careful else None,
            reset=server.reset if careful else None,
            settings=settings,
            name="stress",
        )

    def run(self) -> Verdict:
        """Attack, let it calm down, and judge."""
        descriptors, threads = _descriptors(), _thread._count()
        random.seed(self.options.seed)
        with _conditions(self.options, self):
            for thread in self.threads:
                thread.start()
            self._attack(time.monotonic() + self.options.seconds)
            if self._calm_down():
                self._judge()
                self._judge_machine(descriptors, threads)
        return self.verdict

    def _attack(self, end: float) -> None:
        for turn in itertools.count(1):
            time.sleep(0.002)
            if time.monotonic() > end:
                return
            if self.options.strikes:
                self._strike()
            if turn % 20 == 0 and not self.options.rounds:
                self._steer()
            if self.options.forks and turn % 50 == 0:
                self._bury_children()
                if len(self.children) < _CHILDREN:
                    self._fork()

    def _strike(self) -> None:
        victim = random.choice(self.threads)
        if victim.ident is not None and victim.is_alive():
            _raise_in(victim.ident, Boom)
            self.verdict.operations["struck"] += 1

    def _steer(self) -> None:
        chance = random.random()
        if chance < 0.3:
            self.pool.drain()
        elif chance < 0.6:
            self._resize()
        elif chance < 0.7:
            self.pool.pause()
            self.pool.resume()
        elif chance < 0.8:
            self.pool.check()
        else:
            gc.collect()

    def _resize(self) -> None:
        self.pool.resize(self.options.size + random.randint(0, self.extra))

    def unraisable(self, what: sys.UnraisableHookArgs) -> None:
        """A strike hit a destructor, or a starting worker, which CPython takes for its parent."""
        if isinstance(what.exc_value, Boom):
            self.verdict.operations["struck elsewhere"] += 1
        else:
            self.verdict.problems.append(f"ignored in {what.object!r}: {what.exc_value!r}")

    def died(self, what: threading.ExceptHookArgs) -> None:
        """A strike came just when the one before it was caught; anything else is a bug."""
        if isinstance(what.exc_value, Boom):
            self.verdict.operations["killed"] += 1
        else:
            self.verdict.problems.append(f"a borrower died of {what.exc_value!r}")

    # -- the borrowers ------------------------------------------------------------

    def _borrow(self) -> None:
        while not self.stop:
            try:
                (self._in_rounds if self.options.rounds else self._guarded)()
            except Boom:
                continue
            except threading.BrokenBarrierError:
                return

    def _in_rounds(self) -> None:
        while True:
            self.together.wait()
            if random.random() < self.eager:
                self._one()

    def _next_round(self) -> None:
        self.eager = random.choice((0.1, 0.5, 1.0))

    def _guarded(self) -> None:
        while not self.stop:
            try:
                self._one()
            except Boom:
                continue

    def _one(self) -> None:
        count, pool = self.verdict.operations, self.pool
        chance = random.random()
        try:
            if chance < 0.90:
                with pool.acquire() as resource:
                    self._use(resource, chance)
                count["used"] += 1
            elif chance < 0.93:
                pool.acquire().discard()
            elif chance < 0.95:
                pool.acquire(timeout=0.001).release()
            elif chance < 0.96:
                self._drop(pool.acquire())
            elif chance < 0.963:
                self._drop(Cycle(pool.acquire()))
                if self.options.rounds:  # no other thread does so while all wait
                    gc.collect()
            elif chance < 0.97:
                (pool.drain if chance < 0.966 else self._resize)()
            elif chance < 0.98 and not self.options.strikes:  # or a strike could lose it for ever
                self._keep(pool.acquire())
            else:
                with pool.acquire():
                    raise ValueError
        except ValueError:
            pass
        except PoolTimeout:
            count["late" if 0.93 <= chance < 0.95 else "timed out"] += 1
        except (PoolError, LeaseError) as error:
            self.verdict.problems.append(f"unexpected {error!r}")

    def _keep(self, lease: Lease[Resource]) -> None:
        """Take a resource out of the pool; from then on it is not the pool's to count."""
        self.server.let_go()
        lease.detach().close()

    def _drop(self, held: object) -> None:
        self.dropped.append(type(held).__name__)

    def _use(self, resource: Resource, chance: float) -> None:
        if resource.closed:
            self.verdict.problems.append("P6: a closed resource was lent")
        if resource.process != os.getpid():
            self.verdict.problems.append("P9: a resource of another process was lent")
        me = object()
        resource.owner = me
        if chance < 0.5:
            time.sleep(random.random() * 3e-4)
        if chance < 0.3:
            request = b"%d" % next(self.tickets)
            if resource.echo(request) != request:
                self.verdict.problems.append("P1, P9: another process used a resource, or shut it down")
        if resource.owner is not me:
            self.verdict.problems.append("P1: two borrowers of one resource")

    # -- the children --------------------------------------------------------------

    def _fork(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: "may lead to deadlocks in the child"
            child = os.fork()
        if child == 0:
            self._live_as_child()
        self.children[child] = time.monotonic() + _PATIENCE
        self.verdict.operations["forked"] += 1

    def _live_as_child(self) -> None:
        """Find the pool empty, usable and whole; end without a word (P9)."""
        code = 1
        try:
            # The parent's may be held by a thread that is not here: that is no fault of the pool.
            self.server.lock = threading.Lock()
            self.server.fault_rate = 0
            leases = [self.pool.acquire(timeout=_PATIENCE / 2) for _ in range(self.pool.settings.max_size)]
            with contextlib.suppress(PoolTimeout):
                self.pool.acquire(timeout=0)
                raise AssertionError("P2: a child lends more than max_size")
            for lease in leases:
                assert lease.resource.process == os.getpid(), "P9: a child was lent what its parent holds"
                assert lease.resource.echo(b"child") == b"child", "P1: another process used a resource of a child"
                lease.release()
            self.pool.close(_PATIENCE / 2)
            assert not self.pool.stats()["size"], f"P8: not empty after close in a child: {self.pool!r}"
            code = 0
        except BaseException:
            os.write(2, f"BROKEN in a child: {traceback.format_exc()}".encode())
        finally:
            os._exit(code)

    def _bury_children(self) -> None:
        for child, limit in list(self.children.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del self.children[child]
                if status:
                    self.verdict.problems.append(f"P9: a child ended with {os.waitstatus_to_exitcode(status)}")
            elif time.monotonic() > limit:
                os.kill(child, 9)
                self.verdict.problems.append(f"P9: a child was still there after {_PATIENCE} s")

    def _buried(self) -> bool:
        self._bury_children()
        return not self.children

    # -- the verdict -----------------------------------------------------------------

    def _calm_down(self) -> bool:
        """End the borrowers; return ``False`` if some do not end."""
        self.pool.resize(self.options.size)
        self.stop = True
        self.together.abort()
        patience = time.monotonic() + _PATIENCE
        for thread in self.threads:
            while thread.is_alive() and time.monotonic() < patience:
                thread.join(0.1)
                gc.collect()  # a lease dropped in a cycle is not found while all wait
        stuck = [thread for thread in self.threads if thread.is_alive()]
        if stuck:
            self.verdict.problems.append(f"P8: threads are stuck: {self.pool!r}\n{_stacks()}")
        self.server.fault_rate = 0
        gc.collect()
        if not _soon(self._buried):
            self.verdict.problems.append("P9: children are stuck")
        return not stuck

    def _judge(self) -> None:
        problems, server, pool = self.verdict.problems, self.server, self.pool
        self._all_slots_usable()
        pool.close(10)
        left = pool.stats()
        if left["size"] or left["waiting"]:
            problems.append(f"P8: not empty after close: {left}")
        snapshot = pool.metrics.snapshot()
        if server.open or server.made != server.closed:
            problems.append(f"P8: {server.made} made, {server.closed} closed, {server.open} open")
        if snapshot.created != sum(snapshot.closed.values()):
            problems.append(f"P8: by the pool's count {snapshot.created} created, closed {snapshot.closed}")
        if server.twice:
            problems.append(f"P1: {server.twice} resources were closed twice")
        if server.most > self.options.size + self.extra:
            problems.append(f"P2: {server.most} open at once")
        if self.verdict.operations["timed out"]:
            problems.append(f"P8: {self.verdict.operations['timed out']} waited in vain")
        if not self.options.strikes:
            self._judge_orphans(snapshot.orphans)
        self.verdict.figures = {
            "made": server.made, "closed": server.closed, "most open": server.most,
            "orphans": snapshot.orphans, "audit repairs": snapshot.audit_repairs,
            "longest wait": round(snapshot.wait.max, 3), "errors": snapshot.errors,
            "reasons": snapshot.closed,
        }  # fmt: skip

    def _judge_orphans(self, orphans: int) -> None:
        """Each was dropped on purpose. A cycle's own destructor is in time to release its lease
        back where the token is of an older generation than the garbage collector examines.
        """
        dropped = Counter(self.dropped)
        if not dropped["Lease"] <= orphans <= dropped.total():
            self.verdict.problems.append(f"P8: forgotten on purpose: {dict(dropped)}; orphans: {orphans}")

    def _all_slots_usable(self) -> None:
        leases = []
        try:
            for _ in range(self.options.size):
                leases.append(self.pool.acquire(timeout=10))
        except PoolTimeout as error:
            self.verdict.problems.append(f"P8: a slot was lost: {error}")
        for lease in leases:
            lease.release()

    def _judge_machine(self, descriptors: int, threads: int) -> None:
        """No descriptor and no thread more than before, once the pool is dropped."""
        del self.pool
        self.threads.clear()
        gc.collect()
        _soon(lambda: _thread._count() <= threads)  # an idle worker lingers for 2 s
        if _thread._count() > threads:
            self.verdict.problems.append(f"P11: {_thread._count() - threads} threads left\n{_stacks()}")
        if not _soon(lambda: _descriptors() <= descriptors):
            self.verdict.problems.append(f"P8: {_descriptors() - descriptors} descriptors left")


@contextlib.contextmanager
def _conditions(options: Options, attack: Attack) -> Iterator[None]:
    """Set what the whole process shares, and put it back afterwards."""
    switch_interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    hooks = sys.unraisablehook, threading.excepthook
    # A log handler's lock is taken and released in Python code: a strike there leaves it locked
    # for ever, and every thread that logs hangs.
    logger = logging.getLogger("pooling")
    disabled, logger.disabled = logger.disabled, True
    audits = contextlib.nullcontext() if options.strikes else _no_audits()
    try:
        sys.unraisablehook, threading.excepthook = attack.unraisable, attack.died
        sys.setswitchinterval(options.switch_interval or switch_interval)
        gc.set_threshold(options.gc_threshold or threshold[0])
        with audits:
            yield
    finally:
        gc.set_threshold(*threshold)
        sys.setswitchinterval(switch_interval)
        sys.unraisablehook, threading.excepthook = hooks
        logger.disabled = disabled


@contextlib.contextmanager
def _no_audits() -> Iterator[None]:
    with mock.patch("pooling.core.checkout.AUDIT", _FOREVER), mock.patch("pooling.core.maintenance.AUDIT", _FOREVER):
        yield


def _descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/dev/fd"))


def _soon(reached: Callable[[], bool]) -> bool:
    """Wait until it is so; say whether it came to that."""
    limit = time.monotonic() + _PATIENCE
    while not reached():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def _stacks() -> str:
    """Where every thread is."""
    frames = sys._current_frames().items()
    return "\n".join(f"thread {ident}:\n{''.join(traceback.format_stack(frame)[-6:])}" for ident, frame in frames)


def main() -> None:
    """Run from the command line; exit 1 on a broken promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Options()
    parser.add_argument("--seconds", type=float, default=usual.seconds)
    parser.add_argument("--threads", type=int, default=usual.threads)
    parser.add_argument("--size", type=int, default=usual.size)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--switch-interval", type=float)
    parser.add_argument("--gc-threshold", type=int, help="allocations between collections")
    parser.add_argument("--careful", action="store_true", help="with validate and reset")
    parser.add_argument("--calm", action="store_true", help="without strikes, and without audits")
    parser.add_argument("--rounds", action="store_true", help="calm, and all wait for all after each loan")
    parser.add_argument("--forks", action="store_true", help="children that use the pool, too")
    verdict = Attack(Options(**vars(parser.parse_args()))).run()
    print(dict(verdict.operations), verdict.figures, sep="\n")
    for problem in verdict.problems[:10]:
        print("BROKEN", problem)
    sys.exit(bool(verdict.problems))


if __name__ == "__main__":
    main()
