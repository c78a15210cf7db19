"""The doctor's findings from facts, and the size that it suggests for a load."""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from pooling import Pool, PoolSettings
from pooling.__main__ import main
from pooling.tools.doctor.facts import Client, Facts, Pooler
from pooling.tools.doctor.plan import Plan
from pooling.tools.doctor.rules import examine
from pooling.tools.doctor.sizing import Load, percentile, size_for

FACTS = Facts(
    address="db:5432/app as app", version="18.0", max_connections=100, reserved=3, superuser=False,
    role_limit=-1, database_limit=-1, clients=(Client("psql", "10.0.0.1", "dba", 7, 1),),
    settings={}, pooler=None, connect_seconds=0.004, query_seconds=0.0001,
)  # fmt: skip
BOUNCER = Pooler("transaction", (1, 18, 0), {"max_client_conn": "500", "default_pool_size": "20"})


def plan(workers: int | None = 4, **options: Any) -> Plan:
    names = {field.name for field in dataclasses.fields(Plan)}
    own = {name: options.pop(name) for name in list(options) if name in names}
    return Plan(settings=PoolSettings(**options), workers=workers, **own)


def findings(facts: Facts = FACTS, *, settings: dict[str, float] | None = None, **options: Any) -> list[str]:
    if settings is not None:
        facts = dataclasses.replace(facts, settings=settings)
    return [str(finding) for finding in examine(facts, plan(**options)).findings]


def behind(**changes: Any) -> Facts:
    return dataclasses.replace(FACTS, pooler=dataclasses.replace(BOUNCER, **changes))


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


# -- the server ------------------------------------------------------------------------


def test_no_findings_when_nothing_is_wrong() -> None:
    report = examine(FACTS, plan())
    assert report.findings == ()
    assert not report.breaks
    text = str(report)
    assert "no problems found for 4 workers x max_size 10" in text
    assert "7 'psql' from 10.0.0.1 as dba, 1 idle in a transaction" in text
    assert "as much as 40 queries" in text


def test_more_connections_than_the_server_allows() -> None:
    report = examine(FACTS, plan(workers=10))
    assert report.breaks
    text = only([str(finding) for finding in report.findings])
    assert "10 workers x max_size 10 = 100 connections" in text
    assert "accepts only 97" in text
    assert "at most 9," in text
    assert "at least 110" in text
    assert "BREAKS" in str(report)


def test_more_connections_than_are_free_now() -> None:
    assert only(findings(workers=92, max_size=1)).startswith("warning: 92 workers x max_size 1")
    assert findings(workers=90, max_size=1) == []


def test_too_many_workers_for_any_size() -> None:
    assert "fewer workers: with max_size 1, 90 fit" in only(findings(workers=98, max_size=1))


@pytest.mark.parametrize("what", ["role", "database"])
def test_connection_limit(what: str) -> None:
    facts = dataclasses.replace(FACTS, **{f"{what}_limit": 39})
    assert f"this {what}'s CONNECTION LIMIT is 39" in only(findings(facts))
    assert findings(dataclasses.replace(facts, **{f"{what}_limit": 40})) == []


@pytest.mark.parametrize(("limit", "text"), [(-1, "has no CONNECTION LIMIT"), (80, "has a CONNECTION LIMIT of 80")])
def test_budget_that_only_the_processes_keep(limit: int, text: str) -> None:
    found = only(findings(dataclasses.replace(FACTS, role_limit=limit), workers=24, budget=60))
    assert f"note: this role {text}, so only the processes keep their budget of 60" in found
    assert 'ALTER ROLE "app" CONNECTION LIMIT 60; at that limit' in found


def test_budget_that_the_server_keeps_too() -> None:
    for limit in (60, 55):
        facts = dataclasses.replace(FACTS, role_limit=limit)
        assert ("breaks" in " ".join(findings(facts, workers=24, budget=60))) == (limit == 55)
    assert findings(dataclasses.replace(FACTS, role_limit=60), workers=None, budget=60) == []


def test_budget_instead_of_the_sum_of_the_pools() -> None:
    facts = dataclasses.replace(FACTS, role_limit=95)
    found = " ".join(findings(facts, workers=24, budget=95))
    assert "a budget of 95 = 95 connections" in found and "Set the budget's total to at most 90" in found
    assert plan(workers=2, budget=95).connections == 20
    with pytest.raises(ValueError, match="budget must be at least 1 or None, not 0"):
        plan(budget=0)


