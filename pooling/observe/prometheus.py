"""A collector for prometheus_client: the pools of one process, or of all that share a directory.

::

    from prometheus_client import REGISTRY
    from pooling.observe.prometheus import PoolCollector

    REGISTRY.register(PoolCollector())

With ``POOLING_METRICS_DIR`` it exports the figures of all processes that share
it (see `shared`), whichever of them is scraped. It may stand beside
prometheus_client's own ``MultiProcessCollector`` in one registry.

Names are those of OpenTelemetry's semantic conventions, with underscores and
units, as far as there are any; the others begin with ``pooling_``. Every pool
is exported under them, whatever it lends. Durations are in seconds. Pools of one
name are summed. ``names="hikari"`` exports what HikariCP does through
Micrometer, for boards that were made for it, such as Grafana's 17313.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
        SummaryMetricFamily,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError("prometheus_client is missing: pip install 'pooling[prometheus]'") from error

from .._masking import shown
from ..core.report.histogram import bound_of
from .figures import Figures, by_host, kinds_of
from .shared import Totals, current

__all__ = ["NAMES", "PoolCollector"]

NAMES = ("otel", "hikari")
"""The sets of names that a collector can export."""

_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_OWN_LABELS = {"pool", "host", "state", "reason", "kind", "lane", "code", "le", "quantile", "backend", "zone"}

# Bounds of the pools' own buckets, so that the counts are exact: 128 µs to 67 s in steps of 2, for hosts of 4.
PLACES = range(14, 54, 2)
_HOST_PLACES = range(14, 54, 4)
_LIFETIME_PLACES = range(28, 61, 4)  # 16 ms to 18 minutes

_GAUGES = (
    ("idle_max", "db_client_connection_idle_max", "The maximum number of idle open connections allowed."),
    ("idle_min", "db_client_connection_idle_min", "The minimum number of idle open connections allowed."),
    ("max", "db_client_connection_max", "The maximum number of open connections allowed."),
    ("pending", "db_client_connection_pending_requests", "The number of pending requests for an open connection."),
    ("oldest_wait", "pooling_oldest_wait_seconds", "How long the oldest waiting request has been waiting."),
    ("acquire_timeout", "pooling_acquire_timeout_seconds", "The time limit for acquiring a connection."),
    ("down", "pooling_down", "The number of processes that consider the server down."),
)  # fmt: skip
_BUDGETS = (
    ("budget_share", "pooling_budget_share", "The connections that the budget allows to these processes now."),
    ("budget_total", "pooling_budget_total", "The connections that the budget allows to all processes together."),
)
_CIRCUITS = ("circuits_open", "pooling_circuits_open", "Circuit breakers that are open or half-open.")
_SERVERS = (
    ("primary", "pooling_server_primary", "Whether the server is the primary of its cluster."),
    ("readable", "pooling_server_readable", "Whether the server is a replica that reads go to."),
    ("lag", "pooling_server_lag_seconds", "How many seconds a replica is behind."),
)
_PEAKS = (
    ("in_use", "pooling_in_use_peak", "The most connections in use at once since the last scrape."),
    ("waiting", "pooling_pending_requests_peak", "The most pending requests at once since the last scrape."),
    ("wait", "pooling_wait_time_peak_seconds", "The longest wait for a connection since the last scrape."),
    ("use", "pooling_use_time_peak_seconds", "The longest use of a connection since the last scrape."),
    ("create", "pooling_create_time_peak_seconds", "The longest creation of a connection since the last scrape."),
)  # fmt: skip
_COUNTERS = (
    ("timeouts", "db_client_connection_timeouts", "The number of timeouts of requests for a connection."),
    ("acquired", "pooling_acquired", "Connections acquired."),
    ("created", "pooling_created", "Connections created."),
    ("refusals", "pooling_refusals", "Requests refused because the wait queue was full."),
    ("turned_away", "pooling_failed_requests", "Requests that failed with another error than a timeout or a refusal."),
    ("exhausted", "pooling_exhausted", "How often all connections came to be in use and requests to wait."),
    ("validation_failures", "pooling_validation_failures", "Connections that proved dead."),
    ("health_failures", "pooling_health_check_failures", "Health checks that failed."),
    ("leaks", "pooling_leaks", "Connections held for longer than leak_timeout."),
    ("orphans", "pooling_orphans", "Connections that were dropped without a release."),
)  # fmt: skip
_KINDS = (
    ("closed", "pooling_closed", "reason", "Connections closed, by reason."),
    ("errors", "pooling_errors", "kind", "Errors when a connection was created or a request was sent, by kind."),
)
_LANES = (  # of pools with lanes only
    ("lane_acquired", "pooling_lane_acquired", "Connections acquired, by lane."),
    ("lane_waited", "pooling_lane_wait_seconds", "The seconds for which requests waited for them, by lane."),
    ("lane_timeouts", "pooling_lane_timeouts", "Timeouts of requests for a connection, by lane."),
    ("lane_refusals", "pooling_lane_refusals", "Requests refused because the lane's wait queue was full."),
)
_HISTOGRAMS = (
    ("create", "db_client_connection_create_time_seconds", "The time it took to create a new connection."),
    ("wait", "db_client_connection_wait_time_seconds", "The time it took to obtain an open connection from the pool."),
    ("use", "db_client_connection_use_time_seconds", "The time between borrowing a connection and returning it."),
)  # fmt: skip
_HOST_HISTOGRAMS = (
    ("latency", "http_client_request_duration_seconds",
     "Duration of HTTP client requests, until the head of the response.", _HOST_PLACES),
    ("lifetime", "http_client_connection_duration_seconds",
     "The duration of the successfully established outbound HTTP connections.", _LIFETIME_PLACES),
)  # fmt: skip
_HOST_COUNTERS = (
    ("retries", "pooling_http_retries", "Requests sent again by the retry policy."),
    ("resent", "pooling_http_resent", "Requests sent again because a kept connection had died."),
    ("opened", "pooling_http_connections_opened", "Connections opened."),
    ("reused", "pooling_http_connections_reused", "Requests on a connection that was open already."),
    ("bytes_sent", "pooling_http_sent_bytes", "Bytes sent, without TLS."),
    ("bytes_received", "pooling_http_received_bytes", "Bytes received, without TLS."),
)
_BACKENDS = (  # of HTTP pools with several servers only
    ("backend_used", "pooling_backend_in_use", "Requests in progress at the server."),
    ("backend_pending", "pooling_backend_pending_requests", "Requests that wait for a connection to the server."),
    ("backend_latency", "pooling_backend_latency_seconds", "Moving average of the latency; of processes the highest."),
    ("backend_failing", "pooling_backend_failing_ratio", "Moving average of failures; of processes the highest."),
    ("backend_ejected", "pooling_backend_ejected", "The number of processes that have ejected the server."),
    ("backend_circuit_open", "pooling_backend_circuit_open", "The number of processes with an open circuit."),
)
_BACKEND_COUNTERS = (
    ("ejections", "pooling_http_ejections", "How often a server of several was ejected."),
    ("hedges", "pooling_http_hedges", "Requests sent because another server had not begun to answer them."),
    ("hedges_won", "pooling_http_hedges_won", "Those of them that this server answered first."),
)
_HOST_KINDS = (
    ("statuses", "pooling_http_responses", "code", "Responses, by status code."),
    ("failures", "pooling_http_failures", "kind", "Requests without a response, by kind."),
)
_HIKARI_GAUGES = (
    ("size", "hikaricp_connections", "Total connections"),
    ("used", "hikaricp_connections_active", "Active connections"),
    ("idle", "hikaricp_connections_idle", "Idle connections"),
    ("pending", "hikaricp_connections_pending", "Pending threads"),
    ("max", "hikaricp_connections_max", "Max connections"),
    ("idle_min", "hikaricp_connections_min", "Min connections"),
)
_HIKARI_TIMES = (
    ("wait", "hikaricp_connections_acquire_seconds", "Connection acquire time"),
    ("use", "hikaricp_connections_usage_seconds", "Connection usage time"),
    ("create", "hikaricp_connections_creation_seconds", "Connection creation time"),
)


class Source(Protocol):
    """What a collector reads; `SharedDirectory` is one."""

    def read(self) -> Totals:
        """Return the figures."""


class PoolCollector(Collector):
    """Exports the figures of pools.

    Peaks are those since the last time that anything read them; those of several
    processes are added up, times excepted.

    Args:
        names: ``"otel"``, or ``"hikari"`` for what HikariCP exports.
        labels: Further labels of every metric, with their values. Boards made
            for Micrometer expect ``{"application": ...}``.
        source: Read this instead of what the process shares, such as the
            `SharedDirectory` of another application of the same user.

    Raises:
        ValueError, TypeError: An argument is bad.
    """

    def __init__(
        self, *, names: str = "otel", labels: Mapping[str, str] | None = None, source: Source | None = None
    ) -> None:
        if names not in NAMES:
            raise ValueError(f"names must be one of {', '.join(map(repr, NAMES))}, not {shown(names)}")
        self._names = names
        self._labels = _checked(labels)
        if source is not None and not callable(getattr(source, "read", None)):
            raise TypeError(f"source must have a read() method, not be {shown(source)}")
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is depends on the pools, and registering reads no figures."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return all metrics.

        Raises:
            OSError: The shared directory cannot be used.
            TimeoutError: Another process has been reading it for seconds.
        """
        totals = (current() if self._source is None else self._source).read()
        make = _Families(self._labels, totals.pools)
        if self._names == "hikari":
            yield from make.hikari()
        else:
            yield from make.otel()
            yield make.single("pooling_processes", "Processes that use pools.", totals.processes)


