"""HTTP: a pool of ``requests.Session`` objects.

What is dear about a session is its sockets: a TCP connection and a TLS
handshake each. A session of this pool keeps its sockets when it is released
and loses everything else: cookies, headers, credentials (P5). What is dear
about a handshake's preparation is the list of trusted certificates, which
requests and urllib3 read again for every connection, some ten milliseconds
each time; here all sessions of a pool share it.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import requests
import requests.adapters
from urllib3.util.ssl_ import create_urllib3_context

from ..core.adapter import Adapter
from ..core.pool import Pool
from ..settings import PoolSettings

__all__ = ["HTTPPool", "SessionAdapter"]

Timeout = float | tuple[float | None, float | None] | None
Verify = bool | str | os.PathLike[str]
_ContextKey = tuple[Any, ...]


class HTTPPool(Pool[requests.Session]):
    """Lends ``requests.Session`` objects whose sockets are warm.

    Example::

        http = HTTPPool(base_url="https://api.example.com")
        quote = http.get("/quotes/ACME").json()
        with http.request_context("GET", "/export", stream=True) as response:
            for line in response.iter_lines(): ...
        with http.acquire() as session:           # several requests, one cookie jar
            session.post("/login", ...)           # a whole URL here: it is plain requests

    Args:
        settings: Size, ages and time limits; ``None`` means the defaults.
        base_url: Put before URLs that begin with ``/`` in this pool's own
            methods, not in those of an acquired session.
        timeout: Seconds to connect and seconds between two bytes of the answer,
            as in requests, for every request that gives none; ``(None, None)``
            means no limit.
        verify: Whom to trust: ``True`` means certifi's list or the one that
            ``REQUESTS_CA_BUNDLE`` names; else a file or folder of certificates,
            which beats the environment; ``False`` means anybody. It is read
            once, so a changed file needs a new pool.
        headers: Sent with every request, beside requests' own.
        name: How the pool is called in messages.
    """

    def __init__(
        self,
        settings: PoolSettings | None = None,
        *,
        base_url: str | None = None,
        timeout: Timeout = (10, 30),
        verify: Verify = True,
        headers: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        adapter = SessionAdapter(timeout=timeout, verify=verify, headers=headers)
        super().__init__(adapter=adapter, settings=settings, name=name)
        self._base_url = base_url.rstrip("/") if base_url else ""

    def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        """Make one request with a session of the pool, and return the answer.

        The session is back in the pool when this returns. To read a large body
        piece by piece, use :meth:`request_context`, which keeps it until then.

        Args:
            method: ``"GET"``, ``"POST"``, ...
            url: Where to; a path if the pool has a ``base_url``.
            kwargs: As for ``requests.request``.

        Raises:
            PoolTimeout: No session was free within ``acquire_timeout``.
            requests.RequestException: As from requests.
        """
        return self._request(method, url, kwargs)

    def get(self, url: str, **kwargs: Any) -> requests.Response:
        """Make a GET request, see :meth:`request`."""
        return self._request("GET", url, kwargs)

    def options(self, url: str, **kwargs: Any) -> requests.Response:
        """Make an OPTIONS request, see :meth:`request`."""
        return self._request("OPTIONS", url, kwargs)

    def head(self, url: str, **kwargs: Any) -> requests.Response:
        """Make a HEAD request, see :meth:`request`; as in requests, it follows no redirects."""
        kwargs.setdefault("allow_redirects", False)
        return self._request("HEAD", url, kwargs)

    def post(self, url: str, data: Any = None, json: Any = None, **kw: Any) -> requests.Response:
        """Make a POST request, see :meth:`request`."""
        return self._request("POST", url, dict(kw, data=data, json=json))

    def put(self, url: str, data: Any = None, **kwargs: Any) -> requests.Response:
        """Make a PUT request, see :meth:`request`."""
        return self._request("PUT", url, dict(kwargs, data=data))

    def patch(self, url: str, data: Any = None, **kwargs: Any) -> requests.Response:
        """Make a PATCH request, see :meth:`request`."""
        return self._request("PATCH", url, dict(kwargs, data=data))

    def delete(self, url: str, **kwargs: Any) -> requests.Response:
        """Make a DELETE request, see :meth:`request`."""
        return self._request("DELETE", url, kwargs)

    @contextmanager
    def request_context(self, method: str, url: str, **kwargs: Any) -> Iterator[requests.Response]:
        """Make one request, and keep the session until the block ends.

        At its end the response is closed, read or not, and the session
        released: a stream that is read inside the block counts as in use.

        Args:
            method: ``"GET"``, ``"POST"``, ...
            url: Where to; a path if the pool has a ``base_url``.
            kwargs: As for ``requests.request``, such as ``stream=True``.

        Raises:
            PoolTimeout: No session was free within ``acquire_timeout``.
            requests.RequestException: As from requests.
        """
        # Skipped frames: this one is 0, contextlib's __enter__ is 1, its caller holds the session.
        with (
            self._acquire_for(None, 2) as session,
            session.request(method, self._whole(url), **kwargs) as response,
        ):
            yield response

    def _request(self, method: str, url: str, kwargs: dict[str, Any]) -> requests.Response:
        with self._acquire_for(None, 2) as session:  # 2: the caller of get(), post(), request()
            return session.request(method, self._whole(url), **kwargs)

    def _whole(self, url: str) -> str:
        return self._base_url + url if url.startswith("/") else url


class SessionAdapter(Adapter[requests.Session]):
    """How sessions are made and cleaned; see :class:`HTTPPool` for the arguments.

    There is no test for a live one: urllib3 looks at each socket before it
    uses it and replaces a closed one, and it drops a socket on which a request
    failed. So no error makes the *session* worse than new, either.
    """

    noun = "session"
    blocking = False  # sockets are opened by requests, not by sessions
    bounded = True  # reset touches no socket

    def __init__(
        self,
        *,
        timeout: Timeout = (10, 30),
        verify: Verify = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.timeout = timeout
        self.verify = verify if isinstance(verify, bool) else os.fspath(verify)
        self.headers = dict(headers or {})
        self.contexts = _TLSContexts()

    def create(self) -> requests.Session:
        return _Session(_Transport(self.contexts, self.timeout), self.verify, self.headers)

    def reset(self, resource: requests.Session) -> None:
        assert isinstance(resource, _Session)
        resource.renew()

    def close(self, resource: requests.Session) -> None:
        resource.close()

    def abandon(self, resource: requests.Session) -> None:
        # Not session.close(): another thread of the parent may have held one of urllib3's
        # locks at the fork, and the child's copy would never be released.
        for sock in _idle_sockets(resource):
            sock.close()  # the descriptor only; no TLS goodbye goes to the parent's peer


class _Session(requests.Session):
    """A session that can be made new again while its sockets stay open."""

    def __init__(
        self, transport: _Transport, verify: bool | str, headers: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._transport, self._verify, self._headers = transport, verify, headers
        self.verify = verify
        self.headers.update(headers)
        self.mount("https://", transport)
        self.mount("http://", transport)

    def renew(self) -> None:
        """Forget all that the last borrower set, whatever it is called."""
        transport, verify, headers = self._transport, self._verify, self._headers
        for adapter in self.adapters.values():
            if adapter is not transport:  # mounted by the borrower
                adapter.close()
        vars(self).clear()
        _Session.__init__(self, transport, verify, headers)

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        # requests lets REQUESTS_CA_BUNDLE beat a session's verify, even verify=False
        # (psf/requests#3829). What the program says beats the environment.
        if verify is None and self.verify is not True:
            verify = self.verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


class _Transport(requests.adapters.HTTPAdapter):
    """The sockets of one session, with the pool's TLS contexts and time limits."""

    def __init__(self, contexts: _TLSContexts, timeout: Timeout) -> None:
        self._contexts = contexts
        self._timeout = timeout
        super().__init__()

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None,
        verify: Any = True, cert: Any = None, proxies: Any = None,
    ) -> requests.Response:  # fmt: skip
        timeout = self._timeout if timeout is None else timeout
        return super().send(request, stream, timeout, verify, cert, proxies)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        # The context is part of the key under which urllib3 keeps sockets, so a
        # socket opened without verification never serves a request that wants it.
        host, tls = super().build_connection_pool_key_attributes(request, verify, cert)
        if host["scheme"] != "https":
            return host, tls
        reqs = "CERT_NONE" if verify is False else "CERT_REQUIRED"
        return host, {"ssl_context": self._contexts.get(verify, cert), "cert_reqs": reqs}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: with ``ca_certs`` set, urllib3 reads the file for each connection."""


def _idle_sockets(session: requests.Session) -> Iterator[socket.socket]:
    """Yield the sockets that a session keeps, without taking a lock."""
    for transport in session.adapters.values():
        managers: list[Any] = [getattr(transport, "poolmanager", None)]
        managers += getattr(transport, "proxy_manager", {}).values()
        for manager in filter(None, managers):
            for pool in list(manager.pools._container.values()):
                for connection in list(pool.pool.queue if pool.pool else ()):
                    if connection is not None and connection.sock is not None:
                        yield connection.sock


class _TLSContexts:
    """One ``SSLContext`` for each way to trust, made when first needed.

    Assumes: getting and setting a dict's item are atomic.
    """

    def __init__(self) -> None:
        self._made: MutableMapping[_ContextKey, ssl.SSLContext] = {}
        self._lock = threading.Lock()

    def get(self, verify: Any, cert: Any) -> ssl.SSLContext:
        bundle = _bundle(verify)
        key = (bundle, tuple(cert) if isinstance(cert, (tuple, list)) else cert)
        context = self._made.get(key)
        return context if context is not None else self._make(key, bundle, cert)

    def _make(self, key: _ContextKey, bundle: str | None, cert: Any) -> ssl.SSLContext:
        # One thread reads the list for all. The lock only saves work, so it has
        # a time limit: held at a fork, it stays locked in the child for ever.
        locked = self._lock.acquire(timeout=1.0)
        try:
            if key not in self._made:
                self._made[key] = _tls_context(bundle, cert)
            return self._made[key]
        finally:
            if locked:
                self._lock.release()


def _bundle(verify: Any) -> str | None:
    """Return where the trusted certificates are; ``None`` means that anybody is trusted."""
    if verify is False:
        return None
    if verify is True or verify is None:
        return requests.utils.DEFAULT_CA_BUNDLE_PATH
    return str(os.fspath(verify))


def _tls_context(bundle: str | None, cert: Any) -> ssl.SSLContext:
    context = create_urllib3_context(
        cert_reqs=ssl.CERT_NONE if bundle is None else ssl.CERT_REQUIRED
    )
    if bundle is not None and os.path.isdir(bundle):
        context.load_verify_locations(capath=bundle)
    elif bundle is not None:
        if not os.path.exists(bundle):  # OpenSSL would not say which file
            raise OSError(f"no such file or folder of trusted certificates: {bundle}")
        context.load_verify_locations(cafile=bundle)
    if cert:
        context.load_cert_chain(*([cert] if isinstance(cert, str) else cert))
    return context


HTTPPool.__module__ = "pooling"  # where users import it from
