"""Which server a read goes to, and which one is the primary. Pure: values in, values out.

Two replicas are drawn at random, and the one with the lower cost is taken ("power of two choices", M. Mitzenmacher,
2001): as good as comparing all of them, without all threads taking the same one. The cost is the number of leases in
use and of waiters, times a moving average of the time that a lease takes. What was measured fades each time that a
server is passed over, and with time: one that is ten times slower than another gets about one read in a hundred, which
tells when it has recovered.

A server that comes back after an outage gets its full share only after `RAMP` seconds: its caches are cold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from .position import Position

__all__ = [
    "RAMP", "Average", "Candidate", "Judged", "choose", "covers", "find_primary", "obstacle", "share",
]  # fmt: skip

HALF_LIFE = 2.0
"""Seconds after which a measured time counts half among newer ones."""

FADES = 10.0
"""Seconds after which the average itself counts half if there are no newer ones."""

PASSED = 0.98
"""What is left of it each time that the server is passed over."""

RAMP = 10.0
"""Seconds until a server that has come back gets its full share of the reads."""

LEAST_SHARE = 0.1
"""Its share at first."""

FLOOR = 1e-4
"""Seconds that a lease takes at least, as far as the cost is concerned: below that differences are noise."""

PRIMARY, STANDBY, UNKNOWN = "primary", "standby", "unknown"


class Candidate(Protocol):
    """What `choose` needs to know of a server."""

    back_at: float  # when it came back

    def cost(self, now: float) -> float:
        """Return what one more lease costs."""

    def passed(self) -> None:
        """Take that another server was cheaper."""


class Judged(Protocol):
    """What the other functions need to know of a server."""

    role: str
    down: str | None
    suspect: bool
    checked: bool
    timeline: int | None
    lsn: int
    lag: float


S = TypeVar("S", bound=Candidate)
J = TypeVar("J", bound=Judged)


class Average:
    """A moving average of durations; each counts half after `HALF_LIFE` seconds.

    Threads may update it at the same time: the worst is that one duration is not counted.
    """

    __slots__ = ("value", "at", "left")

    def __init__(self) -> None:
        self.value = 0.0
        self.at = float("-inf")
        self.left = 1.0  # of the value, after it was passed over

    def note(self, took: float, now: float) -> None:
        """Count a duration."""
        weight: float = self.left * 0.5 ** (max(0.0, now - self.at) / HALF_LIFE)
        self.value = took + (self.value - took) * weight
        self.at, self.left = now, 1.0

    def fade(self) -> None:
        """Take that the server was passed over."""
        self.left *= PASSED

    def get(self, now: float) -> float:
        """Return the average, as far as it has not faded."""
        if self.value <= FLOOR:
            return FLOOR
        weight: float = self.left * 0.5 ** (max(0.0, now - self.at) / FADES)
        return max(FLOOR, self.value * weight)


def share(server: Candidate, now: float) -> float:
    """Return which part of its full share of the reads a server gets, from `LEAST_SHARE` to 1."""
    return min(1.0, max(LEAST_SHARE, (now - server.back_at) / RAMP))


def choose(servers: Sequence[S], now: float, random: Callable[[], float]) -> S:
    """Return the server for a read, of at least one.

    Args:
        servers: Those that it may go to.
        now: The time.
        random: Returns a number from 0 to below 1.
    """
    if len(servers) == 1:
        return servers[0]
    for server in servers:
        if now - server.back_at < RAMP:  # rare: else the list is used as it is
            full = [one for one in servers if now - one.back_at >= RAMP or random() < share(one, now)]
            servers = full or servers
            break
    number = len(servers)
    if number == 1:
        return servers[0]
    first, second = int(random() * number), int(random() * (number - 1))
    one, other = servers[first], servers[second + (second >= first)]
    if one.cost(now) > other.cost(now):
        one, other = other, one
    other.passed()
    return one


def obstacle(server: Judged, max_lag: float, timeline: int) -> str | None:
    """Return why a server is no replica to read from; ``None`` if it is one.

    Args:
        server: The server.
        max_lag: Seconds that it may be behind.
        timeline: That of the primary; 0 if it is not known.
    """
    if server.down is not None:
        return f"down: {server.down}"
    if server.role != STANDBY:
        return server.role
    if server.suspect:
        return "a connection was lost"
    if not server.checked:
        return "not compared with the primary yet"
    if server.timeline is not None and server.timeline < timeline:
        return f"follows a former primary (timeline {server.timeline}, not {timeline})"
    if server.lag > max_lag:
        return f"{server.lag:.1f} s behind"
    return None


def covers(server: Judged, position: Position, timeline: int) -> bool:
    """Return whether a replica is known to have replayed a position.

    A replica that follows a former primary may have replayed the number, but not what the present one has written
    there. If its timeline cannot be seen (see `Position`), it counts only where there has never been a failover.

    Args:
        server: The replica.
        position: What it must have.
        timeline: That of the primary.
    """
    wanted = position.timeline or timeline
    known = timeline <= 1 and wanted <= 1 if server.timeline is None else server.timeline >= wanted
    return known and server.lsn >= position.lsn


def find_primary(servers: Iterable[J], present: J | None) -> J | None:
    """Return the server to write to.

    Of several that say that they are the primary, that with the highest timeline was promoted last. If none does,
    the present one may come back, unless it has become a standby.
    """
    found = [server for server in servers if server.role == PRIMARY and server.down is None]
    if not found:
        return None if present is None or present.role == STANDBY else present
    newest = max(server.timeline or 0 for server in found)
    last = [server for server in found if (server.timeline or 0) == newest]
    return present if present in last else last[0]
