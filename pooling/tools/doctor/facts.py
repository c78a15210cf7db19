"""Reads a server's settings and connections, and measures its speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import psycopg

from .cleaning import LACKING, STEPS

__all__ = ["Client", "Facts", "Pooler", "read"]

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

_SETTINGS = (
    "max_connections", "superuser_reserved_connections", "reserved_connections", "idle_session_timeout",
    "idle_in_transaction_session_timeout", "statement_timeout", "transaction_timeout", "tcp_keepalives_idle",
    "client_connection_check_interval",
)  # fmt: skip
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0}
_CONNECTS, _QUERIES = 5, 20


@dataclass(frozen=True)
class Client:
    """Connections of the same origin."""

    application: str
    address: str
    user: str
    count: int
    in_transaction: int  # of these, idle in a transaction; unknown if `hidden`
    hidden: bool = False  # our role may not see their origin and state

    def __str__(self) -> str:
        name = repr(self.application) if self.application else "without a name"
        idle = f", {self.in_transaction} idle in a transaction" if self.in_transaction else ""
        return f"{self.count:4} {name} from {self.address} as {self.user}{idle}"


@dataclass(frozen=True)
class Pooler:
    """A connection pooler between us and the server.

    Attributes:
        mode: ``"session"``, or ``"transaction"``, which includes ``"statement"``.
        version: PgBouncer's version, if its console is accessible.
        settings: PgBouncer's settings by name, likewise.
    """

    mode: str
    version: tuple[int, ...] | None = None
    settings: dict[str, str] = field(default_factory=dict)

    def number(self, name: str) -> int | None:
        """Return a setting as a number; ``None`` if it is not known."""
        value = self.settings.get(name, "")
        return int(value) if value.isdigit() else None

    def __str__(self) -> str:
        if self.version is None:
            return f"a pooler in {self.mode} mode (PgBouncer or similar)"
        return f"PgBouncer {'.'.join(map(str, self.version))} in {self.mode} mode"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about a server. Times are seconds; a time limit of 0 means none."""

    address: str
    version: str
    max_connections: int
    reserved: int
    superuser: bool
    role_limit: int
    database_limit: int
    clients: tuple[Client, ...]
    settings: dict[str, float]
    pooler: Pooler | None
    connect_seconds: float
    query_seconds: float
    missing: tuple[str, ...] = ()  # statements of `STEPS` that it does not execute for this role

    @property
    def room(self) -> int:
        """Total number of connections for ordinary roles."""
        return self.max_connections - self.reserved

    @property
    def connected(self) -> int:
        """Number of other clients' connections now."""
        return sum(client.count for client in self.clients)

    def lines(self) -> list[str]:
        """Return it for people."""
        ratio = self.connect_seconds / self.query_seconds if self.query_seconds else 0
        lines = [
            f"PostgreSQL {self.version} at {self.address}",
            f"  connecting takes {self.connect_seconds * 1000:.1f} ms, a query {self.query_seconds * 1000:.2f} ms: "
            f"a new connection costs as much as {ratio:.0f} queries",
        ]
        if self.pooler is not None:
            lines.append(f"  behind {self.pooler}")
        lines.append(
            f"  {self.room} of max_connections={self.max_connections} are available to ordinary roles; "
            f"{self.connected} are in use now"
        )
        lines += [f"    {client}" for client in self.clients[:10]]
        if len(self.clients) > 10:
            lines.append(f"    and {sum(client.count for client in self.clients[10:])} others")
        return lines


def read(connect: Connect, ours: str | None = None) -> Facts:
    """Query a server through a few connections, which are closed again.

    Args:
        connect: Returns a new connection of ``psycopg.connect(...)``; takes
            ``autocommit`` and ``dbname``.
        ours: The ``application_name`` of the pool that runs the check; its
            connections are not counted as other clients'.

    Raises:
        psycopg.Error: The server does not answer, or is not PostgreSQL.
    """
    with ExitStack() as stack:
        times: list[float] = []

        def timed() -> Connection:
            began = perf_counter()
            conn = stack.enter_context(closing(connect(autocommit=True)))
            times.append(perf_counter() - began)
            return conn

        first, other = timed(), timed()
        # Now: the server may list a connection for a moment after it was closed.
        clients = _clients(first, {_backend(first), _backend(other)}, ours)
        while len(times) < _CONNECTS:
            timed().close()  # keep only two open at a time, to spare a pooler
        settings = _settings(first)
        row = first.execute(_ABOUT).fetchone()
        assert row is not None
        version, superuser, role_limit, database_limit = row
        return Facts(
            address=_address(first), version=version, superuser=superuser,
            role_limit=role_limit, database_limit=database_limit,
            max_connections=int(settings["max_connections"]),
            reserved=int(settings["superuser_reserved_connections"] + settings.get("reserved_connections", 0)),
            clients=clients, settings=settings, pooler=_pooler(first, other, connect),
            connect_seconds=statistics.median(times), query_seconds=_query_time(first),
            missing=_missing(first),
        )  # fmt: skip


