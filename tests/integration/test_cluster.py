"""`PostgresCluster` on a real primary with two streaming replicas that stay as they are; see `test_failover`."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pooling import PoolClosed, PoolManager, PoolTimeout, PoolUnavailable, PostgresCluster
from pooling.observe.sources import source_of
from tests.replication import Replication
from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]
PORT = "SELECT inet_server_port()"


@pytest.fixture(scope="module")
def servers(replication: Replication) -> Replication:
    """A primary and two replicas, which the tests leave running."""
    replication.execute(replication.primary, "CREATE TABLE counters (id int PRIMARY KEY, value int)")
    replication.catch_up()
    return replication


@pytest.fixture
def cluster(servers: Replication) -> Iterator[Callable[..., PostgresCluster]]:
    """Makes clusters that are closed after the test; the replay goes on after it."""
    made: list[PostgresCluster] = []

    def make(url: str | None = None, **arguments: Any) -> PostgresCluster:
        made.append(PostgresCluster(url or servers.url(), **{"name": "db", "max_size": 5, **arguments}))
        return made[-1]

    yield make
    for one in made:
        one.close()
    for replica in servers.replicas:
        servers.resume_replay(replica)


def label(server: PostgresServer) -> str:
    return f"127.0.0.1:{server.port}"


def until(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout:g} s: {what}"
        time.sleep(0.02)


def in_threads(*work: Callable[[], object]) -> None:
    """Run each in a thread of its own; raise the first error."""
    errors: list[BaseException] = []

    def run(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def ports_read(db: PostgresCluster, number: int = 200, **options: Any) -> dict[int, int]:
    found: dict[int, int] = {}
    for _ in range(number):
        port = db.read_query(PORT, **options)[0][0]
        found[port] = found.get(port, 0) + 1
    return found


# -- roles ------------------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_use(cluster: Any, servers: Replication) -> None:
    threads = threading.active_count()
    db = cluster()
    assert db.primary == label(servers.primary)  # what was given first
    assert [pool.stats()["size"] for pool in db.servers.values()] == [0, 0, 0]
    assert threading.active_count() == threads


def test_the_primary_is_found_wherever_it_stands(cluster: Any, servers: Replication) -> None:
    db = cluster(servers.url(*servers.replicas, servers.primary))
    assert db.execute_query(PORT) == [(servers.primary.port,)]
    assert db.primary == label(servers.primary)
    roles = {name: one["role"] for name, one in db.stats()["servers"].items()}
    assert roles == {label(servers.primary): "primary", **{label(one): "standby" for one in servers.replicas}}


def test_the_primary_is_found_at_the_first_connection(cluster: Any, servers: Replication) -> None:
    """Without waiting for the checks: a connection says itself whether it is one to a standby."""
    db = cluster(servers.url(*servers.replicas, servers.primary))
    for _ in range(20):
        with db.connection() as conn:
            assert conn.execute(PORT).fetchone() == (servers.primary.port,)


def test_writes_go_to_the_primary_and_reads_to_the_replicas(cluster: Any, servers: Replication) -> None:
    db = cluster(servers.primary.dsn, replicas=[one.dsn for one in servers.replicas])
    own = (servers.primary.port,)
    with db.connection() as conn:
        assert conn.execute(PORT).fetchone() == own
    with db.transaction() as conn:
        assert conn.execute(PORT).fetchone() == own
    with db.acquire() as conn:
        assert conn.execute(PORT).fetchone() == own
    assert db.execute_query(PORT) == [own]
    assert db.run(lambda conn: conn.execute(PORT).fetchone()) == own
    assert db.execute_many("INSERT INTO counters VALUES (%s, 0)", [(-1,), (-2,)]) == 2
    until(lambda: set(ports_read(db)) == {one.port for one in servers.replicas}, "both are read")
    replicas = {(one.port,) for one in servers.replicas}
    with db.read() as conn:
        assert conn.execute(PORT).fetchone() in replicas
    assert db.run_read(lambda conn: conn.execute(PORT).fetchone()) in replicas
    with db.acquire_read() as conn:
        assert conn.execute(PORT).fetchone() in replicas


def test_a_cluster_of_one_reads_from_the_primary_without_limit(cluster: Any, servers: Replication) -> None:
    db = cluster(servers.primary.dsn, max_size=3, primary_reads=1)
    with db.read() as one, db.read() as two, db.read() as three:
        assert {conn.execute(PORT).fetchone() for conn in (one, two, three)} == {(servers.primary.port,)}


def test_a_write_in_a_read_fails_everywhere(cluster: Any, servers: Replication) -> None:
    with_replicas, alone = cluster(), cluster(servers.primary.dsn)
    for db in (with_replicas, alone):
        for _ in range(3):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), db.read() as conn:
                conn.execute("INSERT INTO counters VALUES (99, 0)")
    closed = [pool.metrics.snapshot().closed for pool in with_replicas.servers.values()]
    assert not any(reasons.get("broken") for reasons in closed)  # the mistake costs no connection
    with alone.connection() as conn:  # and the next borrower may write again
        conn.execute("UPDATE counters SET value = value")


def test_holders_are_the_borrowers(cluster: Any) -> None:
    db = cluster()
    with db.connection(), db.read(), db.acquire(), db.acquire_read():
        lines = {holder.function for holder in db.holders()}
    assert lines == {"test_holders_are_the_borrowers"}


# -- lag --------------------------------------------------------------------------------------


def test_an_idle_primary_is_no_lag_and_a_paused_replay_is(cluster: Any, servers: Replication) -> None:
    late, other = servers.replicas
    db = cluster(max_lag=1.0)
    ports_read(db, 1)
    age = servers.execute(other, "SELECT extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float")
    time.sleep(max(0.0, 1.5 - age))  # the trap: by that measure both are behind
    until(lambda: db.stats()["servers"][label(late)]["lag"] == 0.0, "measured")
    until(lambda: set(ports_read(db)) == {late.port, other.port}, "both are read")

    servers.pause_replay(late)
    db.execute_query("INSERT INTO counters VALUES (-10, 0) ON CONFLICT (id) DO UPDATE SET value = counters.value + 1")
    until(lambda: not db.stats()["servers"][label(late)]["readable"], "left out")
    assert "s behind" in db.stats()["servers"][label(late)]["obstacle"]
    assert set(ports_read(db, 50)) == {other.port}
    assert "s behind" in db.probe()

    servers.resume_replay(late)
    until(lambda: db.stats()["servers"][label(late)]["readable"], "back")
    found = ports_read(db)
    assert 0 < found.get(late.port, 1) < 80  # it gets its share little by little


def test_reads_on_the_primary_stay_within_the_budget(cluster: Any, servers: Replication) -> None:
    db = cluster(max_lag=0.4, primary_reads=2, max_size=6)
    db.open()
    for replica in servers.replicas:
        servers.pause_replay(replica)
    db.execute_query("INSERT INTO counters VALUES (-20, 0) ON CONFLICT (id) DO UPDATE SET value = counters.value + 1")
    until(lambda: not any(one["readable"] for one in db.stats()["servers"].values()), "both are left out")
    at_once = itertools.count()
    most: list[int] = []

    def read() -> None:
        with db.read(30) as conn:
            assert conn.execute(PORT).fetchone() == (servers.primary.port,)
            most.append(db.stats()["primary_reads"]["in_use"])
            time.sleep(0.05)
        next(at_once)

    in_threads(*[read] * 12)
    assert max(most) == 2 and next(at_once) == 12
    assert db.stats()["primary_reads"] == {"in_use": 0, "waiting": 0, "max_size": 2}
    with db.read(), db.read():
        with pytest.raises(PoolTimeout, match="no replica to read from .* budget for reads was used up"), db.read(0.05):
            pass
        with db.connection() as conn:  # writers are not affected
            conn.execute("SELECT 1")

    none = cluster(max_lag=0.4, primary_reads=0)
    none.execute_query("SELECT 1")
    with pytest.raises(PoolUnavailable, match="primary_reads=0"), none.read(0.1):
        pass


# -- read your writes -------------------------------------------------------------------------


def test_reads_after_a_position_never_return_an_older_state(cluster: Any, servers: Replication) -> None:
    """10,000 tries in 4 threads, while the replay of each replica stops and goes on; others do return older states."""
    db = cluster(max_lag=60.0, max_size=8, primary_reads=None)
    stale, ended = [0], threading.Event()
    where: dict[int, int] = {}

    def write_and_read(number: int) -> None:
        db.execute_query("INSERT INTO counters VALUES (%s, 0)", (number,))
        for value in range(1, 2501):
            db.execute_query("UPDATE counters SET value = %s WHERE id = %s", (value, number))
            token = db.position()
            sql = "SELECT value, inet_server_port() FROM counters WHERE id = %s"
            found, port = db.read_query(sql, (number,), after=token)[0]
            assert found == value, f"{found} instead of {value} on {port}, after {token}"
            where[port] = where.get(port, 0) + 1
            if value % 10 == 0:
                rows = db.read_query(sql, (number,))
                stale[0] += not rows or rows[0][0] < value

    def stop_and_go() -> None:
        for replica in itertools.cycle(servers.replicas):
            servers.pause_replay(replica)
            ended.wait(0.2)
            servers.resume_replay(replica)
            if ended.wait(0.1):
                return

    lagging = threading.Thread(target=stop_and_go, daemon=True)
    lagging.start()
    try:
        in_threads(*[lambda number=number: write_and_read(number) for number in range(4)])  # type: ignore[misc]
    finally:
        ended.set()
        lagging.join(20)
    assert sum(where.values()) >= 9_900  # `where` is not exact: threads share it
    assert stale[0] > 0, "without a token the lag is seen"
    assert len(where) == 3, "replicas that have the position are used"


def test_what_was_seen_before_a_connection_was_made_does_not_count(cluster: Any, servers: Replication) -> None:
    """A replica that restarts begins at an earlier position than it had."""
    db = cluster(primary_reads=None)
    ports_read(db, 20)
    for replica in servers.replicas:
        servers.pause_replay(replica)
    db.execute_query("INSERT INTO counters VALUES (-30, 1)")
    token = db.position()
    for server in db.standing.servers:
        if server.role == "standby":  # as if it had been there, a minute ago
            server.lsn, server.seen_at = 1 << 60, time.monotonic() - 60
    for _ in range(10):
        assert db.read_query("SELECT value FROM counters WHERE id = -30", after=token) == [(1,)]


def test_a_position_is_text_that_another_process_can_use(cluster: Any, servers: Replication) -> None:
    db, other = cluster(), cluster()
    db.execute_query("INSERT INTO counters VALUES (-40, 7)")
    token = db.position()
    assert other.read_query("SELECT value FROM counters WHERE id = -40", after=token) == [(7,)]
    lsn = token.partition(":")[2]
    assert other.run_read(lambda conn: conn.execute("SELECT value FROM counters WHERE id = -40").fetchone(), after=lsn)
    servers.catch_up()
    found = ports_read(other, 50, after=token)
    assert servers.primary.port not in list(found)[1:]  # once a replica has it, the primary is left alone
    for wrong in ("", "x", "1:0", "0/", 7, b"0/1"):
        with pytest.raises((ValueError, TypeError), match="after must be a token"):
            db.read(after=wrong)


def test_a_role_that_cannot_see_timelines_reads_as_before(cluster: Any, servers: Replication) -> None:
    """Without ``pg_read_all_stats`` a replica's timeline is not known; where there was no failover, that is safe."""
    with suppress(psycopg.errors.DuplicateObject):
        servers.execute(servers.primary, "CREATE ROLE plain LOGIN")
    servers.catch_up()
    db = cluster(servers.url(query="?user=plain"))
    token = db.position()
    assert token.startswith("1:")
    until(lambda: servers.primary.port not in ports_read(db, 5, after=token), "replicas are read")
    db.standing.view = db.standing.view._replace(timeline=2)  # as after a failover
    until(lambda: set(ports_read(db, 5, after="2:0/1")) == {servers.primary.port}, "the primary is read", 3)