def test_superuser() -> None:
    facts = dataclasses.replace(FACTS, superuser=True, role_limit=0)
    assert only(findings(facts)).startswith("note: this role is a superuser")


def test_unknown_number_of_workers() -> None:
    assert "9 with max_size 10 fit" in only(findings(workers=None))


@pytest.mark.parametrize(
    ("limit", "options", "warns"),
    [
        (60, {}, True),
        (0, {}, False),
        (60, {"keepalive_interval": 30}, False),
        (60, {"keepalive_interval": 90}, True),
        (60, {"min_size": 0, "idle_timeout": 30}, False),
        (60, {"min_size": 0, "idle_timeout": 60}, True),
        (60, {"min_size": 0, "idle_timeout": None}, True),
        (600, {"min_size": 1, "idle_timeout": 30}, True),
    ],
)
def test_server_closes_idle_connections_before_the_pool(limit: float, options: dict[str, Any], warns: bool) -> None:
    found = findings(settings={"idle_session_timeout": limit}, **options)
    assert [text for text in found if "closes idle connections" in text] == found
    assert bool(found) is warns


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("statement_timeout", {"command_timeout": 10}),
        ("transaction_timeout", {"command_timeout": 10}),
        ("idle_in_transaction_session_timeout", {"idle_in_transaction_timeout": 10}),
        ("idle_in_transaction_session_timeout", {"leak_timeout": 10}),
    ],
)
def test_server_timeout_shorter_than_the_pools(name: str, options: dict[str, Any]) -> None:
    assert f"{name} is 5 s on the server, shorter than the 10 s" in only(findings(settings={name: 5}, **options))
    assert findings(settings={name: 20}, **options) == []
    assert [text for text in findings(settings={name: 5}) if not text.startswith("note")] == []


def test_server_timeout_where_the_pool_has_none() -> None:
    settings = {"idle_in_transaction_session_timeout": 5.0}
    assert "is 5 s, and the pool has no limit" in only(findings(settings=settings))
    assert findings(settings=settings, leak_timeout=4) == []
    assert findings(settings={"statement_timeout": 5}) == []


def test_sessions_without_cleaning() -> None:
    facts = dataclasses.replace(FACTS, missing=("SELECT pg_advisory_unlock_all()", "UNLISTEN *"))
    found = only(findings(facts))
    assert found.startswith("warning: this server does not execute SELECT pg_advisory_unlock_all(), UNLISTEN *")
    assert "advisory locks of the session, channels of LISTEN" in found
    assert findings(facts, cleans=False) == []


def test_resets_that_keep_failing() -> None:
    assert "when they are released: OSError: no" in only(findings(resets_fail="OSError: no"))


def test_clients_hidden_from_an_ordinary_role() -> None:
    clients = (*FACTS.clients, Client("report", "a hidden host", "other", 5, 0, hidden=True))
    assert only(findings(dataclasses.replace(FACTS, clients=clients))).startswith("note: this role may not see where 5")


def test_other_settings() -> None:
    assert "pause" in only(findings(settings={"idle_in_transaction_session_timeout": 0.5}))
    assert "tcp_keepalives_idle is 7200 s" in only(findings(settings={"tcp_keepalives_idle": 7200}))
    for seconds, told in ((0, True), (10, False)):
        settings = {"tcp_keepalives_idle": 7200, "client_connection_check_interval": seconds}
        assert ("client_connection_check_interval to 10 s" in only(findings(settings=settings))) is told
    assert "6.0 ms" in only(findings(dataclasses.replace(FACTS, query_seconds=0.006)))


def test_no_limit_for_commands() -> None:
    assert only(findings(unlimited=True)).startswith("note: there is no command_timeout")
    assert only(findings(behind(mode="session"), max_size=5, unlimited=True)).startswith("warning: there is no command")
    assert findings(command_timeout=30) == []


# -- behind PgBouncer -----------------------------------------------------------------------


def test_transaction_mode() -> None:
    assert findings(behind(), cleans=False, prepares=False) == []
    assert only(findings(behind(), prepares=False)).startswith("warning: in transaction mode each transaction")
    assert only(findings(behind(), cleans=False)).startswith("warning: in transaction mode a prepared")
    assert only(findings(behind(), cleans=False, prepares=True)).startswith("breaks: in transaction mode a prepared")


