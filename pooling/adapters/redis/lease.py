"""A lease of a connection, whose release is short where the borrower left nothing behind."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ...core.lease import Lease, once
from ...core.report.histogram import SHORT
from .client import Client

__all__ = ["RedisLease", "active", "end"]


class RedisLease(Lease[Client]):
    """Ends as `Lease` does, but asks the adapter only about a connection on which something was left."""

    __slots__ = ()

    _pool: Any  # a `RedisPool`

    @once
    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token = self._token
        self._token = None
        if token is None:
            return  # ended inside the block
        entry = token.entry
        pool = self._pool
        fast = pool._fast
        if (
            error is None
            and entry.generation is fast.returnable_generation
            and not fast.notes_release
            and not pool._liveness.resets.trouble  # else this one counts: it needs no reset
            and entry() is token
        ):
            client: Client = entry.resource
            conn: Any = client.own
            # As `RedisAdapter.refuse` and `RedisAdapter.reset` decide.
            if conn.quick and not (
                conn.unread or conn.marks or conn.lost or conn._should_reconnect or conn._sock is None
            ):
                if client.raw:
                    client.end_lease()
                # As `Lease.__exit__`; see there.
                clock, push = fast.now, fast.push
                now = clock()
                held = now - entry.since
                if conn.replied > now - pool.answer_ttl:
                    entry.answered, entry.checked = True, now
                else:
                    entry.answered = False
                entry.idle_since = now
                entry.uses += 1
                entry.busy += held
                if entry.leaked:
                    pool._checkin.leak_returned(entry, held)
                push(token)
                if fast.waiters or entry.generation is not fast.returnable_generation:
                    engine = pool.engine
                    if engine.owns(entry):
                        engine.serve()
                if held > SHORT:
                    pool._checkin.record_use(held)
                return
        pool._checkin.run(token, error)


# For handles: a class of connections may have other methods of these names.
end = RedisLease.__exit__
active: Any = RedisLease.active.fget  # type: ignore[attr-defined]
