"""Observing pools: what happened, when, and what to change.

`monitor`    `PerformanceMonitor`: its life over forks, summaries, reports, exports
`sampler`    the samples and the history of a monitor in one process
`sources`    which pools: those of a manager, given ones, all of the process
`reading`    a pool at one moment, and what happened between two readings
`process`    the same of the process
`spread`     durations of a period, from the buckets of a histogram
`history`    minutes, and the ring that keeps them
`incidents`  what observers are notified of, in a bounded list with times
`advice`     what to change, computed from the history
`report`     all of that as plain values, as text and as JSON
`page`       the same as one HTML file
`export`     files and callables that get a summary at intervals

Alerts:

`alert`      `Alert`: what a target gets
`alerts`     `Alerts`: looks at pools at intervals, in each process
`rules`      what alerts are about, and the figures that rules see
`hysteresis` when an alert begins and ends
`delivery`   the log, callables and webhooks, each with a bounded queue

The figures of all processes of one application, and exporters:

`figures`    the figures of this process's pools, with counters that never decrease
`local`      what one process holds to record them
`slotfile`   a file with one record, safe against ``kill -9`` and readers in the middle of a write
`shared`     the directory ``POOLING_METRICS_DIR``: the figures of all processes
`records`    what is stored in its files
`minutes`    what happened minute by minute, in a form that adds up over processes
`archive`    the minutes and incidents of processes that have ended
`attach`     the same without the variable, while a watcher is there
`view`       all of that as plain values, for ``top`` and the web page
`overall`    the report of all processes
`prometheus` a collector for prometheus_client, for one process or all
`opentelemetry` metrics and span events for OpenTelemetry
`conventions` the instruments and attributes of its semantic conventions
`backlog`    durations that are counted but not yet recorded there

Nothing here is imported or started unless it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alert import Alert
    from .alerts import Alerts
    from .delivery import Webhook
    from .monitor import PerformanceMonitor, get_global_monitor
    from .rules import Rule, Sample, usual_rules

__all__ = [
    "Alert", "Alerts", "PerformanceMonitor", "Rule", "Sample", "Webhook", "get_global_monitor", "usual_rules",
]  # fmt: skip

_MODULES = {
    "PerformanceMonitor": "monitor", "get_global_monitor": "monitor", "Alert": "alert", "Alerts": "alerts",
    "Webhook": "delivery", "Rule": "rules", "Sample": "rules",
    "usual_rules": "rules",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # not at import: exporters need no monitor
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
