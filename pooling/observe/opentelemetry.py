"""Pools in OpenTelemetry: metrics, and long waits as events of the current span.

::

    from pooling.observe.opentelemetry import instrument

    instrument()

Only ``opentelemetry-api`` is needed; without an SDK nothing is measured. Names,
units and attributes are those of the semantic conventions 1.44. Every pool is
reported as ``db.client.connection.*``, whatever it lends.

**Counts and limits** are observable instruments. All of them read one snapshot,
taken under the pools' locks when a reader collects, so they agree with each
other and cannot drift. A second reader gets a snapshot of its own.

**Histograms.** The API has no observable histogram, and recording each lease
where it happens would cost several times as much as the lease. So the pools'
own buckets are used: when a reader collects, each duration that came since is
recorded once, see `backlog`, however many readers there are. A reader of Python's
SDK collects synchronous instruments after the callbacks, so it sees them at once.
Counts are exact. A value is right to its bucket, and buckets are in steps of √2;
the bounds of ``db.client.connection.*`` are bounds of such buckets, so the counts
between them are exact, too. The sums of uses, creations and operations are right.

Waits from the bucket above 1 ms on are recorded by the borrower, with their exact
value. The current context is the borrower's then, so an exemplar refers to the
trace that waited. Which waits these are depends on the duration only; the others
are recorded as above. So no wait is missing, and none is counted twice. The API drops
what is recorded before a provider is set, so early waits are kept until then.
``http.client.request.duration`` is recorded by the thread that sends the
request, because its method and status are required attributes.

**Spans.** A wait of more than 1 ms becomes an event `WAIT_EVENT` of the current
span, if that is recorded; there is no span for an acquire. The pool notifies of
waits only borrowers that had to wait, so other leases cost what they did before.

**Processes.** All state belongs to one process. A forked child begins with zeros
when it is first collected, so `instrument` may be called before the fork, and a
provider may be set before or after it. Pools of one name are summed, in a
process and by any backend that sums over processes: no attribute has a process
id. A pool without a name has a number instead, so name yours.

Not reported: ``error.type`` of database operations, because the statistics of
queries have one histogram for all.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import MeterProvider
except ImportError as error:
    raise ImportError("opentelemetry-api is missing: pip install 'pooling[opentelemetry]'") from error

from .._fields import fields
from .._masking import shown
from ..core.managed import ManagedPool
from ..core.observer import EVERYWHERE, Observer
from ..core.report.histogram import place_of
from ..core.report.metrics import PoolMetrics
from ..core.runtime.immortal import keep_forever
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS
from .backlog import MOST, UNTIMED, Backlog, Series
from .conventions import BACKENDS, METHODS, OBSERVED, POOL, SYSTEM, TIMES, Instruments, Pools, server_of, totals_by_host
from .figures import all_pools, kinds_of
from .local import Local, Process
from .sources import OfProcess, Source, source_of

__all__ = ["LONG_WAIT", "WAIT_EVENT", "PoolingInstrumentor", "instrument", "uninstrument"]

logger = logging.getLogger("pooling")

LONG_WAIT = 0.001
"""Seconds; a longer wait is an event of the current span."""

WAIT_EVENT = "pooling.wait"
"""The name of that event. Its attributes are ``db.client.connection.pool.name``, ``pooling.wait.duration`` in
seconds, and ``pooling.wait.outcome``: ``"acquired"`` or ``"timeout"``."""

_MOST_EARLY = 10_000  # long waits before there is a provider that are kept; there may never be one

# Waits in this bucket and above are recorded by their borrowers.
_EXACT_WAITS = place_of(LONG_WAIT) + 1


class _Listener(Observer):
    """Records what has to be recorded in the thread and context in which it happens."""

    def __init__(
        self, instruments: Instruments, operations: bool, record_wait: Callable[[str, float], object]
    ) -> None:
        self._request = instruments.histograms["request"]
        self._operations = operations
        self._record_wait = record_wait

    def waited(self, pool: str, seconds: float) -> None:
        if seconds > LONG_WAIT:
            _add_event(pool, seconds, "acquired")
        if place_of(seconds) >= _EXACT_WAITS:
            self._record_wait(pool, seconds)

    def timed_out(self, pool: str, waited: float) -> None:
        if waited > LONG_WAIT:
            _add_event(pool, waited, "timeout")

    def responded(self, pool: str, method: str, host: str, outcome: int | BaseException, seconds: float) -> None:
        if not self._operations:
            return
        method = method.upper()
        attributes = {"http.request.method": method if method in METHODS else "_OTHER", **server_of(host)}
        if isinstance(outcome, BaseException):
            attributes["error.type"] = type(outcome).__qualname__
        else:
            attributes["http.response.status_code"] = outcome
            if outcome >= 400:
                attributes["error.type"] = str(outcome)
        self._request.record(seconds, attributes)


def _add_event(pool: str, seconds: float, outcome: str) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(
            WAIT_EVENT, {POOL: pool, "pooling.wait.duration": seconds, "pooling.wait.outcome": outcome}
        )


class _State:
    """What one process has read and recorded."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.pools: Pools = {}
        # The instruments that have used `pools`: a new one is needed.
        self.read_by = {name for name, *_ in (*OBSERVED, *BACKENDS)}
        self.backlog = Backlog()
        self.statistics: dict[int, tuple[weakref.ref[Any], Any]] = {}  # pools and their queries, by the latter's id
        self.late = False


