"""OpenTelemetry: names against the conventions' own list, figures against what was done, several readers, events."""

from __future__ import annotations

import contextlib
import gc
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import db_attributes, http_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics, http_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.semconv.metrics.db_metrics import DB_CLIENT_OPERATION_DURATION
from opentelemetry.semconv.metrics.http_metrics import HTTP_CLIENT_REQUEST_DURATION
from opentelemetry.semconv.schemas import Schemas

from pooling import HTTPPool, Observer, Pool, PoolManager, PoolTimeout, SQLitePool
from pooling.core.observer import EVERYWHERE
from pooling.core.report.histogram import bound_of
from pooling.observe import backlog, conventions, figures
from pooling.observe.opentelemetry import LONG_WAIT, WAIT_EVENT, PoolingInstrumentor, instrument, uninstrument
from tests.integration.tools import ROOT
from tests.unit.conftest import Task

numbers = itertools.count()
POOL, STATE = "db.client.connection.pool.name", "db.client.connection.state"
WAIT, USE, CREATE = (f"db.client.connection.{name}_time" for name in ("wait", "use", "create"))
COUNT, TIMEOUTS = "db.client.connection.count", "db.client.connection.timeouts"


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(figures, "MOST_POOLS", 1 << 20)  # other tests have pools, too
    yield
    uninstrument()
    assert EVERYWHERE == []


@pytest.fixture
def name() -> str:
    """A pool name that no other test has used: its counts would be added."""
    return f"otel-{next(numbers)}"


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    with contextlib.closing(Closing([reader])) as made:
        yield made.provider


class Closing:
    """A provider that ends with the test."""

    def __init__(self, readers: list[Any], **options: Any) -> None:
        self.provider = MeterProvider(readers, shutdown_on_exit=False, **options)

    def close(self) -> None:
        self.provider.shutdown()


