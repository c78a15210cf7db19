"""Lends connections to the primary for writes, and to a replica, or the primary within its budget, for reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import TracebackType

from ..adapters.postgres.blocks import Block, CommitUnknown, may_run_again
from ..adapters.postgres.tracking import Connection, notes_of
from ..core.clock import SYSTEM, seconds
from ..core.engine import Engine
from ..core.lease import Lease
from ..core.pool import Pool
from ..errors import CreateFailed, PoolClosed, PoolTimeout, PoolUnavailable
from ..lanes import named
from .choosing import choose, covers
from .position import Position
from .server import Rerouted, Server, ServerPool, ask, is_standby, lost, made_at
from .standing import Standing
from .watch import Watch

__all__ = ["Reading", "ReadBlock", "ReadLease", "Router", "WriteBlock", "Writing"]

FIRST = 1.0
"""Seconds that the first request waits at most until every server was asked."""

ASK_AGAIN = 0.02
"""Seconds until a replica that has not replayed a position is asked for it again."""

_ASK_LIMIT = 2.0


class Router:
    """Where requests of one cluster go.

    Args:
        standing: What is known of the servers.
        watch: Who finds it out.
        permits: For reads on the primary: a pool with so many resources as there may be reads; ``None``: no limit.
        allowed: Whether reads may go to the primary at all.
    """

    def __init__(self, standing: Standing, watch: Watch, permits: Pool[object] | None, allowed: bool) -> None:
        self.standing, self.watch, self.permits, self.allowed = standing, watch, permits, allowed
        self.random: Callable[[], float] = random.random
        self.closed = False

    @property
    def engine(self) -> Engine[Connection]:
        """The mechanism of the primary's pool."""
        return (self.standing.view.primary or self.standing.servers[0]).pool.engine

    def learn(self, deadline: float) -> None:
        """Begin the checks, and wait until every server was asked: at the first request, and at one after a rest."""
        self.refuse_closed()
        watch, standing = self.watch, self.standing
        if not watch.begun:
            watch.begin()
        standing.wait(lambda: standing.known, min(deadline, SYSTEM.now() + FIRST))
        watch.ready = True

    def refuse_closed(self) -> None:
        """Raise `PoolClosed` if the cluster was closed."""
        if self.closed:
            raise PoolClosed(f"cluster {self.standing.name!r} is closed")

    def _deadline(self, timeout: float | None, began: float) -> float:
        return began + (self.engine.settings.acquire_timeout if timeout is None else seconds(timeout))

    # -- writes ----------------------------------------------------------------------

    def write(self, timeout: float | None, depth: int, lane: str | None = None) -> Lease[Connection]:
        """Lend a connection to the primary; wait while there is none.

        Raises:
            As for `Pool.acquire`.
        """
        watch, standing, began = self.watch, self.standing, SYSTEM.now()
        if not watch.current:
            deadline = self._deadline(timeout, began)
            self.learn(deadline)
            timeout = max(0.0, deadline - SYSTEM.now())
            began = SYSTEM.now()
        watch.used = True
        server = standing.view.primary
        if server is not None:
            try:
                lease = server.pool.acquire(timeout, depth + 1, *named(lane))
            except (PoolUnavailable, CreateFailed) as error:
                if standing.view.primary is server and not isinstance(error, Rerouted):
                    raise
            else:
                if self._is_primary(server, lease):
                    return lease
        return self._write_elsewhere(self._deadline(timeout, began), depth + 1, lane)

    def _write_elsewhere(self, deadline: float, depth: int, lane: str | None) -> Lease[Connection]:
        """Lend a connection to the server that becomes the primary."""
        standing = self.standing
        while True:
            self.watch.hurry()
            if not standing.wait(lambda: standing.view.primary is not None or self.closed, deadline):
                raise PoolTimeout(f"cluster {standing.name!r}: no primary in time ({standing.describe()})")
            self.refuse_closed()
            server = standing.view.primary
            if server is None:
                continue
            try:
                lease = server.pool.acquire(max(0.0, deadline - SYSTEM.now()), depth + 1, *named(lane))
            except (PoolUnavailable, CreateFailed) as error:
                if standing.view.primary is server and not isinstance(error, Rerouted):
                    raise
                continue
            if self._is_primary(server, lease):
                return lease

    def _is_primary(self, server: Server, lease: Lease[Connection]) -> bool:
        """Whether a lease is one to the primary; otherwise it is ended.

        A connection that was made before a promotion learns of it with the next answer, so the server is asked.
        """
        conn = lease.__enter__()
        if not is_standby(conn):
            return True
        try:
            answer = ask(conn, _ASK_LIMIT)
        except Exception:
            lease.discard()
        else:
            if not answer.standby:
                return True
            lease.release()
            self.standing.demoted(server)
        self.watch.hurry()
        return False

    # -- reads -----------------------------------------------------------------------

    def read(
        self, after: Position | None, timeout: float | None, depth: int, lane: str | None = None,
        tried: set[Server] | None = None,
    ) -> ReadLease:  # fmt: skip
        """Lend a connection for reading.

        Args:
            after: What its server must have replayed.
            timeout: Seconds to wait; ``None`` means the pool's ``acquire_timeout``.
            depth: Of the borrower's frame.
            lane: As for `Pool.acquire`.
            tried: Servers where this read has failed; those that fail now are added.

        Raises:
            As for `Pool.acquire`.
        """
        watch, standing, now = self.watch, self.standing, SYSTEM.now()
        deadline: float | None = None
        if not watch.current:
            deadline = self._deadline(timeout, now)
            self.learn(deadline)
            now = SYSTEM.now()
            timeout = max(0.0, deadline - now)
        watch.used = True
        tried = set() if tried is None else tried
        while True:
            replicas = standing.view.replicas
            if tried or after is not None:
                replicas = self._suitable(after, tried, now)
            if not replicas:
                deadline = self._deadline(timeout, now) if deadline is None else deadline
                return self._read_on_primary(after, deadline, depth + 1, lane)
            server = choose(replicas, now, self.random)
            try:
                lease = server.pool.acquire(timeout, depth + 1, *named(lane))
            except (PoolUnavailable, CreateFailed) as error:
                if not isinstance(error, Rerouted):
                    standing.failed(server, error.__cause__ or error)
                tried.add(server)
            except PoolTimeout:
                if timeout != 0:
                    raise
                tried.add(server)  # nothing is idle there
            else:
                if after is None or self._has(server, lease, after):
                    return ReadLease(self, server, lease)
                if lease.active:
                    lease.release()
            if deadline is None:
                deadline = self._deadline(timeout, now)
            now = SYSTEM.now()
            timeout = max(0.0, deadline - now)

    def _suitable(self, after: Position | None, tried: set[Server], now: float) -> tuple[Server, ...]:
        """Return the replicas that a read may go to: if it needs a position, those that have it, or may have it."""
        view = self.standing.view
        found = tuple(server for server in view.replicas if server not in tried)
        if after is None:
            return found
        sure = tuple(server for server in found if covers(server, after, view.timeline))
        return sure or tuple(server for server in found if server.asked_at < now - ASK_AGAIN)

    def _has(self, server: Server, lease: Lease[Connection], after: Position) -> bool:
        """Whether the server of a connection has replayed a position; it is asked if that is not known.

        A replica that restarts begins at an earlier position. So what was seen of it before a connection was made
        says nothing about that one.
        """
        conn, timeline = lease.__enter__(), self.standing.view.timeline
        if made_at(conn) <= server.seen_at and covers(server, after, timeline):
            return True
        now = SYSTEM.now()
        try:
            answer = ask(conn, _ASK_LIMIT)
        except Exception:
            server.asked_at = now
            lease.discard()
            return False
        self.standing.advanced(server, answer, now)
        server.asked_at = now
        if not answer.standby:
            return True
        seen = Server.__new__(Server)
        seen.timeline, seen.lsn = answer.timeline, answer.lsn
        return covers(seen, after, timeline)

    def _read_on_primary(
        self, after: Position | None, deadline: float, depth: int, lane: str | None
    ) -> ReadLease:
        standing = self.standing
        permit: Lease[object] | None = None
        if not self._may_read_primary():
            if not standing.wait(
                lambda: self._may_read_primary() or self._suitable(after, set(), SYSTEM.now()) or self.closed, deadline
            ):
                text = f"cluster {standing.name!r}: no replica to read from, and "
                if not self.allowed:
                    raise PoolUnavailable(f"{text}primary_reads=0 ({standing.describe()})")
                raise PoolTimeout(f"{text}no primary in time ({standing.describe()})")
            self.refuse_closed()
            return self.read(after, max(0.0, deadline - SYSTEM.now()), depth + 1, lane)
        if self.permits is not None:
            try:
                permit = self.permits.acquire(max(0.0, deadline - SYSTEM.now()), depth + 1)
            except PoolTimeout as error:
                raise PoolTimeout(
                    f"cluster {standing.name!r}: no replica to read from ({standing.describe()}), and the primary's "
                    f"budget for reads was used up in time: {error}"
                ) from error.__cause__
        try:
            lease = self.write(max(0.0, deadline - SYSTEM.now()), depth + 1, lane)
        except BaseException:
            if permit is not None:
                permit.release()
            raise
        found = self.standing.view.primary
        server = found if found is not None and found.pool is lease._pool else self._server_of(lease)
        return ReadLease(self, server, lease, permit)

    def _may_read_primary(self) -> bool:
        primary = self.standing.view.primary
        return self.allowed and primary is not None and primary.down is None

    def _server_of(self, lease: Lease[Connection]) -> Server:
        return next(server for server in self.standing.servers if server.pool is lease._pool)

    def failed(self, server: Server, lease: Lease[Connection], error: BaseException) -> None:
        """Look after a server if an error means that a connection to it was lost."""
        if lost(lease, error):
            if server is not self.standing.view.primary:
                self.standing.suspected(server)
            self.watch.hurry()


