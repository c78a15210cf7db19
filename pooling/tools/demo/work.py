"""One phase: threads that fetch quotes and store them, in a separate process.

It reads its job from standard input and writes progress and result to standard
output, see :mod:`pooling.tools.demo.child`.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil

from ...core.report.messages import format_error
from .child import answer, die_with_parent, requests_of_parent
from .job import Job
from .naive import Naive
from .place import Place
from .pooled import Pooled
from .quotes import Quote, symbol_of

__all__ = ["Phase", "main"]

_TICK = 0.05  # seconds between two memory samples
_TICKS_A_LINE = 5  # samples between two progress lines
_PATIENCE = 60.0  # seconds the last jobs may take after the end of the phase


class Phase:
    """The threads and their figures."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._way: Naive | Pooled = Pooled(job) if job.pooled else Naive(job)
        # One list for each thread, so that nothing is shared during the run.
        self._latencies: list[list[float]] = [[] for _ in range(job.threads)]
        self._error: str | None = None
        self._process = psutil.Process()
        self._start_memory = self._peak_memory = self._process.memory_info().rss

    def run(self) -> Mapping[str, Any]:
        """Do the work, report progress, and return the figures."""
        cpu, began = time.process_time(), time.perf_counter()
        with self._way:
            self._until = began + self._job.seconds
            threads = [
                threading.Thread(target=self._work, args=(index,), daemon=True)
                for index in range(self._job.threads)
            ]
            for thread in threads:
                thread.start()
            self._watch(threads, began)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            return self._figures(seconds, cpu)

    def _work(self, index: int) -> None:
        """Start jobs until time is over; any failure ends the phase and is reported."""
        latencies = self._latencies[index]
        for piece in itertools.count(index, self._job.threads):
            began = time.perf_counter()
            if began >= self._until or self._error is not None:
                return
            try:
                self._fetch_and_store(piece)
            except Exception as error:
                self._error = format_error(error)
                return
            latencies.append(time.perf_counter() - began)

    def _fetch_and_store(self, piece: int) -> None:
        symbol = symbol_of(self._job.seed, piece)
        quote = self._way.fetch(f"/quotes/{symbol}?piece={piece}")
        # Combines the request with the answer, so that an answer to another request is detected.
        self._way.store(Quote(quote.serial, piece, symbol, quote.price))

    def _watch(self, threads: list[threading.Thread], began: float) -> None:
        for tick in itertools.count(1):
            time.sleep(_TICK)
            self._peak_memory = max(self._peak_memory, self._process.memory_info().rss)
            if not any(thread.is_alive() for thread in threads):
                return
            now = time.perf_counter()
            if now > self._until + _PATIENCE:
                self._error = f"a job took more than {_PATIENCE:.0f} s"
                return
            if tick % _TICKS_A_LINE == 0:
                answer(done=sum(map(len, self._latencies)), seconds=now - began)

    def _figures(self, seconds: float, cpu: float) -> Mapping[str, Any]:
        latencies = sorted(itertools.chain.from_iterable(self._latencies))
        done = len(latencies)
        return {
            "done": done,
            "seconds": seconds,
            "mean": sum(latencies) / done if done else 0.0,
            "p99": latencies[math.ceil(0.99 * done) - 1] if done else 0.0,
            "database_connections": self._way.database_connections,
            "cpu": cpu,
            "memory": self._peak_memory - self._start_memory,
            "summary": self._way.summary(),
            "failure": self._error,
        }


def main() -> None:
    """Run the phase that the parent requests, and report its result."""
    order = next(requests_of_parent(), None)
    if order is None:
        return
    die_with_parent()
    # Use no proxy between two processes on one machine.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    place, stays = Place(*order.pop("place")), order.pop("stays")
    try:
        phase = Phase(Job(place=place, **order))
        result = phase.run()
    except Exception as error:
        answer(error=format_error(error))
    else:
        answer(result=result)
        while stays:  # the page shows what the pools did, which `phase` keeps; the parent kills it
            time.sleep(60)


if __name__ == "__main__":
    main()
