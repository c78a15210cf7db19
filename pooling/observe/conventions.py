"""The instruments and attributes of OpenTelemetry's semantic conventions 1.44 that describe pools.

Beside them, `BACKENDS` describe the servers of HTTP pools with several, for which there are no conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol
from urllib.parse import urlsplit

try:
    from opentelemetry import metrics
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
except ImportError as error:
    raise ImportError("opentelemetry-api is missing: pip install 'pooling[opentelemetry]'") from error

from ..core.report.histogram import bound_of
from .figures import Figures, add, by_host, kinds_of

__all__ = [
    "BACKENDS", "METHODS", "OBSERVED", "POOL", "SYSTEM", "TIMES", "Instruments", "Pools", "server_of", "totals_by_host",
]  # fmt: skip

_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

# Attributes
POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
SYSTEM = "db.system.name"
_HTTP_STATE = "http.connection.state"

# Bounds of the pools' own buckets, so that the counts are exact; then those of the conventions.
_BOUNDS = [round(bound_of(place), 9) for place in range(14, 54, 2)]  # 128 µs to 67 s
_LIFETIME_BOUNDS = [round(bound_of(place), 9) for place in range(26, 61, 2)]  # 8 ms to 18 minutes
_OPERATION_BOUNDS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0]
_REQUEST_BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
"""All others are reported as ``_OTHER``."""

Pools = Mapping[str, Figures]
"""The figures of each pool name."""


def _gauge(key: str) -> Callable[[Pools], Iterable[Observation]]:
    def observe(pools: Pools) -> Iterable[Observation]:
        return [Observation(one["gauges"][key], {POOL: name}) for name, one in pools.items() if key in one["gauges"]]

    return observe


def _count(pools: Pools) -> Iterable[Observation]:
    return [
        Observation(one["gauges"][state], {POOL: name, _STATE: state})
        for name, one in pools.items() for state in ("idle", "used") if state in one["gauges"]
    ]  # fmt: skip


def _timeouts(pools: Pools) -> Iterable[Observation]:
    return [Observation(one["counters"].get("timeouts", 0), {POOL: name}) for name, one in pools.items()]


def _open_connections(pools: Pools) -> Iterable[Observation]:
    states = (("idle", "idle"), ("used", "active"))
    return [
        Observation(numbers.get(key, 0), {**server_of(host), _HTTP_STATE: state})
        for host, numbers in totals_by_host(pools, "gauges").items() if "used" in numbers for key, state in states
    ]  # fmt: skip


def _active_requests(pools: Pools) -> Iterable[Observation]:
    by_server = totals_by_host(pools, "gauges").items()
    return [Observation(numbers["used"], server_of(host)) for host, numbers in by_server if "used" in numbers]


def _backend(key: str) -> Callable[[Pools], Iterable[Observation]]:
    def observe(pools: Pools) -> Iterable[Observation]:
        return [
            Observation(gauges.get(key, 0), {POOL: pool, "pooling.backend": name, "pooling.zone": zone})
            for pool, one in pools.items() for name, gauges in by_host(one["gauges"]).items()
            for zone in kinds_of(gauges, "backend_zone")
        ]  # fmt: skip

    return observe


def totals_by_host(pools: Pools, part: str) -> dict[str, dict[str, float]]:
    """Return figures of each host, over all pools: the conventions have no attribute for a pool of HTTP.

    Args:
        pools: The figures.
        part: ``"counters"`` or ``"gauges"``.
    """
    found: dict[str, dict[str, float]] = {}
    for one in pools.values():
        for host, own in by_host(one[part]).items():
            add(found.setdefault(host, {}), own)
    return found


def server_of(host: str) -> dict[str, str | int]:
    """Return the attributes of a host as the metrics name it, such as ``"https://api.example.com:8443"``."""
    parts = urlsplit(host)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return {"server.address": parts.hostname or host, **({} if port is None else {"server.port": port})}


OBSERVED: tuple[tuple[str, bool, str, str, Callable[[Pools], Iterable[Observation]]], ...] = (
    # name, whether it is a counter, unit, description, what is observed
    ("db.client.connection.count", False, "{connection}",
     "The number of connections that are currently in state described by the `state` attribute.", _count),
    ("db.client.connection.idle.max", False, "{connection}",
     "The maximum number of idle open connections allowed.", _gauge("idle_max")),
    ("db.client.connection.idle.min", False, "{connection}",
     "The minimum number of idle open connections allowed.", _gauge("idle_min")),
    ("db.client.connection.max", False, "{connection}",
     "The maximum number of open connections allowed.", _gauge("max")),
    ("db.client.connection.pending_requests", False, "{request}",
     "The number of current pending requests for an open connection.", _gauge("pending")),
    ("db.client.connection.timeouts", True, "{timeout}",
     "The number of connection timeouts that have occurred trying to obtain a connection from the pool.", _timeouts),
    ("http.client.open_connections", False, "{connection}",
     "Number of outbound HTTP connections that are currently active or idle on the client.", _open_connections),
    ("http.client.active_requests", False, "{request}", "Number of active HTTP requests.", _active_requests),
)  # fmt: skip
BACKENDS: tuple[tuple[str, str, str, Callable[[Pools], Iterable[Observation]]], ...] = tuple(
    (f"pooling.backend.{name}", unit, text, _backend(f"backend_{key}"))
    for name, key, unit, text in (
        ("in_use", "used", "{request}", "Requests in progress at a server of several."),
        ("pending_requests", "pending", "{request}", "Requests that wait for a connection to it."),
        ("latency", "latency", "s", "Moving average of its latency; of processes the highest."),
        ("failing", "failing", "1", "Moving average of its failures; of processes the highest."),
        ("ejected", "ejected", "{process}", "The number of processes that have ejected it."),
        ("circuit_open", "circuit_open", "{process}", "The number of processes with an open circuit."),
    )
)
_HISTOGRAMS = {
    "create": ("db.client.connection.create_time", "The time it took to create a new connection.", _BOUNDS),
    "wait": ("db.client.connection.wait_time", "The time it took to obtain an open connection from the pool.", _BOUNDS),
    "use": ("db.client.connection.use_time",
            "The time between borrowing a connection and returning it to the pool.", _BOUNDS),
    "operation": ("db.client.operation.duration", "Duration of database client operations.", _OPERATION_BOUNDS),
    "request": ("http.client.request.duration", "Duration of HTTP client requests.", _REQUEST_BOUNDS),
    "lifetime": ("http.client.connection.duration",
                 "The duration of the successfully established outbound HTTP connections.", _LIFETIME_BOUNDS),
}  # fmt: skip
TIMES = ("create", "wait", "use")
"""The histograms of the durations of every pool; the others are those of operations and requests."""


def _version() -> str:
    try:
        return version("pooling")
    except PackageNotFoundError:  # it was copied, not installed
        return ""


class Reader(Protocol):
    """What the instruments observe."""

    def snapshot_for(self, instrument: str, timeout: float) -> Pools:
        """Return a snapshot that this instrument has not used yet, within ``timeout`` seconds."""


class Instruments:
    """The instruments of one provider. An SDK never forgets a callback, so they are made once and then reused."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter("pooling", _version(), provider, _SCHEMA)
        self.used_by: Reader | None = None
        self._provided = provider is not None
        for name, counts, unit, description, observe in OBSERVED:
            create = meter.create_observable_counter if counts else meter.create_observable_up_down_counter
            create(name, [partial(self._observe, name, observe)], unit=unit, description=description)
        for name, unit, description, observe in BACKENDS:
            callbacks = [partial(self._observe, name, observe)]
            meter.create_observable_gauge(name, callbacks, unit=unit, description=description)
        self.histograms = {
            key: meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=bounds)
            for key, (name, description, bounds) in _HISTOGRAMS.items()
        }

    def _observe(
        self, name: str, observe: Callable[[Pools], Iterable[Observation]], options: CallbackOptions
    ) -> Iterable[Observation]:
        return [] if self.used_by is None else observe(self.used_by.snapshot_for(name, options.timeout_millis / 1e3))

    @property
    def provided(self) -> bool:
        """Whether there is a provider: the API drops what is recorded before the global one is set."""
        if not self._provided:
            kind = type(metrics.get_meter_provider())
            self._provided = not kind.__module__.startswith("opentelemetry.metrics")
        return self._provided

    def recorder(self, key: str, attributes: Mapping[str, str | int]) -> Callable[[float], object]:
        """Return a function that records a duration in a histogram."""
        return partial(self.histograms[key].record, attributes=attributes)
