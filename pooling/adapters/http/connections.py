"""The connections of an HTTP pool: its hosts with their sockets, and the slots that limit its requests."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ...core.observer import Observer, notify
from ...core.pool import Pool
from ...core.report.histogram import SHORT
from ...core.runtime import fork
from ...core.runtime.fork import SAME_PROCESS
from ...errors import PoolClosed
from ...settings import PoolSettings
from .arguments import checked_number
from .calls import Calls
from .hold import Hold
from .hosts import Host, HostKey, Hosts
from .limits import Limits
from .listeners import OF_REQUESTS, OF_SOCKETS, observes_acquired, part_of
from .metrics import HostMetrics, HTTPMetrics
from .slots import RequestSlot, RequestSlots, record_holder, slot_settings

__all__ = ["Connections", "weakly"]

T = TypeVar("T")
_RECHECK_AFTER = 0.001  # seconds of waiting for a slot after which a kept connection is checked again


class Connections:
    """The hosts and request slots of one pool.

    The transport, the sessions and the health probe hold this object, not the
    `HTTPPool`. It refers to none of them strongly enough to form a cycle, so a
    pool that is dropped is freed at once, by reference counting.

    Args:
        settings: Those of the pool.
        max_per_host: Maximum number of requests in progress to one host.
        name: The pool's name; ``None`` for a number.
        after_fork: Called in a forked child, when this object has been renewed.

    Attributes:
        slots: The pool of request slots. Its name, state, holders and metrics are those of the `HTTPPool`.
        hosts: The hosts with their sockets; a new object in a forked child.
        calls: What each thread has not read yet; likewise.
        before_request: Called for each request, before it waits for a connection; ``None`` for nothing.
    """

    def __init__(
        self, settings: PoolSettings, max_per_host: int, name: str | None, after_fork: Callable[[], object],
    ) -> None:  # fmt: skip
        self.settings = settings
        self.max_per_host = max_per_host
        self.observers: tuple[Observer, ...] = ()
        self.before_request: Callable[[], object] | None = None
        self._acquired_observers: tuple[Observer, ...] = ()
        self._after_fork = after_fork
        adapter = RequestSlots(weakly(self.counts), weakly(self._renew_in_child))
        self.slots: Pool[RequestSlot] = Pool(adapter=adapter, settings=slot_settings(settings), name=name)
        self.metrics = HTTPMetrics(self.name, self.slots.engine.clock)
        self.slots.engine.use_metrics(self.metrics)
        self._renew()

    def _renew(self) -> None:
        """Begin with no host and no request; a lock of the parent process may guard what there was."""
        self.calls = Calls()
        self.hosts = Hosts(self.name, self.settings, min(self.max_per_host, self.settings.max_size))
        self.metrics.sockets = self.hosts
        self.hosts.observe(self._socket_observers())

    def _renew_in_child(self) -> None:
        self._renew()
        self._after_fork()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.slots.name

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return self.slots.closed

    def check_open(self) -> None:
        """Raise `PoolClosed` if the pool was closed."""
        if self.slots.engine.state.closed:
            raise PoolClosed(f"pool {self.name!r} is closed")

    # -- requests -----------------------------------------------------------------

    def host_of(self, transport: Any, request: Any, verify: Any, proxies: Any, cert: Any) -> Host:
        """Return the host that a request goes to.

        Raises:
            requests.exceptions.InvalidURL, InvalidProxyURL: As in requests.
        """
        self.begin_request()
        return self.hosts.find(transport, request, verify, proxies, cert)

    def host_metrics(self, request: Any) -> HostMetrics:
        """Return the metrics for a request that is not pooled.

        Raises:
            PoolClosed: The pool was closed.
        """
        self.begin_request()
        self.check_open()
        return self.hosts.metrics_for(request)

    def begin_request(self) -> None:
        """Do what comes before each request."""
        if not SAME_PROCESS[0]:
            fork.ensure_process()
        if self.before_request is not None:
            self.before_request()

    def take(self, host: Host, limits: Limits) -> Hold:
        """Wait for a connection to a host, then for a request slot.

        Raises:
            PoolTimeout: Not both were free in time.
            TooManyWaiting: ``max_waiting`` requests wait already.
            PoolClosed: The pool was closed before or during the wait.
            OutOfTime: The total time of the request is over.
        """
        wait = self.settings.acquire_timeout if limits.pool is None else limits.pool
        wait = limits.left(wait) or 0.0
        self.check_open()
        slots, started = self.slots, monotonic()
        connection = host.pool.acquire(wait)
        try:
            slot = slots.acquire(max(0.0, started + wait - monotonic()))
            if slots.engine.fast.track_holders:
                record_holder(connection, slot)
            slot.__enter__().connection_lease = connection
        except BaseException:
            connection.release()
            raise
        hold = Hold(host, slot, self.hosts.trim)
        wire, waited = hold.wire, monotonic() - started
        if self.settings.enable_metrics:
            self.metrics.waited(waited)
            if waited > SHORT and self.observers:
                notify(self.observers, "waited", self.name, waited)
        if self._acquired_observers:
            notify(self._acquired_observers, "acquired", self.name, waited)
        if wire.sock is not None and waited > _RECHECK_AFTER and not wire.is_alive():
            hold.close_dead_socket()
        if wire.sock is None:
            state = slots.engine.state
            self.hosts.evict_above(state.max_size - state.in_use)
        return hold

    # -- steer ----------------------------------------------------------------------

    def reconfigure(self, max_per_host: int | None, changes: dict[str, Any]) -> None:
        """Change settings; see `HTTPPool.reconfigure`."""
        settings = self.settings.replace(**changes)
        own = slot_settings(settings)
        if max_per_host is not None:
            self.max_per_host = checked_number("max_per_host", max_per_host)
        self.settings = settings
        names = ("max_size", "max_waiting", "acquire_timeout", "leak_timeout", "close_timeout",
                 "track_holders", "enable_metrics", "adaptive")  # fmt: skip
        self.slots.reconfigure(**{name: getattr(own, name) for name in names})
        self.hosts.configure(settings, min(self.max_per_host, settings.max_size))
        self.hosts.trim()

    def drain(self) -> None:
        """Begin a new generation of sockets, and notify the observers."""
        self.hosts.drain()
        self.slots.engine.events.drained()

    def close(self, timeout: float | None, interrupt: bool) -> None:
        """Refuse requests, wait for those in progress, and close all sockets; see `HTTPPool.close`."""
        self.slots.engine.state.closed = True  # first: no request may wait for a host after its waiters have failed
        for host in self.hosts.all():
            host.fail_waiters(f"pool {self.name!r} was closed during the wait")
        self.slots.close(timeout, interrupt=interrupt)
        self.hosts.close(0.0)

    # -- observe ----------------------------------------------------------------------

    def observe(self, observers: tuple[Observer, ...]) -> None:
        """Notify these observers from now on."""
        self.observers = observers
        self._acquired_observers = tuple(one for one in observers if observes_acquired(one))
        self.slots.engine.observe(tuple(part_of(one, OF_REQUESTS) for one in observers))
        self.hosts.observe(self._socket_observers())

    def _socket_observers(self) -> tuple[Observer, ...]:
        return tuple(part_of(one, OF_SOCKETS, self.name) for one in self.observers)

    def health_checked(self, error: BaseException | None) -> None:
        """Count a health probe, and notify the observers; ``None`` means that it succeeded."""
        with self.slots.engine.lock:
            self.metrics.last_health_check = self.slots.engine.clock.wall()
            self.metrics.count["health_failures"] += error is not None
        notify(self.observers, "health_checked", self.name, error)

    def stats(self) -> dict[str, Any]:
        """Return the current counts and the settings that bound them, also for each host."""
        sockets = [host.pool.stats() for host in self.hosts.all()]
        found = self.slots.stats()
        idle, closing = sum(one["idle"] for one in sockets), sum(one["closing"] for one in sockets)
        found.update(
            size=idle + closing + found["in_use"], idle=idle, closing=closing, creating=0,
            waiting=found["waiting"] + sum(one["waiting"] for one in sockets),
            min_size=0, max_per_host=self.max_per_host,
        )  # fmt: skip
        hosts: dict[str, Counter[str]] = {}
        for one in sockets:  # one label may stand for several: other TLS settings, another proxy
            counts = hosts.setdefault(one["name"].removeprefix(self.name + " "), Counter())
            counts.update({name: one[name] for name in ("idle", "in_use", "waiting")})
        found["hosts"] = {label: dict(counts) for label, counts in hosts.items()}
        for label, circuit in self.hosts.circuits.items():
            found["hosts"].setdefault(label, {})["circuit"] = circuit.state
        return found

    def exhaustion(self) -> str | None:
        """Return how many are in use and wait, as text, if all are in use, or all of a host that others wait for."""
        text = self.slots.exhaustion()
        if text is not None:
            return text
        for host in self.hosts.all():
            text = host.pool.exhaustion() if host.pool.engine.state.waiters else None
            if text is not None:
                return f"{host.pool.name.removeprefix(self.name + ' ')} {text}"
        return None

    def is_full_for(self, url: str) -> bool:
        """Whether a request of this URL would have to wait for a connection."""
        parts = urlsplit(url)
        label = HostKey(parts.scheme.lower(), parts.hostname or "", parts.port, None, None, None).label
        if self.slots.exhaustion() is not None:
            return True
        pools = [host.pool for host in self.hosts.all() if host.pool.name == f"{self.name} {label}"]
        return any(pool.exhaustion() is not None for pool in pools)

    def counts(self) -> str:
        """Return the current counts, for messages."""
        state, hosts = self.slots.engine.state, self.hosts.all()
        waiting = len(state.waiters) + sum(len(host.pool.engine.state.waiters) for host in hosts)
        text = f"{state.in_use}/{state.max_size} in use, {sum(host.idle for host in hosts)} idle, {waiting} waiting"
        return text + (", paused" if state.paused else "")


def weakly(method: Callable[..., T]) -> Callable[..., T | None]:
    """Return a function that calls a bound method, or returns ``None`` when its object no longer exists."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> T | None:
        bound = reference()
        return None if bound is None else bound(*args)

    return call
