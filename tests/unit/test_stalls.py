"""Holders that have been blocked in one command for long: when the adapter is asked about them, and when not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from pooling import Lease, Pool
from pooling.core.adapter import Verdicts
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Make, lent_elsewhere, run_jobs

LIMIT = 60.0


class Asked(FakeAdapter):
    """Its holders are blocked in what the test says; notes what it is asked."""

    stall_timeout = LIMIT

    def __init__(self) -> None:
        super().__init__()
        self.commands: dict[FakeResource, object] = {}
        self.questions: list[list[tuple[FakeResource, object]]] = []
        self.answer: Verdicts | Exception = Verdicts()

    def command_of(self, resource: FakeResource) -> object:
        return self.commands.get(resource)

    def end_stalled(self, waiting: Sequence[tuple[FakeResource, object]], seconds: float) -> Verdicts:
        assert seconds == LIMIT
        self.questions.append(list(waiting))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def pool(make: Make, asked: Asked) -> Pool[Any]:
    return make(adapter=asked, max_size=3, idle_timeout=None, max_lifetime=None)


def test_one_command_for_too_long(pool: Pool[Any], asked: Asked, clock: VirtualClock) -> None:
    with pool.acquire() as one, pool.acquire() as two, pool.acquire():
        asked.commands = {one: "SELECT", two: "first"}
        clock.advance(LIMIT / 2)
        asked.commands[two] = "second"
        clock.advance(LIMIT / 2)
        assert asked.questions == []  # it was seen for the first time at the first look
        clock.advance(LIMIT / 4)
        assert asked.questions == [[(one, "SELECT")]]
        clock.advance(LIMIT / 2)
        assert asked.questions[1:] == [[(two, "second")]]


def test_what_is_at_work_is_asked_about_again_after_as_long(
    pool: Pool[Any], asked: Asked, clock: VirtualClock
) -> None:
    with pool.acquire() as one:
        asked.commands = {one: "a long report"}
        clock.advance(10 * LIMIT + LIMIT / 4)
        assert 8 <= len(asked.questions) <= 10


def test_a_question_that_failed_is_asked_again_soon(pool: Pool[Any], asked: Asked, clock: VirtualClock) -> None:
    asked.answer = Verdicts(unknown=["no answer"], again=True)
    with pool.acquire() as one:
        asked.commands = {one: "SELECT"}
        clock.advance(2 * LIMIT)
        assert len(asked.questions) >= 3


def test_server_is_not_asked_about_idle_connections_or_between_commands(
    pool: Pool[Any], asked: Asked, clock: VirtualClock
) -> None:
    with pool.acquire() as one:
        clock.advance(2 * LIMIT)
    asked.commands = {one: "left over"}
    clock.advance(2 * LIMIT)
    assert asked.questions == []


def test_another_lease_is_another_command(pool: Pool[Any], asked: Asked, clock: VirtualClock) -> None:
    """P1: what a lease waited for is not the next one's."""
    for number in range(6):
        with pool.acquire() as one:
            asked.commands = {one: number}
            clock.advance(LIMIT)
    assert asked.questions == []


def test_one_question_at_a_time(asked: Asked, manual: VirtualClock, make: Make) -> None:
    pool = make(adapter=asked, clock=manual, max_size=3, idle_timeout=None, max_lifetime=None)
    pool.fill(2)
    run_jobs(manual)
    leases: list[Lease[Any]] = [pool.acquire(), pool.acquire()]
    asked.commands = {lease.resource: "SELECT" for lease in leases}
    manual.advance(LIMIT * 1.25)
    assert manual.jobs == 1
    manual.advance(LIMIT / 4)
    assert manual.jobs == 1  # it is under way
    limit = pool.settings.create_timeout + pool.settings.health_check_timeout
    manual.advance(limit + LIMIT / 4)
    assert manual.jobs == 2  # one that hangs for ever is not the last
    run_jobs(manual)
    for lease in leases:
        lease.release()


def test_result_is_reported_once(
    pool: Pool[Any], asked: Asked, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    asked.answer = Verdicts(["idle", "idle"], ["another role"], again=True)
    with caplog.at_level(logging.INFO), pool.acquire() as one:
        asked.commands = {one: "SELECT"}
        clock.advance(2 * LIMIT)
    told = [record.getMessage() for record in caplog.records if "in one command" in record.getMessage()]
    unknown = (
        "pool 'test': 1 holder(s) in one command for 60 s or more, cannot determine whether "
        "the server is working on it: another role"
    )
    assert told.count(unknown) == 1
    assert "pool 'test': 2 holder(s) interrupted after 60 s or more in one command: idle" in told


def test_an_adapter_that_fails_does_no_harm(
    pool: Pool[Any], asked: Asked, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    asked.answer = ZeroDivisionError()
    with caplog.at_level(logging.ERROR), lent_elsewhere(pool) as leases:
        asked.commands = {leases[0].resource: "SELECT"}
        clock.advance(2 * LIMIT)
        asked.commands = None  # type: ignore[assignment]  # command_of() fails
        clock.advance(2 * LIMIT)
    assert len(asked.questions) >= 1
    assert [record.levelname for record in caplog.records] == ["ERROR"] * len(asked.questions)
    with pool.acquire():
        pass


def test_without_a_limit_the_server_is_not_asked(make: Make, clock: VirtualClock) -> None:
    asked = Asked()
    asked.stall_timeout = None  # type: ignore[assignment]
    pool = make(adapter=asked, idle_timeout=None, max_lifetime=None)
    with pool.acquire() as one:
        asked.commands = {one: "SELECT"}
        clock.advance(10 * LIMIT)
    assert asked.questions == []
    assert pool.engine.sweep_due == float("inf")
