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

Nothing here is imported or started unless it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .monitor import PerformanceMonitor, get_global_monitor

__all__ = ["PerformanceMonitor", "get_global_monitor"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # not at import: exporters need no monitor
        from . import monitor

        return getattr(monitor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