class _Instrumentation:
    """The connection between pools and one provider.

    Args:
        instruments: The provider's.
        source: Where the pools come from; ``None`` for all of the process.
        operations: Whether operations and requests are recorded.
    """

    def __init__(self, instruments: Instruments, source: Source | None, operations: bool) -> None:
        self.instruments = instruments
        self._source = source
        self._operations = operations
        self._local = Local(None if source is None else self._given_pools)
        self._listener = _Listener(instruments, operations, self._record_wait)
        self._state: _State | None = None
        self._early: deque[tuple[int, str, float]] = deque(maxlen=_MOST_EARLY)

    def start(self) -> None:
        """Report from now on. Durations count from now on, other counters since the pools were made."""
        LISTENERS.append(self._local.listen)
        if self._source is None:
            EVERYWHERE.append(self._listener)
        self._observe_pools()
        process = self._local.process()
        with self._local.exclusive(process):
            state = self._state = _State(process)
            self._read(state)
            state.backlog.forgive()
        self.instruments.used_by = self

    def stop(self) -> None:
        """Record what has happened, as far as there is time, and report no longer."""
        process = self._local.process()
        with self._local.exclusive(process):
            self._refresh(self._state_of(process), MOST)
        self.instruments.used_by = None
        if self._listener in EVERYWHERE:
            EVERYWHERE.remove(self._listener)
        if self._local.listen in LISTENERS:
            LISTENERS.remove(self._local.listen)
        for _, pool in (self._source or OfProcess()).pools():
            if isinstance(pool, ManagedPool):
                pool.remove_observer(self._listener)

    def snapshot_for(self, instrument: str, timeout: float) -> Pools:
        """Return a snapshot that this instrument has not used yet, within ``timeout`` seconds."""
        process = self._local.process()
        with self._local.exclusive(process):
            state = self._state_of(process)
            if instrument in state.read_by:
                self._refresh(state, timeout / 2)
                state.read_by = set()
            state.read_by.add(instrument)
            return state.pools

    def _state_of(self, process: Process) -> _State:
        state = self._state
        if state is None or state.process is not process:  # a forked child, whose pools began with zeros
            if state is not None:
                keep_forever(state)  # it refers to resources of the parent
            state = self._state = _State(process)
        return state

    def _refresh(self, state: _State, timeout: float) -> None:
        self._observe_pools()
        self._read(state)
        self._record_early_waits()
        state.backlog.record(timeout)
        if state.backlog.size and not state.late:
            state.late = True
            size = state.backlog.size
            extra = fields("recorded_later", count=size)
            logger.info("OpenTelemetry: %d durations will be recorded later, the shortest last", size, extra=extra)

    def _read(self, state: _State) -> None:
        state.pools = state.process.recorder.sample()
        for name, one in state.pools.items():
            for key in TIMES:
                self._note(state, key, name, {POOL: name}, one["counters"])
        for host, counters in totals_by_host(state.pools, "counters").items():
            self._note(state, "lifetime", host, server_of(host), counters)
        if self._operations:
            self._read_queries(state)

    def _note(
        self, state: _State, key: str, label: str, attributes: Mapping[str, str | int], counters: Mapping[str, float]
    ) -> None:
        """Note the durations of a pool or a host, to be recorded."""
        series = state.backlog.series.get((key, label))
        if series is None:
            record = self.instruments.recorder(key, attributes)
            series = state.backlog.series[key, label] = Series(record, _EXACT_WAITS if key == "wait" else None)
        series.update(*_durations(counters, key))

    def _read_queries(self, state: _State) -> None:
        for _, pool in (self._source or OfProcess()).pools():
            statistics: Any = getattr(pool, "_queries", None)
            if hasattr(statistics, "buckets") and id(statistics) not in state.statistics:
                attributes = {SYSTEM: getattr(statistics, "system", "other_sql"), POOL: self._public(pool.name)}
                state.backlog.series[id(statistics)] = Series(self.instruments.recorder("operation", attributes))
                state.statistics[id(statistics)] = weakref.ref(pool), statistics
        for number, (reference, statistics) in list(state.statistics.items()):
            gone = reference() is None
            series = state.backlog.series[number]
            series.update(*_durations_of_queries(statistics))
            if gone and not series.owed:
                del state.statistics[number], state.backlog.series[number]

    def _public(self, name: str) -> str:
        return self._local.process().recorder.public(name)

    # -- waits --------------------------------------------------------------------

    def _record_wait(self, pool: str, seconds: float) -> None:
        if self.instruments.provided:
            self.instruments.histograms["wait"].record(seconds, {POOL: self._public(pool)})
        else:
            self._early.append((os.getpid(), pool, seconds))

    def _record_early_waits(self) -> None:
        while self._early and self.instruments.provided:
            process, pool, seconds = self._early.popleft()
            if process == os.getpid():  # else it is the parent's
                self._record_wait(pool, seconds)

    # -- which pools --------------------------------------------------------------

    def _observe_pools(self) -> None:
        for _, pool in (self._source or OfProcess()).pools():
            if isinstance(pool, ManagedPool):
                pool.add_observer(self._listener)

    def _given_pools(self) -> list[tuple[PoolRef, PoolMetrics]]:
        assert self._source is not None
        parts = [(pool, getattr(pool, "readers", None)) for _, pool in self._source.pools()]
        wanted = {id(pool.metrics) for pair in parts for pool in pair if isinstance(pool, ManagedPool)}
        return [(ref, metrics) for ref, metrics in all_pools() if id(metrics) in wanted]


