"""The manager: names, warm-up, health, ordered shutdown, and pools of other libraries."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from pooling import (
    Pool,
    PoolError,
    PoolManager,
    PoolSettings,
    PoolTimeout,
    application_lifespan,
)
from pooling import manager as manager_module
from pooling.observe import PerformanceMonitor
from pooling.testing import FakeAdapter

NONE = PoolSettings(min_size=0, max_size=2, health_check_interval=None, acquire_timeout=0.0)
ONE = NONE.replace(min_size=1, max_size=1)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a pool's own error may arrive late."""
    monkeypatch.setattr(manager_module, "GRACE", 30.0)


@pytest.fixture
def manager() -> PoolManager:
    return PoolManager(startup_timeout=0.0, shutdown_timeout=0.0)


class Quick(FakeAdapter):
    """Resources that are created in the borrower's thread, so that no test waits for a worker."""

    def __init__(self) -> None:
        super().__init__(blocking=False)


def down(error: BaseException | None = None) -> Quick:
    adapter = Quick()
    adapter.fail("create", error or ConnectionRefusedError("nobody there"), times=1000)
    return adapter


# -- names -----------------------------------------------------------------------


def test_pools_by_name(manager: PoolManager) -> None:
    ldap = manager.create_pool("ldap", object, settings=NONE)
    fake = manager.create_pool("fake", FakeAdapter(), settings=NONE)
    db = manager.create_pool("db", "sqlite:///x.db?max_size=3")
    assert manager.get_pool("ldap") is ldap is manager["ldap"]
    assert (ldap.name, fake.name, db.settings.max_size) == ("ldap", "fake", 3)
    assert list(manager) == ["ldap", "fake", "db"]
    assert (len(manager), "db" in manager, "no" in manager) == (3, True, False)
    assert repr(manager) == "<PoolManager: ldap, fake, db>"
    assert db.stats()["size"] == 0


def test_unknown_name_error_lists_the_known_names(manager: PoolManager) -> None:
    with pytest.raises(KeyError, match="no pool 'db'; existing pools: none"):
        manager.get_pool("db")
    manager.create_pool("a", object)
    for call in (manager.get_pool, manager.close_pool, manager.lease):
        with pytest.raises(KeyError, match="existing pools: 'a'"):
            call("db")


def test_same_arguments_return_the_same_pool(manager: PoolManager) -> None:
    first = manager.create_pool("a", object, settings=NONE)
    assert manager.create_pool("a", object, settings=NONE) is first
    for source, settings in ((object, ONE), (list, NONE), ("sqlite://", NONE)):
        with pytest.raises(ValueError, match="name 'a' is already used by another pool, or by one with other settings"):
            manager.create_pool("a", source, settings=settings)
    other = Pool(object, name="a")
    with pytest.raises(ValueError, match="name 'a' is already used"):
        manager.add_pool(other)
    manager.add_pool(other, "b")
    manager.add_pool(other, "b")
    assert manager["b"] is other


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.create_pool("a", 3), TypeError, "source must be a URL, a function or an Adapter, not int"),
        (lambda m: m.create_pool("", object), TypeError, "name must be a non-empty string"),
        (lambda m: m.create_pool("a", object, settings=3), TypeError, "settings must be"),
        (lambda m: m.create_pool("a", "mysq://h"), ValueError, "unknown scheme 'mysq'"),
        (lambda m: m.add_pool(object()), TypeError, "a SQLAlchemy Engine or a pymongo.MongoClient, not object"),
    ],
)
def test_other_objects_are_refused(manager: PoolManager, call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(manager)
    assert len(manager) == 0


def test_name_of_a_closed_pool_can_be_used_again(manager: PoolManager) -> None:
    first = manager.create_pool("a", object)
    manager.close_pool("a")
    assert first.closed and "a" not in manager
    assert manager.create_pool("a", list) is not first


def test_names_can_be_used_again_after_shutdown(manager: PoolManager) -> None:
    first, guest = manager.create_pool("a", object), Pool(object, name="guest")
    manager.add_pool(guest, owned=False)
    manager.close_all()
    assert first.closed and list(manager) == ["guest"] and not guest.closed
    second = manager.create_pool("a", object)
    assert second is not first and not second.closed
    manager.close_all()
    assert manager.create_pool("a", list) is manager["a"]


def test_concurrent_create_pool_makes_one_pool(manager: PoolManager) -> None:
    made: list[Any] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait(30)
        made.append(manager.create_pool("a", object, settings=NONE))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(map(id, made))) == 1


