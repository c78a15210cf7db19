"""Health checks with real servers: a full pool is degraded at once, and down only if its server is."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from flask import Flask

from pooling import HTTPPool, Pool, PoolManager, PoolSettings, PoolTimeout, PostgresPool, SQLitePool
from pooling.testing import FakeAdapter
from pooling.web.flask import Pooling
from pooling.web.wsgi import PoolingMiddleware
from tests.integration.tools import environment, wait_until
from tests.servers import PostgresServer
from tests.web import WebServer

TOKEN = {"HTTP_AUTHORIZATION": "Bearer open sesame"}
AT_ONCE = 3.0  # seconds; in truth milliseconds, while a place in the queue would take a minute


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(60) as executor:
        yield executor


def timed(function: Any) -> tuple[float, Any]:
    began = time.monotonic()
    result = function()
    return time.monotonic() - began, result


def endpoint(manager: PoolManager) -> Any:
    """The health page of the middleware, called as a server would."""
    app = PoolingMiddleware(lambda *args: [b""], manager, health_path="/health", health_token="open sesame")

    def ask() -> tuple[str, dict[str, Any]]:
        found: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/health", "SCRIPT_NAME": "", **TOKEN}
        body = b"".join(app(environ, lambda status, headers: found.append(status)))
        return found[0], json.loads(body)

    return ask


def test_fifty_health_checks_of_a_full_pool(threads: ThreadPoolExecutor) -> None:
    pool: Pool[Any] = Pool(adapter=FakeAdapter(), max_size=20, name="db")
    manager = PoolManager()
    manager.add_pool(pool)
    with ExitStack() as holders:
        for _ in range(20):
            holders.enter_context(pool.acquire())
        queued = []
        for number in (1, 2, 3):
            queued.append(threads.submit(pool.acquire, 60.0))
            wait_until(lambda number=number: pool.stats()["waiting"] == number)
        time.sleep(2.1)
        direct = [threads.submit(timed, manager.health_check) for _ in range(50)]
        answers = [one.result() for one in direct]
        assert {health["db"].status for _, health in answers} == {"degraded"}
        text = r"exhausted: 20 of 20 in use, 3 waiting, the oldest for \d+\.\d s"
        assert all(re.fullmatch(text, health["db"].reason) for _, health in answers)
        assert max(took for took, _ in answers) < AT_ONCE
        pages = [threads.submit(timed, endpoint(manager)) for _ in range(50)]
        for took, (status, body) in [one.result() for one in pages]:
            assert (status, body["status"]) == ("200 OK", "degraded") and took < AT_ONCE
            assert re.fullmatch(text, body["pools"]["db"]["reason"])
        assert pool.stats()["waiting"] == 3
        snapshot = pool.metrics.snapshot()
        assert (snapshot.timeouts, snapshot.refusals, snapshot.requests) == (0, 0, 20)
    for one in queued:
        one.result(60).release()
    manager.shutdown()


def test_flask_page_of_a_full_pool(tmp_path: Path) -> None:
    app = Flask(__name__)
    app.config["POOLING"] = {"db": f"sqlite:///{tmp_path}/x.db?max_size=1&min_size=0"}
    pools = Pooling(app)
    app.register_blueprint(pools.health_blueprint("/health", token="open sesame"))
    with app.app_context():
        manager = pools.manager
    with manager["db"].acquire():
        page = app.test_client().get("/health", headers={"Authorization": TOKEN["HTTP_AUTHORIZATION"]})
    assert page.status_code == 200
    assert page.json["pools"]["db"]["reason"] == "exhausted: 1 of 1 in use, 0 waiting"
    manager.shutdown()


# -- PostgreSQL ------------------------------------------------------------------------------


SMALL = PoolSettings(min_size=0, max_size=3, acquire_timeout=30.0, health_check_interval=None)


def reason(manager: PoolManager) -> tuple[str, str]:
    took, health = timed(manager.health_check)
    assert took < AT_ONCE
    return health["db"].status, health["db"].reason or ""


def test_full_pool_and_a_server_that_is_killed(private_postgres: PostgresServer) -> None:
    manager = PoolManager()
    pool = PostgresPool(private_postgres.dsn, SMALL, name="db")
    manager.add_pool(pool)
    ask = endpoint(manager)
    leases = [pool.acquire() for _ in range(3)]
    assert reason(manager) == ("degraded", "exhausted: 3 of 3 in use, 0 waiting")
    time.sleep(1.2)  # nothing was heard from the server for so long: it is asked
    assert reason(manager)[0] == "degraded"
    with private_postgres.connect(autocommit=True) as conn:
        pids = {lease.resource.info.backend_pid for lease in leases} | {conn.info.backend_pid}
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
        wait_until(lambda: {pid for (pid,) in conn.execute(query)} == pids)  # what asked is gone
    private_postgres.kill()
    wait_until(lambda: reason(manager)[0] == "down")
    assert re.search(r"exhausted: 3 of 3 in use, 0 waiting; the server does not answer: .*", reason(manager)[1])
    wait_until(lambda: ask()[0].startswith("503"))
    private_postgres.start()
    wait_until(lambda: reason(manager)[0] == "degraded")  # the leases are dead, but the server is not
    for lease in leases:
        lease.release()
    wait_until(lambda: reason(manager)[0] == "up")
    wait_until(lambda: ask()[0].startswith("200"))
    manager.shutdown()


def test_full_pool_and_a_server_without_a_free_connection(private_postgres: PostgresServer) -> None:
    private_postgres.configure(max_connections=8, superuser_reserved_connections=0, reserved_connections=0)
    private_postgres.restart()
    manager = PoolManager()
    manager.add_pool(PostgresPool(private_postgres.dsn, SMALL, name="db"))
    leases = [manager["db"].acquire() for _ in range(3)]
    with ExitStack() as others:
        with suppress(Exception):
            while True:
                others.enter_context(private_postgres.connect())
        time.sleep(1.2)
        for _ in range(3):
            assert reason(manager)[0] == "degraded"  # it refuses more connections, and works
            time.sleep(0.5)
    for lease in leases:
        lease.release()
    manager.shutdown()


def test_full_pool_and_a_server_that_hangs(private_postgres: PostgresServer) -> None:
    manager = PoolManager()
    pool = PostgresPool(private_postgres.dsn, SMALL.replace(health_check_timeout=2.0), name="db")
    manager.add_pool(pool)
    leases = [pool.acquire() for _ in range(3)]
    assert private_postgres.pid is not None
    postmaster = psutil.Process(private_postgres.pid)
    every = [postmaster, *postmaster.children(recursive=True)]
    time.sleep(1.2)
    try:
        for process in every:
            process.suspend()
        assert reason(manager)[0] == "degraded"  # not known yet
        wait_until(lambda: reason(manager)[0] == "down")
    finally:
        for process in every:
            process.resume()
    wait_until(lambda: reason(manager)[0] == "degraded")
    for lease in leases:
        lease.release()
    assert reason(manager)[0] == "up"
    manager.shutdown()


def test_server_that_is_down_is_reported_soon(private_postgres: PostgresServer) -> None:
    manager = PoolManager()
    manager.add_pool(PostgresPool(private_postgres.dsn, SMALL, name="db"))
    private_postgres.kill()
    assert reason(manager)[0] == "down"  # not only after the 5 s of a health check
    private_postgres.start()
    wait_until(lambda: reason(manager)[0] == "up")
    manager.shutdown()


# -- SQLite ----------------------------------------------------------------------------------


def test_sqlite(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    manager = PoolManager()
    db = SQLitePool(tmp_path / "x.db", SMALL, readers=1)
    manager.add_pool(db, "db")
    assert reason(manager) == ("up", "")
    with db.acquire():
        assert reason(manager) == ("up", "")  # a writer at work is no exhaustion
        waiter = threads.submit(db.acquire, 60.0)
        wait_until(lambda: db.stats()["waiting"])
        status, text = reason(manager)
        assert status == "degraded" and text.startswith("writer exhausted: 1 of 1 in use, 1 waiting, the oldest for ")
    waiter.result(60).release()
    assert db.readers is not None
    with db.readers.acquire():
        assert reason(manager) == ("degraded", "readers exhausted: 1 of 1 in use, 0 waiting")
        with pytest.raises(PoolTimeout, match="readers exhausted"):
            db.health_check()
    one = SQLitePool(tmp_path / "y.db", SMALL.replace(max_size=1))
    with one.acquire():
        assert one.probe() == "exhausted: 1 of 1 in use, 0 waiting"
    assert one.probe() is None
    one.close()
    manager.shutdown()


# -- HTTP ------------------------------------------------------------------------------------


@pytest.fixture
def private_web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def test_http(private_web: WebServer, threads: ThreadPoolExecutor) -> None:
    manager = PoolManager()
    settings = SMALL.replace(max_size=1, health_check_timeout=2.0)
    pool = HTTPPool(settings, base_url=private_web.url, health_url="/echo", name="db")
    manager.add_pool(pool)
    assert reason(manager) == ("up", "")
    with pool.request_context("GET", "/stream", stream=True):
        answers = [one.result() for one in [threads.submit(reason, manager) for _ in range(20)]]
        assert set(answers) == {("degraded", "exhausted: 1 of 1 in use, 0 waiting")}
        waiter = threads.submit(pool.get, "/echo")
        wait_until(lambda: pool.stats()["waiting"])
        assert reason(manager)[1].startswith("exhausted: 1 of 1 in use")
        assert pool.metrics.snapshot().timeouts == 0
    assert waiter.result(60).status_code == 200
    with pool.request_context("GET", "/stream", stream=True):
        private_web.kill()
        wait_until(lambda: reason(manager)[0] == "down")
        assert "the server does not answer" in reason(manager)[1]
    private_web.start()
    wait_until(lambda: reason(manager)[0] == "up")
    manager.shutdown()


def test_http_host_that_others_wait_for(web: WebServer, threads: ThreadPoolExecutor) -> None:
    pool = HTTPPool(SMALL, max_per_host=1, base_url=web.url, name="api")
    with pool.request_context("GET", "/stream", stream=True):
        assert pool.probe() is None
        waiter = threads.submit(pool.get, "/echo")
        wait_until(lambda: pool.stats()["waiting"])
        assert (pool.probe() or "").startswith(f"{web.url} exhausted: 1 of 1 in use, 1 waiting, the oldest for ")
    assert waiter.result(60).status_code == 200
    pool.close()


def test_secret_of_a_health_url_is_not_shown(private_web: WebServer) -> None:
    manager = PoolManager()
    url = private_web.url.replace("//", "//user:hunter2@") + "/echo?token=hunter3"
    pool = HTTPPool(SMALL.replace(max_size=1), base_url=private_web.url, health_url=url, name="db")
    manager.add_pool(pool)
    with pool.request_context("GET", "/stream", stream=True):
        private_web.kill()
        wait_until(lambda: reason(manager)[0] == "down")
        assert "hunter" not in str(manager.health_check().to_dict())
    manager.shutdown()


# -- gunicorn --------------------------------------------------------------------------------


APP = """
    import os, time
    from pooling.web.wsgi import PoolingMiddleware, lease

    def pages(environ, start_response):
        conn = lease(environ, "db")
        if environ["PATH_INFO"] == "/slow":
            conn.execute("SELECT 1")
            while not os.path.exists("go"):
                time.sleep(0.05)
        start_response("200 OK", [])
        return [b"ok"]

    application = PoolingMiddleware(
        pages, database_url=os.environ["DSN"] + "?min_size=0&max_size=2&acquire_timeout=60",
        health_path="/health", health_token="open sesame",
    )
