"""The stores decide as the model does, on real servers, also with many processes at once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest

from pooling import PostgresPool
from pooling.core.sizing import limit_size
from pooling.fleet.local import LocalStore
from pooling.fleet.model import TTL, Answer, Ledger, Request, Terms
from pooling.fleet.postgres import PostgresStore
from pooling.fleet.redis import RedisStore
from pooling.fleet.stores import StoreError
from tests.integration.tools import ROOT, wait_until
from tests.redisserver import RedisServer
from tests.servers import PostgresServer

_SHIFT = """
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    local text = redis.call('HGET', KEYS[1], name)
    if name == '@learning' then redis.call('HSET', KEYS[1], name, string.format('%.6f', tonumber(text) - ARGV[1]))
    elseif name ~= '@epoch' then
        local head, till, number = string.match(text, '(%S+ %S+ %S+) (%S+) (%S+)')
        redis.call('HSET', KEYS[1], name, string.format('%s %.6f %s', head, tonumber(till) - ARGV[1], number))
    end
end
"""


class OfModel:
    """The model as a store, under a clock that only moves when it is told to."""

    def __init__(self, fresh: bool) -> None:
        self.ledger, self.now, self.epoch, self.fresh = Ledger(), 1000.0, 1, fresh

    def renew(self, request: Request, terms: Terms) -> Answer:
        own = self.ledger.rows.get(request.member)
        if own is not None and request.number <= own.number:
            raise StoreError("late")
        return self.ledger.renew(request, terms, self.now, str(self.epoch), self.fresh)


class OfPostgres:
    def __init__(self, server: PostgresServer, name: str) -> None:
        self.pool = PostgresPool(server.dsn, max_size=1)
        self.name, self.store = name, PostgresStore(name)

    def renew(self, request: Request, terms: Terms) -> Answer:
        return self.store.renew(request, terms, [self.pool])

    def release(self, member: str, number: int) -> None:
        self.store.release(member, number, [self.pool])

    def advance(self, seconds: float) -> None:
        self.pool.execute_query("UPDATE pooling_budget SET until = until - %s", (seconds,))

    def restart(self) -> None:
        self.pool.execute_query("UPDATE pooling_budget SET epoch = 'another' WHERE member = ''")


class OfRedis:
    def __init__(self, server: RedisServer, name: str) -> None:
        self.client = server.connect()
        self.name, self.store = name, RedisStore(server.url, name)

    def renew(self, request: Request, terms: Terms) -> Answer:
        return self.store.renew(request, terms, [])

    def release(self, member: str, number: int) -> None:
        self.store.release(member, number, [])

    def advance(self, seconds: float) -> None:
        self.client.eval(_SHIFT, 1, f"pooling:budget:{self.name}", seconds)

    def restart(self) -> None:
        if self.client.exists(f"pooling:budget:{self.name}"):
            self.client.hset(f"pooling:budget:{self.name}", "@epoch", "another")


@pytest.fixture(params=["postgres", "redis"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    made: list[Any] = []

    def store(name: str) -> Any:
        kind = OfPostgres if request.param == "postgres" else OfRedis
        server = request.getfixturevalue("postgres" if request.param == "postgres" else "redis_server")
        made.append(kind(server, name))
        return made[-1]

    yield store
    for each in made:
        each.store.close()
        if isinstance(each, OfPostgres):
            each.pool.close()


@pytest.mark.parametrize("seed", range(8))
def test_store_decides_as_the_model_does(make: Callable[[str], Any], seed: int) -> None:
    chance = random.Random(seed)
    declared = chance.choice([None, 4, 8])
    store = make(f"model-{seed}-{time.time_ns()}")
    store.release("nobody", 1)  # creates the table
    model = OfModel(fresh=isinstance(store, OfPostgres))
    terms = Terms(chance.randint(8, 30), chance.choice([1, 1, 2]), declared, chance.choice([0, 1]), ttl=10_000.0)
    terms = terms._replace(total=max(terms.total, terms.floor * (declared or 1) + 1))
    members = {f"{number:08x}": 0 for number in range(6)}
    held = dict.fromkeys(members, 0)
    for _ in range(120):
        step = chance.random()
        member = chance.choice(list(members))
        if step < 0.85:
            members[member] += chance.choice([1, 1, 1, 0])
            size = chance.randint(0, held[member])
            request = Request(member, members[member], chance.randint(0, 14), chance.randint(0, 14), size)
            try:
                wanted = model.renew(request, terms)
            except StoreError:
                if isinstance(store, OfRedis):
                    with pytest.raises(StoreError):
                        store.renew(request, terms)
                continue
            answer = store.renew(request, terms)
            assert answer[:4] == wanted[:4], (request, model.ledger)
            assert answer.learning == pytest.approx(wanted.learning, abs=60)
            held[member] = wanted.share
        elif step < 0.90:
            members[member] += 1
            model.ledger.release(member, members[member])
            store.release(member, members[member])
            held[member] = 0
        elif step < 0.97:
            seconds = chance.choice([3000, 9000, 11_000])
            model.now += seconds
            store.advance(seconds)
        else:
            model.epoch += 1
            store.restart()


def test_a_late_request_gets_no_answer(make: Callable[[str], Any]) -> None:
    store = make(f"late-{time.time_ns()}")
    store.renew(Request("a", 5, 3, 0, 0), Terms(10, max_members=2))
    with pytest.raises(StoreError, match="out of order"):
        store.renew(Request("a", 4, 9, 0, 0), Terms(10, max_members=2))


def test_members_at_once_never_get_more_than_there_is(make: Callable[[str], Any]) -> None:
    """Each of several connections renews for members of its own; what is held is added up after each answer."""
    name, terms = f"race-{time.time_ns()}", Terms(20, max_members=16)
    stores = [make(name) for _ in range(4)]
    held: dict[str, int] = {}
    most: list[int] = []
    errors: list[BaseException] = []

    def renew(number: int) -> None:
        chance = random.Random(number)
        try:
            for turn in range(1, 40):
                for own in range(4):
                    member = f"{number}{own}"
                    held[member] = min(held.get(member, 1), chance.randint(1, 9))  # closed, then reported
                    request = Request(member, turn, chance.randint(0, 9), 0, held[member])
                    held[member] = stores[number].renew(request, terms).share
                    most.append(sum(held.values()) + 16 - len(held))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=renew, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(most) == 4 * 39 * 4
    assert 15 < max(most) <= 20


def test_the_table_is_created_by_whoever_comes_first(private_postgres: PostgresServer) -> None:
    stores = [OfPostgres(private_postgres, "first") for _ in range(6)]
    answers: list[Answer] = []

    def renew(number: int) -> None:
        answers.append(stores[number].renew(Request(f"{number}", 1, 2, 0, 0), Terms(20)))

    threads = [threading.Thread(target=renew, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.share for answer in answers] == [2] * 6
    for store in stores:
        store.pool.close()


def test_a_process_with_all_connections_in_use_renews_over_another_one(private_postgres: PostgresServer) -> None:
    store = OfPostgres(private_postgres, "busy")
    with store.pool.acquire():
        began = time.monotonic()
        assert store.renew(Request("a", 1, 2, 0, 0), Terms(20)).share == 2
        assert 0.9 < time.monotonic() - began < 10
    limit_size(store.pool.engine, "budget", 0)
    began = time.monotonic()
    assert store.renew(Request("a", 2, 2, 0, 0), Terms(20)).share == 2
    assert time.monotonic() - began < 0.9  # it does not wait for one that cannot come
    with private_postgres.connect(autocommit=True) as admin:
        wait_until(lambda: admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        ).fetchone() == (1,))
    store.pool.close()


def test_without_a_pool_of_postgresql_the_store_says_so() -> None:
    with pytest.raises(StoreError, match="the store 'postgresql:' needs a PostgresPool with this budget"):
        PostgresStore("x").renew(Request("a", 1, 2, 0, 0), Terms(20), [])


def test_a_server_that_restarts_makes_the_stores_learn(private_postgres: PostgresServer) -> None:
    store = OfPostgres(private_postgres, "restart")
    terms = Terms(20)
    assert store.renew(Request("a", 1, 8, 0, 0), terms).share == 8
    private_postgres.kill()
    private_postgres.start()
    answer = store.renew(Request("a", 2, 12, 0, 8), terms)
    assert answer.share == 8 and TTL - 1 < answer.learning <= TTL
    store.pool.close()


def test_a_redis_that_restarts_makes_the_stores_learn(redis_server: RedisServer) -> None:
    with RedisServer() as server:
        store = OfRedis(server, "restart")
        assert store.renew(Request("a", 1, 8, 0, 0), Terms(20)).share == 1  # it may have forgotten others
        server.kill()
        server.start()
        answer = store.renew(Request("a", 2, 12, 0, 8), Terms(20))
        assert answer.share == 8 and answer.learning > TTL - 1


# -- the local store --------------------------------------------------------------------


_MEMBER = """
import sys
from pooling.fleet.local import LocalStore
from pooling.fleet.model import Request, Terms
from math import inf
store, number = LocalStore(sys.argv[1], "x"), 0
for line in sys.stdin:
    need, held = map(int, line.split())
    number += 1
    answer = store.renew(Request(sys.argv[2], number, need, 0, held), Terms(10, ttl=inf), [])
    print(answer.share, answer.others, flush=True)
