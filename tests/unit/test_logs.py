"""The structured fields of log records: as documented, on each record, and printed by a JSON formatter."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pythonjsonlogger.json import JsonFormatter

from pooling import Observer, Pool, PoolTimeout
from pooling._fields import fields
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, Task

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pooling"
# They log as psycopg_pool and SQLAlchemy do, to the loggers of these; or change levels only.
ELSEWHERE = ("compat/", "adapters/sqlalchemy.py", "tools/")
LEVELS = {"exception": "error"}


class Call(NamedTuple):
    """One call of a logger in the source."""

    place: str
    level: str  # "log" where it depends
    event: str | None
    fields: frozenset[str]


def is_logger(node: ast.expr) -> bool:
    return ast.unparse(node) in ("logger", "logging.getLogger(__name__)")


def calls_in(source: str, place: str) -> Iterator[Call]:
    """Yield the calls of loggers in a module, with the fields that they pass."""
    tree = ast.parse(source)
    scopes = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Module))]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_logger(node.func.value)):
            continue
        if node.func.attr not in ("debug", "info", "warning", "error", "exception", "log"):
            continue
        extra = next((one.value for one in node.keywords if one.arg == "extra"), None)
        if isinstance(extra, ast.Name):
            extra = bound(extra.id, node, scopes)
        event, names = None, frozenset[str]()
        if isinstance(extra, ast.Call) and ast.unparse(extra.func) == "fields":
            event, names = ast.literal_eval(extra.args[0]), frozenset(str(one.arg) for one in extra.keywords)
        yield Call(f"{place}:{node.lineno}", LEVELS.get(node.func.attr, node.func.attr), event, names)


def bound(name: str, call: ast.Call, scopes: list[Any]) -> ast.expr | None:
    """Return what a name was last set to above a call."""
    found = [
        node for scope in scopes for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and node.lineno < call.lineno
    ]  # fmt: skip
    return max(found, key=lambda node: node.lineno).value if found else None


def all_calls() -> list[Call]:
    found: list[Call] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(ELSEWHERE):
            found += calls_in(path.read_text(encoding="utf-8"), place)
    return found


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """Return the levels and the fields of each event, as the documentation lists them."""
    page = (ROOT / "docs" / "reference" / "events.rst").read_text("utf-8")
    section = page.partition("\nLogs\n----\n")[2].partition("\nObservers\n")[0]
    rows = re.findall(r"^``(\w+)`` +([a-z]+(?:, [a-z]+)*) {2,}(.*)$", section, re.M)
    found = {}
    for event, levels, text in rows:
        if event != "pooling_event":
            listed = re.findall(r"``(\w+)``", text.rpartition(": ")[2]) if ": " in text else []
            found[event] = set(levels.split(", ")), set(listed)
    return found


def test_every_record_has_fields() -> None:
    """Pass ``extra=fields("event", pool, ...)``, and list the event in docs/reference/events.rst."""
    calls = all_calls()
    assert len(calls) > 50
    assert [call.place for call in calls if call.event is None] == []


def test_documentation_lists_what_the_code_logs() -> None:
    levels, names = defaultdict(set), defaultdict(set)
    for call in all_calls():
        levels[call.event].add(call.level)
        names[call.event].update(call.fields)
    listed = documented()
    assert sorted(listed) == sorted(str(event) for event in levels)
    assert {event: found for event, (_, found) in listed.items()} == names
    for event, (found, _) in listed.items():
        assert levels[event] - {"log"} <= found, event
        assert found == levels[event] or "log" in levels[event], event


@pytest.mark.parametrize(
    ("source", "event"),
    [
        ("logger.warning('x')", None),
        ("logger.warning('x', extra={'a': 1})", None),
        ("logger.exception('x', extra=fields('bug', error='y'))", "bug"),
        ("extra = fields('bug')\nlogger.log(3, 'x', extra=extra)", "bug"),
    ],
)
def test_calls_are_found(source: str, event: str | None) -> None:
    (call,) = calls_in(source, "here")
    assert call.event == event


def test_no_field_clashes_with_a_record() -> None:
    record = logging.LogRecord("x", 1, "x", 1, "x", None, None)
    names = {f"pooling_{name}" for call in all_calls() for name in call.fields} | {*fields("x", "y")}
    assert all(name.startswith("pooling_") for name in names)
    assert not names & {*vars(record), "message", "asctime"}


# -- printed ---------------------------------------------------------------------------------


@pytest.fixture
def printed() -> Iterator[Any]:
    """Return the records so far, as a JSON formatter prints them."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("pooling")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_outage_and_recovery(make: Make, clock: VirtualClock, adapter: FakeAdapter, printed: Any) -> None:
    pool = make(name="db")
    adapter.fail("create", ConnectionRefusedError("password=hunter2"), times=2)
    waiter = Task(pool.acquire, 60.0)
    clock.until_parked(1)
    clock.advance(5.0)
    waiter.result().release()
    clock.advance(10.0)
    assert printed() == [
        {
            "levelname": "WARNING", "message": "pool 'db': cannot create a thing: ConnectionRefusedError: password=***",
            "pooling_event": "outage", "pooling_pool": "db", "pooling_error": "ConnectionRefusedError: password=***",
        },
        {
            "levelname": "WARNING", "message": f"pool 'db': recovered after {printed()[1]['pooling_seconds']:.1f} s",
            "pooling_event": "recovered", "pooling_pool": "db", "pooling_seconds": printed()[1]["pooling_seconds"],
            "pooling_flaps": 0,
        },
    ]  # fmt: skip


