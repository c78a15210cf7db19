"""Checks a plan against a MySQL or MariaDB server: its limits, its time limits, what is in between."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from .plan import Plan
from .report import Finding, Report

__all__ = ["Facts", "examine", "read"]

_SLOW_QUERY = 0.005  # seconds for SELECT 1: another region, or a slow network
_CONNECTS, _QUERIES = 5, 20


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about a server. Times are seconds.

    Attributes:
        connected: How many connections there are now, with the pool's own; they are
            counted as other clients'.
        user_limit: ``max_user_connections`` of this user; 0 means none.
        proxied: Whether the server knows this connection by another number than
            it has here: a proxy shares its connections among its clients.
    """

    version: str
    address: str
    max_connections: int
    connected: int
    user_limit: int
    wait_timeout: float
    read_only: bool
    proxied: bool
    connect_seconds: float
    query_seconds: float

    def lines(self) -> list[str]:
        """Return it for people."""
        ratio = self.connect_seconds / self.query_seconds if self.query_seconds else 0
        kind = "" if "maria" in self.version.lower() else "MySQL "
        return [
            f"{kind}{self.version} at {self.address}",
            f"  connecting takes {self.connect_seconds * 1000:.1f} ms, a query {self.query_seconds * 1000:.2f} ms: "
            f"a new connection costs as much as {ratio:.0f} queries",
            *(["  behind a proxy that shares connections"] if self.proxied else []),
            f"  max_connections={self.max_connections}; {self.connected} are in use now",
        ]


def read(connect: Callable[[], Any], number: Callable[[Any], int], address: str) -> Facts:
    """Query a server through a few connections, which are closed again.

    Args:
        connect: Returns a new connection of any driver.
        number: Returns the number of its session, as the driver knows it.
        address: For messages.

    Raises:
        Exception: An error of the driver: the server does not answer.
    """
    times = []
    conn: Any = None
    try:
        for _ in range(_CONNECTS):
            if conn is not None:
                conn.close()
            began = perf_counter()
            conn = connect()
            times.append(perf_counter() - began)
        queries = []
        for _ in range(_QUERIES):
            began = perf_counter()
            _ask(conn, "SELECT 1")
            queries.append(perf_counter() - began)
        version, most, limit, wait, read_only, own = _ask(
            conn, "SELECT VERSION(), @@max_connections, @@max_user_connections, @@wait_timeout, @@global.read_only, "
            "CONNECTION_ID()"
        )  # fmt: skip
        connected = _ask(conn, "SHOW GLOBAL STATUS LIKE 'Threads_connected'")[1]
        return Facts(
            version=str(version), address=address, max_connections=int(most), connected=max(0, int(connected) - 1),
            user_limit=int(limit), wait_timeout=float(wait), read_only=str(read_only) not in ("0", "OFF"),
            proxied=int(own) != number(conn), connect_seconds=statistics.median(times), query_seconds=min(queries),
        )  # fmt: skip
    finally:
        if conn is not None:
            conn.close()


def _ask(conn: Any, sql: str) -> tuple[Any, ...]:
    cursor = conn.cursor()
    cursor.execute(sql)
    row = cursor.fetchall()[0]
    cursor.close()
    return tuple(row.values()) if isinstance(row, dict) else tuple(row)


def examine(facts: Facts, plan: Plan) -> Report:
    """Check a plan against the facts about a server."""
    rules = (_room, _user_limit, _planned_workers, _closes_idle, _far_away, _role, _proxy, _no_limit)
    return Report(facts, plan, tuple(finding for rule in rules for finding in rule(facts, plan)))


def _room(facts: Facts, plan: Plan) -> Iterator[Finding]:
    wanted, free = plan.connections, max(0, facts.max_connections - facts.connected)
    if wanted > facts.max_connections:
        yield Finding(
            "breaks",
            f"{plan} = {wanted} connections, but the server accepts only {facts.max_connections}",
            f"{_smaller(free, plan)}, or raise max_connections to at least {wanted + facts.connected}",
        )
    elif wanted > free:
        yield Finding(
            "warning",
            f"{plan} = {wanted} connections, but with the {facts.connected} that are open now only {free} are free",
            f"{_smaller(free, plan)}, or find out what the other clients are",
        )


def _smaller(free: int, plan: Plan) -> str:
    workers = plan.processes
    if free < workers:
        return f"Use fewer workers: with max_size 1, {free} fit"
    return f"Set max_size to at most {free // workers}"


def _user_limit(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if 0 < facts.user_limit < plan.connections:
        yield Finding(
            "breaks",
            f"{plan} = {plan.connections} connections, but max_user_connections of this user is {facts.user_limit}",
            f"{_smaller(facts.user_limit, plan)}, or ALTER USER ... WITH MAX_USER_CONNECTIONS {plan.connections}",
        )


def _planned_workers(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if plan.workers is None:
        free, size = max(0, facts.max_connections - facts.connected), plan.settings.max_size
        yield Finding(
            "note",
            f"the number of workers is unknown; {free // size} with max_size {size} fit beside the connections that "
            "are open now",
            "Pass it, including deployments, when old and new workers run side by side",
        )


def _closes_idle(facts: Facts, plan: Plan) -> Iterator[Finding]:
    limit, settings = facts.wait_timeout, plan.settings
    rest, alive = settings.idle_timeout, settings.keepalive_interval
    kept = settings.min_size or rest is None or rest >= limit
    if limit and kept and not (alive and alive < limit) and not (settings.max_lifetime or limit) < limit:
        yield Finding(
            "warning",
            f"wait_timeout is {limit:g} s: the server closes idle connections that the pool keeps "
            f"({'for ever' if rest is None else f'idle_timeout {rest:g} s, and min_size for ever'}), "
            "so each must be created again when needed",
            f"Set keepalive_interval to {limit / 2:g}, or max_lifetime below wait_timeout",
        )


def _far_away(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if facts.query_seconds > _SLOW_QUERY:
        yield Finding(
            "warning",
            f"the shortest query takes {facts.query_seconds * 1000:.1f} ms: a transaction needs two round trips, "
            "and holds its connection during all of them",
            "Run the application close to its database",
        )


def _role(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if facts.read_only:
        yield Finding(
            "note",
            "the server is read-only: writes will fail (1290)",
            "Use the primary's address for a pool that writes",
        )


def _proxy(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if facts.proxied:
        yield Finding(
            "note",
            "the server is behind a proxy that shares its connections among clients: what a transaction leaves in "
            "the session may be lost between two transactions, and commands that exceed command_timeout cannot be "
            "ended on the server",
            "Set the proxy's own time limits, and keep session state within transactions",
        )


def _no_limit(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if plan.unlimited:
        yield Finding(
            "note",
            "there is no command_timeout: a command that waits for a lock, or that a proxy never answers, keeps its "
            "connection at least until the pool asks the server about it (stall_timeout)",
            "Set command_timeout to the longest time a command may take",
        )
