"""``python -m tests.performance.trouble [SCENE...]``: what pools do on a restart, after a fork, in a crowd, on a leak.

Prints the figures of the README's table "Why not ...", in about 5 minutes; a scene is ``restart``, ``fork``,
``starvation`` or ``leak``. Not a benchmark: the counts matter, not the times.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg_pool
import sqlalchemy
import urllib3

from pooling import HTTPPool, PostgresPool
from tests.servers import PostgresServer

Call = Callable[[int], int]
"""Sends a number to the server and returns what it answers."""


class Peer:
    """A pool of a size: `call` borrows once, `borrow` holds, `drop` forgets what it has acquired."""

    def __init__(self, call: Call, borrow: Callable[[], AbstractContextManager[Any]], drop: Callable[[], None]) -> None:
        self.call, self.borrow, self.drop = call, borrow, drop


def psycopg(dsn: str, size: int, **options: Any) -> Peer:
    pool = psycopg_pool.ConnectionPool(dsn, min_size=size, max_size=size, timeout=20, open=True, **options)
    pool.wait()

    def call(number: int) -> int:
        with pool.connection() as connection:
            return int(connection.execute("SELECT %s::int", (number,)).fetchone()[0])

    return Peer(call, pool.connection, lambda: pool.getconn() and None)


def engine(dsn: str, size: int, **options: Any) -> Peer:
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    made = sqlalchemy.create_engine(url, pool_size=size, max_overflow=0, pool_timeout=20, **options)

    def call(number: int) -> int:
        with made.connect() as connection:
            return int(connection.exec_driver_sql(f"SELECT {number}").scalar())

    return Peer(call, made.connect, lambda: made.connect() and None)


def ours(dsn: str, size: int) -> Peer:
    pool = PostgresPool(dsn, min_size=size, max_size=size, acquire_timeout=20)
    pool.open(20)
    return Peer(
        lambda number: int(pool.execute_query("SELECT %s::int", (number,))[0][0]),
        pool.acquire, lambda: pool.acquire() and None,
    )  # fmt: skip


def raw_urllib3(url: str, size: int) -> Peer:
    pool = urllib3.connection_from_url(url, maxsize=size, block=True, retries=False, timeout=20)

    @contextmanager
    def borrow() -> Iterator[Any]:
        response = pool.urlopen("GET", "/0", preload_content=False, pool_timeout=20)
        try:
            yield response
            response.read()  # else the connection cannot be used again
        finally:
            response.release_conn()

    def drop() -> None:
        pool.urlopen("GET", "/0", preload_content=False, pool_timeout=2)

    return Peer(lambda number: int(pool.request("GET", f"/{number}").data), borrow, drop)


def our_http(url: str, size: int) -> Peer:
    pool = HTTPPool(base_url=url, max_size=size, max_per_host=size, acquire_timeout=20)
    return Peer(
        lambda number: int(pool.get(f"/{number}").content),
        lambda: pool.request_context("GET", "/0"), lambda: pool.get("/0", stream=True) and None,
    )  # fmt: skip


class Echo(BaseHTTPRequestHandler):
    """Answers with its path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path[1:].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def serve(port: int, ready: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", port), Echo)
    server.daemon_threads = True
    ready.send(server.server_port)
    server.serve_forever()


class WebServer:
    """An HTTP server in a process of its own, which can be restarted."""

    port = 0

    def start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=(self.port, theirs), daemon=True)
        self.process.start()
        self.port = ours.recv()
        self.dsn = f"http://127.0.0.1:{self.port}"

    def restart(self) -> None:
        self.process.kill()
        self.process.join()
        self.start()


# -- scenes ---------------------------------------------------------------------------------


