"""`PerformanceMonitor`: samples pools and the process, keeps their history, and reports it.

The monitor has no thread of its own. The reaper, the one background thread of
a process, calls `sweep` when a sample or an export is due, and a worker does
it. So the monitor starts on first use, ends with the process, follows gevent,
and does not disturb a fork: like the pools, see `core.runtime`. In a forked
child it begins anew: with the first call, or when a pool that it observed in
the parent creates its first resource there.

It reads pools by snapshots, and overrides neither `Observer.acquired` nor
`Observer.released`: acquire and release do not know of it.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from .._masking import shown
from .._members import member_of
from .._reports import DEGRADED, UP
from ..core.clock import SYSTEM, Clock
from ..core.managed import ManagedPool
from ..core.pool import Pool
from ..core.report.messages import format_error, no_copy
from ..core.runtime import fork, registry
from ..core.runtime.fork import SAME_PROCESS
from ..core.runtime.reaper import SweepRequest
from ..manager import PoolManager
from ..settings import PoolSettings, _overlay, _read, variable
from . import process, reading
from .export import Exporter, Target
from .history import Minute, ProcessMinute, Series
from .incidents import Incidents, Listener
from .page import render_page
from .report import compile_report, render_json, render_text
from .sources import Given, Source, source_of

__all__ = ["PerformanceMonitor", "get_global_monitor"]

logger = logging.getLogger("pooling")

MOST_SERIES = 100
"""Pools that are observed at a time, those included that are gone but have a history."""

_ENABLED, _INTERVAL = "ENABLE_METRICS", "METRICS_EXPORT_INTERVAL"
_EXPORT_EVERY = 60.0
_DAY = 86400.0
_FORMATS = ("text", "json", "html")
_LONGEST_HOURS = 7 * 24.0


class _Watch:
    """A pool that is observed: weakly, with the reading before."""

    def __init__(self, pool: Any, series: Series, outer: bool) -> None:
        self.pool: weakref.ref[Any] = weakref.ref(pool)
        self.series = series
        self.listener: Listener | None = None
        self.outer = outer
        self.reading: reading.Reading | None = None
        self.at = 0.0
        self.closed = False


class _State:
    """What a monitor has in one process."""

    def __init__(self, clock: Clock, retention: float) -> None:
        self.lock: Any = _thread.RLock()  # native under gevent, too: nothing waits or switches while it is held
        self.since, self.since_wall = clock.now(), clock.wall()
        self.forked = False  # it began in a forked child, where pools begin with zeros
        self.incidents = Incidents(clock.wall)
        # All below: guarded by the lock.
        self.watches: dict[int, _Watch] = {}
        self.series: dict[str, Series] = {}
        self.process = Series("process", "process", ProcessMinute, retention)
        self.process_reading: process.ProcessReading | None = None
        self.sampled_at = self.since
        self.samples = 0
        self.silent: list[_Watch] = []  # whose listeners are not added yet
        self.complained: set[str] = set()
        self.due = float("-inf")  # of the next sweep


class PerformanceMonitor:
    """Samples pools and the process at intervals, and reports what happened.

    ::

        monitor = PerformanceMonitor(manager, export="metrics.json")
        print(monitor.get_performance_summary()["process"]["memory_bytes"])
        page = monitor.generate_report(hours=24, format="html")

    Sampling begins at once, in the background. The pools are held weakly: a
    pool that was closed or dropped leaves its history. The history is kept by
    the minute and bounded: a day takes at most 2 MB for each pool, 3 MB for an
    HTTP pool, and 0.5 MB for incidents.

    Args:
        pools: A `PoolManager`, whose later pools are observed too; a pool; or
            several pools, of this library, psycopg_pool or SQLAlchemy.
            ``None`` means all pools of this library in the process.
        interval: Seconds between two samples, from 0.1 to 86400: how long a
            peak must last to be seen for certain. ``None`` means
            ``metrics_interval`` of the pools, 5 s by default, at most 60.
        retention: Seconds for which the history is kept, from 60 to 604800.
        export: A path or a callable for automatic exports, see `export_to`.
        enabled: ``False`` switches everything off but the figures of the
            moment. ``None`` means what the environment variable
            ``ENABLE_METRICS`` says, by default ``True``.
        clock: The source of time; tests pass their own.

    Raises:
        ValueError, TypeError: An argument, or a variable of the environment, breaks its rule.
    """

    def __init__(
        self,
        pools: PoolManager | ManagedPool[Any] | Iterable[Any] | None = None,
        *,
        interval: float | None = None,
        retention: float = _DAY,
        export: Target | None = None,
        enabled: bool | None = None,
        clock: Clock | None = None,
    ) -> None:
        if interval is not None:
            interval = _number("PerformanceMonitor.interval", interval, 0.1, _DAY)
        self._retention = _number("PerformanceMonitor.retention", retention, 60.0, 7 * _DAY)
        if enabled is not None and not isinstance(enabled, bool):
            raise TypeError(f"PerformanceMonitor.enabled must be true, false or None, not {shown(enabled)}")
        self._enabled = _from_env(_ENABLED, True) if enabled is None else enabled
        self._source: Source = source_of(pools)
        self._clock: Clock = SYSTEM if clock is None else clock
        self._interval = interval
        self._exporters: list[Exporter] = []
        self._stopped = False
        # By process id: another process never uses these locks. Setting an item of a dict, once, is atomic.
        self._states: dict[int, _State] = {}
        self._self = weakref.ref(self)
        if export is not None:
            self.export_to(export)
        self._here()
        self.sample()

    # -- life ---------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether it samples, keeps a history and exports: not if metrics are switched off, or after `stop`."""
        return self._enabled and not self._stopped

    @property
    def interval(self) -> float:
        """Seconds between two samples."""
        if self._interval is not None:
            return self._interval
        known = [pool.settings.metrics_interval for _, pool in self._source.pools() if isinstance(pool, ManagedPool)]
        return min(60.0, max(0.1, min(known, default=PoolSettings().metrics_interval)))

    @property
    def retention(self) -> float:
        """Seconds for which the history is kept."""
        return self._retention

    def stop(self) -> None:
        """Sample and export no more, and remove the observers from the pools; the history stays. Idempotent."""
        self._stopped = True
        state = self._states.get(os.getpid())
        if state is None:
            return
        with state.lock:
            state.due = float("-inf")
            watches = list(state.watches.values())
            state.watches.clear()
        for watch in watches:
            pool = watch.pool()
            if pool is not None and watch.listener is not None:
                pool.remove_observer(watch.listener)

    def __enter__(self) -> PerformanceMonitor:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _here(self) -> _State:
        """Return the state of this process; begin anew in a forked child."""
        pid = os.getpid()
        state = self._states.get(pid)
        if state is not None:
            return state
        if not SAME_PROCESS[0]:
            fork.ensure_process()  # before any lock of a pool is taken
        fresh = _State(self._clock, self._retention)
        fresh.forked = bool(self._states)
        watches = [watch for old in list(self._states.values()) for watch in list(old.watches.values())]
        state = self._states.setdefault(pid, fresh)
        if state is fresh:
            for other in [other for other in self._states if other != pid]:
                self._states.pop(other, None)
            for watch in watches:  # a sample adds new listeners
                pool = watch.pool()
                if pool is not None and watch.listener is not None:
                    pool.remove_observer(watch.listener)
            if self.enabled:
                self._arm(state)
        return state

    def _incidents(self) -> Incidents | None:
        """Return where listeners note incidents, and sample soon if this is a new process."""
        known = os.getpid() in self._states
        incidents = self._here().incidents if self.enabled else None
        if not known and incidents is not None:
            registry.runtime_of(self._clock).workers.submit(_sample_and_export, self._self)
        return incidents

    # -- the reaper's side ----------------------------------------------------------

    def _arm(self, state: _State) -> None:
        """Ask the reaper for the next sweep."""
        now = self._clock.now()
        due = min([now + self.interval, *(max(now, exporter.due) for exporter in self._exporters)])
        state.due = due
        registry.runtime_of(self._clock).reaper.post(SweepRequest(self._self, due))

    def sweep(self, due: float, now: float) -> bool:
        """Called by the reaper when a sample or an export is due: have a worker do it.

        Returns:
            ``False`` if a later request has superseded this one, or the monitor was stopped.
        """
        state = self._states.get(os.getpid())
        if state is None or state.due != due or not self.enabled:
            return False
        waiting = [exporter for exporter in self._exporters if exporter.due <= now]
        for exporter in waiting:
            exporter.due = now + exporter.every
        self._arm(state)  # first: whatever happens now, there is a next time
        workers = registry.runtime_of(self._clock).workers
        workers.submit(_sample_and_export, self._self)
        for exporter in waiting:
            workers.submit(_sample_and_export, self._self, exporter)
        return True

    def sample(self) -> None:
        """Take a sample now, beside those at intervals. Does nothing while metrics are off."""
        state = self._here()
        if not self.enabled:
            return
        with state.lock:
            now, wall = self._clock.now(), self._clock.wall()
            self._sample_process(state, now, wall)
            for watch in self._find(state):
                self._sample_pool(state, watch, now, wall)
            state.sampled_at = now
            state.samples += 1
            silent, state.silent = state.silent, []
        for watch in silent:  # outside the lock: the verbs of a pool may run foreign code
            pool = watch.pool()
            if pool is not None and watch.listener is not None:
                pool.add_observer(watch.listener)

    def _sample_process(self, state: _State, now: float, wall: float) -> None:
        try:
            after = process.read()
        except Exception as error:  # psutil reads what the system shows, and a sandbox may hide it
            self._complain(state, "process", error)
            return
        process.note(state.process.at(wall), state.process_reading, after, now - state.sampled_at)
        state.process_reading = after

    def _find(self, state: _State) -> list[_Watch]:
        """Return the pools that are observed; new ones get a series, and those that are gone are marked."""
        for number, watch in list(state.watches.items()):
            pool = watch.pool()
            if pool is None:
                state.watches.pop(number)
                if not watch.closed:
                    watch.series.state = "dropped"
        pools = self._source.pools()
        labels = {id(pool): label for label, pool in pools}
        found = []
        for label, pool in pools:
            parts = [(label, pool, True)]
            readers = getattr(pool, "readers", None)  # of a SQLite pool: a pool of its own
            if isinstance(readers, ManagedPool):
                parts.append((f"{label}-readers", readers, False))
            for name, part, outer in parts:
                watch = state.watches.get(id(part)) or self._watch(state, name, part, outer)  # type: ignore[assignment]
                if watch is not None:
                    found.append(watch)
        for number, watch in list(state.watches.items()):
            if watch.outer and number not in labels:  # no longer in the manager
                state.watches.pop(number)
                if not watch.closed:
                    watch.series.state = "closed"
        return found

    def _watch(self, state: _State, label: str, pool: Any, outer: bool) -> _Watch | None:
        if getattr(pool, "closed", False):
            return None
        live = {watch.series.label for watch in state.watches.values() if not watch.closed}
        name, number = label, 1
        while name in live:  # pools of one name
            number += 1
            name = f"{label} ({number})"
        if name not in state.series:
            if len(state.series) >= MOST_SERIES:
                gone = [one for one in state.series.values() if one.label not in live]
                if not gone:
                    self._complain(state, "too many", ValueError(f"only {MOST_SERIES} pools are observed at a time"))
                    return None
                state.series.pop(min(gone, key=lambda one: one.last).label)
            state.series[name] = Series(name, type(pool).__name__, Minute, self._retention)
        series = state.series[name]
        series.kind, series.state = type(pool).__name__, "open"
        watch = state.watches[id(pool)] = _Watch(pool, series, outer)
        if outer and isinstance(pool, ManagedPool):
            watch.listener = Listener(name, _weakly(self._self))
            state.silent.append(watch)
        return watch

    def _sample_pool(self, state: _State, watch: _Watch, now: float, wall: float) -> None:
        pool = watch.pool()
        if pool is None or watch.closed:
            return
        try:
            if isinstance(pool, ManagedPool):
                after = reading.read(pool)
                watch.series.settings = _settings_of(pool)
            else:
                after = reading.read_foreign(member_of(pool).metrics(), now - state.since)
        except Exception as error:
            self._complain(state, watch.series.label, error)
            return
        before, seconds = watch.reading, now - watch.at
        if before is None:
            # A pool that was made since the last sample, or that began anew after a fork: all that it counts is new.
            seconds = after.duration
            known = state.forked if not state.samples else seconds <= now - state.sampled_at + 1e-6
            if not known or not isinstance(pool, ManagedPool):
                before, seconds = after, 0.0
        reading.note(watch.series, before, after, seconds, wall)
        watch.reading, watch.at = after, now
        if getattr(pool, "closed", False):
            watch.closed, watch.series.state = True, "closed"

    @staticmethod
    def _complain(state: _State, about: str, error: Exception) -> None:
        if about not in state.complained:
            state.complained.add(about)
            logger.warning("monitor: %s cannot be observed: %s", about, format_error(error))

    # -- looking --------------------------------------------------------------------

    def get_performance_summary(self) -> dict[str, Any]:
        """Return the status, the figures of every pool and of the process, now.

        Returns:
            ``status``: ``"up"``, ``"degraded"`` or ``"down"``. ``pools``: by
            name `PoolSnapshot.to_dict`, ``success_rate``, and ``last_minute``
            with ``requests_per_second``, ``failed``, ``utilization`` (in use
            on average / ``max_size``), ``wait`` and ``use`` (seconds). Each
            pool is also found under its name beside ``status``. The only HTTP
            pool is called ``http_pool``, too, and the only database pool
            ``database_pool``. ``process``: ``pid``, ``cpu_percent`` (100 is one
            processor, over the last minute), ``cpu_seconds``,
            ``memory_bytes``, ``memory_percent``, ``threads``, ``descriptors``,
            ``started``. ``monitor``: ``enabled``, ``interval``, ``since``, ``samples``.
        """
        state = self._here()
        self.sample()
        manager = self._source.manager
        named = self._named(state)
        found = self._summary_of(named) if manager is None else manager.get_performance_summary()
        pools: dict[str, Any] = found["pools"]
        with state.lock:
            for label, figures in pools.items():
                if label in state.series:
                    figures["last_minute"] = _last_minute(state.series[label], self._clock.wall())
            cpu = state.process.total(self._clock.wall() - 60).cpu
        for alias, label in _aliases(named).items():
            if label in pools:
                found.setdefault(alias, pools[label])
        found.setdefault("uptime_seconds", self._clock.now() - state.since)
        found["process"] = {**process.read().to_dict(), "cpu_percent": 100.0 * cpu}
        found["monitor"] = {
            "enabled": self.enabled, "interval": self.interval, "since": state.since_wall, "samples": state.samples
        }  # fmt: skip
        return found

    def _named(self, state: _State) -> dict[str, Any]:
        """Return the pools by the labels of their histories; pools of one name are told apart in any case."""
        found: dict[str, Any] = {}
        with state.lock:
            for name, pool in self._source.pools():
                watch, label, number = state.watches.get(id(pool)), name, 1
                if watch is not None and not watch.closed:
                    label = watch.series.label
                while label in found:
                    number += 1
                    label = f"{name} ({number})"
                found[label] = pool
        return found

    def _status(self, named: Mapping[str, Any]) -> str:
        given = isinstance(self._source, Given)
        members = [member_of(pool) for pool in named.values()]
        return DEGRADED if any((given and one.closed) or one.trouble() for one in members) else UP

    def _summary_of(self, named: Mapping[str, Any]) -> dict[str, Any]:
        pools = {label: member_of(pool).metrics() for label, pool in named.items()}
        return {**pools, "status": self._status(named), "timestamp": self._clock.wall(), "pools": pools}

    def get_report(self, hours: float = 24.0) -> dict[str, Any]:
        """Return what `generate_report` renders, as plain values; see :mod:`pooling.observe.report` for its shape.

        Raises:
            ValueError, TypeError: ``hours`` is not a number above 0, at most 168.
        """
        hours = _number("hours", hours, 0.0, _LONGEST_HOURS, above=True)
        state = self._here()
        self.sample()
        manager = self._source.manager
        status = manager._status() if manager is not None else self._status(self._named(state))
        with state.lock:
            return compile_report(
                list(state.series.values()), state.process, state.incidents,
                now=self._clock.wall(), hours=hours, since=state.since_wall, status=status,
                enabled=self._enabled, last=state.process_reading,
            )  # fmt: skip

    def generate_report(self, hours: float = 24.0, format: str = "text") -> str:
        """Report what happened, when, and what to change.

        Args:
            hours: How far to look back, above 0 and at most 168; the history
                may be shorter.
            format: ``"text"``; ``"json"``, in the shape of `get_report`; or
                ``"html"``, one file that needs nothing else.

        Raises:
            ValueError, TypeError: ``hours`` or ``format`` is none of these.
        """
        if not isinstance(format, str):
            raise TypeError(f"format must be one of {', '.join(_FORMATS)}, not {shown(format)}")
        if format not in _FORMATS:
            raise ValueError(f"format must be one of {', '.join(_FORMATS)}, not {shown(format)}")
        render = {"text": render_text, "json": render_json, "html": render_page}[format]
        return render(self.get_report(hours))

    # -- exporting ----------------------------------------------------------------------

    def export_to(self, target: Target, *, every: float | None = None, keep: int = 5) -> None:
        """Export `get_performance_summary` at intervals, from now on.

        A file is written once more when the process exits. Does nothing while
        metrics are off. With several processes write ``{pid}`` into the path:
        otherwise they replace each other's file.

        Args:
            target: A path, where JSON is written and replaced atomically; or a
                callable that gets the summary, in a background thread. What
                it raises is logged once, until it works again.
            every: Seconds, from 0.1 to 86400. ``None`` means what the
                environment variable ``METRICS_EXPORT_INTERVAL`` says, by default 60.
            keep: Previous files that are kept, as ``path.1`` and so on, 0 to 1000.

        Raises:
            ValueError, TypeError: An argument, or the variable, breaks its rule.
        """
        if every is None:
            every = float(_from_env(_INTERVAL, _EXPORT_EVERY))
        exporter = Exporter(target, _number("every", every, 0.1, _DAY), keep)
        exporter.due = self._clock.now() + exporter.every
        self._exporters.append(exporter)
        if exporter.to_file:
            _exporting.add(self)
            _at_exit()
        state = self._states.get(os.getpid())
        if state is not None and self.enabled:
            self._arm(state)

    def _export_at_exit(self) -> None:
        if self.enabled and os.getpid() in self._states:
            for exporter in self._exporters:
                if exporter.to_file:
                    exporter.run(self.get_performance_summary)

    def __reduce_ex__(self, protocol: Any) -> Any:
        no_copy(self, "it belongs to its process; get_report() is what can be kept and sent")

    def __repr__(self) -> str:
        state = self._states.get(os.getpid())
        number = 0 if state is None else len(state.watches)
        how = f"{number} pools every {self.interval:g} s" if self.enabled else "off"
        return f"<PerformanceMonitor: {how}>"


