"""The report of all processes of an application, from the directory that they share."""

from __future__ import annotations

import time
from typing import Any

from .._reports import DEGRADED, overall
from .advice import OF_INCIDENTS
from .figures import add_up, state_of
from .history import Minute, ProcessMinute, Series
from .incidents import Incidents
from .local import Record
from .minutes import (
    BLOCK,
    PROCESS,
    Book,
    Flat,
    by_start,
    lengthen,
    mean_of_one,
    merge,
    minute_of,
    number_of,
    process_minute_of,
)
from .page import render_page
from .process import ProcessReading
from .report import compile_report, render_json, render_text
from .shared import SharedDirectory

__all__ = ["FORMATS", "LONGEST_HOURS", "render", "report_of"]

LONGEST_HOURS = 24.0
"""How far the history reaches back."""

FORMATS = {"text": render_text, "json": render_json, "html": render_page}

_HOUR = 3600.0
_SETTINGS = {"max": "max_size", "idle_min": "min_size", "idle_max": "max_idle", "acquire_timeout": "acquire_timeout"}


def render(directory: SharedDirectory, hours: float = LONGEST_HOURS, format: str = "text") -> str:
    """Return the report as text, JSON or HTML.

    Args:
        directory: Where the processes share their figures.
        hours: How far to look back, above 0 and at most 24.
        format: ``"text"``, ``"json"`` or ``"html"``.

    Raises:
        OSError, TimeoutError: The directory cannot be used.
    """
    return FORMATS[format](report_of(directory, hours))


def report_of(directory: SharedDirectory, hours: float = LONGEST_HOURS) -> dict[str, Any]:
    """Return the report as plain values, in the shape that `report` documents.

    The counters of a pool are those of all processes, also of those that have
    ended. The advice is about an average process, because settings are those of
    one process, and says so: what each one did is kept for minutes only.
    """
    records, past = directory.all_records()
    book: Book = {}
    merge(book, past.book)
    events = list(past.events)
    now = time.time()
    for record in records.values():
        minutes = by_start(record.get("minutes", {}))
        lengthen(minutes, record, now)
        merge(book, minutes)
        events += record.get("events", [])
    ones = {name: {start: mean_of_one(one) for start, one in several.items()} for name, several in book.items()}
    process = _series(PROCESS, "process", book.pop(PROCESS, {}), ProcessMinute)
    since = min((one["from"] for several in book.values() for one in several.values()), default=now)
    pools = [_pool(name, several, records) for name, several in sorted(book.items())]
    states = [state_of(add_up([one])["gauges"]) for record in records.values() for one in record["pools"].values()]
    status = overall((DEGRADED if state == "exhausted" else state, True) for state in states if state != "closed")
    long = now - since > _HOUR
    report = compile_report(
        pools, process, Incidents.of(events), now=now, hours=hours, since=since, status=status,
        enabled=True, last=_sum(records), grain=BLOCK if long else 60,
        advised=lambda series: _of_one(series, ones.get(series.label, {})),
    )  # fmt: skip
    report["process"]["processes"] = len(records)
    for item in report["advice"]:
        number = max((number_of(one) for one in book.get(item["pool"], {}).values()), default=1.0)
        if number > 1.5 and item["title"] not in OF_INCIDENTS:
            item["why"] += (
                f" These figures are those of an average process, of up to {number:.0f}; where the load is uneven, the "
                "busiest needs more."
            )
    return report


def _series(label: str, kind: str, minutes: dict[int, Flat], form: type[Any]) -> Series:
    series = Series(label, kind, form, (LONGEST_HOURS + 1) * _HOUR)
    for start in sorted(minutes):
        flat = minutes[start]
        series.at(start).merge(minute_of(flat) if form is Minute else process_minute_of(flat))
    return series


def _pool(name: str, minutes: dict[int, Flat], records: dict[str, Record]) -> Series:
    kinds = [minutes[start].get("kind", "Pool") for start in sorted(minutes)]
    series = _series(name, kinds[-1], minutes, Minute)
    gauges = [one["pools"][name]["gauges"] for one in records.values() if name in one["pools"]]
    is_open = any(one.get("open") for one in gauges)
    series.state = "open" if is_open else "closed"
    series.settings = {own: one[key] for one in gauges for key, own in _SETTINGS.items() if key in one}
    return series


def _of_one(series: Series, minutes: dict[int, Flat]) -> Series:
    found = _series(series.label, series.kind, minutes, ProcessMinute if series.label == PROCESS else Minute)
    found.state, found.settings = series.state, series.settings
    return found


def _sum(records: dict[str, Record]) -> ProcessReading:
    readings = [one["process"] for one in records.values() if "process" in one]
    cpu = sum(one["cpu_seconds"] for one in readings)
    rss, threads, descriptors = (sum(one[key] for one in readings) for key in ("memory", "threads", "descriptors"))
    return ProcessReading(0, cpu, rss, threads, descriptors, min((one["started"] for one in readings), default=0.0))