def test_a_server_that_refuses_positions_is_used_without_them(cluster: Any, servers: Replication) -> None:
    """As some clouds' do: its role is known, its lag is not, and reads with a token go to the primary."""
    functions = "pg_last_wal_replay_lsn(), pg_current_wal_insert_lsn()"
    with suppress(psycopg.errors.DuplicateObject):
        servers.execute(servers.primary, "CREATE ROLE limited LOGIN")
    servers.execute(servers.primary, f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC")
    servers.catch_up()
    try:
        db = cluster(servers.url(query="?user=limited"))
        assert db.execute_query(PORT) == [(servers.primary.port,)]
        assert set(ports_read(db, 20)) <= {one.port for one in servers.replicas}
        assert set(ports_read(db, 5, after="1:0/1")) == {servers.primary.port}
        with pytest.raises(psycopg.NotSupportedError, match="does not tell its position"):
            db.position()
    finally:
        servers.execute(servers.primary, f"GRANT EXECUTE ON FUNCTION {functions} TO PUBLIC")


def test_a_cluster_that_is_dropped_closes_its_connections(cluster: Any, servers: Replication) -> None:
    db = PostgresCluster(servers.url(), name="dropped", max_size=3)
    ports_read(db, 20)
    name = f"dropped.{label(servers.primary)}"
    count = f"SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%{name}'"
    until(lambda: servers.execute(servers.primary, count) >= 1, "it has connections")
    gone = weakref.ref(db)
    del db
    until(lambda: gone() is None and servers.execute(servers.primary, count) == 0, "they are closed")


# -- processes --------------------------------------------------------------------------------


def test_a_forked_child_finds_out_by_itself(cluster: Any, servers: Replication) -> None:
    """Also if the process forks while another thread learns of a server."""
    db = cluster()
    ports_read(db, 10)
    locked, forked = threading.Event(), threading.Event()

    def learn() -> None:
        with db.standing.lock:
            locked.set()
            forked.wait(30)

    learning = threading.Thread(target=learn, daemon=True)
    learning.start()
    locked.wait(30)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fresh = [pool.stats()["size"] for pool in db.servers.values()] == [0, 0, 0]
            wrote = db.execute_query(PORT) == [(servers.primary.port,)]
            read = set(ports_read(db, 30)) <= {one.port for one in servers.replicas}
            asked = all(server.seen_at > began for server in db.standing.servers)
            code = 0 if fresh and wrote and read and asked else 2
        finally:
            os._exit(code)
    forked.set()
    learning.join(30)
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended.append(status)
        return pid != 0

    try:
        until(has_ended, "the child has ended")
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    assert os.waitstatus_to_exitcode(ended[-1]) == 0
    assert set(ports_read(db, 30)) <= {one.port for one in servers.replicas}


_GREENLETS = """
import gevent.monkey; gevent.monkey.patch_all()
import sys, gevent
from pooling import PostgresCluster
db = PostgresCluster(sys.argv[1], name="db", max_size=3)
def work(number):
    for _ in range(20):
        assert db.execute_query("SELECT pg_is_in_recovery()") == [(False,)]
        assert db.read_query("SELECT pg_is_in_recovery()") == [(True,)]
        with db.read(after=db.position()) as conn:
            conn.execute("SELECT 1")
jobs = [gevent.spawn(work, number) for number in range(10)]
gevent.joinall(jobs, raise_error=True)
gevent.sleep(1.2)
assert all(one["lag"] is not None for one in db.stats()["servers"].values() if one["role"] == "standby")
db.close()
print("ok")
"""


def test_greenlets(servers: Replication) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _GREENLETS, servers.url()], capture_output=True, text=True, timeout=60,
        cwd=ROOT,
    )  # fmt: skip
    assert run.stdout == "ok\n", run.stderr