def test_newer_pgbouncer_follows_prepared_statements() -> None:
    settings = {"max_prepared_statements": "100"}
    assert findings(behind(version=(1, 21, 0), settings=settings), cleans=False, prepares=True) == []
    settings = {"max_prepared_statements": "0"}
    assert len(findings(behind(version=(1, 21, 0), settings=settings), cleans=False, prepares=True)) == 1


def test_session_mode() -> None:
    assert findings(behind(mode="session"), max_size=5) == []
    assert "keeps one of PgBouncer's default_pool_size=20" in only(findings(behind(mode="session"), max_size=6))


def test_limits_of_pgbouncer_and_of_the_server_behind_it() -> None:
    quiet = {"cleans": False, "prepares": False}
    assert "max_client_conn is 500" in only(findings(behind(), max_size=126, **quiet))
    wide = {**BOUNCER.settings, "default_pool_size": "98"}
    assert "default_pool_size is 98" in only(findings(behind(settings=wide), **quiet))
    impatient = {**BOUNCER.settings, "client_idle_timeout": "60"}
    assert "client_idle_timeout is 60 s" in only(findings(behind(settings=impatient), **quiet))


def test_startup_options() -> None:
    quiet = {"cleans": False, "prepares": False, "options": True}
    assert only(findings(behind(), **quiet)).startswith("breaks: PgBouncer refuses")
    ignoring = {**BOUNCER.settings, "ignore_startup_parameters": "extra_float_digits,options"}
    assert findings(behind(settings=ignoring), **quiet) == []


def test_unknown_pooler() -> None:
    facts = dataclasses.replace(FACTS, pooler=Pooler("transaction"))
    assert findings(facts, workers=1000, cleans=False, prepares=False) == []
    assert "a pooler in transaction mode" in str(examine(facts, plan()))


@pytest.mark.parametrize(("workers", "error"), [(0, ValueError), (True, TypeError), ("4", TypeError)])
def test_bad_workers(workers: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="workers"):
        Plan(workers=workers)


# -- the size -----------------------------------------------------------------------------------


def simulate(rate: float, hold: float, size: int, number: int = 60_000) -> float:
    """The simulated 99th percentile of the wait in a fair queue for `size` servers."""
    chance = random.Random(1)
    free = [0.0] * size
    now, waits = 0.0, []
    for _ in range(number):
        now += chance.expovariate(rate)
        begins = max(now, heapq.heappop(free))
        waits.append(begins - now)
        heapq.heappush(free, begins + chance.expovariate(1 / hold))
    waits.sort()
    return waits[number * 99 // 100]


@pytest.mark.parametrize(("rate", "hold", "target"), [(200, 0.02, 0.01), (50, 0.1, 0.05), (1000, 0.01, 0.002)])
def test_size_keeps_waits_short_and_a_smaller_one_does_not(rate: float, hold: float, target: float) -> None:
    load = Load(rate, hold, 10 * math.ceil(rate * hold), 0.0)
    size = size_for(load, target).size
    assert simulate(rate, hold, size) <= target * 1.1
    assert simulate(rate, hold, size - 1) > target * 0.9


@pytest.mark.parametrize(
    ("size", "erlangs", "waits"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.409), (100, 90.0, 0.217)]
)
def test_erlang_c_by_the_tables(size: int, erlangs: float, waits: float) -> None:
    expected = math.log(waits / 0.01) / (size - erlangs)
    assert percentile(size, erlangs, 1.0) == pytest.approx(expected, rel=0.01)


def test_overload_has_no_percentile() -> None:
    assert percentile(4, 4.0, 1.0) == math.inf


def test_bursts_count() -> None:
    calm = size_for(Load(100, 0.02, 5, 0.0), 0.01)
    bursts = size_for(Load(100, 0.02, 5, 0.2), 0.01)
    assert bursts.size > calm.size
    assert bursts.explained > calm.explained == 2.0
    assert percentile(5, bursts.explained, 0.02) == pytest.approx(0.2, rel=0.01)
    assert "come in bursts" in str(bursts)
    assert "come in bursts" not in str(calm)


