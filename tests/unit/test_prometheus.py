"""The collector: names and units, labels, HikariCP's names, and the board and alerts that read them."""

from __future__ import annotations

import importlib.resources
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pooling import Pool
from pooling.core.report.histogram import SHORT, bound_of
from pooling.observe import figures, local, prometheus
from pooling.observe.local import Local
from pooling.observe.prometheus import PoolCollector
from pooling.observe.shared import Totals
from pooling.web.wsgi import metrics_app

numbers = itertools.count()

# OpenTelemetry semantic conventions 1.44: docs/db/database-metrics.md and docs/http/http-metrics.md.
# Name: instrument and unit. Left out: db.client.operation.duration, which a pool does not see.
CONVENTIONS = {
    "db.client.connection.count": ("updowncounter", "{connection}"),
    "db.client.connection.idle.max": ("updowncounter", "{connection}"),
    "db.client.connection.idle.min": ("updowncounter", "{connection}"),
    "db.client.connection.max": ("updowncounter", "{connection}"),
    "db.client.connection.pending_requests": ("updowncounter", "{request}"),
    "db.client.connection.timeouts": ("counter", "{timeout}"),
    "db.client.connection.create_time": ("histogram", "s"),
    "db.client.connection.wait_time": ("histogram", "s"),
    "db.client.connection.use_time": ("histogram", "s"),
    "http.client.open_connections": ("updowncounter", "{connection}"),
    "http.client.active_requests": ("updowncounter", "{request}"),
    "http.client.request.duration": ("histogram", "s"),
    "http.client.connection.duration": ("histogram", "s"),
}
# How the OpenTelemetry specification ("Prometheus and OpenMetrics Compatibility") translates them.
TYPES = {"updowncounter": "gauge", "counter": "counter", "histogram": "histogram"}

UNITS = {"s": "seconds"}


def translate(name: str, unit: str) -> str:
    parts = [*name.split("."), UNITS.get(unit, "")]
    return "_".join(part for part in parts if part)


# What Micrometer's binding of HikariCP exports (MicrometerMetricsTracker) in the Prometheus format.
HIKARI = {
    "hikaricp_connections": "gauge",
    "hikaricp_connections_active": "gauge",
    "hikaricp_connections_idle": "gauge",
    "hikaricp_connections_pending": "gauge",
    "hikaricp_connections_max": "gauge",
    "hikaricp_connections_min": "gauge",
    "hikaricp_connections_acquire_seconds": "summary",
    "hikaricp_connections_acquire_seconds_max": "gauge",
    "hikaricp_connections_usage_seconds": "summary",
    "hikaricp_connections_usage_seconds_max": "gauge",
    "hikaricp_connections_creation_seconds": "summary",
    "hikaricp_connections_creation_seconds_max": "gauge",
    "hikaricp_connections_timeout": "counter",
}

# The queries of Grafana's board 17313, with its variables filled in.
BOARD_17313 = [
    f"{name}{{instance=\"i\", application=\"shop\", pool=\"db\"}}" for name in (
        "hikaricp_connections", "hikaricp_connections_active", "hikaricp_connections_idle",
        "hikaricp_connections_pending", "hikaricp_connections_max", "hikaricp_connections_min",
        "hikaricp_connections_timeout_total", "hikaricp_connections_creation_seconds_sum",
        "hikaricp_connections_creation_seconds_count", "hikaricp_connections_usage_seconds_sum",
        "hikaricp_connections_usage_seconds_count", "hikaricp_connections_acquire_seconds_sum",
        "hikaricp_connections_acquire_seconds_count",
    )
]  # fmt: skip


class Fixed:
    """Totals that a test has made."""

    def __init__(self, **pools: dict[str, Any]) -> None:
        empty: dict[str, Any] = {"gauges": {}, "peaks": {}, "holders": []}
        self.totals = Totals({name: {**empty, **one} for name, one in pools.items()}, 2)

    def read(self) -> Totals:
        return self.totals


