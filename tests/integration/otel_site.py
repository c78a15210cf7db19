"""An application that is loaded and instrumented in the parent of its workers; each worker exports its own figures.

``/use?n=3`` takes so many leases and answers which process did. With ``OTLP`` in the environment each worker sets
a provider of its own, which sends to that address. With ``EXPORTED`` the parent sets one, whose exporter writes
into that directory.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import parse_qs

from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from pooling import Pool
from pooling.observe.opentelemetry import instrument

INTERVAL = 500.0  # milliseconds between two exports


class Files(MetricExporter):
    """Writes the counts of the histograms of the pool into a file of each process."""

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        counts = {
            metric.name: point.count
            for resource in metrics_data.resource_metrics for scope in resource.scope_metrics
            for metric in scope.metrics for point in metric.data.data_points if hasattr(point, "count")
        }  # fmt: skip
        path = os.path.join(os.environ["EXPORTED"], f"{os.getpid()}.json")
        with open(f"{path}.new", "w") as file:
            json.dump(counts, file)
        os.replace(f"{path}.new", path)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None: ...


def provide(exporter: MetricExporter) -> None:
    """Set the provider of this process."""
    resource = Resource({"service.name": "shop", "service.instance.id": str(os.getpid())})
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(exporter, INTERVAL)], resource))


def begin_worker(*args: Any) -> None:
    """Called in each worker, after it was forked."""
    if "OTLP" in os.environ:
        provide(OTLPMetricExporter(os.environ["OTLP"]))


if "EXPORTED" in os.environ:
    provide(Files())
instrument()
things: Pool[Any] = Pool(object, max_size=2, name="things")
try:
    import uwsgi
except ImportError:
    pass
else:
    uwsgi.post_fork_hook = begin_worker


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """Answer; each response says which process it is from."""
    times = int(parse_qs(environ["QUERY_STRING"]).get("n", ["0"])[0])
    for _ in range(times):
        with things.acquire():
            pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    return [f"{times}".encode()]