def test_close_ends_everything(cluster: Any, servers: Replication) -> None:
    db = cluster()
    ports_read(db, 10)
    with pytest.raises(PoolClosed), db.read() as conn:
        db.close(0.2, interrupt=False)
        conn.execute("SELECT 1")
        with db.read():
            pass
    for call in (db.execute_query, db.read_query):
        with pytest.raises(PoolClosed):
            call("SELECT 1")
    assert db.closed and "closed" in repr(db)
    until(lambda: all(pool.stats()["size"] == 0 for pool in db.servers.values()), "all are closed")
    asked = [server.seen_at for server in db.standing.servers]
    time.sleep(1.5)
    assert asked == [server.seen_at for server in db.standing.servers]  # nothing is asked any more


def test_it_asks_less_often_while_it_is_not_used(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooling.cluster.watch.REST_AFTER", 0.5)
    monkeypatch.setattr("pooling.cluster.watch.RESTING", 60.0)
    db = cluster(max_lag=0.4)
    ports_read(db, 1)
    until(lambda: not db.watch.ready, "it rests")
    time.sleep(0.5)
    asked = [server.seen_at for server in db.standing.servers]
    time.sleep(1.0)
    assert asked == [server.seen_at for server in db.standing.servers]
    ports_read(db, 1)
    assert all(server.seen_at > before for server, before in zip(db.standing.servers, asked))


# -- management and metrics -------------------------------------------------------------------


def test_a_manager_manages_it(servers: Replication) -> None:
    manager = PoolManager()
    manager.add_pool(PostgresCluster(servers.url(), name="db", max_size=3))
    with manager:
        with manager.lease("db") as conn:
            assert conn.execute(PORT).fetchone() == (servers.primary.port,)
        health = manager.health_check()
        assert health.status == "up", health
        db = manager["db"]
        assert ports_read(db, 10)
        summary = manager.get_performance_summary()
        assert summary["status"] == "up" and set(summary["pools"]["db"]["servers"]) == set(db.servers)
        seen = dict(source_of(manager, "pools").pools())  # what a monitor and alerts look at
        assert seen == {f"db.{name}": pool for name, pool in db.servers.items()}
        assert source_of(db, "pools").pools() == list(seen.items())
        assert "db" in repr(manager)
    assert db.closed


_EXPORTED = """
import sys
from prometheus_client import CollectorRegistry, generate_latest
from pooling import PostgresCluster
from pooling.observe.prometheus import PoolCollector
from pooling.observe.view import Viewer
viewer = Viewer.of_process()
db = PostgresCluster(sys.argv[1], name="orders", max_size=5)
db.execute_query("SELECT 1")
for _ in range(20):
    db.read_query("SELECT 1")
registry = CollectorRegistry()
registry.register(PoolCollector())
print(generate_latest(registry).decode())
shown = viewer.view()["pools"]
print("shown:", *sorted(pool["name"] for pool in shown))
for pool in shown:
    print("role:", pool["name"], pool["role"]["name"], pool["role"]["lag"] < 60)
db.close()
"""


def test_exporters_show_each_server(servers: Replication) -> None:
    """In a process of its own: others may have too many pools to show each."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _EXPORTED, servers.url()], capture_output=True, text=True, timeout=60,
        cwd=ROOT,
    )  # fmt: skip
    text = run.stdout
    assert f"shown: {' '.join(sorted(f'orders.{label(one)}' for one in servers.servers))}\n" in text, run.stderr
    assert "reads on the primary" not in text
    for server in servers.servers:
        pool, is_primary = f'pool="orders.{label(server)}"', server is servers.primary
        assert f"db_client_connection_max{{{pool}}} 5.0" in text
        assert f"role: orders.{label(server)} {'primary' if is_primary else 'replica'} True\n" in text
        assert f"pooling_server_primary{{{pool}}} {float(is_primary)}" in text
        assert f"pooling_server_readable{{{pool}}} {float(not is_primary)}" in text
        assert (f"pooling_server_lag_seconds{{{pool}}} " in text) == (not is_primary)
