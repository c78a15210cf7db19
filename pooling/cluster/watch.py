"""Asks the servers of a cluster at intervals who they are and how far they are.

It begins at the first use of a cluster in a process. The reaper decides when, and workers ask; there is no thread of
its own. First the primary is asked, then the replicas: what one has replayed is compared with what the primary had
written before.
"""

from __future__ import annotations

import weakref
from math import inf
from typing import Any

from ..core.clock import SYSTEM
from ..core.observer import Observer
from ..core.runtime import registry
from ..core.runtime.fork import SAME_PROCESS, ensure_process
from ..core.runtime.reaper import OptionalRef, SweepRequest
from .choosing import STANDBY
from .server import Server
from .standing import Standing

__all__ = ["Outages", "Watch"]

LONGEST = 1.0
"""Seconds between two checks, at most, while the cluster is used."""

HURRY = 0.25
"""Seconds between two checks while no primary can be reached: one of the others may be promoted at any time."""

REST_AFTER = 30.0
"""Seconds without a request after which the servers are asked less often."""

RESTING = 10.0
"""Seconds between two checks then. The next request waits for a new one."""

HANGS = 2.0
"""Seconds after which a server that does not answer is down."""

_GIVEN_UP = 5 * HANGS  # seconds after which another check begins although one has not ended: its thread died
_LEAST = 0.05


class Watch:
    """The checks of one cluster.

    Args:
        standing: Where the answers go.
    """

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.interval = min(LONGEST, max(0.1, standing.max_lag / 4))
        self._anchor = standing.servers[0].pool.engine  # has another state in each process
        self._state: object = None  # that state, once the checks have begun in this process
        self.ready = False  # the first answers have come, or were waited for
        self._resting = False
        self.due = inf  # of the request at the reaper that counts
        self.closed = False
        self.used = False  # since the last sweep
        self._used_at = 0.0

    @property
    def current(self) -> bool:
        """Whether the servers are known in this process; every request looks at this first."""
        if not SAME_PROCESS[0]:
            ensure_process()
        return self.ready and self._state is self._anchor.state

    @property
    def begun(self) -> bool:
        """Whether the checks are made in this process."""
        return self._state is self._anchor.state and not self._resting

    def begin(self) -> None:
        """Begin to check, also in a forked child, or again after a rest."""
        state = self._anchor.state
        if self._state is not state:  # the first use in this process
            self.standing.renew()
            self._state = state
        for server in self.standing.servers:
            server.checked = False
        self._resting, self.ready, self.used, self._used_at = False, False, True, SYSTEM.now()
        self._ask_at(SYSTEM.now())

    def stop(self) -> None:
        """Check no more."""
        self.closed, self.due = True, inf

    def hurry(self) -> None:
        """Check soon."""
        due = SYSTEM.now() + _LEAST
        if self.due > due and not self.closed:
            self._ask_at(due)

    def _ask_at(self, due: float) -> None:
        self.due = due
        registry.runtime_of(SYSTEM).reaper.post(SweepRequest(OptionalRef(self), due))

    def sweep(self, due: float, now: float) -> bool:
        """Begin the checks that are due. Called by the reaper."""
        if due != self.due or self.closed or self._state is not self._anchor.state:
            return False
        if self.used:
            self.used, self._used_at = False, now
        self._resting = resting = now - self._used_at > REST_AFTER
        if resting:
            self.ready = False  # the next request begins again
        primary = self.standing.view.primary
        urgent = not resting and (primary is None or primary.down is not None or not self.standing.known)
        self._ask_at(now + (RESTING if resting else min(HURRY, self.interval) if urgent else self.interval))
        others = [server for server in self.standing.servers if server is not primary]
        if primary is None or primary.checking_since is not None or primary.down is not None:
            self._submit(primary, ())  # the others do not wait for its answer
            for server in others:
                self._submit(server, ())
        else:
            self._submit(primary, others)
        return True

    def _submit(self, server: Server | None, then: Any) -> None:
        if server is None:
            return
        now = SYSTEM.now()
        if server.checking_since is not None:
            if now - server.checking_since > HANGS:
                self.standing.failed(server, TimeoutError(f"no answer within {HANGS:g} s"))
            if now - server.checking_since < _GIVEN_UP:
                return
        server.checking_since = now
        registry.runtime_of(SYSTEM).workers.submit(self._check, server, then, self._state)

    def _check(self, server: Server, then: Any, state: object) -> None:
        began = SYSTEM.now()
        try:
            answer = server.pool.ask(HANGS)
        except BaseException as error:
            if not self.closed and self._state is state:
                self.standing.failed(server, error)
        else:
            self.standing.learned(server, answer, began)
        finally:
            server.checking_since = None
            for other in then:
                self._submit(other, ())
            if server is self.standing.view.primary:  # found just now: what the others said could not be compared
                for other in self.standing.servers:
                    if other.role == STANDBY and not other.checked:
                        self._submit(other, ())


class Outages(Observer):
    """Tells a cluster at once when connecting to a server fails, or works again."""

    def __init__(
        self, server: weakref.ref[Server], watch: weakref.ref[Watch], standing: weakref.ref[Standing]
    ) -> None:
        self._server, self._watch, self._standing = server, watch, standing  # weak, because the pools refer to this

    def outage_began(self, pool: str, error: BaseException) -> None:
        standing, watch, server = self._standing(), self._watch(), self._server()
        if standing is not None and watch is not None and server is not None:
            standing.failed(server, error)
            watch.hurry()

    def outage_ended(self, pool: str, seconds: float) -> None:
        watch = self._watch()
        if watch is not None:
            watch.hurry()
