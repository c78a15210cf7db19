"""The machine under a pool: how a resource is lent, made, taken back and closed.

The life of a resource, each step one method:

``acquire`` → (``_queue_up`` → ``_wait``, ``_vet``) → lease → ``Lease.__exit__``
→ (``_take_back``) → ``_deliver`` → ... → ``_evict`` → ``_close``.

What keeps it right, whatever strikes between two bytecodes:

- The one lock guards `PoolState` and the counters. What happens under it
  decides and counts; it calls no adapter, no observer, no logger, and does no
  I/O. The plan it returns is carried out after unlocking.
- While nobody waits, a lease takes no lock at all (see `acquire` and
  `Lease.__exit__`): one identity test covers close, drain, pause,
  shrink and retirement (see `_gate_locked`).
- Every slow step ends in the idempotent, level-triggered `_serve`.
- The lock is re-entrant so that it can *refuse* re-entry: the collector may
  run a destructor, or a signal its handler, inside our critical section, and
  these may release a lease. What they want goes into the reaper's mailbox.

Assumes: ``deque.append/pop`` are atomic; attribute stores in a row are not
split by an asynchronous exception (CPython checks at function entry, backward
jumps and after calls).
"""

from __future__ import annotations

import _thread
import itertools
import logging
import math
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

from ..errors import (
    CreateFailed,
    PoolClosed,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    TooManyWaiting,
)
from ..settings import PoolSettings
from . import registry
from .adapter import Adapter
from .clock import Clock
from .entry import Entry, Key
from .health import Health
from .holders import describe, holders_of, place_of
from .lease import Lease
from .metrics import PoolMetrics
from .observer import Observer, tell
from .outage import Outage
from .reaper import AHEAD, AUDIT, NEVER, Call, Look
from .registry import PAGE, PoolRef
from .state import PoolState
from .threads import hand
from .waiter import Waiter

__all__ = ["Engine"]

R = TypeVar("R")
logger = logging.getLogger("pooling")
_getframe = sys._getframe
_numbers = itertools.count(1)
_Refusal = tuple[Callable[..., None], tuple[Any, ...]]  # what becomes of a resource: call, arguments
_NONE = object()  # the generation of no entry (a retired one has None)
_ABANDONED = object()  # the generation of an entry whose work took too long


