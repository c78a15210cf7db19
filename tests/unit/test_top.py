"""``python -m pooling top``: what is shown, drawn in any size, for any figures; keys; units; options."""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pooling.observe.incidents import WORDS
from pooling.tools.top import run as command
from pooling.tools.top.keys import decode
from pooling.tools.top.screen import picture
from pooling.tools.top.shown import LISTS, Shown, only
from pooling.tools.top.units import clock, count, duration, memory, percent, rate

ROOT = Path(__file__).parents[2]
NOW = 1_764_400_000.0


def a_pool(name: str = "orders", **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "kind": "PostgresPool", "processes": 2, "idle": 1, "in_use": 3, "size": 4, "max_size": 20,
        "waiting": 0, "oldest_wait": 0.0, "state": "up", "last_error": None, "last_error_at": None,
        "servers": [], "circuits_open": 0, "role": None,
        "leases_per_second": 120.5, "timeouts_per_minute": 0.0, "wait": {"p50": 0.0, "p99": 0.004},
        "use": {"p50": 0.001, "p99": 0.02},
        "by_process": [
            {"pid": 12, "in_use": 1, "size": 1, "waiting": 0}, {"pid": 13, "in_use": 2, "size": 3, "waiting": 0}
        ],
        "holders": [
            {"where": "shop/views.py:12 orders()", "thread": "MainThread", "pid": 12, "seconds": 75.0},
            {"where": "shop/views.py:40 cart()", "thread": "Thread-7", "pid": 13, "seconds": 0.25},
        ],
        "minutes": {
            "start": NOW - 3600, "step": 60.0, "in_use": [None] * 30 + [0.0, 1.0, 20.0] * 10, "waiting": [None] * 60,
            "leases": [None] * 60, "timeouts": [None] * 60, "p99_wait": [None] * 60,
        },
        **changes,
    }  # fmt: skip


def a_worker(pid: int, **changes: Any) -> dict[str, Any]:
    return {
        "pid": pid, "command": "gunicorn: worker [shop]", "cpu": 0.125, "memory": 48 << 20, "threads": 9,
        "descriptors": 31, "started": NOW - 7300, "age": 0.4, **changes,
    }  # fmt: skip


def an_event(pool: str = "orders", kind: str = "exhausted", **changes: Any) -> dict[str, Any]:
    return {
        "pool": pool, "kind": kind, "start": NOW - 90, "end": NOW - 30, "count": 3, "text": "", "pid": 12, **changes
    }  # fmt: skip


def a_view(*pools: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "time": NOW, "processes": [a_worker(12), a_worker(13, cpu=None)], "pools": list(pools) or [a_pool()],
        "events": [], **changes,
    }  # fmt: skip


class Utf8(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]


class Ascii(io.StringIO):
    encoding = "ascii"  # type: ignore[assignment]


def drawn(
    view: dict[str, Any], shown: Shown | None = None, width: int = 120, height: int = 40, *, full: bool = False,
    file: type[io.StringIO] = Utf8, colour: bool = False, hint: str = "",
) -> str:  # fmt: skip
    """Return the picture as text."""
    stream = file()
    console = Console(
        file=stream, width=width, height=height, force_terminal=colour, highlight=False, legacy_windows=False,
        color_system="standard" if colour else None, _environ={},
    )  # fmt: skip
    console.print(picture(view, shown or Shown(1.0), console, full=full, hint=hint))
    return stream.getvalue()


def line_with(text: str, start: str) -> str:
    found = [line for line in text.splitlines() if line.lstrip().startswith(start)]
    assert found, f"no line starts with {start!r}:\n{text}"
    return found[0]


