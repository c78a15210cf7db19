"""WSGI middleware that gives each request access to the pools and releases its leases.

::

    app = PoolingMiddleware(app, urls={"db": "postgresql://app@db/orders"})

    def app(environ, start_response):
        conn = lease(environ, "db")
        ...

A request holds its leases until its response is closed: when the server has
sent all of it, or the client has disconnected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .. import config
from .._masking import shown
from .._urls import engine_url, settings_for
from ..manager import PoolManager
from ..settings import PoolSettings
from ._health import HealthEndpoint
from ._lanes import ByPath, LanePaths
from ._metrics import MetricsEndpoint
from ._scope import Scope

__all__ = ["PoolingMiddleware", "lease", "metrics_app"]

MANAGER, SCOPE = "pooling.manager", "pooling.scope"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


def lease(environ: Mapping[str, Any], name: str, timeout: float | None = None) -> Any:
    """Return this request's resource of a pool; it is released when the response is closed.

    The first call acquires it, later calls return the same one. Uncommitted
    work on a database connection is then rolled back.

    Args:
        environ: The request's WSGI environment.
        name: The pool.
        timeout: Seconds to wait; ``None`` means the pool's ``acquire_timeout``.
            Must be ``None`` for a SQLAlchemy engine, which has its own.

    Raises:
        LookupError: The request did not come through `PoolingMiddleware`, or
            there is no such pool.
        LeaseError: The response was closed, or the request already holds the
            maximum number of leases.
        PoolError: As from `Pool.acquire`.
    """
    scope: Scope | None = environ.get(SCOPE)
    if scope is None:
        raise LookupError("this request did not come through pooling's PoolingMiddleware")
    return scope.lease(name, timeout)


class PoolingMiddleware:
    """Gives each request access to the pools, as ``environ["pooling.manager"]`` and through `lease`.

    It opens nothing before a request needs it; call
    ``middleware.manager.startup()`` for a warm-up.

    Args:
        app: The WSGI application.
        manager: The pools; ``None`` creates a manager for the URLs below.
        database_url: The URL of a pool ``"db"``.
        redis_url: The URL of a `RedisPool` ``"redis"``.
        urls: Further pools by name, see `from_url`.
        engine: Make ``"db"`` a SQLAlchemy engine on our pool; `lease` returns
            its connection. For other names write ``sqlalchemy+`` before the URL.
        settings: Settings for the pools created here.
        max_leases: The maximum number of leases of a request at once; ``None``
            means one of each pool, which is the limit anyway.
        health_path: The path of the health page, such as ``"/health"``;
            ``None`` means none. Unauthenticated callers see only up (200) or
            down (503).
        health_token: Callers that send it as ``Authorization: Bearer ...`` see
            details.
        health_admit: Called with ``environ``; the caller sees details if it
            returns a true value.
        lane_paths: Lanes by prefix of the path, for the pools that have them:
            ``{"/": "web", "/admin": "batch"}``; see `pooling.Lane`. The longest
            prefix that fits counts. A `pooling.lane` within the application, or
            ``lane=`` of an acquire, takes precedence.
        options: Further settings for the URLs, under any name that
            `PoolSettings.from_mapping` accepts: ``pool_recycle=1800``,
            ``pool_pre_ping=True``, ``connection_timeout=5``.

    Raises:
        ValueError, TypeError, ImportError: An argument or URL is invalid, or a
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
        engine: bool = False,
        settings: PoolSettings | None = None,
        max_leases: int | None = None,
        health_path: str | None = None,
        health_token: str | None = None,
        health_admit: Callable[[Mapping[str, Any]], object] | None = None,
        lane_paths: Mapping[str, str] | None = None,
        **options: object,
    ) -> None:
        if not callable(app):
            raise TypeError(f"app must be a WSGI application, not {shown(app)}")
        if manager is not None and not isinstance(manager, PoolManager):
            raise TypeError(f"manager must be a PoolManager, not {type(manager).__name__}")
        if health_path is not None and not (isinstance(health_path, str) and health_path.startswith("/")):
            raise ValueError(f"health_path must be a string that begins with a slash, not {shown(health_path)}")
        if health_path is None and (health_token is not None or health_admit is not None):
            raise ValueError("health_token and health_admit need a health_path")
        _check_most(max_leases)
        self.manager = manager if manager is not None else PoolManager()
        self._app = app if lane_paths is None else ByPath(app, LanePaths(lane_paths))
        self._most = max_leases
        self._health_path = health_path
        self._health = HealthEndpoint(lambda: self.manager, token=health_token, admit=health_admit)
        if engine and database_url is None:
            raise ValueError("engine needs a database_url")
        if engine:
            database_url = engine_url(config.url_of(database_url))  # type: ignore[arg-type]
        given = {"db": database_url, "redis": redis_url, **(urls or {})}
        targets = {name: config.url_of(url) for name, url in given.items() if url is not None}
        if options and not targets:
            PoolSettings.from_mapping(options, base=settings)  # refuses misspelt names even without a URL
        for name, url in targets.items():
            merged = settings_for(url, options, settings) if options else settings
            self.manager.create_pool(name, url, settings=merged)

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
            # The application's code has finished: release before a slow client reads.
            # Return the body itself, so that the server sees its length, or a file to send.
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
        token: Clients that send it as ``Authorization: Bearer ...`` see the metrics.
        admit: Called with the WSGI environment; returns whether the client may see the metrics.
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
    """A response body that ends the request's scope when the server closes it."""

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
    """The same within another middleware, whose scope is in the environment except while this body's code runs."""

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