_ABOUT = """
    SELECT current_setting('server_version'), rolsuper, rolconnlimit,
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
    FROM pg_roles WHERE rolname = current_user
"""


def _address(conn: Connection) -> str:
    info = conn.info
    return f"{info.host or 'the local socket'}:{info.port}/{info.dbname} as {info.user}"


def _settings(conn: Connection) -> dict[str, float]:
    rows = conn.execute(  # without the client's own settings, which cannot conflict
        "SELECT name, setting, unit FROM pg_settings WHERE name = ANY(%s) AND source <> 'client'",
        [list(_SETTINGS)], prepare=False,
    )  # fmt: skip
    return {name: float(value) * _UNITS.get(unit, 1.0) for name, value, unit in rows}


def _clients(conn: Connection, own: set[int], ours: str | None) -> tuple[Client, ...]:
    rows = conn.execute(
        """
        SELECT coalesce(application_name, ''),
               CASE WHEN backend_type IS NULL THEN 'a hidden host'
                    ELSE coalesce(host(client_addr), 'the local socket') END,
               coalesce(usename, '?'), count(*), count(*) FILTER (WHERE state LIKE 'idle in transaction%%'),
               backend_type IS NULL
        FROM pg_stat_activity
        WHERE (backend_type = 'client backend'  -- NULL for other roles' connections if our role may not see it
               OR backend_type IS NULL AND usename IS NOT NULL AND datname IS NOT NULL)
              AND pid <> ALL(%s) AND application_name IS DISTINCT FROM %s
        GROUP BY 1, 2, 3, 6 ORDER BY 4 DESC
        """,
        [list(own), ours], prepare=False,
    )  # fmt: skip
    return tuple(Client(*row) for row in rows)


def _query_time(conn: Connection) -> float:
    times = []
    for _ in range(_QUERIES):
        began = perf_counter()
        conn.execute("SELECT 1", prepare=False)
        times.append(perf_counter() - began)
    return statistics.median(times)


def _missing(conn: Connection) -> tuple[str, ...]:
    """Try each statement that cleans a session."""
    missing = []
    for step in STEPS:
        try:
            conn.execute(step.encode(), prepare=False)
        except psycopg.Error as error:
            if error.sqlstate not in LACKING:
                raise
            missing.append(step)
    return tuple(missing)


def _backend(conn: Connection) -> int:
    row = conn.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    assert row is not None
    return int(row[0])


def _pooler(one: Connection, other: Connection, connect: Connect) -> Pooler | None:
    """Detect a pooler: it reports its own process ids to clients.

    If two idle clients have the same server process, it is assigned to them
    only for the duration of a transaction.
    """
    backend = _backend(one)
    if backend == one.info.backend_pid:
        return None
    mode = "transaction" if backend == _backend(other) else "session"
    with suppress(psycopg.Error), closing(connect(autocommit=True, dbname="pgbouncer")) as console:
        settings = {row["key"]: row["value"] for row in _show(console, b"SHOW CONFIG")}
        text = _show(console, b"SHOW VERSION")[0]["version"]
        numbers = text.split()[-1].split(".")
        version = tuple(int(number) for number in numbers if number.isdigit())
        return Pooler("session" if settings.get("pool_mode") == "session" else mode, version, settings)
    return Pooler(mode)


def _show(console: Connection, command: bytes) -> list[dict[str, str]]:
    """Query PgBouncer's console, which supports only simple queries."""
    result = console.pgconn.exec_(command)
    names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
    return [
        {name: (result.get_value(row, column) or b"").decode() for column, name in enumerate(names)}
        for row in range(result.ntuples)
    ]