def together(number: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def restart(peer: Peer, server: Any) -> str:
    """8 idle connections, the server restarts, 8 calls one after the other."""
    barrier = threading.Barrier(8)

    def hold(number: int) -> None:
        with peer.borrow():
            barrier.wait(20)

    together(8, hold)
    server.restart()
    failed, longest = 0, 0.0
    for number in range(8):
        begin = time.monotonic()
        try:
            failed += peer.call(number) != number
        except Exception:
            failed += 1
        longest = max(longest, time.monotonic() - begin)
    return f"{failed} of 8 calls fail, the longest takes {longest:.1f} s"


def fork(peer: Peer, server: Any) -> str:
    """4 idle connections, 4 children, each makes calls for 3 s."""
    barrier = threading.Barrier(4)

    def hold(number: int) -> None:
        with peer.borrow():
            barrier.wait(20)

    together(4, hold)
    children = []
    for child in range(4):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            wrong = errors = calls = 0
            until = time.monotonic() + 3
            while time.monotonic() < until:
                sent = child * 1_000_000 + calls
                calls += 1
                try:
                    wrong += peer.call(sent) != sent
                except Exception:
                    errors += 1
                os.write(writing, f"{calls} {wrong} {errors}\n".encode())
            os.write(writing, b"end\n")
            os._exit(0)
        os.close(writing)
        children.append((pid, reading))
    time.sleep(8)
    wrong = errors = hung = 0
    for pid, reading in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reading) as lines:
            told = lines.read().split("\n")
        hung += "end" not in told
        figures = [line.split() for line in told if line.count(" ") == 2]
        wrong += int(figures[-1][1]) if figures else 0
        errors += int(figures[-1][2]) if figures else 0
    return f"{wrong} wrong answers, {errors} errors, {hung} of 4 children hang"


def starvation(peer: Peer, server: Any) -> str:
    """40 threads on 4 connections for 4 s; each holds for 4 ms and comes back at once."""
    leases, waits = [0] * 40, [0.0] * 40
    until = time.monotonic() + 4

    def work(number: int) -> None:
        while (begin := time.monotonic()) < until:
            with peer.borrow():
                waits[number] = max(waits[number], time.monotonic() - begin)
                time.sleep(0.004)
            leases[number] += 1

    together(40, work)
    few = sum(count <= 2 for count in leases)
    return f"{few} of 40 threads get at most 2 leases in 4 s; longest wait {max(waits):.2f} s"


def leak(peer: Peer, server: Any) -> str:
    """All 4 connections are acquired and forgotten; then one call."""
    for _ in range(4):
        peer.drop()
    gc.collect()
    result: list[str] = []

    def call(number: int) -> None:
        try:
            result.append("the next call works" if peer.call(7) == 7 else "a wrong answer")
        except Exception as error:
            result.append(f"the next call fails: {type(error).__name__}")

    threading.Thread(target=call, args=(0,), daemon=True).start()
    begin = time.monotonic()
    while not result and time.monotonic() < begin + 25:
        time.sleep(0.05)
    return result[0] if result else "the next call waits for ever"


SCENES = {"restart": (restart, 8), "fork": (fork, 4), "starvation": (starvation, 4), "leak": (leak, 4)}
PEERS: dict[str, tuple[type, Callable[[str, int], Peer]]] = {
    "psycopg_pool": (PostgresServer, psycopg),
    "psycopg_pool, check=": (
        PostgresServer, lambda dsn, size: psycopg(dsn, size, check=psycopg_pool.ConnectionPool.check_connection)
    ),
    "SQLAlchemy": (PostgresServer, engine),
    "SQLAlchemy, pool_pre_ping": (PostgresServer, lambda dsn, size: engine(dsn, size, pool_pre_ping=True)),
    "PostgresPool": (PostgresServer, ours),
    "urllib3, block=True": (WebServer, raw_urllib3),
    "HTTPPool": (WebServer, our_http),
}  # fmt: skip


def main() -> None:
    """Run each scene with each pool in a process of its own."""
    for scene in sys.argv[1:] or SCENES:
        play, size = SCENES[scene]
        print(f"{scene}: {play.__doc__}", flush=True)
        for name, (kind, make) in PEERS.items():
            pid = os.fork()
            if pid == 0:
                server = kind()
                try:
                    server.start()
                    print(f"    {name:26} {play(make(server.dsn, size), server)}", flush=True)
                finally:
                    (server.process.kill if isinstance(server, WebServer) else server.kill)()
                    os._exit(0)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main())