# -- units --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (math.nan, "-"), (math.inf, "-"), (0.0, "0"), (-5.0, "0"), (4e-7, "0"), (0.00042, "420µs"),
        (0.0009996, "1.0ms"), (0.0042, "4.2ms"), (0.42, "420ms"), (0.9996, "1.0s"), (4.25, "4.2s"), (42.0, "42s"),
        (59.6, "1m00s"), (432.0, "7m12s"), (599.6, "10m"), (3571.0, "1h00m"), (11_100.0, "3h05m"), (86_399.0, "1d"),
        (1e9, "11574d"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (count(None), "-"), (count(0), "0"), (count(99_999), "99999"), (count(123_456), "123k"),
        (count(1_234_567), "1.2M"), (rate(0.0), "0"), (rate(0.04), "0"), (rate(4.25), "4.2"), (rate(120.5), "120"),
        (rate(None), "-"), (percent(0.125), "12%"), (percent(1.5), "150%"), (percent(None), "-"), (memory(None), "-"),
        (memory(512), "512"), (memory(48 << 20), "48M"), (memory(5 << 29), "2.5G"),
    ],
)  # fmt: skip
def test_numbers(found: str, text: str) -> None:
    assert found == text


@given(st.floats(0, allow_nan=False, allow_infinity=False))
def test_units_fit_a_column(value: float) -> None:
    assert max(map(len, (duration(value), count(value), rate(value), memory(value)))) <= 8
    if value < 86_400 * 99_999:
        assert len(duration(value)) <= 6


@given(st.floats(1e-6, 86_399), st.floats(1e-6, 86_399))
def test_a_longer_duration_never_reads_as_a_shorter_one(one: float, other: float) -> None:
    """Whatever the rounding: read back, the texts are in the order of the seconds."""

    def seconds(text: str) -> float:
        factors = {"µs": 1e-6, "ms": 1e-3, "d": 86_400.0}
        for unit, factor in factors.items():
            if text.endswith(unit):
                return float(text[: -len(unit)]) * factor
        hours, _, rest = text.rpartition("h")
        minutes, _, rest = rest.rpartition("m") if "m" in rest else ("", "", rest)
        return float(hours or 0) * 3600 + float(minutes or 0) * 60 + float(rest.rstrip("s") or 0)

    low, high = sorted((one, other))
    assert seconds(duration(low)) <= seconds(duration(high))
    assert seconds(duration(one)) == pytest.approx(one, rel=0.06, abs=6e-7)


def test_times_of_day() -> None:
    now = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1))
    assert clock(now - 60, now) == "11:59:00"
    assert clock(now - 90_000, now) == "11-28 11:00"
    assert clock(None, now) == clock(1e300, now) == "-"


# -- keys ---------------------------------------------------------------------------------


def test_keys_are_decoded() -> None:
    assert decode("sq2") == ["s", "q", "2"]
    assert decode("\x1b[A\x1b[B\x1bOA\x1b[5~\x1b[6~\x1b[H\x1b[Z\t") == [
        "up", "down", "up", "page up", "page down", "home", "backtab", "tab"
    ]  # fmt: skip
    assert decode("\x1b") == ["escape"]


@pytest.mark.parametrize("typed", ["\x1b[1;5A", "\x1b[200~", "\x1bq", "\x1b[<0;10;5M"])
def test_an_unknown_sequence_is_no_key(typed: str) -> None:
    """Not even its last letter: Alt-Q does not quit."""
    shown = Shown(1.0)
    for key in decode(typed):
        shown.press(key)
    assert (shown.quit, shown.paused, shown.selected) == (False, False, "workers")


@given(st.text(max_size=30))
def test_any_keys_leave_something_to_draw(typed: str) -> None:
    shown = Shown(1.0)
    for key in decode(typed):
        shown.press(key)
    assert drawn(a_view(), shown)


def pressed(*keys: str) -> Shown:
    shown = Shown(1.0)
    for key in keys:
        shown.press(key)
    return shown


def test_keys_select_a_list() -> None:
    assert [pressed(key).selected for key in "1234"] == list(LISTS)
    assert pressed("1", "tab").selected == pressed("1", "right").selected == "workers"
    assert pressed("1", "backtab").selected == pressed("1", "left").selected == "events"


def test_keys_pause_help_and_quit() -> None:
    assert pressed(" ").paused and not pressed(" ", "p").paused
    assert pressed("?").help and not pressed("?", "x").help
    assert pressed("q").quit and pressed("?", "q").quit


