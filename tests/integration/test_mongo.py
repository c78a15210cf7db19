"""A ``pymongo.MongoClient`` in a manager: health, metrics, and the recipe, with a real server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from examples.recipes.mongo import mongo_client
from pooling import PoolManager
from pooling.adapters.mongo import PoolEvents
from pooling.core.managed import ManagedPool
from pooling.observe import Alerts, PerformanceMonitor
from pooling.web.wsgi import PoolingMiddleware, lease
from tests.integration.tools import wait_until
from tests.otherservers import MongoServer
from tests.proxy import Proxy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[MongoServer]:
    with MongoServer() as server:
        yield server


@pytest.fixture
def proxy(server: MongoServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Any]:
    # A connection of its own for each heartbeat, which is not one of the pool's.
    with mongo_client(f"mongodb://127.0.0.1:{proxy.port}/", maxPoolSize=2, serverMonitoringMode="poll") as client:
        yield client


@pytest.fixture
def manager(client: Any) -> Iterator[PoolManager]:
    manager = PoolManager()
    manager.add_pool(client, "mongo", owned=False)
    assert manager.startup(30.0)
    yield manager
    manager.shutdown()


def test_recipe(server: MongoServer) -> None:
    texts = [f"text {number}" for number in range(20)]
    done = subprocess.run(
        [sys.executable, ROOT / "examples/recipes/mongo.py", server.url, "shop", *texts],
        text=True, capture_output=True, timeout=120, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    # A ping at the start and one of the health check, the 20 texts, and the count.
    assert done.stdout.splitlines()[:2] == ["20 notes", "up, 0 in use, 23 requests"]
    assert done.stdout.splitlines()[2] in ("1 connections", "2 connections")


def test_figures(manager: PoolManager, client: Any, proxy: Proxy) -> None:
    """All in use is degraded, at once, and no outage; the waiting are counted, and those that waited in vain."""
    client.test.figures.insert_one({"n": 1})
    health, figures = manager.health_check(30.0)["mongo"], manager.metrics()["mongo"]
    assert (health.status, figures["size"], figures["in_use"], figures["max_size"]) == ("up", 1, 0, 2)
    found: list[object] = []

    def work() -> None:
        try:
            found.append(client.test.figures.count_documents({}))
        except Exception as error:
            found.append(type(error).__name__)

    threads = [threading.Thread(target=work) for _ in range(4)]
    with proxy.held():
        for thread in threads[:2]:
            thread.start()
        # The second one is not in use before it is connected, which takes an answer.
        wait_until(lambda: manager.metrics()["mongo"]["waiting_requests"] + manager.metrics()["mongo"]["in_use"] == 2)
    for thread in threads[:2]:
        thread.join()
    wait_until(lambda: manager.metrics()["mongo"]["size"] == 2)
    with proxy.held():
        for thread in threads[2:]:
            thread.start()
        wait_until(lambda: manager.metrics()["mongo"]["in_use"] == 2)
        blocked = threading.Thread(target=work)
        blocked.start()
        wait_until(lambda: manager.metrics()["mongo"]["waiting_requests"] == 1)
        health = manager.health_check(30.0)["mongo"]
        assert (health.status, health.reason) == ("degraded", "exhausted: 2 of 2 in use, 1 waiting")
        assert manager.get_performance_summary()["status"] == "degraded"
    for thread in (*threads[2:], blocked):
        thread.join()
    assert found == [1] * 5
    figures = manager.metrics()["mongo"]
    assert (figures["in_use"], figures["idle"], figures["waiting_requests"]) == (0, 2, 0)
    assert figures["total_connections_created"] == 2 and figures["error_rate"] == 0.0
    assert figures["avg_acquisition_time_ms"] > 0
    assert proxy.open >= 2  # and those of heartbeats, which are not counted


def test_waiting_in_vain_is_an_error(proxy: Proxy) -> None:
    url = f"mongodb://127.0.0.1:{proxy.port}/"
    manager = PoolManager()
    with mongo_client(url, maxPoolSize=1, waitQueueTimeoutMS=100) as client:
        manager.add_pool(client, "mongo")
        client.admin.command("ping")
        with proxy.held():
            thread = threading.Thread(target=client.admin.command, args=("ping",))
            thread.start()
            wait_until(lambda: manager.metrics()["mongo"]["in_use"] == 1)
            with pytest.raises(Exception, match="Timed out while checking out a connection"):
                client.admin.command("ping")
        thread.join()
        figures = manager.metrics()["mongo"]
    assert (figures["connection_requests"], figures["connection_timeouts"], figures["connection_errors"]) == (3, 1, 0)
    assert figures["error_rate"] == pytest.approx(1 / 3)
    manager.shutdown()


def test_server_that_is_killed_and_restarted(manager: PoolManager, client: Any, server: MongoServer) -> None:
    assert manager.health_check(30.0)["mongo"].status == "up"
    server.kill()
    health = manager.health_check(2.0)["mongo"]
    assert health.status == "down" and health.reason is not None
    assert health.seconds < 10
    server.start()
    wait_until(lambda: manager.health_check(5.0)["mongo"].status == "up", 60)
    figures = manager.metrics()["mongo"]
    assert figures["size"] - figures["idle"] == figures["in_use"] == 0
    assert figures["total_connections_closed"] >= 1


def test_in_the_middleware(manager: PoolManager, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(lease(environ, "mongo"))
        start_response("200 OK", [])
        return [b""]

    PoolingMiddleware(app, manager)({}, lambda *args: None)
    assert seen == [client]
    with pytest.raises(ValueError, match="timeout must be None for a MongoClient"):
        manager.lease("mongo", 1.0)
    manager.print_summary()
    assert "MongoClient" in capsys.readouterr().out


def test_in_a_monitor_and_alerts(manager: PoolManager, client: Any) -> None:
    """A client has every attribute that it is asked for, and it must not be taken for a pool of this package."""
    assert not isinstance(client, ManagedPool)
    monitor, alerts = PerformanceMonitor(manager), Alerts(manager, to=lambda alert: None)
    try:
        for _ in range(3):
            client.admin.command("ping")
            monitor.sample()
            assert alerts.check() == []
        found = monitor.get_performance_summary()
        assert found["pools"]["mongo"]["connection_requests"] >= 3
        assert "http_pool" not in found
        assert "mongo" in monitor.generate_report()
    finally:
        monitor.stop()
        alerts.stop()


def test_the_manager_closes_it(server: MongoServer) -> None:
    client = mongo_client(server.url)
    with PoolManager() as manager:
        manager.add_pool(client, "mongo")
        manager.health_check(30.0)
        assert manager.metrics()["mongo"]["size"] == 1
    assert manager.metrics()["mongo"]["size"] == 0
    health = manager.health_check(5.0)["mongo"]
    assert (health.status, health.reason) == ("down", "PoolClosed: closed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore")  # pymongo's own, about forks
def test_a_forked_child_counts_its_own(manager: PoolManager, client: Any) -> None:
    client.admin.command("ping")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            size = manager.metrics()["mongo"]["size"]
            client.admin.command("ping")
            code = 0 if (size, manager.metrics()["mongo"]["size"]) == (0, 1) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert manager.metrics()["mongo"]["size"] == 1


def test_bad_arguments() -> None:
    manager = PoolManager()
    bare = MongoClient(connect=False)
    with pytest.raises(ValueError, match=r"pool must be a MongoClient .*event_listeners=\[.*PoolEvents\(\)\]"):
        manager.add_pool(bare, "mongo")
    with MongoClient(connect=False, event_listeners=[PoolEvents()]) as client:
        with pytest.raises(ValueError, match="name must be given: this MongoClient has none"):
            manager.add_pool(client)
        out = io.StringIO()
        manager.add_pool(client, "any", critical=False)
        manager.print_summary(out)
        assert "0/100" in out.getvalue()
