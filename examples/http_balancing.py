"""Balances requests over three servers, of which one is slow, and one fails for a while.

``python examples/http_balancing.py`` starts the servers itself.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

if __name__ == "__main__":  # from a checkout, too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pooling import Balancing, HTTPPool


class Server(ThreadingHTTPServer):
    """One server of the service."""

    daemon_threads = True

    def __init__(self, name: str, delay: float) -> None:
        super().__init__(("127.0.0.1", 0), Quotes)
        self.name, self.delay, self.broken = name, delay, False
        self.url = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


class Quotes(BaseHTTPRequestHandler):
    """Answers after the delay of its server, or fails at once."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if not self.server.broken:
            time.sleep(self.server.delay)
        body = self.server.name.encode()
        self.send_response(503 if self.server.broken else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def ask(http: HTTPPool, seconds: float) -> Counter[str]:
    """Make requests in four threads; return how many each server has answered."""
    end = time.monotonic() + seconds
    answers: Counter[str] = Counter()

    def work() -> None:
        while time.monotonic() < end:
            response = http.get("/quotes/ACME")
            response.raise_for_status()
            answers[response.text] += 1

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work) for _ in range(4)]:
            done.result()
    return answers


def show(title: str, answers: Counter[str]) -> None:
    """Print the part of each server."""
    parts = (f"{name} {number / answers.total():.0%}" for name, number in sorted(answers.items()))
    print(f"{title}: {', '.join(parts)}")


def main() -> None:
    """Ask while all work, while one fails, and when it is back."""
    logging.basicConfig(stream=sys.stdout, format="  log: %(message)s")
    with ExitStack() as stack:
        servers = [Server(name, delay) for name, delay in (("a", 0.01), ("b", 0.01), ("slow", 0.1))]
        for server in servers:
            stack.callback(server.server_close)
        policy = Balancing(eject_for=1, eject_for_max=1, slow_start=1)
        http = HTTPPool(base_urls=[one.url for one in servers], balancing=policy, name="quotes")
        stack.enter_context(http)
        show("all work", ask(http, 2))
        servers[0].broken = True
        show("a fails", ask(http, 2))
        servers[0].broken = False
        ask(http, 3)
        show("a is back", ask(http, 2))
        for url, backend in http.stats()["backends"].items():
            print(f"{url}: {backend['state']}, {backend['failures']} failures, ejected {backend['ejections']} time(s)")
    print("no request failed")


if __name__ == "__main__":
    main()
