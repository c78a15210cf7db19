"""An attack on a pool by everything at once: threads, faults, asynchronous exceptions, the
collector, resizes, drains. Ends with a verdict: what of P1, P2 and P8 did not hold.

Run by hand for longer than the test does: ``python -m tests.faults.stress --seconds 60``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from pooling import LeaseError, Pool, PoolError, PoolSettings, PoolTimeout
from pooling.settings import Backoff

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]


class Boom(BaseException):
    """What strikes a thread at a random moment."""


class Resource:
    """Knows who uses it, and whether it was closed."""

    def __init__(self) -> None:
        self.owner: object = None
        self.closed = 0


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
            resource.closed += 1
            self.open -= 1
            self.closed += 1
        if random.random() < self.fault_rate:
            raise OSError("close")

    def validate(self, resource: Resource) -> None:
        if random.random() < self.fault_rate:
            raise OSError("dead")

    def reset(self, resource: Resource) -> None:
        if random.random() < self.fault_rate:
            raise OSError("reset")


class Cycle:
    """A lease and its user in a cycle: the collector runs the destructor, which releases."""

    def __init__(self, lease: object) -> None:
        self.lease = lease
        self.me = self

    def __del__(self) -> None:
        try:
            self.lease.release()  # type: ignore[attr-defined]
        except LeaseError:
            pass


@dataclass
class Verdict:
    """What was seen; `problems` is empty when every promise held."""

    operations: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)


class Attack:
    """One run of it."""

    def __init__(self, seconds: float, threads: int, size: int, careful: bool, seed: int) -> None:
        random.seed(seed)
        self.seconds, self.size = seconds, size
        self.server = Server(0.05)
        self.extra = 2  # how much a resize adds at most
        self.pool: Pool[Resource] = Pool(
            self.server.connect,
            close=self.server.close,
            validate=self.server.validate if careful else None,
            reset=self.server.reset if careful else None,
            settings=PoolSettings(
                min_size=1, max_size=size, max_lifetime=0.05, idle_timeout=0.02,
                acquire_timeout=2.0, validation_interval=0.001,
                backoff=Backoff(initial=0.001, maximum=0.02, probe_interval=0.02),
            ),
            name="stress",
        )
        self.stop = False
        self.verdict = Verdict()
        self.threads = [threading.Thread(target=self._borrow, daemon=True) for _ in range(threads)]

    def run(self) -> Verdict:
        """Attack, let it calm down, and judge."""
        sys.unraisablehook = self._unraisable
        for thread in self.threads:
            thread.start()
        end = time.monotonic() + self.seconds
        turn = 0
        while time.monotonic() < end:
            time.sleep(0.002)
            victim = random.choice(self.threads)
            if victim.ident is not None and victim.is_alive():
                _raise_in(victim.ident, Boom)
                self.verdict.operations["struck"] += 1
            turn += 1
            if turn % 20 == 0:
                self._steer()
        self._judge()
        sys.unraisablehook = sys.__unraisablehook__
        return self.verdict

    def _unraisable(self, what: sys.UnraisableHookArgs) -> None:
        """A strike hit a destructor, or a worker at birth, which CPython takes for its parent."""
        if isinstance(what.exc_value, Boom):
            self.verdict.operations["struck elsewhere"] += 1
        else:
            self.verdict.problems.append(f"ignored in {what.object!r}: {what.exc_value!r}")

    def _steer(self) -> None:
        chance = random.random()
        if chance < 0.3:
            self.pool.drain()
        elif chance < 0.6:
            self.pool.resize(self.size + random.randint(0, self.extra))
        elif chance < 0.7:
            self.pool.pause()
            self.pool.resume()
        else:
            gc.collect()

    # -- the borrowers ------------------------------------------------------------

    def _borrow(self) -> None:
        while not self.stop:
            try:
                self._guarded()
            except Boom:
                continue

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
            elif chance < 0.97:
                pool.acquire()  # and forgotten
            elif chance < 0.985:
                Cycle(pool.acquire())
            else:
                with pool.acquire():
                    raise ValueError
        except ValueError:
            pass
        except PoolTimeout:
            count["late" if chance >= 0.93 and chance < 0.95 else "timed out"] += 1
        except (PoolError, LeaseError) as error:
            self.verdict.problems.append(f"unexpected {error!r}")

    def _use(self, resource: Resource, chance: float) -> None:
        if resource.closed:
            self.verdict.problems.append("P6: a closed resource was lent")
        me = object()
        resource.owner = me
        if chance < 0.5:
            time.sleep(random.random() * 3e-4)
        if resource.owner is not me:
            self.verdict.problems.append("P1: two borrowers of one resource")

    # -- the verdict -----------------------------------------------------------------

    def _judge(self) -> None:
        problems, server, pool = self.verdict.problems, self.server, self.pool
        pool.resize(self.size)
        self.stop = True
        patience = time.monotonic() + 20
        for thread in self.threads:
            while thread.is_alive() and time.monotonic() < patience:
                thread.join(0.1)
                gc.collect()  # a lease forgotten in a cycle is not found while all wait
        if any(thread.is_alive() for thread in self.threads):
            problems.append(f"P8: threads are stuck: {pool!r}")
            return
        server.fault_rate = 0
        gc.collect()
        self._all_slots_usable()
        pool.close(10)
        left = pool.stats()
        if left["size"] or left["waiting"]:
            problems.append(f"P8: not empty after close: {left}")
        if server.open or server.made != server.closed:
            problems.append(f"P8: {server.made} made, {server.closed} closed, {server.open} open")
        if server.twice:
            problems.append(f"P1: {server.twice} resources were closed twice")
        if server.most > self.size + self.extra:
            problems.append(f"P2: {server.most} open at once")
        if self.verdict.operations["timed out"]:
            problems.append(f"P8: {self.verdict.operations['timed out']} waited in vain")
        snapshot = pool.metrics.snapshot()
        self.verdict.figures = {
            "made": server.made, "closed": server.closed, "most open": server.most,
            "orphans": snapshot.orphans, "audit repairs": snapshot.audit_repairs,
            "longest wait": round(snapshot.wait.max, 3), "errors": snapshot.errors,
            "reasons": snapshot.closed,
        }

    def _all_slots_usable(self) -> None:
        leases = []
        try:
            for _ in range(self.size):
                leases.append(self.pool.acquire(timeout=10))
        except PoolTimeout as error:
            self.verdict.problems.append(f"P8: a slot was lost: {error}")
        for lease in leases:
            lease.release()


def main() -> None:
    """Run from the command line; exit 1 on a broken promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--switch-interval", type=float, default=1e-6)
    parser.add_argument("--gc-threshold", type=int, default=0, help="allocations between collections")
    parser.add_argument("--careful", action="store_true", help="with validate and reset")
    options = parser.parse_args()
    sys.setswitchinterval(options.switch_interval)
    if options.gc_threshold:
        gc.set_threshold(options.gc_threshold)
    attack = Attack(options.seconds, options.threads, options.size, options.careful, options.seed)
    verdict = attack.run()
    print(dict(verdict.operations), verdict.figures, sep="\n")
    for problem in verdict.problems[:10]:
        print("BROKEN", problem)
    sys.exit(bool(verdict.problems))


if __name__ == "__main__":
    main()