def test_manager_from_a_mapping_and_from_the_environment() -> None:
    mine = Pool(object, name="mine")
    manager = PoolManager.from_mapping({
        "db": "sqlite:///x.db", "extra": {"url": "sqlite://", "critical": False}, "own": mine,
    })  # fmt: skip
    assert list(manager) == ["db", "extra", "own"] and manager["own"] is mine
    manager = PoolManager.from_env("X_", {"X_DATABASE_URL": "sqlite:///x.db", "X_DB_MAX_SIZE": "7"})
    assert manager["db_pool"].settings.max_size == 7
    assert list(manager) == ["http_pool", "db_pool"]


# -- warm-up ---------------------------------------------------------------------


def test_startup_reports_what_is_ready(manager: PoolManager, caplog: pytest.LogCaptureFixture) -> None:
    manager.create_pool("good", Quick(), settings=ONE)
    manager.create_pool("bad", down(), settings=ONE)
    with caplog.at_level(logging.WARNING):
        report = manager.startup(0.0)
    assert not report and report["good"] and not report["bad"]
    assert isinstance(report["bad"].error, PoolTimeout)
    assert "good ready after" in str(report) and "bad NOT ready: PoolTimeout" in str(report)
    assert any("not all pools are ready" in record.getMessage() for record in caplog.records)
    assert manager["good"].stats()["idle"] == 1


def test_strict_startup_raises(manager: PoolManager) -> None:
    manager.create_pool("bad", down(), settings=ONE)
    with pytest.raises(PoolError, match="bad NOT ready") as caught:
        manager.startup(strict=True)
    assert isinstance(caught.value.__cause__, PoolTimeout)


def test_pools_warm_up_at_the_same_time(manager: PoolManager) -> None:
    """Each creation waits for all the others: one after the other would never end."""
    barrier = threading.Barrier(3)
    for name in "abc":
        manager.create_pool(name, lambda: barrier.wait(30) or object(), settings=ONE)
    assert manager.startup(30.0)
    manager.shutdown()


def test_one_hung_pool_does_not_delay_the_others(manager: PoolManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "GRACE", 0.0)
    adapter = Quick()
    adapter.hold("create")  # in the thread that opens the pool
    manager.create_pool("hangs", adapter, settings=ONE)
    report = manager.startup(0.0)
    assert not report["hangs"]
    assert isinstance(report["hangs"].error, TimeoutError)
    adapter.let_go("create")


# -- shutdown --------------------------------------------------------------------


def test_shutdown_closes_in_reverse_order(manager: PoolManager) -> None:
    order: list[str] = []
    for name in "abc":
        pool = manager.create_pool(name, object)
        pool.close = lambda timeout, name=name: order.append(name)  # type: ignore[method-assign,assignment,misc]
    guest = Pool(object, name="guest")
    manager.add_pool(guest, owned=False)
    manager.shutdown()
    assert order == ["c", "b", "a"]
    assert not guest.closed
    assert manager.closing
    with pytest.raises(PoolError, match="cannot add pool 'd': the manager was shut down"):
        manager.create_pool("d", object)
    manager.shutdown()


def test_requests_in_progress_finish_during_shutdown() -> None:
    """While shutdown waits for the last pool, those before it still lend."""
    manager = PoolManager(shutdown_timeout=30.0)
    first = manager.create_pool("first", Quick(), settings=NONE)
    last = manager.create_pool("last", Quick(), settings=NONE)
    lent, closing = threading.Event(), threading.Event()
    found: list[object] = []

    def work() -> None:
        with last.acquire():
            lent.set()
            assert closing.wait(30)
            with first.acquire() as resource:
                found.append(resource)

    thread = threading.Thread(target=work)
    thread.start()
    assert lent.wait(30)
    real = last.close

    def close(timeout: float) -> None:
        closing.set()
        real(timeout)

    last.close = close  # type: ignore[method-assign,assignment]
    manager.shutdown()
    thread.join()
    assert found and first.closed and last.closed


def test_hung_close_does_not_keep_other_pools_open(
    manager: PoolManager, caplog: pytest.LogCaptureFixture
) -> None:
    first = manager.create_pool("first", object)
    last = manager.create_pool("last", object)

    def fail(timeout: float) -> None:
        raise OSError("no")

    last.close = fail  # type: ignore[method-assign,assignment]
    manager.shutdown()
    assert first.closed
    assert "closing pool 'last' failed" in caplog.text


