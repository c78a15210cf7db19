"""One server of a cluster: its pool, and what is known of it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import psycopg

from ..adapters.postgres import PostgresAdapter, PostgresPool, failures
from ..adapters.postgres.tracking import Connection, Notes, notes_of
from ..adapters.postgres.wire import round_trip
from ..core.lease import Lease
from ..core.report.messages import format_error
from ..errors import PoolError, PoolUnavailable
from .choosing import PRIMARY, STANDBY, UNKNOWN, Average
from .position import Position, end_of_record

__all__ = ["Answer", "Rerouted", "Server", "ServerPool", "is_standby", "made_at"]

# In one statement, so that one round trip is enough. The timeline of a standby is that of its WAL receiver, which only
# members of pg_read_all_stats may see; the primary's is in the name of its present file.
_QUESTION = b"""
    SELECT standby,
        (CASE WHEN standby THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END) - '0/0'::pg_lsn,
        CASE WHEN standby THEN (SELECT received_tli FROM pg_stat_wal_receiver)
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END,
        CASE WHEN standby THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END,
        current_setting('wal_block_size'), pg_size_bytes(current_setting('wal_segment_size'))
    FROM (SELECT pg_is_in_recovery() AS standby OFFSET 0) AS server
"""
# For servers that do not answer that one, such as some clouds': neither lag nor positions are known then.
_ROLE = b"SELECT pg_is_in_recovery(), NULL, NULL, NULL, NULL, NULL"
_REFUSED = {"42501", "42883", "42P01", "0A000"}  # no privilege, no such function or table, not supported


class Rerouted(PoolUnavailable):
    """The borrower should ask another server: this one went down, or its role has changed."""


class Answer(NamedTuple):
    """What a server says of itself.

    Attributes:
        standby: Whether it is one.
        lsn: What it has replayed, or, as the primary, written.
        timeline: ``None`` if it does not say.
        age: Seconds since the last transaction that it has replayed; ``None`` if there is none.
    """

    standby: bool
    lsn: int
    timeline: int | None
    age: float | None

    @property
    def position(self) -> Position:
        """Its position."""
        return Position(self.timeline or 0, self.lsn)


def ask(conn: Connection, timeout: float) -> Answer:
    """Ask the server of a connection on which nothing is under way.

    Raises:
        TimeoutError, psycopg.Error: It did not answer.
    """
    began = time.monotonic()
    try:
        values = _values(conn, _QUESTION, timeout)
    except psycopg.Error as error:
        if error.sqlstate not in _REFUSED:
            raise
        values = _values(conn, _ROLE, max(0.0, began + timeout - time.monotonic()))
    standby, lsn, timeline, age, page, segment = values
    if lsn is None:  # it is not known, or a standby has replayed nothing yet
        return Answer(standby == b"t", 0, None, None)
    number = int(lsn)
    if standby != b"t":
        number = end_of_record(number, int(page or 0), int(segment or 0))
    return Answer(
        standby == b"t", number, None if timeline is None else int(timeline), None if age is None else float(age)
    )


def _values(conn: Connection, question: bytes, timeout: float) -> list[bytes | None]:
    if not notes_of(conn).foreign:
        result = round_trip(conn, question, timeout)[-1]
        return [result.get_value(0, column) for column in range(result.nfields)]
    try:
        found: Any = conn.execute(question).fetchone()
    finally:
        conn.rollback()
    return [b"t" if found[0] else b"f", *(None if value is None else str(value).encode() for value in found[1:])]


def is_standby(conn: Connection) -> bool:
    """Return whether the server of a connection is a standby, as far as it says so without being asked.

    PostgreSQL 14 and newer do. Only a restart makes a primary a standby, so a connection that was made to a primary
    need not be looked at again.
    """
    notes = notes_of(conn)
    return notes.standby and conn.pgconn.parameter_status(b"in_hot_standby") == b"on"


def made_at(conn: Connection) -> float:
    """Return when a connection was made."""
    return notes_of(conn).made


class ServerAdapter(PostgresAdapter):
    """Notes of each connection when it was made, and whether to a standby."""

    def create(self) -> Connection:
        conn = super().create()
        notes: Notes = notes_of(conn)
        if not notes.foreign:
            notes.standby = conn.pgconn.parameter_status(b"in_hot_standby") == b"on"
        notes.made = time.monotonic()
        return conn

    def is_broken(self, resource: Connection, error: BaseException) -> bool:
        if failures.READ_ONLY in failures.sqlstates(error) and notes_of(resource).standby and not resource.closed:
            return False  # a write on a replica is the borrower's mistake
        return super().is_broken(resource, error)


class ServerPool(PostgresPool):
    """The connections to one server of a cluster."""

    adapter_class = ServerAdapter
    server: Callable[[], Server | None] = staticmethod(lambda: None)
    """A weak reference to what is known of the server. Internal."""

    def server_gauges(self) -> dict[str, float]:
        """Return the metrics that only a server of a cluster has."""
        server = self.server()
        if server is None:
            return {}
        found: dict[str, float] = {"primary": int(server.role == PRIMARY), "readable": int(server.obstacle is None)}
        known = server.role == STANDBY and server.checked and server.lag < inf
        return {**found, "lag": server.lag} if known else found

    def ask(self, timeout: float) -> Answer:
        """Ask the server, over an idle or a new connection; if all are in use, over one outside of the pool.

        Raises:
            Exception: It did not answer.
        """
        found: list[Answer] = []
        busy = self._probe.run(timeout, lambda conn, left: found.append(ask(conn, left)))
        if found:
            return found[-1]
        if busy is None:  # another health check has just succeeded
            return self.ask(timeout)
        assert isinstance(self.engine.adapter, ServerAdapter)
        conn = self.engine.adapter.connect_aside(timeout)
        try:
            return ask(conn, timeout)
        finally:
            conn.close()

    def reroute(self, why: str) -> None:
        """Have everybody who waits for a connection ask again where to go."""
        engine = self.engine
        engine.ensure_usable()
        with engine.lock:
            engine.state.waiters.fail(Rerouted, f"pool {self.name!r}: {why}", engine.outage.error)


class Server:
    """One server, as far as this process knows it.

    Attributes:
        pool: Its connections.
        role: What it said last.
        timeline, lsn, lag: As it said last; see `Answer` and `History.lag`.
        seen_at: When it was asked for these.
        down: Why it cannot be used; ``None`` if it can.
        suspect: A connection to it was lost, and it has not been asked since.
        back_at: When it came back.
        obstacle: Why it is no replica to read from.
        took: How long leases for reading take.
        checking_since: When the check in progress began; ``None`` if there is none.
    """

    def __init__(self, label: str, pool: ServerPool) -> None:
        self.label = label
        self.pool = pool
        pool.server = weakref.ref(self)
        self.back_at = float("-inf")
        self.took = Average()
        self.renew()

    def renew(self) -> None:
        """Forget what another process has found out, except for the role and the times."""
        self.role = getattr(self, "role", UNKNOWN)
        self.timeline: int | None = None
        self.lsn = 0
        self.lag = 0.0
        self.seen_at = float("-inf")
        self.asked_at = float("-inf")
        self.down: str | None = None
        self.suspect = False
        self.obstacle: str | None = UNKNOWN
        self.checked = False
        self.checking_since: float | None = None

    def cost(self, now: float) -> float:
        """Return what one more read costs here; see `choosing`."""
        state = self.pool.engine.state
        return (state.in_use + len(state.waiters) + 1) * self.took.get(now)

    def passed(self) -> None:
        """Take that another server was cheaper."""
        self.took.fade()

    def learn(self, answer: Answer, asked_at: float) -> None:
        """Take an answer to a question that was asked at this time."""
        if asked_at < self.seen_at:
            return
        self.role = STANDBY if answer.standby else PRIMARY
        if answer.timeline is not None or answer.standby:
            self.timeline = answer.timeline
        self.lsn, self.seen_at = answer.lsn, asked_at

    def fail(self, error: BaseException) -> None:
        """Note that it does not answer."""
        cause = error.__cause__ if isinstance(error, PoolError) else None
        self.down = format_error(cause or error)

    def stats(self, now: float) -> dict[str, Any]:
        """Return the counts of its pool, and what is known of it."""
        took = self.took.get(now) if self.took.value else None
        return {
            **self.pool.stats(), "role": self.role, "down": self.down or self.pool.stats()["down"],
            "readable": self.obstacle is None, "obstacle": self.obstacle if self.role == STANDBY else None,
            "lag": self.lag if self.role == STANDBY and self.checked else None,
            "position": Position(self.timeline or 0, self.lsn).token if self.lsn else None, "service_time": took,
        }  # fmt: skip


def lost(lease: Lease[Connection], error: BaseException) -> bool:
    """Return whether an error means that the connection of a lease was lost."""
    token = lease._token
    conn = None if token is None else token.entry.resource
    if not isinstance(error, psycopg.OperationalError) or conn is None:
        return False
    return bool(getattr(conn, "closed", False)) or failures.ended_by(error) is not None
