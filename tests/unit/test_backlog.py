"""Durations that are recorded later: how many, with which values, and in how much time."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from pooling.core.report.histogram import bound_of, place_of
from pooling.observe.backlog import MOST, SHARE, UNTIMED, Backlog, Series


def buckets(durations: list[float]) -> dict[int, int]:
    return dict(Counter(place_of(seconds) for seconds in durations))


class Clock:
    """Time that passes only while durations are recorded."""

    def __init__(self, cost: float = 0.0) -> None:
        self.time, self.cost = 1000.0, cost
        self.recorded: list[float] = []

    def __call__(self) -> float:
        return self.time

    def record(self, seconds: float) -> None:
        self.recorded.append(seconds)
        self.time += self.cost


def backlog_of(clock: Clock, below: int | None = None) -> tuple[Backlog, Series]:
    backlog = Backlog(clock)
    series = backlog.series["one"] = Series(clock.record, below)
    return backlog, series


def test_each_duration_is_recorded_once_in_its_bucket_and_the_sum_is_right() -> None:
    clock, durations = Clock(), [random.Random(1).lognormvariate(-6, 2) for _ in range(500)]
    durations += [2e-6, 5e-7, 3000.0]
    backlog, series = backlog_of(clock)
    for number in (100, 100, 250, len(durations)):
        series.update(buckets(durations[:number]), sum(durations[:number]))
        backlog.record()
        assert buckets(clock.recorded) == buckets(durations[:number])
    assert sum(clock.recorded) == pytest.approx(sum(durations), rel=0.01)
    assert backlog.size == 0


@pytest.mark.parametrize("timed", [[], [0.01] * 3])
def test_untimed_durations_get_their_mean(timed: list[float]) -> None:
    clock = Clock()
    backlog, series = backlog_of(clock)
    series.update({UNTIMED: 1000, **buckets(timed)}, 1000 * 2e-6 + sum(timed))
    backlog.record()
    assert len(clock.recorded) == 1000 + len(timed)
    assert sum(clock.recorded) == pytest.approx(1000 * 2e-6 + sum(timed))
    assert [seconds for seconds in clock.recorded if seconds > 1e-4] == pytest.approx(timed, rel=0.2)


def test_durations_that_are_recorded_elsewhere_are_left_out() -> None:
    clock = Clock()
    backlog, series = backlog_of(clock, below=21)
    series.update({UNTIMED: 2, 19: 3, 20: 1, 21: 5, 40: 7}, 1e6)
    backlog.record()
    assert buckets(clock.recorded) == {0: 2, 19: 3, 20: 1}
    assert [seconds for seconds in clock.recorded if seconds < 1e-6] == [0.0, 0.0]


def test_what_is_forgiven_is_never_recorded() -> None:
    clock = Clock()
    backlog, series = backlog_of(clock)
    series.update({10: 5}, 1.0)
    backlog.forgive()
    series.update({10: 7}, 1.0 + 2 * bound_of(9))
    backlog.record()
    assert len(clock.recorded) == 2


def test_counting_goes_on_after_a_reset() -> None:
    clock = Clock()
    backlog, series = backlog_of(clock)
    for number in (5, 2, 3):
        series.update({10: number}, number * 4e-5)
        backlog.record()
    assert len(clock.recorded) == 5 + 3
    assert sum(clock.recorded) == pytest.approx(8 * 4e-5, rel=0.3)


def test_recording_takes_a_share_of_the_time_and_the_rest_comes_later() -> None:
    clock = Clock(cost=1e-5)
    backlog, series = backlog_of(clock)
    number = 3 * int(MOST / clock.cost)
    series.update({UNTIMED: number, 30: 50}, number * 1e-6 + 50 * bound_of(30) * 0.8)
    began = clock.time
    backlog.record()
    assert MOST * 0.9 < clock.time - began < MOST * 1.1  # it had a credit
    assert [place_of(seconds) for seconds in clock.recorded[:50]] == [30] * 50  # the longest first
    assert backlog.size == number + 50 - len(clock.recorded)

    clock.time += 10.0
    began = clock.time
    backlog.record()
    assert 10.0 * SHARE * 0.9 < clock.time - began < 10.0 * SHARE * 1.3
    for _ in range(100):
        clock.time += 60.0
        backlog.record()
    assert backlog.size == 0 and len(clock.recorded) == number + 50
    assert sum(clock.recorded) == pytest.approx(number * 1e-6 + 50 * bound_of(30) * 0.8, rel=1e-6)


def test_one_call_can_be_limited_further() -> None:
    clock = Clock(cost=1e-5)
    backlog, series = backlog_of(clock)
    series.update({UNTIMED: 10**6}, 1.0)
    for _ in range(3):
        began = clock.time
        backlog.record(limit=0.1)
        assert 0.09 < clock.time - began < 0.12
    backlog.record()
    assert clock.time - 1000.0 == pytest.approx(MOST, rel=0.1)  # no call gets more than there is in all


def test_values_are_finite_in_the_last_bucket() -> None:
    clock = Clock()
    backlog, series = backlog_of(clock)
    series.update({61: 2}, 9000.0)
    backlog.record()
    assert sum(clock.recorded) == pytest.approx(9000.0) and all(map(math.isfinite, clock.recorded))