def _durations(counters: Mapping[str, float], key: str) -> tuple[dict[int, int], float]:
    """Return how many durations there are by the place of their bucket, and their sum in seconds."""
    counts = {int(place): int(number) for place, number in kinds_of(counters, key).items()}
    return {**counts, UNTIMED: int(counters.get(f"{key}.short", 0))}, counters.get(f"{key}.ns", 0) / 1e9


def _durations_of_queries(statistics: Any) -> tuple[dict[int, int], float]:
    """Return the same of the queries of a pool."""
    total = getattr(statistics, "snapshot", None)
    if total is None:  # each one was timed
        buckets = statistics.buckets()
        return buckets.counts, buckets.total
    found = total()  # first: what comes in between is counted at the next time, not twice
    buckets = statistics.buckets()
    untimed = max(0, found.count - sum(buckets.counts.values()))
    return {**buckets.counts, UNTIMED: untimed}, max(found.count * found.mean, buckets.total)


# -- start and stop ------------------------------------------------------------

_of_global: list[Instruments] = []
_of_others: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()
_current: list[_Instrumentation] = []


def instrument(
    pools: Any = None, *, meter_provider: MeterProvider | None = None, operations: bool = True
) -> None:
    """Report pools to OpenTelemetry from now on, instead of what an earlier call has asked for.

    Call it once, before or after a fork, and before or after the provider is
    set and the pools are made.

    Args:
        pools: A pool, several pools, or a `PoolManager`, all held weakly. A
            pool that is added to the manager later is included when a reader
            next collects. ``None`` means all pools of the process, at once.
            Those of other libraries are left out.
        meter_provider: ``None`` means the global one.
        operations: Whether to record ``db.client.operation.duration``, for
            pools with query statistics, and ``http.client.request.duration``.
            Pass ``False`` where another instrumentation records them.

    Raises:
        TypeError: An argument has the wrong type.
    """
    source = None if pools is None else source_of(pools, "pools")
    if meter_provider is not None and not isinstance(meter_provider, MeterProvider):
        raise TypeError(f"meter_provider must be an opentelemetry MeterProvider, not {shown(meter_provider)}")
    if not isinstance(operations, bool):
        raise TypeError(f"operations must be a bool, not {shown(operations)}")
    uninstrument()
    instrumentation = _Instrumentation(_instruments(meter_provider), source, operations)
    _current.append(instrumentation)
    instrumentation.start()


def uninstrument() -> None:
    """Report nothing more. Idempotent. What has happened before can still be collected."""
    while _current:
        _current.pop().stop()


def _instruments(provider: MeterProvider | None) -> Instruments:
    if provider is None or provider is metrics.get_meter_provider():
        if not _of_global:
            _of_global.append(Instruments(None))
        return _of_global[0]
    if provider not in _of_others:
        _of_others[provider] = Instruments(provider)
    return _of_others[provider]


class PoolingInstrumentor:
    """What ``opentelemetry-instrument`` loads: it instruments all pools of a program that does not know of it."""

    def instrument(self, **options: Any) -> None:
        """Call `instrument`.

        Args:
            options: ``meter_provider`` and ``operations``; all others are ignored.
        """
        instrument(meter_provider=options.get("meter_provider"), operations=options.get("operations", True))

    def uninstrument(self, **options: Any) -> None:
        """Call `uninstrument`."""
        uninstrument()