def test_load_of_a_real_record(tmp_path: Path) -> None:
    pool = Pool(object, name="recorded")
    for _ in range(5):
        with pool.acquire():
            pass
    file = tmp_path / "metrics.json"
    pool.metrics.save(file)
    load = Load.from_record(json.loads(file.read_text()))
    assert load.size == 10
    assert load.rate > 0
    assert size_for(load, 0.01).size == 1
    pool.close()


def test_waits_of_a_pool_that_was_never_exhausted_were_for_creations() -> None:
    record = {
        "duration": 100.0, "acquired": 20_000, "timeouts": 0, "refusals": 0, "use": {"mean": 0.02},
        "exhausted": 0, "wait": {"p99": 0.5}, "max_size": 50,
    }  # fmt: skip
    assert Load.from_record(record).wait == 0.0
    assert Load.from_record({**record, "exhausted": 1}).wait == 0.5


@pytest.mark.parametrize("record", [{}, [], {"duration": 1, "acquired": 0}])
def test_no_record(record: Any) -> None:
    with pytest.raises(ValueError, match="record"):
        Load.from_record(record)


def test_unused_pool_gives_no_advice() -> None:
    pool = Pool(object)
    with pytest.raises(ValueError, match="no lease"):
        Load.from_record(pool.metrics.to_dict())


def test_bad_target() -> None:
    with pytest.raises(ValueError, match="target"):
        size_for(Load(1, 1, 1, 0), 0)


# -- the command ---------------------------------------------------------------------------------


def test_command_reads_metrics_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.json"
    record = {
        "duration": 100.0, "acquired": 20_000, "timeouts": 3, "refusals": 0, "use": {"mean": 0.02},
        "exhausted": 7, "wait": {"p99": 0.5}, "max_size": 5,
    }  # fmt: skip
    file.write_text(json.dumps(record))
    assert main(["doctor", "--metrics", str(file), "--wait-target", "5"]) == 0
    output = capsys.readouterr().out
    assert "3 timed out" in output
    assert "below 5 ms" in output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--metrics", "/nowhere/metrics.json"],
        ["--dsn", "postgresql://u:hidden@db/app?nonsense=1"],
        ["--dsn", "postgresql://db/app", "--workers", "0"],
        ["--dsn", "postgresql://db/app", "--max-size", "many"],
        ["--dsn", "postgresql://db/app", "--wait-target", "-1"],
        ["--dsn", "postgresql://db/app", "--leak-timeout", "0"],
        ["--dsn", "postgresql://db/app", "--keepalive-interval", "soon"],
    ],
)
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    assert caught.value.code == 2
    assert "hidden" not in capsys.readouterr().err


def test_without_a_libpq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SystemExit):
        main(["doctor", "--dsn", "postgresql://db/app"])
    assert "pooling[binary]" in capsys.readouterr().err


# -- the calculator --------------------------------------------------------------------------------


def test_connections_of_several_hosts_are_counted_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--hosts", "3", "--workers", "4", "--rollout"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "processes    3 hosts x 4 workers x 2 in a rollout = 24",
        "connections  24 x max_size 10 = 240",
        "as it is     max_connections of at least 243, and more for other clients",
        "smaller      max_size 4 (24 x 4 = 96) fits max_connections = 100",
        "a budget     FleetBudget(total=97, max_members=24): each up to 10, together 97",
        "PgBouncer    max_client_conn of at least 240, default_pool_size 2 to 4 x the processors",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--workers", "4"], "as it is     fits a server with max_connections = 100 (3 are reserved)"),
        (["--workers", "200"], "smaller      no max_size fits max_connections = 100"),
        (["--workers", "200"], "a budget     a total of 97 is less than one for each process"),
        (["--workers", "4", "--budget", "30"],
         "a budget     FleetBudget(total=30, max_members=4): each up to 10, together 30"),
        (["--workers", "1", "--max-size", "7"], "connections  1 x max_size 7 = 7"),
    ],
)  # fmt: skip
def test_calculation(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_hosts_and_rollout_count_in_every_rule() -> None:
    found = only(findings(FACTS, workers=4, hosts=3, rollout=True))
    assert found.startswith("breaks: 3 hosts x 4 workers x 2 in a rollout x max_size 10 = 240 connections, but")
    assert f"Set max_size to at most {(FACTS.room - FACTS.connected) // 24}" in found
