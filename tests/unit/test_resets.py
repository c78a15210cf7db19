"""Repeated reset failures: one incident, logged once, which ends when resets work again."""

from __future__ import annotations

import logging

import pytest

from pooling import Observer, Pool, PoolManager, PoolSettings
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Task


class Ears(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def resets_failed(self, pool: str, error: BaseException) -> None:
        self.heard.append(f"{pool}: {error}")

    def resets_recovered(self, pool: str) -> None:
        self.heard.append(f"{pool}: recovered")


class Resetting(FakeAdapter):
    """Resets in the releasing thread; fails on demand."""

    enforces_timeouts = True
    failing = False

    def reset(self, resource: object) -> None:
        if self.failing:
            raise RuntimeError("cannot clean")


def test_repeated_reset_failures_are_one_incident(caplog: pytest.LogCaptureFixture) -> None:
    ears, adapter, clock = Ears(), Resetting(), VirtualClock()
    pool: Pool[object] = Pool(
        adapter=adapter, settings=PoolSettings(min_size=0, max_size=2), name="p", observers=[ears], clock=clock
    )

    def lease(times: int, failing: bool) -> None:
        adapter.failing = failing
        for _ in range(times):
            pool.acquire().release()

    caplog.set_level(logging.WARNING, "pooling")
    lease(2, failing=True)
    lease(20, failing=False)
    assert ears.heard == []  # two failures are not an incident
    for _ in range(5):
        lease(1, failing=True)
        lease(2, failing=False)  # of leases that ran nothing, for example
    assert ears.heard == ["p: cannot clean"]
    lease(50, failing=True)
    lease(48, failing=False)
    assert ears.heard == ["p: cannot clean", "p: recovered"]
    lease(10, failing=True)  # again, so soon: the same incident
    lease(48, failing=False)
    assert ears.heard == ["p: cannot clean", "p: recovered"]
    clock.advance(61)
    lease(3, failing=True)
    assert ears.heard == ["p: cannot clean", "p: recovered", "p: cannot clean"]
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert texts == [
        "pool 'p': resets keep failing, so things are closed at release instead of kept: RuntimeError: cannot clean"
    ] * 2
    pool.close()


def test_health_reports_repeated_reset_failures() -> None:
    adapter = Resetting()
    with PoolManager() as manager:
        pool: Pool[object] = Pool(adapter=adapter, settings=PoolSettings(min_size=0), name="p")
        manager.add_pool(pool, name="p")
        assert manager.health_check()["p"].status == "up"
        adapter.failing = True
        for _ in range(3):
            pool.acquire().release()
        assert manager.health_check()["p"].reason == "resets keep failing: RuntimeError: cannot clean"


def test_hung_resets_count_as_failures() -> None:
    ears, adapter, clock = Ears(), FakeAdapter(enforces_timeouts=False), VirtualClock()
    pool: Pool[object] = Pool(
        adapter=adapter, settings=PoolSettings(min_size=0, max_size=3, reset_timeout=5), name="p",
        observers=[ears], clock=clock,
    )  # fmt: skip
    adapter.hold("reset")
    leases = [pool.acquire() for _ in range(3)]
    hanging = []
    for lease in leases:
        hanging.append(Task(lease.release))  # the virtual clock's workers work in the caller's thread
        adapter.until_held("reset")
    clock.advance(5.1)
    assert ears.heard == ["p: a reset took over 5 s"]
    adapter.let_go("reset")
    for one in hanging:
        one.result()
    pool.close()
