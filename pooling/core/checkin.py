"""Checkin: the release of a resource that needs more than a push onto the idle stack (P5).

The resource is reset, checked after an error left the block, closed after
``max_uses``, or discarded.
"""

from __future__ import annotations

import logging
from typing import Any, Generic, TypeVar

from .._fields import fields
from .adapter import overridden
from .engine import Engine
from .entry import Entry, Token
from .liveness import LATE, Liveness
from .report.histogram import FOLD_AT, SHORT
from .runtime.fork import SAME_PROCESS
from .state import WorkerTask

__all__ = ["Checkin"]

R = TypeVar("R")
logger = logging.getLogger("pooling")


class Checkin(Generic[R]):
    """Releases the resources of one engine."""

    def __init__(self, engine: Engine[R], liveness: Liveness[R]) -> None:
        self.engine = engine
        self.liveness = liveness
        adapter = engine.adapter
        self._reset = overridden(adapter, "reset")
        self._resets_inline = self._reset is not None and adapter.enforces_timeouts  # in the releasing thread
        self._judges_errors = overridden(adapter, "is_broken") is not None

    def run(self, token: Token, error: BaseException | None, reason: str | None = None) -> None:
        """Release a resource: reset it, if the pool has a reset; close it if it must not be lent again.

        Args:
            token: The resource.
            error: The exception that left the block.
            reason: Why it must be closed, if that is already known.
        """
        engine, entry = self.engine, token.entry
        if entry() is not token or not (entry in engine.state.entries if SAME_PROCESS[0] else engine.owns(entry)):
            return  # the garbage collector, or the parent process, owns it
        if engine.lock._is_owned():  # the rest calls the adapter
            engine.defer(self.run, token, error, reason)
            return
        now = engine.fast.now()
        held = now - entry.since
        entry.idle_since = now
        entry.uses += 1
        entry.busy += held
        if entry.leaked:
            self.leak_returned(entry, held)
        if held > SHORT:
            self.record_use(held)
        if engine.events.leases_observed:
            engine.events.notify("released", held)
        most = engine.settings.max_uses
        if reason is None and "refuse" in engine.fast.hooks:
            try:
                reason = engine.adapter.refuse(entry.resource, bool(engine.state.waiters))
            except Exception:
                extra = fields("hook_failed", engine.name, hook="refuse")
                logger.exception("pool %r: refuse() failed", engine.name, extra=extra)
        if reason is not None:
            engine.evict(token, reason)
        elif error is not None or (most is not None and entry.uses >= most):
            self._run_doubtful(token, error)
        elif self._reset is None or (self._resets_inline and self.reset(token)):
            # Push it onto the idle stack, as `Lease.__exit__` does; see there.
            fast = engine.fast
            fast.push(token)
            del token  # another thread may own it now
            if (fast.waiters or entry.generation is not fast.returnable_generation) and engine.owns(entry):
                engine.serve()
        elif not self._resets_inline:
            self._reset_on_worker(token, doubtful=False)

    def _push(self, token: Token) -> None:
        """Push a resource onto the idle stack, as `run` does; above ``max_idle`` the least recently used is closed."""
        fast, entry = self.engine.fast, token.entry
        fast.push(token)
        if (fast.waiters or entry.generation is not fast.returnable_generation) and self.engine.owns(entry):
            self.engine.serve()

    def record_use(self, held: float) -> None:
        """Record the duration of a lease longer than `SHORT`; shorter ones are only counted and summed."""
        if self.engine.settings.enable_metrics:
            self.engine.metrics.durations.use.record(held)

    def leak_returned(self, entry: Entry, held: float) -> None:
        """Report the release of a lease that was reported as a leak."""
        entry.leaked = False
        self.engine.events.leak_returned(entry, held)

    def detach(self, token: Token) -> Any:
        """End a lease and remove its resource from the pool, still open."""
        engine, entry = self.engine, token.entry
        entry.idle_since = now = engine.fast.now()  # first: a lease that has ended is not counted as lent, too
        entry.uses += 1
        entry.busy += now - entry.since
        try:
            engine.retire(entry, "detached")
            engine.serve()
            return entry.resource
        except BaseException:
            if not engine.state.owns(entry):  # otherwise the reaper reclaims it
                engine.close_entry(entry, None)
            raise

    # -- discard or keep ------------------------------------------------------

    def _run_doubtful(self, token: Token, error: BaseException | None) -> None:
        """Release a resource that may have to be closed, because of its uses or its borrower's error."""
        reason = self._discard_reason(token.entry, error)
        if reason is not None:
            self.engine.evict(token, reason)
            if reason == "broken":
                self.liveness.suspect_older(by_round_trip=False)
            return
        doubtful = error is not None and not self._judges_errors and self.liveness.validate_hook is not None
        if self._reset is None and doubtful:
            self.liveness.validate_on_worker(token)
        elif self._reset is not None and not self._resets_inline:
            self._reset_on_worker(token, doubtful)
        elif doubtful:
            self.liveness.check(token, self._reset_and_return)
        elif self._reset is None or self.reset(token):
            self._push(token)

    def _discard_reason(self, entry: Entry, error: BaseException | None) -> str | None:
        """Return the reason to close a released resource, or ``None``."""
        most = self.engine.settings.max_uses
        if most is not None and entry.uses >= most:
            return "max_uses"
        if error is None:
            return None
        if not (self._judges_errors or isinstance(error, (Exception, GeneratorExit))):
            return "interrupted"  # its borrower may have left it in any state
        try:
            return "broken" if self.engine.adapter.is_broken(entry.resource, error) else None
        except Exception:
            name = self.engine.name
            logger.exception("pool %r: is_broken() failed", name, extra=fields("hook_failed", name, hook="is_broken"))
            return "broken"

    # -- reset ----------------------------------------------------------------

    def reset(self, token: Token) -> bool:
        """Reset a resource; evict it and return ``False`` if that fails."""
        engine, entry = self.engine, token.entry
        try:
            answered = self._reset(entry.resource)  # type: ignore[misc]
        except Exception as error:
            self.liveness.reset_failed(token, error)
            return False
        except BaseException as error:
            engine.events.reset_failed(error)
            engine.evict(token, "reset")
            raise
        sent = self._resets_inline and answered == "sent"  # the return value of a plain function means nothing
        if self.liveness.resets.trouble and not sent:
            self.liveness.resets.succeeded()
        now = engine.fast.now()
        if engine.settings.enable_metrics:
            durations = engine.metrics.durations.release
            durations.recent.append(now - entry.idle_since)  # as `record`, without the call
            if not len(durations.recent) % FOLD_AT:
                durations.fold()
        entry.idle_since = now
        entry.answered = None if sent else False
        if sent:
            engine.schedule_sweep(now + LATE)
        if answered and self._resets_inline and not sent:
            entry.answered, entry.checked = True, now
        return True

    def _reset_on_worker(self, token: Token, doubtful: bool) -> None:
        engine = self.engine
        with engine.lock:
            engine.metrics.note_in_use()  # in use until now: a reset is not part of the lease
        limit, job = engine.settings.reset_timeout, self._reset_and_return
        if doubtful:
            limit += engine.settings.health_check_timeout
            job = self._validate_and_reset
        self.liveness.run_on_worker(token, job, WorkerTask(limit, round_trip=doubtful))

    def _reset_and_return(self, token: Token) -> None:
        if self.reset(token):
            self.engine.make_available(token)

    def _validate_and_reset(self, token: Token) -> None:
        self.liveness.check(token, self._reset_and_return)
