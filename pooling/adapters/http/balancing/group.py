"""The servers of a group with their sockets: what the balancer chooses from, and what it is told."""

from __future__ import annotations

import _thread
import functools
import logging
import random
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Any

from ...._fields import fields
from ....core.observer import notify
from ..connections import Connections, weakly
from ..hosts import Host, HostKey
from .bases import MOST_SERVERS, Base, GroupURL, split_origin
from .model import Balancer, RetryBudget, Server
from .policy import Balancing
from .resolving import addresses_of

__all__ = ["Backend", "Group"]

logger = logging.getLogger("pooling")

_NEVER = float("inf")
_MOST_KEPT = 8  # hosts of a server that are found without building their key


class Backend(Server):
    """One server: one of the ``base_urls``, or one address of its name.

    Attributes:
        base: The base URL.
        address: The address, if the name was resolved.
        hosts: Its sockets; several if requests have several TLS settings or proxies.
        states: The states of their pools.
    """

    __slots__ = ("base", "address", "hosts", "states", "found")

    def __init__(self, base: Base, address: str | None = None) -> None:
        super().__init__(base.label(address), base.zone)
        self.base, self.address = base, address
        self.forget_hosts()

    def forget_hosts(self) -> None:
        """Forget its sockets."""
        self.use_hosts([])
        self.found: dict[Any, Host] = {}  # by ``verify`` and ``cert`` of requests without proxies

    def use_hosts(self, hosts: list[Host]) -> None:
        """Use these sockets from now on."""
        self.hosts, self.states = hosts, [host.pool.engine.state for host in hosts]

    @property
    def url(self) -> str:
        """Its base URL, as an object with this attribute: what a `HostKey` is made of."""
        return self.base.url

    @property
    def in_use(self) -> int:
        """How many requests are in progress."""
        return sum(host.pool.engine.state.in_use for host in self.hosts)

    @property
    def waiting(self) -> int:
        """How many requests wait for one of its sockets."""
        return sum(len(host.pool.engine.state.waiters) for host in self.hosts)

    @property
    def circuit(self) -> str | None:
        """The state of its circuit breaker, if it has one."""
        return next((host.circuit.state for host in self.hosts if host.circuit is not None), None)

    def state(self, now: float) -> str:
        """Return what it gets: requests, all of them or few, or none."""
        if self.ejected_until is not None:
            return "ejected" if self.trial is None else "being tried"
        if now < self.resting_until:
            return "resting"
        return "in service" if self.ramp_from is None else "slow start"


def _load(backend: Backend) -> int:
    """Return how many requests are in progress or wait; approximate, and for every request, so without properties."""
    load = 0
    for state in backend.states:
        load += len(state.entries) - len(state.idle) + len(state.waiters)
    return load


