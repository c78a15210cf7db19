"""`HTTPPool`: what users call."""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import requests
from urllib3.util import Retry

from ...core.clock import seconds
from ...core.lease import Lease
from ...core.managed import ManagedPool
from ...core.observer import EVERYWHERE, Observer
from ...core.report.holders import Holder
from ...core.runtime import fork
from ...core.runtime.fork import SAME_PROCESS
from ...settings import PoolOptions, PoolSettings, check_flag, with_options
from .arguments import checked_base, checked_number, checked_url, checked_verify, retries, shown
from .balancing.bases import checked_bases, is_path
from .balancing.group import Group
from .balancing.policy import Balancing, checked_balancing
from .balancing.sessions import GroupSession
from .balancing.transport import DEFAULT_RETRIES, GroupTransport
from .connections import Connections
from .limits import HTTPTimeout
from .metrics import HTTPMetrics
from .probing import start_health
from .sessions import Pooled, SessionLease, Sessions, View
from .tls import Cert, Verify
from .transport import Transport
from .verbs import Verbs
from .warming import Warming

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HTTPPool"]

Timeout = HTTPTimeout | float | tuple[float | None, float | None] | None
_DEFAULTS = PoolSettings(min_size=0, max_size=100)


class HTTPPool(Verbs, Warming, ManagedPool[requests.Session]):
    """Lends ``requests.Session`` objects that share a pool of sockets.

    A session is cheap, and private to its borrower: cookies, headers and
    credentials that are set on it end with it. The sockets under all sessions
    are the scarce resource, and the settings limit them::

        http = HTTPPool(max_size=100, base_url="https://api.example.com", max_per_host=30)
        quote = http.get("/quotes/ACME").json()
        with http.request_context("GET", "/export", stream=True) as response:
            for line in response.iter_lines(): ...
        with http.acquire() as session:           # several requests, one cookie jar
            session.post("https://api.example.com/login", ...)

    A request waits for a connection to its host first, and then for one of
    the ``max_size`` slots. It holds both until its body is read or closed.
    Waiters are served in order of arrival.

    Args:
        settings: ``max_size``: maximum number of requests in progress, and of
            open sockets; ``max_idle``: of idle sockets, over all hosts;
            ``idle_timeout``: how long they are kept; ``max_lifetime``: of a
            socket, so that DNS changes are followed; ``acquire_timeout``,
            ``max_waiting``: of the wait for a connection; ``leak_timeout``: how
            long a response may stay open. ``min_size`` has no effect except on
            `fill`; see also `warm_up`. ``None`` means 100 sockets and otherwise
            the usual defaults.
        base_url: Prefixed to paths that begin with ``/`` in the pool's own
            methods, but not in those of an acquired session. Such a path may be
            untrusted: it reaches no other host, and nothing outside the path of
            the ``base_url``. Any other string is a URL of its own, and is sent
            this pool's ``headers`` and ``auth`` too.
        timeout: For every request that gives none: an `HTTPTimeout`, or as in
            requests a number or a pair of seconds to connect and to read.
        max_per_host: Maximum number of requests in progress to one host.
            Requests with other TLS settings (``verify``, ``cert``) or another
            proxy count as requests to another host.
        base_urls: Several servers of one service instead of one ``base_url``: each
            request of a path goes to the one that is likely to answer it first,
            also in an acquired session, and a retry goes to another one. Then
            ``retry`` is 2 unless it is given. See `Balancing`.
        zone: Where this process is: servers of the same zone are preferred while they are healthy.
        zones: Where the servers are: a mapping of ``base_urls`` to zones, or a zone for each.
        balancing: How requests are distributed; ``None`` for the defaults.
        retry: A ``urllib3.Retry``, or the number of retries: of idempotent
            methods, after a failed connection and a status of 429, 502, 503 or
            504, with exponential backoff, jitter and respect for
            ``Retry-After``. There is no retry if the ``total`` timeout would be
            over by then, or if ``Retry-After`` is longer than the maximum
            backoff (10 s; of a ``urllib3.Retry``, its ``backoff_max``): then
            that answer is returned. Independently of this, a request that fails
            on a kept connection is sent again if it cannot take effect twice.
        verify: ``True`` verifies servers with certifi's list, or the one that
            ``REQUESTS_CA_BUNDLE`` names; a file or directory of certificates
            overrides the environment; ``False`` verifies nothing. Files are
            read once, and again after `drain`. May be an ``ssl.SSLContext``,
            here and as the ``verify`` of a request or a session.
        ssl_context: An ``ssl.SSLContext`` instead of ``verify`` and ``cert``.
            It is used as it is. Sockets are shared only by requests with the
            same context: create one, not one for each request, and do not
            change it afterwards.
        cert: The client certificate: a file, or a pair of files with the key.
        proxies: By scheme, as in requests; they override the environment.
        headers: Sent with every request, beside those of requests.
        auth: As in requests, for every request that gives none.
        compression: ``False`` asks servers not to compress bodies.
        cookies: ``"isolated"``: those of an acquired session end with it, and
            `get` and the like keep none; ``"shared"``: one jar for all.
        trust_env: Whether the environment is used where the program sets
            nothing: proxies, ``REQUESTS_CA_BUNDLE`` and, for requests without
            ``auth``, the user's ``.netrc``; read for each request, as in
            requests.
        session_factory: The class of sessions, or a function that makes one,
            whose class is then replaced by a subclass. Adapters that it mounts
            are kept, except at ``http://`` and ``https://``.
        health_url: Requested at the first use or `open`, and then every
            ``health_check_interval``. Any status from 400 on, also a 404, means
            unhealthy. After ``max_validation_failures`` in a row without an
            answer below 500, all sockets are replaced. A probe that finds no
            free connection has no result. See `health_check`.
        pooled: ``False`` switches pooling off, for comparisons: each request
            opens its own socket, and nothing is limited. Statuses, failures and
            latencies are counted in ``metrics.hosts()``.
        observers: Notified of requests (as leases) and of sockets.
        name: The pool's name in messages and metrics.
        options: Fields of `PoolSettings`; they override ``settings``. With a
            ``breaker``, no requests are sent to a host for a while that keeps
            failing: they raise `CircuitOpen` at once, or its ``fallback``
            answers, which returns a ``requests.Response``. Failures are those
            to connect, timeouts, lost connections and statuses of 502, 504 and
            503 without ``Retry-After``.

    Raises:
        TypeError, ValueError: An argument has the wrong type or value.
    """

    group: Group | None = None
    """Internal, for the package's own use: the servers, if there are ``base_urls``."""

    def __init__(
        self,
        settings: PoolSettings | None = None,
        *,
        base_url: str | None = None,
        base_urls: Iterable[str] | None = None,
        zone: str | None = None,
        zones: Mapping[str, str | None] | Iterable[str | None] | None = None,
        balancing: Balancing | None = None,
        timeout: Timeout = None,
        max_per_host: int = 30,
        retry: Retry | int | None = None,
        verify: Verify = True,
        ssl_context: ssl.SSLContext | None = None,
        cert: Cert = None,
        proxies: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: Any = None,
        compression: bool = True,
        cookies: str = "isolated",
        trust_env: bool = True,
        session_factory: Callable[[], requests.Session] = requests.Session,
        health_url: str | None = None,
        pooled: bool = True,
        observers: Iterable[Observer] = (),
        name: str | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        if settings is not None and not isinstance(settings, PoolSettings):
            raise TypeError(f"settings must be a PoolSettings, not {shown(settings)}; a URL goes into base_url=")
        settings = with_options(settings or _DEFAULTS, options, HTTPPool.__init__)
        self._base_url = checked_base(base_url)
        bases = checked_bases(base_urls, zone, zones)
        checked_balancing(bases, balancing, base_url, pooled)
        checked_number("max_per_host", max_per_host)
        if cookies not in ("isolated", "shared"):
            raise ValueError(f'cookies must be "isolated" or "shared", not {shown(cookies)}')
        if not callable(session_factory):
            raise TypeError(f"session_factory must be callable, not {shown(session_factory)}")
        headers = dict(headers or {})
        if not check_flag("compression", compression):
            headers.setdefault("Accept-Encoding", "identity")
        defaults = {
            "verify": checked_verify(verify, ssl_context, cert),
            "cert": cert, "proxies": dict(proxies or {}), "auth": auth,
            "trust_env": check_flag("trust_env", trust_env),
        }  # fmt: skip
        self._sessions = Sessions(session_factory, defaults, headers, cookies, GroupSession if bases else Pooled)
        self.connections = Connections(settings, max_per_host, name, self._sessions.renew)
        self.connections.slots.engine.owner = weakref.ref(self)
        """Internal, for the package's own use: the hosts with their sockets, and the request slots."""
        timeouts = HTTPTimeout.of(timeout, HTTPTimeout())
        transport = GroupTransport if bases else Transport
        if bases and retry is None:
            retry = DEFAULT_RETRIES
        pooled = check_flag("pooled", pooled)
        self.adapter: Transport = transport(self.connections, timeouts, retries(retry), pooled)
        """The transport adapter, to be mounted on other sessions."""
        self._mounted = self.adapter.mounted
        if isinstance(self.adapter, GroupTransport):
            self.group = self.adapter.use(Group(self.connections, bases, zone, balancing or Balancing()))
        url = self._whole(health_url) if isinstance(health_url, str) else health_url
        url = url if bases and is_path(url) else checked_url("health_url", url)
        self._health = start_health(self.connections, url, self._sessions, self.adapter) if url else None
        for observer in (*observers, *EVERYWHERE):
            self.add_observer(observer)

    @property
    def name(self) -> str:
        """The pool's name in messages and metrics."""
        return self.connections.name

    @property
    def settings(self) -> PoolSettings:
        """The settings in force."""
        return self.connections.settings

    @property
    def metrics(self) -> HTTPMetrics:
        """Counters and durations, see `HTTPMetrics`."""
        return self.connections.metrics

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.connections.closed

    # -- sessions -------------------------------------------------------------------

    def acquire(
        self, timeout: float | None = None, _depth: int = 1, lane: str | None = None
    ) -> Lease[requests.Session]:
        """Lend a new session, with the pool's defaults, on the pool's sockets.

        It is available at once: each of its requests takes its own
        connection. The end of the lease closes the bodies that were not read.

        Args:
            timeout: Seconds, as for every pool; without effect, because there is nothing to wait for.
            lane: The same.

        Raises:
            PoolClosed: The pool was closed.
            ValueError, TypeError: ``timeout`` is not a number of seconds >= 0.
        """
        if timeout is not None:
            seconds(timeout)
        connections = self.connections
        connections.slots.engine.ensure_usable()
        connections.check_open()
        view = View(connections, self._mounted)
        return SessionLease(connections, self._sessions.make(self.adapter, view), view)

    def session(self) -> requests.Session:
        """Return a new session on the pool's sockets, to keep as long as you like.

        Threads can share it as far as they can share sessions of requests:
        set headers and the like before.
        """
        if not SAME_PROCESS[0]:
            fork.ensure_process()  # the lock of a shared cookie jar may be locked by the parent
        return self._sessions.make(self.adapter, self._mounted)

    # -- open and close -------------------------------------------------------------

    def open(self, timeout: float | None = None) -> None:
        """Start to probe the ``health_url``, if there is one. `warm_up` opens sockets.

        Args:
            timeout: Seconds, as for every pool; without effect, because there is nothing to wait for.
            lane: The same.

        Raises:
            PoolClosed: The pool was closed.
        """
        self.connections.slots.open(timeout)
        if self._health is not None:
            self._health.ensure_started()

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Close the pool for good.

        Waiting requests fail at once with `PoolClosed`. Those in progress may
        end within ``timeout``, and are interrupted then. Idempotent.

        Args:
            timeout: Seconds to wait for requests in progress; ``None`` means
                ``close_timeout``.
            interrupt: Whether to interrupt those still in progress.
        """
        if self._health is not None:
            self._health.close()
        self.connections.close(timeout, interrupt)

    # -- steer ----------------------------------------------------------------------

    def reconfigure(self, *, max_per_host: int | None = None, **changes: Any) -> None:
        """Change settings of a running pool.

        Lifetimes apply to sockets opened from now on, all else at once.

        Args:
            max_per_host: As for the pool itself.
            changes: Fields of `PoolSettings`.

        Raises:
            ValueError, TypeError: As for `PoolSettings`; nothing was changed.
        """
        self.connections.reconfigure(max_per_host, changes)
        if self.group is not None:
            self.group.configure()
        if self._health is not None:
            self._health.configure(self.settings)

    def drain(self) -> None:
        """Begin a new generation: replace every socket.

        Idle ones are closed now, those in use when their body is read.
        Certificate files are read again.
        """
        self.connections.drain()

    def pause(self) -> None:
        """Start no request until `resume`: new ones wait, and may time out.

        Requests in progress are not affected.
        """
        self.connections.slots.pause()

    def resume(self) -> None:
        """Start requests again after `pause`, in order of arrival."""
        self.connections.slots.resume()

    def check(self) -> None:
        """Check the idle sockets now; those that their servers have closed are closed."""
        self.connections.hosts.check()

    # -- health ---------------------------------------------------------------------

    def probe(self, timeout: float | None = None) -> str | None:
        """Request the ``health_url`` now, if there is one; never wait for a connection.

        If all connections are in use, it is requested over one of its own, at
        most once a second, and waited for only briefly.

        Args:
            timeout: Seconds, as for every pool; without effect: ``health_check_timeout`` applies.

        Returns:
            ``None``, or a warning: ``"exhausted: 100 of 100 in use, ..."`` if all are in use.

        Raises:
            ConnectionError: The service is unhealthy, or the pool was closed.
            PoolUnavailable: All connections are in use, and the service does not answer.
        """
        if self.connections.slots.exhaustion() is not None:
            return self.connections.slots.probe(timeout)
        found = self.health_check(ask=True)
        if found["status"] in ("unhealthy", "closed"):
            raise ConnectionError(str(found.get("last_error") or found["status"]))
        return self.exhaustion()

    def exhaustion(self) -> str | None:
        """Return how many are in use and wait, as text, if all are, or all of a host that others wait for."""
        return self.connections.exhaustion()

    def health_check(self, ask: bool = False) -> dict[str, Any]:
        """Return the counts of the pool, and the result of the last probe of its ``health_url``.

        Args:
            ask: Probe now, and return that result.

        Returns:
            ``status`` is ``"healthy"``, ``"unhealthy"`` (the last probe
            failed), ``"unknown"`` (there was no probe yet, or there is no
            ``health_url``) or ``"closed"``; ``failures`` counts probes that
            failed in a row, ``generations`` how often all sockets were
            replaced because of that; ``last_check`` is a time of the wall clock.
        """
        health = self._health
        if health is not None and ask and not self.closed:
            health.probe()
        stats = self.stats()
        found: dict[str, Any] = {
            "status": "closed" if self.closed else "unknown" if health is None else health.status,
            **{name: stats[name] for name in ("name", "size", "idle", "in_use", "waiting", "max_size")},
        }
        return found if health is None else found | health.as_dict(self.metrics.last_health_check)

    def check_health_now(self) -> None:
        """Make the next probe of the ``health_url`` due at once, if there is one."""
        if self._health is not None:
            self._health.make_due()

    # -- observe --------------------------------------------------------------------

    def add_observer(self, observer: Observer) -> None:
        """Notify an observer from now on of requests (as leases) and of sockets. Idempotent."""
        if not isinstance(observer, Observer):
            raise TypeError(f"observers must be of pooling.Observer, not {shown(observer)}")
        observers = self.connections.observers
        if not any(one is observer for one in observers):
            self.connections.observe((*observers, observer))

    def remove_observer(self, observer: Observer) -> None:
        """Notify an observer no longer."""
        self.connections.observe(tuple(one for one in self.connections.observers if one is not observer))

    def stats(self) -> dict[str, Any]:
        """Return the current counts and the settings that bound them.

        ``hosts`` has the counts of each host, and ``backends`` the state of each of the ``base_urls``.
        """
        found = self.connections.stats()
        return found if self.group is None else found | {"backends": self.group.stats()}

    def holders(self) -> list[Holder]:
        """Return the callers whose requests are in progress, and for how long; longest first."""
        return self.connections.slots.holders()

    def __repr__(self) -> str:
        counts, closed = self.connections.counts(), ", closed" if self.closed else ""
        return f"<{type(self).__name__} {self.name!r}: {counts}{closed}>"


HTTPPool.__module__ = "pooling"  # where users import it from