def test_leak(make: Make, clock: VirtualClock, printed: Any) -> None:
    pool = make(name="db", leak_timeout=2.0)
    lease = pool.acquire()
    clock.advance(5.0)
    lease.release()
    leak, returned = printed()
    assert (leak["pooling_event"], leak["pooling_limit"], leak["pooling_seconds"]) == ("leak", 2.0, 2.0)
    assert "test_logs.py:" in leak["pooling_where"] and "test_leak()" in leak["pooling_where"]
    assert (returned["pooling_event"], returned["pooling_seconds"]) == ("leak_returned", 5.0)


def test_observer_and_hook(make: Make, adapter: FakeAdapter, printed: Any) -> None:
    class Broken(Observer):
        def created(self, pool: str, seconds: float) -> None:
            raise RuntimeError("mine")

    pool = make(name="db", observers=[Broken()])
    lease = pool.acquire()
    adapter.fail("is_broken", LookupError("odd"))
    with pytest.raises(ValueError, match="x"), lease:
        raise ValueError("x")
    observer, hook = printed()[:2]
    assert (observer["pooling_event"], observer["pooling_pool"], observer["pooling_method"]) == (
        "observer_failed", "db", "created",
    )  # fmt: skip
    assert (hook["pooling_event"], hook["pooling_hook"], hook["levelname"]) == ("hook_failed", "is_broken", "ERROR")
    assert "LookupError: odd" in hook["exc_info"]


def test_deadlock_and_closed_in_use(printed: Any) -> None:
    pool: Pool[Any] = Pool(object, name="db", max_size=1)
    lease = pool.acquire()
    with pytest.raises(PoolTimeout):
        pool.acquire(0.01)
    Task(pool.close, 0.0).result()
    deadlock, closed = printed()
    assert deadlock["pooling_event"] == "deadlock" and "test_logs.py:" in deadlock["pooling_holders"]
    assert (closed["pooling_event"], closed["pooling_in_use"]) == ("closed_in_use", 1)
    lease.release()


def test_a_record_factory_of_the_application_does_not_clash(make: Make, printed: Any) -> None:
    """One that sets ``pool`` and ``event`` on each record would make logging refuse fields of these names."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.pool = record.event = record.error = "mine"
        return record

    logging.setLogRecordFactory(factory)
    try:
        pool = make(name="db", max_size=1)
        pool.engine.events.server_full(ConnectionError("full"))
    finally:
        logging.setLogRecordFactory(before)
    assert printed()[0]["pooling_event"] == "server_full"
    assert printed()[0]["event"] == "mine"
