"""The sockets: for each host a pool of our own core, in the place of urllib3's queue.

So fairness, the limit for each host, the eviction of what is idle or old,
forks, and the proof that a kept connection still stands come from there. A
host is known by its scheme, name and port, by the proxy on the way and by the
TLS settings, so that a connection made without verification never serves a
request that wants it.

Nothing in here refers to the `HTTPPool`: the core holds on to adapters, and
a pool that its user drops must go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import requests.adapters
from requests.utils import prepend_scheme_if_needed, select_proxy
from urllib3.poolmanager import PoolManager
from urllib3.util import parse_url

from ...core.adapter import Adapter
from ...core.entry import Token
from ...core.observer import Observer
from ...core.pool import Pool
from ...errors import PoolClosed
from ...settings import PoolSettings
from .metrics import MOST_LABELS, OF_LINES, OTHERS, HostMetrics
from .template import Template, per_request
from .tls import TLSContexts, is_context
from .wire import Wire

__all__ = ["Gone", "Host", "HostKey", "Hosts"]

_MOST_HOSTS = 1000  # kept at once; beyond, those without a socket are forgotten


class HostKey(NamedTuple):
    """What one set of sockets is for."""

    scheme: str
    host: str
    port: int | None
    proxy: str | None
    verify: Any
    cert: Any

    @property
    def tls(self) -> bool:
        """Whether its sockets are encrypted: to the host, or to the proxy."""
        return self.scheme == "https" or _has_tls(self.proxy)

    @property
    def label(self) -> str:
        """The host as messages and metrics show it."""
        port = "" if self.port in (None, {"http": 80, "https": 443}.get(self.scheme)) else f":{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{port}"


class Wires(Adapter[Wire]):
    """How connections are kept. They connect in their borrower's hands: see `Wire`.

    That leaves errors, their kinds and their time limits what they are in
    requests.
    """

    noun = "connection"
    blocking = False
    bounded = True
    close_inline = True

    def __init__(self, template: Template, metrics: HostMetrics, refresh: Callable[[], dict[str, Any]]) -> None:
        self._template, self._metrics, self._refresh = template, metrics, refresh

    def create(self) -> Wire:
        self._template.conn_kw.update(self._refresh())
        wire: Wire = self._template._new_conn()  # type: ignore[assignment]
        wire.metrics = self._metrics
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
    """One host's sockets, and what is counted about it."""

    def __init__(
        self, pool: Pool[Wire], template: Template, metrics: HostMetrics
    ) -> None:
        self.pool, self.template, self.metrics = pool, template, metrics

    @property
    def idle(self) -> int:
        """How many kept sockets lie idle."""
        return len(self.pool.engine.state.idle)

    @property
    def rests_since(self) -> float:
        """When the socket that lies idle longest was used last; infinity if there is none."""
        try:
            return self.pool.engine.state.idle[0].entry.idle_since
        except IndexError:
            return float("inf")

    def evict_oldest(self, reason: str) -> None:
        """Close the socket that lies idle longest."""
        try:
            key: Token = self.pool.engine.state.idle.popleft()
        except IndexError:
            return
        self.pool.engine.evict(key, reason)

    def turn_away(self, text: str) -> None:
        """Send those away who wait for a connection, because the pool is closed."""
        with self.pool.engine.lock:
            self.pool.engine.state.waiters.fail(PoolClosed, text)

    @property
    def empty(self) -> bool:
        """Whether it has no socket, and nobody waits for one."""
        return not (self.pool.engine.state.entries or self.pool.engine.state.waiters)


class Gone:
    """What the hosts that were forgotten had counted."""

    def __init__(self) -> None:
        self.closed: Counter[str] = Counter()
        self.count: Counter[str] = Counter()

    def add(self, host: Host) -> None:
        """Keep a host's counts."""
        snapshot = host.pool.metrics.snapshot()
        self.closed.update(snapshot.closed)
        self.count.update({name: getattr(snapshot, name) for name in OF_LINES})

    def clear(self) -> None:
        """Forget everything."""
        self.closed.clear()
        self.count.clear()


