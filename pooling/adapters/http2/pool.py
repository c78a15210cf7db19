"""`HTTP2Pool`: what users call."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx
import requests

from ...core.clock import Clock
from ...core.lease import Lease
from ...core.observer import Observer
from ...core.pool import Pool
from ...settings import PoolOptions, PoolSettings, check_flag, with_options
from ..http.arguments import checked_base, checked_url, checked_verify, joined
from ..http.limits import HTTPTimeout
from ..http.tls import Cert, TLSContexts, Verify
from .adapter import HTTP2Adapter
from .client import ClientLease, View

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HTTP2Pool"]

Timeout = HTTPTimeout | float | tuple[float | None, float | None] | None


class HTTP2Pool(Pool[httpx.Client]):
    """Lends clients of httpx, each with an HTTP/2 connection of its own (extra ``[http2]``).

    ::

        http = HTTP2Pool(max_size=10, base_url="https://api.example.com")
        quote = http.get("/quotes/ACME").json()
        with http.acquire() as client:            # several requests, one cookie jar
            client.post("https://api.example.com/login", ...)
            with client.stream("GET", "https://api.example.com/export") as response: ...

    A lent client has one connection, so ``max_size`` is the maximum number of
    sockets. Its requests go to one host after the other; a request to another
    host closes the connection and opens one there. A server without HTTP/2 is
    asked by HTTP/1.1. The environment's proxies and ``.netrc`` are not used.

    No stream is shared between threads. A client that two threads use at once
    raises `LeaseError`. For most programs `HTTPPool` is faster.

    Args:
        settings: ``None`` means up to 10 connections, opened when needed.
        base_url: As for `HTTPPool`: prefixed to paths that begin with ``/`` in
            the pool's own methods.
        timeout: For requests that give none: an `HTTPTimeout`, a number of
            seconds, or a pair for connecting and reading.
        verify, ssl_context, cert: As for `HTTPPool`. A context is changed: it
            offers HTTP/2 to servers afterwards.
        proxy: The URL of a proxy for all requests.
        headers: Sent with every request, beside those of httpx.
        auth: As in httpx, for every request that gives none.
        follow_redirects: As in httpx.
        prior_knowledge: ``True`` speaks HTTP/2 without asking, also to
            ``http://`` URLs (RFC 9113, section 3.3).
        health_url: Requested to validate connections and for health checks.
        name: The pool's name in messages and metrics.
        observers: Notified of events, see `Observer`.
        clock: The source of time; tests pass their own.
        options: Fields of `PoolSettings`; they override ``settings``.

    Raises:
        ImportError: httpx or h2 is not installed.
        TypeError, ValueError: An argument has the wrong type or value.
    """

    def __init__(
        self,
        settings: PoolSettings | None = None,
        *,
        base_url: str | None = None,
        timeout: Timeout = None,
        verify: Verify = True,
        ssl_context: ssl.SSLContext | None = None,
        cert: Cert = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
        auth: Any = None,
        follow_redirects: bool = False,
        prior_knowledge: bool = False,
        health_url: str | None = None,
        name: str | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        import h2  # noqa: F401  # httpx would ask for it at the first request

        settings = with_options(settings or PoolSettings(min_size=0), options, HTTP2Pool.__init__)
        self._base_url = checked_base(base_url)
        self._timeout = HTTPTimeout.of(timeout, HTTPTimeout())
        verify = checked_verify(verify, ssl_context, cert)
        contexts = TLSContexts()
        check_flag("prior_knowledge", prior_knowledge)

        def arguments() -> dict[str, Any]:
            context = contexts.get(verify, cert) if verify else False
            return {"verify": context, "cert": None if verify else cert, "proxy": proxy, "http1": not prior_knowledge}

        health_url = self._whole(health_url) if health_url else health_url
        adapter: Any = HTTP2Adapter(arguments, checked_url("health_url", health_url) or None)
        self._template = {
            "headers": dict(headers or {}), "auth": auth, "trust_env": False,
            "follow_redirects": check_flag("follow_redirects", follow_redirects),
        }  # fmt: skip
        self._client(View(None))  # it checks the arguments
        super().__init__(adapter=adapter, settings=settings, name=name, observers=observers, clock=clock)

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[httpx.Client]:
        """Lend a client on a connection of its own. Its first request may have to connect.

        An unread body closes the connection at the end of the lease.

        Args, Returns, Raises:
            As for `Pool.acquire`.
        """
        lease: Lease[Any] = super().acquire(timeout, _depth + 1, lane)
        view = View(lease.__enter__(), self._timeout.total)
        return ClientLease(lease, self._client(view), view)

    def _client(self, view: View) -> httpx.Client:
        return httpx.Client(transport=view, timeout=_timeout(self._timeout), **self._template)

    # -- requests ---------------------------------------------------------------------

    def request(self, method: str, url: str, *, timeout: Timeout = None, **kwargs: Any) -> httpx.Response:
        """Make a request with a client of its own, and return the response, with its body read.

        Args:
            method: ``"GET"``, ``"POST"``, ...
            url: A URL, or a path that begins with ``/`` if the pool has a ``base_url``, which it never leaves.
            timeout: As for the class; its ``pool`` and ``total`` include the wait for a connection.
            kwargs: As for ``httpx.Client.request``.

        Raises:
            PoolTimeout, TooManyWaiting, PoolClosed: As for `acquire`.
            httpx.HTTPError: As from httpx.
        """
        with self._lent(timeout, kwargs) as client:
            return client.request(method, self._whole(url), **kwargs)

    def get(self, url: str, **kwargs: Any) -> httpx.Response:
        """Make a GET request, see :meth:`request`."""
        return self.request("GET", url, **kwargs)

    def options(self, url: str, **kwargs: Any) -> httpx.Response:
        """Make an OPTIONS request, see :meth:`request`."""
        return self.request("OPTIONS", url, **kwargs)

    def head(self, url: str, **kwargs: Any) -> httpx.Response:
        """Make a HEAD request, see :meth:`request`."""
        return self.request("HEAD", url, **kwargs)

    def post(self, url: str, **kwargs: Any) -> httpx.Response:
        """Make a POST request, see :meth:`request`."""
        return self.request("POST", url, **kwargs)

    def put(self, url: str, **kwargs: Any) -> httpx.Response:
        """Make a PUT request, see :meth:`request`."""
        return self.request("PUT", url, **kwargs)

    def patch(self, url: str, **kwargs: Any) -> httpx.Response:
        """Make a PATCH request, see :meth:`request`."""
        return self.request("PATCH", url, **kwargs)

    def delete(self, url: str, **kwargs: Any) -> httpx.Response:
        """Make a DELETE request, see :meth:`request`."""
        return self.request("DELETE", url, **kwargs)

    @contextmanager
    def stream(self, method: str, url: str, *, timeout: Timeout = None, **kwargs: Any) -> Iterator[httpx.Response]:
        """Make a request whose body is read in the block, piece by piece; closed at the end, read or not.

        Args, Raises:
            As for `request`.
        """
        with self._lent(timeout, kwargs) as client, client.stream(method, self._whole(url), **kwargs) as response:
            yield response

    @contextmanager
    def _lent(self, timeout: Timeout, kwargs: dict[str, Any]) -> Iterator[httpx.Client]:
        limits, began = HTTPTimeout.of(timeout, self._timeout), monotonic()
        waits = [given for given in (limits.pool, limits.total) if given is not None]
        with self.acquire(min(waits, default=None)) as client:
            kwargs["timeout"] = _timeout(limits)
            if limits.total is not None:
                left = max(0.0, limits.total - (monotonic() - began))
                kwargs["extensions"] = {**kwargs.get("extensions", {}), "total": left}
            yield client

    def _whole(self, url: str) -> str:
        if not (self._base_url and url.startswith("/")):
            return url
        try:
            return joined(self._base_url, url)
        except requests.exceptions.InvalidURL as error:
            raise httpx.InvalidURL(str(error)) from None


def _timeout(limits: HTTPTimeout) -> httpx.Timeout:
    return httpx.Timeout(connect=limits.connect, read=limits.read, write=limits.write, pool=0)
