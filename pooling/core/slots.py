"""How the slots of a pool are filled and emptied: the part that must never be wrong.

A pool is one object in four rooms, each of which knows only those below it:

- `Slots` (here): the lock, the state, the two doors, making and closing;
- `Upkeep`: whether what fills the slots is alive and clean;
- `Lending`: the line, the lease and the way back;
- `Pool`: what users steer it with.

The life of a resource, each step one method: ``acquire`` → (``_queue_up`` →
``_wait``) → lease → ``Lease.__exit__`` → (``_take_back``) → `_deliver` → ... →
`_evict` → `_close`.

What keeps it right, whatever strikes between two bytecodes:

- The one lock guards `PoolState` and the counters. What happens under it
  decides and counts; it calls no adapter, no observer, no logger, and does no
  I/O. The plan it returns is carried out after unlocking.
- While nobody waits, a lease takes no lock at all (see `Lending.acquire` and
  `Lease.__exit__`): one identity test covers close, drain, pause, shrink and
  retirement (see `_gate_locked`).
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
import logging
import math
import queue
from collections.abc import Callable
from contextvars import Context, copy_context
from itertools import islice
from typing import Any, Generic, TypeVar

from ..errors import CreateFailed, PoolError, PoolUnavailable
from ..settings import PoolSettings
from . import registry
from .adapter import Adapter, own
from .clock import Clock
from .entry import Entry, Key
from .hangup import connected, watchable
from .health import Health
from .metrics import PoolMetrics
from .observer import Observer, tell
from .outage import Outage
from .reaper import Call, Look
from .registry import PAGE, PoolRef
from .state import PoolState
from .sweep import AHEAD, NEVER
from .threads import Weak, hand
from .words import counts, say

__all__ = ["NOTHING", "Slots", "Watch"]

R = TypeVar("R")
logger = logging.getLogger("pooling")
Making = tuple[Key, Context]
"""A reserved slot, and in which context its resource is made: a copy of that of the acquire it is made for, or of
whoever asks where it is made ahead of need. Dropped with the job: it may hold an application, a request, a user."""
NOTHING: tuple[list[Making], list[tuple[Key, str]]] = ([], [])  # a plan that has nothing in it
FRESH = 1e-4
"""Seconds for which a peer that answered at the end of a lease counts as seen alive: a look is no younger when its
result is used. Not more: a server that is told to end a session needs half a millisecond to do so (P6)."""
DEATHS = {"broken", "dead", "invalid"}  # the reasons to close what was found dead
_NONE = object()  # the generation of no entry (a retired one has None)


class Watch:
    """A thread that waits for a state of the pool: held by that thread alone."""

    __slots__ = ("reached", "box", "__weakref__")

    def __init__(self, reached: Callable[[], bool], box: Any) -> None:
        self.reached = reached
        self.box = box


class Slots(Generic[R]):
    """Fills slots and empties them."""

    # What the hot path reads. CPython gives up its fast instance attributes at
    # thirty of them; in slots these stay fast.
    __slots__ = (
        "_waiters", "_pop", "_push", "_now", "_pass", "_home", "_track", "_careful", "_wary",
        "__dict__", "__weakref__",
    )

    def __init__(self, adapter: Adapter[R], settings: PoolSettings, name: str, clock: Clock) -> None:
        self.name = name
        self._adapter = adapter
        self._clock = clock
        self._now = clock.now
        self._wall = clock.wall
        self._get = clock.get
        self._observers: tuple[Observer, ...] = ()
        self._noise = False  # observers want to hear of each lease
        self._is_alive = own(adapter, "is_alive")
        self._watches = self._is_alive is None and adapter.blocking  # if there is a socket: see `_create`
        self._validate = own(adapter, "validate")
        self._reset = own(adapter, "reset")
        self._has_close = own(adapter, "close") is not None
        self._resets_here = self._reset is not None and adapter.bounded  # in the thread that gives it back
        self._knows_errors = own(adapter, "is_broken") is not None
        self._background = registry.background_of(clock)
        self._configure(settings)
        self._renew_state()

    def _configure(self, settings: PoolSettings) -> None:
        """Take over settings, and what the hot path derives from them."""
        self._settings = settings
        self._track = settings.track_holders
        self._ahead = AHEAD if settings.max_lifetime is None else min(AHEAD, settings.max_lifetime / 10)
        self._tight = settings.max_idle is not None and settings.max_idle < settings.max_size
        self._most_uses = math.inf if settings.max_uses is None else settings.max_uses
        self._careful = self._reset is not None or settings.max_uses is not None or self._noise
        self._wary = self._is_alive is not None or self._validate is not None
        self._patience = settings.validation_interval if settings.validate_on_acquire else math.inf
        self._fresh = min(FRESH, self._patience)

    def _wants_noise(self) -> bool:
        """Whether an observer overrides an event of the hot path."""
        return any(
            getattr(getattr(observer, event), "__func__", None) is not getattr(Observer, event)
            for observer in self._observers
            for event in ("acquired", "released")
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
        stacked = self._reset is None or self._resets_here
        self.metrics = PoolMetrics(self.name, self._lock, self._state, self._clock, stacked)
        self._waiters = self._state.waiters
        self._push = self._state.idle.append
        self._pop = self._state.idle.pop
        self._due = NEVER  # when the reaper looks next; guarded by the lock
        self._exhausted = False  # since the line began; guarded by the lock
        self._watchers: set[Weak] = set()  # each takes itself off when its thread has gone
        self._commands: dict[Entry, tuple[object, float]] = {}  # what holders are blocked in, seen when first
        self._stalls_at = -math.inf  # when they are looked at next
        self._asking_since: float | None = None  # about them
        self._unknown = ""  # why that told nothing
        self._enlist()
        self._gate_locked()

    def _gate_locked(self) -> None:
        """Set what the hot path compares a resource's generation with.

        One identity test stands for many questions: ``_pass`` lends without a
        second look, ``_home`` takes back without one.
        """
        state = self._state
        either = _NONE if state.barred else state.generation
        self._pass: object = _NONE if self._noise else either
        self._home: object = _NONE if self._tight else either

    def _enlist(self) -> None:
        """Have the reaper know of this pool."""
        self._ref = PoolRef(self, self._background.reaper.drop)
        self._ref.state, self._ref.adapter = self._state, self._adapter
        self._ref.background = self._background
        self._background.pools[id(self._ref)] = self._ref

    # -- the two doors --------------------------------------------------------

    def _enter(self) -> None:
        """What every slow way in looks at first: a fork, gevent, our own lock around us."""
        usable = PAGE[0] or registry.renew()
        if queue.SimpleQueue is not self._background.world:
            self._background.settle()
        if not usable or self._lock._is_owned():
            raise PoolError(
                f"pool {self.name!r}: called by a destructor or signal handler that "
                "interrupted the pool itself in this thread; only giving back works there"
            )

    def _deliver(self, key: Key) -> None:
        """Let a resource in: made, released, checked or refused ones alike.

        It goes to the oldest waiter, else onto the idle stack, else it is closed.
        """
        if self._lock._is_owned():
            self._later(Slots._deliver, key)
            return
        with self._lock:
            reason: str | None = None
            more: object = True
            if self._state.owns(key.entry):  # else it is the parent's, and whoever brings it may wait
                reason = self._state.accept(key, self._now())
                self.metrics.look()
                more = self._watchers or (self._waiters and not self._state.spent)
        if reason is not None:
            self._evict(key, reason)
        if more:
            self._serve()

    def _lay_back(self, key: Key) -> None:
        """Put a resource that is fit on the idle stack, as `Lease.__exit__` does: see there."""
        entry = key.entry
        self._push(key)
        del key  # it may be somebody else's now
        if (self._waiters or entry.generation is not self._home) and (PAGE[0] or self._knows(entry)):
            self._serve()

    def _serve(self, audit: bool = False) -> None:
        """Make it right from whatever state; see `PoolState.serve`."""
        if self._lock._is_owned():
            self._later(Slots._serve)
            return
        with self._lock:
            state = self._state
            # Who has one checked on a worker may have another, but was not forgotten.
            if audit and state.idle and len(state.waiters) > len(state.checking) and not state.paused:
                self.metrics.count["audit_repairs"] += 1
            makings, closes = self._plan_locked()
        if makings or closes:
            self._carry_out(makings, closes)

    def _plan_locked(self) -> tuple[list[Making], list[tuple[Key, str]]]:
        """Decide: which slots are reserved for creations, and what is to be closed."""
        now = self._now()
        if self._state.relay() and not self._watchers:
            return NOTHING
        number, closes = self._state.serve(self._outage.allowed(now), now)
        makings = self._reserve_locked(number) if number else []
        if self._watchers:
            for reference in self._watchers.copy():
                watch = reference()
                if watch is not None and watch.reached():
                    hand(watch.box, None)
        return makings, closes

    def _carry_out(self, makings: list[Making], closes: list[tuple[Key, str]]) -> None:
        for key, reason in closes:
            self._dispose(key, reason)
        while makings:
            if self._adapter.blocking:
                self._background.workers.submit(self._create, *makings.pop(0))
            else:
                self._create(*makings.pop(0))

    # -- making ---------------------------------------------------------------

    def _reserve_locked(self, number: int) -> list[Making]:
        """Take so many slots, for those waiters for whom nothing is on its way, or ahead of need."""
        coming = len(self._state.creating) + len(self._state.checking)
        number = max(0, number)
        contexts = [waiter.context for waiter in islice(self._waiters, coming, coming + number)]
        contexts += [None] * (number - len(contexts))
        return [(self._reserve_one_locked(), copy_context() if one is None else one.copy()) for one in contexts]

    def _reserve_one_locked(self) -> Key:
        """Take a slot: from here on it counts (P2)."""
        settings, now = self._settings, self._now()
        self._look_at(now + settings.create_timeout)  # first: the reaper finds what an exception leaves
        key = Key()
        key.entry = entry = Entry(key, self._background.reaper.drop)
        entry.pool = self._ref
        life = math.inf if settings.max_lifetime is None else settings.max_lifetime
        expires = now + life * (1 - settings.lifetime_jitter * self._uniform())
        entry.begin(self._state.generation, expires, now)
        self._state.reserve(entry)
        self.metrics.look()
        return key

    def _create(self, key: Key, context: Context) -> None:
        """Make the resource of a reserved slot."""
        entry, started = key.entry, self._now()
        if not self._state.owns(entry):
            return
        try:
            context.run(self._make, entry)
        except BaseException as error:
            if entry.resource is not None:  # interrupted just after it was created
                self._close_quietly(entry)
                entry.resource = None
            if not (self._adapter.blocking or isinstance(error, Exception)):
                self._create_interrupted(entry)
                raise
            self._create_failed(entry, error)
            return
        if self._watches and watchable(entry.resource):
            entry.watched = True
            self._is_alive, self._wary = connected, True
        now = self._now()
        entry.idle_since = entry.checked = now
        with self._lock:
            wanted = self._state.owns(entry)
            if wanted:
                self.metrics.count["created"] += 1
                down_since = self._outage.since
                recovered = self._outage.succeeded(self._state.max_size, now)
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

    def _make(self, entry: Entry) -> None:
        # Stored here: an exception that is raised when `Context.run` returns would lose a return value.
        entry.resource = self._adapter.create()
        if entry.resource is None:
            raise TypeError("the factory returned None instead of a resource")

    def _next_age(self, entry: Entry) -> float:
        """When the reaper should look at a new entry at the latest."""
        settings, due = self._settings, entry.expires - self._ahead
        limits = [settings.idle_timeout, settings.leak_timeout]
        if self._adapter.stall_timeout is not None:
            limits.append(self._adapter.stall_timeout / 4)
        if self._validate is not None:
            limits += [settings.keepalive_interval, settings.health_check_interval]
        for limit in limits:
            if limit is not None:
                due = min(due, entry.idle_since + limit)
        return due

    def _create_failed(self, entry: Entry, error: BaseException) -> None:
        """Free the slot, note the outage, send away those for whom there is no hope."""
        final, full = self._says("is_final", error), self._says("is_full", error)
        now = self._now()
        begins = refused = False
        with self._lock:
            if entry not in self._state.creating:
                return  # given up before, and counted then; or it came just in time
            self._state.retire(entry)
            self.metrics.errors[type(error).__name__] += 1
            if full and self._state.live and self._outage.error is None:
                refused = self._outage.refused(error, now, self._uniform)
            else:
                begins = self._fails_locked(error, final, now)
            self._look_at(self._outage.retry_at)
        if refused:
            logger.warning(
                "pool %r: the server takes no more %ss; going on with those that are open: %s",
                self.name, self._adapter.noun, say(error),
            )
        if begins and not self._state.closed:  # else it was under way when the pool was closed
            logger.warning(
                "pool %r: making a %s fails: %s", self.name, self._adapter.noun, say(error)
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
            state.fail_waiters(PoolUnavailable, f"{text}: {say(error)}", error, most)
        return begins

    def _create_interrupted(self, entry: Entry) -> None:
        """Free the slot; not the server failed, but the borrower was called away.

        It must not be kept by making one for others: the reaper sees to them,
        and closes what was made already, when its key is gone.
        """
        with self._lock:
            if entry.resource is None:
                self._state.retire(entry)
        self._look_at(self._now())

    def _says(self, question: str, error: BaseException) -> bool:
        """Ask the adapter what an error of a creation means."""
        try:
            return bool(getattr(self._adapter, question)(error))
        except Exception:
            logger.exception("pool %r: %s() failed", self.name, question)
            return False

    def _cannot_create(self) -> CreateFailed:
        return CreateFailed(
            f"pool {self.name!r}: cannot make a {self._adapter.noun}: {say(self._outage.error)}"
        )

    # -- closing --------------------------------------------------------------

    def _evict(self, key: Key, reason: str) -> None:
        """Decide to remove: the slot stays taken until the close has returned (P2)."""
        if self._lock._is_owned():
            self._later(Slots._evict, key, reason)
            return
        with self._lock:
            if not self._state.owns(key.entry) or key.entry in self._state.closing:
                return  # it is gone, or will be: see `_abandon`
            self.metrics.look()
            self._state.close(key.entry)
            if reason in DEATHS:
                self._dies_locked(key.entry)  # before anything is planned in its place
            self._gate_locked()
        self._dispose(key, reason)
        self._serve()  # it may be missed

    def _dies_locked(self, entry: Entry) -> None:
        """Note a proven death: is there a server to make another one (P7)? Creations inline ask none."""
        if self._adapter.blocking and self._outage.died(entry.checked, self._now()):
            self._look_at(self._outage.lapses_at)

    def _dispose(self, key: Key, reason: str) -> None:
        """Have an evicted resource closed; nothing to call means nothing to wait for."""
        key.entry.since = self._now()
        if self._has_close and not self._adapter.closes_at_once:
            self._look_at(key.entry.since + self._settings.close_timeout)
            self._background.workers.submit(self._close, key, reason)
        else:
            self._close(key, reason)

    def _close(self, key: Key, reason: str) -> None:
        self._close_entry(key.entry, reason)

    def _close_entry(self, entry: Entry, reason: str) -> None:
        """End the resource, then free the slot, whatever the close said.

        What an exception leaves undone the reaper does, when the key is gone.
        """
        if not self._state.owns(entry):
            return
        self._close_quietly(entry)
        entry.resource = None  # it is not closed twice
        self._retire(entry, reason)

    def _close_quietly(self, entry: Entry) -> None:
        resource = entry.resource
        if resource is None:
            return
        close = self._adapter.close if entry.pool is self._ref else self._adapter.abandon
        try:
            close(resource)
        except BaseException as error:
            if self._adapter.closes_at_once and not isinstance(error, Exception):
                raise  # it is the borrower's; on a worker it is nobody's
            logger.debug("pool %r: close() failed: %s", self.name, say(error))
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

    # -- the reaper, and the process ------------------------------------------

    def _look_at(self, due: float) -> None:
        """Ask the reaper to look at this pool then, unless it does so before."""
        with self._lock:
            if due < self._due:
                self._background.reaper.post(Look(self._ref, due))
                self._due = due  # after it: else an exception between the two leaves nobody looking
            else:
                self._background.reaper.ensure()

    def _is_due(self, due: float) -> bool:
        """For the reaper: whether it is to look now; an earlier look supersedes a later one."""
        with self._lock:  # whoever asked for a look has noted it when he gives this back
            if self._due != due:
                return False
            self._due = NEVER
            return True

    def _later(self, verb: Callable[..., object], *args: Any) -> None:
        """Leave to the reaper what cannot be done inside our own critical section."""
        self._background.reaper.inbox.put(Call(self._ref, verb, args))

    def _knows(self, entry: Entry) -> bool:
        """Whether an entry is this process's and not yet retired."""
        return (PAGE[0] or registry.renew()) and self._state.owns(entry)

    def _move(self) -> None:
        """gevent has replaced the threads: go with it, and keep what we have."""
        with self._lock:
            before = self._ref
            self._enlist()
            for entry in self._state.entries:
                entry.pool = self._ref
        self._background.pools.pop(id(before), None)

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

    # -- counting -------------------------------------------------------------

    def _counts(self) -> str:
        """How many are where, for messages. Needs the lock."""
        return counts(self._state)

    def _count(self, what: str) -> None:
        with self._lock:
            self.metrics.count[what] += 1
