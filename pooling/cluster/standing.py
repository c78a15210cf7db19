"""Which server is the primary and which replicas can be read, as this process knows it; and waiting for a change."""

from __future__ import annotations

import _thread
import logging
import queue
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .._fields import fields
from ..core.clock import SYSTEM
from ..core.runtime.gevent import put
from .choosing import PRIMARY, STANDBY, find_primary, obstacle
from .history import History
from .server import Answer, Server

__all__ = ["Standing", "View"]

logger = logging.getLogger("pooling")


class View(NamedTuple):
    """What a request looks at; replaced as a whole.

    Attributes:
        primary: Where writes go; ``None`` while no server is it.
        replicas: Where reads go.
        timeline: The primary's; 0 if it is not known.
    """

    primary: Server | None
    replicas: tuple[Server, ...]
    timeline: int


class Standing:
    """What is known of the servers of one cluster.

    Args:
        name: The cluster's.
        servers: In the order given; the first one is the primary until something else is known.
        max_lag: Seconds that a replica may be behind.
    """

    def __init__(self, name: str, servers: Sequence[Server], max_lag: float) -> None:
        self.name, self.servers, self.max_lag = name, tuple(servers), max_lag
        self.view = View(self.servers[0], (), 0)
        self._reported: Server | None = self.servers[0]
        self.renew()

    def renew(self) -> None:
        """Begin anew in a forked child, but with the parent's primary."""
        self.lock: Any = _thread.RLock()  # native, under gevent too, as the pool's own
        self._boxes: deque[Any] = deque()
        self.history = History(max(60.0, 2 * min(self.max_lag, 3600.0)))
        for server in self.servers:
            server.renew()
        self.view = View(self.view.primary, (), 0)

    @property
    def known(self) -> bool:
        """Whether each server was asked, and compared with the primary, or is known to be down."""
        return all(server.checked or server.down is not None for server in self.servers)

    # -- news of a server ------------------------------------------------------------

    def learned(self, server: Server, answer: Answer, asked_at: float) -> None:
        """Take what a server has said."""
        with self.lock:
            came_back = server.down is not None or (server.checked and server.obstacle is not None)
            server.learn(answer, asked_at)
            server.down, server.suspect = None, False
            primary = self.view.primary
            if not answer.standby:
                server.checked = True
                if server is primary:
                    self.history.note(asked_at, answer.lsn)
            elif self.history or primary is None or primary.down is not None:
                server.checked = True
                server.lag = self.history.lag(answer.lsn, asked_at, answer.age)
        self.refresh(server if came_back else None)

    def advanced(self, server: Server, answer: Answer, asked_at: float) -> None:
        """Take what a server has said on a borrower's connection: only that it has come further."""
        with self.lock:
            if answer.standby and server.checked and answer.lsn >= server.lsn:
                server.learn(answer, asked_at)
        if not answer.standby:
            self.learned(server, answer, asked_at)

    def failed(self, server: Server, error: BaseException) -> None:
        """Take that a server does not answer."""
        with self.lock:
            server.fail(error)
        self.refresh()

    def suspected(self, server: Server) -> None:
        """Take that a connection to a server was lost: no reads go there until it has answered."""
        with self.lock:
            server.suspect = True
        self.refresh()

    def demoted(self, server: Server) -> None:
        """Take that a server is a standby: it has just said so."""
        with self.lock:
            server.role = STANDBY
        self.refresh()

    # -- conclusions -----------------------------------------------------------------

    def refresh(self, came_back: Server | None = None) -> None:
        """Draw the conclusions; have those who wait at the wrong server ask again."""
        with self.lock:
            before, now = self.view, SYSTEM.now()
            primary = find_primary(self.servers, before.primary)
            timeline = before.timeline
            if primary is not None and primary.role == PRIMARY:
                timeline = primary.timeline or 0
            if primary is not before.primary and primary is not None:
                self.history.clear()
                for server in self.servers:
                    server.lag = 0.0  # it was that to the former primary
                if primary.role == PRIMARY and primary.checked:
                    self.history.note(primary.seen_at, primary.lsn)
            changed = []
            for server in self.servers:
                found = obstacle(server, self.max_lag, timeline)
                if (found is None) != (server.obstacle is None):
                    changed.append(server)
                server.obstacle = found
            if came_back is not None and came_back.obstacle is None and came_back in changed:
                came_back.back_at = now
            replicas = tuple(server for server in self.servers if server.obstacle is None and server is not primary)
            self.view = View(primary, replicas, timeline)
        if primary is not self._reported and self.known:
            self._reported = primary
            self._report(primary)
        for server in self.servers:
            if server.pool.engine.state.waiters and not (server is primary or server in replicas):
                server.pool.reroute(f"not to be used: {server.obstacle or server.role}")
        self.wake()

    def _report(self, primary: Server | None) -> None:
        if primary is None:
            logger.warning(
                "cluster %r: no server is the primary", self.name, extra=fields("primary_missing", self.name)
            )
        else:
            logger.warning(
                "cluster %r: the primary is %s now", self.name, primary.label,
                extra=fields("primary_changed", self.name, server=primary.label),
            )  # fmt: skip

    # -- waiting ---------------------------------------------------------------------

    def wake(self) -> None:
        """Let those who wait look again."""
        boxes = self._boxes
        while boxes:
            try:
                put(boxes.popleft(), None)
            except IndexError:
                return

    def wait(self, reached: Callable[[], object], deadline: float) -> bool:
        """Wait until a condition holds; return whether it does at the deadline."""
        while not reached():
            box: Any = queue.SimpleQueue()  # looked up here: gevent replaces it
            self._boxes.append(box)
            try:
                if reached():
                    return True
                SYSTEM.get(box, deadline - SYSTEM.now())
            except queue.Empty:
                return bool(reached())
            finally:
                try:
                    self._boxes.remove(box)
                except ValueError:
                    pass  # it was woken
        return True

    def describe(self) -> str:
        """Return what is known of each server, for messages."""
        return ", ".join(f"{server.label}: {self._state_of(server)}" for server in self.servers)

    @staticmethod
    def _state_of(server: Server) -> str:
        if server.down is not None:
            return f"down ({server.down})"
        return server.role if server.obstacle in (None, server.role) else f"{server.role}, {server.obstacle}"
