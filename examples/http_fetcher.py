"""Fetches many URLs with several threads and shows progress; the pool limits concurrent requests to each host.

``python examples/http_fetcher.py URL...``; without arguments it fetches two
hundred pages from its own service.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import requests

if __name__ == "__main__":  # from a checkout, too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pooling import HTTPPool, HTTPTimeout, PoolSettings


def fetch_all(http: HTTPPool, urls: Iterable[str], threads: int = 20) -> Iterator[tuple[str, requests.Response | None]]:
    """Yield each URL with its response as it arrives; ``None`` if the request failed."""
    with ThreadPoolExecutor(threads) as executor:
        futures = {executor.submit(http.get, url): url for url in urls}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except requests.RequestException as error:
                print(f"\n{futures[future]}: {error}", file=sys.stderr)
                yield futures[future], None


def run(urls: list[str]) -> None:
    """Fetch all URLs and show the progress."""
    settings = PoolSettings(min_size=0, max_size=50)
    limits = HTTPTimeout(connect=5, read=30, total=60)  # no URL ever takes longer than a minute
    with HTTPPool(settings, max_per_host=10, timeout=limits, retry=3, name="fetcher") as http:
        size = 0
        for number, (_, response) in enumerate(fetch_all(http, urls), 1):
            size += 0 if response is None else len(response.content)
            print(f"\r{number} of {len(urls)}, {size:,} bytes", end="", flush=True)
        print()
        for host in http.metrics.hosts():
            print(
                f"{host.host}: {host.requests} requests over {host.opened} sockets, "
                f"p50 {host.latency.p50 * 1e3:.0f} ms, p99 {host.latency.p99 * 1e3:.0f} ms, {host.retries} retries"
            )


class Pages(BaseHTTPRequestHandler):
    """A slow service with some pages."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(0.01)
        body = self.path.encode() * 100
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    """Fetch the given URLs, or the pages of our own service."""
    if sys.argv[1:]:
        run(sys.argv[1:])
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        run([f"http://127.0.0.1:{server.server_port}/page/{number}" for number in range(200)])
        server.shutdown()


if __name__ == "__main__":
    main()
