"""Checks of any pool whose resources are connections."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import psutil

from ..._console import duration
from ...errors import PoolTimeout
from .outcome import Failed, Skipped
from .resource import TIMEOUT, Check, Target

__all__ = ["general_checks", "replaced", "wait_for"]

_THREADS, _LEASES, _SIZE = 8, 200, 4
_WAITERS = 10
_SHORT = 0.3  # seconds of a wait that is to time out
_LATE = 5.0  # seconds that it may take longer on a busy machine
_SETTLE = 0.1  # seconds until the end of a connection has arrived here

PATIENCE = 8.0
"""Seconds for open files to be gone, and for a child process. Internal."""


def general_checks(target: Target) -> dict[str, Check]:
    """Return the checks of this module, by name, for a target."""
    found: tuple[tuple[str, float, Callable[[Target], str]], ...] = (
        ("connect", 0.5, connect), ("acquire", 1.0, acquire), ("timeout", _SHORT, timeout), ("fairness", 0.5, fairness),
        ("fork", 0.5, fork), ("close", 1.0, close),
    )  # fmt: skip
    return {name: Check(name, seconds, lambda run=run: run(target)) for name, seconds, run in found}  # type: ignore[misc]


def connect(target: Target) -> str:
    """Open a connection, and use it."""
    pool = target.pool(max_size=1, max_attempts=1)  # one attempt: the checks are not to wait for an outage to end
    with contextlib.closing(pool):
        began = time.perf_counter()
        with pool.acquire() as resource:
            took = time.perf_counter() - began
            text = target.describe(resource)
            trips = []
            for _ in range(5):
                began = time.perf_counter()
                target.ping(resource)
                trips.append(time.perf_counter() - began)
    return f"{text}; connecting takes {duration(took)}, a round trip {duration(min(trips))}"


def acquire(target: Target) -> str:
    """Acquire and release from several threads; no resource has two holders, and there are never too many."""
    holders: set[int] = set()
    lock = threading.Lock()
    most, failures, wrong = [0], list[BaseException](), list[str]()

    def borrow(pool: Any) -> None:
        try:
            for _ in range(_LEASES // _THREADS):
                with pool.acquire() as resource:
                    with lock:
                        if id(resource) in holders:
                            wrong.append("two threads held one connection at once")
                        holders.add(id(resource))
                        most[0] = max(most[0], len(holders))
                    target.ping(resource)
                    with lock:
                        holders.discard(id(resource))
        except Exception as error:
            failures.append(error)

    with target.pool(max_size=_SIZE) as pool:
        began = time.perf_counter()
        threads = [threading.Thread(target=borrow, args=(pool,), daemon=True) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        in_use = pool.stats()["in_use"]
    if failures:
        raise failures[0]
    if wrong or most[0] > _SIZE or in_use:
        raise Failed(wrong[0] if wrong else f"{most[0]} at once of at most {_SIZE}, {in_use} still in use in the end")
    return f"{_LEASES} leases by {_THREADS} threads in {duration(took)}, at most {most[0]} of {_SIZE} at once"


def timeout(target: Target) -> str:
    """Wait for a resource that is in use."""
    with target.pool(max_size=1) as pool, pool.acquire():
        began = time.perf_counter()
        try:
            with pool.acquire(_SHORT):
                pass
        except PoolTimeout as error:
            took, text = time.perf_counter() - began, str(error)
        else:
            raise Failed("a second resource was lent, although max_size is 1")
    if took > _SHORT + _LATE:
        raise Failed(f"it took {duration(took)} to give up after {_SHORT:g} s")
    if "general.py" not in text:
        raise Failed(f"the error does not name the holder: {text}")
    return f"PoolTimeout after {duration(took)} with one of one in use; the error names the holder"


def fairness(target: Target) -> str:
    """Have threads wait in a known order, and note in which they are served."""
    served: list[int] = []

    def wait(pool: Any, number: int) -> None:
        with contextlib.suppress(PoolTimeout), pool.acquire(TIMEOUT):
            served.append(number)

    threads = []
    with target.pool(max_size=1) as pool:
        with pool.acquire():
            for number in range(_WAITERS):
                threads.append(threading.Thread(target=wait, args=(pool, number), daemon=True))
                threads[-1].start()
                wait_for(lambda count=number + 1: pool.stats()["waiting"] == count, "a thread does not wait")  # type: ignore[misc]
        for thread in threads:
            thread.join()
    if served != list(range(_WAITERS)):
        raise Failed(f"{_WAITERS} waiters were served in the order {served}, not in that of their arrival")
    return f"{_WAITERS} waiters were served in the order of their arrival"


def fork(target: Target) -> str:
    """Use a pool in a child process while the parent uses it too."""
    if not hasattr(os, "fork"):
        raise Skipped("this system has no fork")
    with target.pool(max_size=2) as pool:
        with pool.acquire() as resource:
            ours = target.link(resource)
        theirs = _in_child(lambda: _link_in(target, pool))
        with pool.acquire() as resource:
            target.ping(resource)
            if target.link(resource) != ours:
                raise Failed("the parent lost its connection when the child used the pool")
    if theirs == repr(ours) and ours is not None:
        raise Failed("the child used its parent's connection")
    return "a child process opened a connection of its own; the parent's still works"


def _link_in(target: Target, pool: Any) -> str:
    with pool.acquire(TIMEOUT) as resource:
        target.ping(resource)
        return repr(target.link(resource))


def _in_child(work: Callable[[], str]) -> str:
    """Run something in a child process; return its result."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of CPython 3.12+: a fork with threads is the point here
        child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            answer = "+" + work()
        except BaseException as error:
            answer = f"-{type(error).__name__}: {error}"
        os.write(writing, answer.encode()[:4000])
        os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], TIMEOUT + PATIENCE)
        answer = os.read(reading, 4096).decode() if ready else "-it did not answer"
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not answer.startswith("+"):
        raise Failed(f"in a child process: {answer[1:] or 'it ended'}")
    return answer[1:]


