"""The line, the lease and the way back.

Who finds something idle and nobody waiting takes it without a lock. Everybody
else joins the line at the moment of his arrival (P3), parks on a box of his
own, and leaves by one of two ways: with a key, or through `_forsake`, which
passes on what was given meanwhile (P8).
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from ..errors import PoolClosed, PoolError, PoolTimeout, PoolUnavailable, TooManyWaiting
from . import registry
from .clock import seconds
from .entry import DEAD, Entry, Key
from .holders import borrower, describe, has_ended, holders_of, place_of
from .lease import Lease
from .metrics import SHORT
from .observer import tell
from .registry import PAGE
from .slots import NOTHING
from .sweep import AUDIT
from .upkeep import Upkeep
from .waiter import Waiter
from .words import say

__all__ = ["Lending"]

R = TypeVar("R")
logger = logging.getLogger("pooling")
_getframe = sys._getframe

_Refusal = tuple[Callable[..., None], tuple[Any, ...]]  # what becomes of a resource: call, arguments


class Lending(Upkeep[R]):
    """Lends what fills the slots, and takes it back."""

    # -- the hot path ---------------------------------------------------------

    def acquire(self, timeout: float | None = None, _depth: int = 1) -> Lease[R]:
        """Take a resource, waiting in line for one if all are in use.

        Waiters are served strictly in order of arrival, whether the resource
        that serves them was just released or just created.

        Args:
            timeout: Seconds to wait, for everything together: the line, the
                creation, the validation. ``None`` means the pool's
                ``acquire_timeout``; ``0`` takes what is idle (looked at, but
                not validated by a round trip) or raises at once.

        Returns:
            A `Lease`; as a context manager it gives the resource.

        Raises:
            PoolTimeout: None came in time. The message states counts and holders.
            PoolUnavailable: The server is down, and ``timeout`` is 0 or
                ``max_attempts`` creations failed while this call waited.
            TooManyWaiting: ``max_waiting`` are in line already.
            PoolClosed: The pool was closed before or during the wait.
            CreateFailed: Making one can never succeed; the driver's error is the cause.
            ValueError, TypeError: ``timeout`` is not a number of seconds >= 0.
        """
        if timeout is not None:
            timeout = seconds(timeout)
        pop, clock = self._pop, self._now  # bound first: the cheaper call
        key: Key | None = None
        if not self._waiters:
            try:
                key = pop()
            except IndexError:
                pass  # and out of here: it is nobody's context
        if key is None:
            key, now = self._queue_up(timeout, clock())
        else:
            entry = key.entry
            now = clock()
            if (
                entry.generation is not self._pass
                or now >= entry.expires
                or not PAGE[0]
                or (self._wary and not self._sound(entry, now))
            ):
                doubtful = [key]
                del key, entry  # it may go to somebody else while we wait
                key, now = self._queue_up(timeout, now, doubtful)
        entry = key.entry
        if self._track:
            entry.thread = threading.get_ident()  # looked up late: gevent replaces it
            try:
                frame = _getframe(_depth)  # who borrows, so many frames up, is the holder that shows
            except ValueError:  # only compiled code has called: `gevent.spawn(pool.acquire)`
                entry.code = None
            else:
                entry.code = frame.f_code
                entry.lasti = frame.f_lasti
        entry.since = now  # last: who sees it held sees by whom
        lease: Lease[R] = Lease()
        lease._pool = self
        lease._key = key
        return lease

    # -- acquire, the slow way ------------------------------------------------

    def _queue_up(
        self, timeout: float | None, arrived: float, doubtful: list[Key] | None = None
    ) -> tuple[Key, float]:
        """Look twice at a doubtful resource, or wait in line for one; one deadline for all.

        Returns:
            The key, and the time at which it is lent.
        """
        self._enter()
        settings = self._settings
        if timeout is None:
            timeout = settings.acquire_timeout
        refused: list[_Refusal] = []
        waited = not doubtful
        key = self._wait(timeout, arrived, refused) if waited else doubtful.pop()  # type: ignore[union-attr]
        now = self._now()
        while not self._fit(key, now, arrived, timeout, refused):
            del key  # whoever waits holds nothing
            key, waited = self._wait(timeout, arrived, refused), True
            now = self._now()
        if waited and settings.enable_metrics:
            self.metrics.wait.record(now - arrived)
        if self._noise:
            tell(self._observers, "acquired", self.name, now - arrived)
        if self._track:
            key.entry.borrower = (borrower(), now)
        return key, now

    def _sound(self, entry: Entry, now: float) -> bool:
        """Whether a resource is seen to be alive, and need not prove it; `_fit` knows the rest."""
        if entry.answered and entry.checked > now - self._fresh and entry.checked > self._health.suspect_until:
            return True
        if self._is_alive is not None and not self._alive(entry):
            entry.generation = DEAD
            return False
        return self._validate is None or self._health.trusts(entry, now, self._wall(), self._patience)

    def _fit(self, key: Key, now: float, arrived: float, timeout: float, refused: list[_Refusal]) -> bool:
        """Is this resource fit to be lent? If not, ``refused`` says what is to become of it.

        That is done once the borrower stands in line again: the slot that it
        frees must not go to somebody who came later (P3).
        """
        entry = key.entry
        if (
            entry.generation is self._pass
            and now < entry.expires
            # As in `acquire`; or its peer has answered when it came back, while this borrower waited.
            and (not self._wary or (entry.answered and entry.checked > arrived) or self._sound(entry, now))
        ):
            return True
        state = self._state
        if entry.generation is DEAD:
            refused.append((self._found_dead, (key, "dead", None)))
        elif state.barred or state.unfit(entry, now):
            refused.append((self._deliver, (key,)))  # which decides: rest, or close
        elif self._is_alive is not None and not self._alive(entry):
            refused.append((self._found_dead, (key, "dead", None)))
        elif timeout == 0 or self._validate is None or entry.checked >= arrived:
            return True  # no time or means to ask; or it was asked on behalf of this borrower
        elif self._health.trusts(entry, now, self._wall(), self._patience):
            return True
        elif not self._adapter.bounded:
            refused.append((self._ask_on_worker, (key,)))  # back through `_deliver`
        else:
            limit = min(self._settings.health_check_timeout, max(0.0, arrived + timeout - now))
            error = self._prove(key, limit)
            if error is None:
                return True
            refused.append((self._found_dead, (key, "invalid", error)))
        return False

    def _wait(self, timeout: float, arrived: float, refused: list[_Refusal]) -> Key:
        """Wait in line until somebody hands over a key, or says why not."""
        waiter = Waiter(arrived, threading.get_ident(), bool(refused))
        item: Key | BaseException | None
        try:
            self._line_up(waiter, timeout, refused)
            item = self._get(waiter.box, arrived + timeout - self._now())
        except queue.Empty:
            with self._lock:
                item = self._state.leave(waiter)
            if item is None:
                self._serve()  # one free slot may have been meant for it
                self._raise_timeout(waiter, timeout)
        except BaseException as error:
            if refused:
                self._dismiss(refused)
            self._forsake(waiter)
            if isinstance(error, TooManyWaiting):
                tell(self._observers, "refused", self.name)
            elif isinstance(error, PoolError) and not isinstance(error, PoolTimeout):
                self._count("turned_away")
            raise
        if not waiter.given:
            with self._lock:  # an exception may have struck whoever gave it
                self._state.leave(waiter)
        if isinstance(item, Key):
            return item
        self._count("turned_away")
        raise item

    def _line_up(self, waiter: Waiter, timeout: float, refused: list[_Refusal]) -> None:
        """Join the line, and see to it that something comes."""
        makings, closes = NOTHING
        stuck = False
        with self._lock:
            exhausted = self._admit_locked(waiter)
            if not self._state.spent:
                if not refused:  # else there is more to plan with when it is dismissed
                    makings, closes = self._plan_locked()
                    self.metrics.look()
            elif self._track:
                stuck = self._cannot_end_locked(waiter)
        if refused:
            self._dismiss(refused)  # and serve with what is left, if anything is
        elif makings or closes:
            self._carry_out(makings, closes)
        if exhausted:
            tell(self._observers, "exhausted", self.name, len(self._waiters))
        if stuck and timeout:
            self._warn_of_deadlock()

    @staticmethod
    def _dismiss(refused: list[_Refusal]) -> None:
        verb, arguments = refused.pop()
        verb(*arguments)

    def _admit_locked(self, waiter: Waiter) -> bool:
        """Let a waiter join the line; say whether the pool becomes exhausted with it."""
        state, limit, outage = self._state, self._settings.max_waiting, self._outage
        now = self._now()
        if state.closed:
            raise PoolClosed(f"pool {self.name!r} is closed")
        if outage.final and not state.live and now < outage.retry_at:
            raise self._cannot_create() from outage.error
        if limit is not None and state.queueing >= limit and not waiter.again:
            self.metrics.count["refusals"] += 1
            raise TooManyWaiting(
                f"pool {self.name!r}: no place in the line "
                f"(max_waiting={limit}; {self._counts()})"
            )
        state.started = True
        if not state.waiters:
            self._exhausted = False  # a new line begins
        exhausted = not self._exhausted and state.spent
        if exhausted:
            self._exhausted = True
            self.metrics.count["exhausted"] += 1
            self.metrics.look()
        state.join(waiter)
        if outage.error is not None and outage.hurry(now, self._settings.backoff):
            self._look_at(outage.retry_at)
        self._look_at(now + AUDIT)
        return exhausted

    def _forsake(self, waiter: Waiter) -> None:
        """Leave the line because of an exception; what was given goes to the next."""
        with self._lock:
            item = self._state.leave(waiter)
        if isinstance(item, Key):
            self._deliver(item)
        else:
            self._serve()

    # -- the way back ---------------------------------------------------------

    def _take_back(self, key: Key, error: BaseException | None) -> None:
        """`Lease.__exit__` where there is more to do than to put it back."""
        entry = key.entry
        if entry() is not key or not (PAGE[0] or registry.renew()) or entry not in self._state.entries:
            return  # the collector, or the parent process, has it already
        if self._lock._is_owned():  # what follows calls the adapter
            self._later(Lending._take_back, key, error)
            return
        self._end_use(entry)
        if error is not None or entry.uses >= self._most_uses:
            self._take_back_worn(key, error)
        elif self._reset is None:
            self._lay_back(key)
        elif not self._resets_here:
            self._clean(key, doubtful=False)
        elif self._reset_ok(key):
            self._lay_back(key)

    def _take_back_worn(self, key: Key, error: BaseException | None) -> None:
        """What may not be fit to be lent again, by its age or its borrower's error."""
        reason = self._worn(key.entry, error)
        if reason is not None:
            self._evict(key, reason)
            if reason == "broken":
                self._suspect_all(by_round_trip=False)
        elif self._reset is not None:
            self._clean(key, doubtful=error is not None and not self._knows_errors)
        elif error is not None and self._validate is not None and not self._knows_errors:
            self._ask_on_worker(key)
        else:
            self._lay_back(key)

    def _end_use(self, entry: Entry) -> None:
        """Count a lease that ends, in its own entry, and tell who listens."""
        now = self._now()
        held = now - entry.since
        entry.idle_since = now
        entry.uses += 1
        entry.busy += held
        if entry.leaked:
            self._came_back(entry, held)
        if held > SHORT and self._settings.enable_metrics:
            self.metrics.use.record(held)
        if self._noise:
            tell(self._observers, "released", self.name, held)

    def _time_use(self, held: float) -> None:
        """Time a use that was longer than `SHORT`; the others are counted and summed."""
        if self._settings.enable_metrics:
            self.metrics.use.record(held)

    def _came_back(self, entry: Entry, held: float) -> None:
        entry.leaked = False
        logger.warning(
            "pool %r: the leaked %s of %s came back after %.1f s",
            self.name, self._adapter.noun, place_of(entry), held,
        )

    def _worn(self, entry: Entry, error: BaseException | None) -> str | None:
        """Why a resource that comes back is not to be lent again, or ``None``."""
        if entry.uses >= self._most_uses:
            return "max_uses"
        if error is None:
            return None
        if not (self._knows_errors or isinstance(error, (Exception, GeneratorExit))):
            return "interrupted"  # cut off in the middle of who knows what
        try:
            return "broken" if self._adapter.is_broken(entry.resource, error) else None
        except Exception:
            logger.exception("pool %r: is_broken() failed", self.name)
            return "broken"

    def _give_up(self, key: Key, reason: str) -> None:
        """End a lease whose resource is not to be lent again."""
        entry = key.entry
        if entry() is not key or not self._knows(entry):
            return
        self._end_use(entry)
        self._evict(key, reason)

    def _detach(self, key: Key) -> Any:
        """Take an entry out of the pool with its resource alive."""
        entry = key.entry
        entry.uses += 1
        entry.busy += self._now() - entry.since
        try:
            with self._lock:
                if self._state.retire(entry):
                    self.metrics.gone(entry, "detached")
                    self._gate_locked()
            tell(self._observers, "closed", self.name, "detached")
            self._serve()
            return entry.resource
        except BaseException:
            if not self._state.owns(entry):  # else the reaper finds it
                self._close_quietly(entry)
            raise

    # -- when a wait is in vain -----------------------------------------------

    def _raise_timeout(self, waiter: Waiter, timeout: float) -> NoReturn:
        with self._lock:
            self.metrics.count["timeouts"] += 1
            where, down = self._counts(), self._outage.error
            cause = down or self._outage.full
            lent = self._state.lent()
            now = self._now()
        mine = [entry for entry in lent if entry.thread == waiter.thread and not has_ended(entry)]
        text = f"pool {self.name!r}: no {self._adapter.noun} within {timeout:.1f} s ({where})"
        if timeout == 0:
            text = f"pool {self.name!r}: no {self._adapter.noun} at once ({where})"
        if mine and self._track:
            text += f"; this thread holds {len(mine)} itself: {describe(holders_of(mine, now))}"
        if lent and self._track:
            text += f"; held by: {describe(holders_of(lent, now))}"
        if cause is not None:
            text += f"; making one fails: {say(cause)}"
        self._background.reaper.ensure()  # it audits for those who wait; if it was killed, here it is missed
        tell(self._observers, "timed_out", self.name, now - waiter.arrived)
        if down is not None and timeout == 0:
            raise PoolUnavailable(text) from cause
        raise PoolTimeout(text) from cause

    def _cannot_end_locked(self, waiter: Waiter) -> bool:
        """Whether this thread acquired one, and all were acquired by threads that wait here.

        Needs nothing to be idle and no slot to be free.
        """
        state, me = self._state, waiter.thread
        one = next(iter(state.entries), None)
        if one is None or one.since < one.idle_since or one.thread not in state.queued:
            return False  # the usual case: whoever has this one is at work
        if any(has_ended(entry) for entry in state.entries):
            return False  # its identifier is another thread's now
        if not any(entry.thread == me and entry.held for entry in state.entries):
            return False  # somebody else will be told
        if state.creating or state.checking or state.closing or waiter.given:
            return False
        return all(entry.held and entry.thread in state.queued for entry in state.entries)

    def _warn_of_deadlock(self) -> None:
        holders = describe(holders_of(self._state.lent(), self._now()))
        logger.warning(
            "pool %r: unless another thread gives one back, this wait ends by its timeout: every %s "
            "was acquired by a thread that waits for another one here; held by: %s",
            self.name, self._adapter.noun, holders,
        )
