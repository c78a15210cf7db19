"""When does HTTP/2 pay? Requests by threads over TLS, against Hypercorn."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pooling import HTTP2Pool, HTTPPool
from pooling.tools.demo.certificates import make_certificates

from . import figures
from .harness import Plan, interleave
from .table import Column, Table

__all__ = ["NAME", "run"]

NAME = "http2"
THREADS, SIZE = 20, 10
DELAYS = (0.0, 0.02)

APP = """
import asyncio
async def app(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.sleep(float(scope["query_string"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 200})
"""


@dataclass(frozen=True)
class Way:
    """One way to make requests: ``make`` returns a function that makes one, and one that closes."""

    name: str
    delay: float
    make: Callable[[str, str], tuple[Callable[[str], Any], Callable[[], Any]]]


def _pooled(kind: Any) -> Callable[[str, str], tuple[Callable[[str], Any], Callable[[], Any]]]:
    def make(url: str, authority: str) -> tuple[Callable[[str], Any], Callable[[], Any]]:
        pool = kind(base_url=url, verify=authority, max_size=SIZE)
        return pool.get, pool.close

    return make


def _one_client(url: str, authority: str) -> tuple[Callable[[str], Any], Callable[[], Any]]:
    import httpx

    client = httpx.Client(http2=True, base_url=url, verify=authority, limits=httpx.Limits(max_connections=SIZE))
    return client.get, client.close


WAYS = {
    "HTTPPool, HTTP/1.1": _pooled(HTTPPool),
    "HTTP2Pool": _pooled(HTTP2Pool),
    "one httpx.Client of all threads": _one_client,
}


def run(plan: Plan) -> Table:
    """Measure requests a second and client CPU for each way and delay."""
    rounds, seconds = plan.count(full=5, quick=2), plan.choose(2.0, 0.5)
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder)) as served:
        ways = [Way(name, delay, make) for delay in DELAYS for name, make in WAYS.items()]
        found = interleave(
            [_Named(f"{way.name} {way.delay}", way) for way in ways],
            rounds,
            lambda one: _measure(one.way, *served, seconds),
        )
    rows: list[dict[str, object]] = []
    for way in ways:
        samples = found.samples.get(f"{way.name} {way.delay}", [])
        if samples:
            columns = ("rate", "cpu", "p99", "errors")
            values = {key: figures.median([sample[key] for sample in samples]) for key in columns}
            rows.append({"delay": way.delay * 1e3, "way": way.name, **values})
    return Table(
        name=NAME,
        title=f"GET over TLS, {THREADS} threads, {SIZE} connections, {rounds} rounds",
        columns=(
            Column("delay", "server's delay, ms", ".0f"), Column("way", "way"), Column("rate", "requests/s", ",.0f"),
            Column("cpu", "client CPU µs", ",.0f"), Column("p99", "p99 ms", ",.1f"), Column("errors", "errors", ",.0f"),
        ),
        rows=rows,
        notes=("one httpx.Client: its threads share the streams of one connection",),
        failures=found.failures,
    )  # fmt: skip


@dataclass(frozen=True)
class _Named:
    name: str
    way: Way


def _measure(way: Way, url: str, authority: str, seconds: float) -> dict[str, float]:
    get, close = way.make(url, authority)
    path = f"/?{way.delay}"
    durations: list[float] = []
    errors: list[BaseException] = []

    def work() -> None:
        while time.perf_counter() < end:
            began = time.perf_counter()
            try:
                get(path)
            except Exception as error:
                errors.append(error)
            durations.append(time.perf_counter() - began)

    try:
        end = time.perf_counter() + 0.3
        _crowd(work)  # opens the connections
        durations.clear()
        errors.clear()
        began, used = time.perf_counter(), time.process_time()
        end = began + seconds
        _crowd(work)
        took, used = time.perf_counter() - began, time.process_time() - used
    finally:
        close()
    return {
        "rate": len(durations) / took, "cpu": used / len(durations) * 1e6, "errors": len(errors),
        "p99": sorted(durations)[int(len(durations) * 0.99)] * 1e3,
    }  # fmt: skip


def _crowd(work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[tuple[str, str]]:
    made = make_certificates(folder)
    assert made is not None, "nothing here makes certificates; pip install cryptography"
    (folder / "app.py").write_text(APP)
    command = [
        sys.executable, "-m", "hypercorn", "--bind", "127.0.0.1:0", "--certfile", str(made.certificate),
        "--keyfile", str(made.key), "app:app",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        try:
            url = next(line.split(" on ")[1].split()[0] for line in process.stderr if "Running on" in line)
            yield url, str(made.authority)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
