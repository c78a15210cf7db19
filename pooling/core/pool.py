"""`Pool`: the public verbs, and acquire, whose fast path is all here."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from .._masking import masked, shown
from ..errors import CircuitOpen, PoolClosed, PoolTimeout
from ..settings import PoolOptions, PoolSettings, with_options
from .adapter import Adapter, as_adapter
from .checkin import Checkin
from .checkout import Checkout, instead_of_lease
from .clock import SYSTEM, Clock, seconds
from .engine import Engine, report_recovery
from .entry import Token
from .lease import Lease
from .liveness import Liveness
from .maintenance import Maintenance
from .managed import ManagedPool
from .observer import EVERYWHERE, Observer
from .probe import Probe
from .report.holders import Holder, holders_of
from .report.messages import format_counts, format_error, format_exhaustion, format_late
from .report.metrics import PoolMetrics
from .runtime.fork import SAME_PROCESS
from .sizing import Budget, attach
from .waiting import all_lent, is_warm, wait_until

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Pool"]

R = TypeVar("R")
_numbers = itertools.count(1)
_getframe = sys._getframe


class Pool(ManagedPool[R]):
    """Lends resources that are costly to make to one thread at a time.

    ::

        pool = Pool(connect, close=Connection.close, max_size=20, name="ldap")
        with pool.acquire(timeout=2.0) as connection:
            connection.search(...)

    Nothing is opened and no thread is started before the first use. The pool
    may be made at import, used by any number of threads, and carried over a
    fork: the child finds it empty.

    Args:
        factory: Creates a resource. May block; runs on a worker thread, in a
            copy of the context (``contextvars``) of the acquire that needs it.
            Replacements that keep ``min_size`` have no borrower's context.
        close: Closes a resource.
        validate: Makes a round trip to prove a resource alive: raises, or
            returns ``False``, if it is dead. Any other return value, ``None``
            included, means alive.
        reset: Makes a resource as good as new after a lease; raises, or
            returns ``False``, if that fails.
        is_broken: Called with a resource and the error that left the block:
            ``True`` closes the resource, ``False`` keeps it, ``None`` leaves
            the decision to `Adapter.is_broken`. Without this argument that
            decides, and after any other error ``validate`` is called.
        adapter: All of the above and more in one object; instead of ``factory``.
        settings: Sizes and times, see `PoolSettings`.
        name: For messages and metrics.
        budget: A `FleetBudget`: what this pool has counts towards it.
        observers: Notified of events, see `Observer`.
        clock: The source of time; tests pass their own.
        options: Fields of `PoolSettings`; they override ``settings``.

    Raises:
        TypeError: Neither or both of ``factory`` and ``adapter``, or an
            argument of the wrong type.
    """

    __slots__ = ("_fast", "_liveness", "engine", "_checkin", "_maintenance", "_probe", "__dict__", "__weakref__")

    def __init__(
        self,
        factory: Callable[[], R] | None = None,
        *,
        close: Callable[[R], object] | None = None,
        validate: Callable[[R], bool | None] | None = None,
        reset: Callable[[R], bool | None] | None = None,
        is_broken: Callable[[R, BaseException], bool | None] | None = None,
        adapter: Adapter[R] | None = None,
        settings: PoolSettings | None = None,
        name: str | None = None,
        budget: Budget | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        given = {"factory": factory, "close": close, "validate": validate, "reset": reset, "is_broken": is_broken}
        adapter = as_adapter(adapter, given)
        if settings is not None and not isinstance(settings, PoolSettings):
            # Never the value: a misplaced argument may be an address with a password.
            raise TypeError(f"settings must be a PoolSettings, not of type {type(settings).__name__}")
        if name is not None and not (isinstance(name, str) and name):
            raise TypeError(f"name must be a non-empty string, not {shown(name)}")
        if isinstance(name, str) and "://" in name and masked(name) != name:
            raise ValueError("name must not be an address with a password: it stands in every message")
        if clock is not None and not (callable(getattr(clock, "now", None)) and hasattr(clock, "get")):
            raise TypeError(f"clock must have now(), wall() and get(), not be {shown(clock)}")
        if not isinstance(observers, Iterable):
            raise TypeError(f"observers must be an iterable of pooling.Observer, not {shown(observers)}")
        settings = with_options(settings or PoolSettings(), options, Pool.__init__)
        number = next(_numbers)
        self.engine = Engine(adapter, settings, name or f"pool-{number}", clock or SYSTEM)
        """The mechanism; internal, for the adapters of this package."""
        self.engine.owner = weakref.ref(self)
        self._fast = self.engine.fast
        self._liveness = Liveness(self.engine)
        self._checkin = Checkin(self.engine, self._liveness)
        self._maintenance = Maintenance(self.engine, self._liveness)
        self._probe = Probe(self.engine, self._liveness, self._checkin)
        adapter.settings_changed(self.settings)
        for observer in (*observers, *EVERYWHERE):
            self.add_observer(observer)
        self.budget = attach(budget, self.engine)
        """What limits its size beside the settings, together with other pools."""

    # -- acquire --------------------------------------------------------------

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[R]:
        """Take a resource, waiting for one if all are in use.

        Waiters are served strictly in order of arrival, whether the resource
        that serves them was just released or just created. In a pool with
        lanes that holds within each lane; see `Lane` for the order between them.

        Args:
            timeout: Seconds for everything together: waiting, creation,
                validation. ``None`` means the pool's ``acquire_timeout``;
                ``0`` takes an idle resource (checked, but not validated by a
                round trip) or raises at once.
            lane: The lane, by name; ``None`` means that of the `lane` around
                this code, or "default". A pool without lanes ignores it.

        Returns:
            A `Lease`; as a context manager it gives the resource.

        Raises:
            PoolTimeout: None came in time. The message states counts and holders.
            PoolUnavailable: The server is down, and ``timeout`` is 0, or ``max_attempts`` creations
                failed meanwhile, or the pool's ``breaker`` allows none now (`CircuitOpen`).
            TooManyWaiting: ``max_waiting`` borrowers wait already.
            PoolClosed: The pool was closed before or during the wait.
            CreateFailed: Creation can never succeed; the driver's error is the cause.
            ValueError, TypeError: ``timeout`` is not a number of seconds >= 0,
                or the pool has lanes, but none of this name.
        """
        if timeout is not None:
            timeout = seconds(timeout)
        fast = self._fast
        pop, clock = fast.pop, fast.now  # bound first: the cheaper call
        token: Token | None = None
        if not fast.waiters:
            try:
                token = pop()
            except IndexError:
                pass  # leave the handler, so that later errors do not chain this one
        if token is None:
            try:
                token, now = Checkout(self.engine, self._liveness, timeout, clock(), lane).run()
            except CircuitOpen as error:
                return instead_of_lease(self.engine, error)  # type: ignore[no-any-return]
            entry = token.entry
        else:
            entry = token.entry
            now = clock()
            if (
                entry.generation is not fast.lendable_generation
                or now >= entry.expires
                or not SAME_PROCESS[0]
                or (fast.checks_on_acquire and not self._liveness.is_sound(entry, now))
            ):
                doubtful = [token]
                del token, entry  # another thread may get it while this one waits
                try:
                    token, now = Checkout(self.engine, self._liveness, timeout, now, lane).run(doubtful)
                except CircuitOpen as error:
                    return instead_of_lease(self.engine, error)  # type: ignore[no-any-return]
                entry = token.entry
        if fast.track_holders:
            entry.thread = threading.get_ident()  # looked up at each call: gevent replaces it
            try:
                frame = _getframe(_depth)
            except ValueError:  # no caller in Python: `gevent.spawn(pool.acquire)`
                entry.code = None
            else:
                entry.code = frame.f_code
                entry.lasti = frame.f_lasti
        entry.since = now  # last: an entry that counts as held has the right holder
        lease: Lease[R] = Lease()
        lease._pool = self
        lease._token = token
        return lease

    # -- open and close -------------------------------------------------------

    def open(self, timeout: float | None = None) -> None:
        """Warm up: wait until ``min_size`` resources are ready, or raise the reason.

        Not needed before `acquire`, which opens what it needs.

        Args:
            timeout: Seconds to wait; ``None`` means ``acquire_timeout``.

        Raises:
            PoolTimeout: They were not ready in time; the real error is the cause.
            CreateFailed: They never will be.
            PoolClosed: The pool was closed.
        """
        engine = self.engine
        engine.ensure_usable()
        limit = engine.settings.acquire_timeout if timeout is None else seconds(timeout)
        state, outage = engine.state, engine.outage
        with engine.lock:
            if state.closed:
                raise PoolClosed(f"pool {self.name!r} is closed")
            state.started = True
        wait_until(engine, lambda: is_warm(engine) or state.closed or outage.final, limit)
        with engine.lock:
            if is_warm(engine):
                return
            if state.closed:
                raise PoolClosed(f"pool {self.name!r} was closed while it opened")
            if outage.final:
                raise outage.cannot_create(engine.name, engine.adapter.noun) from outage.error
            what = f"{state.ready} of {state.min_size} {engine.adapter.noun}s ready"
            text = format_late(self.name, what, limit, engine.adapter, state, outage.error)
            raise PoolTimeout(text) from outage.error

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Close the pool for good.

        Waiters fail at once with `PoolClosed`. Idle resources are closed now,
        and those in use when they are released. Those still in use after
        ``timeout`` are interrupted, so that a holder blocked on one fails, but
        never closed under their holders. Idempotent.

        Args:
            timeout: Seconds to wait for resources in use or being closed;
                ``None`` means ``close_timeout``.
            interrupt: Whether to interrupt those still in use.
        """
        engine = self.engine
        engine.ensure_usable()
        limit = engine.settings.close_timeout if timeout is None else seconds(timeout)
        state = engine.state
        with engine.lock:
            state.closed = True
            state.generation = object()
            engine.refresh_fast_path_locked()
            state.waiters.fail(PoolClosed, f"pool {self.name!r} was closed during the wait")
        engine.serve()
        me = threading.get_ident()

        def all_closed() -> bool:  # a resource of this thread cannot be released while it waits
            lent = state.lent()
            return all(entry.thread == me for entry in lent) and len(state.entries) == len(lent)

        if (not wait_until(engine, all_closed, limit) or state.entries) and interrupt:
            self._maintenance.interrupt_holders()
        report_recovery(engine, engine.fast.now(), 0.0)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.engine.state.closed

    # -- steer ----------------------------------------------------------------

    @property
    def name(self) -> str:
        """The pool's name in messages and metrics."""
        return self.engine.name

    @property
    def settings(self) -> PoolSettings:
        """The settings in force."""
        return self.engine.settings

    def fill(self, size: int | None = None) -> None:
        """Create resources ahead of need, at most 64 at once, without waiting for them.

        It is given up after some failures in a row; up to ``min_size`` the
        pool goes on.

        Args:
            size: How many there should be in all; ``None`` means ``min_size``.

        Raises:
            ValueError: More than ``max_size``, or less than 0.
        """
        engine = self.engine
        engine.ensure_usable()
        state = engine.state
        goal = state.min_size if size is None else size
        if not isinstance(goal, int) or isinstance(goal, bool):
            raise TypeError(f"size must be a whole number, not {shown(size)}")
        if not 0 <= goal <= engine.settings.max_size:
            raise ValueError(f"size must be from 0 to max_size={engine.settings.max_size}, not {shown(size)}")
        with engine.lock:
            if state.closed:
                raise PoolClosed(f"pool {self.name!r} is closed")
            state.started = True
            missing = goal - (len(state.entries) - len(state.closing))
            state.filling = max(state.filling, min(missing, state.max_size - len(state.entries)))
        engine.runtime.reaper.ensure()  # a limit may be raised by what it runs
        engine.serve()

    def drain(self) -> None:
        """Begin a new generation: replace every resource.

        Idle ones are closed now, those in use when they are released; new
        ones are created as they are needed.
        """
        engine = self.engine
        engine.ensure_usable()
        engine.drain()
        engine.events.drained()
        engine.serve()

    def reconfigure(self, **changes: Any) -> None:
        """Change settings of a running pool.

        Lifetimes apply to resources created from now on, all else at once.

        Raises:
            ValueError, TypeError: As for `PoolSettings`; nothing was changed.
        """
        engine = self.engine
        engine.ensure_usable()
        with engine.lock:
            settings = engine.settings.replace(**changes)
            engine.configure(settings)
            self._liveness.configure(settings)
            engine.schedule_sweep(engine.fast.now())
        engine.adapter.settings_changed(settings)
        engine.serve()

    def pause(self) -> None:
        """Lend nothing until `resume`: borrowers wait, and may time out.

        Resources in use stay with their holders.
        """
        self._set_paused(True)

    def resume(self) -> None:
        """Lend again after `pause`, in order of arrival."""
        self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        engine = self.engine
        engine.ensure_usable()
        with engine.lock:
            engine.state.paused = paused
            engine.refresh_fast_path_locked()
        engine.serve()

    def check(self) -> None:
        """Check the idle resources now; dead ones are closed and replaced.

        Returns when each has been checked, or is being validated on a worker.
        """
        self.engine.ensure_usable()
        self._liveness.check_all_idle()

    def probe(self, timeout: float | None = None) -> str | None:
        """Make a round trip with an idle or a new resource, or raise what is wrong with the server.

        It never waits behind borrowers. A resource that died while it was idle
        says nothing about the server: then the other idle ones are checked, and
        one is tried again.

        Args:
            timeout: Seconds for all of it; ``None`` means ``health_check_timeout``.

        Returns:
            ``None``, or a warning: ``"exhausted: 20 of 20 in use, ..."``, at once,
            if all are in use, or ``"paused"``.

        Raises:
            PoolUnavailable: No resource can be created, or all are in use and
                the server does not answer (see `Adapter.ping`).
            PoolTimeout: None was available in time.
            Exception: What the adapter's ``validate`` raised, the second time.
        """
        return self._probe.run(self.settings.health_check_timeout if timeout is None else seconds(timeout))

    def check_health_now(self) -> None:
        """Make the next health check due at once."""
        self._maintenance.health_check_at = self.engine.outage.succeeded_at = float("-inf")
        self.engine.schedule_sweep(self.engine.fast.now())

    # -- observe --------------------------------------------------------------

    @property
    def metrics(self) -> PoolMetrics:
        """Counters and durations, see `PoolMetrics`."""
        return self.engine.metrics

    def add_observer(self, observer: Observer) -> None:
        """Notify an observer from now on. Idempotent."""
        if not isinstance(observer, Observer):
            raise TypeError(f"observers must be of pooling.Observer, not {shown(observer)}")
        observers = self.engine.events.observers
        if not any(one is observer for one in observers):
            self.engine.observe((*observers, observer))

    def remove_observer(self, observer: Observer) -> None:
        """Notify an observer no longer."""
        self.engine.observe(tuple(one for one in self.engine.events.observers if one is not observer))

    def stats(self) -> dict[str, Any]:
        """Return the current counts and the settings that bound them."""
        engine = self.engine
        with engine.lock:
            failing, adapting = self._liveness.resets.error, self._maintenance.adapting
            return {
                "name": self.name, **engine.state.stats(), **engine.outage.stats(engine.fast.now()),
                "resets_failing": None if failing is None else format_error(failing),
                **({} if adapting is None else {"adaptive": adapting.stats()}),
                **({} if self.budget is None else {"budget": self.budget.stats()}),
            }  # fmt: skip

    def exhaustion(self) -> str | None:
        """Return how many are in use and wait, as text, if every resource is in use; otherwise ``None``."""
        with self.engine.lock:
            return format_exhaustion(self.engine.state, self.engine.fast.now()) if all_lent(self.engine) else None

    def holders(self) -> list[Holder]:
        """Return who holds a resource, where it was acquired and for how long; longest first."""
        with self.engine.lock:
            return holders_of(self.engine.state.lent(), self.engine.fast.now())

    def __repr__(self) -> str:
        with self.engine.lock:
            text, closed = format_counts(self.engine.adapter, self.engine.state), self.engine.state.closed
        return f"<{type(self).__name__} {self.name!r}: {text}{', closed' if closed else ''}>"