def _checked(labels: Mapping[str, str] | None) -> dict[str, str]:
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels must be a mapping of names to values, not {shown(labels)}")
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"labels must have names and values of type str, not {shown(name)}: {shown(value)}")
        if not _LABEL.fullmatch(name):
            raise ValueError(f"labels must have names of letters, digits and underscores, not {shown(name)}")
        if name in _OWN_LABELS:
            raise ValueError(f"labels must not have the name {name!r}: the metrics have a label of that name")
    return dict(labels)


class _Families:
    """Makes the metrics of one scrape."""

    def __init__(self, labels: Mapping[str, str], pools: Mapping[str, Figures]) -> None:
        self._names, self._values = list(labels), list(labels.values())
        self._pools = sorted(pools.items())
        self._hosts = [
            (pool, host, counters)
            for pool, one in self._pools for host, counters in sorted(by_host(one["counters"]).items())
        ]  # fmt: skip

        self._backends = [
            (pool, name, gauges, next(iter(kinds_of(gauges, "backend_zone"))))
            for pool, one in self._pools for name, gauges in sorted(by_host(one["gauges"]).items())
            if "backend_used" in gauges
        ]  # fmt: skip

    def otel(self) -> Iterator[Metric]:
        yield self._states("db_client_connection_count", "used", "The number of connections in this state.")
        for key, name, text in _GAUGES:
            yield self._gauge(name, text, "gauges", key)
        if any("budget_total" in one["gauges"] for _, one in self._pools):
            for key, name, text in _BUDGETS:
                yield self._gauge(name, text, "gauges", key)
        if any(_CIRCUITS[0] in one["gauges"] for _, one in self._pools):
            key, name, text = _CIRCUITS
            yield self._gauge(name, text, "gauges", key)
        if any("primary" in one["gauges"] for _, one in self._pools):
            for key, name, text in _SERVERS:
                yield self._gauge(name, text, "gauges", key)
        for key, name, text in _PEAKS:
            yield self._gauge(name, text, "peaks", key)
        for key, name, text in _COUNTERS:
            yield self._counter(name, text, key)
        for key, name, label, text in _KINDS:
            yield self._by_kind(name, text, key, label)
        for key, name, text in _LANES:
            family = self._by_kind(name, text, key, "lane")
            if family.samples:
                yield family
        for key, name, text in _HISTOGRAMS:
            yield self._histogram(name, text, key)
        if self._hosts:
            yield from self._http()
        if self._backends:
            yield from self._of_backends()

    def hikari(self) -> Iterator[Metric]:
        for key, name, text in _HIKARI_GAUGES:
            yield self._gauge(name, text, "gauges", key)
        for key, name, text in _HIKARI_TIMES:
            summary = SummaryMetricFamily(name, text, labels=[*self._names, "pool"])
            for pool, one in self._pools:
                buckets, total = _cumulated(one["counters"], key, PLACES)
                summary.add_metric([*self._values, pool], buckets[-1][1], total)
            yield summary
            yield self._gauge(f"{name}_max", text, "peaks", key)
        yield self._counter("hikaricp_connections_timeout", "Connection timeout total count", "timeouts")

    def single(self, name: str, text: str, value: float) -> Metric:
        found = GaugeMetricFamily(name, text, labels=self._names)
        found.add_metric(self._values, value)
        return found

    def _gauge(self, name: str, text: str, part: str, key: str) -> Metric:
        found = GaugeMetricFamily(name, text, labels=[*self._names, "pool"])
        for pool, one in self._pools:
            if key in one[part]:
                found.add_metric([*self._values, pool], one[part][key])
        return found

    def _states(self, name: str, used: str, text: str, only: Iterable[str] | None = None) -> Metric:
        found = GaugeMetricFamily(name, text, labels=[*self._names, "pool", "state"])
        for pool, one in self._pools:
            if "used" in one["gauges"] and (only is None or pool in only):
                found.add_metric([*self._values, pool, "idle"], one["gauges"]["idle"])
                found.add_metric([*self._values, pool, used], one["gauges"]["used"])
        return found

    def _counter(self, name: str, text: str, key: str) -> Metric:
        found = CounterMetricFamily(name, text, labels=[*self._names, "pool"])
        for pool, one in self._pools:
            found.add_metric([*self._values, pool], one["counters"].get(key, 0))
        return found

    def _by_kind(self, name: str, text: str, key: str, label: str) -> Metric:
        found = CounterMetricFamily(name, text, labels=[*self._names, "pool", label])
        for pool, one in self._pools:
            for kind, value in sorted(kinds_of(one["counters"], key).items()):
                found.add_metric([*self._values, pool, kind], value)
        return found

    def _histogram(self, name: str, text: str, key: str) -> Metric:
        found = HistogramMetricFamily(name, text, labels=[*self._names, "pool"])
        for pool, one in self._pools:
            buckets, total = _cumulated(one["counters"], key, PLACES)
            found.add_metric([*self._values, pool], buckets, total)
        return found

    def _of_backends(self) -> Iterator[Metric]:
        for key, name, text in _BACKENDS:
            found = GaugeMetricFamily(name, text, labels=[*self._names, "pool", "backend", "zone"])
            for pool, backend, gauges, zone in self._backends:
                found.add_metric([*self._values, pool, backend, zone], gauges.get(key, 0))
            yield found
        pools = {pool for pool, *_ in self._backends}
        for key, name, text in _BACKEND_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=[*self._names, "pool", "host"])
            for pool, host, counters in self._hosts:
                if pool in pools:
                    counter.add_metric([*self._values, pool, host], counters.get(key, 0))
            yield counter

    def _http(self) -> Iterator[Metric]:
        pools = {pool for pool, _, _ in self._hosts}
        text = "Number of outbound HTTP connections that are currently active or idle on the client."
        yield self._states("http_client_open_connections", "active", text, pools)
        requests = GaugeMetricFamily(
            "http_client_active_requests", "Number of active HTTP requests.", labels=[*self._names, "pool"]
        )
        for pool, one in self._pools:
            if pool in pools and "used" in one["gauges"]:
                requests.add_metric([*self._values, pool], one["gauges"]["used"])
        yield requests
        labels = [*self._names, "pool", "host"]
        for key, name, text, places in _HOST_HISTOGRAMS:
            durations = HistogramMetricFamily(name, text, labels=labels)
            for pool, host, counters in self._hosts:
                buckets, total = _cumulated(counters, key, places)
                durations.add_metric([*self._values, pool, host], buckets, total)
            yield durations
        for key, name, text in _HOST_COUNTERS:
            found = CounterMetricFamily(name, text, labels=labels)
            for pool, host, counters in self._hosts:
                found.add_metric([*self._values, pool, host], counters.get(key, 0))
            yield found
        for key, name, label, text in _HOST_KINDS:
            found = CounterMetricFamily(name, text, labels=[*labels, label])
            for pool, host, counters in self._hosts:
                for kind, value in sorted(kinds_of(counters, key).items()):
                    found.add_metric([*self._values, pool, host, kind], value)
            yield found


def _cumulated(counters: Mapping[str, float], name: str, places: range) -> tuple[list[Any], float]:
    """Return the buckets as Prometheus wants them, and the sum of all durations."""
    timed = [(int(place), number) for place, number in kinds_of(counters, name).items()]
    short = counters.get(f"{name}.short", 0)  # than 100 µs, so below the first bound
    count = short + sum(number for _, number in timed)
    buckets = [
        (str(round(bound_of(bound), 9)), short + sum(number for place, number in timed if place <= bound))
        for bound in places
    ]
    return [*buckets, ("+Inf", count)], counters.get(f"{name}.ns", 0) / 1e9
