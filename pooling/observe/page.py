"""A report as one HTML file with inline SVG: no script, no link, nothing to load. Every text is escaped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from .advice import duration_text, times_text
from .incidents import WORDS
from .report import process_text, span_text

__all__ = ["render_page"]

_FIRST_ROWS, _MOST_ROWS = 12, 200  # incidents that are shown at once, and after a click
_GRAVE = ("outage", "timeout", "refused", "leak", "orphan", "resets")  # the others are only worth knowing
_WIDTH, _HEIGHT = 1000, 100  # of a chart's own units; it is stretched to the width of the page
_STATES = {"up": "good", "degraded": "warn", "down": "bad"}

Values = Sequence[float | None]

_CSS = """
:root{color-scheme:light dark;--bg:#f5f6f8;--card:#fff;--ink:#18212d;--dim:#586675;--rule:#e2e6ec;--blue:#2456d6;
--area:#2456d626;--good:#13743a;--warn:#9a5a00;--bad:#c01f38;--badarea:#c01f38b0;--shade:#eef1f5}
@media(prefers-color-scheme:dark){:root{--bg:#10151c;--card:#18202a;--ink:#e6ebf2;--dim:#9aa8b8;--rule:#2a3541;
--blue:#7aa5ff;--area:#7aa5ff30;--good:#5fce8a;--warn:#f0b04e;--bad:#ff7c8d;--badarea:#ff7c8db0;--shade:#212b37}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.2;margin:0;letter-spacing:-.01em}
h2{font-size:18px;margin:38px 0 12px}
h3{font-size:14px;margin:0;font-weight:600}
h1,h2,h3,.events li>*{overflow-wrap:anywhere;min-width:0}
p{margin:0}
code{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.dim{color:var(--dim)}
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}
header{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;margin-bottom:20px}
header p{flex-basis:100%}
.badge{font-size:13px;font-weight:600;border:1px solid;border-radius:99px;padding:1px 11px}
.tag{font-size:12px;font-weight:500;color:var(--dim);border:1px solid var(--rule);border-radius:5px;padding:1px 7px;
margin-left:8px;vertical-align:2px;white-space:nowrap}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:13px 16px;min-width:0}
.cards b{display:block;font-size:23px;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.cards span{font-size:13px;color:var(--dim)}
.advice{display:grid;gap:10px}
.advice .card{border-left:4px solid var(--warn);overflow-wrap:anywhere}
.advice .act{border-left-color:var(--bad)}
.advice .none{border-left-color:var(--good)}
.advice h3{font-size:15px}
.advice p{color:var(--dim);margin-top:2px}
.charts{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));margin:12px 0}
.chart .top{display:flex;flex-wrap:wrap;justify-content:space-between;gap:2px 12px;margin-bottom:8px}
.key{font-size:12px;color:var(--dim);display:flex;flex-wrap:wrap;gap:0 11px;align-items:center}
.key i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:5px;vertical-align:middle}
.key i.box{height:10px}
.plot{position:relative}
.plot svg{display:block;width:100%;height:120px;overflow:visible}
.plot em{position:absolute;left:0;font:11px/1 system-ui,sans-serif;color:var(--dim);background:var(--card);
padding:1px 4px 1px 0;pointer-events:none}
.x{display:flex;justify-content:space-between;font-size:11px;color:var(--dim);margin-top:5px}
svg .grid{stroke:var(--rule);stroke-width:1;vector-effect:non-scaling-stroke}
svg .line{fill:none;stroke:var(--blue);stroke-width:1.75;vector-effect:non-scaling-stroke}
svg .area{fill:var(--area)}
svg .limit{fill:none;stroke:var(--warn);stroke-width:1.5;stroke-dasharray:5 4;vector-effect:non-scaling-stroke}
svg .fail{fill:var(--badarea)}
svg .note{fill:var(--warn);opacity:.75}
svg .hit{fill:transparent}
svg .hit:hover{fill:var(--ink);opacity:.1}
.i-line{background:var(--blue)}.i-area{background:var(--area)}.i-limit{background:var(--warn)}
.i-fail{background:var(--badarea)}.i-note{background:var(--warn)}
.strip{display:grid;grid-template-columns:minmax(70px,max-content) 1fr;gap:6px 12px;align-items:center;
margin-bottom:6px}
.strip span{font-size:13px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;max-width:180px}
.strip svg{display:block;width:100%;height:16px;background:var(--shade);border-radius:3px}
.strip .x{margin:0}
.events{list-style:none;margin:10px 0 0;padding:0;font-size:14px}
.events li{display:grid;grid-template-columns:8.5em 15em 10em 1fr;gap:0 14px;padding:7px 0;
border-top:1px solid var(--rule)}
.events b{font-weight:600}.events time,.events i{color:var(--dim);font-style:normal;font-variant-numeric:tabular-nums}
.events code{grid-column:2/-1;color:var(--dim)}
summary{cursor:pointer;color:var(--blue);font-size:14px;padding-top:8px;border-top:1px solid var(--rule)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:500;font-size:12px;color:var(--dim);text-align:left}
th,td{padding:6px 14px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
tr:last-child td{border-bottom:0}
.num{text-align:right;white-space:nowrap;width:1%}
td.wide{overflow-wrap:anywhere;min-width:180px}
.two{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));align-items:start}
.two>.card,.charts>.card{min-width:0}
footer{margin-top:36px;font-size:13px;color:var(--dim)}
@media(max-width:640px){main{padding:18px 12px 40px}h1{font-size:22px}.cards{grid-template-columns:1fr 1fr;gap:8px}
.card{padding:11px 12px}.cards b{font-size:19px}.charts{grid-template-columns:1fr}
.strip{grid-template-columns:1fr;gap:2px}.strip span{max-width:100%}
.events li{grid-template-columns:1fr auto}.events time{order:1;text-align:right}.events span{order:2}
.events i{order:3;text-align:right}.events code{order:4;grid-column:1/-1}th,td{padding-right:9px}
.stack thead{display:none}
.stack tr{display:block;padding:8px 0;border-bottom:1px solid var(--rule)}.stack tr:last-child{border-bottom:0}
.stack td{display:flex;gap:10px;justify-content:space-between;border:0;padding:1px 0;min-width:0;text-align:right}
.stack td::before{content:attr(data-label);color:var(--dim);flex:none;text-align:left}
.stack td:empty{display:none}}
@media print{body{background:#fff}.card{break-inside:avoid}}
"""


def render_page(report: dict[str, Any]) -> str:
    """Return a report as an HTML page."""
    status = report["status"]
    head = (
        f'<header><h1>Pool report</h1><span class="badge {_STATES.get(status, "warn")}">{escape(status)}</span>'
        f'<p class="dim">{_day(report["from"])} to {_day(report["to"])} ({escape(_zone(report["to"]))}), '
        f'{process_text(report["process"])}</p></header>'
    )
    text = "Metrics are switched off (ENABLE_METRICS): there is no history."
    off = "" if report["enabled"] else f'<p class="card">{text}</p>'
    pools = "".join(_pool(label, pool, report["timeline"]) for label, pool in report["pools"].items())
    body = head + off + _totals(report) + _advice(report["advice"]) + _incidents(report) + pools
    body += _process(report["process"], report["timeline"])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Pool report, {_day(report['to'])}</title><style>{_CSS}</style></head><body><main>{body}"
        f"<footer>Generated {_day(report['generated'])} by pooling. One bar of a chart is "
        f"{escape(duration_text(report['timeline']['step']))}.</footer></main></body></html>\n"
    )


# -- parts --------------------------------------------------------------------------


def _totals(report: dict[str, Any]) -> str:
    totals, process = report["totals"], report["process"]
    failed = totals["failed"]
    incidents = totals["incidents"]
    return _cards([
        ("requests", _count(totals["requests"]), ""),
        ("failed", _count(failed), "bad" if failed else "good"),
        ("incidents", _count(incidents), "warn" if incidents else "good"),
        ("of a processor", f"{process['cpu']['mean']:.0%}", ""),
        ("memory", _bytes(process["memory"]["last"]), ""),
    ])  # fmt: skip


def _cards(cards: Iterable[tuple[str, str, str]]) -> str:
    parts = "".join(
        f'<div class="card"><b class="{kind}">{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value, kind in cards
    )
    return f'<div class="cards">{parts}</div>'


def _advice(advice: list[dict[str, Any]]) -> str:
    parts = "".join(
        f'<div class="card {escape(one["severity"])}"><h3>{escape(one["pool"] or "process")}: '
        f'{escape(one["title"])}</h3><p>{escape(one["why"])}</p></div>'
        for one in advice
    )
    nothing = '<div class="card none"><h3>Nothing</h3><p>No waits, failures or leaks that ask for a change.</p></div>'
    return f'<h2>What to change</h2><div class="advice">{parts or nothing}</div>'


def _incidents(report: dict[str, Any]) -> str:
    found = report["incidents"]
    if not found:
        return '<h2>What happened</h2><div class="card"><p class="dim">No incidents.</p></div>'
    rows = [_incident(one, report) for one in reversed(found)]
    more = ""
    if len(rows) > _FIRST_ROWS:
        text = f"{len(rows) - _FIRST_ROWS} older ones"
        text += f", of which the last {_MOST_ROWS}" if len(rows) > _FIRST_ROWS + _MOST_ROWS else ""
        older = "".join(rows[_FIRST_ROWS : _FIRST_ROWS + _MOST_ROWS])
        more = f'<details><summary>{text}</summary><ul class="events">{older}</ul></details>'
    first = "".join(rows[:_FIRST_ROWS])
    return f'<h2>What happened</h2><div class="card">{_strip(report)}<ul class="events">{first}</ul>{more}</div>'


def _incident(one: dict[str, Any], report: dict[str, Any]) -> str:
    facts = span_text(one).strip(" ,")
    detail = f"<code>{escape(one['text'])}</code>" if one["text"] else ""
    return (
        f'<li><time>{_moment(one["start"], report)}</time><b class="{_severity(one)}">{escape(WORDS[one["kind"]])}</b>'
        f'<span>{escape(one["pool"])}</span><i>{escape(facts)}</i>{detail}</li>'
    )


def _severity(incident: dict[str, Any]) -> str:
    return "bad" if incident["kind"] in _GRAVE else "warn"


def _strip(report: dict[str, Any]) -> str:
    """Draw when each pool had incidents."""
    begin, end = report["timeline"]["start"], report["to"]
    width = max(1.0, end - begin)
    rows = []
    for label in dict.fromkeys(one["pool"] for one in report["incidents"]):
        marks = []
        own = [one for one in report["incidents"] if one["pool"] == label]
        for one in sorted(own, key=lambda one: _severity(one) == "bad"):  # the serious ones on top
            left = max(0.0, (one["start"] - begin) / width * _WIDTH)
            right = ((end if one["end"] is None else one["end"]) - begin) / width * _WIDTH
            left = min(left, _WIDTH - 4.0)
            text = f"{_moment(one['start'], report)} {WORDS[one['kind']]}{span_text(one)}"
            css = "fail" if _severity(one) == "bad" else "note"
            marks.append(
                f'<rect class="{css}" x="{left:.1f}" y="0" width="{max(4.0, right - left):.1f}" height="10">'
                f"<title>{escape(text)}</title></rect>"
            )
        rows.append(
            f'<span>{escape(label)}</span><svg viewBox="0 0 {_WIDTH} 10" preserveAspectRatio="none" role="img" '
            f'aria-label="incidents of {escape(label)}">{"".join(marks)}</svg>'
        )
    return f'<div class="strip">{"".join(rows)}<span></span>{_axis(report["timeline"], end)}</div>'


def _pool(label: str, pool: dict[str, Any], timeline: dict[str, Any]) -> str:
    series, limit, peak = pool["series"], pool["max_size"], pool["in_use"]["peak"]
    state = "" if pool["state"] == "open" else f'<span class="tag">{escape(pool["state"])}</span>'
    title = f'<h2>{escape(label)}<span class="tag">{escape(pool["kind"])}</span>{state}</h2>'
    cards = _cards([
        ("requests", _count(pool["requests"]), ""),
        ("failed", _count(pool["failed"]), "bad" if pool["failed"] else "good"),
        ("in use on average", _plain(pool["in_use"]["mean"]) + (f" of {limit}" if limit else ""), ""),
        ("in use at the peak", _count(peak), "warn" if limit and peak >= limit else ""),
        ("wait, 99th percentile", duration_text(pool["wait"]["p99"]), ""),
        ("exhausted", times_text(pool["exhausted"]), "warn" if pool["exhausted"] else "good"),
    ])  # fmt: skip
    if not pool["requests"] and not peak:
        idle = '<p class="card dim">No requests.</p>'
        return f"<section>{title}{idle}{_queries(pool.get('queries'))}</section>"
    charts = [
        _chart("In use", timeline, [("area", "peak", series["in_use_peak"]), ("line", "mean", series["in_use"]),
                                    *([("limit", "max_size", series["max_size"])] if limit else [])], _plain),
        _chart("Requests per second", timeline, _single("requests", series["requests_per_second"]), _plain),
        _chart("Wait, 99th percentile", timeline, _single("wait", series["wait_p99"]), duration_text),
    ]  # fmt: skip
    if any(series["failed"]):
        charts.append(_chart("Acquires that failed", timeline, [("fail", "failed", series["failed"])], _plain))
    elif any(series["use_p95"]):
        use = _single("use", series["use_p95"])
        charts.append(_chart("Time of use, 95th percentile", timeline, use, duration_text))
    details = [_durations(pool), _counts(pool)]
    more = _hosts(pool.get("hosts", [])) + _queries(pool.get("queries"))
    return (
        f'<section>{title}{cards}<div class="charts">{"".join(charts)}</div>'
        f'<div class="two">{"".join(details)}</div>{more}</section>'
    )


def _durations(pool: dict[str, Any]) -> str:
    names = ("mean", "p50", "p95", "p99", "max")
    rows = [
        [name, *(duration_text(pool[name][part]) for part in names)]
        for name in ("wait", "use", "create") if pool[name]["count"]
    ]  # fmt: skip
    if not rows:
        return ""
    return f'<div class="card scroll">{_table(["", *(f"*{name}" for name in names)], rows)}</div>'


def _counts(pool: dict[str, Any]) -> str:
    counted = [
        ("opened", pool["created"]), *((f"closed: {reason}", number) for reason, number in pool["closed"].items()),
        *((f"error: {kind}", number) for kind, number in pool["errors"].items()),
        ("timed out", pool["timeouts"]), ("refused", pool["refusals"]), ("failed otherwise", pool["turned_away"]),
        ("leaks", pool["leaks"]), ("dropped without release", pool["orphans"]),
        ("failed health checks", pool["health_failures"]),
    ]  # fmt: skip
    rows = [[escape(name), _count(number)] for name, number in counted if number]
    return f'<div class="card scroll">{_table(["", "*"], rows)}</div>' if rows else ""


def _hosts(hosts: list[dict[str, Any]]) -> str:
    if not hosts:
        return ""
    rows = []
    for one in hosts:
        answers = {**one["statuses"], **one["failures"]}
        text = ", ".join(f"{escape(str(kind))} × {_count(number)}" for kind, number in answers.items())
        times = (duration_text(one["latency"][part]) for part in ("p50", "p95", "max"))
        counts = [_count(one["requests"]), text, _count(one["retries"])]
        rows.append([f"<code>{escape(one['host'])}</code>", *counts, *times])
    heads = ["Host", "*Requests", "Answers", "*Retries", "*p50", "*p95", "*max"]
    return f'<div class="card" style="margin-top:12px">{_table(heads, rows, "stack")}</div>'


def _queries(queries: dict[str, Any] | None) -> str:
    if queries is None:
        return ""
    rows = [[duration_text(one["seconds"]), f"<code>{escape(one['query'])}</code>"] for one in queries["slowest"]]
    times = ", ".join(f"{part} {duration_text(queries[part])}" for part in ("mean", "p95", "p99", "max"))
    title = f'<h3>{_count(queries["count"])} queries</h3><p class="dim">{times}; {_count(queries["errors"])} failed</p>'
    slowest = _table(["*Time", "Slowest queries"], rows) if rows else ""
    return f'<div class="card" style="margin-top:12px">{title}<div class="scroll">{slowest}</div></div>'


def _process(process: dict[str, Any], timeline: dict[str, Any]) -> str:
    series = process["series"]
    cards = _cards([
        ("of a processor at the peak", f"{process['cpu']['peak']:.0%}", ""),
        ("memory at the peak", _bytes(process["memory"]["peak"]), ""),
        ("threads at the peak", str(process["threads"]["peak"]), ""),
        ("descriptors at the peak", str(process["descriptors"]["peak"]), ""),
    ])  # fmt: skip
    charts = [
        _chart("Processor (100 % is one)", timeline, _single("mean", series["cpu"]), lambda value: f"{value:.0%}"),
        _chart("Memory", timeline, _single("resident", series["memory"]), _bytes),
    ]  # fmt: skip
    return f'<section><h2>Process</h2>{cards}<div class="charts">{"".join(charts)}</div></section>'


# -- charts -----------------------------------------------------------------------------

Layer = tuple[str, str, Values]  # class, name in the legend (none if empty), values


def _single(name: str, values: Values) -> list[Layer]:
    """Return the layers of a chart of one figure."""
    return [("area", "", values), ("line", name, values)]


def _chart(title: str, timeline: dict[str, Any], layers: list[Layer], text: Callable[[float], str]) -> str:
    """Draw values as steps, one for each period of the timeline, from 0 to the highest."""
    points = timeline["points"]
    top = _nice(max((value for _, _, values in layers for value in values if value is not None), default=0.0), text)
    step = _WIDTH / points
    drawn = "".join(f'<path class="{css}" d="{_steps(values, top, step, css)}"/>' for css, _, values in layers)
    grid = "".join(f'<path class="grid" d="M0 {y}H{_WIDTH}"/>' for y in (0, _HEIGHT // 2, _HEIGHT))
    named = [(css, name, values) for css, name, values in layers if name]
    hits = []
    for place in range(points):
        said = [f"{name} {text(value)}" for _, name, values in named if (value := values[place]) is not None]
        if said:
            when = _time(timeline["start"] + place * timeline["step"], timeline)
            hits.append(
                f'<rect class="hit" x="{place * step:.1f}" y="0" width="{step:.1f}" height="{_HEIGHT}">'
                f"<title>{escape(when + ': ' + ', '.join(said))}</title></rect>"
            )
    key = "".join(
        f'<span><i class="i-{css}{" box" if css in ("area", "fail") else ""}"></i>{escape(name)}</span>'
        for css, name, _ in named if len(named) > 1
    )  # fmt: skip
    return (
        f'<div class="card chart"><div class="top"><h3>{escape(title)}</h3><div class="key">{key}</div></div>'
        f'<div class="plot"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}, at most {escape(text(top))}">{grid}{drawn}{"".join(hits)}</svg>'
        f'<em style="top:-5px">{escape(text(top))}</em><em style="top:55px">{escape(text(top / 2))}</em></div>'
        f'{_axis(timeline, timeline["start"] + points * timeline["step"])}</div>'
    )


def _steps(values: Values, top: float, step: float, css: str) -> str:
    """Return the path of a line of steps, or of the area below it; with gaps where a value is ``None``."""
    parts: list[str] = []
    filled = css in ("area", "fail")
    drawing = False
    for place, value in enumerate(values):
        left = place * step
        if value is None:
            if drawing and filled:
                parts.append(f"V{_HEIGHT}Z")
            drawing = False
            continue
        y = _HEIGHT * (1 - value / top)
        if not drawing:
            parts.append(f"M{left:.1f} {_HEIGHT}V{y:.1f}" if filled else f"M{left:.1f} {y:.1f}")
        else:
            parts.append(f"V{y:.1f}")
        parts.append(f"H{left + step:.1f}")
        drawing = True
    if drawing and filled:
        parts.append(f"V{_HEIGHT}Z")
    return "".join(parts)


def _nice(most: float, text: Callable[[float], str]) -> float:
    """Return the top of a chart: a round number not below the highest value."""
    if most <= 0:
        return 1e-3 if text is duration_text else 1.0
    unit = 1.0
    if text is _bytes:
        unit = 2.0 ** (10 * math.floor(math.log2(most) / 10)) if most >= 1 else 1.0
    most /= unit
    scale = 10.0 ** math.floor(math.log10(most))
    return unit * next(scale * step for step in (1, 2, 4, 5, 6, 8, 10, 20) if scale * step >= most * 0.9999)


def _axis(timeline: dict[str, Any], end: float) -> str:
    start = timeline["start"]
    times = (_time(start, timeline), _time((start + end) / 2, timeline), _time(end, timeline))
    return '<div class="x">' + "".join(f"<span>{escape(one)}</span>" for one in times) + "</div>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """Return a table; cells are HTML. A head that begins with * is that of numbers."""
    classes = ["num" if head.startswith("*") else "" for head in heads]
    labels = [head.lstrip("*") for head in heads]
    wide = ("Detail", "Slowest queries", "Answers")
    top = "".join(f'<th class="{kind}">{escape(label)}</th>' for kind, label in zip(classes, labels))
    body = "".join(
        "<tr>" + "".join(
            f'<td class="{"wide" if label in wide else kind}" data-label="{escape(label)}">{cell}</td>'
            for kind, label, cell in zip(classes, labels, row)
        ) + "</tr>"
        for row in rows
    )  # fmt: skip
    head = f"<thead><tr>{top}</tr></thead>" if any(labels) else ""
    return f'<table class="{css}">{head}<tbody>{body}</tbody></table>'


# -- figures ----------------------------------------------------------------------------


def _plain(value: float) -> str:
    if value >= 10 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}" if value >= 0.01 else "<0.01"


def _count(number: int) -> str:
    return f"{number:,}"


def _bytes(number: float) -> str:
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def _day(wall: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(wall))


def _zone(wall: float) -> str:
    return time.strftime("%Z", time.localtime(wall)) or "local time"


def _moment(wall: float, report: dict[str, Any]) -> str:
    today = time.localtime(report["to"])[:3] == time.localtime(wall)[:3]
    return time.strftime("%H:%M:%S" if today else "%m-%d %H:%M:%S", time.localtime(wall))


def _time(wall: float, timeline: dict[str, Any]) -> str:
    long = timeline["points"] * timeline["step"] > 86400
    return time.strftime("%m-%d %H:%M" if long else "%H:%M", time.localtime(wall))
