"""Liveness: checks whether resources are alive, and which are suspect (P6).

If the adapter enforces time limits itself, a check runs in the thread that
needs it. Otherwise it runs on a worker with a time limit that the reaper
enforces, so that a check that hangs blocks no borrower, and after its limit no
slot (P4).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

from .._fields import fields
from ..settings import PoolSettings
from .adapter import overridden
from .engine import Engine
from .entry import DEAD, Entry, Token
from .events import Resets
from .hangup import connected
from .report.messages import format_error
from .schedule import NEVER
from .state import WorkerTask
from .suspicion import Suspicion

__all__ = ["ANSWER_TTL", "LATE", "Liveness"]

R = TypeVar("R")
logger = logging.getLogger("pooling")

ANSWER_TTL = 1e-4
"""Seconds for which a peer that answered during a release counts as alive: a check's result would be just as old by
the time it is used. Not more, because a server that is told to end a session does so within half a millisecond (P6)."""

LATE = 1.0
"""Seconds after which a sweep reads the answer to a reset that nobody has needed: it may say that the reset has failed,
and that the session still holds a lock."""

_SLICE = 0.1  # seconds that a worker waits for the end of a reset before it looks whether the pool was closed

ABANDONED = object()
"""The generation of an entry whose check or close exceeded its time limit."""


class Liveness(Generic[R]):
    """Checks the resources of one engine."""

    def __init__(self, engine: Engine[R]) -> None:
        self.engine = engine
        self._is_alive = overridden(engine.adapter, "is_alive")
        self.validate_hook: Callable[[R, float], Any] | None = overridden(engine.adapter, "validate")
        self.resets = Resets(engine.events)
        self.configure(engine.settings)
        self.renew()

    def renew(self) -> None:
        """Start without suspicion; also in a forked child."""
        self.suspicion = Suspicion(self.engine.fast.now(), self.engine.clock.wall())

    def configure(self, settings: PoolSettings) -> None:
        """Apply settings."""
        self.validation_interval = settings.validation_interval if settings.validate_on_acquire else math.inf
        self.answer_ttl = min(ANSWER_TTL, self.validation_interval)

    # -- without a round trip -------------------------------------------------

    def is_sound(self, entry: Entry, now: float) -> bool:
        """Whether a resource is alive and needs no round trip. Marks a dead one."""
        if entry.answered and entry.checked > now - self.answer_ttl and entry.checked > self.suspicion.since:
            return True
        if entry.answered is None and not self.has_ended_reset(entry):
            return False
        is_alive = connected if entry.watched else self._is_alive
        if is_alive is not None:
            try:
                if not is_alive(entry.resource):
                    entry.generation = DEAD
                    return False
            except Exception:
                self._log_failed_check()
                entry.generation = DEAD
                return False
        return self.validate_hook is None or self.suspicion.trusts(
            entry, now, self.engine.clock.wall(), self.validation_interval
        )

    def is_alive(self, entry: Entry) -> bool:
        """Check a resource without a round trip."""
        is_alive = connected if entry.watched else self._is_alive
        try:
            return is_alive is None or is_alive(entry.resource)
        except Exception:
            self._log_failed_check()
            return False

    def _log_failed_check(self, hook: str = "is_alive") -> None:
        name = self.engine.name
        extra = fields("hook_failed", name, hook=hook)
        logger.debug("pool %r: %s() failed", name, hook, exc_info=True, extra=extra)

    # -- the end of a reset ---------------------------------------------------

    def has_ended_reset(self, entry: Entry, timeout: float = 0.0) -> bool:
        """Whether the reset that its last release has sent has ended, at most ``timeout`` seconds from now.

        Marks a resource whose reset has failed.
        """
        if entry.answered is not None:
            return not isinstance(entry.answered, Exception)
        try:
            ended = self.engine.adapter.finish_reset(entry.resource, timeout)
        except Exception as error:
            broken = self._is_broken(entry, error)  # as dead as any other whose connection has ended
            entry.answered = False if broken else error.with_traceback(None)
            with self.engine.lock:
                if entry.generation is not ABANDONED:
                    entry.generation = DEAD
            return False
        if ended:
            # The answer may have come at any time since the release.
            entry.checked = max(entry.checked, entry.idle_since)
            entry.answered = False
            if self.resets.trouble:
                self.resets.succeeded()
        return ended

    def finish_on_worker(self, token: Token) -> None:
        """Wait on a worker for the end of a reset, then make the resource available or evict it."""
        task = WorkerTask(self.engine.settings.reset_timeout, round_trip=False, late=True)
        self.run_on_worker(token, self._finish, task)
        self.engine.serve()  # its borrower may have another one

    def _finish(self, token: Token) -> None:
        engine, entry = self.engine, token.entry
        while not self.has_ended_reset(entry, _SLICE):
            if entry.generation is ABANDONED:
                return
            if entry.generation is DEAD:
                self.found_dead(token, "dead", None)
                return
            if engine.state.closed:
                break  # nobody needs the answer any more
        engine.make_available(token)

    def _is_broken(self, entry: Entry, error: Exception) -> bool:
        try:
            return self.engine.adapter.is_broken(entry.resource, error)
        except Exception:
            self._log_failed_check("is_broken")
            return True

    def reset_failed(self, token: Token, error: Exception) -> None:
        """Close a resource whose reset has failed."""
        engine = self.engine
        engine.events.reset_failed(error)
        engine.evict(token, "reset")
        self.resets.failed(error, engine.fast.now())

    # -- with a round trip ----------------------------------------------------

    def validate(self, token: Token, limit: float) -> Exception | None:
        """Make a round trip; return the error if the resource is dead."""
        engine, entry = self.engine, token.entry
        started = engine.fast.now()
        try:
            self.report_frozen()
            if not self.has_ended_reset(entry, limit):
                late = TimeoutError(f"its reset had no answer within {limit:g} s")
                return entry.answered if isinstance(entry.answered, Exception) else late
            engine.adapter.validate(entry.resource, limit)
        except Exception as error:
            return error.with_traceback(None)  # its frames refer to the token
        except BaseException:
            engine.evict(token, "interrupted")
            raise
        entry.checked = now = engine.fast.now()
        self.suspicion.survived()
        if engine.settings.enable_metrics:
            engine.metrics.durations.validate.record(now - started)
        return None

    def check(self, token: Token, then: Callable[[Token], object] | None = None, health: bool = False) -> None:
        """Validate a resource, then make it available or evict it.

        Args:
            token: The resource.
            then: Called with a resource that is alive instead of `Engine.make_available`.
            health: Count and report it as a health check.
        """
        error = self.validate(token, self.engine.settings.health_check_timeout)
        if token.entry.generation is ABANDONED:
            return  # it exceeded its time limit, and was reported then
        if health and not isinstance(token.entry.answered, Exception):  # a failed reset says nothing about the server
            self.engine.events.health_checked(error, self.engine.clock.wall())
        if error is not None:
            self.found_dead(token, "invalid", error)
        else:
            (then or self.engine.make_available)(token)

    def check_idle(self, token: Token) -> None:
        """Check a resource that was removed from the idle stack, and put it back or evict it."""
        if not self.has_ended_reset(token.entry) and token.entry.generation is not DEAD:
            self.engine.make_available(token)  # the reset has its own time limit
        elif token.entry.generation is DEAD or not self.is_alive(token.entry):
            self.found_dead(token, "dead", None)
        elif self.validate_hook is None:
            self.engine.make_available(token)
        elif not self.engine.adapter.enforces_timeouts:
            self.validate_on_worker(token)
        else:
            self.check(token)

    def finish_resets(self, now: float) -> float:
        """Read the answers to resets that were sent at least `LATE` seconds ago; return when to call again."""
        due = NEVER
        for token in self.engine.state.idle.tokens():
            entry = token.entry
            if entry.answered is not None:
                continue
            if entry.idle_since + LATE > now:
                due = min(due, entry.idle_since + LATE)
            elif self.engine.state.idle.take(token):  # else it was lent meanwhile
                if self.has_ended_reset(entry):
                    self.engine.make_available(token)
                elif entry.generation is DEAD:
                    self.found_dead(token, "dead", None)
                else:
                    self.finish_on_worker(token)
        return due

    def check_all_idle(self) -> None:
        """Check every idle resource."""
        for token in self.engine.state.idle.tokens():
            if self.engine.state.idle.take(token):  # else it was lent meanwhile, and checked there
                self.check_idle(token)
        self.engine.serve()

    def validate_on_worker(self, token: Token, health: bool = False) -> None:
        """Validate a resource on a worker, then make it available or evict it."""
        task = WorkerTask(self.engine.settings.health_check_timeout, round_trip=True, health=health)
        self.run_on_worker(token, lambda token: self.check(token, health=health), task)

    def report_frozen(self) -> None:
        """Log that the process was frozen, once; whoever has noticed it: a borrower, or a sweep."""
        engine = self.engine
        if not self.suspicion.unreported:
            return
        with engine.lock:
            frozen, self.suspicion.unreported = self.suspicion.unreported, False
        if frozen:
            extra = fields("frozen", engine.name)
            logger.info("pool %r: the process was frozen; idle resources are suspect", engine.name, extra=extra)

    # -- deaths ---------------------------------------------------------------

    def found_dead(self, token: Token, reason: str, error: Exception | None) -> None:
        """Evict a dead resource. Resources last seen alive earlier become suspect, or are replaced."""
        if isinstance(token.entry.answered, Exception):
            self.reset_failed(token, token.entry.answered)
            return
        self.engine.evict(token, reason)
        self.suspect_older(by_round_trip=error is not None)
        self.engine.serve()
        self.engine.events.validation_failed(error, reason)

    def suspect_older(self, by_round_trip: bool) -> None:
        """After a proven death, suspect all resources last seen alive before it (P6)."""
        engine = self.engine
        most = engine.settings.max_validation_failures
        with engine.lock:
            replace_all = self.suspicion.died(engine.fast.now(), by_round_trip, most)
        if replace_all:
            engine.drain()
            engine.events.all_suspect_replaced(most)
            engine.serve()

    def no_answer(self, task: WorkerTask) -> None:
        """Record a round trip that exceeded its time limit as a failed one."""
        error = TimeoutError(f"no answer within {task.limit:g} s")
        if task.health:
            self.engine.events.health_checked(error, self.engine.clock.wall())
        self.suspect_older(by_round_trip=True)
        self.engine.events.validation_failed(error, "invalid")

    # -- on a worker, with a time limit ---------------------------------------

    def run_on_worker(self, token: Token, job: Callable[[Token], object], task: WorkerTask) -> None:
        """Check or reset a resource on a worker, in a copy of this context.

        If that hangs, its slot is freed at the time limit.
        """
        engine = self.engine
        if engine.lock._is_owned():
            engine.defer(self.run_on_worker, token, job, task)
            return
        entry, now = token.entry, engine.fast.now()
        with engine.lock:
            entry.since = now  # set first: it must not look overdue in `checking`
            engine.state.checking[entry] = task
            engine.state.waiters.take_back(entry)
            engine.schedule_sweep(now + task.limit)
        engine.runtime.workers.submit(self._work, token, job, copy_context(), engine.ref())

    def _work(self, token: Token, job: Callable[[Token], object], context: Context, owner: object) -> None:
        engine = self.engine
        try:
            context.run(job, token)
        except BaseException as error:  # there is no caller to raise it to
            why = format_error(error)
            extra = fields("check_failed", engine.name, error=why)
            logger.warning("pool %r: a check or reset failed: %s", engine.name, why, extra=extra)
        if token.entry.generation is ABANDONED:
            engine.close_entry(token.entry, None)  # it returned after its time limit
