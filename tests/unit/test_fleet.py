"""`FleetBudget` and the pools that have one, in one process."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pooling
from pooling import FleetBudget, MySQLPool, Pool, PoolTimeout, PostgresPool, from_url
from pooling.core.runtime.reaper import LISTENERS
from pooling.core.sizing import limit_size
from pooling.fleet.budget import VARIABLE
from pooling.fleet.local import LocalStore
from pooling.observe.figures import Recorder
from pooling.observe.local import LocalHistory
from pooling.observe.view import Viewer
from pooling.testing import FakeAdapter, VirtualClock
from pooling.tools.top.lists import budget_of
from tests.integration.tools import run_forking, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"local:{tmp_path / 'budget'}"


@pytest.fixture
def pools() -> Iterator[list[Pool[Any]]]:
    """Pools that are closed at the end."""
    made: list[Pool[Any]] = []
    yield made
    for pool in made:
        pool.close()


# -- arguments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"total": 0}, ValueError, "FleetBudget.total must be at least 1, not 0"),
        ({"total": "60"}, TypeError, "FleetBudget.total must be a whole number, not '60'"),
        ({"total": True}, TypeError, "FleetBudget.total must be a whole number, not True"),
        ({"total": 5, "floor": 0}, ValueError, "FleetBudget.floor must be at least 1"),
        ({"total": 5, "max_members": 0}, ValueError, "FleetBudget.max_members must be at least 1"),
        ({"total": 5, "floor": 6}, ValueError, "FleetBudget.total must be enough for floor=6: at least 6, not 5"),
        ({"total": 23, "floor": 2, "max_members": 12}, ValueError, "for 12 members with floor=2: at least 24, not 23"),
        (
            {"total": 24, "floor": 2, "max_members": 12, "store": "postgresql:"}, ValueError,
            "for 12 members with floor=2 and 1 for the store: at least 25, not 24",
        ),
        ({"total": 5, "store": "etcd://x"}, ValueError, "FleetBudget.store must be 'local:', 'postgresql:' or begin"),
        ({"total": 5, "store": "amqp://me:secret@x"}, ValueError, "not 'amqp://\\*\\*\\*@x'"),
        ({"total": 5, "store": "local:/a\0b"}, ValueError, "a local store needs a path and a name that files can have"),
        ({"total": 5, "store": None}, TypeError, "FleetBudget.store must be a string"),
        ({"total": 5, "name": "a b"}, ValueError, "FleetBudget.name must be 1 to 60 letters"),
        ({"total": 5, "name": "it's"}, ValueError, "FleetBudget.name must be 1 to 60 letters"),
    ],
)  # fmt: skip
def test_bad_argument(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        FleetBudget(**arguments)


def test_one_budget_of_a_name_in_a_process(path: str) -> None:
    budget = FleetBudget(9, store=path)
    with pytest.raises(ValueError, match="this process has a budget 'default' in this store"):
        FleetBudget(9, store=path)
    FleetBudget(9, store=path, name="other")
    del budget
    gc.collect()
    FleetBudget(9, store=path)


@pytest.mark.parametrize("separator", [",", " ", ", "])
def test_a_text_means_a_budget(path: str, separator: str) -> None:
    text = separator.join(["60", "floor=2", f"store={path}", "max_members=24", "name=orders"])
    budget = FleetBudget.parse(text)
    assert (budget.terms[:3], budget.name, budget.store) == ((60, 2, 24), "orders", path)
    assert FleetBudget.parse(text) is budget


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "total must be a whole number"),
        ("many", "total must be a whole number, not 'many'"),
        ("floor=1", "needs a total, such as 60,store=postgresql:"),
        ("60,61", "has total twice"),
        ("60,size=3", "has no part 'size'; it has total, floor, store, max_members, name"),
        ("60,floor=x", "floor must be a whole number, not 'x'"),
        ("60,floor=61", "FleetBudget.total must be enough"),
    ],
)
def test_bad_text(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        FleetBudget.parse(text)


def test_a_url_has_a_budget(path: str) -> None:
    pool = from_url(f"postgresql://app@db/orders?max_size=7&budget=60+store={path}+name=url&sslmode=require")
    assert pool.budget.terms.total == 60 and pool.settings.max_size == 7
    other = from_url(f"mysql://app@db/orders?budget=60+store={path}+name=url")
    assert other.budget is pool.budget
    cache = from_url(f"redis://cache/0?budget=8+store={path}+name=cache")
    assert cache.budget.terms.total == 8
    with pytest.raises(ValueError, match="postgresql://app@db/orders.*needs a total"):
        from_url("postgresql://app@db/orders?budget=floor=2")


def test_the_environment_has_a_budget_for_databases(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"60,store={path}")
    pool, other = PostgresPool("host=db"), MySQLPool("mysql://app@db/orders")
    assert pool.budget is other.budget is not None
    assert FleetBudget.parse(f"60,store={path}") is pool.budget
    own = FleetBudget(5, store=path, name="own")
    assert PostgresPool("host=db", budget=own).budget is own
    assert Pool(object).budget is None
    monkeypatch.setenv(VARIABLE, "sixty")
    with pytest.raises(ValueError, match="POOLING_BUDGET: budget: total must be a whole number, not 'sixty'"):
        PostgresPool("host=db")
    monkeypatch.setenv(VARIABLE, " ")
    assert PostgresPool("host=db").budget is None


def test_what_is_no_budget_is_refused(path: str) -> None:
    with pytest.raises(TypeError, match="budget must be a pooling.FleetBudget, not 60"):
        Pool(object, budget=60)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a pool with a clock of its own cannot have a budget"):
        Pool(object, budget=FleetBudget(5, store=path), clock=VirtualClock())


# -- pools ------------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_use(path: str, tmp_path: Path) -> None:
    program = f"""