def test_with_a_manager(manager: PoolManager) -> None:
    pool = manager.create_pool("a", Quick(), settings=ONE)
    with manager as same:
        assert same is manager and pool.stats()["idle"] == 1
    assert pool.closed


# -- health ----------------------------------------------------------------------


def test_health_up(manager: PoolManager) -> None:
    adapter = Quick()
    manager.create_pool("a", adapter, settings=NONE)
    health = manager.health_check()
    assert (health.status, health["a"].status, health["a"].reason) == ("up", "up", None)
    assert health and health["a"] and health["a"].seconds >= 0
    assert adapter.calls["validate"] == 1  # a round trip was made, although it was just created
    assert manager["a"].stats()["in_use"] == 0


def test_health_without_pools_is_up(manager: PoolManager) -> None:
    assert manager.health_check().status == "up"


def test_health_down_says_why(manager: PoolManager) -> None:
    manager.create_pool("bad", down(), settings=NONE)
    health = manager.health_check(0.0)
    assert not health and not health["bad"]
    assert health["bad"].status == health.status == "down"
    assert "ConnectionRefusedError: nobody there" in (health["bad"].reason or "")
    assert health.to_dict()["pools"]["bad"]["status"] == "down"


def test_noncritical_pool_that_is_down_degrades_the_whole(manager: PoolManager) -> None:
    manager.create_pool("good", Quick(), settings=NONE)
    manager.create_pool("bad", down(), settings=NONE, critical=False)
    health = manager.health_check(0.0)
    assert (health.status, health["bad"].status, bool(health)) == ("degraded", "down", True)


def test_exhausted_is_degraded(manager: PoolManager) -> None:
    pool = manager.create_pool("a", Quick(), settings=ONE)
    with pool.acquire():
        health = manager.health_check(0.0)
    assert health["a"].status == health.status == "degraded"
    assert health["a"].reason == "exhausted: 1 of 1 in use, 0 waiting"


def test_paused_is_degraded_and_closed_is_down(manager: PoolManager) -> None:
    pool = manager.create_pool("a", Quick(), settings=ONE)
    pool.pause()
    assert manager.health_check(0.0)["a"].status == "degraded"
    assert manager.get_performance_summary()["status"] == "degraded"
    pool.close()
    health = manager.health_check(0.0)
    assert (health["a"].status, manager.get_performance_summary()["status"]) == ("down", "down")


def test_a_server_that_could_not_be_reached_last_is_down_without_asking_it(manager: PoolManager) -> None:
    adapter = Quick()
    adapter.fail("create", ConnectionError("refused"), times=1000)
    pool = manager.create_pool("a", adapter, settings=ONE, critical=False)
    assert manager.get_performance_summary()["status"] == "up"
    with pytest.raises(PoolTimeout):
        pool.acquire(0.01)
    monitor = PerformanceMonitor([pool], enabled=False)
    assert manager.get_performance_summary()["status"] == "degraded"  # it is not critical
    assert monitor.get_performance_summary()["status"] == "down"
    assert manager.health_check(0.1).status == "degraded" and manager.health_check(0.1)["a"].status == "down"


def test_stale_connections_are_not_an_outage(manager: PoolManager) -> None:
    adapter = Quick()
    pool = manager.create_pool("a", adapter, settings=NONE)
    with pool.acquire(), pool.acquire():
        pass
    adapter.fail("validate", ConnectionError("stale"), times=2)
    assert manager.health_check()["a"].status == "up"
    assert (adapter.made, pool.stats()["in_use"]) == (3, 0)


def test_server_that_fails_every_round_trip_is_down(manager: PoolManager) -> None:
    adapter = Quick()
    adapter.fail("validate", ConnectionError("no answer"), times=100)
    manager.create_pool("a", adapter, settings=NONE)
    health = manager.health_check()
    assert (health["a"].status, health["a"].reason) == ("down", "ConnectionError: no answer")
    assert manager["a"].stats()["in_use"] == 0