def test_a_key_that_closes_the_help_does_nothing_else() -> None:
    assert pressed("?", "1").selected == "workers"


def test_keys_change_the_interval_within_bounds() -> None:
    assert pressed("+").interval == 0.5
    assert pressed(*"+" * 9).interval == 0.25
    assert pressed(*"-" * 9).interval == 60.0


def test_an_interval_beyond_the_bounds_stays() -> None:
    shown = Shown(600.0)
    shown.press("-")
    assert shown.interval == 600.0


def test_a_budget_has_a_line_of_its_own() -> None:
    text = drawn(a_view(a_pool("x", budget=[12, 60]), a_pool("y", budget=None)))
    assert text.count("budget: 12 of 60") == text.count("budget") == 1


def a_server(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "zone": "", "in_use": 1, "waiting": 0, "latency": 0.02, "failing": 0.0, "ejected": 0,
        "circuits_open": 0, **changes,
    }  # fmt: skip


def test_servers_of_a_balanced_pool_have_a_line() -> None:
    servers = [a_server("http://a:1"), a_server("http://b:1", ejected=2), a_server("http://c:1", circuits_open=1)]
    text = drawn(a_view(a_pool("x", servers=servers), a_pool("y", servers=servers[:1])))
    assert "servers: 1 of 3 in service; left out: http://b:1, http://c:1" in text
    assert "servers: 1 of 1 in service" in text


def test_open_circuits_have_a_line() -> None:
    text = drawn(a_view(a_pool("x", circuits_open=2), a_pool("y")))
    assert text.count("2 circuits open") == text.count("circuit") == 1


def test_a_server_of_a_cluster_has_its_role() -> None:
    pools = [a_pool("a", role={"name": "primary", "lag": 0.0}), a_pool("b", role={"name": "replica", "lag": 0.25})]
    text = drawn(a_view(*pools))
    assert "  primary" in text and "  replica, 250ms behind" in text


# -- rows ---------------------------------------------------------------------------------


def test_lists_are_sorted() -> None:
    view = a_view(a_pool("b", waiting=2), a_pool("a"), a_pool("c", waiting=7, state="down"))

    def names(*keys: str) -> list[str]:
        return [pool["name"] for pool in pressed("1", *keys).rows(view, "pools")]

    assert names() == ["a", "b", "c"]
    assert names("r") == ["c", "b", "a"]
    assert names("s") == ["c", "b", "a"]  # by state: the worst first
    assert names("s", "s", "s") == ["c", "b", "a"]  # waiting
    assert names("s", "S") == ["a", "b", "c"]
    assert names(*"s" * len(LISTS["pools"])) == ["a", "b", "c"]


@pytest.mark.parametrize("keys", ["", "r"])
def test_what_is_not_known_comes_last(keys: str) -> None:
    view = a_view(processes=[a_worker(12, cpu=None), a_worker(13, cpu=0.1), a_worker(14, cpu=0.9)])
    rows = pressed("2", *"ssss", *keys).rows(view, "workers")
    assert pressed(*"ssss").order("workers")[0].name == "CPU"
    assert [row["pid"] for row in rows] == ([14, 13, 12] if not keys else [13, 14, 12])


def test_holders_of_all_pools_are_listed_the_longest_first() -> None:
    young = {"where": "b", "thread": "t", "pid": 1, "seconds": 1.0}
    old = {"where": "a", "thread": "t", "pid": 1, "seconds": 9.0}
    rows = Shown(1.0).rows(a_view(a_pool("x", holders=[young]), a_pool("y", holders=[old])), "holders")
    assert [(row["pool"], row["where"]) for row in rows] == [("y", "a"), ("x", "b")]


def test_workers_have_the_sums_over_all_pools() -> None:
    view = a_view(a_pool("x"), a_pool("y", by_process=[{"pid": 13, "in_use": 5, "size": 5, "waiting": 4}]))
    rows = Shown(1.0).rows(view, "workers")
    assert [(row["pid"], row["in_use"], row["waiting"]) for row in rows] == [(12, 1, 0), (13, 7, 4)]


