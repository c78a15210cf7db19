"""A report: what happened, when, and what to change; as plain values, as text and as JSON.

Its shape, with times of day in seconds since the epoch and durations in seconds:

``version``      1
``generated``    when; ``hours`` was asked for; ``from``, ``to``: the period, which
                 begins with the observation at the earliest
``status``       of the pools now: ``"up"``; ``"degraded"`` if one is exhausted or paused, or its resets fail; or
                 ``"down"`` if one is
``enabled``      ``False``: metrics were switched off, and there is no history
``totals``       ``pools``, ``requests``, ``failed``, ``incidents``
``advice``       a list: ``pool`` (``None``: the process), ``severity`` (``"act"``,
                 ``"consider"``), ``title``, ``why``, ``setting``, ``current``, ``suggested``
``incidents``    a list: ``pool``, ``kind`` (see `pooling.observe.incidents`),
                 ``start``, ``end`` (``None``: it lasts), ``count``, ``text``, ``peak``
``timeline``     ``start`` and ``step`` of all ``series``, and their number of ``points``
``process``      ``pid``; ``processes``, their number, where the report is about several;
                 ``cpu`` (``mean``, ``peak``; 1.0 is one processor),
                 ``memory`` (bytes), ``threads``, ``descriptors`` (``last``, ``peak``), ``series``
``pools``        by label: ``kind``, ``state``, ``max_size``, ``min_size``, ``seconds``
                 observed; the counters of `PoolSnapshot`; ``requests``, ``failed``,
                 ``success_rate``; ``in_use`` (``mean``, ``peak``), ``waiting_peak``,
                 ``utilization`` (``mean``, ``peak``: of ``max_size``); ``wait``, ``use``,
                 ``create`` (``count``, ``mean``, ``p50``, ``p95``, ``p99``, ``max``); ``closed``,
                 ``errors``; ``hosts`` (a list) and ``queries`` where there are any; ``series``

A value of a series is ``None`` where nothing was observed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .._console import marked
from .advice import advise, advise_process, duration_text, number_text, times_text
from .history import COUNTERS, Minute, ProcessMinute, Series, start_of
from .incidents import MOMENTS, WORDS, Incidents
from .process import ProcessReading

__all__ = [
    "MOST_POINTS", "clock_text", "compile_report", "duration_text", "process_text", "render_json", "render_text",
    "span_text",
]  # fmt: skip

MOST_POINTS = 180
"""Points of a series at most; a report over a day has one for every 8 minutes."""

_POOL_SERIES: dict[str, Callable[[Minute], float]] = {
    "in_use": lambda minute: minute.load,
    "in_use_peak": lambda minute: minute.in_use_peak,
    "max_size": lambda minute: minute.max_size,
    "waiting_peak": lambda minute: minute.waiting_peak,
    "requests_per_second": lambda minute: minute.rate,
    "failed": lambda minute: minute.failed,
    "wait_p99": lambda minute: minute.wait.percentile(0.99),
    "use_p95": lambda minute: minute.use.percentile(0.95),
}
_PROCESS_SERIES: dict[str, Callable[[ProcessMinute], float]] = {
    "cpu": lambda minute: minute.cpu,
    "memory": lambda minute: minute.rss,
    "threads": lambda minute: minute.threads,
    "descriptors": lambda minute: minute.descriptors,
}


def compile_report(
    pools: Sequence[Series],
    process: Series,
    incidents: Incidents,
    *,
    now: float,
    hours: float,
    since: float,
    status: str,
    enabled: bool,
    last: ProcessReading | None,
    grain: int = 60,
    advised: Callable[[Series], Series] = lambda series: series,
) -> dict[str, Any]:
    """Compile the report as plain values, in the shape that this module documents.

    Args:
        pools: The histories of the pools.
        process: That of the process.
        incidents: What happened.
        now: The time of day.
        hours: How far to look back.
        since: When the observation began.
        status: Of the pools now.
        enabled: Whether there is a history.
        last: The last reading of the process.
        grain: Seconds that a minute stands for, at most.
        advised: Returns the history that the advice is about.
    """
    begin = max(now - hours * 3600, since)
    begin = begin // grain * grain if grain > 60 else begin
    first = start_of(begin)
    step = grain * max(1, math.ceil((now - first) / grain / MOST_POINTS))
    timeline = {"start": first, "step": step, "points": int((now - first) // step) + 1}
    happened = incidents.since(begin, now)
    found: dict[str, Any] = {}
    advice: list[dict[str, Any]] = []
    for series in pools:
        minutes = list(series.since(begin))
        total = series.total(begin)
        if minutes or series.state == "open":
            series.forget(begin)
            found[series.label] = _pool(series, minutes, total, timeline)
            base = advised(series)
            advice += advise(base, list(base.since(begin)), base.total(begin), happened)
    minutes_of_process = list(process.since(begin))
    advice += advise_process(list(advised(process).since(begin)))
    advice.sort(key=lambda item: item["severity"] != "act")
    return {
        "version": 1,
        "generated": now,
        "hours": hours,
        "from": begin,
        "to": now,
        "status": status,
        "enabled": enabled,
        "totals": {
            "pools": len(found),
            "requests": sum(one["requests"] for one in found.values()),
            "failed": sum(one["failed"] for one in found.values()),
            "incidents": len(happened),
        },
        "advice": advice,
        "incidents": happened,
        "timeline": timeline,
        "process": _process(process, begin, minutes_of_process, timeline, last),
        "pools": found,
    }


def _pool(series: Series, minutes: list[Minute], total: Minute, timeline: dict[str, Any]) -> dict[str, Any]:
    limit = total.max_size or series.settings.get("max_size") or 0
    found: dict[str, Any] = {
        "kind": series.kind,
        "state": series.state,
        "max_size": limit,
        "min_size": total.min_size,
        "seconds": total.seconds,
        **dict(zip(COUNTERS, total.counts)),
        "requests": total.requests,
        "failed": total.failed,
        "success_rate": 1.0 - total.failed / total.requests if total.requests else 1.0,
        "requests_per_second": total.rate,
        "in_use": {"mean": total.load, "peak": total.in_use_peak},
        "waiting_peak": total.waiting_peak,
        "utilization": {
            "mean": total.load / limit if limit else 0.0,
            "peak": total.in_use_peak / limit if limit else 0.0,
        },
        "wait": total.wait.to_dict(),
        "use": total.use.to_dict(),
        "create": total.create.to_dict(),
        "closed": total.closed.to_dict(),
        "errors": total.errors.to_dict(),
        "series": _series(minutes, Minute, _POOL_SERIES, timeline),
    }
    if total.hosts:
        hosts = sorted(total.hosts.items(), key=lambda one: -one[1].requests)
        found["hosts"] = [
            {
                "host": host,
                "requests": figures.requests,
                "statuses": figures.statuses.to_dict(),
                "failures": figures.failures.to_dict(),
                "retries": figures.retries,
                "latency": figures.latency.to_dict(),
            }
            for host, figures in hosts
        ]
    if total.queries.count or series.slowest:
        found["queries"] = {
            **total.queries.to_dict(),
            "errors": total.query_errors,
            "slowest": [{"seconds": time, "query": text, "when": when} for time, text, when in series.slowest],
        }
    return found


def _process(
    series: Series, begin: float, minutes: list[ProcessMinute], timeline: dict[str, Any], last: ProcessReading | None
) -> dict[str, Any]:
    total = series.total(begin)
    figures = {
        key: {"last": now, "peak": max(now, peak)}  # the last reading may be younger than the last minute
        for key, now, peak in (
            ("memory", last.rss if last else 0, total.rss),
            ("threads", last.threads if last else 0, total.threads),
            ("descriptors", last.descriptors if last else 0, total.descriptors),
        )
    }
    return {
        "pid": last.pid if last else 0,
        "cpu": {"mean": total.cpu, "peak": total.cpu_peak},
        **figures,
        "series": _series(minutes, ProcessMinute, _PROCESS_SERIES, timeline),
    }


def _series(
    minutes: Iterable[Any], kind: type[Any], wanted: dict[str, Callable[[Any], float]], timeline: dict[str, Any]
) -> dict[str, list[float | None]]:
    start, step, points = timeline["start"], timeline["step"], timeline["points"]
    merged: list[Any] = [None] * points
    for minute in minutes:
        place = (minute.start - start) // step
        if 0 <= place < points:
            if merged[place] is None:
                merged[place] = kind(start + place * step)
            merged[place].merge(minute)
    return {name: [None if one is None else take(one) for one in merged] for name, take in wanted.items()}


# -- as JSON and as text ---------------------------------------------------------------


def render_json(report: dict[str, Any]) -> str:
    """Return a report as JSON."""
    return json.dumps(report, indent=2)


_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60  # characters of a chart
_MOST_LINES = 50  # incidents


def render_text(report: dict[str, Any]) -> str:
    """Return a report as text, for a terminal or a mail."""
    totals = report["totals"]
    lines = [
        f"Pools from {clock_text(report['from'])} to {clock_text(report['to'])}: {report['status']}",
        f"{number_text(totals['pools'], 'pool')}, {number_text(totals['requests'], 'request')}, "
        f"{totals['failed']:,} failed, {number_text(totals['incidents'], 'incident')}",
    ]
    if not report["enabled"]:
        lines.append("Metrics are switched off (ENABLE_METRICS): there is no history.")
    lines += ["", "What to change"]
    lines += [f"  {line}" for item in report["advice"] for line in _advice_lines(item)] or ["  Nothing."]
    lines += ["", "What happened"]
    happened = report["incidents"]
    if len(happened) > _MOST_LINES:
        lines.append(f"  ({len(happened) - _MOST_LINES} older ones are left out)")
    lines += [f"  {_incident_line(one)}" for one in happened[-_MOST_LINES:]] or ["  Nothing."]
    for label, pool in report["pools"].items():
        lines += ["", *_pool_lines(label, pool)]
    lines += ["", *_process_lines(report["process"])]
    return "\n".join(lines) + "\n"


def _advice_lines(item: dict[str, Any]) -> list[str]:
    where = item["pool"] or "process"
    return [
        f"{'!' if item['severity'] == 'act' else '-'} {where}: {item['title']}",
        *marked("", item["why"], indent=4).split("\n"),
    ]  # fmt: skip


def _incident_line(one: dict[str, Any]) -> str:
    text = f": {one['text']}" if one["text"] else ""
    return f"{clock_text(one['start'])}  {one['pool']}: {WORDS[one['kind']]}{span_text(one)}{text}"


def span_text(incident: dict[str, Any]) -> str:
    """Return how long an incident lasted and how often it happened, in words; nothing for a single moment."""
    times = f", {incident['count']:,} times" if incident["count"] > 1 else ""
    if incident["end"] is None:
        return f", still going on{times}"
    lasted = incident["end"] - incident["start"]
    if lasted < 0.5:
        return times
    span = duration_text(lasted)
    return f"{times} within {span}" if incident["kind"] in MOMENTS else f" for {span}{times}"


def _pool_lines(label: str, pool: dict[str, Any]) -> list[str]:
    limit = pool["max_size"] or "no limit"
    state = "" if pool["state"] == "open" else f", {pool['state']}"
    series = pool["series"]
    lines = [
        f"{label} ({pool['kind']}{state})",
        f"  in use    {pool['in_use']['mean']:.2f} on average, {pool['in_use']['peak']} at the peak, of {limit}",
        f"            {_chart(series['in_use_peak'])}",
        f"  requests  {pool['requests']:,} ({pool['requests_per_second']:,.2f}/s), {pool['timeouts']:,} timed out, "
        f"{pool['refusals']:,} refused, {pool['turned_away']:,} failed otherwise; "
        f"exhausted {times_text(pool['exhausted'])}",
        f"            {_chart(series['requests_per_second'])}",
    ]
    for name in ("wait", "use", "create"):
        found = pool[name]
        if found["count"]:
            lines.append(f"  {name:<9} {_durations(found)}")
            if name == "wait":
                lines.append(f"            {_chart(series['wait_p99'])}  p99")
    closed = ", ".join(f"{number:,} {reason}" for reason, number in pool["closed"].items())
    number = sum(pool["closed"].values())
    lines.append(f"  opened    {pool['created']:,}, closed {number:,}" + (f" ({closed})" if closed else ""))
    if pool["errors"]:
        lines.append("  errors    " + ", ".join(f"{number:,} {kind}" for kind, number in pool["errors"].items()))
    for host in pool.get("hosts", ()):
        counts = host["statuses"] | host["failures"]
        answers = ", ".join(f"{number:,} x {status}" for status, number in counts.items())
        latency = _durations(host["latency"])
        lines.append(f"  host      {host['host']}: {host['requests']:,} requests ({answers}), {latency}")
    queries = pool.get("queries")
    if queries:
        lines.append(f"  queries   {queries['count']:,}, {queries['errors']:,} failed, {_durations(queries)}")
        lines += [f"            {duration_text(one['seconds'])}  {one['query']}" for one in queries["slowest"]]
    return lines


def _process_lines(process: dict[str, Any]) -> list[str]:
    series, memory = process["series"], process["memory"]
    return [
        process_text(process),
        f"  processor {process['cpu']['mean']:.1%} on average, {process['cpu']['peak']:.1%} at the peak (100% is one)",
        f"            {_chart(series['cpu'])}",
        f"  memory    {memory['last'] / 2**20:.0f} MB, {memory['peak'] / 2**20:.0f} MB at the peak",
        f"            {_chart(series['memory'])}",
        f"  threads   {process['threads']['last']}, {process['threads']['peak']} at the peak; "
        f"descriptors {process['descriptors']['last']}, {process['descriptors']['peak']} at the peak",
    ]


def process_text(process: dict[str, Any]) -> str:
    """Return which process a report is about, or how many."""
    number = process.get("processes")
    return f"process {process['pid']}" if number is None else f"{number} process{'es' * (number != 1)}"


def _durations(found: dict[str, Any]) -> str:
    parts = (f"{name} {duration_text(found[name])}" for name in ("mean", "p50", "p95", "p99", "max"))
    return ", ".join(parts)


def _chart(values: Sequence[float | None]) -> str:
    """Return values as a line of bars, the highest of them full; a blank where nothing was observed."""
    width = -(-len(values) // _WIDTH)
    groups = [[one for one in values[at : at + width] if one is not None] for at in range(0, len(values), width)]
    most = max((one for group in groups for one in group), default=0.0)
    return "".join(
        " " if not group else _BARS[0] if most <= 0 else _BARS[min(7, int(8 * max(group) / most))] for group in groups
    ).rstrip()


def clock_text(wall: float) -> str:
    """Return a time of day for people, in the local time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))