def _weakly(monitor: weakref.ref[PerformanceMonitor]) -> Callable[[], Incidents | None]:
    def incidents() -> Incidents | None:
        found = monitor()
        return None if found is None else found._incidents()

    return incidents


def _sample_and_export(monitor: weakref.ref[PerformanceMonitor], exporter: Exporter | None = None) -> None:
    """A worker's job: sample, or export."""
    found = monitor()
    if found is None or not found.enabled:
        return
    try:
        if exporter is None:
            found.sample()
        else:
            exporter.run(found.get_performance_summary)
    except Exception:
        logger.exception("a sample of the monitor failed; this is a bug in pooling")


def _aliases(named: Mapping[str, Any]) -> dict[str, str]:
    """Return the promised names of the only HTTP pool and the only database pool, as far as they are not taken."""
    kinds: dict[str, list[str]] = {"http_pool": [], "database_pool": []}
    for label, pool in named.items():
        if hasattr(getattr(pool, "metrics", None), "hosts"):
            kinds["http_pool"].append(label)
        elif type(pool) is not Pool:
            kinds["database_pool"].append(label)
    return {alias: labels[0] for alias, labels in kinds.items() if len(labels) == 1 and alias not in named}


def _settings_of(pool: ManagedPool[Any]) -> dict[str, Any]:
    settings = pool.settings
    names = ("min_size", "max_size", "max_idle", "acquire_timeout", "idle_timeout", "keepalive_interval",
             "leak_timeout", "max_lifetime")  # fmt: skip
    return {name: getattr(settings, name) for name in names}


