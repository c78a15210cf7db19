"""`Alerts`: watches pools, and says when one needs attention and when that is over.

Like the monitor, it has no thread of its own: the reaper calls `sweep` at each
interval, and a worker looks at the pools. It reads snapshots, so acquire and
release do not know of it. In a forked child it begins anew, with the first use
of a pool there.
"""

from __future__ import annotations

import _thread
import logging
import os
import socket
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from .._fields import fields
from .._masking import shown
from ..core.clock import SYSTEM, Clock
from ..core.managed import ManagedPool
from ..core.report.messages import format_error, no_copy, printable
from ..core.runtime import fork, registry
from ..core.runtime.fork import SAME_PROCESS
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS, Reaper, SweepRequest
from ..manager import PoolManager
from .alert import Alert
from .delivery import Delivery, Target, checked_targets
from .hysteresis import Change, Hysteresis
from .rules import Rule, Sample, Watch, checked_rules
from .sources import Source, source_of

__all__ = ["Alerts", "living"]

logger = logging.getLogger("pooling")

_LONGEST_TEXT = 1000
_GONE = "the pool was closed or removed"


class _Process:
    """The state in one process; a forked child gets another one, with a lock of its own."""

    def __init__(self, targets: Iterable[Any], clock: Clock) -> None:
        self.lock: Any = _thread.RLock()  # native under gevent, too: nothing waits or switches while it is held
        self.deliveries = [Delivery(_log if target == "log" else target, clock) for target in targets]
        self.watches: dict[int, tuple[weakref.ref[Any], Watch]] = {}
        self.states: dict[tuple[str, str], Hysteresis] = {}
        self.began: dict[tuple[str, str], Alert] = {}
        self.complained: set[str] = set()
        self.samples = 0
        self.due = float("-inf")
        self.busy = False


