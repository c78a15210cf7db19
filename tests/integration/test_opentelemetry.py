"""OpenTelemetry on real parts: beside other instrumentations, over forks, in real servers, to a real receiver."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pooling import HTTPPool, PoolSettings, PoolTimeout, PostgresPool
from pooling.adapters.sqlalchemy import Pool as SQLAlchemyPool
from pooling.observe import figures
from pooling.observe.opentelemetry import instrument, uninstrument
from tests.integration.otel_server import POOL, otel_server
from tests.integration.test_postgres_foreign import works
from tests.integration.tools import ROOT, environment, run_forking, wait_until
from tests.servers import PostgresServer
from tests.web import WebServer

COUNT, USE, WAIT = (f"db.client.connection.{name}" for name in ("count", "use_time", "wait_time"))
LIFETIME = "http.client.connection.duration"
ORDERS = ["pool first", "instrumentation first"]


class Telemetry:
    """Providers that end with the test, and what they have collected."""

    def __init__(self) -> None:
        self.reader, self.exporter = InMemoryMetricReader(), InMemorySpanExporter()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def points(self, metric: str, **attributes: Any) -> list[Any]:
        """Return the data points of a metric of ours that have these attributes."""
        data = self.reader.get_metrics_data()
        assert data is not None
        return [
            point
            for resource in data.resource_metrics for scope in resource.scope_metrics if scope.scope.name == "pooling"
            for found in scope.metrics if found.name == metric
            for point in found.data.data_points if attributes.items() <= dict(point.attributes).items()
        ]  # fmt: skip

    def of_pool(self, metric: str, pool: str, **more: Any) -> Any:
        (point,) = self.points(metric, **{POOL: pool}, **more)
        return point

    def spans(self, name: str | None = None) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if name in (None, span.name)]


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    monkeypatch.setattr(figures, "MOST_POOLS", 1 << 20)  # other tests have pools, too
    made = Telemetry()
    try:
        yield made
    finally:
        uninstrument()
        made.meters.shutdown()
        made.tracers.shutdown()


# -- beside other instrumentations ----------------------------------------------------------------


@pytest.fixture
def trace_psycopg(telemetry: Telemetry) -> Iterator[Callable[[], None]]:
    before = {owner: vars(owner)["connect"] for owner in (psycopg, psycopg.Connection, psycopg.AsyncConnection)}
    instrumentor = PsycopgInstrumentor()
    try:
        yield lambda: instrumentor.instrument(tracer_provider=telemetry.tracers)
    finally:
        instrumentor.uninstrument()
        for owner, connect in before.items():  # it leaves methods that are bound to psycopg's own class
            setattr(owner, "connect", connect)  # noqa: B010


@pytest.mark.parametrize("order", ORDERS)
def test_beside_psycopg(
    order: str, telemetry: Telemetry, postgres: PostgresServer, trace_psycopg: Callable[[], None]
) -> None:
    settings = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)

    def make() -> PostgresPool:
        return PostgresPool(postgres.dsn, settings, name=f"psycopg {order}", query_statistics=True)

    if order == "pool first":
        pool = make()
        instrument(meter_provider=telemetry.meters)
        trace_psycopg()
    else:
        trace_psycopg()
        instrument(meter_provider=telemetry.meters)
        pool = make()
    with contextlib.closing(pool):
        works(pool, postgres)  # cleaned, and a dead connection is not lent
        telemetry.exporter.clear()
        leases = telemetry.of_pool(USE, pool.name).count
        with telemetry.tracers.get_tracer("test").start_as_current_span("request") as request:
            for number in range(5):
                assert pool.execute_query("SELECT %s::int", (number,)) == [(number,)]
            with pool.connection() as conn:
                assert conn.execute("SELECT 7").fetchone() == (7,)
                assert telemetry.of_pool(COUNT, pool.name, **{"db.client.connection.state": "used"}).value == 1
        selects = telemetry.spans("SELECT")
        assert len(selects) == 6
        assert {span.parent.span_id for span in selects} == {request.get_span_context().span_id}
        assert telemetry.of_pool(USE, pool.name).count == leases + 6 == telemetry.of_pool(WAIT, pool.name).count
        assert telemetry.of_pool(COUNT, pool.name, **{"db.client.connection.state": "used"}).value == 0
        queries = telemetry.of_pool("db.client.operation.duration", pool.name, **{"db.system.name": "postgresql"})
        assert queries.count == pool.query_statistics.to_dict()["count"]
        with pool.acquire(), pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.01)
        assert telemetry.of_pool("db.client.connection.timeouts", pool.name).value == 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("metrics", ["ours", "theirs"])
def test_beside_requests(
    order: str, metrics: str, telemetry: Telemetry, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    instrumentor = RequestsInstrumentor()
    ours = metrics == "ours"

    def trace() -> None:
        instrumentor.instrument(tracer_provider=telemetry.tracers, meter_provider=telemetry.meters)
        instrument(meter_provider=telemetry.meters, operations=ours)

    try:
        if order == "instrumentation first":
            trace()
        pool = HTTPPool(base_url=web.url, name=f"requests {order} {metrics}", max_size=2)
        if order == "pool first":
            trace()
        with contextlib.closing(pool), telemetry.tracers.get_tracer("test").start_as_current_span("request"):
            for _ in range(3):
                answer = pool.get("/echo").json()
                headers = {name.lower() for name, _ in answer["headers"]}
                assert "traceparent" in headers  # the trace goes on in the server
            pool.get("/status/503?key=otel", timeout=5)
            wait_until(lambda: pool.stats()["in_use"] == 0)
            where = {"server.address": "127.0.0.1", "server.port": web.port}
            opened = telemetry.points("http.client.open_connections", **where)
            assert {one.attributes["http.connection.state"]: one.value for one in opened} == {"idle": 1, "active": 0}
            durations = telemetry.points("http.client.request.duration", **where)
            assert telemetry.of_pool(USE, pool.name).count == 4
        assert [span.name for span in telemetry.spans()].count("GET") == 4
        by_status = {one.attributes["http.response.status_code"]: one.count for one in durations}
        assert by_status == ({200: 3, 503: 1} if ours else {})
        assert {one.attributes.get("error.type") for one in durations} == ({None, "503"} if ours else set())
    finally:
        instrumentor.uninstrument()


@pytest.mark.parametrize("order", ORDERS)
def test_beside_sqlalchemy(order: str, telemetry: Telemetry, postgres: PostgresServer) -> None:
    instrumentor = SQLAlchemyInstrumentor()
    url = postgres.dsn.replace("postgresql://", "postgresql+psycopg://")
    options: dict[str, Any] = {"tracer_provider": telemetry.tracers, "meter_provider": telemetry.meters}
    name = f"sqlalchemy {order}"

    def make() -> sqlalchemy.Engine:
        return sqlalchemy.create_engine(
            url, poolclass=SQLAlchemyPool, pool_size=1, max_overflow=0, pool_timeout=30, pool_logging_name=name
        )

    try:
        if order == "pool first":
            engine = make()
            instrument(meter_provider=telemetry.meters)
            instrumentor.instrument(engine=engine, skip_dep_check=True, **options)
        else:
            instrument(meter_provider=telemetry.meters)
            instrumentor.instrument(skip_dep_check=True, **options)
            engine = make()
        assert isinstance(engine.pool, SQLAlchemyPool)
        pool = engine.pool.core.name
        with contextlib.closing(_Disposing(engine)):
            with engine.connect() as conn:
                first = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
                conn.exec_driver_sql("SET lock_timeout = '77s'")
                assert telemetry.of_pool(COUNT, pool, **{"db.client.connection.state": "used"}).value == 1
            with engine.connect() as conn:  # cleaned, and kept
                assert conn.exec_driver_sql("SELECT pg_backend_pid()").scalar() == first
                assert conn.exec_driver_sql("SHOW lock_timeout").scalar() == "0"
            with postgres.connect(autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(%s, 30000)", [first])
            time.sleep(1)  # connections idle for half a second are checked
            with engine.connect() as conn:
                assert conn.exec_driver_sql("SELECT pg_backend_pid()").scalar() != first
            assert telemetry.of_pool(USE, pool).count == 3
            assert len(telemetry.spans()) >= 5
            assert any("SELECT" in span.name for span in telemetry.spans())
    finally:
        instrumentor.uninstrument()


class _Disposing:
    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        self._engine.dispose()


# -- HTTP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [True, False])
def test_http_requests(pooled: bool, telemetry: Telemetry, web: WebServer) -> None:
    instrument(meter_provider=telemetry.meters)
    with HTTPPool(base_url=web.url, name=f"http {pooled}", pooled=pooled, timeout=10, retry=None) as pool:
        began = time.monotonic()
        for path in ("/slow?s=0.2", "/echo", "/status/404?key=otel-404"):
            pool.get(path)
        pool.post("/echo", data=b"x")
        pool.request("BREW", "/echo")
        with pytest.raises(Exception, match="imed out"):
            pool.get("/slow?s=20", timeout=0.3)
        took = time.monotonic() - began
        points = telemetry.points("http.client.request.duration", **{"server.port": web.port})
    seen = {
        (one.attributes["http.request.method"], one.attributes.get("http.response.status_code"),
         one.attributes.get("error.type")): one.count
        for one in points
    }  # fmt: skip
    error = next(kind for _, status, kind in seen if status is None)
    assert "Timeout" in str(error)
    assert seen == {
        ("GET", 200, None): 2, ("GET", 404, "404"): 1, ("POST", 200, None): 1, ("_OTHER", 200, None): 1,
        ("GET", None, error): 1,
    }  # fmt: skip
    assert 0.5 <= sum(one.sum for one in points) <= took


def test_connections_and_requests_by_server(telemetry: Telemetry, web: WebServer) -> None:
    """Two pools of one server are summed, whatever their names."""
    instrument(meter_provider=telemetry.meters)
    with HTTPPool(base_url=web.url, name="one"), HTTPPool(base_url=web.url, name="two") as other:
        where = {"server.address": "127.0.0.1", "server.port": web.port}
        other.get("/echo")
        with ThreadPoolExecutor(2) as threads:
            jobs = [threads.submit(other.get, "/slow?s=2") for _ in range(2)]
            wait_until(lambda: telemetry.points("http.client.active_requests", **where)[0].value == 2)
            opened = telemetry.points("http.client.open_connections", **where)
            assert {one.attributes["http.connection.state"]: one.value for one in opened} == {"idle": 0, "active": 2}
            assert [job.result().status_code for job in jobs] == [200, 200]
        wait_until(lambda: telemetry.points("http.client.active_requests", **where)[0].value == 0)


def test_lifetimes_of_connections_by_server(telemetry: Telemetry, web: WebServer) -> None:
    """Two pools of one server are summed; what was closed before is not counted."""
    where = {"server.address": "127.0.0.1", "server.port": web.port}
    with HTTPPool(base_url=web.url, name="early") as early:
        early.get("/goodbye")
        instrument(meter_provider=telemetry.meters)
        assert telemetry.points(LIFETIME, **where) == []
        began = time.monotonic()
        early.get("/slow?s=0.2")
        with HTTPPool(base_url=web.url, name="late") as late:
            late.get("/goodbye")
            late.get("/goodbye")
            (found,) = telemetry.points(LIFETIME, **where)
            assert found.count == 2 and found.attributes == where
        early.drain()
        (found,) = telemetry.points(LIFETIME, **where)
        elapsed = time.monotonic() - began
        assert found.count == 3 and 0.2 / 2**0.5 <= found.max <= elapsed
        assert 0.2 <= found.sum <= 2 * elapsed  # two are open at the same time


def test_a_request_that_waits_is_an_event_of_its_span(telemetry: Telemetry, web: WebServer) -> None:
    instrument(meter_provider=telemetry.meters)
    with HTTPPool(base_url=web.url, name="http waits", max_size=1) as pool, ThreadPoolExecutor(1) as threads:
        slow = threads.submit(pool.get, "/slow?s=0.5")
        wait_until(lambda: pool.stats()["in_use"])
        with telemetry.tracers.get_tracer("test").start_as_current_span("request"):
            pool.get("/echo")
        slow.result()
        (span,) = telemetry.spans("request")
        (event,) = [event for event in span.events if event.name == "pooling.wait"]
        assert event.attributes[POOL] == "http waits" and event.attributes["pooling.wait.outcome"] == "acquired"
        assert telemetry.of_pool(WAIT, "http waits").count == 2
        assert telemetry.of_pool(WAIT, "http waits").max == event.attributes["pooling.wait.duration"]


# -- forks ----------------------------------------------------------------------------------------

FORKING = """
import os, sys, time
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pooling import Pool
from pooling.observe.opentelemetry import instrument

