"""The sockets: a `Pool` for each host replaces urllib3's queue.

It provides the order of waiters, the limit for each host, eviction of idle
and old sockets, the check that a kept connection is alive, and forks. A host
is identified by scheme, name and port, by the proxy and by the TLS settings,
so that a connection made without verification never serves a request that
asks for verification.

Nothing here refers to the `HTTPPool`, so that a dropped pool is freed.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import requests
import requests.adapters
from requests.utils import prepend_scheme_if_needed, select_proxy
from urllib3.poolmanager import PoolManager
from urllib3.util import parse_url

from ..._fields import fields
from ...breaker import CircuitBreaker
from ...core.adapter import Adapter
from ...core.circuit import Circuit
from ...core.entry import Token
from ...core.observer import Observer, notify
from ...core.pool import Pool
from ...errors import PoolClosed
from ...settings import PoolSettings
from .metrics import MOST_LABELS, OTHERS, WAIT_COUNTERS, HostMetrics
from .template import Template, per_request
from .tls import TLSContexts, is_context
from .wire import Wire

__all__ = ["Forgotten", "Host", "HostKey", "Hosts"]

logger = logging.getLogger("pooling")

MOST_HOSTS = 1000
"""Maximum number of hosts; above it, those without a socket are forgotten. Internal."""


class HostKey(NamedTuple):
    """What all requests on the same sockets have in common."""

    scheme: str
    host: str
    port: int | None
    proxy: str | None
    verify: Any
    cert: Any
    address: str | None = None  # to connect to, instead of the addresses of the host

    @classmethod
    def of(cls, request: Any, verify: Any, proxies: Any, cert: Any) -> HostKey:
        """Return the key of a prepared request with these settings.

        Raises:
            requests.exceptions.InvalidURL: The port is not a number from 0 to 65535.
        """
        parsed = urlsplit(request.url)
        try:
            scheme, name, port = _endpoint(parsed.scheme, parsed.netloc.rpartition("@")[2])
        except ValueError as error:
            raise requests.exceptions.InvalidURL(error, request=request) from error
        proxy = select_proxy(request.url, proxies) if proxies else None
        if scheme != "https" and not _has_tls(proxy):
            verify = cert = None  # no TLS
        elif verify is None or verify is False or verify is True:
            verify = verify is not False
        elif not is_context(verify):
            verify = str(verify)
        return cls(scheme, name, port, proxy, verify, tuple(cert) if isinstance(cert, list) else cert)

    @property
    def tls(self) -> bool:
        """Whether its sockets use TLS, to the host or to the proxy."""
        return self.scheme == "https" or _has_tls(self.proxy)

    @property
    def label(self) -> str:
        """The host, as messages and metrics name it."""
        port = "" if self.port in (None, {"http": 80, "https": 443}.get(self.scheme)) else f":{self.port}"
        host = self.address or self.host
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}{port}"


class Wires(Adapter[Wire]):
    """Creates and maintains the connections to one host.

    A connection is opened later, by the request that uses it (see `Wire`), so
    errors and their time limits are the same as in requests.

    Args:
        template: Makes connections.
        metrics: The host's.
        refresh: Returns the TLS settings of a new connection, which change with `drain`.
        address: To connect to, see `HostKey`.
    """

    noun = "connection"
    blocking = False
    enforces_timeouts = True
    close_inline = True

    def __init__(
        self, template: Template, metrics: HostMetrics, refresh: Callable[[], dict[str, Any]],
        address: str | None = None,
    ) -> None:  # fmt: skip
        self._template, self._metrics, self._refresh, self._address = template, metrics, refresh, address

    def create(self) -> Wire:
        self._template.conn_kw.update(self._refresh())
        wire: Wire = self._template._new_conn()  # type: ignore[assignment]
        wire.on_connected, wire.on_closed = self._metrics.connected, self._metrics.closed
        wire.address = self._address
        return wire

    def is_alive(self, resource: Wire) -> bool:
        return resource.is_alive()

    def close(self, resource: Wire) -> None:
        resource.close()

    def interrupt(self, resource: Wire) -> None:
        resource.interrupt()

    def abandon(self, resource: Wire) -> None:
        resource.abandon()


class Host:
    """The sockets of one host, its metrics, and its circuit breaker if there is one.

    Attributes:
        kept: Whether it is never forgotten, because a group of servers refers to it.
    """

    kept = False

    def __init__(self, pool: Pool[Wire], template: Template, metrics: HostMetrics, circuit: Circuit | None) -> None:
        self.pool, self.template, self.metrics, self.circuit = pool, template, metrics, circuit

    @property
    def idle(self) -> int:
        """The number of idle sockets."""
        return len(self.pool.engine.state.idle)

    @property
    def idle_since(self) -> float:
        """When the socket that has been idle longest was last used; infinity if none is idle."""
        try:
            return self.pool.engine.state.idle[0].entry.idle_since
        except IndexError:
            return float("inf")

    def evict_oldest(self, reason: str) -> None:
        """Close the socket that has been idle longest."""
        try:
            token: Token = self.pool.engine.state.idle.popleft()
        except IndexError:
            return
        self.pool.engine.evict(token, reason)

    def fail_waiters(self, text: str) -> None:
        """Raise `PoolClosed` with this text in all threads that wait for a connection."""
        with self.pool.engine.lock:
            self.pool.engine.state.waiters.fail(PoolClosed, text)

    @property
    def empty(self) -> bool:
        """Whether it has no socket and no waiter."""
        return not (self.pool.engine.state.entries or self.pool.engine.state.waiters)


class Forgotten:
    """The counts of hosts that were forgotten."""

    def __init__(self) -> None:
        self.closed: Counter[str] = Counter()
        self.count: Counter[str] = Counter()

    def add(self, host: Host) -> None:
        """Add the counts of a host."""
        snapshot = host.pool.metrics.snapshot()
        self.closed.update(snapshot.closed)
        self.count.update({name: getattr(snapshot, name) for name in WAIT_COUNTERS})

    def clear(self) -> None:
        """Reset all counts."""
        self.closed.clear()
        self.count.clear()


class Hosts:
    """All hosts of one pool. There is no lock, which a forked child might find locked.

    Assumes: getting, setting and deleting a dict's item are atomic.
    """

    def __init__(self, name: str, settings: PoolSettings, max_per_host: int) -> None:
        self.name = name
        self.circuits: dict[str, Circuit] = {}  # by label
        self._breaker: CircuitBreaker | None = None
        self.metrics: dict[str, HostMetrics] = {}
        self.forgotten = Forgotten()
        self.contexts = TLSContexts()
        self._hosts: dict[HostKey, Host] = {}
        self._observers: tuple[Observer, ...] = ()
        self._paused = self.closed = False
        self.configure(settings, max_per_host)

    def configure(self, settings: PoolSettings, max_per_host: int) -> None:
        """Apply settings, also to the existing hosts."""
        self._max_idle = settings.max_idle
        self._settings = settings.replace(
            min_size=0, max_size=max_per_host, max_idle=None, max_attempts=None, leak_timeout=None,
            health_check_interval=None, keepalive_interval=None, breaker=None,
        )  # fmt: skip
        if settings.breaker != self._breaker:
            self._breaker = settings.breaker
            self.circuits.clear()
            for host in self.all():
                host.circuit = self._circuit_of(host.metrics.host)
        for metrics in list(self.metrics.values()):
            metrics.on = settings.enable_metrics
        for host in self.all():
            host.pool.reconfigure(**{
                name: getattr(self._settings, name)
                for name in ("max_size", "max_waiting", "acquire_timeout", "max_lifetime", "lifetime_jitter",
                             "idle_timeout", "max_uses", "close_timeout", "track_holders", "enable_metrics")
            })  # fmt: skip

    def all(self) -> list[Host]:
        """Return the current hosts."""
        return list(self._hosts.values())

    # -- find ---------------------------------------------------------------------

    def find(self, transport: Any, request: Any, verify: Any, proxies: Any, cert: Any) -> Host:
        """Return the host that a request goes to, a new one if it is not known.

        Raises:
            requests.exceptions.InvalidURL, InvalidProxyURL: As in requests.
        """
        key = HostKey.of(request, verify, proxies, cert)
        return self._hosts.get(key) or self._add(key, transport, request)

    def at(self, key: HostKey, transport: Any, request: Any) -> Host:
        """Return the host with this key, a new one if it is not known."""
        return self._hosts.get(key) or self._add(key, transport, request)

    def retire(self, host: Host) -> None:
        """Forget a host without a socket, which is not used any more."""
        for key, one in list(self._hosts.items()):
            if one is host:
                self._hosts.pop(key, None)
                self.circuits.pop(key.label, None)
                self.forgotten.add(host)

    def _add(self, key: HostKey, transport: Any, request: Any) -> Host:
        if len(self._hosts) >= MOST_HOSTS:
            self._forget()
        template = _template(key, transport, request, self.contexts)
        metrics = self._metrics_of(key.label)
        secure, contexts = key.tls, self.contexts

        def refresh() -> dict[str, Any]:
            return {"ssl_context": contexts.get(key.verify, key.cert)} if secure else {}

        pool = Pool(
            adapter=Wires(template, metrics, refresh, key.address), settings=self._settings,
            name=f"{self.name} {key.label}",
        )  # fmt: skip
        pool.engine.observe(self._observers)  # in place of those that every pool has: they observe the HTTPPool
        pool.engine.owner = None  # a part of the HTTPPool
        pool.metrics.inner = True
        host = self._hosts.setdefault(key, Host(pool, template, metrics, self._circuit_of(key.label)))
        if self.closed:
            host.pool.close(0)
        return host

    def _circuit_of(self, label: str) -> Circuit | None:
        known = self.circuits.get(label)
        if known is not None or self._breaker is None:
            return known
        changed = weakref.WeakMethod(self._circuit_changed)  # no cycle: a dropped pool is freed at once

        def notify(reason: str | None) -> None:
            method = changed()
            if method is not None:
                method(label, reason)

        return self.circuits.setdefault(label, Circuit(self._breaker, label, notify))

    def _circuit_changed(self, label: str, reason: str | None) -> None:
        if reason is None:
            extra = fields("circuit_closed", self.name, host=label)
            logger.warning("pool %r: %s answers again", self.name, label, extra=extra)
            notify(self._observers, "circuit_closed", self.name, label)
        else:
            extra = fields("circuit_opened", self.name, host=label, error=reason)
            logger.warning("pool %r: no requests to %s for now: %s", self.name, label, reason, extra=extra)
            notify(self._observers, "circuit_opened", self.name, label, reason)

    def metrics_for(self, request: Any) -> HostMetrics:
        """Return the metrics for a request that uses no socket of these."""
        return self._metrics_of(HostKey.of(request, None, None, None).label)

    def _metrics_of(self, label: str) -> HostMetrics:
        known = self.metrics.get(label)
        if known is not None:
            return known
        if len(self.metrics) >= MOST_LABELS:
            label = OTHERS
        return self.metrics.setdefault(label, HostMetrics(label, self._settings.enable_metrics))

    def _forget(self) -> None:
        """Forget the hosts without a socket."""
        for key, host in list(self._hosts.items()):
            if host.empty and not host.kept:
                self._hosts.pop(key, None)
                self.circuits.pop(key.label, None)
                self.forgotten.add(host)

    # -- limits over all hosts ------------------------------------------------------

    def evict_above(self, most: int) -> None:
        """Close the sockets that have been idle longest, over all hosts, until at most ``most`` are idle."""
        self._trim(most, "room")

    def trim(self) -> None:
        """Close the idle sockets above ``max_idle``."""
        if self._max_idle is not None:
            self._trim(self._max_idle, "max_idle")

    def _trim(self, most: int, reason: str) -> None:
        hosts = self.all()
        while sum(host.idle for host in hosts) > most:
            min(hosts, key=lambda host: host.idle_since).evict_oldest(reason)

    # -- steer ------------------------------------------------------------------------

    def observe(self, observers: tuple[Observer, ...]) -> None:
        """Notify these observers of what happens to sockets."""
        self._observers = observers
        for host in self.all():
            host.pool.engine.observe(observers)

    def drain(self) -> None:
        """Begin a new generation of sockets; certificate files are read again."""
        self.contexts.forget()
        for host in self.all():
            host.pool.drain()

    def check(self) -> None:
        """Close the idle sockets that their servers have closed."""
        for host in self.all():
            host.pool.check()

    def close(self, timeout: float) -> None:
        """Close all sockets; wait at most ``timeout`` seconds for those in use."""
        self.closed = True
        deadline = monotonic() + timeout
        for host in self.all():
            host.pool.close(max(0.0, deadline - monotonic()))


@functools.lru_cache(maxsize=256)
def _endpoint(scheme: str, netloc: str) -> tuple[str, str, int | None]:
    """Return the scheme, the host's name and the port of a URL; raise ``ValueError`` if the port is not a number.

    Args:
        scheme: Of the URL.
        netloc: Host and port, without credentials: the cache would keep them.
    """
    parsed, scheme = SplitResult(scheme, netloc, "", "", ""), scheme.lower()
    return scheme, parsed.hostname or "", parsed.port or {"http": 80, "https": 443}.get(scheme)


def _has_tls(proxy: str | None) -> bool:
    return proxy is not None and proxy.lower().startswith("https://")


def _template(key: HostKey, transport: Any, request: Any, contexts: TLSContexts) -> Template:
    """Return a pool of urllib3, made of our classes by requests and urllib3; only its connections are used."""
    tls: dict[str, Any] = {}
    if key.tls:
        tls["ssl_context"] = contexts.get(key.verify, key.cert)
        if not is_context(key.verify):  # else urllib3 uses the settings of the context
            tls["cert_reqs"] = "CERT_NONE" if key.verify is False else "CERT_REQUIRED"
    manager: PoolManager
    if key.proxy is None:
        manager = PoolManager(1)
    else:
        proxy = prepend_scheme_if_needed(key.proxy, "http")  # type: ignore[no-untyped-call]
        if not parse_url(proxy).host:
            raise requests.exceptions.InvalidProxyURL(
                "Please check proxy URL. It is malformed and could be missing the host.", request=request
            )
        manager = _proxy_manager(transport, proxy, contexts, key.verify)
    manager.pool_classes_by_scheme = {
        scheme: per_request(found) for scheme, found in manager.pool_classes_by_scheme.items()
    }
    return manager.connection_from_host(key.host, key.port, key.scheme, pool_kwargs=tls)  # type: ignore[return-value]


def _proxy_manager(transport: Any, proxy: str, contexts: TLSContexts, verify: Any) -> PoolManager:
    options: dict[str, Any] = {}
    if _has_tls(proxy):
        options["proxy_ssl_context"] = contexts.get(verify, None)
    manager = requests.adapters.HTTPAdapter.proxy_manager_for(transport, proxy, **options)
    transport.proxy_manager.pop(proxy, None)  # not cached: TLS settings may differ
    return manager  # type: ignore[no-any-return]