COUNTERS = {
    "acquired": 10, "timeouts": 1, "closed/expired": 2, "closed/dead": 1, "errors/OSError": 4, "wait.short": 5,
    "wait.ns": 1_250_000_000, "wait/20": 3, "wait/60": 1, "wait/61": 1, "use.short": 9, "use.ns": 500_000_000,
    "https://api.example.com\tstatuses/200": 7, "https://api.example.com\tstatuses/503": 1,
    "https://api.example.com\tfailures/timeout": 2, "https://api.example.com\tretries": 3,
    "https://api.example.com\tlatency/30": 8, "https://api.example.com\tlatency.ns": 250_000_000,
    "https://api.example.com\tbytes_sent": 100, "https://api.example.com\tlifetime/50": 3,
    "https://api.example.com\tlifetime/61": 1, "https://api.example.com\tlifetime.ns": 3600_000_000_000,
}  # fmt: skip
GAUGES = {
    "idle": 3, "used": 2, "size": 6, "pending": 1, "max": 20, "idle_max": 10, "idle_min": 4, "acquire_timeout": 30.0,
    "oldest_wait": 1.5, "down": 1,
}  # fmt: skip
PEAKS = {"in_use": 7, "waiting": 2, "wait": 1.5, "use": 0.25, "create": 0.125}
FULL = Fixed(db={"counters": COUNTERS, "gauges": GAUGES, "peaks": PEAKS})


def collected(**options: Any) -> dict[str, Metric]:
    return {metric.name: metric for metric in PoolCollector(**options).collect()}


def text(**options: Any) -> str:
    registry = CollectorRegistry()
    registry.register(PoolCollector(**options))
    return generate_latest(registry).decode()


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Parse a page with prometheus_client's parser."""
    found = {}
    for metric in text_string_to_metric_families(page):
        for sample in metric.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def value(page: str, name: str, **labels: str) -> float:
    return samples(page)[name, tuple(sorted(labels.items()))]


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVENTIONS)
def test_names_types_and_units_are_those_of_the_conventions(name: str) -> None:
    instrument, unit = CONVENTIONS[name]
    translated = translate(name, unit)
    found = collected(source=FULL)
    assert found[translated].type == TYPES[instrument]
    assert found[translated].samples


def test_other_names_are_of_a_namespace_of_their_own() -> None:
    known = {translate(name, unit) for name, (_, unit) in CONVENTIONS.items()}
    others = collected(source=FULL).keys() - known
    assert {name for name in others if not name.startswith("pooling_")} == set()
    for metric in collected(source=FULL).values():
        assert metric.documentation.endswith(".") and len(metric.documentation) < 100
        assert not re.search(r"millis|_ms$|_minutes", metric.name)


def test_names_of_hikari() -> None:
    assert {name: metric.type for name, metric in collected(names="hikari", source=FULL).items()} == HIKARI


def test_values_of_hikari() -> None:
    page = text(names="hikari", source=FULL)
    found = {name: number for (name, labels), number in samples(page).items() if labels == (("pool", "db"),)}
    assert found == {
        "hikaricp_connections": 6, "hikaricp_connections_active": 2, "hikaricp_connections_idle": 3,
        "hikaricp_connections_pending": 1, "hikaricp_connections_max": 20, "hikaricp_connections_min": 4,
        "hikaricp_connections_acquire_seconds_count": 10, "hikaricp_connections_acquire_seconds_sum": 1.25,
        "hikaricp_connections_acquire_seconds_max": 1.5, "hikaricp_connections_usage_seconds_count": 9,
        "hikaricp_connections_usage_seconds_sum": 0.5, "hikaricp_connections_usage_seconds_max": 0.25,
        "hikaricp_connections_creation_seconds_count": 0, "hikaricp_connections_creation_seconds_sum": 0,
        "hikaricp_connections_creation_seconds_max": 0.125, "hikaricp_connections_timeout_total": 1,
    }  # fmt: skip


