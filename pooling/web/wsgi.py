"""WSGI: the pools of an application in every request, and what a request takes given back.

::

    app = PoolingMiddleware(app, urls={"db": "postgresql://app@db/orders"})

    def app(environ, start_response):
        conn = lease(environ, "db")
        ...

A request holds its leases until its response is closed, which is when the
server has sent the last of it, or the client has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .. import config
from .._masking import shown
from .._urls import settings_for
from ..manager import PoolManager
from ..settings import PoolSettings
from ._health import HealthEndpoint
from ._metrics import MetricsEndpoint
from ._scope import Scope

__all__ = ["PoolingMiddleware", "lease", "metrics_app"]

MANAGER, SCOPE = "pooling.manager", "pooling.scope"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


def lease(environ: Mapping[str, Any], name: str, timeout: float | None = None) -> Any:
    """Return this request's resource of a pool; it is given back when the response is closed.

    The first call takes it, the others return the same one. What a database
    connection has not committed by then is rolled back.

    Args:
        environ: The request's WSGI environment.
        name: The pool.
        timeout: Seconds to wait; ``None`` means the pool's ``acquire_timeout``.
            A SQLAlchemy engine takes none, it has its own.

    Raises:
        LookupError: The request did not come through `PoolingMiddleware`, or
            there is no such pool.
        LeaseError: The response was closed, or the request holds as many as it may.
        PoolError: As from `Pool.acquire`.
    """
    scope: Scope | None = environ.get(SCOPE)
    if scope is None:
        raise LookupError("this request did not come through pooling's PoolingMiddleware")
    return scope.lease(name, timeout)


class PoolingMiddleware:
    """Gives each request the pools, as ``environ["pooling.manager"]`` and by `lease`.

    It opens nothing before a request asks for it; for a warm-up call
    ``middleware.manager.startup()``.

    Args:
        app: The WSGI application.
        manager: The pools; ``None`` makes a manager for the URLs below.
        database_url: Of a pool ``"db"``.
        redis_url: Of a pool ``"redis"``, if anything installed knows the scheme, see `from_url`.
        urls: Further pools by name, see `from_url`.
        settings: Of the pools that are made here.
        max_leases: How many leases a request may hold at once; ``None`` means
            one of each pool, which is the limit anyway.
        health_path: Where to answer whether the pools are well, such as
            ``"/health"``; ``None`` means nowhere. Strangers learn up (200) or
            down (503) and no more.
        health_token: Who sends it as ``Authorization: Bearer ...`` sees details.
        health_admit: Called with ``environ``; whom it lets in sees details.
        options: Further settings for the URLs, under any name that
            `PoolSettings.from_mapping` knows: ``pool_recycle=1800``,
            ``pool_pre_ping=True``, ``connection_timeout=5``.

    Raises:
        ValueError, TypeError, ImportError: An argument or URL is bad, or its
            driver is missing.
    """

    def __init__(
        self,
        app: WSGIApp,
        manager: PoolManager | None = None,
        database_url: str | None = None,
        redis_url: str | None = None,
        urls: Mapping[str, str] | None = None,
        *,
        settings: PoolSettings | None = None,
        max_leases: int | None = None,
        health_path: str | None = None,
        health_token: str | None = None,
        health_admit: Callable[[Mapping[str, Any]], object] | None = None,
        **options: object,
    ) -> None:
        if not callable(app):
            raise TypeError(f"app must be a WSGI application, not {shown(app)}")
        if manager is not None and not isinstance(manager, PoolManager):
            raise TypeError(f"manager must be a PoolManager, not {type(manager).__name__}")
        if health_path is not None and not (isinstance(health_path, str) and health_path.startswith("/")):
            raise ValueError(f"health_path must begin with a slash, not be {shown(health_path)}")
        if health_path is None and (health_token is not None or health_admit is not None):
            raise ValueError("health_token and health_admit need a health_path")
        _check_most(max_leases)
        self.manager = manager if manager is not None else PoolManager()
        self._app = app
        self._most = max_leases
        self._health_path = health_path
        self._health = HealthEndpoint(lambda: self.manager, token=health_token, admit=health_admit)
        given = {"db": database_url, "redis": redis_url, **(urls or {})}
        targets = {name: config.url_of(url) for name, url in given.items() if url is not None}
        if options and not targets:
            PoolSettings.from_mapping(options, base=settings)  # refuses what is misspelt, here too
        for name, url in targets.items():
            laid = settings_for(url, options, settings) if options else settings
            self.manager.create_pool(name, url, settings=laid)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._health_path is not None and environ.get("PATH_INFO") == self._health_path:
            status, headers, body = self._health.answer(environ)
            start_response(status, headers)
            return [body]
        around: Scope | None = environ.get(SCOPE)
        scope = Scope(self.manager, self._most)
        _enter(environ, scope)
        try:
            body_of_app = self._app(environ, start_response)
        except BaseException as error:
            scope.end(error)
            raise
        finally:
            if around is not None:
                _enter(environ, around)
        kind = type(body_of_app)
        if kind is list or kind is tuple or kind is environ.get("wsgi.file_wrapper"):
            # No code of the application runs any more: give back before a slow client
            # reads, and let the server see what it is (its length, a file to send).
            scope.end()
            return body_of_app
        return _Body(body_of_app, scope) if around is None else _InnerBody(body_of_app, scope, environ, around)


def metrics_app(
    *,
    token: str | None = None,
    admit: Callable[[Mapping[str, Any]], object] | None = None,
    names: str = "otel",
    labels: Mapping[str, str] | None = None,
) -> WSGIApp:
    """Return a WSGI application with the metrics of all pools, for Prometheus.

    They are those of this process, or of all that share ``POOLING_METRICS_DIR``;
    see `pooling.observe.prometheus`. Mount it at ``/metrics``, say. It answers
    503 while they cannot be read; the log says why.

    Args:
        token: Who sends it as ``Authorization: Bearer ...`` sees the metrics.
        admit: Called with the WSGI environment; who is let in sees the metrics.
        names: ``"otel"``, or ``"hikari"`` for boards made for HikariCP.
        labels: Further labels of every metric, with their values.

    Raises:
        ValueError, TypeError: An argument is bad, or neither ``token`` nor ``admit`` is given.
        ImportError: prometheus_client is missing.
    """
    endpoint = MetricsEndpoint(token=token, admit=admit, names=names, labels=labels)

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        status, headers, body = endpoint.answer(environ)
        start_response(status, headers)
        return [body]

    return app


def _enter(environ: Environ, scope: Scope) -> None:
    environ[MANAGER] = scope.manager
    environ[SCOPE] = scope


class _Body:
    """A response's body that ends the request's scope when the server closes it."""

    __slots__ = ("_body", "_next", "_scope", "_error")

    def __init__(self, body: Iterable[bytes], scope: Scope) -> None:
        self._body = body
        self._scope = scope
        self._next: Callable[[], bytes] | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            if self._next is None:
                self._next = iter(self._body).__next__
            return self._next()
        except StopIteration:
            raise
        except BaseException as error:
            self._error = error
            raise

    def close(self) -> None:
        error, self._error = self._error, None
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._scope.end(error)
            del error


class _InnerBody(_Body):
    """The same within another middleware, whose scope is in the environment but while this body's code runs."""

    __slots__ = ("_environ", "_around")

    def __init__(self, body: Iterable[bytes], scope: Scope, environ: Environ, around: Scope) -> None:
        super().__init__(body, scope)
        self._environ = environ
        self._around = around

    def __next__(self) -> bytes:
        _enter(self._environ, self._scope)
        try:
            return super().__next__()
        finally:
            _enter(self._environ, self._around)

    def close(self) -> None:
        _enter(self._environ, self._scope)
        try:
            super().close()
        finally:
            _enter(self._environ, self._around)


def _check_most(most: object) -> None:
    if most is None:
        return
    if not isinstance(most, int) or isinstance(most, bool):
        raise TypeError(f"max_leases must be a whole number or None, not {shown(most)}")
    if most < 1:
        raise ValueError(f"max_leases must be at least 1, not {shown(most)}")