class ReadLease(Lease[Connection]):
    """A lease for reading. Measures how long it takes."""

    __slots__ = ("server", "_router", "_permit")

    def __init__(
        self, router: Router, server: Server, lease: Lease[Connection], permit: Lease[object] | None = None
    ) -> None:
        self.server, self._router, self._permit = server, router, permit
        self._pool, self._token = lease._pool, lease._token
        lease._token = None
        conn = self.__enter__()
        if not is_standby(conn) and not notes_of(conn).foreign:
            conn.read_only = True  # a replica refuses writes anyway

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token = self._token
        if token is not None:
            now = SYSTEM.now()
            if error is not None:
                self._router.failed(self.server, self, error)
            elif token.entry.uses:  # the first lease of a connection tells about the connection
                self.server.took.note(now - token.entry.since, now)
        try:
            super().__exit__(exc_type, error, traceback)
        finally:
            self._return_permit()

    def discard(self) -> None:
        try:
            super().discard()
        finally:
            self._return_permit()

    def detach(self) -> Connection:
        try:
            return super().detach()
        finally:
            self._return_permit()

    def _return_permit(self) -> None:
        permit, self._permit = self._permit, None
        if permit is not None and permit.active:
            permit.release()


class WriteBlock(Block):
    """The context manager of ``cluster.connection()``."""

    __slots__ = ("_router",)

    def __init__(self, router: Router, timeout: float | None, lane: str | None) -> None:
        self._router, self._timeout, self._lane = router, timeout, lane

    def __enter__(self) -> Connection:
        self._lease = lease = self._router.write(self._timeout, 2, self._lane)
        self._pool = lease._pool  # type: ignore[assignment]
        return lease.__enter__()