@pytest.mark.parametrize("query", BOARD_17313)
def test_board_of_hikari_finds_its_series(query: str) -> None:
    """Prometheus adds ``instance``; ``application`` is a label that the collector is given."""
    name, _, labels = query.partition("{")
    wanted = dict(re.findall(r'(\w+)="(\w+)"', labels))
    del wanted["instance"]
    page = text(names="hikari", labels={"application": "shop"}, source=FULL)
    assert (name, tuple(sorted(wanted.items()))) in samples(page)


# -- values --------------------------------------------------------------------------------------


def test_gauges_counters_and_peaks() -> None:
    page = text(source=FULL)
    assert value(page, "db_client_connection_count", pool="db", state="idle") == 3
    assert value(page, "db_client_connection_count", pool="db", state="used") == 2
    assert value(page, "db_client_connection_max", pool="db") == 20
    assert value(page, "db_client_connection_idle_max", pool="db") == 10
    assert value(page, "db_client_connection_idle_min", pool="db") == 4
    assert value(page, "db_client_connection_pending_requests", pool="db") == 1
    assert value(page, "db_client_connection_timeouts_total", pool="db") == 1
    assert value(page, "pooling_acquired_total", pool="db") == 10
    assert value(page, "pooling_closed_total", pool="db", reason="expired") == 2
    assert value(page, "pooling_errors_total", pool="db", kind="OSError") == 4
    assert value(page, "pooling_leaks_total", pool="db") == 0
    assert value(page, "pooling_in_use_peak", pool="db") == 7
    assert value(page, "pooling_wait_time_peak_seconds", pool="db") == 1.5
    assert value(page, "pooling_down", pool="db") == 1
    assert value(page, "pooling_processes") == 2


def test_histogram_counts_every_duration_once() -> None:
    page = text(source=FULL)
    found = {
        dict(labels)["le"]: number for (name, labels), number in samples(page).items()
        if name == "db_client_connection_wait_time_seconds_bucket"
    }  # fmt: skip
    assert list(found.values()) == sorted(found.values())
    assert found["0.000128"] == 5  # the short ones
    assert found["0.000512"] == 5 and found["0.001024"] == 8  # place 20 ends at 1.024 ms
    assert found["67.108864"] == 8 and found["+Inf"] == 10
    assert value(page, "db_client_connection_wait_time_seconds_count", pool="db") == 10
    assert value(page, "db_client_connection_wait_time_seconds_sum", pool="db") == 1.25


def test_buckets_are_bounds_of_the_pool_s_own() -> None:
    assert all(bound_of(place) > SHORT for place in prometheus.PLACES)
    assert [round(bound_of(place), 6) for place in prometheus.PLACES][:4] == [0.000128, 0.000256, 0.000512, 0.001024]


def test_http_by_host() -> None:
    page = text(source=FULL)
    host = {"pool": "db", "host": "https://api.example.com"}
    assert value(page, "http_client_request_duration_seconds_count", **host) == 8
    assert value(page, "http_client_request_duration_seconds_sum", **host) == 0.25
    assert value(page, "http_client_connection_duration_seconds_count", **host) == 4
    assert value(page, "http_client_connection_duration_seconds_sum", **host) == 3600
    assert value(page, "http_client_connection_duration_seconds_bucket", le="67.108864", **host) == 3
    assert value(page, "http_client_connection_duration_seconds_bucket", le="1073.741824", **host) == 3
    assert value(page, "http_client_open_connections", pool="db", state="active") == 2
    assert value(page, "http_client_open_connections", pool="db", state="idle") == 3
    assert value(page, "http_client_active_requests", pool="db") == 2
    assert value(page, "pooling_http_responses_total", code="503", **host) == 1
    assert value(page, "pooling_http_failures_total", kind="timeout", **host) == 2
    assert value(page, "pooling_http_retries_total", **host) == 3
    assert value(page, "pooling_http_sent_bytes_total", **host) == 100