def _last_minute(series: Series, wall: float) -> dict[str, Any]:
    minute = series.total(wall - 60)
    return {
        "seconds": minute.seconds, "requests_per_second": minute.rate, "failed": minute.failed,
        "utilization": minute.load / minute.max_size if minute.max_size else 0.0, "in_use_peak": minute.in_use_peak,
        "wait": minute.wait.to_dict(), "use": minute.use.to_dict(),
    }  # fmt: skip


def _number(name: str, value: Any, least: float, most: float, *, above: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    if not (value > least if above else value >= least):
        raise ValueError(f"{name} must be {'above' if above else 'at least'} {least:g}, not {shown(value)}")
    if not value <= most:
        raise ValueError(f"{name} must be at most {most:g}, not {shown(value)}")
    return float(value)


def _from_env(name: str, default: Any) -> Any:
    """Read a variable of the environment by the rule of its field in `PoolSettings`."""
    text = variable(os.environ, name)
    if text is None:
        return default
    field = "enable_metrics" if name == _ENABLED else "metrics_interval"
    return getattr(_overlay(PoolSettings(), _read([(name, field, text)])), field)


_exporting: weakref.WeakSet[PerformanceMonitor] = weakref.WeakSet()
_registered: list[bool] = []


def _at_exit() -> None:
    if not _registered:
        _registered.append(True)
        atexit.register(_export_all)


def _export_all() -> None:
    for monitor in list(_exporting):
        monitor._export_at_exit()


_global: dict[str, PerformanceMonitor] = {}


def get_global_monitor() -> PerformanceMonitor:
    """Return the monitor of all pools of this library in the process; the first call starts it.

    In a forked child the same object begins anew. After its `stop` the next
    call starts another one.

    Raises:
        ValueError: ``ENABLE_METRICS`` is neither true nor false.
    """
    found = _global.get("monitor")
    if found is None or found._stopped:
        _global.pop("monitor", None)
        fresh = PerformanceMonitor()
        found = _global.setdefault("monitor", fresh)
        if found is not fresh:  # another thread was faster
            fresh.stop()
    found._here()
    return found
