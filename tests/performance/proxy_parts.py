"""The two processes around the benchmark of the reverse proxy: the proxy, and its many clients.

``python -m tests.performance.proxy_parts proxy UPSTREAM BUNDLE yes|no`` serves, and
``... clients PORT NUMBER SECONDS`` asks and prints what it measured as JSON.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
import time
from typing import Any
from wsgiref.simple_server import make_server

import psutil

from pooling import HTTPPool, HTTPTimeout, PoolSettings

from .http_server import CHECKOUT

__all__ = ["PATIENCE"]

PATIENCE = 60.0  # seconds after which a client gives up: an error


def _proxy(upstream: str, bundle: str, pooled: str) -> None:
    spec = importlib.util.spec_from_file_location("reverse_proxy", CHECKOUT / "examples" / "reverse_proxy.py")
    assert spec is not None and spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    http = HTTPPool(
        PoolSettings(min_size=0, max_size=100, acquire_timeout=PATIENCE), verify=bundle, max_per_host=100,
        timeout=HTTPTimeout(connect=PATIENCE, read=PATIENCE), trust_env=False, pooled=pooled == "yes",
    )  # fmt: skip
    process = psutil.Process()
    before = process.memory_info().rss
    server = make_server("127.0.0.1", 0, example.ReverseProxy(upstream, http), example.Server, example.Quiet)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"cpu": time.process_time(), "memory": process.memory_info().rss - before}), flush=True)


class _Clients:
    def __init__(self, port: int, seconds: float) -> None:
        self._port, self._end = port, time.monotonic() + seconds
        self.times: list[float] = []
        self.errors = 0

    async def run(self, number: int) -> None:
        await asyncio.gather(*(self.client() for _ in range(number)))

    async def client(self) -> None:
        while time.monotonic() < self._end:
            began = time.monotonic()
            try:
                good = await asyncio.wait_for(self.ask(), PATIENCE)
            except (OSError, asyncio.TimeoutError):
                good = False
            if good:
                self.times.append(time.monotonic() - began)
            else:
                self.errors += 1

    async def ask(self) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"GET /quote HTTP/1.0\r\nHost: proxy\r\n\r\n")
            answer = await reader.read()
            return answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")) and answer.endswith(b"12.5}")
        finally:
            writer.close()


def _clients(port: str, number: str, seconds: str) -> None:
    clients = _Clients(int(port), float(seconds))
    began = time.monotonic()
    asyncio.run(clients.run(int(number)))
    elapsed = time.monotonic() - began
    times = sorted(clients.times) or [float("nan")]
    print(json.dumps({
        "rate": len(clients.times) / elapsed, "mean_ms": sum(times) / len(times) * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3, "answers": len(clients.times), "errors": clients.errors,
    }))  # fmt: skip


if __name__ == "__main__":
    {"proxy": _proxy, "clients": _clients}[sys.argv[1]](*sys.argv[2:])
