"""What to change, computed from the history of a pool.

Sizes follow Little's law: leases per second times the mean time of a lease is
the number in use on average. To that comes what chance needs so that waits
stay short, by Erlang's C formula: see `pooling.tools.doctor.sizing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .._console import duration as duration_text
from .._console import times as times_text
from ..tools.doctor.sizing import Load, size_for
from .history import Minute, ProcessMinute, Series

__all__ = ["OF_INCIDENTS", "advise", "advise_process", "busiest", "duration_text", "number_text", "times_text"]

ACT, CONSIDER = "act", "consider"

_WAIT_TARGET = 0.01  # seconds that 99 of 100 may wait at most, as the doctor's default
_ENOUGH = 3600.0  # seconds that must have been observed before capacity is called idle
_FEW = 10  # requests below which a share says nothing
_DEATHS = ("dead", "invalid", "broken")
_UNREACHABLE, _RESETS = "The server could not be reached", "Resets kept failing"
_HELD, _DROPPED = "Release leases earlier", "Release leases: use with"
_PROPOSED = "Another size may complete more"
OF_INCIDENTS = frozenset({_UNREACHABLE, _RESETS, _HELD, _DROPPED, _PROPOSED})
"""The titles of advice that counts incidents: those of all processes, where there are several."""
_DATABASES = ("PostgresPool", "ConnectionPool", "Engine")


def _item(
    pool: str | None, severity: str, title: str, why: str,
    setting: str | None = None, current: Any = None, suggested: Any = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "pool": pool, "severity": severity, "title": title, "why": why, "setting": setting, "current": current,
        "suggested": suggested,
    }  # fmt: skip


def busiest(minutes: Sequence[Minute]) -> Minute | None:
    """Return the minute with the highest load that leases explain; the 95th percentile where there are 20 or more."""
    busy = sorted((one for one in minutes if one.use.count and one.seconds > 0), key=_demand)
    if not busy:
        return None
    return busy[-1] if len(busy) < 20 else busy[math.ceil(0.95 * len(busy)) - 1]


def _demand(minute: Minute) -> float:
    return minute.rate * minute.use.mean


def advise(
    series: Series, minutes: Sequence[Minute], total: Minute, incidents: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return advice about one pool, what is urgent first.

    Args:
        series: The pool's history, for its label, kind and settings.
        minutes: Its minutes in the period.
        total: All of them in one.
        incidents: Its incidents in the period.
    """
    own = [one for one in incidents if one["pool"] == series.label]
    outages = [one for one in own if one["kind"] == "outage"]
    found = [
        *_outages(series, outages),
        *_size(series, minutes, total, outages),
        *_adaptive(series, own),
        *_forgotten(series, own),
        *_resets(series, own),
        *_deaths(series, total, outages),
        *_churn(series, total),
        *_idle(series, minutes, total),
        *_slow_creation(series, total),
        *_hosts(series, total),
        *_queries(series, total),
    ]
    return sorted(found, key=lambda item: item["severity"] != ACT)


