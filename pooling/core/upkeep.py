"""Is a resource alive, and as good as new? And what becomes of those that are not (P5, P6).

What the adapter bounds itself runs where it is asked for; all else runs on a
worker, under a time limit that the reaper keeps: work that hangs holds nobody,
and past its limit no slot either (P4).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TypeVar

from ..errors import PoolError
from .adapter import Verdicts
from .entry import Entry, Key
from .holders import place_of
from .observer import tell
from .slots import Slots
from .state import Errand
from .words import say

__all__ = ["Upkeep"]

R = TypeVar("R")
logger = logging.getLogger("pooling")
_ABANDONED = object()  # the generation of an entry whose work took too long


# Resets keep failing from three in a row, or more than one in five, until they work again: a failure weighs
# as much as so many that work. What comes back so soon after it was over is the same incident.
_WEIGHT, _BEGINS, _MOST = 4, 12, 48
_SAME_INCIDENT = 60.0  # seconds


class Upkeep(Slots[R]):
    """Checks, resets, and cuts off what hangs."""

    # Guarded by the lock, but for the first, which each reset that works looks at.
    _reset_trouble = 0
    _reset_error: BaseException | None = None  # why resets keep failing
    _resets_told = False  # and that was told
    _resets_quiet_until = float("-inf")  # before, it is not told again

    # -- is it alive? ---------------------------------------------------------

    def _alive(self, entry: Entry) -> bool:
        if self._watches and not entry.watched:
            return True
        try:
            return self._is_alive(entry.resource)  # type: ignore[misc,no-any-return]
        except Exception:
            logger.debug("pool %r: is_alive() failed", self.name, exc_info=True)
            return False

    def _prove(self, key: Key, limit: float) -> Exception | None:
        """Make the round trip; return what it raised if the resource is dead."""
        entry, started = key.entry, self._now()
        try:
            self._adapter.validate(entry.resource, limit)
        except Exception as error:
            return error.with_traceback(None)  # whose frames hold the key
        except BaseException:
            self._evict(key, "interrupted")
            raise
        entry.checked = now = self._now()
        self._health.lives()
        if self._settings.enable_metrics:
            self.metrics.validate.record(now - started)
        return None

    def _check(self, key: Key, then: Callable[[Key], None] | None = None) -> None:
        """Prove a resource alive, and let it in."""
        error = self._prove(key, self._settings.health_check_timeout)
        if key.entry.generation is _ABANDONED:
            return  # it took too long, and that was told
        if error is not None:
            self._found_dead(key, "invalid", error)
        else:
            (then or self._deliver)(key)

    def _health_check(self, key: Key) -> None:
        """`_check` on behalf of the reaper: the server's health is counted and told."""
        error = self._prove(key, self._settings.health_check_timeout)
        if key.entry.generation is _ABANDONED:
            return  # as above
        self._tell_health(error)
        if error is not None:
            self._found_dead(key, "invalid", error)
        else:
            self._deliver(key)

    def _tell_health(self, error: Exception | None) -> None:
        with self._lock:
            self.metrics.last_health_check = self._clock.wall()
            if error is not None:
                self.metrics.count["health_failures"] += 1
        tell(self._observers, "health_checked", self.name, error)

    def _found_dead(self, key: Key, reason: str, error: Exception | None) -> None:
        """Evict a dead resource; those of the same age are suspect now, or go with it."""
        with self._lock:
            self.metrics.count["validation_failures"] += 1
        self._evict(key, reason)
        self._suspect_all(by_round_trip=error is not None)
        self._serve()
        if self._observers:
            tell(self._observers, "validation_failed", self.name, error or PoolError(reason))

    def _suspect_all(self, by_round_trip: bool) -> None:
        """After a proven death: what else was seen alive last before it? (P6)"""
        most = self._settings.max_validation_failures
        with self._lock:
            if not self._health.died(self._now(), by_round_trip, most):
                return
            closes = self._state.drain()
            self._gate_locked()
        logger.warning(
            "pool %r: %d %ss in a row proved dead; replacing all", self.name, most, self._adapter.noun
        )
        self._carry_out([], closes)
        tell(self._observers, "drained", self.name)
        self._serve()

    # -- as good as new -------------------------------------------------------

    def _clean(self, key: Key, doubtful: bool) -> None:
        """Reset, here where the adapter bounds it, else on a worker."""
        doubtful = doubtful and self._validate is not None
        if not self._resets_here:
            with self._lock:
                self.metrics.look()  # in use at the peak: what comes next is not a lease
            limit, job = self._settings.reset_timeout, self._restore
            if doubtful:
                limit, job = limit + self._settings.health_check_timeout, self._prove_and_restore
            self._on_worker(key, job, Errand(limit, asks=doubtful))
        elif doubtful:
            self._prove_and_restore(key)
        elif self._reset_ok(key):
            self._lay_back(key)

    def _restore(self, key: Key) -> None:
        if self._reset_ok(key):
            self._deliver(key)

    def _prove_and_restore(self, key: Key) -> None:
        self._check(key, self._restore)

    def _reset_ok(self, key: Key) -> bool:
        entry = key.entry
        try:
            answered = self._reset(entry.resource)  # type: ignore[misc]
        except BaseException as error:
            logger.info("pool %r: reset failed, closing: %s", self.name, say(error))
            with self._lock:
                self.metrics.errors["reset"] += 1
            self._evict(key, "reset")
            if not isinstance(error, Exception):
                raise
            self._reset_failed(error)
            return False
        if self._reset_trouble:
            self._reset_worked()
        now = self._now()
        if self._settings.enable_metrics:
            self.metrics.release.record(now - entry.idle_since)
        entry.idle_since = now
        entry.answered = False
        if answered and self._resets_here:  # what a function returns says nothing
            entry.answered, entry.checked = True, now
        return True

    def _reset_failed(self, error: Exception) -> None:
        """Note a reset that failed; tell once if they keep failing."""
        now = self._now()
        with self._lock:
            self._reset_trouble = min(self._reset_trouble + _WEIGHT, _MOST)
            if self._reset_trouble < _BEGINS:
                return
            self._reset_error = error.with_traceback(None)
            news = not self._resets_told and now >= self._resets_quiet_until
            if news:
                self._resets_told, self._resets_quiet_until = True, now + _SAME_INCIDENT
        if news:
            logger.warning(
                "pool %r: resets keep failing, so that %ss are closed instead of kept: %s",
                self.name, self._adapter.noun, say(error),
            )
            tell(self._observers, "resets_failed", self.name, error)

    def _reset_worked(self) -> None:
        with self._lock:
            self._reset_trouble = max(0, self._reset_trouble - 1)
            if self._reset_trouble:
                return
            told, self._resets_told, self._reset_error = self._resets_told, False, None
        if told:
            logger.info("pool %r: resets work again", self.name)
            tell(self._observers, "resets_recovered", self.name)

    # -- on a worker, with a time limit ---------------------------------------

    def _ask_on_worker(self, key: Key, health: bool = False) -> None:
        """Have a resource prove itself alive; then it is let in again."""
        errand = Errand(self._settings.health_check_timeout, asks=True, health=health)
        self._on_worker(key, self._health_check if health else self._check, errand)

    def _on_worker(self, key: Key, job: Callable[[Key], None], errand: Errand) -> None:
        """Send a resource to be checked or reset; a job that hangs loses its slot in time.

        The job is done in a copy of the context of whoever asks for it.
        """
        if self._lock._is_owned():
            self._later(Upkeep._on_worker, key, job, errand)
            return
        entry, now = key.entry, self._now()
        with self._lock:
            entry.since = now  # before it is seen there: it must not look overdue
            self._state.check(entry, errand)
            self._look_at(now + errand.limit)
        self._background.workers.submit(self._work, key, job, copy_context())

    def _work(self, key: Key, job: Callable[[Key], None], context: Context) -> None:
        try:
            context.run(job, key)
        except BaseException as error:  # for nobody: its borrower is elsewhere
            logger.warning("pool %r: a check gave up: %s", self.name, say(error))
        if key.entry.generation is _ABANDONED:
            self._close_quietly(key.entry)  # it came back after its time limit

    def _abandon(self, entry: Entry, now: float, limit: float) -> None:
        """For the reaper: work on this entry hangs; cut it off and free its slot (P4).

        Unless it ended just now, and the resource is somebody's: that is
        decided under the lock, and so is whose it is from then on.
        """
        state, noun, took = self._state, self._adapter.noun, now - entry.since
        with self._lock:
            creating, closing, errand = entry in state.creating, entry in state.closing, state.checking.get(entry)
            if not (creating or closing or errand) or entry.since + limit > now:
                return
            if not creating:
                entry.generation = _ABANDONED
                state.close(entry)
        if creating:
            self._create_failed(entry, TimeoutError(f"making a {noun} took over {limit:g} s"))
            return
        reason = "close_timeout" if closing else "check_timeout"
        logger.warning(
            "pool %r: %s a %s took over %.1f s; its slot is free again",
            self.name, "closing" if closing else "checking", noun, took,
        )
        resource = entry.resource
        try:
            if resource is not None:  # else its close has just returned
                (self._adapter.abandon if closing else self._adapter.interrupt)(resource)
        except Exception:
            logger.exception("pool %r: abandoning a %s failed", self.name, noun)
        with self._lock:
            cut = state.retire(entry)
            if errand is not None and errand.asks:
                self._dies_locked(entry)
            if cut:
                self.metrics.gone(entry, reason)
                self._gate_locked()
        if cut:
            tell(self._observers, "closed", self.name, reason)
        if errand is not None and errand.asks:
            self._no_answer(errand)
        elif errand is not None:
            self._reset_failed(TimeoutError(f"a reset took over {limit:g} s"))
        self._serve()

    def _no_answer(self, errand: Errand) -> None:
        """A round trip did not come back in time: that is an answer, too."""
        error = TimeoutError(f"no answer within {errand.limit:g} s")
        if errand.health:
            self._tell_health(error)
        with self._lock:
            self.metrics.count["validation_failures"] += 1
        self._suspect_all(by_round_trip=True)
        tell(self._observers, "validation_failed", self.name, error)

    # -- what the reaper finds ------------------------------------------------

    def _orphaned(self, entry: Entry) -> None:
        """Nobody holds the key of this entry any more: close it, and say who forgot it."""
        with self._lock:
            state = self._state
            if not state.owns(entry):
                return
            forgotten = entry.resource is not None and entry.held and not (
                entry in state.closing or entry in state.checking
            )
            self.metrics.count["orphans"] += 1
            if forgotten:
                self.metrics.count["forgotten"] += 1
                entry.uses += 1
                entry.busy += self._now() - entry.since
            unmade = entry.resource is None and entry not in state.closing
            if unmade:
                state.retire(entry)
            else:
                state.close(entry)
                entry.since = self._now()
            self._gate_locked()
        if not unmade:
            if forgotten:
                where = place_of(entry)
                logger.warning(
                    "pool %r: a lease was dropped without release, acquired at %s; "
                    "closing its %s", self.name, where, self._adapter.noun,
                )
                tell(self._observers, "orphaned", self.name, where)
            self._look_at(self._now() + self._settings.close_timeout)
            self._background.workers.submit(self._close_entry, entry, "orphaned")
        self._serve()

    def _report_leak(self, entry: Entry, now: float) -> None:
        entry.leaked = True
        with self._lock:
            self.metrics.count["leaks"] += 1
        where, held = place_of(entry), now - entry.since
        logger.warning(
            "pool %r: a %s is out for %.1f s (leak_timeout=%g), acquired at %s",
            self.name, self._adapter.noun, held, self._settings.leak_timeout, where,
        )
        tell(self._observers, "leaked", self.name, where, held)

    def _ask_about(self, waiting: list[tuple[Entry, object]], now: float) -> None:
        """Ask on a worker about holders that have been blocked for long; one question at a time (P2, P7)."""
        limit = self._settings.create_timeout + self._settings.health_check_timeout
        if self._asking_since is not None and now < self._asking_since + limit:
            return
        self._asking_since = now
        self._background.workers.submit(self._end_stalled, waiting, now)

    def _end_stalled(self, waiting: list[tuple[Entry, object]], now: float) -> None:
        limit = self._adapter.stall_timeout or 0.0
        asked = [(entry.resource, command) for entry, command in waiting if entry.resource is not None]
        try:
            found = self._adapter.end_stalled(asked, limit)
        except Exception:
            logger.exception("pool %r: end_stalled() failed", self.name)
            found = Verdicts()
        finally:
            if self._asking_since == now:
                self._asking_since = None
        if not found.again:
            later = self._now()
            for entry, command in waiting:  # those that are at work are asked about again after another limit
                if entry in self._commands:
                    self._commands[entry] = (command, later)
        for reason, count in Counter(found.ended).items():
            logger.warning(
                "pool %r: %d holder(s) interrupted after %g s or more in one command: %s",
                self.name, count, limit, reason,
            )
        for reason, count in Counter(found.unknown).items():
            level = logging.DEBUG if reason == self._unknown else logging.WARNING  # once for the same
            self._unknown = reason
            logger.log(
                level, "pool %r: %d holder(s) in one command for %g s, and not known whether in vain: %s",
                self.name, count, limit, reason,
            )

    def _replace_ahead(self, ending: int) -> None:
        """Make what ``min_size`` will miss when so many have reached the end of their lives."""
        with self._lock:
            state = self._state
            staying = len(state.entries) - len(state.closing) - ending
            room = min(
                state.max_size - len(state.entries),
                self._outage.allowed(self._now()) - len(state.creating),
            )
            number = 0 if state.closed else min(state.min_size - staying, room)
            makings = self._reserve_locked(number)
        self._carry_out(makings, [])
