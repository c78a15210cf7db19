"""Processes with a budget, against a real server; and what counts the connections that it sees.

`Worker` starts this module as a program: a pool with a budget, and threads that
use it. A worker is told how many of its threads shall work, and says what
share it has and which errors its threads got.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

from tests.servers import PostgresServer

__all__ = ["Sampler", "Worker", "address", "prepare", "until"]

ROOT = Path(__file__).parents[2]
ROLE, DATABASE = "app", "shop"


def prepare(server: PostgresServer) -> str:
    """Create the role of the workers and its database; return the address."""
    with server.connect(autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {ROLE} LOGIN")
        admin.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    return address(server)


def address(server: PostgresServer, host: str = "127.0.0.1") -> str:
    """Return the address for the workers."""
    return f"postgresql://{ROLE}@{host}:{server.port}/{DATABASE}"


def until(condition: Callable[[], object], patience: float) -> float:
    """Wait for something to come true; return the seconds it took, or fail."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + patience, f"not within {patience:g} s"
        time.sleep(0.1)
    return time.monotonic() - began


class Sampler:
    """Counts the connections of the workers' role every 20 ms, from the server's own list."""

    def __init__(self, server: PostgresServer, total: int) -> None:
        self._server = server
        self.total = total
        self.samples = self.most = 0
        self.above: list[tuple[float, int]] = []
        self._began = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                with self._server.connect(autocommit=True) as admin:
                    self._sample(admin)
            except psycopg.OperationalError:  # it restarts
                time.sleep(0.02)

    def _sample(self, admin: psycopg.Connection[Any]) -> None:
        while not self._end.wait(0.02):
            row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", (ROLE,)).fetchone()
            assert row is not None
            self.samples += 1
            self.most = max(self.most, row[0])
            if row[0] > self.total:
                self.above.append((round(time.monotonic() - self._began, 2), row[0]))

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()


class Worker:
    """A process with a pool and a budget.

    Args:
        dsn: Of the server.
        budget: As for `FleetBudget.parse`.
        threads: How many work at first.
        hold: Seconds of each lease.
        prefix: Of the command, to run it elsewhere.
        environ: Further environment variables.
    """

    def __init__(
        self, dsn: str, budget: str, threads: int = 0, hold: float = 0.02, prefix: Sequence[str] = (),
        environ: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.faults.fleet", dsn, budget, str(threads), str(hold)], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environ or {})},
        )  # fmt: skip
        self.alive = True

    @property
    def pid(self) -> int:
        return self.process.pid

    def _say(self, text: str) -> None:
        assert self.process.stdin is not None
        print(text, file=self.process.stdin, flush=True)

    def want(self, threads: int) -> None:
        """Let so many threads work."""
        self._say(f"want {threads}")

    def stats(self) -> dict[str, Any]:
        """Return what it has done and which share it has."""
        self._say("stats")
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    @property
    def share(self) -> int:
        share: int = self.stats()["budget"]["share"]
        return share

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, in the middle of whatever it does."""
        if self.alive:
            self.alive = False
            self.process.kill()
            self._close()

    def leave(self) -> dict[str, Any]:
        """Let it end by itself; return what it has done."""
        found = self.stats()
        self.alive = False
        self._say("leave")
        assert self.process.wait(30) == 0
        self._close()
        return found

    def _close(self) -> None:
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout):
            if file is not None:
                file.close()


def errors_of(workers: Iterable[Worker]) -> dict[str, int]:
    """Return the errors that the threads of the workers got."""
    found: Counter[str] = Counter()
    for worker in workers:
        found.update(worker.stats()["errors"])
    return dict(found)


class _Work:
    """The program."""

    def __init__(self, dsn: str, budget: str, threads: int, hold: float) -> None:
        from pooling import PostgresPool

        self.pool = PostgresPool(dsn, min_size=0, max_size=12, acquire_timeout=60.0, name="fleet", budget=budget)
        self.wanted, self.hold = threads, hold
        self.done = 0
        self.errors: Counter[str] = Counter()

    def work(self, number: int) -> None:
        while True:
            if number >= self.wanted:
                time.sleep(0.05)
                continue
            try:
                with self.pool.connection() as conn:
                    conn.execute("SELECT pg_sleep(%s)", (self.hold,))
                self.done += 1
            except Exception as error:
                self.errors[f"{type(error).__name__}: {error}"[:300]] += 1
                time.sleep(0.1)

    def run(self) -> None:
        for number in range(12):
            threading.Thread(target=self.work, args=(number,), daemon=True).start()
        for line in sys.stdin:
            word, _, rest = line.strip().partition(" ")
            if word == "want":
                self.wanted = int(rest)
            elif word == "stats":
                print(json.dumps({**self.pool.stats(), "done": self.done, "errors": self.errors}), flush=True)
            else:
                self.wanted = 0
                time.sleep(0.3)
                break


if __name__ == "__main__":
    _Work(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])).run()
