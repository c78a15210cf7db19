"""Forked workers without a WSGI server: ``multiprocessing``, ``billiard`` (Celery's), ``ProcessPoolExecutor``.

Run as a program, it runs all phases and prints the complaints of each as JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from threading import Thread
from typing import Any

import psutil

from pooling import PostgresPool
from tests.integration.matrix.answers import MAX_SIZE, ROWS, SETTINGS
from tests.integration.matrix.load import token_of

WORKERS = 3
RECYCLE = 40  # tasks after which a worker is replaced
Answer = tuple[int, str, str, int, int]

# Created, opened and used by the parent, which continues to use it and always holds one lease.
pool = PostgresPool(os.environ["MATRIX_DSN"], SETTINGS, name="db")

_sleepers, _told = os.pipe()


def row(question: tuple[int, str]) -> Answer:
    """Return the database's answer, the number of leases in this worker, and its process id."""
    n, nonce = question
    with pool.connection() as conn:
        found: Any = conn.execute("SELECT n, token, %s::text FROM matrix WHERE n = %s", (nonce, n)).fetchone()
    return (*found, pool.stats()["in_use"], os.getpid())


def sleep(seconds: float) -> None:
    """Stay in the middle of a query, and announce the process id."""
    os.write(_told, str(os.getpid()).encode())
    pool.execute_query("SELECT pg_sleep(%s)", (seconds,))


def starve(seconds: float) -> None:
    """Stay in the middle of a wait."""
    with ExitStack() as stack:
        # In another thread: waiting for itself would log a warning.
        other = Thread(target=lambda: [stack.enter_context(pool.acquire()) for _ in range(MAX_SIZE)])
        other.start()
        other.join()
        pool.acquire(seconds).release()


def questions(number: int) -> list[tuple[int, str]]:
    return [(random.randint(1, ROWS), f"{random.getrandbits(64):x}") for _ in range(number)]


def check(asked: list[tuple[int, str]], answers: Iterable[Answer]) -> str:
    """Return complaints about these answers."""
    for (n, nonce), told in zip(asked, answers, strict=True):
        if told[:3] != (n, token_of(n), nonce):
            return f"asked {n} {nonce}: {told}"
        if told[3] != 0:
            return f"leases are left: {told}"
    if pool.execute_query("SELECT 1") != [(1,)]:
        return "the parent is answered wrongly"
    return ""


def children() -> set[int]:
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return found


def await_others(before: set[int]) -> str:
    """Wait until all workers have been replaced."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = children()
        if not now & before and len(now) >= WORKERS:
            return ""
        time.sleep(0.02)
    return f"workers are {children()}, before they were {before}"


def pool_of(make: Callable[..., Any], **more: Any) -> dict[str, str]:
    """The phases of ``multiprocessing.Pool`` and similar pools."""
    found = {}
    with make(WORKERS, maxtasksperchild=RECYCLE, **more) as workers:
        first = children()
        found["load"] = _ask(workers.map)
        found["recycled"] = _recycled(workers.map, first)
        workers.apply_async(sleep, (20.0,))
        victim = int(os.read(_sleepers, 20))  # a busy worker: an idle one holds a lock that all of them need
        os.kill(victim, signal.SIGKILL)
        found["kill"] = await_others({victim}) or _ask(workers.map)
        if more:
            for phase, task in (("wait cut", starve), ("query cut", sleep)):
                found[phase] = _soft_limit(workers, task) or _ask(workers.map)
            workers.close()
            workers.join()  # multiprocessing's would wait for ever for the killed task
    return found


def _ask(ask: Callable[..., Iterable[Answer]]) -> str:
    asked = questions(30)
    return check(asked, ask(row, asked))


def _recycled(ask: Callable[..., Iterable[Answer]], first: set[int]) -> str:
    for _ in range(30):
        complaint = _ask(ask)
        if complaint or not first <= children():
            return complaint
    return "no worker was recycled"


def _soft_limit(workers: Any, task: Callable[[float], None]) -> str:
    """Celery's soft time limit: an exception raised by a signal handler in the middle."""
    from billiard.exceptions import SoftTimeLimitExceeded

    try:
        workers.apply_async(task, (30.0,), soft_timeout=1).get(20)
    except SoftTimeLimitExceeded:
        return ""
    return "it was not cut off"


def executor(_: Any) -> dict[str, str]:
    """The phases of an executor, which breaks for good when a worker is killed."""
    found = {}
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork")) as workers:
        found["load"] = _ask(workers.map)
        slept = workers.submit(sleep, 20.0)
        os.kill(min(children()), signal.SIGKILL)
        try:
            slept.result(20)
            found["kill"] = "it did not break"
        except BrokenProcessPool:
            found["kill"] = ""
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork")) as workers:
        found["kill"] = found["kill"] or _ask(workers.map)
    return found


def billiard(_: Any) -> dict[str, str]:
    from billiard.pool import Pool

    return pool_of(Pool, enable_timeouts=True)


KINDS: dict[str, Callable[[Any], dict[str, str]]] = {
    "multiprocessing": lambda _: pool_of(multiprocessing.get_context("fork").Pool),
    "billiard": billiard,
    "ProcessPoolExecutor": executor,
}


def main() -> None:
    pool.open()
    assert pool.execute_query("SELECT 42") == [(42,)]
    with pool.connection() as mine:
        pid = mine.info.backend_pid
        found = KINDS[sys.argv[1]](None)
        row = mine.execute("SELECT pg_backend_pid()").fetchone()
        found["leases"] = "" if row == (pid,) else f"the parent's own connection answers {row}, not {pid}"
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
