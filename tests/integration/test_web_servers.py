"""Under waitress and gunicorn's threads: every answer is right, and no lease is in use after the last."""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import webapps
from tests.integration.tools import environment, wait_until
from tests.servers import PostgresServer

CLIENTS, REQUESTS = 12, 40
FILE = Path(webapps.__file__).read_bytes()


class Server:
    """A WSGI server in its own process."""

    def __init__(self, kind: str, app: str, folder: Path, dsn: str) -> None:
        self.workers = 2 if kind == "gunicorn" else 1
        self.log = folder / "server.log"
        env = environment(WEBAPP=app, WEBAPP_SQLITE=f"sqlite:///{folder}/test.db", WEBAPP_POSTGRES=dsn)
        command = [sys.executable, "-m", "tests.integration.webapps", app]
        if kind == "gunicorn":
            command = [
                sys.executable, "-m", "gunicorn", "-k", "gthread", "-w", "2", "--threads", "6", "-b", "127.0.0.1:0",
                "tests.integration.webapps:application",
            ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        self.port = 0
        wait_until(self._listens)

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r"^(\d+)$|127\.0\.0\.1:([1-9]\d*)", self.log.read_text(), re.M)
        self.port = int(found[1] or found[2]) if found else 0
        return bool(found)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def get(self, path: str) -> tuple[int, bytes]:
        conn = self.connect()
        try:
            conn.request("GET", path)
            response = conn.getresponse()
            return response.status, response.read()
        finally:
            conn.close()

    def states(self) -> list[dict[str, Any]]:
        """The state of each worker."""
        found: dict[int, dict[str, Any]] = {}

        def complete() -> bool:
            state = json.loads(self.get("/state")[1])
            found[state["pid"]] = state
            return len(found) == self.workers

        wait_until(complete, patience=60)
        return list(found.values())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(params=["waitress", "gunicorn"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["middleware", "flask"])
def server(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, postgres: PostgresServer
) -> Iterator[Server]:
    made = Server(kind, request.param, tmp_path, postgres.dsn)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def expected(n: int) -> bytes:
    return f"{n * 2} {n * 3}\n".encode()


class Client:
    """Sends requests of all kinds, and records every answer that does not match its request."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.random = server, random.Random(seed)
        self.wrong: list[str] = []

    def run(self) -> None:
        try:
            for _ in range(REQUESTS):
                getattr(self, self.random.choice(self.KINDS))()
        except BaseException as error:
            self.wrong.append(repr(error))

    def check(self, path: str, body: bytes) -> None:
        status, found = self.server.get(path)
        if (status, found) != (200, body):
            self.wrong.append(f"{path}: {status}, {found[:200]!r} instead of {body[:200]!r}")

    def answer(self) -> None:
        n = self.random.randrange(100_000)
        self.check(f"/answer?n={n}", expected(n))

    def stream(self) -> None:
        n = self.random.randrange(100_000)
        path = self.random.choice(["stream", "context"])
        self.check(f"/{path}?n={n}", b"".join(expected(n + one) for one in range(webapps.PIECES)))

    def file(self) -> None:
        self.check("/file", FILE)

    def leave(self) -> None:
        """Read the beginning, then disconnect."""
        with socket.create_connection(("127.0.0.1", self.server.port), 60) as sock:
            sock.sendall(f"GET /{self.random.choice(['endless', 'stream'])} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            if self.random.random() < 0.8:
                sock.recv(100)

    def before(self) -> None:
        if self.server.get("/before")[0] != 500:
            self.wrong.append("no 500 for an error before the response")

    def after(self) -> None:
        conn = self.server.connect()
        conn.request("GET", self.random.choice(["/after", "/broken"]))
        try:
            conn.getresponse().read()
        except (http.client.HTTPException, ConnectionError):
            pass  # the server can only disconnect, or send its own page
        finally:
            conn.close()

    KINDS = ("answer", "answer", "stream", "stream", "file", "leave", "before", "after")


def test_every_answer_is_right_and_no_lease_is_left(server: Server, kind: str) -> None:
    clients = [Client(server, seed) for seed in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [wrong for client in clients for wrong in client.wrong] == []
    wait_until(lambda: all(state["in_use"] == 0 for state in server.states()), patience=60)
    for state in server.states():
        assert (state["orphans"], state["in_use"]) == (0, 0)
        assert 0 < state["peak"] <= 3 and state["acquired"] > 0
        assert state["server"] == ("gunicorn" if kind == "gunicorn" else None)  # which handles its signals itself
    assert server.get("/health") == (200, b"up")
    assert server.stop() in (0, -signal.SIGTERM)
    log = server.log.read_text()
    assert "LeaseError" not in log and "dropped without release" not in log
    assert set(re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception|Timeout)):", log, re.M)) <= {"RuntimeError"}, log