import os, threading
from pooling import FleetBudget, Pool
pool = Pool(object, budget=FleetBudget(6, store={path!r}))
print(threading.active_count(), os.listdir({str(tmp_path)!r}), repr(pool))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "1 [] <Pool 'pool-1': 0/0 in use, 0 idle, 0 waiting>\n"


def test_nothing_is_opened_for_a_pool_that_is_not_used_while_others_are(
    path: str, tmp_path: Path, pools: list[Pool[Any]]
) -> None:
    pool, other = Pool(adapter=FakeAdapter(), budget=FleetBudget(6, store=path)), Pool(adapter=FakeAdapter())
    pools += [pool, other]
    with other.acquire(30):
        time.sleep(1.5)
    assert os.listdir(tmp_path) == [] and pool.stats()["budget"]["members"] is None
    pool.open(30)
    assert pool.stats()["budget"]["members"] == 1


def test_a_pool_gets_what_it_needs_and_no_more_than_the_total(path: str, pools: list[Pool[Any]]) -> None:
    pool = Pool(adapter=FakeAdapter(), max_size=10, budget=FleetBudget(4, store=path))
    pools.append(pool)
    leases = [pool.acquire(30) for _ in range(4)]
    with pytest.raises(PoolTimeout, match=r"\(4/4 in use, .*budget: 4 of 4, 0 held by 0 other processes\)"):
        pool.acquire(0.1)
    assert pool.stats()["max_size"] == 4
    assert {"total": 4, "share": 4, "members": 1, "held_by_others": 0}.items() <= pool.stats()["budget"].items()
    for lease in leases:
        lease.release()


def test_pools_of_a_process_share_what_it_has(path: str, pools: list[Pool[Any]]) -> None:
    budget = FleetBudget(4, store=path)
    one, other = (Pool(adapter=FakeAdapter(), min_size=0, max_size=10, budget=budget) for _ in range(2))
    pools += [one, other]
    leases = [one.acquire(30) for _ in range(4)]
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(other.acquire(30)))
    waiter.start()
    wait_until(lambda: other.stats()["waiting"])
    assert one.stats()["size"] + other.stats()["size"] == 4
    for lease in leases[:2]:
        lease.release()
    waiter.join()
    assert other.stats()["size"] >= 1 and one.stats()["size"] + other.stats()["size"] <= 4
    for lease in [*leases[2:], *got]:
        lease.release()