class Group:
    """The servers behind the ``base_urls`` of a pool.

    Nothing that the `Connections` refer to refers to it, except weakly.

    Args:
        connections: Those of the pool.
        bases: The base URLs; the first stands for the group in URLs, cookies and ``.netrc``.
        zone: The near zone.
        policy: The settings.

    Attributes:
        servers: The servers now.
        settled: The `Connections.hosts` for which `begin` has nothing to do.
        lock: Guards what the balancer and the budget know. A request takes it only while a server fails or is left out.
    """

    def __init__(self, connections: Connections, bases: Sequence[Base], zone: str | None, policy: Balancing) -> None:
        self.first, self.policy = bases[0], policy
        self._url = functools.lru_cache(maxsize=256)(functools.partial(GroupURL.below, self.first))
        self._origins = {base.origin for base in bases}
        self._connections, self._bases = connections, bases
        self._balancer = Balancer(policy, zone, 0, random.random)
        self.configure()
        self._budget = RetryBudget(policy.retry_budget)
        self._departed: list[Backend] = []
        self._process: object = None
        self._due = 0.0  # when the names are resolved
        self.servers: Sequence[Backend] = [Backend(base) for base in bases]
        self._balancer.use(self.servers, monotonic())
        self._renew()

    def configure(self) -> None:
        """Apply the settings of the pool."""
        connections = self._connections
        self._balancer.places = min(connections.max_per_host, connections.settings.max_size)

    def _renew(self) -> None:
        """Begin with no sockets, and with a lock that no thread holds: in a new process."""
        # Native and re-entrant, as the pool's own (see `runtime.gevent`): a destructor may end a request.
        self.lock: Any = _thread.RLock()
        self._process = self._connections.hosts
        self._departed = []
        for server in self.servers:
            server.forget_hosts()
        self._balancer.forget_calls()
        self._due = 0.0 if self.policy.resolve else _NEVER
        self.settled = None if self.policy.resolve else self._process

    # -- requests -----------------------------------------------------------------

    def begin(self) -> None:
        """Look up the names if that is due."""
        if self._process is not self._connections.hosts:
            self._renew()
        if self._due == _NEVER:
            return
        now = monotonic()
        if now < self._due:
            return
        with self.lock:
            due, self._due = self._due, max(self._due, now + self.policy.resolve_interval)
        if not due:  # the first time
            self._resolve()
        elif due <= now:  # else another thread does it
            self._connections.slots.engine.runtime.workers.submit(weakly(self._resolve))

    def choose(self, call: object, safe: bool, tried: Collection[Server], retry: bool) -> Backend | None:
        """Return the server for a request, or for a ``retry`` of one, see `Balancer.choose`."""
        if not retry:
            self._budget.requests += 1
        balancer, now = self._balancer, monotonic()
        if not balancer.special and not tried:
            return balancer.choose_usual(now, _load)  # type: ignore[return-value]
        with self.lock:
            return balancer.choose(now, _load, call, safe, tried)  # type: ignore[return-value]

    def healthiest(self) -> Backend:
        """Return the server that has failed least lately."""
        with self.lock:
            return min(self.servers, key=lambda server: (server.ejected_until is not None, server.failing))

    def has_other(self, tried: Collection[Server]) -> bool:
        """Whether there is another server for a request that has tried these."""
        with self.lock:
            return self._balancer.has_other(monotonic(), tried)

    def other(self, backend: Backend) -> Backend | None:
        """Return another server for a request that this one has not answered yet, see `Balancer.other`."""
        with self.lock:
            return self._balancer.other(monotonic(), _load, backend)  # type: ignore[return-value]

    def allows_retry(self) -> bool:
        """Return whether the budget allows one more retry, and count it."""
        with self.lock:
            return self._budget.withdraw()

    def host(self, backend: Backend, transport: Any, request: Any, verify: Any, proxies: Any, cert: Any) -> Host:
        """Return the sockets of a server for a request.

        Raises:
            requests.exceptions.InvalidProxyURL: As in requests.
        """
        settings = (verify, tuple(cert) if isinstance(cert, list) else cert)
        if not proxies:
            found = backend.found.get(settings)
            if found is not None:
                return found
        key = HostKey.of(backend, verify, proxies, cert)
        if backend.address is not None and key.proxy is None:
            key = key._replace(address=backend.address)
        host = self._connections.hosts.at(key, transport, request)
        if host not in backend.hosts:
            backend.use_hosts([*(one for one in backend.hosts if one.kept or not one.empty), host])
        if not proxies and len(backend.found) < _MOST_KEPT:
            host.kept = True
            backend.found[settings] = host
        return host

    def all_hosts(self, transport: Any, request: Any, verify: Any, proxies: Any, cert: Any) -> list[Host]:
        """Return the sockets of all servers."""
        self.begin()
        return [self.host(backend, transport, request, verify, proxies, cert) for backend in self.servers]

    def backend_with(self, host: Host) -> Backend | None:
        """Return the server that has these sockets."""
        return next((backend for backend in self.servers if host in backend.hosts), None)

    # -- outcomes -----------------------------------------------------------------

    def succeeded(self, backend: Backend, call: object, began: float) -> None:
        """Note that it has answered a request that began at this time."""
        now = monotonic()
        if self._balancer.succeeded_usual(backend, now, now - began):
            return
        with self.lock:
            returned = self._balancer.succeeded(backend, call, now, now - began)
        if returned:
            name = self._connections.name
            extra = fields("server_returned", name, server=backend.name)
            logger.warning("pool %r: %s answers again and returns to service", name, backend.name, extra=extra)
            notify(self._connections.observers, "server_returned", name, backend.name)

    def failed(self, backend: Backend, call: object, began: float, reason: str) -> None:
        """Note that it has failed at a request that began at this time."""
        now = monotonic()
        with self.lock:
            ejected = self._balancer.failed(backend, call, now, now - began)
        if ejected is None:
            return
        for host in backend.hosts[:1]:
            host.metrics.count("ejections")
        name = self._connections.name
        extra = fields("server_ejected", name, server=backend.name, seconds=ejected, error=reason)
        logger.warning("pool %r: %s is left out for %g s: %s", name, backend.name, ejected, reason, extra=extra)
        notify(self._connections.observers, "server_ejected", name, backend.name, reason, ejected)

    def slow(self, backend: Backend, began: float) -> None:
        """Note that a request that began at this time was answered by another server meanwhile."""
        now = monotonic()
        with self.lock:
            self._balancer.slow(backend, now, now - began)

    def left(self, call: object) -> None:
        """Note the end of a request, whatever came of it."""
        with self.lock:
            self._balancer.left(call)

    def rest(self, backend: Backend, seconds: float) -> None:
        """Leave it out for so long."""
        with self.lock:
            self._balancer.rest(backend, monotonic() + min(seconds, self.policy.eject_for_max))

    def recover(self, backend: Backend) -> None:
        """Note that its circuit has closed again."""
        with self.lock:
            self._balancer.recover(backend, monotonic())

    # -- URLs ---------------------------------------------------------------------

    def url(self, path: str) -> GroupURL:
        """Return the URL of a request.

        Raises:
            requests.exceptions.InvalidURL: See `joined`.
        """
        # A query is often another one each time, and there may be secrets in it.
        return GroupURL.below(self.first, path) if "?" in path else self._url(path)

    def canonical(self, location: str) -> str:
        """Return where a redirect leads: one to a server of the group leads to the group."""
        origin, rest = split_origin(location)
        return GroupURL(self.first.origin + rest, self.first) if origin in self._origins else location

    # -- names --------------------------------------------------------------------

    def _resolve(self) -> None:
        """Look up the addresses of all names, and use them."""
        known: dict[Base, list[Backend]] = {}
        for backend in self.servers:
            known.setdefault(backend.base, []).append(backend)
        servers: list[Backend] = []
        for base in self._bases:
            before = {backend.address: backend for backend in known.get(base, ())}
            try:
                addresses: list[str | None] = [*addresses_of(base.url)] or [None]
            except (OSError, UnicodeError) as error:
                name = self._connections.name
                extra = fields("not_resolved", name, server=base.url, error=str(error))
                logger.warning("pool %r: cannot resolve %s: %s", name, base.url, error, extra=extra)
                addresses = [*before] or [None]
            servers += [before.get(address) or Backend(base, address) for address in addresses]
        self._use(servers[:MOST_SERVERS])

    def _use(self, servers: Sequence[Backend]) -> None:
        with self.lock:
            gone = [backend for backend in self.servers if backend not in servers]
            self.servers = servers
            self._balancer.use(servers, monotonic())
        in_use = {id(host) for backend in servers for host in backend.hosts}
        for backend in gone:
            for host in backend.hosts:
                host.pool.drain()  # requests in progress end, no new one begins
        waiting = []
        for backend in (*self._departed, *gone):
            for host in backend.hosts:
                if host.empty and id(host) not in in_use:
                    self._connections.hosts.retire(host)
            backend.use_hosts([host for host in backend.hosts if not host.empty and id(host) not in in_use])
            if backend.hosts:
                waiting.append(backend)
        self._departed = waiting

    # -- observe ------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return the state of each server, by its URL."""
        now, found = monotonic(), {}
        with self.lock:
            for one in self.servers:
                found[one.name] = {
                    "zone": one.zone, "state": one.state(now), "in_use": one.in_use, "waiting": one.waiting,
                    "idle": sum(host.idle for host in one.hosts), "latency": one.latency, "failing": one.failing,
                    "failures": one.failures, "ejections": one.ejections,
                    "ejected_for": None if one.ejected_until is None else max(0.0, one.ejected_until - now),
                    "circuit": one.circuit,
                }  # fmt: skip
        return found