"""


class Process:
    """A member in a process of its own."""

    def __init__(self, path: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MEMBER, str(path), name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def renew(self, need: int, held: int) -> tuple[int, ...]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(need, held, file=self.process.stdin, flush=True)
        return tuple(map(int, self.process.stdout.readline().split()))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout):
            if file is not None:
                file.close()


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    made: list[Process] = []

    def start(name: str) -> Process:
        made.append(Process(tmp_path / "budget", name))
        return made[-1]

    yield start
    for each in made:
        each.end()


def test_a_killed_process_frees_its_share_a_second_later(member: Callable[[str], Process]) -> None:
    first, second = member("a"), member("b")
    assert first.renew(10, 0) == (10, 0)
    assert second.renew(4, 0) == (0, 10)
    first.end()
    assert second.renew(4, 0) == (0, 10)  # its connections may still be there
    time.sleep(1.2)
    assert second.renew(4, 0) == (4, 0)


def test_a_frozen_process_keeps_its_share(member: Callable[[str], Process]) -> None:
    first, second = member("a"), member("b")
    assert first.renew(10, 0) == (10, 0)
    os.kill(first.process.pid, 19)
    assert second.renew(4, 0) == (0, 10)
    time.sleep(1.5)
    assert second.renew(4, 0) == (0, 10)
    os.kill(first.process.pid, 18)
    assert first.renew(10, 10) == (6, 0)
    assert first.renew(10, 6) == (6, 0)
    assert second.renew(4, 0) == (4, 6)


def test_a_file_that_is_left_over_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "budget"
    path.write_text(json.dumps({"dead": [9, 9, 9, None, 7, 1], "older": [9, 9, 9, 5e9, 7, 2]}))
    store = LocalStore(str(path), "x")
    assert store.renew(Request("a", 1, 5, 0, 0), Terms(10, ttl=inf), []).share == 1
    time.sleep(1.2)
    assert store.renew(Request("a", 2, 5, 0, 1), Terms(10, ttl=inf), []).share == 5
    store.release("a", 3, [])
    assert json.loads(path.read_text()) == {}
    store.close()


def test_a_directory_of_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(StoreError, match="must belong to this user alone"):
        LocalStore("", "x").renew(Request("a", 1, 5, 0, 0), Terms(10, ttl=inf), [])