class Engine(Generic[R]):
    """Lends, makes, takes back and closes; `Pool` adds what users steer it with."""

    # What the hot path reads. CPython gives up its fast instance attributes at
    # thirty of them; in slots these stay fast.
    __slots__ = (
        "_waiters", "_pop", "_push", "_now", "_pass", "_home", "_track", "_careful", "_ident",
        "_brief", "_trusted",
        "__dict__", "__weakref__",
    )

    def __init__(self, adapter: Adapter[R], settings: PoolSettings, name: str, clock: Clock) -> None:
        self.name = name
        self._adapter = adapter
        self._clock = clock
        self._now = clock.now
        self._get = clock.get
        self._observers: tuple[Observer, ...] = ()
        self._noise = False  # observers want to hear of each lease
        self._is_alive = _own(adapter, "is_alive")
        self._validate = _own(adapter, "validate")
        self._reset = _own(adapter, "reset")
        self._has_close = _own(adapter, "close") is not None
        self._knows_errors = _own(adapter, "is_broken") is not None
        self._background = registry.background_of(clock)
        self._configure(settings)
        self._renew_state()

    def _configure(self, settings: PoolSettings) -> None:
        """Take over settings, and what the hot path derives from them."""
        self._settings = settings
        self._track = settings.track_holders
        self._ahead = AHEAD if settings.max_lifetime is None else min(AHEAD, settings.max_lifetime / 10)
        tight = settings.max_idle is not None and settings.max_idle < settings.max_size
        self._tight = tight
        self._careful = (
            self._reset is not None or settings.max_uses is not None or tight or self._noise
        )
        # How long a free look is enough for what was used a moment ago.
        doubts = settings.validate_on_acquire and self._validate is not None
        self._trusted = settings.validation_interval if doubts else math.inf
        self._wary = (
            self._is_alive is not None
            or self._validate is not None
            or self._noise
        )

    def _renew_state(self) -> None:
        """Start with nothing: no entry, no waiter, a lock that nobody holds."""
        from random import random  # here, because it would double the import's time

        settings = self._settings
        self._uniform: Callable[[], float] = random
        self._lock: Any = _thread.RLock()  # native, under gevent too: see `threads`
        self._state = PoolState(settings.min_size, settings.max_size, settings.max_idle)
        self._outage = Outage()
        self._health = Health(self._now(), self._clock.wall())
        self._stacked = self._reset is None or self._adapter.bounded
        self.metrics = PoolMetrics(self.name, self._lock, self._state, self._clock, self._stacked)
        self._waiters = self._state.waiters
        self._push = self._state.idle.append
        self._pop = self._state.idle.pop
        self._due = NEVER  # when the reaper looks next; guarded by the lock
        self._exhausted = False  # since the line began; guarded by the lock
        self._watchers: dict[int, tuple[Callable[[], bool], Any]] = {}
        self._enlist()
        self._gate_locked()

    def _enlist(self) -> None:
        """Have the reaper know of this pool."""
        self._ref = PoolRef(self, self._background.reaper.drop)
        self._ref.state, self._ref.adapter = self._state, self._adapter
        self._ref.background = self._background
        self._background.pools[id(self._ref)] = self._ref

    def _move(self) -> None:
        """gevent has replaced the threads: go with it, and keep what we have."""
        with self._lock:
            before = self._ref
            self._enlist()
            for entry in self._state.entries:
                entry.pool = self._ref
        self._background.pools.pop(id(before), None)

    def _gate_locked(self) -> None:
        """Set what the hot path compares a resource's generation with.

        One identity test stands for all questions: ``_pass`` lends without a
        second look, ``_home`` takes back without one.
        """
        state = self._state
        self._home: object = _NONE if state.barred else state.generation
        self._pass: object = _NONE if self._wary else self._home
        # Where resets take a detour over a worker, the peak is counted on the slow way.
        glance = self._is_alive is not None and not self._noise and self._stacked
        self._brief: object = self._home if glance else _NONE

    # -- the hot path ---------------------------------------------------------

    def acquire(self, timeout: float | None = None) -> Lease[R]:
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
            timeout = _seconds(timeout)
        pop, clock = self._pop, self._now  # bound first: the cheaper call
        key: Key | None = None
        if not self._waiters:
            try:
                key = pop()
            except IndexError:
                pass  # and out of here: it is nobody's context
        if key is None:
            key = self._queue_up(timeout)
        else:
            entry = key.entry
            entry.since = now = clock()
            if (entry.generation is not self._pass or now >= entry.expires or not PAGE[0]) and not (
                entry.generation is self._brief and self._fit_at_a_glance(entry, now)
            ):
                doubtful = [key]
                del key, entry  # it may go to somebody else while we wait
                key = self._queue_up(timeout, doubtful)
        if self._track:
            entry = key.entry
            entry.thread = threading.get_ident()  # looked up late: gevent replaces it
            try:
                frame = _getframe(1)
            except ValueError:  # only compiled code has called: `gevent.spawn(pool.acquire)`
                entry.code = None
            else:
                entry.code = frame.f_code
                entry.lasti = frame.f_lasti
        lease: Lease[R] = Lease()
        lease._pool = self
        lease._key = key
        return lease

    def _acquire_for(self, timeout: float | None, depth: int = 1) -> Lease[R]:
        """`acquire` on behalf of the caller ``depth`` frames up: it is the holder that shows."""
        lease = self.acquire(timeout)
        if self._track:
            try:
                frame = _getframe(depth + 1)
            except ValueError:  # as in `acquire`
                return lease
            entry = lease._key.entry  # type: ignore[union-attr]
            entry.code = frame.f_code
            entry.lasti = frame.f_lasti
        return lease

    # -- acquire, the slow way --------------------------------------------------

    def _queue_up(self, timeout: float | None, doubtful: list[Key] | None = None) -> Key:
        """Look twice at a doubtful resource, or wait in line for one; one deadline for all."""
        self._enter()
        timeout = self._settings.acquire_timeout if timeout is None else timeout
        key = doubtful.pop() if doubtful else None
        arrived = self._now() if key is None else key.entry.since
        deadline = arrived + timeout
        refused: list[_Refusal] = []
        waited = False
        while key is None or not self._fit(key, arrived, timeout, refused):
            key = None  # whoever waits holds nothing
            waiter = Waiter(arrived, threading.get_ident(), bool(refused))
            key = self._wait(waiter, deadline, timeout, refused)
            waited = True
        now = self._now()
        key.entry.since = now
        self.metrics.look()
        if waited and self._settings.enable_metrics:
            self.metrics.wait.record(now - arrived)
        if self._observers:
            tell(self._observers, "acquired", self.name, now - arrived)
        return key

    def _enter(self) -> None:
        """What every slow way in looks at first: a fork, gevent, our own lock around us."""
        usable = PAGE[0] or registry.renew()
        self._background.settle()
        if not usable or self._lock._is_owned():
            raise PoolError(
                f"pool {self.name!r}: called by a destructor or signal handler that "
                "interrupted the pool itself in this thread; only giving back works there"
            )

    def _fit(self, key: Key, arrived: float, timeout: float, refused: list[_Refusal]) -> bool:
        """Is this resource fit to be lent? If not, ``refused`` says what is to become of it.

        That is done once the borrower stands in line again: the slot that it
        frees must not go to somebody who came later (P3).
        """
        entry, state, now = key.entry, self._state, self._now()
        if entry.generation is self._pass and now < entry.expires:
            return True  # nothing is to be looked at: see `_gate_locked`
        if state.barred or state.unfit(entry, now):
            refused.append((self._deliver, (key,)))  # which decides: rest, or close
        elif self._is_alive is not None and not self._alive(entry):
            refused.append((self._found_dead, (key, "dead", None)))
        elif timeout == 0 or not self._must_prove(entry, arrived, now):
            return True
        elif not self._adapter.bounded:
            refused.append((self._on_worker, (key, self._check)))  # back through `_deliver`
        else:
            limit = min(self._settings.health_check_timeout, max(0.0, arrived + timeout - now))
            error = self._prove(key, limit)
            if error is None:
                return True
            refused.append((self._found_dead, (key, "invalid", error)))
        return False

    def _fit_at_a_glance(self, entry: Entry, now: float) -> bool:
        """Is a free look all that is needed to lend it, and is it alive? Else `_fit` looks."""
        rested = entry.idle_since
        return (
            PAGE[0] != 0
            and now < entry.expires
            and now - rested <= self._trusted
            and rested > self._health.suspect_until
            and not self._health.jumped(now, self._clock.wall())
            and self._alive(entry)
        )

    def _must_prove(self, entry: Entry, arrived: float, now: float) -> bool:
        """Does this one need a round trip before it is lent?"""
        if self._validate is None or entry.checked >= arrived:
            return False  # nothing to ask with; or it was asked on behalf of this borrower
        if self._health.jumped(now, self._clock.wall()) or self._health.suspects(entry):
            return True
        seen = max(entry.idle_since, entry.checked)
        settings = self._settings
        return settings.validate_on_acquire and now - seen > settings.validation_interval

    def _alive(self, entry: Entry) -> bool:
        try:
            return self._adapter.is_alive(entry.resource)
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

    def _wait(
        self, waiter: Waiter, deadline: float, timeout: float, refused: list[_Refusal]
    ) -> Key:
        """Wait in line until somebody hands over a key, or says why not."""
        item: Key | BaseException | None
        try:
            with self._lock:
                exhausted = self._admit_locked(waiter)
                later = refused or self._state.spent  # nothing to plan with, or not yet
                keys, closes = ([], []) if later else self._plan_locked()
                stuck = self._track and self._cannot_end_locked(waiter)
            if refused:
                self._dismiss(refused)  # and serve with what is left, if anything is
            elif keys or closes:
                self._carry_out(keys, closes)
            if exhausted:
                tell(self._observers, "exhausted", self.name, len(self._waiters))
            if stuck and timeout:
                self._warn_of_deadlock()
            item = self._get(waiter.box, deadline - self._now())
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
        if isinstance(item, Key):
            return item
        self._count("turned_away")
        raise item

    def _count(self, what: str) -> None:
        with self._lock:
            self.metrics.count[what] += 1

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
        if now + AUDIT < self._due:
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

    # -- the one door in, and what follows it -----------------------------------

    def _deliver(self, key: Key) -> None:
        """Let a resource in: made, released, checked or refused ones alike.

        It goes to the oldest waiter, else onto the idle stack, else it is closed.
        """
        if self._lock._is_owned():
            self._later(Engine._deliver, key)
            return
        with self._lock:
            if not self._state.owns(key.entry):
                return  # the parent's
            reason = self._state.accept(key, self._now())
            more = self._watchers or (self._waiters and not self._state.spent)
        if reason is not None:
            self._evict(key, reason)
        if more:
            self._serve()

    def _serve(self, audit: bool = False) -> None:
        """Make it right from whatever state; see `PoolState.serve`."""
        if self._lock._is_owned():
            self._later(Engine._serve)
            return
        with self._lock:
            state = self._state
            if audit and state.idle and state.waiters and not state.paused:
                self.metrics.count["audit_repairs"] += 1
            keys, closes = self._plan_locked()
        if keys or closes:
            self._carry_out(keys, closes)

    def _plan_locked(self) -> tuple[list[Key], list[tuple[Key, str]]]:
        """Decide: which slots are reserved for creations, and what is to be closed."""
        now = self._now()
        number, closes = self._state.serve(self._outage.allowed(now), now)
        keys = [self._reserve_locked() for _ in range(number)] if number else []
        if self._watchers:
            for watched, box in list(self._watchers.values()):
                if watched():
                    hand(box, None)
        return keys, closes

    def _carry_out(self, keys: list[Key], closes: list[tuple[Key, str]]) -> None:
        for key, reason in closes:
            self._dispose(key, reason)
        while keys:
            if self._adapter.blocking:
                self._background.workers.submit(self._create, keys.pop(0))
            else:
                self._create(keys.pop(0))

    def _reserve_locked(self) -> Key:
        """Take a slot: from here on it counts (P2)."""
        settings, now = self._settings, self._now()
        key = Key()
        entry = Entry(key, self._background.reaper.drop)
        key.entry = entry
        entry.pool, entry.resource = self._ref, None
        entry.generation = self._state.generation
        life = math.inf if settings.max_lifetime is None else settings.max_lifetime
        entry.expires = now + life * (1 - settings.lifetime_jitter * self._uniform())
        entry.idle_since = entry.checked = entry.since = now
        entry.uses = entry.thread = entry.lasti = 0
        entry.busy = 0.0
        entry.code = None
        entry.leaked = False
        self._state.reserve(entry)
        self.metrics.look()
        self._look_at(now + settings.create_timeout)
        return key

    def _create(self, key: Key) -> None:
        """Make the resource of a reserved slot."""
        entry, started = key.entry, self._now()
        if not self._state.owns(entry):
            return
        try:
            entry.resource = self._adapter.create()
            if entry.resource is None:
                raise TypeError("the factory returned None instead of a resource")
        except BaseException as error:
            if not (self._adapter.blocking or isinstance(error, Exception)):
                self._create_interrupted(entry)
                raise
            self._create_failed(entry, error)
            return
        now = self._now()
        entry.idle_since = entry.checked = now
        with self._lock:
            wanted = self._state.owns(entry)
            if wanted:
                self.metrics.count["created"] += 1
                down_since = self._outage.since
                recovered = self._outage.succeeded(self._state.max_size)
                if self._settings.health_check_interval is not None:
                    self._health.begin(now + self._settings.health_check_interval)
        if not wanted:  # it came after `create_timeout`, or a greenlet went on in a child
            self._close_quietly(entry)
            return
        if self._settings.enable_metrics:
            self.metrics.create.record(now - started)
        self._deliver(key)
        self._look_at(self._next_age(entry))
        if recovered:
            logger.warning("pool %r: recovered after %.1f s", self.name, now - down_since)
            tell(self._observers, "outage_ended", self.name, now - down_since)
        tell(self._observers, "created", self.name, now - started)
        self._serve()

    def _next_age(self, entry: Entry) -> float:
        """When the reaper should look at a new entry at the latest."""
        settings, due = self._settings, entry.expires - self._ahead
        limits = [settings.idle_timeout, settings.leak_timeout]
        if self._validate is not None:
            limits += [settings.keepalive_interval, settings.health_check_interval]
        for limit in limits:
            if limit is not None:
                due = min(due, entry.idle_since + limit)
        return due

    def _create_failed(self, entry: Entry, error: BaseException) -> None:
        """Free the slot, note the outage, send away those for whom there is no hope."""
        final, full = self._says("is_final", error), self._says("is_full", error)
        entry.resource = None
        now = self._now()
        begins = refused = False
        with self._lock:
            if not self._state.retire(entry):
                return  # given up before, and counted then
            self.metrics.errors[type(error).__name__] += 1
            if full and self._state.live and self._outage.error is None:
                refused = self._outage.refused(error, now, self._uniform)
            else:
                begins = self._fails_locked(error, final, now)
            self._look_at(self._outage.retry_at)
        if refused:
            logger.warning(
                "pool %r: the server takes no more %ss; going on with those that are open: %s",
                self.name, self._adapter.noun, _say(error),
            )
        if begins:
            logger.warning(
                "pool %r: making a %s fails: %s", self.name, self._adapter.noun, _say(error)
            )
            tell(self._observers, "outage_began", self.name, error)
        tell(self._observers, "create_failed", self.name, error)
        self._serve()

    def _fails_locked(self, error: BaseException, final: bool, now: float) -> bool:
        """Note that the server seems to be down; say whether the outage begins with it."""
        state, outage, backoff = self._state, self._outage, self._settings.backoff
        # Whoever asks while an error is final does not wait for its end.
        waiting = bool(state.waiters or self._watchers) and not final
        begins = outage.failed(error, final, now, backoff, waiting, self._uniform)
        if final and not state.live:
            state.fail_waiters(CreateFailed, str(self._cannot_create()), error)
        most = self._settings.max_attempts
        if most is not None:
            for waiter in state.waiters:
                waiter.attempts += 1
            text = f"pool {self.name!r}: {most} attempts to make a {self._adapter.noun} failed"
            state.fail_waiters(PoolUnavailable, f"{text}: {_say(error)}", error, most)
        return begins

    def _create_interrupted(self, entry: Entry) -> None:
        """Free the slot; not the server failed, but the borrower was called away.

        It must not be kept by making one for others: the reaper sees to them.
        """
        with self._lock:
            self._state.retire(entry)
        self._look_at(self._now())

    def _says(self, question: str, error: BaseException) -> bool:
        """Ask the adapter what an error of a creation means."""
        try:
            return bool(getattr(self._adapter, question)(error))
        except Exception:
            logger.exception("pool %r: %s() failed", self.name, question)
            return False

    # -- the way back ------------------------------------------------------------

    def _long_use(self, entry: Entry, held: float) -> None:
        """What a release counts beyond the cheap: uses longer than `SHORT`."""
        if self._settings.enable_metrics:
            self.metrics.use.record(held)
        if entry.leaked:
            entry.leaked = False
            logger.warning(
                "pool %r: the leaked %s of %s came back after %.1f s",
                self.name, self._adapter.noun, place_of(entry), held,
            )

    def _take_back(self, key: Key, error: BaseException | None) -> None:
        """`Lease.__exit__` where there is more to do than to put it back."""
        entry = key.entry
        if entry() is not key or not self._knows(entry):
            return  # the collector, or the parent process, has it already
        now = self._now()
        held = now - entry.since
        entry.idle_since = now
        entry.uses += 1
        entry.busy += held
        self._long_use(entry, held)
        if self._observers:
            tell(self._observers, "released", self.name, held)
        reason = self._worn(entry, error)
        if reason is not None:
            self._evict(key, reason)
            if reason == "broken":
                self._suspect_all(by_round_trip=False)
        elif self._reset is not None:
            self._clean(key, doubtful=error is not None and not self._knows_errors)
        elif error is not None and self._validate is not None and not self._knows_errors:
            self._on_worker(key, self._check)
        else:
            self._deliver(key)

    def _worn(self, entry: Entry, error: BaseException | None) -> str | None:
        """Why a resource that comes back is not to be lent again, or ``None``."""
        most = self._settings.max_uses
        if most is not None and entry.uses >= most:
            return "max_uses"
        if error is None:
            return None
        if not self._knows_errors:
            # Cut off in the middle of who knows what.
            cut = not isinstance(error, (Exception, GeneratorExit))
            return "interrupted" if cut else None
        try:
            return "broken" if self._adapter.is_broken(entry.resource, error) else None
        except Exception:
            logger.exception("pool %r: is_broken() failed", self.name)
            return "broken"

    def _clean(self, key: Key, doubtful: bool) -> None:
        """Reset, here where the adapter bounds it, else on a worker."""
        doubtful = doubtful and self._validate is not None
        if not self._adapter.bounded:
            self._on_worker(key, self._prove_and_restore if doubtful else self._restore)
        elif doubtful:
            self._prove_and_restore(key)
        elif self._reset_ok(key):
            self._put_back(key)

    def _put_back(self, key: Key) -> None:
        """What was reset where it was lent goes back as in `Lease.__exit__`, without the lock."""
        entry = key.entry
        if self._waiters or self._tight or entry.generation is not self._home:
            self._deliver(key)
            return
        self._push(key)
        if self._waiters or entry.generation is not self._home:
            self._serve()

    def _restore(self, key: Key) -> None:
        if self._reset_ok(key):
            self._deliver(key)

    def _prove_and_restore(self, key: Key) -> None:
        self._check(key, self._restore)

    def _reset_ok(self, key: Key) -> bool:
        entry, started = key.entry, self._now()
        try:
            self._adapter.reset(entry.resource)
        except BaseException as error:
            logger.info("pool %r: reset failed, closing: %s", self.name, _say(error))
            with self._lock:
                self.metrics.errors["reset"] += 1
            self._evict(key, "reset")
            if not isinstance(error, Exception):
                raise
            return False
        entry.idle_since = now = self._now()
        if self._settings.enable_metrics:
            self.metrics.release.record(now - started)
        return True

    def _check(self, key: Key, then: Callable[[Key], None] | None = None) -> None:
        """Prove a resource alive, and let it in."""
        error = self._prove(key, self._settings.health_check_timeout)
        if error is not None:
            self._found_dead(key, "invalid", error)
        else:
            (then or self._deliver)(key)

    def _health_check(self, key: Key) -> None:
        """`_check` on behalf of the reaper: the server's health is counted and told."""
        error = self._prove(key, self._settings.health_check_timeout)
        with self._lock:
            self.metrics.last_health_check = self._clock.wall()
            if error is not None:
                self.metrics.count["health_failures"] += 1
        tell(self._observers, "health_checked", self.name, error)
        if error is not None:
            self._found_dead(key, "invalid", error)
        else:
            self._deliver(key)

    def _on_worker(self, key: Key, job: Callable[[Key], None]) -> None:
        """Send a resource to be checked or reset; a job that hangs loses its slot in time."""
        if self._lock._is_owned():
            self._later(Engine._on_worker, key, job)
            return
        entry, now = key.entry, self._now()
        with self._lock:
            self._state.check(entry)
            entry.since = now
            self._look_at(now + max(self._settings.reset_timeout, self._settings.health_check_timeout))
        self._background.workers.submit(self._work, key, job)

    def _work(self, key: Key, job: Callable[[Key], None]) -> None:
        try:
            job(key)
        except BaseException as error:  # for nobody: its borrower is elsewhere
            logger.warning("pool %r: a check gave up: %s", self.name, _say(error))
        if key.entry.generation is _ABANDONED:
            self._close_quietly(key.entry)  # it came back after its time limit

    # -- the way out ---------------------------------------------------------------

    def _give_up(self, key: Key, reason: str) -> None:
        """End a lease whose resource is not to be lent again."""
        entry = key.entry
        if entry() is not key or not self._knows(entry):
            return
        now = self._now()
        entry.idle_since = now
        entry.uses += 1
        entry.busy += now - entry.since
        self._long_use(entry, now - entry.since)
        tell(self._observers, "released", self.name, now - entry.since)
        self._evict(key, reason)

    def _detach(self, key: Key) -> Any:
        """Take an entry out of the pool with its resource alive."""
        entry = key.entry
        resource, entry.resource = entry.resource, None
        entry.uses += 1
        entry.busy += self._now() - entry.since
        with self._lock:
            if self._state.retire(entry):
                self.metrics.gone(entry, "detached")
                self._gate_locked()
        tell(self._observers, "closed", self.name, "detached")
        self._serve()
        return resource

    def _evict(self, key: Key, reason: str) -> None:
        """Decide to remove: the slot stays taken until the close has returned (P2)."""
        if self._lock._is_owned():
            self._later(Engine._evict, key, reason)
            return
        with self._lock:
            if not self._state.owns(key.entry):
                return
            self.metrics.look()
            self._state.close(key.entry)
            self._gate_locked()
        self._dispose(key, reason)
        self._serve()  # it may be missed

    def _dispose(self, key: Key, reason: str) -> None:
        """Have an evicted resource closed; nothing to call means nothing to wait for."""
        key.entry.since = self._now()
        if self._has_close:
            self._look_at(key.entry.since + self._settings.close_timeout)
            self._background.workers.submit(self._close, key, reason)
        else:
            self._close(key, reason)

    def _close(self, key: Key, reason: str) -> None:
        self._close_entry(key.entry, reason)

    def _close_entry(self, entry: Entry, reason: str) -> None:
        """End the resource, then free the slot, whatever the close said."""
        if not self._state.owns(entry):
            return
        try:
            self._close_quietly(entry)
        finally:
            self._retire(entry, reason)

    def _close_quietly(self, entry: Entry) -> None:
        resource = entry.resource
        if resource is None:
            return
        close = self._adapter.close if entry.pool is self._ref else self._adapter.abandon
        try:
            close(resource)
        except BaseException as error:  # on a worker: it is nobody's
            logger.debug("pool %r: close() failed: %s", self.name, _say(error))
            with self._lock:
                self.metrics.errors["close"] += 1

    def _retire(self, entry: Entry, reason: str) -> None:
        """Free the slot, and serve whoever waited for it."""
        with self._lock:
            gone = self._state.retire(entry)
            if gone:
                entry.resource = None
                self.metrics.gone(entry, reason)
                self._gate_locked()
        if gone:
            tell(self._observers, "closed", self.name, reason)
            self._serve()

    def _abandon(self, entry: Entry, now: float) -> None:
        """For the reaper: work on this entry hangs; cut it off and free its slot (P4)."""
        state, noun = self._state, self._adapter.noun
        if entry in state.creating:
            limit = self._settings.create_timeout
            self._create_failed(entry, TimeoutError(f"making a {noun} took over {limit:g} s"))
            return
        closing = entry in state.closing
        reason = "close_timeout" if closing else "check_timeout"
        logger.warning(
            "pool %r: %s a %s took over %.1f s; its slot is free again",
            self.name, "closing" if closing else "checking", noun, now - entry.since,
        )
        try:
            (self._adapter.abandon if closing else self._adapter.interrupt)(entry.resource)
        except Exception:
            logger.exception("pool %r: abandoning a %s failed", self.name, noun)
        with self._lock:
            cut = state.retire(entry)
            if cut:
                entry.generation = _ABANDONED
                self.metrics.gone(entry, reason)
                self._gate_locked()
        if cut:
            tell(self._observers, "closed", self.name, reason)
        self._serve()

    # -- for the reaper --------------------------------------------------------------

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
            if entry.resource is None:
                state.retire(entry)
            else:
                state.close(entry)
                entry.since = self._now()
            self._gate_locked()
        if entry.resource is not None:
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
            keys = [self._reserve_locked() for _ in range(number)]
        self._carry_out(keys, [])

    def _look_at(self, due: float) -> None:
        """Ask the reaper to look at this pool then, unless it does so before."""
        with self._lock:
            if due < self._due:
                self._due = due
                self._background.reaper.post(Look(self._ref, due))

    def _later(self, verb: Callable[..., object], *args: Any) -> None:
        """Leave to the reaper what cannot be done inside our own critical section."""
        self._background.reaper.inbox.put(Call(self._ref, verb, args))

    def _knows(self, entry: Entry) -> bool:
        """Whether an entry is this process's and not yet retired."""
        return (PAGE[0] or registry.renew()) and self._state.owns(entry)

    def _reborn(self) -> None:
        """In a child: start empty. What was inherited is disowned and kept by now."""
        closed, metrics = self._state.closed, self.metrics
        self._background.pools.pop(id(self._ref), None)
        self._renew_state()
        self._state.closed = closed
        self._gate_locked()
        vars(metrics).update(vars(self.metrics))  # an exporter may hold on to the object
        self.metrics = metrics

    def _at_exit(self) -> None:
        """Close what is idle; the reaper calls it, where it runs."""
        state = self._state
        state.min_size = 0  # nothing is made ahead any more
        for _ in range(len(state.idle)):
            try:
                key = self._pop()
            except IndexError:
                return
            with self._lock:
                state.close(key.entry)
            self._close_entry(key.entry, "exit")

    def _go_on_alone(self) -> None:
        """For the last thread: one that is gone may hold the lock, and none answers a wait."""
        self._lock = _thread.RLock()
        metrics = PoolMetrics(self.name, self._lock, self._state, self._clock)
        vars(self.metrics).update(vars(metrics))
        self._clock = registry.ALONE
        self._get = self._clock.get

    # -- words -------------------------------------------------------------------------

    def _wants_noise(self) -> bool:
        """Whether an observer overrides an event of the hot path."""
        return any(
            getattr(getattr(observer, event), "__func__", None) is not getattr(Observer, event)
            for observer in self._observers
            for event in ("acquired", "released")
        )

    def _counts(self) -> str:
        state = self._state
        parts = [f"{state.in_use}/{state.max_size} in use", f"{len(state.idle)} idle"]
        for word in ("creating", "checking", "closing"):
            number = len(getattr(state, word))
            if number:
                parts.append(f"{number} {word}")
        parts.append(f"{len(state.waiters)} waiting")
        if state.paused:
            parts.append("paused")
        return ", ".join(parts)

    def _cannot_create(self) -> CreateFailed:
        return CreateFailed(
            f"pool {self.name!r}: cannot make a {self._adapter.noun}: {_say(self._outage.error)}"
        )

    def _raise_timeout(self, waiter: Waiter, timeout: float) -> NoReturn:
        with self._lock:
            self.metrics.count["timeouts"] += 1
            counts, down = self._counts(), self._outage.error
            cause = down or self._outage.full
            lent = self._state.lent()
            mine = [entry for entry in lent if entry.thread == waiter.thread]
            now = self._now()
        text = f"pool {self.name!r}: no {self._adapter.noun} within {timeout:.1f} s ({counts})"
        if timeout == 0:
            text = f"pool {self.name!r}: no {self._adapter.noun} at once ({counts})"
        if mine and self._track:
            text += f"; this thread holds {len(mine)} itself: {describe(holders_of(mine, now))}"
        if lent and self._track:
            text += f"; held by: {describe(holders_of(lent, now))}"
        if cause is not None:
            text += f"; making one fails: {_say(cause)}"
        tell(self._observers, "timed_out", self.name, now - waiter.arrived)
        if down is not None and timeout == 0:
            raise PoolUnavailable(text) from cause
        raise PoolTimeout(text) from cause

    def _cannot_end_locked(self, waiter: Waiter) -> bool:
        """Whether this thread holds one, and all are held by threads that wait here."""
        state, me = self._state, waiter.thread
        for entry in state.entries:
            if entry.thread == me:
                break
        else:
            return False  # somebody else will be told
        if not state.spent or state.creating or state.checking or state.closing or waiter.given:
            return False
        waiting = {other.thread for other in state.waiters}
        return all(entry.held and entry.thread in waiting for entry in state.entries)

    def _warn_of_deadlock(self) -> None:
        holders = describe(holders_of(self._state.lent(), self._now()))
        logger.warning(
            "pool %r: this wait can only end by its timeout: every %s is held by a thread "
            "that waits for another one here; held by: %s",
            self.name, self._adapter.noun, holders,
        )


def _own(adapter: Adapter[Any], method: str) -> Callable[..., Any] | None:
    """An adapter's method if it overrides it: what it does not override costs nothing."""
    if getattr(type(adapter), method) is getattr(Adapter, method) and method not in vars(adapter):
        return None
    return getattr(adapter, method)  # type: ignore[no-any-return]


def _seconds(timeout: float) -> float:
    """Check a timeout given in a call."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be at least 0 seconds, not {timeout!r}")
    return min(float(timeout), threading.TIMEOUT_MAX)


def _say(error: BaseException | None) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