def test_filter_by_pool() -> None:
    view = a_view(a_pool("orders"), a_pool("orders-old"), a_pool("users"), events=[an_event("users"), an_event()])
    assert [pool["name"] for pool in only(view, ["orders"])["pools"]] == ["orders"]
    found = only(view, ["orders*"])
    assert [pool["name"] for pool in found["pools"]] == ["orders", "orders-old"]
    assert [event["pool"] for event in found["events"]] == ["orders"]
    lonely = a_pool("lonely", by_process=[{"pid": 13, "in_use": 1, "size": 1, "waiting": 0}])
    assert [one["pid"] for one in only(a_view(a_pool(), lonely), ["lonely"])["processes"]] == [13]
    assert only(view, []) == view


# -- pictures -----------------------------------------------------------------------------


def test_a_pool_is_shown_with_all_its_figures() -> None:
    pool = a_pool(
        in_use=16, idle=4, size=20, waiting=12, oldest_wait=3.4, state="exhausted", timeouts_per_minute=6.0,
        wait={"p50": 0.8, "p99": 4.1}, use={"p50": 0.0011, "p99": 0.32},
    )  # fmt: skip
    line = line_with(drawn(a_view(pool), width=115), "orders")
    assert line.split() == [
        "orders", "████████████████▒▒▒▒", "16", "4", "20", "12", "3.4s", "120", "800ms", "4.1s", "1.1ms", "320ms",
        "6.0", "▲", "exhausted",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_figure_is_hidden_in_a_narrow_terminal(width: int) -> None:
    """What has no room in the line of the pool is below it."""
    pool = a_pool(
        in_use=11, idle=12, max_size=113, waiting=14, oldest_wait=15.0, leases_per_second=16.0,
        timeouts_per_minute=17.0, wait={"p50": 18.0, "p99": 19.0}, use={"p50": 20.0, "p99": 21.0},
        last_error="OperationalError: gone", last_error_at=NOW - 22,
    )  # fmt: skip
    text = drawn(a_view(pool), pressed("1"), width)
    for figure in ("11", "12", "113", "14", "15s", "16", "17", "18s", "19s", "20s", "21s", "22s ago: Operat", "● up"):
        assert figure in text


def test_workers_holders_and_events_are_shown() -> None:
    events = [an_event(), an_event(kind="outage", end=None, text="ConnectionRefusedError: no"), an_event(kind="drain")]
    text = drawn(a_view(a_pool(), events=events))
    assert line_with(text, "12 gunicorn").split() == [
        "12", "gunicorn:", "worker", "[shop]", "1", "0", "12%", "48M", "9", "31", "2h02m"
    ]  # fmt: skip
    assert line_with(text, "1m15s").split() == [
        "1m15s", "orders", "shop/views.py:12", "orders()", "MainThread", "12"
    ]  # fmt: skip
    found = [line.split()[1:] for line in text.splitlines() if line.split()[1:2] == ["orders"] and ":" in line[:8]]
    assert found == [
        ["orders", "exhausted", "3", "1m00s", "12"],
        ["orders", "outage", "3", "for", "1m30s", "ConnectionRefusedError:", "no", "12"],
        ["orders", "drain", "3", "1m00s", "drained", "12"],
    ]  # fmt: skip


@pytest.mark.parametrize("state", ["up", "exhausted", "down", "closed"])
def test_colour_is_never_the_only_sign(state: str) -> None:
    """Without colour each state has its word and a sign of its own; the same text with and without colour."""
    view = a_view(a_pool(state=state), events=[an_event(kind="outage", end=None)])
    plain, coloured = drawn(view), drawn(view, colour=True)
    signs = {"up": "●", "exhausted": "▲", "down": "✖", "closed": "○"}
    assert f"{signs[state]} {state}" in plain
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_a_long_path_is_cut_at_its_start() -> None:
    holder = {"where": f"/srv/{'deep/' * 30}views.py:12 orders()", "thread": "ThreadPoolExecutor-10_3", "pid": 1}
    text = drawn(a_view(a_pool(holders=[{**holder, "seconds": 0.0}])), pressed("3"), 80)
    assert re.search(r" …\S+deep/views.py:12 orders\(\) \S*-10_3 ", text)


def test_trouble_is_in_the_title() -> None:
    title = drawn(a_view(a_pool("a", state="down"), a_pool("b", state="exhausted"), a_pool("c"))).splitlines()[0]
    assert "✖ 1 down" in title and "▲ 1 exhausted" in title and "3 pools" in title
    assert "down" not in drawn(a_view()).splitlines()[0]


def test_the_order_is_marked() -> None:
    text = drawn(a_view(a_pool("a"), a_pool("b")), pressed("1", "s", "s"))
    assert "by in use ▼" in text and "in us▼" in text


def test_pause_and_problem_are_in_the_title() -> None:
    shown = pressed(" ")
    shown.problem = "cannot read the figures: no"
    title = drawn(a_view(), shown).splitlines()[0]
    assert "PAUSED" in title and "cannot read the figures: no" in title


def test_the_selected_list_has_room_in_a_small_terminal() -> None:
    view = a_view(*[a_pool(f"pool-{number}") for number in range(9)], events=[an_event()] * 30)
    for key, first in (("1", "pool-8"), ("2", "   12 gunicorn"), ("3", "shop/views.py"), ("4", "1m00s")):
        text = drawn(view, pressed(key), 130, 24)
        assert first in text
        assert len(text.splitlines()) == 24


def test_a_long_list_is_scrolled() -> None:
    view = a_view(processes=[a_worker(pid) for pid in range(1000, 1100)])

    def pids(shown: Shown) -> list[int]:
        return [int(line.split()[0]) for line in drawn(view, shown, 80, 24).splitlines() if "gunicorn" in line]

    shown = Shown(1.0)
    first = pids(shown)
    assert first[0] == 1000 and f"1-{len(first)} of 100" in drawn(view, shown, 80, 24)
    shown.press("down")
    assert pids(shown)[0] == 1001
    shown.press("page down")
    assert pids(shown)[0] == 1001 + len(first)
    shown.press("end")
    assert pids(shown)[-1] == 1099 and len(pids(shown)) == len(first)
    shown.press("up")
    assert pids(shown)[-1] == 1098
    shown.press("home")
    assert pids(shown) == first


def test_a_list_that_became_short_is_shown_from_its_start() -> None:
    shown = pressed("2", "end")
    drawn(a_view(processes=[a_worker(pid) for pid in range(1000, 1100)]), shown, 80, 24)
    assert "12 gunicorn" in drawn(a_view(), shown, 80, 24)


def test_help_is_shown() -> None:
    text = drawn(a_view(), pressed("?"), 60, 24)
    assert "sort by the next column" in text and "oldest wait" in text
    assert "…" not in text and "the server cannot be reached" in text


def test_the_hint_is_shown_where_nothing_was_found() -> None:
    text = drawn(a_view(pools=[], processes=[]), hint="No pool was found.\n- check this", width=30)
    assert "No pool was found." in text and "- check this" in text


def test_once_shows_every_row() -> None:
    view = a_view(processes=[a_worker(pid) for pid in range(1000, 1100)], events=[an_event()] * 50)
    text = drawn(view, height=10, full=True)
    assert sum("gunicorn" in line for line in text.splitlines()) == 100
    assert "quit" not in text


def test_an_ascii_terminal_gets_ascii() -> None:
    events = [an_event(text="é…")]
    text = drawn(
        a_view(a_pool("x" * 50, state="down", wait={"p50": 4e-4, "p99": 1.0}), events=events), file=Ascii, width=100
    )
    assert "X down" in text and "400us" in text
    assert text.replace("é", "").isascii()


def test_a_sequence_of_escapes_is_shown_as_text() -> None:
    """A thread's name, or an error of a server, must not control the terminal."""
    evil = "\x1b[2J\x1b]0;title\x07\r\n[red]markup[/]\u202e"
    pool = a_pool(evil, last_error=evil, holders=[{"where": evil, "thread": evil, "pid": 1, "seconds": 0.0}])
    text = drawn(a_view(pool, processes=[a_worker(1, command=evil)], events=[an_event(evil, evil, text=evil)]))
    assert all(each.isprintable() for each in text.replace("\n", ""))
    assert "[red]markup[/]" in text


NUMBERS = st.one_of(st.none(), st.integers(0, 10**18), st.floats(0), st.just(math.nan))
TEXTS = st.one_of(st.text(max_size=60), st.sampled_from(["订单数据库" * 9, "🐘🐘", "é" * 40, "a\u0301" * 30, ""]))
TIMES = st.one_of(st.none(), st.floats(-1e18, 1e18), st.floats(NOW - 1e6, NOW + 10))
SPREADS = st.one_of(st.none(), st.fixed_dictionaries({"p50": NUMBERS, "p99": NUMBERS}))
PIDS = st.integers(0, 2**31)
POOLS = st.fixed_dictionaries(
    {
        "name": TEXTS, "kind": TEXTS, "processes": NUMBERS, "idle": NUMBERS, "in_use": NUMBERS, "size": NUMBERS,
        "max_size": NUMBERS, "waiting": NUMBERS, "oldest_wait": NUMBERS,
        "state": st.one_of(st.sampled_from(["up", "exhausted", "down", "closed"]), TEXTS),
        "last_error": st.one_of(st.none(), TEXTS), "last_error_at": TIMES, "leases_per_second": NUMBERS,
        "timeouts_per_minute": NUMBERS, "wait": SPREADS, "use": SPREADS,
        "by_process": st.lists(
            st.fixed_dictionaries({"pid": PIDS, "in_use": NUMBERS, "size": NUMBERS, "waiting": NUMBERS}), max_size=2
        ),
        "holders": st.lists(
            st.fixed_dictionaries({"where": TEXTS, "thread": TEXTS, "pid": PIDS, "seconds": NUMBERS}), max_size=2
        ),
        "minutes": st.one_of(st.none(), st.fixed_dictionaries({"in_use": st.lists(NUMBERS, max_size=60)})),
    }
)  # fmt: skip
WORKERS = st.fixed_dictionaries(
    {
        "pid": PIDS, "command": TEXTS, "cpu": NUMBERS, "memory": NUMBERS, "threads": NUMBERS, "descriptors": NUMBERS,
        "started": TIMES, "age": NUMBERS,
    }
)  # fmt: skip
EVENTS = st.fixed_dictionaries(
    {
        "pool": TEXTS, "kind": st.one_of(st.sampled_from(sorted(WORDS)), TEXTS), "start": TIMES, "end": TIMES,
        "count": NUMBERS, "text": TEXTS, "pid": st.one_of(st.none(), PIDS),
    }
)  # fmt: skip
VIEWS = st.fixed_dictionaries(
    {
        "time": st.just(NOW), "processes": st.lists(WORKERS, max_size=3), "pools": st.lists(POOLS, max_size=3),
        "events": st.lists(EVENTS, max_size=3),
    }
)  # fmt: skip


@given(VIEWS, st.integers(1, 200), st.integers(1, 50), st.sampled_from("1234?"), st.integers(0, 9), st.booleans())
def test_any_figures_fit_any_terminal(
    view: dict[str, Any], width: int, height: int, key: str, sorts: int, full: bool
) -> None:
    shown = pressed(key, *"s" * sorts, "r", "down")
    lines = drawn(view, shown, width, height, full=full).splitlines()
    assert max(map(cell_len, lines), default=0) <= width
    if not full:
        assert len(lines) <= max(height, 2)


# -- the command --------------------------------------------------------------------------


class Views:
    """Stands for a `Viewer`."""

    def __init__(self, *views: dict[str, Any] | OSError) -> None:
        self._views: Iterator[dict[str, Any] | OSError] = iter(views)
        self._last: dict[str, Any] | OSError = a_view(pools=[], processes=[])
        self.calls = 0
        self.pids: Collection[int] = ()

    def view(self, pids: Collection[int]) -> dict[str, Any]:
        self.calls += 1
        self.pids = pids
        self._last = next(self._views, self._last)
        if isinstance(self._last, OSError):
            raise self._last
        return self._last


def top(monkeypatch: pytest.MonkeyPatch, *arguments: str, views: Views | None = None) -> int:
    """Run the command with views made by hand."""
    from pooling.observe.view import Viewer

    if views is not None:
        monkeypatch.setattr(Viewer, "of_directory", lambda path: views)
    monkeypatch.setattr(command, "PATIENCE", 0.0)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(["--interval", "0.25", *arguments]), parser)