reader = InMemoryMetricReader()
def provide():
    metrics.set_meter_provider(MeterProvider([reader]))

def collected():
    data = reader.get_metrics_data()
    return {metric.name: point.count for resource in data.resource_metrics for scope in resource.scope_metrics
            for metric in scope.metrics for point in metric.data.data_points if hasattr(point, "count")}

WHEN = %r
def create():
    time.sleep(0.01)  # a long wait: the borrower records it
    return object()

pool = Pool(create, name="db", max_size=2)
if WHEN == "provider before the fork":
    provide()
instrument()
if WHEN == "used before the fork":
    for _ in range(5):
        with pool.acquire(): pass
child = os.fork()
if WHEN != "provider before the fork":
    provide()
number = 3 if child == 0 else 2
for _ in range(number):
    with pool.acquire(): pass
found = collected()
before = 5 if WHEN == "used before the fork" and child else 0
expected = {f"db.client.connection.{name}_time": number + before for name in ("use", "wait")}
ok = {**found, "db.client.connection.create_time": 1} == {**expected, "db.client.connection.create_time": 1}
if not ok:
    print("child" if child == 0 else "parent", found, expected, file=sys.stderr)
if child:
    assert os.waitpid(child, 0)[1] == 0
print("parent ok" if child else "child ok", flush=True)
sys.exit(0 if ok else 1)
"""


@pytest.mark.parametrize("when", ["provider before the fork", "provider after the fork", "used before the fork"])
def test_each_process_counts_for_itself(when: str) -> None:
    run_forking(FORKING % when)


# -- real servers, real exports ---------------------------------------------------------------------


class Receiver(ThreadingHTTPServer):
    """Receives OTLP over HTTP, as a collector does.

    Attributes:
        last: By ``service.instance.id``: the last points of each metric of ours.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.last: dict[str, dict[str, list[Any]]] = {}
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/metrics"

    def take(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.last[attributes["service.instance.id"]] = {
                metric.name: list((metric.histogram if metric.HasField("histogram") else metric.sum).data_points)
                for scope in resource.scope_metrics if scope.scope.name == "pooling" for metric in scope.metrics
            }  # fmt: skip

    def total(self, metric: str, pool: str) -> int:
        """Return the sum of the counts over all processes."""
        return sum(
            point.count
            for points in list(self.last.values()) for point in points.get(metric, [])
            if {one.key: one.value.string_value for one in point.attributes} == {POOL: pool}
        )  # fmt: skip

    def close(self) -> None:
        self.shutdown()
        self._thread.join(30)
        self.server_close()


class _Receive(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert isinstance(self.server, Receiver)
        self.server.take(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("kind", ["gunicorn", "gunicorn gevent", "uWSGI"])
def test_figures_of_all_workers_arrive(kind: str, tmp_path: Path) -> None:
    """The application is loaded and instrumented in the parent; each worker sets its provider."""
    with contextlib.closing(Receiver()) as receiver, otel_server(kind, tmp_path, OTLP=receiver.url) as server:
        leases: Counter[int] = Counter()
        for number in range(60):
            pid, times = server.use(number % 4)
            leases[pid] += times
        server.use_all(leases)
        wait_until(lambda: receiver.total(USE, "things") == sum(leases.values()), patience=60)
        assert {int(name): 1 for name in receiver.last} == dict.fromkeys(leases, 1)
        for metric in (USE, WAIT):
            assert receiver.total(metric, "things") == sum(leases.values())
            for pid, number in leases.items():
                points = receiver.last[str(pid)][metric]
                assert sum(point.count for point in points if "things" in str(point.attributes)) == number


def test_a_provider_of_the_parent_exports_in_each_worker(tmp_path: Path) -> None:
    """The SDK starts its thread again after a fork by Python."""
    home = tmp_path / "exported"
    home.mkdir()
    with otel_server("gunicorn", tmp_path, EXPORTED=str(home)) as server:
        leases: Counter[int] = Counter()
        for number in range(60):
            pid, times = server.use(number % 4)
            leases[pid] += times
        server.use_all(leases)

        def arrived() -> bool:
            files = {int(path.stem): json.loads(path.read_text()) for path in home.glob("*.json")}
            return all(files.get(pid, {}).get(USE) == number for pid, number in leases.items())

        wait_until(arrived, patience=60)


def test_opentelemetry_instrument_finds_it() -> None:
    """A program that knows nothing of it; its last figures are exported at its end."""
    command = shutil.which("opentelemetry-instrument", path=str(Path(sys.executable).parent))
    assert command is not None
    lease = "[pool.acquire().release() for _ in range(7)]"
    program = f"import pooling; pool = pooling.Pool(object, name='zero-code'); {lease}"
    arguments = ["--metrics_exporter", "console", "--traces_exporter", "none", "--logs_exporter", "none"]
    run = subprocess.run(
        [command, *arguments, sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    exported = json.loads(run.stdout)
    counts = {
        metric["name"]: point.get("count")
        for resource in exported["resource_metrics"] for scope in resource["scope_metrics"]
        if scope["scope"]["name"] == "pooling" for metric in scope["metrics"] for point in metric["data"]["data_points"]
        if point["attributes"].get(POOL) == "zero-code"
    }  # fmt: skip
    assert counts[USE] == counts[WAIT] == 7