class ReadBlock(Block):
    """The context manager of ``cluster.read()``."""

    __slots__ = ("_router", "_after")

    def __init__(self, router: Router, after: Position | None, timeout: float | None, lane: str | None) -> None:
        self._router, self._after, self._timeout, self._lane = router, after, timeout, lane

    def __enter__(self) -> Connection:
        self._lease = lease = self._router.read(self._after, self._timeout, 2, self._lane)
        self._pool = lease._pool  # type: ignore[assignment]
        return lease.__enter__()


class Writing:
    """The pool of one call of ``run()``, for `shared.retrying`."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.pool: ServerPool | None = None

    @property
    def engine(self) -> Engine[Connection]:
        """The mechanism of the primary's pool."""
        return self.router.engine

    @property
    def lent_by(self) -> ServerPool:
        """The pool of the last lease."""
        assert self.pool is not None
        return self.pool

    def acquire(self, timeout: float | None = None, _depth: int = 1) -> Lease[Connection]:
        """Lend a connection to the primary."""
        lease = self.router.write(timeout, _depth + 1)
        self.pool = lease._pool  # type: ignore[assignment]
        return lease

    def may_run_again(self, conn: Connection, error: Exception) -> bool:
        """Whether the work may succeed on another connection, or at another server."""
        return may_run_again(self.lent_by, conn, error)


class Reading(Writing):
    """The pool of one read that may be repeated at other servers."""

    def __init__(self, router: Router, after: Position | None) -> None:
        super().__init__(router)
        self.after = after
        self.tried: set[Server] = set()
        self._server: Server | None = None

    def acquire(self, timeout: float | None = None, _depth: int = 1) -> ReadLease:
        """Lend a connection for reading, to a server where this read has not failed."""
        lease = self.router.read(self.after, timeout, _depth + 1, None, self.tried)
        self._server, self.pool = lease.server, lease._pool  # type: ignore[assignment]
        return lease

    def may_run_again(self, conn: Connection, error: Exception) -> bool:
        """Whether to repeat it elsewhere: it only reads, so also where it is unknown whether it took effect."""
        assert self._server is not None
        self.tried.add(self._server)
        return isinstance(error, CommitUnknown) or super().may_run_again(conn, error)

