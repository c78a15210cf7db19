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

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from .._fields import fields
from .._masking import shown
from .._members import member_of
from .._reports import overall, status_of
from ..core.clock import SYSTEM, Clock
from ..core.managed import ManagedPool
from ..core.pool import Pool
from ..core.report.messages import no_copy
from ..core.runtime import fork, registry
from ..core.runtime.fork import SAME_PROCESS
from ..core.runtime.reaper import SweepRequest
from ..manager import PoolManager
from ..settings import PoolSettings, _overlay, _read, variable
from . import process
from .export import Exporter, Target
from .history import Series
from .incidents import Incidents
from .page import render_page
from .report import compile_report, render_json, render_text
from .sampler import Sampler
from .sources import Given, Source, source_of

__all__ = ["PerformanceMonitor", "get_global_monitor"]

logger = logging.getLogger("pooling")

_ENABLED, _INTERVAL = "ENABLE_METRICS", "METRICS_EXPORT_INTERVAL"
_EXPORT_EVERY = 60.0
_DAY = 86400.0
_FORMATS = ("text", "json", "html")
_LONGEST_HOURS = 7 * 24.0


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
        self.source: Source = source_of(pools, "PerformanceMonitor.pools")
        self._clock: Clock = SYSTEM if clock is None else clock
        self._interval = interval
        self._exporters: list[Exporter] = []
        self._stopped = False
        # By process id: another process never uses these locks. Setting an item of a dict, once, is atomic.
        self._samplers: dict[int, Sampler] = {}
        self._self = weakref.ref(self)
        if export is not None:
            self.export_to(export)
        self.current_sampler()
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
        known = [pool.settings.metrics_interval for _, pool in self.source.pools() if isinstance(pool, ManagedPool)]
        return min(60.0, max(0.1, min(known, default=PoolSettings().metrics_interval)))

    @property
    def retention(self) -> float:
        """Seconds for which the history is kept."""
        return self._retention

    def stop(self) -> None:
        """Sample and export no more, and remove the observers from the pools; the history stays. Idempotent."""
        self._stopped = True
        sampler = self._samplers.get(os.getpid())
        if sampler is not None:
            with sampler.lock:
                watches = sampler.take_watches()
            for watch in watches:
                watch.listen(False)

    def __enter__(self) -> PerformanceMonitor:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def current_sampler(self) -> Sampler:
        """Return the sampler of this process; begin anew in a forked child."""
        pid = os.getpid()
        sampler = self._samplers.get(pid)
        if sampler is not None:
            return sampler
        if not SAME_PROCESS[0]:
            fork.ensure_process()  # before any lock of a pool is taken
        parents = list(self._samplers.values())
        fresh = Sampler(self.source, self._clock, self._retention, _weakly(self._self), forked=bool(parents))
        sampler = self._samplers.setdefault(pid, fresh)
        if sampler is fresh:
            for other in [other for other in self._samplers if other != pid]:
                self._samplers.pop(other, None)
            for watch in [watch for parent in parents for watch in parent.take_watches()]:
                watch.listen(False)  # a sample adds new observers
            if self.enabled:
                self._arm(sampler)
        return sampler

    def _incidents(self) -> Incidents | None:
        """Return where listeners note incidents, and sample soon if this is a new process."""
        known = os.getpid() in self._samplers
        incidents = self.current_sampler().incidents if self.enabled else None
        if not known and incidents is not None:
            registry.runtime_of(self._clock).workers.submit(_sample_and_export, self._self)
        return incidents

    # -- the reaper's side ----------------------------------------------------------

    def _arm(self, sampler: Sampler) -> None:
        """Ask the reaper for the next sweep."""
        now = self._clock.now()
        due = min([now + self.interval, *(max(now, exporter.due) for exporter in self._exporters)])
        sampler.due = due
        registry.runtime_of(self._clock).reaper.post(SweepRequest(self._self, due))

    def sweep(self, due: float, now: float) -> bool:
        """Called by the reaper when a sample or an export is due: have a worker do it.

        Returns:
            ``False`` if a later request has superseded this one, or the monitor was stopped.
        """
        sampler = self._samplers.get(os.getpid())
        if sampler is None or sampler.due != due or not self.enabled:
            return False
        waiting = [exporter for exporter in self._exporters if exporter.due <= now]
        for exporter in waiting:
            exporter.due = now + exporter.every
        self._arm(sampler)  # first: whatever happens now, there is a next time
        workers = registry.runtime_of(self._clock).workers
        workers.submit(_sample_and_export, self._self)
        for exporter in waiting:
            workers.submit(_sample_and_export, self._self, exporter)
        return True

    def sample(self) -> None:
        """Take a sample now, beside those at intervals. Does nothing while metrics are off."""
        sampler = self.current_sampler()
        if self.enabled:
            sampler.sample()

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
        sampler = self.current_sampler()
        self.sample()
        manager = self.source.manager
        named = sampler.named()
        found = self._summary_of(named) if manager is None else manager.get_performance_summary()
        pools: dict[str, Any] = found["pools"]
        with sampler.lock:
            for label, figures in pools.items():
                if label in sampler.series:
                    figures["last_minute"] = _last_minute(sampler.series[label], self._clock.wall())
            cpu = sampler.process.total(self._clock.wall() - 60).cpu
        for alias, label in _aliases(named).items():
            if label in pools:
                found.setdefault(alias, pools[label])
        found.setdefault("uptime_seconds", self._clock.now() - sampler.since)
        found["process"] = {**process.read().to_dict(), "cpu_percent": 100.0 * cpu}
        found["monitor"] = {
            "enabled": self.enabled, "interval": self.interval, "since": sampler.since_wall, "samples": sampler.samples
        }  # fmt: skip
        return found

    def _status(self, named: Mapping[str, Any]) -> str:
        members = [member_of(pool) for pool in named.values()]
        if not isinstance(self.source, Given):  # of the process: those that were closed are not missed
            members = [one for one in members if not one.closed]
        return overall((status_of(one), one.critical) for one in members)

    def _summary_of(self, named: Mapping[str, Any]) -> dict[str, Any]:
        pools = {label: member_of(pool).metrics() for label, pool in named.items()}
        return {**pools, "status": self._status(named), "timestamp": self._clock.wall(), "pools": pools}

    def get_report(self, hours: float = 24.0) -> dict[str, Any]:
        """Return what `generate_report` renders, as plain values; see :mod:`pooling.observe.report` for its shape.

        Raises:
            ValueError, TypeError: ``hours`` is not a number above 0, at most 168.
        """
        hours = _number("hours", hours, 0.0, _LONGEST_HOURS, above=True)
        sampler = self.current_sampler()
        self.sample()
        manager = self.source.manager
        status = manager._status() if manager is not None else self._status(sampler.named())
        with sampler.lock:
            return compile_report(
                list(sampler.series.values()), sampler.process, sampler.incidents,
                now=self._clock.wall(), hours=hours, since=sampler.since_wall, status=status,
                enabled=self._enabled, last=sampler.process_reading,
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
        sampler = self._samplers.get(os.getpid())
        if sampler is not None and self.enabled:
            self._arm(sampler)

    def _export_at_exit(self) -> None:
        if self.enabled and os.getpid() in self._samplers:
            for exporter in self._exporters:
                if exporter.to_file:
                    exporter.run(self.get_performance_summary)

    def __reduce_ex__(self, protocol: Any) -> Any:
        no_copy(self, "it belongs to its process; get_report() is what can be kept and sent")

    def __repr__(self) -> str:
        sampler = self._samplers.get(os.getpid())
        number = 0 if sampler is None else sampler.observed
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
        logger.exception("a sample of the monitor failed; this is a bug in pooling", extra=fields("internal_error"))


def _aliases(named: Mapping[str, Any]) -> dict[str, str]:
    """Return the promised names of the only HTTP pool and the only database pool, as far as they are not taken."""
    kinds: dict[str, list[str]] = {"http_pool": [], "database_pool": []}
    for label, pool in named.items():
        if isinstance(pool, ManagedPool) and hasattr(pool.metrics, "hosts"):
            kinds["http_pool"].append(label)
        elif type(pool) is not Pool:
            kinds["database_pool"].append(label)
    return {alias: labels[0] for alias, labels in kinds.items() if len(labels) == 1 and alias not in named}


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


global_monitor: dict[str, PerformanceMonitor] = {}


def get_global_monitor() -> PerformanceMonitor:
    """Return the monitor of all pools of this library in the process; the first call starts it.

    In a forked child the same object begins anew. After its `stop` the next
    call starts another one.

    Raises:
        ValueError: ``ENABLE_METRICS`` is neither true nor false.
    """
    found = global_monitor.get("monitor")
    if found is None or found._stopped:
        global_monitor.pop("monitor", None)
        fresh = PerformanceMonitor()
        found = global_monitor.setdefault("monitor", fresh)
        if found is not fresh:  # another thread was faster
            fresh.stop()
    found.current_sampler()
    return found
