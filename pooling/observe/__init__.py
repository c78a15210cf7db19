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

Nothing here is imported or started unless it is used.
"""

from __future__ import annotations

from .monitor import PerformanceMonitor, get_global_monitor

__all__ = ["PerformanceMonitor", "get_global_monitor"]
