"""`HTTPPool`: what users call."""

from __future__ import annotations

import ssl
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

import requests
from urllib3.util import Retry

from ...core.clock import seconds
from ...core.lease import Lease
from ...core.observer import Observer, notify
from ...core.pool import Pool
from ...core.runtime import fork
from ...core.runtime.fork import SAME_PROCESS
from ...errors import PoolClosed
from ...settings import PoolOptions, PoolSettings, with_options
from .arguments import checked_base, checked_number, checked_url, checked_verify, retries, shown
from .bodies import read_ahead
from .health import Health
from .hold import Hold
from .hosts import Host, Hosts
from .limits import HTTPTimeout, Limits
from .listeners import OF_REQUESTS, OF_SOCKETS, hears_of_leases, part_of
from .metrics import HostMetrics, HTTPMetrics
from .places import Places, of_places, record_holder
from .sessions import SessionLease, Sessions, View
from .tls import Cert, Verify
from .transport import Transport
from .unpooled import Unpooled
from .verbs import Verbs
from .warming import Warming

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HTTPPool"]

Timeout = HTTPTimeout | float | tuple[float | None, float | None] | None
_DEFAULTS = PoolSettings(min_size=0, max_size=100)
_WAITED = 0.001  # seconds in line for a place after which a kept connection is looked at again