def test_pool_that_does_not_answer_is_down(manager: PoolManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "GRACE", 0.0)
    adapter = Quick()
    adapter.hold("validate")
    manager.create_pool("a", adapter, settings=NONE)
    health = manager.health_check(0.0)
    assert (health["a"].status, health["a"].reason) == ("down", "TimeoutError: no answer within 0 s")
    adapter.let_go("validate")


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [(None, "up", None), ("slow", "degraded", "slow"), (OSError("x"), "down", "OSError: x")],
)
def test_a_pools_own_probe_is_used(
    manager: PoolManager, answer: Any, status: str, reason: str | None
) -> None:
    class Knowing(Pool[object]):
        def probe(self, timeout: float | None = None) -> str | None:
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

    manager.add_pool(Knowing(object, name="a"))
    found = manager.health_check()["a"]
    assert (found.status, found.reason) == (status, reason)


def test_pools_are_checked_at_the_same_time(manager: PoolManager) -> None:
    barrier = threading.Barrier(3)

    class Meeting(Quick):
        def validate(self, resource: Any, timeout: float) -> None:
            barrier.wait(30)

    for name in "abc":
        manager.create_pool(name, Meeting(), settings=NONE)
    assert manager.health_check(30.0).status == "up"


# -- metrics ---------------------------------------------------------------------


def test_metrics_and_summary(manager: PoolManager) -> None:
    pool = manager.create_pool("db_pool", Quick(), settings=NONE)
    manager.create_pool("http_pool", Quick(), settings=NONE)
    with pool.acquire():
        summary = manager.get_performance_summary()
    assert summary["status"] == "up"
    assert summary["database_pool"]["active_connections"] == summary["db_pool"]["active_connections"] == 1
    assert summary["http_pool"]["success_rate"] == 1.0
    assert summary["pools"].keys() == manager.metrics().keys() == {"db_pool", "http_pool"}
    assert manager.metrics()["db_pool"]["connection_requests"] == 1


def test_the_table(manager: PoolManager) -> None:
    pool = manager.create_pool("orders", Quick(), settings=NONE)
    manager.create_pool("over", Quick(), settings=NONE).close()
    out = io.StringIO()
    with pool.acquire():
        manager.print_summary(out)
    head, orders, over = out.getvalue().splitlines()
    assert head.split() == ["pool", "kind", "in", "use", "idle", "waiting", "requests", "errors", "mean", "wait"]
    assert orders.split()[:5] == ["orders", "Pool", "1/2", "0", "0"]
    assert over.split()[2] == "closed"


def test_lease_takes_a_resource_of_a_named_pool(manager: PoolManager) -> None:
    pool = manager.create_pool("a", Quick(), settings=NONE)
    with manager.lease("a"):
        assert pool.stats()["in_use"] == 1
    assert pool.stats()["in_use"] == 0


# -- pools of other libraries ----------------------------------------------------


class ConnectionPool:
    """What a manager uses of psycopg_pool's."""

    __module__ = "psycopg_pool.pool"
    name = "foreign"
    closed = False

    def __init__(self) -> None:
        self.calls: list[object] = []

    def open(self, *, wait: bool, timeout: float) -> None:
        self.calls.append(("open", wait))

    def close(self, *, timeout: float) -> None:
        self.calls.append("close")
        self.closed = True

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Any]:
        yield SimpleNamespace(execute=self.calls.append)

    def get_stats(self) -> dict[str, int]:
        return {"pool_size": 4, "pool_available": 1, "pool_max": 8, "requests_num": 10, "requests_errors": 2,
                "requests_waiting": 0, "requests_wait_ms": 50}  # fmt: skip


class MyPool(ConnectionPool):
    """A subclass in the user's own module."""


MyPool.__module__ = "app"


@pytest.mark.parametrize("kind", [ConnectionPool, MyPool])
def test_pool_of_psycopg_can_be_added(manager: PoolManager, kind: Callable[[], Any]) -> None:
    pool = kind()
    manager.add_pool(pool)
    assert manager["foreign"] is pool
    assert manager.startup()
    assert manager.health_check()["foreign"].status == "up"
    figures = manager.metrics()["foreign"]
    assert (figures["active_connections"], figures["idle_connections"], figures["max_size"]) == (3, 1, 8)
    assert (figures["error_rate"], figures["success_rate"], figures["avg_acquisition_time_ms"]) == (0.2, 0.8, 5.0)
    manager.print_summary(io.StringIO())
    with manager.lease("foreign"):
        pass
    manager.shutdown()
    assert pool.calls == [("open", True), "SELECT 1", "close"]
    assert manager.health_check()["foreign"].status == "down"