class Hosts:
    """All hosts of one pool. No lock: a child may find it held.

    Assumes: getting, setting and deleting a dict's item are atomic.
    """

    def __init__(self, name: str, settings: PoolSettings, max_per_host: int) -> None:
        self.name = name
        self.metrics: dict[str, HostMetrics] = {}
        self.gone = Gone()
        self.contexts = TLSContexts()
        self._hosts: dict[HostKey, Host] = {}
        self._observers: tuple[Observer, ...] = ()
        self._paused = self.closed = False
        self.configure(settings, max_per_host)

    def configure(self, settings: PoolSettings, max_per_host: int) -> None:
        """Take over settings, for what there is too."""
        self._max_idle = settings.max_idle
        self._settings = settings.replace(
            min_size=0, max_size=max_per_host, max_idle=None, max_attempts=None, leak_timeout=None,
            health_check_interval=None, keepalive_interval=None,
        )  # fmt: skip
        for metrics in list(self.metrics.values()):
            metrics.on = settings.enable_metrics
        for host in self.all():
            host.pool.reconfigure(**{
                name: getattr(self._settings, name)
                for name in ("max_size", "max_waiting", "acquire_timeout", "max_lifetime", "lifetime_jitter",
                             "idle_timeout", "max_uses", "close_timeout", "track_holders", "enable_metrics")
            })  # fmt: skip

    def all(self) -> list[Host]:
        """Return those known now."""
        return list(self._hosts.values())

    # -- finding ------------------------------------------------------------------

    def find(self, transport: Any, request: Any, verify: Any, proxies: Any, cert: Any) -> Host:
        """Return the host that a request goes to.

        Raises:
            requests.exceptions.InvalidURL, InvalidProxyURL: As in requests.
        """
        key = _key(request, verify, proxies, cert)
        return self._hosts.get(key) or self._add(key, transport, request)

    def _add(self, key: HostKey, transport: Any, request: Any) -> Host:
        if len(self._hosts) >= _MOST_HOSTS:
            self._forget()
        template = _template(key, transport, request, self.contexts)
        metrics = self._metrics_of(key.label)
        secure, contexts = key.tls, self.contexts

        def refresh() -> dict[str, Any]:
            return {"ssl_context": contexts.get(key.verify, key.cert)} if secure else {}

        pool = Pool(
            adapter=Wires(template, metrics, refresh), settings=self._settings,
            name=f"{self.name} {key.label}", observers=self._observers,
        )  # fmt: skip
        pool.engine.owner = None  # a part of the HTTPPool
        host = self._hosts.setdefault(key, Host(pool, template, metrics))
        if self.closed:
            host.pool.close(0)
        return host

    def metrics_for(self, request: Any) -> HostMetrics:
        """Return where a request is counted that needs no socket of ours."""
        return self._metrics_of(_key(request, None, None, None).label)

    def _metrics_of(self, label: str) -> HostMetrics:
        known = self.metrics.get(label)
        if known is not None:
            return known
        if len(self.metrics) >= MOST_LABELS:
            label = OTHERS
        return self.metrics.setdefault(label, HostMetrics(label, self._settings.enable_metrics))

    def _forget(self) -> None:
        """Forget hosts that nobody uses now."""
        for key, host in list(self._hosts.items()):
            if host.empty:
                self._hosts.pop(key, None)
                self.gone.add(host)

    # -- bounds over all hosts ------------------------------------------------------

    def make_room(self, most: int) -> None:
        """Close what lies idle longest until at most so many do, at whatever host."""
        self._trim(most, "room")

    def trim(self) -> None:
        """Keep no more idle than ``max_idle`` allows."""
        if self._max_idle is not None:
            self._trim(self._max_idle, "max_idle")

    def _trim(self, most: int, reason: str) -> None:
        hosts = self.all()
        while sum(host.idle for host in hosts) > most:
            min(hosts, key=lambda host: host.rests_since).evict_oldest(reason)

    # -- steering ---------------------------------------------------------------------

    def observe(self, observers: tuple[Observer, ...]) -> None:
        """Have these told what happens to sockets."""
        self._observers = observers
        for host in self.all():
            host.pool.engine.observe(observers)

    def drain(self) -> None:
        """Begin a new generation of sockets; files of certificates are read anew."""
        self.contexts.forget()
        for host in self.all():
            host.pool.drain()

    def check(self) -> None:
        """Close those idle sockets that their servers have closed."""
        for host in self.all():
            host.pool.check()

    def close(self, timeout: float) -> None:
        """Close all, and wait at most so many seconds for what is in use."""
        self.closed = True
        deadline = monotonic() + timeout
        for host in self.all():
            host.pool.close(max(0.0, deadline - monotonic()))


def _key(request: Any, verify: Any, proxies: Any, cert: Any) -> HostKey:
    parsed = urlsplit(request.url)
    scheme = parsed.scheme.lower()
    try:
        port = parsed.port or {"http": 80, "https": 443}.get(scheme)
    except ValueError as error:
        raise requests.exceptions.InvalidURL(error, request=request) from error
    proxy = select_proxy(request.url, proxies) if proxies else None
    if scheme != "https" and not _has_tls(proxy):
        verify = cert = None  # nothing is encrypted
    elif verify is None or verify is False or verify is True:
        verify = verify is not False
    elif not is_context(verify):
        verify = str(verify)
    return HostKey(scheme, parsed.hostname or "", port, proxy, verify, tuple(cert) if isinstance(cert, list) else cert)


def _has_tls(proxy: str | None) -> bool:
    return proxy is not None and proxy.lower().startswith("https://")


def _template(key: HostKey, transport: Any, request: Any, contexts: TLSContexts) -> Template:
    """Have requests and urllib3 make a connection pool, of our class; it is only asked for connections."""
    tls: dict[str, Any] = {}
    if key.tls:
        tls["ssl_context"] = contexts.get(key.verify, key.cert)
        if not is_context(key.verify):  # else urllib3 takes the context's word
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
    transport.proxy_manager.pop(proxy, None)  # each has TLS settings of its own
    return manager  # type: ignore[no-any-return]


