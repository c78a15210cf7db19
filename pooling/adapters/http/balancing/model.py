"""Which server a request goes to: values in, values out.

No threads, no clock, no I/O; the time is an argument, and the user holds a
lock, except where a method needs none. The choice is the better of two servers at random (M. Mitzenmacher, The
Power of Two Choices, 2001). Better is the lower product of latency, load and
failures. The latency is a moving average that rises quickly and falls slowly,
as Finagle's peak EWMA; ejection follows Envoy's outlier detection. Invariants:

- At most ``max_ejected`` of the servers are ejected, rounded down.
- An ejected server gets no request before its time is over, and then one at a
  time until one succeeds.
- Over any number of requests there are at most ``retry_budget`` retries per
  request, or `RESERVE` if that is more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import permutations
from math import exp
from typing import Any

from .policy import Balancing

__all__ = ["Balancer", "RESERVE", "RetryBudget", "Server"]

RESERVE = 10
"""Retries that are allowed before any request has been made."""

_STEP = 0.1  # the weight of one request in the rate of failures, and in the typical latency
_RISE, _FALL = 0.25, 0.1  # the weight of a request that took longer than the average, and of a shorter one
_IDLE = 2  # added to the load: else a slow server that is idle would look as good as a fast one that is busy
_NO_FAILURES = 0.001
_LEAST_GOOD = 0.05  # so that a server that always fails still compares with others
_LEAST_SHARE = 0.1  # with which a slow start begins, as in Envoy
_ZONE_RESERVE = 1.4  # the near zone gets all requests while 1 / 1.4 of it can take them, as in Envoy


class Server:
    """One server, as the balancer sees it.

    Attributes:
        name: In messages and metrics.
        zone: Where it is.
        latency: Moving average in seconds, ``None`` before the first request.
        plain: The latency of a server that does not fail, ``None`` for any other.
        failing: Moving average of the failures per request.
        failures: Failures in all.
        in_a_row: Failures since the last success.
        ejections: How often it has been ejected in all.
        ejected_until: When it is tried again; ``None`` unless it is ejected.
        resting_until: When it may be sent requests again that it, or its circuit, does not take now.
        ramp_from: When its slow start began; ``None`` unless it is in one.
    """

    __slots__ = (
        "name", "zone", "latency", "plain", "failing", "failures", "in_a_row", "seen", "ejections", "ejected_until",
        "resting_until", "ramp_from", "returned_at", "trial", "_times", "_last_ejection",
    )  # fmt: skip

    def __init__(self, name: str, zone: str | None = None) -> None:
        self.name, self.zone = name, zone
        self.latency: float | None = None
        self.plain: float | None = None
        self.failing = 0.0
        self.failures = self.in_a_row = self.ejections = 0
        self.seen = 0.0  # when the averages were updated
        self.ejected_until: float | None = None
        self.resting_until = 0.0
        self.ramp_from: float | None = None
        self.returned_at = 0.0
        self.trial: object = None  # the request that tries it after its ejection
        self._times = 0  # ejections, without those that are long ago
        self._last_ejection = 0.0  # how long it was

    def note(self, now: float, seconds: float, failed: bool, decay: float) -> None:
        """Update the averages with one request."""
        rest, age = 1.0, (now - self.seen) / decay
        if age > _FALL or self.failing:  # else the average fades less than one request changes it
            rest = exp(-age) if age > 0 else 1.0
        self.seen = now
        if failed or self.failing:
            failing = self.failing * rest
            self.failing = failing + (failed - failing) * _STEP
            self.plain = None
        before = self.latency
        if failed and (before is None or seconds < before):
            return  # that it fails fast makes it no faster
        if before is None:
            self.latency = seconds
        else:
            more, weight, least = seconds - before, 1 - rest, _FALL
            if more > 0:  # it at most doubles, unless the last request was long ago
                least = _RISE if more * _RISE < before else before / more
            self.latency = before + more * (weight if weight > least else least)
        if self.failing < _NO_FAILURES:
            self.plain = self.latency

    def cost(self, now: float, load: int, decay: float, typical: float) -> float:
        """Return what one more request costs, beside ``load`` others. For every request, so it is short.

        Args:
            now: The time.
            load: Requests in progress or waiting.
            decay: How fast averages fade.
            typical: The latency of a server that has not answered yet. Unless it has failed, it is tried first.
        """
        fade, latency = exp((self.seen - now) / decay), self.latency
        if latency is not None:
            cost = latency * fade * (load + _IDLE)
        else:
            cost = typical * (load + _IDLE if self.failures else load)
        if self.failing < _NO_FAILURES:
            return cost
        good = 1.0 - self.failing * fade
        return cost / (good * good if good > _LEAST_GOOD else _LEAST_GOOD * _LEAST_GOOD)

    def eject(self, now: float, policy: Balancing) -> float:
        """Eject it; return for how many seconds."""
        if self.ejected_until is None and now - self.returned_at > self._last_ejection:
            self._times = 0  # it has been in service for longer than it was ejected
        self._times += 1
        self.ejections += 1
        self._last_ejection = seconds = min(policy.eject_for * self._times, policy.eject_for_max)
        self.ejected_until, self.trial, self.ramp_from = now + seconds, None, None
        return seconds

    def put_back(self, now: float, policy: Balancing) -> None:
        """Let it return to service, slowly."""
        self.ejected_until, self.trial, self.in_a_row, self.failing = None, None, 0, 0.0
        self.returned_at = now
        self.ramp_from = now if policy.slow_start else None


Load = Callable[[Any], int]
"""Returns how many requests a server has in progress, or waiting."""


class Balancer:
    """Chooses servers. The caller holds a lock, except for `choose_usual`.

    Args:
        policy: The settings.
        zone: The near zone, which is preferred; ``None`` if there is none.
        places: With so many requests in progress or waiting, a server of the near zone has no priority any more.
        random: Returns a number from 0 up to 1.

    Attributes:
        servers: Those that requests are distributed over.
        special: Those of them that are ejected, resting or in a slow start.
        typical: Moving average of the latency of all servers, in seconds.
    """

    def __init__(self, policy: Balancing, zone: str | None, places: int, random: Callable[[], float]) -> None:
        self.policy, self.zone, self.places = policy, zone, places
        self._random = random
        self.servers: Sequence[Server] = ()
        self._near: Sequence[Server] = ()
        self._pairs: Sequence[tuple[Server, Server]] = ()  # to choose from, while no server is special
        self.typical = 1.0  # latency in seconds, of all servers
        self.special: set[Server] = set()

    def use(self, servers: Iterable[Server], now: float) -> None:
        """Balance over these servers. Those that are new begin slowly, unless all are."""
        before = set(self.servers)
        self.servers = tuple(servers)
        self._near = tuple(server for server in self.servers if server.zone == self.zone is not None)
        usual = self._near or self.servers
        self._pairs = tuple(permutations(usual, 2)) or tuple(zip(usual, usual))
        self.special.intersection_update(self.servers)
        for server in self.servers:
            if before and server not in before and self.policy.slow_start:
                server.ramp_from = now
                self.special.add(server)
        ejected = sorted(self.ejected(), key=lambda server: server.ejected_until or 0.0)
        for server in ejected[: max(0, len(ejected) - self._most_ejected())]:
            server.put_back(now, self.policy)

    def ejected(self) -> list[Server]:
        """Return the servers that are ejected."""
        return [server for server in self.special if server.ejected_until is not None]

    def _most_ejected(self) -> int:
        return int(self.policy.max_ejected * len(self.servers))

    # -- choose -------------------------------------------------------------------

    def choose(
        self, now: float, load: Load, call: object, safe: bool = True, tried: Collection[Server] = ()
    ) -> Server | None:
        """Return the server for a request.

        Args:
            now: The time.
            load: Returns the load of a server.
            call: Stands for the request, see `left`.
            safe: Whether the request can be sent again if it fails, so that it may try an ejected server.
            tried: Servers to leave out.

        Returns:
            ``None`` if there are ``tried`` ones, and no other can take it.
        """
        if not self.special and not tried:
            return self.choose_usual(now, load)
        found = self._usable(now, call, safe, tried)
        if isinstance(found, Server):
            return found
        if not found:
            if tried:
                return None
            found = [(server, 1.0) for server in self._not_ejected()]
        servers = self._drawn(found)
        best = self._better(self._any_two(servers), now, load)
        return self._or_spill(best, servers, [server for server, _ in found], now, load)

    def choose_usual(self, now: float, load: Load) -> Server:
        """Return the server for a first attempt while none is `special`. It changes nothing, and needs no lock."""
        pairs, decay = self._pairs, self.policy.decay
        first, second = pair = pairs[int(self._random() * len(pairs))]
        one, other = first.plain, second.plain
        if one is not None and other is not None:  # as `cost`, in less time
            cost = one * (load(first) + _IDLE) * exp((first.seen - now) / decay)
            best = first if cost <= other * (load(second) + _IDLE) * exp((second.seen - now) / decay) else second
        else:
            best = self._better(pair, now, load)
        return self._or_spill(best, self._near, self.servers, now, load) if self._near else best

    def other(self, now: float, load: Load, first: Server) -> Server | None:
        """Return another server, for a request that the first one has not answered yet.

        Only one in normal service, in the near zone if there is any; ``None`` if there is none.
        """
        others = [server for server in self.servers if server is not first and server not in self.special]
        found = [server for server in others if server in self._near] or others
        return self._better(self._any_two(found), now, load) if found else None

    def _or_spill(
        self, best: Server, servers: Sequence[Server], rest: Sequence[Server], now: float, load: Load
    ) -> Server:
        """Return the best of these servers, or one of the rest if the near zone is full."""
        if len(servers) < len(rest) and best.zone == self.zone and load(best) >= self.places:
            return self._better(self._any_two(rest), now, load)
        return best

    def has_other(self, now: float, tried: Collection[Server]) -> bool:
        """Whether there is another server for a request that has tried these."""
        return any(
            server not in tried and server.ejected_until is None and server.resting_until <= now
            for server in self.servers
        )

    def _not_ejected(self) -> list[Server]:
        return [server for server in self.servers if server.ejected_until is None]

    def _usable(
        self, now: float, call: object, safe: bool, tried: Collection[Server]
    ) -> list[tuple[Server, float]] | Server:
        """Return the servers that can take a request, with their weights; or the one that it has to try."""
        found = []
        for server in self.servers:
            if server in tried:
                continue
            if server not in self.special:
                found.append((server, 1.0))
                continue
            until = server.ejected_until
            if until is not None:
                # Requests that cannot be repeated wait, but not for ever: there may be no others.
                if not safe:
                    until += self.policy.eject_for
                if server.trial is None and now >= max(until, server.resting_until):
                    server.trial = call
                    return server
                continue
            if now < server.resting_until:
                continue
            weight = self._weight(server, now)
            if weight >= 1.0:
                self.special.discard(server)
            found.append((server, weight))
        return found

    def _weight(self, server: Server, now: float) -> float:
        """Return the part of its share that a server gets."""
        if server.ramp_from is None:
            return 1.0
        weight = (now - server.ramp_from) / self.policy.slow_start
        if weight >= 1.0:
            server.ramp_from = None
            return 1.0
        return max(weight, _LEAST_SHARE)

    def _drawn(self, found: Sequence[tuple[Server, float]]) -> Sequence[Server]:
        """Draw the servers to choose from: one zone, and those in a slow start with the probability of their weight."""
        if self._near:
            near = [one for one in found if one[0].zone == self.zone]
            far = [one for one in found if one[0].zone != self.zone]
            share = _ZONE_RESERVE * sum(weight for _, weight in near) / len(self._near)
            if near and far:
                found = near if share >= 1.0 or self._random() < share else far
        drawn = [server for server, weight in found if weight >= 1.0 or self._random() < weight]
        return drawn or [server for server, _ in found]

    def _any_two(self, servers: Sequence[Server]) -> tuple[Server, Server]:
        """Return two of the servers in any order, or the only one twice."""
        number = len(servers)
        place = int(self._random() * number)
        return servers[place], servers[place - 1 - int(self._random() * (number - 1))]

    def _better(self, pair: tuple[Server, Server], now: float, load: Load) -> Server:
        first, second = pair
        decay, typical = self.policy.decay, self.typical
        cost = first.cost(now, load(first), decay, typical)
        return first if cost <= second.cost(now, load(second), decay, typical) else second

    # -- outcomes -----------------------------------------------------------------

    def succeeded_usual(self, server: Server, now: float, seconds: float) -> bool:
        """Note a request that was answered after ``seconds``, if the server is in normal service.

        Needs no lock: if two threads do so at once, one of them may not count.

        Returns:
            Whether that was all; otherwise nothing was noted, and `succeeded` has to be called.
        """
        if self.special or server.in_a_row or server.failing:
            return False
        server.note(now, seconds, False, self.policy.decay)
        self.typical += (seconds - self.typical) * _STEP
        return True

    def succeeded(self, server: Server, call: object, now: float, seconds: float) -> bool:
        """Note a request that was answered after ``seconds``; return whether it ends an ejection."""
        server.in_a_row = 0
        server.note(now, seconds, False, self.policy.decay)
        self.typical += (seconds - self.typical) * _STEP
        if server.trial is not call or server.ejected_until is None:
            return False
        server.put_back(now, self.policy)
        return True

    def failed(self, server: Server, call: object, now: float, seconds: float) -> float | None:
        """Note a request at which the server failed.

        Returns:
            For how many seconds it is ejected now; ``None`` if it is not.
        """
        server.failures += 1
        server.in_a_row += 1
        server.note(now, seconds, True, self.policy.decay)
        if server.ejected_until is not None:
            # Else the request began before the server was ejected.
            return server.eject(now, self.policy) if server.trial is call else None
        if server.in_a_row < self.policy.eject_after or server not in self.servers:
            return None
        if len(self.ejected()) >= self._most_ejected():
            return None
        self.special.add(server)
        return server.eject(now, self.policy)

    def slow(self, server: Server, now: float, seconds: float) -> None:
        """Note a request that was given up after ``seconds``, because another server had answered it by then."""
        if server.latency is None or seconds > server.latency:  # it would have taken longer
            server.note(now, seconds, False, self.policy.decay)

    def left(self, call: object) -> None:
        """Note the end of a request, whatever came of it: another one may try the server. Harmless if repeated."""
        for server in self.special:
            if server.trial is call:
                server.trial = None

    def rest(self, server: Server, until: float) -> None:
        """Send no requests to a server before this time, unless there is no other."""
        if server in self.servers:
            server.resting_until = max(server.resting_until, until)
            self.special.add(server)

    def recover(self, server: Server, now: float) -> None:
        """Begin the slow start of a server that was left out for another reason than an ejection."""
        if server in self.servers and server.ejected_until is None and self.policy.slow_start:
            server.ramp_from = now
            self.special.add(server)

    def forget_calls(self) -> None:
        """Forget the requests in progress: they are another process's."""
        for server in self.servers:
            server.trial = None


class RetryBudget:
    """Allows so many retries per request. The caller holds a lock.

    The first requests pay for the `RESERVE`, so that all retries together are
    within the budget after some time, and not above it by the reserve.

    Attributes:
        requests: How many there were. Adding one needs no lock: if two threads do so at once, one may not count.
    """

    def __init__(self, part: float) -> None:
        self._part = part
        self._tokens = float(RESERVE) if part else 0.0
        self._advance = self._tokens  # what was given before it was earned
        self.requests = self._paid_for = 0

    def withdraw(self) -> bool:
        """Return whether one more retry is allowed, and count it."""
        requests = self.requests
        earned, self._paid_for = (requests - self._paid_for) * self._part, requests
        back = min(earned, self._advance)
        self._advance -= back
        self._tokens = min(self._tokens + earned - back, float(RESERVE))
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