def test_json_is_the_view(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert top(monkeypatch, "--json", "--once", views=Views(a_view(), a_view(a_pool("later")))) == 0
    assert json.loads(capsys.readouterr().out) == a_view(a_pool("later"))


def test_json_respects_the_filters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    views = Views(a_view(a_pool("a"), a_pool("b")))
    assert top(monkeypatch, "--json", "--once", "--pool", "b", "--pid", "13", "--pid", "14", views=views) == 0
    assert [pool["name"] for pool in json.loads(capsys.readouterr().out)["pools"]] == ["b"]
    assert views.pids == [13, 14]


def test_processes_are_watched_between_two_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is attached to stops recording its figures if there is no watcher for five seconds."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: NOW, sleep=lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(command, "time", clock)
    looks: list[float] = []

    class Watching(Views):
        def view(self, pids: Collection[int]) -> dict[str, Any]:
            looks.append(now[0])
            if len(looks) > 20:
                raise KeyboardInterrupt
            return a_view()

    with pytest.raises(KeyboardInterrupt):
        top(monkeypatch, "--json", "--interval", "60", views=Watching())
    assert max(later - before for before, later in zip(looks, looks[1:])) <= 3.0


def test_without_a_terminal_one_picture_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert top(monkeypatch, views=Views(a_view(), a_view())) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pooling top") and any("orders" in line for line in lines)
    assert {cell_len(line) for line in lines} == {120}


@pytest.mark.parametrize("arguments", [["--once"], ["--once", "--json"]])
def test_nothing_found(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POOLING_METRICS_DIR", raising=False)
    assert top(monkeypatch, *arguments, views=Views()) == 1
    output = capsys.readouterr()
    assert output.err.startswith("No pool was found")
    assert "has used a pool" in output.err and "same user" in output.err
    if "--json" in arguments:
        assert json.loads(output.out)["pools"] == []
    else:
        assert output.out == ""


def test_nothing_found_with_filters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert top(monkeypatch, "--once", "--pool", "ordres", views=Views(a_view(), a_view())) == 1
    assert "try without them" in capsys.readouterr().err


def test_figures_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = PermissionError(13, "Permission denied", "/run/shop")
    assert top(monkeypatch, "--once", views=Views(error)) == 1
    assert capsys.readouterr().err == (
        "cannot read the figures: [Errno 13] Permission denied: '/run/shop'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dir", "/nonexistent"], "argument --dir: no such directory: '/nonexistent'"),
        (["--interval", "0"], "argument --interval: must be a number from 0.25 to 3600, not '0'"),
        (["--pid", "x"], "argument --pid: must be a whole number from 1 to 2147483647, not 'x'"),
    ],
)
def test_invalid_options(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        top(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_without_rich_the_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(SystemExit) as ended:
        top(monkeypatch, "--once", views=Views(a_view(), a_view()))
    assert ended.value.code == 2
    assert "pip install 'pooling[top]'" in capsys.readouterr().err
    assert top(monkeypatch, "--once", "--json", views=Views(a_view(), a_view())) == 0


def test_other_commands_do_not_import_rich() -> None:
    code = "import sys, pooling.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: print('rich' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
    assert "top" in run.stdout
