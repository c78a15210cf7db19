"""Lanes on a real PostgreSQL, through Flask and Django on a threaded server.

Batch saturates the pool; web keeps its share, and health checks are answered at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pooling import Lane, PostgresPool, lane
from pooling.web.wsgi import PoolingMiddleware
from pooling.web.wsgi import lease as request_lease
from tests.servers import PostgresServer

pytest.importorskip("flask")  # both are installed in CI
pytest.importorskip("django")

from flask import Flask  # noqa: E402
from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: E402

from pooling.web.flask import Pooling  # noqa: E402

LANES = {"health": {"reserve": 1}, "web": {"weight": 4}, "batch": {"weight": 1}}
PATHS = {"/": "web", "/report": "batch"}
TOKEN = "health-token-of-the-tests"
SECONDS = 12.0


class _Quiet(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        """Log nothing."""


@contextlib.contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve an application with a thread for each request; give the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        client.request("GET", path, headers=headers)
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


class Run:
    """Requests of all kinds at once, for a while."""

    def __init__(self, port: int, pool: Any, health: Callable[[dict[str, Any]], dict[str, str]]) -> None:
        self.port, self.pool, self.health = port, pool, health
        self.begin = time.monotonic() + 2  # until all wait
        self.end = self.begin + SECONDS
        self.errors: list[str] = []
        self.held: Counter[str] = Counter()
        self.most = 0
        self.slowest = 0.0

    def repeat(self, path: str) -> None:
        while time.monotonic() < self.end:
            status, body = get(self.port, path)
            if status != 200:
                self.errors.append(f"{path}: {status} {body[:300]!r}")

    def check_health(self) -> None:
        while time.monotonic() < self.end:
            began = time.monotonic()
            status, body = get(self.port, "/health/", Authorization=f"Bearer {TOKEN}")
            self.slowest = max(self.slowest, time.monotonic() - began)
            health = json.loads(body)
            found = self.health(health)  # degraded: no place is left but the reserved one
            others = [one for one in health["pools"].values() if one != found]  # other tests have pools, too
            down = status != 200 and all(one["status"] != "down" for one in others)
            if down or found["status"] not in ("up", "degraded") or "5 of 5" in found.get("reason", ""):
                self.errors.append(f"health: {status} {body!r}")
            time.sleep(0.3)

    def sample(self) -> None:
        while time.monotonic() < self.end:
            if time.monotonic() > self.begin:
                lanes = self.pool().stats()["lanes"]
                self.held.update({name: each["in_use"] for name, each in lanes.items()})
                self.most = max(self.most, sum(each["in_use"] for each in lanes.values()))
            time.sleep(0.005)

    def go(self) -> None:
        paths = ["/page"] * 12 + ["/report/all"] * 6 + ["/export"] * 6
        work = [threading.Thread(target=self.repeat, args=(path,)) for path in paths]
        work += [threading.Thread(target=self.check_health), threading.Thread(target=self.sample)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join(90)
            assert not thread.is_alive()

    def verify(self) -> None:
        assert not self.errors, "\n".join(self.errors[:3])
        assert self.most <= 5 and self.held["default"] == 0
        share = self.held["web"] / (self.held["web"] + self.held["batch"])
        assert share == pytest.approx(0.8, abs=0.04), self.held
        assert self.slowest < 2.0, self.slowest  # a batch request waits for some 3 s
        lanes = self.pool().metrics.snapshot().lanes
        assert lanes["health"].acquired >= 5 and lanes["health"].wait.max < 1.0  # a round trip each, once a second


def test_flask(postgres: PostgresServer) -> None:
    app = Flask(__name__)
    app.config["POOLING"] = {"db": {"url": postgres.dsn, "max_size": 5, "acquire_timeout": 30, "lanes": LANES}}
    app.config["POOLING_LANE_PATHS"] = PATHS
    pools = Pooling(app)
    app.register_blueprint(pools.health_blueprint("/health/", token=TOKEN))

    @app.get("/page")
    def page() -> str:
        pools.lease("db").execute("SELECT pg_sleep(0.04)")
        return "page"

    @app.get("/report/all")
    def report() -> Any:
        def rows() -> Iterator[str]:
            pools.lease("db").execute("SELECT pg_sleep(0.2)")  # acquired while the response is sent
            yield "report"

        from flask import stream_with_context

        return app.response_class(stream_with_context(rows()))

    @app.get("/export")
    @lane("batch")
    def export() -> str:
        pools.lease("db").execute("SELECT pg_sleep(0.2)")
        return "export"

    manager = app.extensions["pooling"]
    with served(app) as port:
        run = Run(port, lambda: manager["db"], lambda health: health["pools"]["db"])
        run.go()
    run.verify()
    manager.shutdown()


def test_django(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    from tests.integration import django_site

    with django_site.running(postgres, tmp_path_factory):
        from django.core.wsgi import get_wsgi_application
        from django.db import connection, connections
        from django.http import HttpResponse, StreamingHttpResponse
        from django.test import override_settings

        from pooling.web.django.health import health

        def sleep(seconds: float) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(%s)", [seconds])

        def page(request: Any) -> HttpResponse:
            sleep(0.04)
            return HttpResponse("page")

        def report(request: Any) -> StreamingHttpResponse:
            def rows() -> Iterator[str]:
                sleep(0.2)
                yield "report"

            return StreamingHttpResponse(rows())

        @lane("batch")
        def export(request: Any) -> HttpResponse:
            sleep(0.2)
            return HttpResponse("export")

        django_site.route(**{"page": page, "report/all": report, "export": export, "health/": health})
        options = {"pool": {"max_size": 5, "acquire_timeout": 30, "lanes": LANES}}
        django_site.alter(monkeypatch, connection, OPTIONS=options)
        django_site.alter(monkeypatch, connections["second"], ATOMIC_REQUESTS=False)
        middleware = ["pooling.web.django.lanes.lane_middleware"]
        try:
            with override_settings(
                MIDDLEWARE=middleware, POOLING_LANE_PATHS=PATHS, POOLING_HEALTH_TOKEN=TOKEN
            ), served(get_wsgi_application()) as port:
                pool = connections["default"].pool
                run = Run(port, lambda: pool, lambda health: health["pools"]["database:default"])
                run.go()
            run.verify()
        finally:
            connections["default"].close_pool()


def test_django_middleware_in_async_views(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.integration import django_site

    with django_site.running(postgres, tmp_path_factory):
        from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
        from django.http import StreamingHttpResponse
        from django.test import override_settings

        from pooling.lanes import current_lane
        from pooling.web.django.lanes import lane_middleware

        seen: list[str | None] = []

        async def view(request: Any) -> StreamingHttpResponse:
            async def rows() -> Any:
                seen.append(current_lane())
                yield b"row"
                seen.append(current_lane())

            seen.append(current_lane())
            return StreamingHttpResponse(rows())

        async def request(path: str) -> None:
            response = await lane_middleware(view)(SimpleNamespace(path_info=path))
            async for piece in response:
                assert piece == b"row" and current_lane() is None

        with override_settings(POOLING_LANE_PATHS=PATHS):
            asyncio.run(request("/report/all"))
        assert seen == ["batch"] * 3
        with override_settings(POOLING_LANE_PATHS={"report": "batch"}), pytest.raises(
            ImproperlyConfigured, match="POOLING_LANE_PATHS must have prefixes that begin with a slash, not 'report'"
        ):
            lane_middleware(view)
        with override_settings(POOLING_LANE_PATHS={}), pytest.raises(MiddlewareNotUsed):
            lane_middleware(view)


def test_wsgi_middleware(postgres: PostgresServer) -> None:
    """By path, also while the response is produced; the application's own `lane` takes precedence."""
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        with lane("web") if environ["PATH_INFO"].endswith("/web") else contextlib.nullcontext():
            request_lease(environ, "db").execute("SELECT 1")
        seen.extend(name for name, each in wrapped.manager["db"].stats()["lanes"].items() if each["in_use"])
        yield b"done"

    wrapped = PoolingMiddleware(
        app, urls={"db": postgres.dsn}, lane_paths={"/": "default", "/batch/": "batch", "/batch/now": "health"},
        lanes="health:reserve=1,web:weight=4,batch:weight=1",
    )  # fmt: skip
    for path in ("/batch", "/batch/x", "/batches", "/batch/now", "/batch/web"):
        body = wrapped({"PATH_INFO": path, "REQUEST_METHOD": "GET"}, lambda *args: None)
        assert b"".join(body) == b"done"
        body.close()  # type: ignore[attr-defined]
    assert seen == ["batch", "batch", "default", "health", "web"]
    wrapped.manager.shutdown()


def test_blocks_and_transactions_have_a_lane(postgres: PostgresServer) -> None:
    with PostgresPool(postgres.dsn, max_size=3, lanes={"batch": Lane(most=1)}) as db:
        with db.connection(lane="batch") as conn, db.transaction(lane="default"):
            assert conn.execute("SELECT 1").fetchone() == (1,)
            assert {name: each["in_use"] for name, each in db.stats()["lanes"].items()} == {"batch": 1, "default": 1}
            assert sorted(str(holder.lane) for holder in db.holders()) == ["batch", "default"]
        with lane("batch"):
            assert db.execute_query("SELECT 1") == [(1,)]
        lanes = db.metrics.snapshot().lanes
    assert lanes is not None and lanes["batch"].acquired == 2