class HTTPPool(Verbs, Warming, Pool[requests.Session]):
    """Lends ``requests.Session`` objects that share warm sockets.

    A session is light and private: cookies, headers, credentials and whatever
    else its borrower sets are gone with it. The sockets under all sessions
    are what is scarce, and so what the settings are about::

        http = HTTPPool(max_size=100, base_url="https://api.example.com", max_per_host=30)
        quote = http.get("/quotes/ACME").json()
        with http.request_context("GET", "/export", stream=True) as response:
            for line in response.iter_lines(): ...
        with http.acquire() as session:           # several requests, one cookie jar
            session.post("https://api.example.com/login", ...)

    A request takes its place in line before it holds anything else, first at
    its host and then among all, and keeps it until its body is read or
    closed. Both lines are served in the order of arrival.

    Args:
        settings: ``max_size``: requests under way at once, and sockets open at
            once; ``max_idle``: sockets kept, over all hosts; ``idle_timeout``:
            for how long; ``max_lifetime``: of a socket, so that changes of DNS
            are followed; ``acquire_timeout``, ``max_waiting``: the line for a
            connection; ``leak_timeout``: how long an answer may stay open.
            ``min_size`` means nothing here: at which host? See `warm_up`.
            ``None`` means 100 sockets and otherwise the usual defaults.
        base_url: Put before URLs that begin with ``/`` in this pool's own
            methods, not in those of an acquired session. Such a URL may come
            from a stranger: it reaches no other host, and nothing outside the
            path of the ``base_url``. Any other text is a whole URL, and goes
            where that says, with this pool's ``headers`` and ``auth``.
        timeout: For every request that gives none: an `HTTPTimeout`, or as in
            requests a number or seconds to connect and to read.
        max_per_host: Requests under way at once to one host. Sockets with
            other TLS settings (``verify``, ``cert``) or through another proxy
            are a host of their own here, with as many again.
        retry: A ``urllib3.Retry``, or how often: idempotent methods, on a
            failed connection and on 429, 502, 503 and 504, with an exponential
            pause, jitter and respect for ``Retry-After``. A request is never
            tried again when its ``total`` time would be over by then, nor
            when ``Retry-After`` is above the longest pause (10 s; of a
            ``urllib3.Retry`` its ``backoff_max``): that answer is returned. Apart
            from this, what fails on a kept connection is sent again where
            nothing can happen twice.
        verify: Whom to trust: ``True`` means certifi's list or the one that
            ``REQUESTS_CA_BUNDLE`` names; else a file or folder of certificates,
            which beats the environment; ``False`` means anybody. Files are read
            once, and again after `drain`. It may be an ``ssl.SSLContext``, here
            and where a request or a session says it.
        ssl_context: The same as a context in ``verify``: it says whom to trust
            and which certificate to send (so there is no ``cert`` beside it), and
            is used as it is. It is part of a socket's identity: make one, not
            one for each request, and do not change it afterwards.
        cert: The client's certificate: a file, or a pair of files with the key.
        proxies: By scheme, as in requests; they beat the environment's.
        headers: Sent with every request, beside requests' own.
        auth: As in requests, for every request that brings none.
        compression: ``False`` asks servers to send bodies as they are.
        cookies: ``"isolated"``: those of an acquired session end with it, and
            `get` and the like keep none; ``"shared"``: one jar for all.
        trust_env: Whether the environment may say something where the program
            does not: proxies, ``REQUESTS_CA_BUNDLE`` and, for requests without
            ``auth``, the user's ``.netrc``; looked at for each request, as in
            requests.
        session_factory: The class of sessions, or what makes one; it becomes of a
            subclass of its class. What it mounts stays (``file://``, one
            host), except at ``http://`` and ``https://``, where this pool is.
        health_url: Asked when the pool is opened or used first, and then every
            ``health_check_interval``. Any status from 400 on is unhealthy,
            also a 404; after ``max_validation_failures`` in a row without an
            answer below 500 all sockets are replaced. A probe that finds no
            connection free within ``health_check_timeout`` says nothing.
            See `health_check`.
        pooled: ``False`` switches pooling off: a new session and a new socket
            for each request, and no limits; to compare with. Statuses, failures
            and latencies are counted in ``metrics.hosts()``.
        observers: Told what happens to requests (as leases) and sockets.
        name: How the pool is called in messages.
        options: Fields of `PoolSettings`; they beat ``settings``.

    Raises:
        TypeError, ValueError: An argument is not of its kind, or breaks a rule.
    """

    def __init__(
        self,
        settings: PoolSettings | None = None,
        *,
        base_url: str | None = None,
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
        self._asked = with_options(settings or _DEFAULTS, options, HTTPPool.__init__)
        self._base_url = checked_base(base_url)
        self._max_per_host = checked_number("max_per_host", max_per_host)
        if cookies not in ("isolated", "shared"):
            raise ValueError(f'cookies must be "isolated" or "shared", not {shown(cookies)}')
        if not callable(session_factory):
            raise TypeError(f"session_factory must be callable, not {shown(session_factory)}")
        headers = dict(headers or {})
        if not compression:
            headers.setdefault("Accept-Encoding", "identity")
        defaults = {
            "verify": checked_verify(verify, ssl_context, cert),
            "cert": cert, "proxies": dict(proxies or {}), "auth": auth, "trust_env": trust_env,
        }  # fmt: skip
        self._sessions = Sessions(session_factory, defaults, headers, cookies)
        self._listeners: tuple[Observer, ...] = ()
        self._lease_observers: tuple[Observer, ...] = ()  # those who want to hear of each request
        places = Places()
        super().__init__(adapter=places, settings=of_places(self._asked), name=name)
        self.engine.use_metrics(HTTPMetrics(self.name, self.engine.clock))
        self._renew()
        places.renew, places.describe = weakref.WeakMethod(self._renew), weakref.WeakMethod(self._counts)
        self.adapter: Transport = Transport(self, HTTPTimeout.of(timeout, HTTPTimeout()), retries(retry))
        self._unpooled = Unpooled(self.adapter)
        self._mounted: Transport | Unpooled = self.adapter if pooled else self._unpooled
        url = self._whole(health_url) if isinstance(health_url, str) else health_url
        url = checked_url("health_url", url)
        self._probes = Health(self, url, self._asked) if url else None
        for observer in observers:
            self.add_observer(observer)

    def _renew(self) -> None:
        """Begin with no host and no counts; a child must not use what a lock of the parent may guard."""
        # By thread: the request that it makes now by a session of ours, and its last answer by another one.
        self._calls: dict[int, Limits] = {}
        self._answers: dict[int, weakref.ref[requests.Response]] = {}
        self._hosts = Hosts(self.name, self._asked, min(self._max_per_host, self._asked.max_size))
        self.metrics.of = self._hosts
        self._hosts.observe(self._of_sockets())
        self._sessions.renew()

    @property
    def metrics(self) -> HTTPMetrics:
        """Counters and durations, see `HTTPMetrics`."""
        metrics = self.engine.metrics
        assert isinstance(metrics, HTTPMetrics)
        return metrics

    # -- sessions -------------------------------------------------------------------

    def acquire(self, timeout: float | None = None, _depth: int = 1) -> Lease[requests.Session]:
        """Lend a session: a new one, with the pool's defaults, on its warm sockets.

        It is had at once: connections are taken by its requests. When the
        lease ends the bodies that were not read are closed.

        Args:
            timeout: For the sake of other pools; a session never has to be waited for.

        Raises:
            PoolClosed: The pool was closed.
            ValueError, TypeError: ``timeout`` is not a number of seconds >= 0.
        """
        if timeout is not None:
            seconds(timeout)
        self.engine.ensure_usable()
        self._check_open()
        view = View(self, self._mounted)
        return SessionLease(self, self._sessions.make(self.adapter, view), view)

    def session(self) -> requests.Session:
        """Return a session of your own on the pool's sockets, to keep as long as you like.

        It is as safe across threads as sessions of requests are: headers and
        the like are best set before.
        """
        if not SAME_PROCESS[0]:
            fork.ensure_process()  # a shared jar of the parent may be locked
        return self._sessions.make(self.adapter, self._mounted)

    def _check_open(self) -> None:
        if self.engine.state.closed:
            raise PoolClosed(f"pool {self.name!r} is closed")

    def open(self, timeout: float | None = None) -> None:
        """Begin to ask the ``health_url``, if there is one; sockets are opened by `warm_up`.

        Args:
            timeout: For the sake of other pools; there is nothing to wait for.

        Raises:
            PoolClosed: The pool was closed.
        """
        super().open(timeout)
        if self._probes is not None:
            self._probes.ensure()

    # -- connections ------------------------------------------------------------------

    def _host(self, request: Any, verify: Any, proxies: Any, cert: Any) -> Host:
        self._arrive()
        return self._hosts.find(self.adapter, request, verify, proxies, cert)

    def _arrive(self) -> None:
        if not SAME_PROCESS[0]:
            fork.ensure_process()
        if self._probes is not None:
            self._probes.ensure()

    def _metrics_for(self, request: Any) -> HostMetrics:
        """Where a request is counted that is not pooled."""
        self._arrive()
        self._check_open()
        return self._hosts.metrics_for(request)

    def _read_outer(self) -> None:
        """In a hook: read the answer that the hook is for, so that this thread does not wait for its own place."""
        thread = threading.get_ident()  # late: gevent replaces it
        last, limits = self._answers.pop(thread, None), self._calls.get(thread)
        if last is not None:
            read_ahead(last(), stream=False)
        while limits is not None:
            for answer, streamed in limits.answers:
                read_ahead(answer(), streamed)
            limits = limits.outer

    def _remember(self, response: requests.Response) -> None:
        """Note an answer that requests is to read next, unless a hook sends a request before."""
        thread, answers = threading.get_ident(), self._answers

        def forget(ref: weakref.ref[requests.Response]) -> None:
            if answers.get(thread) is ref:
                answers.pop(thread, None)

        answers[thread] = weakref.ref(response, forget)

    def _take(self, host: Host, limits: Limits) -> Hold:
        """Wait in line for a connection of that host, then for a place among all requests."""
        wait = self._asked.acquire_timeout if limits.pool is None else limits.pool
        wait = limits.left(wait) or 0.0
        self._check_open()
        arrived = monotonic()
        line = host.pool.acquire(wait)
        try:
            place: Any = Pool.acquire(self, max(0.0, arrived + wait - monotonic()))
            if self.engine.fast.track_holders:
                record_holder(line, place)
            place.resource.line = line
        except BaseException:
            line.release()
            raise
        hold = Hold(host, place, self._hosts.trim)
        wire, waited = hold.wire, monotonic() - arrived
        if self.engine.settings.enable_metrics:
            self.metrics.waited(waited)
        if self._lease_observers:
            notify(self._lease_observers, "acquired", self.name, waited)
        if wire.sock is not None and waited > _WAITED and not wire.is_alive():
            hold.hang_up()
        if wire.sock is None:
            self._hosts.make_room(self.engine.state.max_size - self.engine.state.in_use)
        return hold

    # -- steering ---------------------------------------------------------------------

    @property
    def settings(self) -> PoolSettings:
        """The settings in force."""
        return self._asked

    def reconfigure(self, *, max_per_host: int | None = None, **changes: Any) -> None:
        """Change settings of a running pool.

        Args:
            max_per_host: As for the pool itself.
            changes: As for `PoolSettings`. Lifetimes hold for sockets opened
                from now on, all else at once.

        Raises:
            ValueError, TypeError: As for `PoolSettings`; nothing was changed.
        """
        settings = self._asked.replace(**changes)
        if max_per_host is not None:
            self._max_per_host = checked_number("max_per_host", max_per_host)
        self._asked = settings
        places = of_places(settings)
        names = ("max_size", "max_waiting", "acquire_timeout", "leak_timeout", "close_timeout", "track_holders")
        super().reconfigure(**{name: getattr(places, name) for name in names}, enable_metrics=settings.enable_metrics)
        if self._probes is not None:
            self._probes.configure(settings)
        self._hosts.configure(settings, min(self._max_per_host, settings.max_size))
        self._hosts.trim()

    def drain(self) -> None:
        """Begin a new generation of sockets.

        Idle ones are closed now, those in use when their body is read; files
        of certificates are read anew.
        """
        self._hosts.drain()
        self.engine.events.drained()

    def check(self) -> None:
        """Look at the idle sockets now; those that their servers have closed are closed."""
        self._hosts.check()

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Close the pool for good.

        Requests in line fail at once; those under way may end within
        ``timeout``, and are cut off then. Closing twice is fine.

        Args:
            timeout: Seconds to wait for requests under way; ``None`` means
                ``close_timeout``.
            interrupt: Whether to interrupt those that are still under way then.
        """
        self.engine.state.closed = True
        for host in self._hosts.all():
            host.turn_away(f"pool {self.name!r} was closed during the wait")
        if self._probes is not None:
            self._probes.pool.close(0.0)
        super().close(timeout, interrupt=interrupt)
        self._hosts.close(0.0)

    # -- looking ----------------------------------------------------------------------

    def add_observer(self, observer: Observer) -> None:
        """Tell an observer from now on what happens to requests (leases, to it) and to sockets."""
        if not isinstance(observer, Observer):
            raise TypeError(f"observers must be of pooling.Observer, not {shown(observer)}")
        self._listen((*self._listeners, observer))

    def remove_observer(self, observer: Observer) -> None:
        """Tell an observer nothing any more."""
        self._listen(tuple(one for one in self._listeners if one is not observer))

    def _listen(self, observers: tuple[Observer, ...]) -> None:
        self._listeners = observers
        self._lease_observers = tuple(one for one in observers if hears_of_leases(one))
        self.engine.observe(tuple(part_of(one, OF_REQUESTS) for one in observers))
        self._hosts.observe(self._of_sockets())

    def _of_sockets(self) -> tuple[Observer, ...]:
        return tuple(part_of(one, OF_SOCKETS, self.name) for one in self._listeners)

    def stats(self) -> dict[str, Any]:
        """Return how many are where, and the settings that bound them; ``hosts`` says it for each."""
        hosts = self._hosts.all()
        sockets = [host.pool.stats() for host in hosts]
        places = super().stats()
        idle, closing = sum(one["idle"] for one in sockets), sum(one["closing"] for one in sockets)
        places.update(
            size=idle + closing + places["in_use"], idle=idle, closing=closing, creating=0,
            waiting=places["waiting"] + sum(one["waiting"] for one in sockets),
            min_size=0, max_per_host=self._max_per_host,
        )  # fmt: skip
        found: dict[str, Counter[str]] = {}
        for one in sockets:  # those of a host with other TLS settings or another proxy are counted with it
            counts = found.setdefault(one["name"].removeprefix(self.name + " "), Counter())
            counts.update({name: one[name] for name in ("idle", "in_use", "waiting")})
        places["hosts"] = {label: dict(counts) for label, counts in found.items()}
        return places

    def health_check(self, ask: bool = False) -> dict[str, Any]:
        """Return how the pool is, and how the service is by its ``health_url``.

        Args:
            ask: Ask now, instead of reporting the last answer.

        Returns:
            ``status`` is ``"healthy"``, ``"unhealthy"`` (the last probe
            failed), ``"unknown"`` (none was made yet, or there is no
            ``health_url``) or ``"closed"``; ``failures`` counts probes that
            failed in a row, ``generations`` how often all sockets were
            replaced for that; ``last_check`` is a time of the wall clock.
        """
        probes = self._probes
        if probes is not None and ask and not self.closed:
            probes.ask()
        stats = self.stats()
        found: dict[str, Any] = {
            "status": "closed" if self.closed else "unknown" if probes is None else probes.status,
            **{name: stats[name] for name in ("name", "size", "idle", "in_use", "waiting", "max_size")},
        }
        return found if probes is None else found | probes.as_dict()

    def probe(self, timeout: float | None = None) -> str | None:
        """Ask the ``health_url`` now, if there is one.

        Args:
            timeout: For the sake of other pools; ``health_check_timeout`` applies.

        Raises:
            ConnectionError: The service is unhealthy, or the pool was closed.
        """
        found = self.health_check(ask=True)
        if found["status"] in ("unhealthy", "closed"):
            raise ConnectionError(str(found.get("last_error") or found["status"]))
        return None

    def _health_checked(self, error: BaseException | None) -> None:
        with self.engine.lock:
            self.metrics.last_health_check = self.engine.clock.wall()
            self.metrics.count["health_failures"] += error is not None
        notify(self._listeners, "health_checked", self.name, error)

    def _counts(self) -> str:
        state, hosts = self.engine.state, self._hosts.all()
        waiting = len(state.waiters) + sum(len(host.pool.engine.state.waiters) for host in hosts)
        text = f"{state.in_use}/{state.max_size} in use, {sum(host.idle for host in hosts)} idle, {waiting} waiting"
        return text + (", paused" if state.paused else "")


HTTPPool.__module__ = "pooling"  # where users import it from