def test_open_waits_for_the_share(path: str, pools: list[Pool[Any]]) -> None:
    pool = Pool(adapter=FakeAdapter(), min_size=3, budget=FleetBudget(2, store=path))
    pools.append(pool)
    pool.open(30)
    assert pool.stats()["idle"] in (1, 2)  # all that the budget allows, as far as it has come
    wait_until(lambda: pool.stats()["idle"] == 2)


def test_another_limit_is_kept_too(path: str, pools: list[Pool[Any]]) -> None:
    pool = Pool(adapter=FakeAdapter(), max_size=10, budget=FleetBudget(8, store=path))
    pools.append(pool)
    limit_size(pool.engine, "another", 2)
    leases = [pool.acquire(30) for _ in range(2)]
    with pytest.raises(PoolTimeout):
        pool.acquire(0.5)
    assert pool.stats()["budget"]["share"] <= 3
    for lease in leases:
        lease.release()


def test_figures_have_the_share(path: str, pools: list[Pool[Any]]) -> None:
    budget = FleetBudget(4, store=path)
    pool = Pool(adapter=FakeAdapter(), max_size=10, name="of-budget", budget=budget)
    pools.append(pool)
    lease = pool.acquire(30)
    gauges = Recorder().sample()["of-budget"]["gauges"]
    assert (gauges["budget_total"], gauges["budget_share"], gauges["max"]) == (4, 1, 1)
    lease.release()


def test_a_dropped_pool_is_collected(path: str) -> None:
    budget = FleetBudget(4, store=path)
    pool: Pool[Any] | None = Pool(adapter=FakeAdapter(), budget=budget)
    assert pool is not None
    reference = weakref.ref(pool)
    with pool.acquire(30):
        pass
    del pool
    wait_until(lambda: gc.collect() is not None and reference() is None)


def test_closed_pools_return_the_share(path: str, tmp_path: Path, pools: list[Pool[Any]]) -> None:
    budget = FleetBudget(4, store=path)
    pool = Pool(adapter=FakeAdapter(), budget=budget)
    with pool.acquire(30):
        assert (tmp_path / "budget").read_text() != "{}"
    pool.close()
    wait_until(lambda: (tmp_path / "budget").read_text() == "{}")
    pools.append(Pool(adapter=FakeAdapter(), budget=budget))
    with pools[0].acquire(30):
        assert budget.stats()["share"] == 1


def test_the_exit_returns_the_share(path: str, tmp_path: Path) -> None:
    program = f"""
from pooling import FleetBudget, Pool
pool = Pool(object, budget=FleetBudget(6, store={path!r}))
with pool.acquire():
    print(open({str(tmp_path / 'budget')!r}).read() != "{{}}")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("True\n", "")
    assert (tmp_path / "budget").read_text() == "{}"


def test_a_forked_child_begins_at_zero_and_gets_a_share_of_its_own(path: str) -> None:
    run_forking(f"""
import os
from pooling import FleetBudget, Pool
pool = Pool(object, max_size=10, budget=FleetBudget(6, store={path!r}))
leases = [pool.acquire(30) for _ in range(3)]
child = os.fork()
if child == 0:
    assert pool.engine.state.max_size == 0, pool
    mine = [pool.acquire(30) for _ in range(3)]
    assert pool.stats()["budget"]["members"] == 2
    try:
        pool.acquire(0)
    except Exception as error:
        assert "3 of 6, 3 held by 1 other process" in str(error), error
    for lease in mine:
        lease.release()
    print("child ok", flush=True)
    raise SystemExit
assert os.waitpid(child, 0)[1] == 0
for lease in leases:
    lease.release()