OF_A_BACKEND = {"backend_used": 2, "backend_latency": 0.25, "backend_ejected": 1, "backend_zone/eu": 3}
GROUP = {
    "counters": {
        "http://a\tejections": 4, "http://a\thedges": 3, "http://a\thedges_won": 2, "http://elsewhere\topened": 1,
    },  # fmt: skip
    "gauges": {**{f"http://a/api\t{key}": number for key, number in OF_A_BACKEND.items()}, "http://a\tidle": 1},
}


def test_servers_of_a_group() -> None:
    page = text(source=Fixed(group=GROUP, other={"counters": {"http://b\tejections": 9}, "gauges": {}}))
    backend = {"pool": "group", "backend": "http://a/api", "zone": "eu"}
    assert value(page, "pooling_backend_in_use", **backend) == 2
    assert value(page, "pooling_backend_pending_requests", **backend) == 0
    assert value(page, "pooling_backend_latency_seconds", **backend) == 0.25
    assert value(page, "pooling_backend_ejected", **backend) == 1
    assert value(page, "pooling_http_ejections_total", pool="group", host="http://a") == 4
    assert value(page, "pooling_http_hedges_total", pool="group", host="http://a") == 3
    assert value(page, "pooling_http_hedges_won_total", pool="group", host="http://a") == 2
    assert page.count("pooling_backend_in_use{") == 1 and page.count("pooling_http_ejections_total{") == 2


def test_pool_of_dead_processes_has_counters_only() -> None:
    page = text(source=Fixed(old={"counters": {"acquired": 3}}))
    assert value(page, "pooling_acquired_total", pool="old") == 3
    assert "db_client_connection_max{" not in page and "http_client" not in page


def test_strange_names_are_escaped() -> None:
    page = text(source=Fixed(**{'a "b"\n\\c': {"counters": {"acquired": 3}}}))
    assert value(page, "pooling_acquired_total", pool='a "b"\n\\c') == 3


@pytest.mark.parametrize("names", prometheus.NAMES)
def test_page_is_well_formed(names: str) -> None:
    registry = CollectorRegistry()
    registry.register(PoolCollector(names=names, source=FULL))
    assert samples(generate_latest(registry).decode())
    assert list(parse_openmetrics(generate_openmetrics(registry).decode()))


def test_real_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_POOLS", 1 << 20)  # other tests have pools, too
    monkeypatch.setattr(local, "LISTENERS", [])
    source = Local()
    name = f"prometheus-{next(numbers)}"
    pool: Pool[Any] = Pool(object, name=name, max_size=2)
    for _ in range(3):
        with pool.acquire():
            pass
    with pool.acquire():
        page = text(source=source)
    assert value(page, "pooling_acquired_total", pool=name) == 4
    assert value(page, "db_client_connection_count", pool=name, state="used") == 1
    assert value(page, "db_client_connection_wait_time_seconds_count", pool=name) == 4
    assert value(page, "db_client_connection_use_time_seconds_count", pool=name) == 3
    assert value(page, "db_client_connection_create_time_seconds_count", pool=name) == 1
    pool.close()