def _outages(series: Series, outages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not outages:
        return []
    lasting = [one for one in outages if one["end"] is None]
    number = sum(one["count"] for one in outages)
    took = sum(one["end"] - one["start"] for one in outages if one["end"] is not None)
    going_on = "still going on" if number == 1 else "the last one is still going on"
    state = going_on if lasting else f"{duration_text(took)} in all"
    return [_item(
        series.label, ACT if lasting else CONSIDER, _UNREACHABLE,
        f"{number_text(number, 'outage')}, {state}. Last error: {outages[-1]['text']}",
    )]  # fmt: skip


def _in_outage(minute: Minute, outages: list[dict[str, Any]]) -> bool:
    return any(
        one["start"] < minute.start + 60 and (one["end"] is None or one["end"] >= minute.start) for one in outages
    )


def _size(
    series: Series, minutes: Sequence[Minute], total: Minute, outages: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    calm = [one for one in minutes if not _in_outage(one, outages)]
    failed = sum(one.timeouts + one.refusals for one in calm)
    exhausted = sum(one.exhausted for one in calm)
    if not (failed or exhausted) or not total.max_size:
        return []
    peak = busiest([one for one in calm if one.exhausted or one.timeouts or one.refusals]) or busiest(calm)
    size = total.max_size
    facts = "Outside of outages: exhausted" if outages else "Exhausted"
    facts += f" {times_text(exhausted)}; {number_text(failed, 'acquire')} timed out or refused."
    if peak is None:
        return [_item(
            series.label, ACT, "All resources were in use, and none came back",
            f"{facts} No lease ended meanwhile: holders() shows who holds them, leak_timeout reports it.",
            "leak_timeout", series.settings.get("leak_timeout"), 60.0,
        )]  # fmt: skip
    load = Load(peak.rate, peak.use.mean, size, peak.wait.percentile(0.99), peak.timeouts + peak.refusals)
    facts += (
        f" In a busy minute {load.rate:.3g} acquires/s of {duration_text(load.hold)} each need {load.erlangs:.2g} at "
        f"once on average, of max_size {size}; 1 % waited longer than {duration_text(load.wait)}."
    )
    target = max(_WAIT_TARGET, load.hold / 10)
    sizing = size_for(load, target) if load.hold > 0 and load.rate > 0 else None
    wanted = size if sizing is None else sizing.size
    if sizing is not None and sizing.explained > 1.01 * load.erlangs:
        facts += " They come in bursts."
    severity = ACT if failed else CONSIDER
    if wanted > size and series.settings.get("adaptive") == "on" and size < (series.settings.get("max_size") or 0):
        return []  # the adaptive size may grow, and had a reason not to
    if wanted > size == 1 and series.kind == "SQLitePool":
        return [_item(
            series.label, severity, "Write in fewer or shorter transactions",
            f"{facts} SQLite has one writer at a time, so more connections do not help writers; readers= serves reads "
            "beside them.",
        )]  # fmt: skip
    if wanted > size:
        limit = " First compare the limit of the server: python -m pooling doctor." * (series.kind in _DATABASES)
        why = f"{facts} With {wanted}, 99 % of the waits stay below {duration_text(target)} (Erlang C).{limit}"
        return [_item(
            series.label, severity, f"Raise max_size from {size} to {wanted}", why, "max_size", size, wanted
        )]  # fmt: skip
    if not failed:
        return []
    long = peak.use.percentile(0.99)
    return [_item(
        series.label, ACT, "Look for leases that are held for long",
        f"{facts} The size suffices for that; but 1 % of the leases took longer than {duration_text(long)}, "
        f"the longest {duration_text(total.use.most)}.",
    )]  # fmt: skip


def _adaptive(series: Series, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Quote the last proposal of the adaptive size, unless a step came after it."""
    steps = [one for one in own if one["kind"] in ("adapted", "proposed")]
    last = max(steps, key=lambda one: float(one["end"] or one["start"]), default=None)
    if last is None or last["kind"] == "adapted":
        return []
    observes = series.settings.get("adaptive") != "on"  # otherwise a bound does not allow it
    name, value = ("adaptive", "on") if observes else ("max_size", int(last["peak"]))
    return [_item(
        series.label, CONSIDER, _PROPOSED, f"Adaptive size, {last['text']}.", name, series.settings.get(name), value,
    )]  # fmt: skip


def _forgotten(series: Series, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for kind, title in (("leak", _HELD), ("orphan", _DROPPED)):
        places = sorted((one for one in own if one["kind"] == kind), key=lambda one: -one["count"])
        if places:
            number = number_text(sum(one["count"] for one in places), "lease")
            held = max(one["peak"] for one in places)
            how = f"held for {duration_text(held)} or longer" if held else "dropped without release"
            often = "" if len(places) == 1 else "most often "
            where = places[0]["text"] or "an unknown place"
            found.append(_item(series.label, ACT, title, f"{number} {how}, {often}acquired at {where}."))
    return found


def _resets(series: Series, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    failing = [one for one in own if one["kind"] == "resets"]
    if not failing:
        return []
    return [_item(
        series.label, ACT, _RESETS,
        f"Resources are closed instead of kept, and every lease creates a new one. Error: {failing[-1]['text']}",
    )]  # fmt: skip


def _deaths(series: Series, total: Minute, outages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    dead = sum(number for reason, number in total.closed.items() if reason in _DEATHS)
    if dead < 5 or outages or dead < 0.02 * total.created:
        return []
    keepalive, idle = series.settings.get("keepalive_interval"), series.settings.get("idle_timeout")
    why = (
        f"{dead} of {total.created} created resources proved dead. Where a server or a firewall closes idle ones, "
        "a keepalive_interval or an idle_timeout below its limit helps."
    )
    name, value = ("keepalive_interval", keepalive) if keepalive is None else ("idle_timeout", idle)
    suggested = 60.0 if value is None else max(5.0, value / 2)
    return [_item(series.label, CONSIDER, "Resources die while they are idle", why, name, value, suggested)]


def _churn(series: Series, total: Minute) -> list[dict[str, Any]]:
    reasons = dict(total.closed.items())
    idle = sum(reasons.get(name, 0) for name in ("max_idle", "idle_timeout", "room"))
    if total.created < 20 or idle < 0.1 * max(1, total.acquired):
        return []
    name = max(("max_idle", "idle_timeout"), key=lambda name: reasons.get(name, 0))
    current = series.settings.get(name)
    suggested = total.in_use_peak if name == "max_idle" else None if current is None else current * 4
    if suggested == current:
        return []
    why = (
        f"{total.created} were created for {total.acquired} leases, and {idle} closed because they were idle; "
        f"creating one takes {duration_text(total.create.mean)}."
    )
    return [_item(series.label, CONSIDER, f"Keep idle resources for longer: {name}", why, name, current, suggested)]


def _idle(series: Series, minutes: Sequence[Minute], total: Minute) -> list[dict[str, Any]]:
    seen = [one for one in minutes if one.seconds > 0]
    if total.seconds < _ENOUGH or not total.requests or total.failed:
        return []
    size = sum(one.size for one in seen) / len(seen)
    peak = total.in_use_peak
    if size < 2 * peak or size < peak + 3:
        return []
    wanted = max(1, math.ceil(1.25 * peak))
    low = total.min_size > wanted
    name, current = ("min_size", total.min_size) if low else ("max_idle", series.settings.get("max_idle"))
    why = (
        f"{size:.3g} were open on average, and at most {peak} in use at once: the others cost the server memory "
        "and its limit of connections."
    )
    return [_item(series.label, CONSIDER, f"Lower {name} to {wanted}", why, name, current, wanted)]


def _slow_creation(series: Series, total: Minute) -> list[dict[str, Any]]:
    slow = total.create.percentile(0.95)
    if total.create.count < 3 or slow < 1.0:
        return []
    return [_item(
        series.label, CONSIDER, "Creating is slow: keep more open ahead of need",
        f"5 % of {total.create.count} creations took longer than {duration_text(slow)}.",
        "min_size", total.min_size, max(total.min_size + 1, math.ceil(total.in_use_peak)),
    )]  # fmt: skip


def _hosts(series: Series, total: Minute) -> list[dict[str, Any]]:
    found = []
    for host, figures in total.hosts.items():
        statuses = dict(figures.statuses.items())
        failures = figures.failures.total()
        bad = sum(number for status, number in statuses.items() if int(status) >= 500) + failures
        if figures.requests < _FEW:
            continue
        if bad > 0.01 * figures.requests:
            kinds = {**{str(status): number for status, number in statuses.items() if int(status) >= 500},
                     **figures.failures.to_dict()}  # fmt: skip
            kinds = dict(sorted(kinds.items(), key=lambda one: -one[1])[:4])
            worst = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
            found.append(_item(
                series.label, ACT if bad > 0.1 * figures.requests else CONSIDER, f"{host} fails",
                f"{bad} of {figures.requests} requests ({bad / figures.requests:.1%}): {worst}.",
            ))  # fmt: skip
        if statuses.get(429, 0) > 0.01 * figures.requests:
            found.append(_item(
                series.label, CONSIDER, f"{host} limits the rate",
                f"{statuses[429]} of {figures.requests} requests got 429: lower max_per_host, or set retry.",
            ))  # fmt: skip
    return found


def _queries(series: Series, total: Minute) -> list[dict[str, Any]]:
    count, slow = total.queries.count, total.queries.percentile(0.95)
    found = []
    if count >= _FEW and slow > 1.0:
        worst = f" The slowest: {series.slowest[0][1]}" if series.slowest else ""
        found.append(_item(
            series.label, CONSIDER, "Queries are slow",
            f"5 % of {count} queries took longer than {duration_text(slow)}.{worst}",
        ))  # fmt: skip
    if count >= _FEW and total.query_errors > 0.05 * count:
        found.append(_item(
            series.label, CONSIDER, "Queries fail",
            f"{total.query_errors} of {count} queries failed ({total.query_errors / count:.0%}).",
        ))  # fmt: skip
    return found


def advise_process(minutes: Sequence[ProcessMinute]) -> list[dict[str, Any]]:
    """Return advice about the process: a saturated processor, memory or descriptors that keep growing."""
    seen = [one for one in minutes if one.seconds > 0]
    total = sum(one.seconds for one in seen)
    if total < 600:
        return []
    found = []
    cpu = sum(one.cpu_seconds for one in seen) / total
    if cpu > 0.85:
        found.append(_item(
            None, CONSIDER, "The process uses a whole processor",
            f"{cpu:.0%} of one on average. Where Python threads compete for the interpreter, more processes help; "
            "a larger pool does not.",
        ))  # fmt: skip
    if total >= _ENOUGH:
        third = max(1, len(seen) // 3)
        kinds = (("rss", 50 * 2**20, 2**20, "MB of memory"), ("descriptors", 50, 1, "descriptors"))
        for name, least, unit, noun in kinds:
            values = [getattr(one, name) for one in seen]
            early, late = min(values[:third]), min(values[-third:])
            if late > 1.5 * early and late - early > least:
                found.append(_item(
                    None, CONSIDER, f"The process keeps more and more {noun.split()[-1]}",
                    f"Never below {late / unit:.0f} {noun} in the last third of the time; "
                    f"{early / unit:.0f} in the first.",
                ))  # fmt: skip
    return found


def number_text(number: int, noun: str) -> str:
    """Return a number of things, in words."""
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"