print("parent ok", flush=True)
""")


def test_the_store_that_gives_no_answer_is_logged_once(
    tmp_path: Path, pools: list[Pool[Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooling.fleet.membership.SETTLED", 0.0)
    folder = tmp_path / "missing"
    pool = Pool(adapter=FakeAdapter(), budget=FleetBudget(6, floor=2, max_members=2, store=f"local:{folder / 'x'}"))
    pools.append(pool)
    leases = [pool.acquire(30) for _ in range(2)]  # the floor
    with pytest.raises(PoolTimeout, match="budget: 2 of 6, no answer from the store for"):
        pool.acquire(2.5)
    lost = [record for record in caplog.records if getattr(record, "pooling_event", "") == "budget_lost"]
    assert len(lost) == 1 and "no more than the 2 connections" in lost[0].getMessage()
    folder.mkdir()
    with pool.acquire(30):
        pass
    assert [record for record in caplog.records if getattr(record, "pooling_event", "") == "budget_found"]
    for lease in leases:
        lease.release()


def test_a_store_that_answers_now_and_then_is_one_incident(
    path: str, pools: list[Pool[Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, failures = LocalStore.renew, itertools.count()

    def flap(*arguments: Any) -> Any:
        if next(failures) % 2:
            raise ConnectionError("reset by peer")
        return renew(*arguments)

    monkeypatch.setattr(LocalStore, "renew", flap)
    pool = Pool(adapter=FakeAdapter(), max_size=6, budget=FleetBudget(2, store=path))
    pools.append(pool)
    leases = [pool.acquire(30) for _ in range(2)]
    deadline = time.monotonic() + 60
    while next(failures) < 12 and time.monotonic() < deadline:  # it renews while it lacks connections
        with pytest.raises(PoolTimeout):
            pool.acquire(0.5)
    events = [getattr(record, "pooling_event", "") for record in caplog.records]
    assert (events.count("budget_lost"), events.count("budget_found")) == (1, 0)
    for lease in leases:
        lease.release()


def test_a_store_that_hangs_is_reported_too(
    path: str, pools: list[Pool[Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooling.fleet.membership.HANGS", 0.5)
    monkeypatch.setattr("pooling.fleet.membership.SETTLED", 0.0)
    go_on = threading.Event()
    renew = LocalStore.renew

    def hang(*arguments: Any) -> Any:
        go_on.wait(30)
        return renew(*arguments)

    monkeypatch.setattr(LocalStore, "renew", hang)
    pool = Pool(adapter=FakeAdapter(), budget=FleetBudget(4, store=path))
    pools.append(pool)
    with pytest.raises(PoolTimeout, match=r"budget: 0 of 4, no answer from the store for . s \(TimeoutError: none"):
        pool.acquire(2.5)
    go_on.set()
    with pool.acquire(30):
        pass
    events = [getattr(record, "pooling_event", "") for record in caplog.records]
    assert (events.count("budget_lost"), events.count("budget_found")) == (1, 1)


def test_it_is_public() -> None:
    assert pooling.FleetBudget is FleetBudget and FleetBudget.__module__ == "pooling"
    assert os.environ.get(VARIABLE) is None


def test_viewers_show_the_share(path: str, pools: list[Pool[Any]]) -> None:
    pool = Pool(adapter=FakeAdapter(), max_size=10, name="viewed", budget=FleetBudget(4, store=path))
    pools += [pool, Pool(adapter=FakeAdapter(), name="viewed-without")]
    history = LocalHistory()
    try:
        with pool.acquire(30):
            found = {one["name"]: one["budget"] for one in Viewer(history.all_records).view()["pools"]}
        assert (found["viewed"], found["viewed-without"]) == ([1, 4], None)
        assert str(budget_of({"budget": [1, 4]})) == "  budget: 1 of 4" and budget_of({}) is None
    finally:
        history.observe_no_more()
        LISTENERS.remove(history.listen)