def close(target: Target) -> str:
    """Close a pool, and look at what is left in this process."""
    process: Any = psutil.Process()

    def count() -> int:
        return int(process.num_fds() if hasattr(process, "num_fds") else process.num_handles())

    before = count()
    pool = target.pool(max_size=_SIZE)
    leases = [pool.acquire() for _ in range(_SIZE)]
    for lease in leases:
        target.ping(lease.resource)
        lease.release()
    opened = count() - before
    pool.close(TIMEOUT)
    size = pool.stats()["size"]
    deadline = time.monotonic() + PATIENCE
    while count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    if size or count() > before:
        raise Failed(f"{size} connections and {count() - before} open files are left")
    return f"{_SIZE} connections with {opened} open files were opened and closed, nothing is left"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is true.

    Raises:
        Failed: It never was.
    """
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(what)
        time.sleep(0.002)


def replaced(target: Target, end: Callable[[Any, Any], None]) -> str:
    """Have the server end an idle connection of ours; the next borrower must get another one.

    Args:
        target: The target.
        end: Called with the identity of a connection, and with another connection that can end it.
    """
    with target.pool(max_size=2) as pool:
        with pool.acquire() as one, pool.acquire() as other:
            first, second = target.identity(one), target.identity(other)
            if first == second:
                raise Skipped("the server does not tell connections apart")
            end(first, other)
        time.sleep(_SETTLE)
        seen = []
        for _ in range(2):
            with pool.acquire() as one, pool.acquire() as other:
                for resource in (one, other):
                    target.ping(resource)
                    seen.append(target.identity(resource))
    if first in seen:
        raise Failed("the connection that was ended was lent again")
    return "the server ended one of our idle connections; the next borrower got a new one, without an error"