def test_registering_reads_nothing() -> None:
    class Unread:
        def read(self) -> Totals:
            raise AssertionError

    registry = CollectorRegistry(auto_describe=True)
    registry.register(PoolCollector(source=Unread()))


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"names": "micrometer"}, ValueError, "names must be one of 'otel', 'hikari', not 'micrometer'"),
        ({"names": None}, ValueError, "names must be one of 'otel', 'hikari', not None"),
        ({"labels": "a"}, TypeError, "labels must be a mapping of names to values, not 'a'"),
        ({"labels": {"a": 1}}, TypeError, "labels must have names and values of type str, not 'a': 1"),
        ({"labels": {"a-b": "c"}}, ValueError, "labels must have names of letters, digits and underscores, not 'a-b'"),
        ({"labels": {"__a": "c"}}, ValueError, "labels must have names of letters, digits and underscores, not '__a'"),
        ({"labels": {"pool": "c"}}, ValueError, "labels must not have the name 'pool': the metrics have a label"),
        ({"source": 3}, TypeError, r"source must have a read\(\) method, not be 3"),
    ],
)
def test_bad_argument_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PoolCollector(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "token or admit must be given: metrics name pools and hosts"),
        ({"token": ""}, ValueError, "token must not be empty"),
        ({"token": 3}, TypeError, "metrics token must be a string, not int"),
        ({"admit": 3}, TypeError, "admit must be callable, not 3"),
        ({"token": "t", "names": "x"}, ValueError, "names must be one of"),
    ],
)
def test_bad_argument_of_the_page_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        metrics_app(**options)


# -- over HTTP --------------------------------------------------------------------------------------


def get(app: Any, method: str = "GET", **headers: str) -> tuple[str, dict[str, str], bytes]:
    answer: list[Any] = []
    environ = {"REQUEST_METHOD": method, **{f"HTTP_{name.upper()}": value for name, value in headers.items()}}
    body = b"".join(app(environ, lambda status, headers: answer.extend((status, dict(headers)))))
    return answer[0], answer[1], body


def test_page_is_for_those_with_the_token() -> None:
    app = metrics_app(token="secret")
    status, headers, body = get(app, authorization="Bearer secret")
    assert status == "200 OK" and b"pooling_processes" in body
    assert headers["Content-Type"].startswith("text/plain; version=") and headers["Cache-Control"] == "no-store"
    for sent in ("", "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer sécret"):
        status, headers, body = get(app, authorization=sent)
        assert (status, body) == ("401 Unauthorized", b"") and headers["WWW-Authenticate"].startswith("Bearer")


def test_page_is_for_those_who_are_admitted() -> None:
    app = metrics_app(admit=lambda environ: environ.get("HTTP_FROM") == "prometheus")
    assert get(app, **{"from": "prometheus"})[0] == "200 OK"
    assert get(app)[0] == "401 Unauthorized"


def test_page_in_the_format_that_is_accepted() -> None:
    app = metrics_app(token="t")
    accept = "application/openmetrics-text; version=1.0.0"
    _, headers, body = get(app, authorization="Bearer t", accept=accept)
    assert headers["Content-Type"].startswith("application/openmetrics-text") and body.endswith(b"# EOF\n")


def test_other_methods() -> None:
    app = metrics_app(token="t")
    status, headers, body = get(app, "HEAD", authorization="Bearer t")
    assert (status, body) == ("200 OK", b"") and int(headers["Content-Length"]) > 0
    assert get(app, "POST", authorization="Bearer t")[0] == "405 Method Not Allowed"


def test_metrics_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def read(self) -> Totals:
            raise TimeoutError("no turn")

    monkeypatch.setattr(prometheus, "current", Broken)
    status, _, body = get(metrics_app(token="t"), authorization="Bearer t")
    assert (status, body) == ("503 Service Unavailable", b"metrics cannot be read; see the log\n")
    assert "no turn" in caplog.text


def test_flask() -> None:
    flask = pytest.importorskip("flask")
    from pooling.web.flask import Pooling

    app = flask.Flask(__name__)
    app.register_blueprint(Pooling.metrics_blueprint("/m", token="t"))
    client = app.test_client()
    assert client.get("/m").status_code == 401
    found = client.get("/m", headers={"Authorization": "Bearer t"})
    assert found.status_code == 200 and b"pooling_processes" in found.data
    assert client.post("/m").status_code == 405