@pytest.fixture
def spans() -> Iterator[tuple[Any, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test"), exporter
    provider.shutdown()


Points = dict[str, list[Any]]


def collect(reader: InMemoryMetricReader) -> Points:
    """Return the data points of each metric that is ours."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics for scope in resource.scope_metrics if scope.scope.name == "pooling"
        for metric in scope.metrics
    }  # fmt: skip


def point(points: Points, metric: str, pool: str, **more: str) -> Any:
    wanted = {POOL: pool, **({STATE: more["state"]} if more else {})}
    found = [one for one in points.get(metric, []) if dict(one.attributes) == wanted]
    assert len(found) <= 1, found
    return found[0] if found else None


def value(points: Points, metric: str, pool: str, **more: str) -> float:
    found = point(points, metric, pool, **more)
    assert isinstance(found, NumberDataPoint), (metric, points)
    return found.value


def use(pool: Any, times: int = 1) -> None:
    for _ in range(times):
        with pool.acquire():
            pass


def wait_for_a_lease(pool: Pool[Any], seconds: float) -> float:
    """Have this thread wait until another one releases the only resource; return how long it has waited."""
    taken = threading.Event()

    def hold() -> None:
        with pool.acquire():
            taken.set()
            end = time.monotonic() + 30
            while not pool.stats()["waiting"] and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(seconds)

    holder = Task(hold)
    assert taken.wait(30)
    began = time.monotonic()
    use(pool)
    waited = time.monotonic() - began
    holder.result()
    return waited


# -- the conventions ---------------------------------------------------------------------------


class Notes:
    """A meter that notes which instruments are made."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, str, str]] = {}
        self.bounds: dict[str, Any] = {}

    def __getattr__(self, method: str) -> Callable[..., object]:
        kind = method.removeprefix("create_").removeprefix("observable_")

        def create(name: str, *args: Any, unit: str = "", description: str = "", **more: Any) -> None:
            if args and kind == "histogram":
                unit, description = args
            self.made[name] = kind, unit, description.rstrip(".")
            self.bounds[name] = more.get("explicit_bucket_boundaries_advisory")

        return create


def ours(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()

    def get_meter(name: str, version: str, provider: Any, schema: str) -> Notes:
        assert (name, provider, schema) == ("pooling", None, Schemas.V1_44_0.value)
        return notes

    monkeypatch.setattr(conventions.metrics, "get_meter", get_meter)
    conventions.Instruments(None)
    return notes


def test_names_instruments_units_and_texts_are_those_of_the_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Notes()
    for module, prefix in ((db_metrics, "create_db_client_"), (http_metrics, "create_http_client_")):
        for function in vars(module):
            if function.startswith(prefix):
                getattr(module, function)(theirs)
    made = {name: what for name, what in ours(monkeypatch).made.items() if not name.startswith("pooling.backend.")}
    assert made == {name: theirs.made[name] for name in made}
    reported = {name for name in theirs.made if name.startswith("db.client.connection.")}
    assert len(reported) == 9 and reported < made.keys()
    assert made.keys() - reported == {
        DB_CLIENT_OPERATION_DURATION, HTTP_CLIENT_REQUEST_DURATION, http_metrics.HTTP_CLIENT_OPEN_CONNECTIONS,
        http_metrics.HTTP_CLIENT_ACTIVE_REQUESTS, http_metrics.HTTP_CLIENT_CONNECTION_DURATION,
    }  # fmt: skip


def test_bounds_are_those_of_the_conventions_or_of_the_pools_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = ours(monkeypatch).bounds
    # Not in the package opentelemetry-semantic-conventions: docs/db/database-metrics.md, docs/http/http-metrics.md.
    assert bounds[DB_CLIENT_OPERATION_DURATION] == [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]
    assert bounds[HTTP_CLIENT_REQUEST_DURATION] == [
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10
    ]  # fmt: skip
    own = [round(bound_of(place), 9) for place in range(61)]
    for name in (WAIT, USE, CREATE):
        assert set(bounds[name]) <= set(own) and bounds[name][0] < 2e-4 and bounds[name][-1] > 60
    # The conventions have none for it.
    lifetimes = bounds[http_metrics.HTTP_CLIENT_CONNECTION_DURATION]
    assert set(lifetimes) <= set(own) and lifetimes[0] < 0.01 and lifetimes[-1] > 1000


def test_attributes_are_those_of_the_conventions(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Any
) -> None:
    instrument(meter_provider=provider)
    with SQLitePool(tmp_path / "test.db", name=name) as pool, HTTPPool(name=f"{name}-http", timeout=5.0) as http:
        pool.execute_query("SELECT 1")
        with pytest.raises(Exception, match="refused"):
            http.get("http://127.0.0.1:9/")
        points = collect(reader)
    for metric in (COUNT, "db.client.connection.max", WAIT, USE, CREATE, TIMEOUTS):
        for one in points[metric]:
            extra = {db_attributes.DB_CLIENT_CONNECTION_STATE} if metric == COUNT else set()
            assert one.attributes.keys() == {db_attributes.DB_CLIENT_CONNECTION_POOL_NAME} | extra
    states = {one.attributes[STATE] for one in points[COUNT]}
    assert states == {state.value for state in db_attributes.DbClientConnectionStateValues}
    query = next(one for one in points[DB_CLIENT_OPERATION_DURATION] if one.attributes[POOL] == name)
    assert query.attributes == {
        "db.system.name": db_attributes.DbSystemNameValues.SQLITE.value, POOL: name
    }  # fmt: skip
    here = {server_attributes.SERVER_ADDRESS: "127.0.0.1", server_attributes.SERVER_PORT: 9}
    opened = [dict(one.attributes) for one in points[http_metrics.HTTP_CLIENT_OPEN_CONNECTIONS]]
    for state in http_attributes.HttpConnectionStateValues:
        assert {**here, http_attributes.HTTP_CONNECTION_STATE: state.value} in opened
    assert here in [dict(one.attributes) for one in points[http_metrics.HTTP_CLIENT_ACTIVE_REQUESTS]]
    request = {**here, http_attributes.HTTP_REQUEST_METHOD: "GET", error_attributes.ERROR_TYPE: "NewConnectionError"}
    assert request in [dict(one.attributes) for one in points[HTTP_CLIENT_REQUEST_DURATION]]


# -- figures -----------------------------------------------------------------------------------


def test_figures_are_what_was_done(name: str, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    instrument(meter_provider=provider)
    pool = Pool(object, name=name, max_size=3, min_size=1, max_idle=2)
    use(pool, 7)
    held = [pool.acquire() for _ in range(3)]
    for _ in range(2):
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.002)
    waiter = Task(lambda: use(pool))
    while not pool.stats()["waiting"]:
        time.sleep(0.001)
    points = collect(reader)
    assert value(points, COUNT, name, state="used") == 3
    assert value(points, COUNT, name, state="idle") == 0
    assert value(points, "db.client.connection.max", name) == 3
    assert value(points, "db.client.connection.idle.max", name) == 2
    assert value(points, "db.client.connection.idle.min", name) == 1
    assert value(points, "db.client.connection.pending_requests", name) == 1
    assert value(points, TIMEOUTS, name) == 2
    assert point(points, WAIT, name).count == 10
    assert point(points, USE, name).count == 7

    time.sleep(0.01)
    for lease in held:
        lease.release()
    waiter.result()
    points = collect(reader)
    assert value(points, "db.client.connection.pending_requests", name) == 0
    assert value(points, COUNT, name, state="used") == 0
    wait, uses = point(points, WAIT, name), point(points, USE, name)
    assert (wait.count, uses.count, point(points, CREATE, name).count) == (11, 11, 3)
    assert wait.max > 0.01 and wait.sum >= wait.max
    assert uses.sum == pytest.approx(pool.metrics.snapshot().use.mean * 11, rel=0.05)
    pool.close()
    points = collect(reader)
    assert value(points, COUNT, name, state="idle") == 0 and point(points, "db.client.connection.max", name) is None


def test_counts_in_the_buckets_are_exact(name: str, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    instrument(meter_provider=provider)
    pool = Pool(object, name=name, max_size=1)
    durations = [0.0002, 0.0003, 0.003, 0.05, 0.4, 0.0011, 2.0, 80.0]
    for seconds in durations:
        pool.metrics.durations.use.record(seconds)
    collect(reader)
    pool.metrics.durations.use.record(0.0002)  # in a bucket that has one already
    found = point(collect(reader), USE, name)
    expected = [0] * (len(found.explicit_bounds) + 1)
    for seconds in [*durations, 0.0002]:
        expected[sum(bound < seconds for bound in found.explicit_bounds)] += 1
    assert list(found.bucket_counts) == expected


def test_each_reader_gets_everything_once(name: str) -> None:
    """Whatever the order in which they collect, and also if one wants differences."""
    delta = dict.fromkeys(_kinds(), AggregationTemporality.DELTA)
    total, other, steps = InMemoryMetricReader(), InMemoryMetricReader(), InMemoryMetricReader(delta)
    with contextlib.closing(Closing([total, other, steps])) as made:
        instrument(meter_provider=made.provider)
        pool = Pool(object, name=name, max_size=1)
        uses, sums = 0, 0
        for round_ in range(1, 4):
            use(pool, round_)
            wait_for_a_lease(pool, 0.003)
            uses += round_ + 2
            for reader in (total, steps) if round_ % 2 else (steps, total):
                points = collect(reader)
                found = point(points, USE, name).count, point(points, WAIT, name).count
                if reader is steps:
                    assert found == (round_ + 2, round_ + 2)
                    sums += round_ + 2
                else:
                    assert found == (uses, uses)
        points = collect(other)
        assert point(points, USE, name).count == point(points, WAIT, name).count == uses == sums
        assert point(points, CREATE, name).count == 1


def _kinds() -> list[type]:
    from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter

    return [Counter, Histogram, ObservableCounter]


def test_all_instruments_observe_one_snapshot(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[int] = []
    sample = figures.Recorder.sample
    monkeypatch.setattr(figures.Recorder, "sample", lambda *args: samples.append(1) or sample(*args))  # type: ignore[func-returns-value]
    instrument(meter_provider=provider)
    pool = Pool(object, name=name)
    use(pool)
    samples.clear()
    for number in range(1, 4):
        collect(reader)
        assert len(samples) == number


def test_instruments_that_a_view_drops_are_no_hindrance(name: str) -> None:
    reader = InMemoryMetricReader()
    drop = View(instrument_name="db.client.connection.[!w]*", aggregation=DropAggregation())
    with contextlib.closing(Closing([reader], views=[drop])) as made:
        instrument(meter_provider=made.provider)
        pool = Pool(object, name=name)
        for number in (1, 2):
            use(pool)
            points = collect(reader)
            assert point(points, WAIT, name).count == number and COUNT not in points


def test_pools_of_one_name_are_summed(name: str, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    instrument(meter_provider=provider)
    one, other = (Pool(object, name=name, max_size=size) for size in (2, 3))
    use(one, 2)
    use(other, 3)
    with one.acquire(), other.acquire():
        points = collect(reader)
    assert value(points, "db.client.connection.max", name) == 5
    assert value(points, COUNT, name, state="used") == 2
    assert point(points, USE, name).count == 5


def test_names_are_limited(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of waits that the borrower records, too."""
    monkeypatch.setattr(figures, "MOST_POOLS", 1)
    many = [Pool(object, name=f"{name}-{number}", max_size=1) for number in range(4)]
    instrument(many, meter_provider=provider)
    for pool in many:
        wait_for_a_lease(pool, 0.003)
    points = collect(reader)
    for metric in (WAIT, USE, COUNT):
        assert {one.attributes[POOL] for one in points[metric]} == {f"{name}-0", figures.OTHERS}
    assert {one.attributes[POOL]: one.count for one in points[WAIT]} == {f"{name}-0": 2, figures.OTHERS: 6}


def test_counts_of_dropped_pools_stay(name: str, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    instrument(meter_provider=provider)
    for _ in range(2):
        pool = Pool(object, name=name, max_size=1)
        with pool.acquire(), pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)
        del pool
        gc.collect()
    end = time.monotonic() + 30
    while value(collect(reader), TIMEOUTS, name) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    points = collect(reader)
    assert value(points, TIMEOUTS, name) == 2
    assert point(points, USE, name).count == 2


def test_counts_survive_a_reset(name: str, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    instrument(meter_provider=provider)
    pool = Pool(object, name=name)
    for number in range(1, 4):
        use(pool, 2)
        assert point(collect(reader), USE, name).count == 2 * number
        pool.metrics.reset()


def test_queries_of_sqlite(name: str, reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Any) -> None:
    instrument(meter_provider=provider)
    with SQLitePool(tmp_path / "test.db", name=name, readers=2) as pool:
        pool.execute_query("CREATE TABLE one (x)")
        for number in range(20):
            pool.execute_query("INSERT INTO one VALUES (?)", (number,))
        expected = pool.queries()
        points = collect(reader)
        found = next(one for one in points[DB_CLIENT_OPERATION_DURATION] if one.attributes[POOL] == name)
        assert found.count == expected.count and found.sum == pytest.approx(expected.count * expected.mean, rel=0.02)
        assert value(points, "db.client.connection.max", f"{name}-readers") == 2


# -- waits -------------------------------------------------------------------------------------


def test_a_long_wait_is_an_event_of_the_current_span(
    name: str, provider: MeterProvider, spans: tuple[Any, InMemorySpanExporter]
) -> None:
    tracer, exporter = spans
    instrument(meter_provider=provider)
    pool = Pool(object, name=name, max_size=1)
    use(pool)
    with tracer.start_as_current_span("waits"):
        waited = wait_for_a_lease(pool, 0.02)
    with tracer.start_as_current_span("times out"), pool.acquire(), pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.01)
    with tracer.start_as_current_span("does not wait"):
        use(pool)
        with pool.acquire(), pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)
    first, second, third = exporter.get_finished_spans()
    (event,) = first.events
    assert event.name == WAIT_EVENT == "pooling.wait"
    assert event.attributes[POOL] == name and event.attributes["pooling.wait.outcome"] == "acquired"
    assert 0.02 <= event.attributes["pooling.wait.duration"] <= waited
    (event,) = second.events
    assert event.attributes["pooling.wait.outcome"] == "timeout"
    assert event.attributes["pooling.wait.duration"] >= 0.01
    assert not third.events and len(exporter.get_finished_spans()) == 3  # no span for an acquire


def test_short_waits_are_no_events(name: str, spans: tuple[Any, InMemorySpanExporter]) -> None:
    tracer, exporter = spans
    instrument(meter_provider=NoOpMeterProvider())
    pool = Pool(object, name=name)
    with tracer.start_as_current_span("one"):
        for seconds in (LONG_WAIT, LONG_WAIT * 1.01):
            pool.engine.events.notify("waited", seconds)
    (span,) = exporter.get_finished_spans()
    assert [event.attributes["pooling.wait.duration"] for event in span.events] == [LONG_WAIT * 1.01]


def test_an_exemplar_refers_to_the_trace_that_waited(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider, spans: tuple[Any, InMemorySpanExporter]
) -> None:
    tracer, _ = spans
    instrument(meter_provider=provider)
    pool = Pool(object, name=name, max_size=1)
    use(pool)
    with tracer.start_as_current_span("waits") as span:
        waited = wait_for_a_lease(pool, 0.02)
        trace_id = span.get_span_context().trace_id
    found = point(collect(reader), WAIT, name)
    (exemplar,) = [one for one in found.exemplars if one.trace_id == trace_id]
    assert 0.02 <= exemplar.value <= waited and found.count == 3


def test_waits_are_counted_once_on_both_sides_of_the_border(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    """Those that the borrower records, and those that are recorded later."""
    instrument(meter_provider=provider)
    pool = Pool(object, name=name, max_size=1)
    waits = [bound_of(20) * factor for factor in (0.5, 0.99, 0.999999, 1.0, 1.000001, 2.0)]
    for seconds in waits:  # what a checkout does
        pool.metrics.durations.wait.record(seconds)
        pool.engine.events.notify("waited", seconds)
        found = point(collect(reader), WAIT, name)
    assert found.count == len(waits)
    border = found.explicit_bounds.index(0.001024)
    assert sum(found.bucket_counts[border + 1 :]) >= 2 and found.sum == pytest.approx(sum(waits), rel=0.2)


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.4, 100.0])
def test_long_waits_are_recorded_exactly(
    factor: float, name: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    instrument(meter_provider=provider)
    pool = Pool(object, name=name)
    pool.engine.events.notify("waited", bound_of(20) * factor)
    assert point(collect(reader), WAIT, name).sum == bound_of(20) * factor


def test_too_many_durations_are_recorded_later(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """So that a reader is not timed out. This is logged once."""
    pay = backlog.Series.pay
    monkeypatch.setattr(backlog, "MOST", 2.0)
    monkeypatch.setattr(backlog.Series, "pay", lambda *args: (time.sleep(0.01), pay(*args)))  # a slow SDK
    caplog.set_level("INFO", "pooling")
    instrument(meter_provider=provider)
    pool = Pool(object, name=name)
    use(pool, 50_000)
    counts = []
    for _ in range(2):
        reader.collect(timeout_millis=3000)
        points = collect(reader)
        assert value(points, COUNT, name, state="idle") == 1
        recorded = [point(points, metric, name) for metric in (WAIT, USE) if metric in points]
        counts.append(sum(one.count for one in recorded if one is not None))
    assert 0 < counts[0] <= counts[1] < 100_000
    monkeypatch.undo()
    (message,) = [one.getMessage() for one in caplog.records if "recorded later" in one.getMessage()]
    assert message.startswith("OpenTelemetry: ")


def test_an_acquire_that_need_not_wait_does_not_know_of_it(name: str) -> None:
    pool = Pool(object, name=name)
    use(pool)

    def calls() -> list[str]:
        found: list[str] = []
        sys.setprofile(lambda frame, event, argument: found.append(frame.f_code.co_name) if event == "call" else None)
        try:
            with pool.acquire():
                pass
        finally:
            sys.setprofile(None)
        return found

    before = calls()
    instrument()
    assert calls() == before and "acquire" in before


# -- start and stop ----------------------------------------------------------------------------


def test_durations_count_from_the_start_and_pools_may_exist_before(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    pool = Pool(object, name=name, max_size=1)
    use(pool, 5)
    wait_for_a_lease(pool, 0.003)
    instrument(meter_provider=provider)
    use(pool, 3)
    wait_for_a_lease(pool, 0.003)
    points = collect(reader)
    assert point(points, USE, name).count == point(points, WAIT, name).count == 5


def test_stop_and_start_again(name: str, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    instrument(meter_provider=provider)
    pool = Pool(object, name=name, max_size=1)
    use(pool, 3)
    uninstrument()
    uninstrument()
    use(pool, 10)
    wait_for_a_lease(pool, 0.003)
    points = collect(reader)
    assert point(points, USE, name).count == point(points, WAIT, name).count == 3 and COUNT not in points
    assert not any("opentelemetry" in type(one).__module__ for one in pool.engine.events.observers)
    instrument(meter_provider=provider)
    instrument(meter_provider=provider)
    use(pool, 4)
    points = collect(reader)
    assert point(points, USE, name).count == 7 and value(points, COUNT, name, state="idle") == 1


def test_another_provider_replaces_the_first(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    other = InMemoryMetricReader()
    with contextlib.closing(Closing([other])) as made:
        instrument(meter_provider=provider)
        pool = Pool(object, name=name)
        use(pool, 2)
        instrument(meter_provider=made.provider)
        use(pool, 3)
        assert point(collect(other), USE, name).count == 3
        points = collect(reader)
        assert point(points, USE, name).count == 2 and COUNT not in points


@pytest.mark.parametrize("how", ["one", "several", "manager"])
def test_given_pools_only(how: str, name: str, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    manager = PoolManager()
    mine, others = Pool(object, name=name, max_size=1), Pool(object, name=f"{name}-other", max_size=1)
    manager.add_pool(mine, name)
    instrument({"one": mine, "several": [mine], "manager": manager}[how], meter_provider=provider)
    for pool in (mine, others):
        use(pool, 2)
        wait_for_a_lease(pool, 0.003)
    points = collect(reader)
    assert point(points, USE, name).count == point(points, WAIT, name).count == 4
    assert {one.attributes[POOL] for one in points[COUNT]} == {one.attributes[POOL] for one in points[WAIT]} == {name}
    if how == "manager":  # later ones, too
        later = Pool(object, name=f"{name}-later")
        manager.add_pool(later, "later")
        use(later, 2)
        assert point(collect(reader), USE, f"{name}-later").count == 2


def test_parts_of_a_given_pool(name: str, reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Any) -> None:
    with SQLitePool(tmp_path / "test.db", name=name, readers=2) as pool:
        instrument(pool, meter_provider=provider)
        with pool.connection(readonly=True):
            points = collect(reader)
    assert value(points, COUNT, f"{name}-readers", state="used") == 1
    assert value(points, COUNT, name, state="used") == 0


def test_other_pools_that_are_dropped_do_not_count(
    name: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    mine = Pool(object, name=name)
    instrument(mine, meter_provider=provider)
    for _ in range(3):
        other = Pool(object, name=f"{name}-other")
        use(other)
        del other
        gc.collect()
    time.sleep(1)  # the reaper removes them
    use(mine)
    assert {one.attributes[POOL] for one in collect(reader)[USE]} == {name}


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"pools": 5}, TypeError, "must be a PoolManager, a pool or several pools, not 5"),
        ({"pools": "main"}, TypeError, "must be a PoolManager, a pool or several pools, not 'main'"),
        ({"meter_provider": 5}, TypeError, "meter_provider must be an opentelemetry MeterProvider, not 5"),
        ({"operations": "no"}, TypeError, "operations must be a bool, not 'no'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        instrument(**arguments)
    assert text in str(caught.value)


def test_without_a_provider_nothing_happens(name: str) -> None:
    """Only the API is installed."""
    instrument()
    pool = Pool(object, name=name, max_size=1)
    wait_for_a_lease(pool, 0.003)
    assert type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"


def test_instrumentor(name: str, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    PoolingInstrumentor().instrument(meter_provider=provider, skip_dep_check=True)
    pool = Pool(object, name=name)
    use(pool)
    assert point(collect(reader), USE, name).count == 1
    PoolingInstrumentor().uninstrument()
    assert COUNT not in collect(reader)


def test_needs_the_api_only() -> None:
    """Not the SDK, and nothing of it is imported before it is used (P11)."""
    program = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.instrumentation", "opentelemetry.semconv", BLOCKED)):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Gone())
import pooling.observe
assert not any(name.startswith("opentelemetry") for name in sys.modules)
try:
    from pooling.observe.opentelemetry import instrument
except ImportError as error:
    print(error)
else:
    instrument()
    pool = pooling.Pool(object)
    with pool.acquire():
        print("used")
"""
    found = [
        subprocess.run(
            [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{program}"], cwd=ROOT, capture_output=True, text=True
        )
        for blocked in ("opentelemetry.sdk", "opentelemetry.metrics")
    ]
    assert [one.stderr for one in found] == ["", ""]
    assert found[0].stdout == "used\n"
    assert found[1].stdout == "opentelemetry-api is missing: pip install 'pooling[opentelemetry]'\n"


# -- observers of all pools --------------------------------------------------------------------


def test_observers_of_all_pools_are_added_to_new_ones_once(name: str, tmp_path: Any) -> None:
    heard: list[str] = []
    observer = Observer()
    observer.created = lambda pool, seconds: heard.append(pool)  # type: ignore[method-assign]
    EVERYWHERE.append(observer)
    try:
        pool = Pool(object, name=name, observers=[observer])
        pool.add_observer(observer)
        use(pool)
        with SQLitePool(tmp_path / "test.db", name=f"{name}-db") as db:
            db.execute_query("SELECT 1")
        http = HTTPPool(name=f"{name}-http", observers=[observer])
        http.add_observer(observer)
        with pytest.raises(Exception, match="refused"):
            http.get("http://127.0.0.1:9/")
        http.close()
    finally:
        EVERYWHERE.remove(observer)
    assert heard == [name, f"{name}-db", f"{name}-http"]
