"""One way to make requests, measured in a process of its own.

``python -m tests.performance.http_client WAY URL BUNDLE THREADS SECONDS`` prints
what it measured as JSON. Memory is what the process has grown by since its
imports; processor time is the client's alone.
"""

from __future__ import annotations

import importlib.util
import json
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import requests
import requests.adapters
import urllib3

__all__ = ["WAYS", "installed"]

Fetch = Callable[[], int]
LEAD = 0.5  # seconds before counting begins: all have connected by then


def _pooling(url: str, bundle: str, threads: int) -> Fetch:
    from pooling import HTTPPool, PoolSettings

    settings = PoolSettings(min_size=0, max_size=threads)
    http = HTTPPool(settings, verify=bundle, max_per_host=threads)
    return lambda: http.get(url).status_code


def _pooling_session(url: str, bundle: str, threads: int) -> Fetch:
    from pooling import HTTPPool, PoolSettings

    http = HTTPPool(PoolSettings(min_size=0, max_size=threads), verify=bundle, max_per_host=threads)

    def fetch() -> int:
        with http.acquire() as session:
            return session.get(url).status_code

    return fetch


def _new_session(url: str, bundle: str, threads: int) -> Fetch:
    def fetch() -> int:
        with requests.Session() as session:
            return session.get(url, verify=bundle).status_code

    return fetch


def _shared(url: str, bundle: str, threads: int) -> Fetch:
    session = requests.Session()
    return lambda: session.get(url, verify=bundle).status_code


def _shared_wide(url: str, bundle: str, threads: int) -> Fetch:
    session = requests.Session()
    session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=threads))
    return lambda: session.get(url, verify=bundle).status_code


class _OneContext(requests.adapters.HTTPAdapter):
    """What an expert would do: the list of trusted certificates is read once."""

    def __init__(self, bundle: str, threads: int) -> None:
        self._context = ssl.create_default_context(cafile=bundle)
        super().__init__(pool_maxsize=threads)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self._context, "cert_reqs": "CERT_REQUIRED"}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        pass


def _shared_one_context(url: str, bundle: str, threads: int) -> Fetch:
    session = requests.Session()
    session.mount("https://", _OneContext(bundle, threads))
    return lambda: session.get(url).status_code


def _session_per_thread(url: str, bundle: str, threads: int) -> Fetch:
    mine = threading.local()

    def fetch() -> int:
        try:
            session: requests.Session = mine.session
        except AttributeError:
            session = mine.session = requests.Session()
        return session.get(url, verify=bundle).status_code

    return fetch


def _httpx(url: str, bundle: str, threads: int) -> Fetch:
    import httpx

    limits = httpx.Limits(max_connections=threads, max_keepalive_connections=threads)
    client = httpx.Client(verify=ssl.create_default_context(cafile=bundle), limits=limits)
    return lambda: int(client.get(url).status_code)


def _urllib3(url: str, bundle: str, threads: int) -> Fetch:
    manager = urllib3.PoolManager(maxsize=threads, ca_certs=bundle)
    return lambda: manager.request("GET", url).status


WAYS: dict[str, Callable[[str, str, int], Fetch]] = {
    "pooling, get()": _pooling,
    "pooling, acquire()": _pooling_session,
    "a new Session each": _new_session,
    "one Session": _shared,
    "one Session, pool_maxsize": _shared_wide,
    "one Session, one context": _shared_one_context,
    "a Session per thread": _session_per_thread,
    "httpx.Client": _httpx,
    "urllib3.PoolManager": _urllib3,
}
"""By name; those on requests' side that last are what we are compared with."""


def installed(way: str) -> bool:
    """Say whether it can be measured here."""
    return way != "httpx.Client" or importlib.util.find_spec("httpx") is not None


def _measure(way: str, url: str, bundle: str, threads: int, seconds: float) -> dict[str, float]:
    fetch = WAYS[way]
    __import__("httpx" if way.startswith("httpx") else "pooling.adapters.http" if "pooling" in way else "requests")
    process = psutil.Process()
    before = process.memory_info().rss
    call = fetch(url, bundle, threads)
    counting, running = False, True
    times: list[float] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while running:
                began = time.perf_counter()
                status = call()
                if status != 200:
                    raise RuntimeError(f"status {status}")
                if counting:
                    times.append(time.perf_counter() - began)
        except BaseException as error:
            failed.append(error)

    crew = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for thread in crew:
        thread.start()
    time.sleep(LEAD)
    cpu, began, memory = time.process_time(), time.perf_counter(), 0
    counting = True
    while time.perf_counter() - began < seconds:
        time.sleep(0.05)
        memory = max(memory, process.memory_info().rss)
    counting = False
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    running = False
    for thread in crew:
        thread.join(10)
    if failed:
        raise failed[0]
    if not times:
        raise RuntimeError("not one request was answered in that time")
    times.sort()
    return {
        "rate": len(times) / elapsed,
        "mean_ms": sum(times) / len(times) * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
        "cpu_us": cpu / len(times) * 1e6,
        "memory_mb": (memory - before) / 1e6,
    }


if __name__ == "__main__":
    _way, _url, _bundle, _threads, _seconds = sys.argv[1:]
    print(json.dumps(_measure(_way, _url, _bundle, int(_threads), float(_seconds))))
