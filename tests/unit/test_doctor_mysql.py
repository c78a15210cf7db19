"""What the doctor finds on a MySQL server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pooling import PoolSettings
from pooling.tools.doctor.mysql import Facts, examine
from pooling.tools.doctor.plan import Plan

GOOD = Facts(
    version="8.4.3", address="db:3306", max_connections=151, connected=10, user_limit=0, wait_timeout=28_800.0,
    read_only=False, proxied=False, connect_seconds=0.002, query_seconds=0.0001,
)  # fmt: skip
PLAN = Plan(settings=PoolSettings(max_size=10), workers=4)


def test_nothing_is_found_on_a_good_server() -> None:
    report = examine(GOOD, PLAN)
    assert report.findings == () and not report.breaks
    assert str(report).splitlines()[0] == "MySQL 8.4.3 at db:3306"
    assert str(report).splitlines()[-1] == "  no problems found for 4 workers x max_size 10"


@pytest.mark.parametrize(
    ("facts", "plan", "level", "what"),
    [
        ({"max_connections": 30}, {}, "breaks", "the server accepts only 30"),
        ({"connected": 120}, {}, "warning", "only 31 are free"),
        ({"user_limit": 20}, {}, "breaks", "max_user_connections of this user is 20"),
        ({}, {"workers": None}, "note", "the number of workers is unknown; 14 with max_size 10 fit"),
        ({"wait_timeout": 60.0}, {}, "warning", "wait_timeout is 60 s"),
        ({"query_seconds": 0.02}, {}, "warning", "the shortest query takes 20.0 ms"),
        ({"read_only": True}, {}, "note", "the server is read-only"),
        ({"proxied": True}, {}, "note", "behind a proxy that shares its connections"),
        ({}, {"unlimited": True}, "note", "there is no command_timeout"),
    ],
)
def test_problem_is_found(facts: dict[str, object], plan: dict[str, object], level: str, what: str) -> None:
    (finding,) = examine(replace(GOOD, **facts), replace(PLAN, **plan)).findings  # type: ignore[arg-type]
    assert finding.level == level and what in finding.what


@pytest.mark.parametrize("settings", [{"keepalive_interval": 30.0}, {"max_lifetime": 50.0}])
def test_connections_that_are_used_or_replaced_in_time_are_no_problem(settings: dict[str, float]) -> None:
    plan = replace(PLAN, settings=PoolSettings(max_size=10, **settings))  # type: ignore[arg-type]
    assert examine(replace(GOOD, wait_timeout=60.0), plan).findings == ()