DJANGO = """
import django
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], {settings})
django.setup()
from django.test import Client
from django.urls import path
from pooling.web.django.metrics import metrics
urlpatterns = [path("metrics", metrics)]
print(Client().get("/metrics").status_code, end=" ")
found = Client().get("/metrics", HTTP_AUTHORIZATION="Bearer t")
print(found.status_code, b"pooling_processes" in found.content, b"hikaricp" in found.content)
"""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('POOLING_METRICS_TOKEN="t"', "401 200 True False"),
        ('POOLING_HEALTH_TOKEN="t"', "401 200 True False"),
        ('POOLING_METRICS_TOKEN="t", POOLING_HEALTH_TOKEN="h", POOLING_METRICS_NAMES="hikari"', "401 200 False True"),
        ("", "401 401 False False"),
    ],
)
def test_django(settings: str, expected: str, tmp_path: Path) -> None:
    pytest.importorskip("django")
    script = tmp_path / "site.py"
    script.write_text(DJANGO.replace("{settings}", settings))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env={"PYTHONPATH": str(root)}, cwd=tmp_path
    )
    assert done.stdout.strip() == expected, done.stderr


# -- the board and the alerts --------------------------------------------------------------------------

FILES = importlib.resources.files("pooling.observe")
WORDS = {
    "sum", "max", "by", "on", "rate", "increase", "histogram_quantile", "label_values", "pool", "le",
    "job", "instance", "state", "reason", "kind", "code", "host", "backend", "used", "m", "s", "interval",
    "rate_interval",
}  # fmt: skip


def exported() -> set[str]:
    """The names of all series that the collector exports."""
    of_servers = {"primary": 1, "readable": 0, "lag": 0.5, "circuits_open": 1}
    pools = {"server": {"counters": {}, "gauges": of_servers}, "group": GROUP}
    return {name for source in (FULL, Fixed(**pools)) for name, _ in samples(text(source=source))}


def metric_names(expression: str) -> Iterator[str]:
    """What is left of an expression without functions, labels and what is in braces and brackets."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", "", expression)
    yield from (word for word in re.findall(r"[a-zA-Z_][a-zA-Z0-9_]*", bare) if word not in WORDS)


def board_expressions() -> list[str]:
    board = json.loads(FILES.joinpath("grafana-board.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return found + [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(FILES.joinpath("prometheus-alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("expression", board_expressions())
def test_board_reads_what_is_exported(expression: str) -> None:
    assert set(metric_names(expression)) <= exported()
    assert set(metric_names(expression))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_alert_reads_what_is_exported(rule: dict[str, Any]) -> None:
    assert set(metric_names(rule["expr"])) and set(metric_names(rule["expr"])) <= exported()
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description"} == set(rule["annotations"])


def test_unknown_name_in_an_expression_is_seen() -> None:
    assert set(metric_names('sum by (pool) (rate(pooling_none_total{pool="x"}[5m])) > 1')) == {"pooling_none_total"}


def test_error_without_the_client_says_what_to_install() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None\nfrom pooling.web.wsgi import metrics_app\n"
    done = subprocess.run([sys.executable, "-c", f"{code}metrics_app(token='x')"], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'pooling[prometheus]'" in done.stderr


def test_panels_of_the_board_do_not_overlap() -> None:
    panels = json.loads(FILES.joinpath("grafana-board.json").read_text())["panels"]
    cells = [
        (x, y) for panel in panels for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]  # fmt: skip
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    """And the expressions of the board, as rules. CI has promtool."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; apt-get download prometheus")
    made = [
        {"record": f"board:expression{number}", "expr": re.sub(r"\$__\w+", "1m", expression)}
        for number, expression in enumerate(board_expressions()) if not expression.startswith("label_values")
    ]  # fmt: skip
    board = tmp_path / "board.yml"
    board.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": made}]}))
    with importlib.resources.as_file(FILES.joinpath("prometheus-alerts.yml")) as alerts:
        done = subprocess.run([promtool, "check", "rules", str(alerts), str(board)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(made)} rules found" in done.stdout and f"SUCCESS: {len(rules())} rules found" in done.stdout
