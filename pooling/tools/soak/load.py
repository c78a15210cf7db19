"""The pool under load: borrowing threads, and operations on the pool."""

from __future__ import annotations

import gc
import itertools
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...core.pool import Pool
from ...errors import PoolTimeout
from ...settings import PoolSettings
from .target import Target, WrongReply

__all__ = ["Load", "TIMEOUT"]

TIMEOUT = 10.0
"""Seconds a borrower waits at most."""

_LATE = 1.0  # seconds beyond it that an acquire may take without violating P4
_LONGEST_USE = 0.002  # longest time in seconds that a resource is held after its use
_STEER_EVERY = 0.5  # seconds


class Load:
    """The threads and the pool.

    Args:
        target: The resources.
        seconds: Duration of the run, from which lifetimes are derived.
        threads: Number of borrowing threads.
        max_size: ``max_size`` of the pool.
        seed: Determines the actions of the threads.
    """

    def __init__(self, target: Target, seconds: float, threads: int, max_size: int, seed: int) -> None:
        age = min(60.0, max(0.5, seconds / 20))
        settings = PoolSettings(
            min_size=1, max_size=max_size, acquire_timeout=TIMEOUT, validation_interval=0.05,
            max_lifetime=age, idle_timeout=age / 2, keepalive_interval=1.0,
        )  # fmt: skip
        self.target, self.max_size = target, max_size
        self.pool: Pool[Any] = Pool(adapter=target.adapter, settings=settings, name="soak")
        self.metrics = self.pool.metrics
        self.slowest = 0.0  # longest acquire in seconds
        self.mistakes: list[str] = []  # only the first few
        self._stop = False
        self._dice = random.Random(seed)
        self._requests = itertools.count()
        self._holders: dict[int, object] = {}  # the current holder by the id of the resource
        # One counter for each thread, so that nothing is shared during the run.
        self._counts: list[Counter[str]] = [Counter() for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._borrow, args=(count, random.Random(f"{seed} {number}")), daemon=True)
            for number, count in enumerate(self._counts)
        ]

    def start(self) -> None:
        """Start the threads."""
        self._steer_at = time.monotonic() + _STEER_EVERY
        for thread in self._threads:
            thread.start()

    def stop(self) -> int:
        """Stop all threads after their current action; return how many are stuck."""
        self.pool.resize(self.max_size)
        self._stop = True
        limit = time.monotonic() + TIMEOUT + 5
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < limit:
                thread.join(0.1)
                gc.collect()
        return sum(thread.is_alive() for thread in self._threads)

    def count(self, what: str) -> int:
        """Return how often something happened, in all threads together."""
        return sum(count[what] for count in self._counts)

    def failures(self) -> dict[str, int]:
        """Return the borrowers' errors by kind: mostly the server's faults."""
        total: Counter[str] = Counter()
        for count in self._counts:
            total.update({what[1:]: number for what, number in list(count.items()) if what[0] == "!"})
        return dict(total)

    # -- the borrowers ----------------------------------------------------------

    def _borrow(self, count: Counter[str], dice: random.Random) -> None:
        while not self._stop:
            asked = time.monotonic()
            try:
                self._one(count, dice)
            except WrongReply as error:
                count["wrong"] += 1
                self._mistake(str(error))
            except PoolTimeout as error:
                count["unserved" if error.__cause__ is None else "!server down"] += 1
                if error.__cause__ is None:
                    self._mistake(str(error))
                if time.monotonic() - asked > TIMEOUT + _LATE:
                    self._mistake(f"acquire took {time.monotonic() - asked:.1f} s to give up")
            except Exception as error:
                count[f"!{type(error).__name__}"] += 1

    def _one(self, count: Counter[str], dice: random.Random) -> None:
        asked = time.monotonic()
        lease = self.pool.acquire()
        self.slowest = max(self.slowest, time.monotonic() - asked)
        chance = dice.random()
        if chance < 0.002:
            return  # leaked: it is reclaimed at garbage collection (P8)
        if chance < 0.004:
            self.target.ledger.close_detached(lease.detach)
        elif chance < 0.01:
            lease.discard()
        else:
            with lease as resource:
                self._use(resource, count, dice)
            count["leases"] += 1

    def _use(self, resource: Any, count: Counter[str], dice: random.Random) -> None:
        me = object()
        self._holders[id(resource)] = me
        try:
            self.target.use(resource, f"request {next(self._requests)}")
            count["replies"] += 1
            if dice.random() < 0.5:
                time.sleep(dice.random() * _LONGEST_USE)
        finally:
            if self._holders.pop(id(resource), None) is not me:
                count["shared"] += 1
                self._mistake("two borrowers held one resource at once")

    def _mistake(self, text: str) -> None:
        if len(self.mistakes) < 5:
            self.mistakes.append(text)

    # -- operations on the pool ---------------------------------------------------

    def steer(self) -> None:
        """Run a random operation on the pool, if one is due."""
        if time.monotonic() < self._steer_at:
            return
        self._steer_at = time.monotonic() + _STEER_EVERY
        pool = self.pool
        actions: list[Callable[[], object]] = [
            pool.drain, pool.check, gc.collect, self._pause,
            lambda: pool.resize(self._dice.randint(math.ceil(self.max_size / 2), self.max_size)),
        ]  # fmt: skip
        self._dice.choice(actions)()

    def _pause(self) -> None:
        self.pool.pause()
        time.sleep(0.01)
        self.pool.resume()

    # -- the end -----------------------------------------------------------------

    def close(self) -> dict[str, Any]:
        """Close and drop the pool; return its last statistics."""
        gc.collect()  # leaked leases
        self.pool.close(TIMEOUT)
        stats = self.pool.stats()
        del self.pool
        gc.collect()
        return stats
