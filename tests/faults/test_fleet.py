"""A budget on a real server: whatever happens to the processes and to the store, there are never more connections."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pooling.fleet.model import MARGIN, RENEWAL, TTL
from tests.faults.fleet import Sampler, Worker, errors_of, prepare, until
from tests.redisserver import RedisServer, needs_redis
from tests.servers import PostgresServer

TOTAL = 16
TWO_RENEWALS = 2 * RENEWAL + 10.0  # and what a busy machine needs to start processes; `test_fleet_model` is exact

Start = Callable[..., Worker]


@pytest.fixture
def redis_of_its_own() -> Iterator[RedisServer]:
    needs_redis()
    with RedisServer() as server:
        yield server


@pytest.fixture
def start(private_postgres: PostgresServer) -> Iterator[Start]:
    dsn, started = prepare(private_postgres), list[Worker]()

    def worker(budget: str, threads: int = 0, **more: float) -> Worker:
        started.append(Worker(dsn, budget, threads, **more))
        return started[-1]

    yield worker
    for each in started:
        each.kill()


def fair(workers: list[Worker], least: int) -> Callable[[], bool]:
    return lambda: all(worker.share >= least for worker in workers)


def budget_in(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if store == "redis":
        return f"{TOTAL},max_members=8,store={request.getfixturevalue('redis_of_its_own').url}"
    return f"{TOTAL},max_members=8,store=" + (f"local:{tmp_path / 'budget'}" if store == "local" else "postgresql:")


@pytest.mark.parametrize("store", ["local", "postgres", "redis"])
def test_kills_joins_and_a_rollout(
    store: str, start: Start, private_postgres: PostgresServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    budget = budget_in(store, tmp_path, request)
    with Sampler(private_postgres, TOTAL) as sampler:
        old = [start(budget, threads=6) for _ in range(4)]
        reserve = 1 if store == "postgres" else 0
        learns = TTL if store == "redis" else 0.0  # it cannot know that it is new
        until(fair(old, (TOTAL - 4 - reserve) // 4), TWO_RENEWALS + learns)
        old.pop().kill()
        old[0].signal(signal.SIGSTOP)  # for a moment, within its lease
        new = [start(budget, threads=6) for _ in range(3)]
        time.sleep(MARGIN)
        old[0].signal(signal.SIGCONT)
        # The killed one is forgotten after its lease; then six members share what two absent ones leave.
        until(fair(old + new, (TOTAL - 2 - reserve) // 6), TTL + TWO_RENEWALS)
        time.sleep(1.0)
        assert errors_of(old + new) == {}
        for worker in old:
            assert worker.leave()["done"] > 10
        until(fair(new, (TOTAL - 5 - reserve) // 3), TWO_RENEWALS)
        for worker in new[1:]:
            worker.want(0)
        until(lambda: new[0].share >= 6, TWO_RENEWALS)
        assert errors_of(new) == {}
    assert not sampler.above, f"of {sampler.samples} samples"
    assert sampler.samples > 200 and sampler.most >= TOTAL - 6


def test_without_the_store_everybody_keeps_the_floor(
    start: Start, private_postgres: PostgresServer, redis_of_its_own: RedisServer
) -> None:
    budget = f"{TOTAL},max_members=5,floor=2,store={redis_of_its_own.url}"
    with Sampler(private_postgres, TOTAL) as sampler:
        workers = [start(budget, threads=6) for _ in range(3)]
        until(fair(workers, 4), TTL + TWO_RENEWALS)
        redis_of_its_own.kill()
        until(lambda: all(worker.stats()["size"] == 2 for worker in workers), TTL + 2)
        assert "no answer from the store" in workers[0].stats()["budget"]["note"]
        late = start(budget, threads=6)  # it begins at its floor, without the store
        until(lambda: late.stats()["done"] > 10, 15.0)
        assert late.share == 2
        workers.append(late)
        redis_of_its_own.start()
        until(fair(workers, 3), TTL + TWO_RENEWALS)  # it learns for one TTL
        assert errors_of(workers) == {}
    assert not sampler.above


def test_a_restart_of_the_server_that_is_the_store(start: Start, private_postgres: PostgresServer) -> None:
    budget = f"{TOTAL},store=postgresql:"  # nothing declared: what each has comes from what is free
    with Sampler(private_postgres, TOTAL) as sampler:
        workers = [start(budget, threads=6) for _ in range(3)]
        until(fair(workers, 5), TWO_RENEWALS)
        private_postgres.kill()
        private_postgres.start()
        before = [worker.stats()["done"] for worker in workers]
        until(lambda: all(worker.stats()["done"] > one + 20 for worker, one in zip(workers, before)), TTL)
        until(fair(workers, 5), TTL + TWO_RENEWALS)
    assert not sampler.above and sampler.most >= 12


def test_the_servers_own_limit_fences_a_frozen_process(start: Start, private_postgres: PostgresServer) -> None:
    """Beyond its lease a frozen process keeps its connections; the server refuses more, and the pools make do."""
    with private_postgres.connect(autocommit=True) as admin:
        admin.execute(f"ALTER ROLE app CONNECTION LIMIT {TOTAL}")
    budget = f"{TOTAL},store=postgresql:"
    with Sampler(private_postgres, TOTAL) as sampler:
        frozen = start(budget, threads=8)
        until(lambda: frozen.stats()["size"] >= 8, TWO_RENEWALS)
        frozen.signal(signal.SIGSTOP)
        time.sleep(TTL + 1)
        other = start(budget, threads=10)
        until(lambda: other.share >= 10, TTL + TWO_RENEWALS)  # the store has forgotten the frozen one
        done = other.stats()["done"]
        until(lambda: other.stats()["done"] > done + 20, 15.0)
        assert errors_of([other]) == {}
        frozen.signal(signal.SIGCONT)
        until(lambda: frozen.share <= 8 and other.share <= 8, TTL + TWO_RENEWALS)
        assert errors_of([frozen, other]) == {}
    assert not sampler.above