"""


def test_gunicorn_with_a_full_pool_stays_healthy(
    private_postgres: PostgresServer, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    (tmp_path / "shop.py").write_text(textwrap.dedent(APP))
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "8", "-b", "127.0.0.1:0",
             "--chdir", str(tmp_path), "shop:application"],
            env=environment(DSN=private_postgres.dsn), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until(lambda: re.search(r"127\.0\.0\.1:[1-9]", log.read_text()))
        found = re.search(r"127\.0\.0\.1:(\d+)", log.read_text())
        assert found is not None

        def get(path: str) -> tuple[int, bytes]:
            with closing(http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)) as conn:
                conn.request("GET", path, headers={"Authorization": "Bearer open sesame"})
                answer = conn.getresponse()
                return answer.status, answer.read()

        slow = [threads.submit(get, "/slow") for _ in range(4)]  # two hold all, two wait
        text = ""

        def full() -> bool:
            nonlocal text
            status, body = get("/health")
            assert status == 200, body
            text = json.loads(body)["pools"]["db"].get("reason", "")
            return text.startswith("exhausted: 2 of 2 in use, 2 waiting")

        wait_until(full)
        pages = [threads.submit(timed, lambda: get("/health")) for _ in range(20)]
        for took, (status, body) in [one.result() for one in pages]:
            assert status == 200 and took < AT_ONCE and b"degraded" in body
        private_postgres.kill()
        wait_until(lambda: get("/health")[0] == 503)  # full, and without a server
        private_postgres.start()
        wait_until(lambda: get("/health")[0] == 200)
        (tmp_path / "go").touch()
        assert [one.result()[0] for one in slow] == [200] * 4
        wait_until(lambda: json.loads(get("/health")[1])["status"] == "up")
    finally:
        (tmp_path / "go").touch()
        os.kill(server.pid, signal.SIGTERM)
        server.wait(60)