class Alerts:
    """Watches pools, and reports when one needs attention and when that is over.

    ::

        alerts = Alerts()                               # all pools of the process, to the log
        alerts = Alerts(manager, to=["log", page_me, Webhook("https://hooks.example.com/...")])

    Each incident is one alert when it begins and one when it is over; a
    condition that comes and goes is one incident, see `Hysteresis`. It begins
    at once, in the background, and goes on until `stop`, whether or not the
    program keeps the object. Pools are held weakly.

    Args:
        pools: As for `PerformanceMonitor`; or a monitor, for the same pools.
        rules: When to alert; ``None`` means `usual_rules()`, whose limits can be changed.
        to: ``"log"``, a callable that gets each `Alert`, a `Webhook`, or
            several of these. A callable runs in a background thread, and what
            it raises is logged once. ``None`` means the log.
        interval: Seconds between two looks at the pools, from 0.1 to 60.
        group: A name for the processes that belong together, in each alert.
        clock: The source of time; tests pass their own.

    Raises:
        ValueError, TypeError: An argument breaks its rule.
    """

    def __init__(
        self,
        pools: PoolManager | ManagedPool[Any] | Iterable[Any] | Any = None,
        *,
        rules: Iterable[Rule] | None = None,
        to: str | Target | Iterable[str | Target] | None = None,
        interval: float = 1.0,
        group: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, (int, float)):
            raise TypeError(f"Alerts.interval must be a number of seconds, not {shown(interval)}")
        if not 0.1 <= interval <= 60.0:
            raise ValueError(f"Alerts.interval must be from 0.1 to 60 seconds, not {shown(interval)}")
        if group is not None and not (isinstance(group, str) and group):
            raise TypeError(f"Alerts.group must be a non-empty string, not {shown(group)}")
        given = getattr(pools, "source", None)
        self._source: Source = source_of(pools, "Alerts.pools") if given is None else given
        self._rules = checked_rules(rules)
        self._targets = checked_targets(to)
        self._interval, self._group = float(interval), group
        self._clock: Clock = SYSTEM if clock is None else clock
        self._host = socket.gethostname()
        self._stopped = False
        self._processes: dict[int, _Process] = {}  # by process id: another process never uses these locks
        self._self = weakref.ref(self)
        living[id(self)] = self
        if _listen not in LISTENERS:
            LISTENERS.append(_listen)
        self.process()
        self.check()

    # -- life ---------------------------------------------------------------------

    def process(self) -> Any:
        """Return the state of this process; begin anew in a forked child. Internal."""
        pid = os.getpid()
        found = self._processes.get(pid)
        if found is None:
            if not SAME_PROCESS[0]:
                fork.ensure_process()  # before any lock of a pool is taken
            mine = _Process(self._targets, self._clock)
            mine.samples = int(bool(self._processes))  # pools of this library count from zero in a child: all is new
            found = self._processes.setdefault(pid, mine)
            if found is mine:
                for other in [other for other in self._processes if other != pid]:
                    self._processes.pop(other, None)
                if not self._stopped:
                    self._arm(found)
        return found

    def _arm(self, process: _Process) -> None:
        process.due = self._clock.now() + self._interval
        registry.runtime_of(self._clock).reaper.post(SweepRequest(self._self, process.due))

    def sweep(self, due: float, now: float) -> bool:
        """Called by the reaper when it is time to look at the pools: have a worker do it.

        Returns:
            ``False`` if a later request has superseded this one, or it was stopped.
        """
        process = self._processes.get(os.getpid())
        if process is None or process.due != due or self._stopped:
            return False
        self._arm(process)  # first: whatever happens now, there is a next time
        registry.runtime_of(self._clock).workers.submit(_check, self._self)
        return True

    def stop(self) -> None:
        """Watch no more. Alerts that have not ended are not reported any more. Idempotent."""
        self._stopped = True
        living.pop(id(self), None)
        for target in self._targets:
            close = getattr(target, "close", None)
            if callable(close):
                close()

    def __enter__(self) -> Alerts:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # -- look -----------------------------------------------------------------------

    def check(self) -> list[Alert]:
        """Look at the pools now, beside the looks at intervals; return what began or ended."""
        process = self.process()
        found: list[Alert] = []
        with process.lock:
            if self._stopped or process.busy:
                return found
            process.busy = True
        try:
            now = self._clock.now()
            present = self._find(process)
            for pool, watch in present:
                found += self._check_pool(process, pool, watch, now)
            found += self._forget(process, {watch.label for _, watch in present}, now)
            process.samples += 1
        finally:
            process.busy = False
        for alert in found:
            for delivery in process.deliveries:
                delivery.put(alert)
        return found

    def firing(self) -> list[Alert]:
        """Return the alerts of this process that have begun and not ended, the oldest first."""
        with self.process().lock:
            return sorted(self.process().began.values(), key=lambda alert: alert.began)

    @property
    def dropped(self) -> int:
        """How many alerts could not be delivered to a target, in this process."""
        return sum(delivery.dropped for delivery in self.process().deliveries)

    def _find(self, process: _Process) -> list[tuple[Any, Watch]]:
        """Return the pools that exist now; those of one name are told apart."""
        found = []
        taken = {watch.label for reference, watch in process.watches.values() if reference() is not None}
        wanted: list[tuple[str, Any]] = []
        for label, pool in self._source.pools():
            wanted.append((label, pool))
            readers = getattr(pool, "readers", None)  # of a SQLite pool: a pool of its own
            if isinstance(readers, ManagedPool):
                wanted.append((f"{label}-readers", readers))
        for label, pool in wanted:
            reference, watch = process.watches.get(id(pool), (None, None))
            if watch is None or reference is None or reference() is not pool:
                name, number = printable(label), 1
                while name in taken:
                    number += 1
                    name = f"{printable(label)} ({number})"
                taken.add(name)
                watch = Watch(name, new=process.samples > 0)
                process.watches[id(pool)] = weakref.ref(pool), watch
            if getattr(pool, "closed", False) is not True:
                found.append((pool, watch))
        return found

    def _check_pool(self, process: _Process, pool: Any, watch: Watch, now: float) -> list[Alert]:
        try:
            sample = watch.sample(pool, now)
        except Exception as error:
            self._complain(process, f"pool {watch.label!r}", error)
            return []
        changes = (self._apply(process, rule, sample, now) for rule in self._rules)
        return [alert for alert in changes if alert is not None]

    def _apply(self, process: _Process, rule: Rule, sample: Sample, now: float) -> Alert | None:
        try:
            text = rule.test(sample)
        except Exception as error:
            self._complain(process, f"rule {rule.kind!r}", error)
            return None
        key = sample.pool, rule.kind
        state = process.states.get(key)
        if state is None:
            if text is None:
                return None
            state = process.states[key] = Hysteresis(rule.after, rule.clear)
        change = state.update(text is not None, now)
        if change is None:
            return None
        return self._changed(process, key, rule, state, change, "" if text is None else str(text), now)

    def _forget(self, process: _Process, present: set[str], now: float) -> list[Alert]:
        """End the alerts of pools that are closed, gone, or were removed from their manager."""
        found = []
        for number, (reference, watch) in list(process.watches.items()):
            if watch.label in present:
                continue
            if reference() is None:
                process.watches.pop(number)
            for rule in self._rules:
                key = watch.label, rule.kind
                state = process.states.pop(key, None)
                change = None if state is None else state.end(now)
                if state is not None and change is not None:
                    found.append(self._changed(process, key, rule, state, change, _GONE, now))
        return found

    def _changed(
        self, process: _Process, key: tuple[str, str], rule: Rule, state: Hysteresis, change: Change, text: str,
        now: float,
    ) -> Alert:  # fmt: skip
        wall = self._clock.wall()
        if change is Change.BEGAN:
            began = wall - (now - (now if state.began is None else state.began))
            text = printable(" ".join(text.split()))[:_LONGEST_TEXT]
            alert = Alert(
                rule.kind, change.value, key[0], rule.severity, text, began,
                group=self._group, host=self._host, pid=os.getpid(),
            )  # fmt: skip
            process.began[key] = alert
            return alert
        before = process.began.pop(key)
        ended = wall - (now - (now if state.ended is None else state.ended))
        again = f", with {state.flaps} interruptions" if state.flaps else ""
        text = f"{rule.kind}: over after {max(0.0, ended - before.began):.0f} s{again}" + f": {text}" * bool(text)
        return Alert(
            rule.kind, change.value, key[0], rule.severity, text, before.began, ended, state.flaps,
            self._group, self._host, os.getpid(),
        )  # fmt: skip

    @staticmethod
    def _complain(process: _Process, about: str, error: Exception) -> None:
        if about not in process.complained:
            process.complained.add(about)
            why = format_error(error)
            extra = fields("alerts_failed", target=about, error=why)
            logger.warning("alerts: %s cannot be checked: %s", about, why, extra=extra)

    def __reduce_ex__(self, protocol: Any) -> Any:
        no_copy(self, "it belongs to its process")

    def __repr__(self) -> str:
        process = self._processes.get(os.getpid())
        number = 0 if process is None else len(process.began)
        how = "stopped" if self._stopped else f"every {self._interval:g} s, {number} firing"
        return f"<Alerts: {len(self._rules)} rules, {how}>"


def _log(alert: Alert) -> None:
    """Deliver an alert to the log."""
    level = logging.ERROR if alert.severity == "critical" and alert.ended is None else logging.WARNING
    logger.log(
        level, "alert: %s", alert,
        extra=fields(
            "alert", alert.pool, kind=alert.kind, state=alert.state, severity=alert.severity, key=alert.key,
            seconds=None if alert.ended is None else alert.ended - alert.began, flaps=alert.flaps,
        ),
    )  # fmt: skip


living: dict[int, Alerts] = {}
"""Those that were not stopped; a program need not keep them. Internal."""


def _check(alerts: weakref.ref[Alerts]) -> None:
    """A worker's job."""
    found = alerts()
    if found is not None:
        found.check()


def _listen(reaper: Reaper, dropped: PoolRef | None) -> None:
    """Called when a reaper's thread begins, at the first use of a pool in a process: begin anew in a forked child."""
    if dropped is None:
        for alerts in list(living.values()):
            alerts.process()