class QueuePool:
    """What a manager uses of SQLAlchemy's."""

    def __init__(self, overflow: int) -> None:
        self._max_overflow = overflow

    def size(self) -> int:
        return 2

    checkedout = size

    def checkedin(self) -> int:
        return 0


class Engine:
    """One of SQLAlchemy's, all of whose connections are lent, if they have a limit."""

    __module__ = "sqlalchemy.engine.base"

    def __init__(self, overflow: int) -> None:
        self.pool = QueuePool(overflow)

    @contextmanager
    def connect(self) -> Iterator[Any]:
        yield SimpleNamespace(exec_driver_sql=lambda sql: None)


@pytest.mark.parametrize(("overflow", "status", "limit", "shown"), [(0, "degraded", 2, "2/2"), (-1, "up", 0, "2/any")])
def test_sqlalchemy_engine_without_a_limit(
    manager: PoolManager, overflow: int, status: str, limit: int, shown: str
) -> None:
    manager.add_pool(Engine(overflow), "orm")
    assert manager.health_check()["orm"].status == status
    assert manager.metrics()["orm"]["max_size"] == limit
    manager.print_summary(out := io.StringIO())
    assert shown in out.getvalue()


def test_sqlalchemy_engine_has_a_timeout_of_its_own(manager: PoolManager) -> None:
    manager.add_pool(Engine(0), "orm")
    with manager.lease("orm"):
        pass
    with pytest.raises(ValueError, match="timeout must be None for a SQLAlchemy engine, which uses its own"):
        manager.lease("orm", 0.1)


# -- lifespan --------------------------------------------------------------------


def test_lifespan() -> None:
    with application_lifespan(
        ":memory:", environ={"DB_MAX_CONNECTIONS": "2"}, pools={"extra": "sqlite://?min_size=0"}
    ) as manager:
        health = manager.health_check()
        assert health["http_pool"] and health["db_pool"] and health["extra"]
        assert manager["db_pool"].execute_query("SELECT 1") == [(1,)]
        db = manager["db_pool"]
        assert manager.get_performance_summary()["database_pool"]["queries"]["count"] >= 1
    assert manager.closing and db.closed


def test_lifespan_closes_after_an_error() -> None:
    given = PoolManager()
    pool = given.create_pool("a", Quick(), settings=NONE)
    with pytest.raises(RuntimeError, match="mine"), application_lifespan(manager=given) as manager:
        assert manager is given
        raise RuntimeError("mine")
    assert pool.closed


def test_strict_lifespan_closes_what_it_opened() -> None:
    manager = PoolManager()
    good = manager.create_pool("good", Quick(), settings=ONE)
    manager.create_pool("bad", down(), settings=ONE)
    entered = []
    with (
        pytest.raises(PoolError, match="bad NOT ready"),
        application_lifespan(manager=manager, startup_timeout=0.0, strict=True),
    ):
        entered.append(1)
    assert good.closed and not entered


def test_lifespan_takes_a_manager_or_a_database() -> None:
    with pytest.raises(TypeError, match="either a manager or a database"), application_lifespan(
        "x.db", manager=PoolManager()
    ):
        pass


@pytest.mark.parametrize("signals", [15, ["TERM"], [4711]])
def test_bad_signals_are_refused(signals: Any) -> None:
    words = "signals must be True, False or signal.Signals members"
    with pytest.raises(TypeError, match=words), application_lifespan(manager=PoolManager(), signals=signals):
        pass


@pytest.mark.parametrize("bad", [-1, "5", float("nan")])
def test_seconds_are_checked(manager: PoolManager, bad: Any) -> None:
    manager.create_pool("a", object)
    calls: tuple[Callable[[], object], ...] = (
        lambda: manager.startup(bad), lambda: manager.shutdown(bad), lambda: manager.health_check(bad),
        lambda: PoolManager(startup_timeout=bad), lambda: PoolManager(shutdown_timeout=bad),
    )  # fmt: skip
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="timeout must be"):
            call()


def test_signals_are_for_the_main_thread(caplog: pytest.LogCaptureFixture) -> None:
    def live() -> None:
        with application_lifespan(manager=PoolManager(), signals=True):
            pass

    thread = threading.Thread(target=live)
    thread.start()
    thread.join()
    assert "this is not the main thread" in caplog.text


