"""Flask: an extension that gives any number of applications their pools.

::

    pools = Pooling()                                # in its own module
    db = pools.proxy("db")                           # the current request's connection

    def create_app():
        app = Flask(__name__)
        app.config["POOLING"] = {"db": "postgresql://app@db/orders"}
        pools.init_app(app)
        return app

A request's leases are released when its context ends or, if the response is
streamed, when the last piece was produced or the response is closed. A
command's leases are released when its application context ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import click
from flask import Blueprint, Flask, Response, current_app, g, has_request_context, request
from flask.cli import AppGroup
from werkzeug.local import LocalProxy

from .._console import Paint
from .._reports import health_lines
from ..manager import PoolManager
from ._health import HealthEndpoint
from ._lanes import ByPath, LanePaths
from ._metrics import MetricsEndpoint
from ._scope import Scope
from .dashboard import DashboardEndpoint

__all__ = ["Pooling"]

_KEY = "pooling"
_SCOPE = "_pooling_scope"  # attribute of a request; outside of one, of `g`
_STREAM = "_pooling_stream"


class Pooling:
    """The extension.

    Args:
        app: The application; ``None`` means that `init_app` is called later.
        manager: Existing pools; ``None`` creates a manager for each application
            from ``app.config["POOLING"]`` (see `PoolManager.from_mapping`).
        max_leases: The maximum number of leases of a request at once; ``None``
            means one of each pool.
        lane_paths: Lanes by prefix of the path, as for `PoolingMiddleware`;
            ``None`` means ``app.config["POOLING_LANE_PATHS"]``, if that is set.
            For a view, use the decorator `pooling.lane` below the route.

    Raises:
        As `init_app`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        manager: PoolManager | None = None,
        max_leases: int | None = None,
        lane_paths: Mapping[str, str] | None = None,
    ) -> None:
        self._lane_paths = None if lane_paths is None else LanePaths(lane_paths)
        self._given = manager
        self._most = max_leases
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Create the application's pools. Opens nothing.

        Raises:
            ValueError, TypeError, ImportError: ``POOLING`` is invalid, or a driver is missing.
            RuntimeError: The application already has the extension.
        """
        if _KEY in app.extensions:
            raise RuntimeError("this application already has the extension pooling")
        given = app.config.get("POOLING") or {}
        if not isinstance(given, Mapping):
            raise TypeError(f'app.config["POOLING"] must be a mapping, not {type(given).__name__}')
        paths, configured = self._lane_paths, app.config.get("POOLING_LANE_PATHS")
        if paths is None and configured:
            paths = LanePaths(configured)
        manager = self._given if self._given is not None else PoolManager()
        manager.configure(given)
        if paths is not None:
            app.wsgi_app = ByPath(app.wsgi_app, paths)  # type: ignore[method-assign]
        app.extensions[_KEY] = manager
        app.after_request(_watch_stream)
        app.teardown_request(_end_request)
        app.teardown_appcontext(_end_context)
        app.cli.add_command(_commands())

    @property
    def manager(self) -> PoolManager:
        """The pools of the current application.

        Raises:
            RuntimeError: There is no application context, or the application
                does not have the extension.
        """
        return _manager()

    def lease(self, name: str, timeout: float | None = None) -> Any:
        """Return this request's resource of a pool, or this application context's.

        The first call acquires it, later calls return the same one. Uncommitted
        work on a database connection is rolled back at the end.

        Args:
            name: The pool.
            timeout: Seconds to wait; ``None`` means the pool's ``acquire_timeout``.
                Must be ``None`` for a SQLAlchemy engine, which has its own.

        Raises:
            RuntimeError: There is no application context.
            KeyError: There is no such pool.
            LeaseError: The request has ended, or already holds the maximum
                number of leases.
            PoolError: As from `Pool.acquire`.
        """
        # Not in `g` within a request: a test's application context may outlive it.
        place = _of_request() if has_request_context() else vars(g)
        scope: Scope | None = place.get(_SCOPE)
        if scope is None:
            scope = place[_SCOPE] = Scope(_manager(), self._most)
        return scope.lease(name, timeout)

    def proxy(self, name: str) -> Any:
        """Return an object that acts as ``lease(name)`` in every request; create it at import."""
        return LocalProxy(lambda: self.lease(name), unbound_message=f"no application context for {name!r}")

    def health_blueprint(
        self,
        path: str = "/health",
        *,
        token: str | None = None,
        admit: Callable[[Mapping[str, Any]], object] | None = None,
        name: str = "pooling_health",
    ) -> Blueprint:
        """Return a blueprint with a health page.

        Unauthenticated callers see only up (200) or down (503).

        Args:
            path: The path of the page.
            token: Callers that send it as ``Authorization: Bearer ...`` see details.
            admit: Called with the WSGI environment; the caller sees details if
                it returns a true value.
            name: The blueprint's name.

        Raises:
            ValueError, TypeError: The token is empty or not a string, or
                ``admit`` is not callable.
        """
        endpoint = HealthEndpoint(_manager, token=token, admit=admit)
        blueprint = Blueprint(name, __name__)

        @blueprint.get(path, strict_slashes=False)
        def health() -> Response:
            status, headers, body = endpoint.answer(request.environ)
            return Response(body, status, headers)

        return blueprint


    @staticmethod
    def metrics_blueprint(
        path: str = "/metrics",
        *,
        token: str | None = None,
        admit: Callable[[Mapping[str, Any]], object] | None = None,
        names: str = "otel",
        labels: Mapping[str, str] | None = None,
        name: str = "pooling_metrics",
    ) -> Blueprint:
        """Return a blueprint with the metrics of all pools, for Prometheus.

        Args:
            path: Where.
            token, admit, names, labels: As for `pooling.web.wsgi.metrics_app`.
            name: The blueprint's.

        Raises:
            As `pooling.web.wsgi.metrics_app`.
        """
        endpoint = MetricsEndpoint(token=token, admit=admit, names=names, labels=labels)
        blueprint = Blueprint(name, __name__)

        @blueprint.get(path, strict_slashes=False)
        def metrics() -> Response:
            status, headers, body = endpoint.answer(request.environ)
            return Response(body, status, headers)

        return blueprint

    @staticmethod
    def dashboard_blueprint(
        path: str = "/pools",
        *,
        token: str | None = None,
        admit: Callable[[Mapping[str, Any]], object] | None = None,
        name: str = "pooling_dashboard",
    ) -> Blueprint:
        """Return a blueprint with a page that shows all pools live.

        Args:
            path: The path of the page.
            token, admit: As for `pooling.web.dashboard.dashboard_app`.
            name: The blueprint's name.

        Raises:
            As `pooling.web.dashboard.dashboard_app`.
        """
        endpoint = DashboardEndpoint(token=token, admit=admit)
        blueprint = Blueprint(name, __name__)

        @blueprint.get(path, strict_slashes=False)
        def dashboard() -> Response:
            status, headers, body = endpoint.answer(request.environ)
            return Response(body, status, headers)

        return blueprint


def _of_request() -> dict[str, Any]:
    """Return the attributes of the request object.

    The object belongs to this application and this request only. Its
    environment does not: a nested application shares it.
    """
    return vars(request._get_current_object())  # type: ignore[attr-defined,return-value]  # a LocalProxy


def _manager() -> PoolManager:
    try:
        manager: PoolManager = current_app.extensions[_KEY]
    except KeyError:
        raise RuntimeError("this application has no pools; call Pooling().init_app(app)") from None
    return manager


# -- the end of a request ----------------------------------------------------------


def _watch_stream(response: Response) -> Response:
    """If the body is produced while it is sent, end the request when that ends."""
    if response.is_streamed and not response.direct_passthrough and _is_sent(response):
        place = _of_request()
        response.response = place[_STREAM] = _Stream(response.response, place.get(_SCOPE))
    return response


def _is_sent(response: Response) -> bool:
    return request.method != "HEAD" and response.status_code not in (204, 304)


def _end_request(error: BaseException | None) -> None:
    """End the request with its context, or later with its stream."""
    place = _of_request()
    scope: Scope | None = place.get(_SCOPE)
    if scope is None:
        return
    stream: _Stream | None = place.get(_STREAM)
    if stream is None or stream.over or error is not None:
        scope.end(error)
    else:
        stream.scope = scope  # the body will be produced without a context, or ends now


def _end_context(error: BaseException | None) -> None:
    scope: Scope | None = g.pop(_SCOPE, None)
    if scope is not None:
        scope.end(error)


class _Stream:
    """A streamed body; the request's leases are released at its end, or when it is closed."""

    __slots__ = ("_body", "_next", "scope", "over")

    def __init__(self, body: Iterable[Any], scope: Scope | None) -> None:
        self._body = body
        self._next: Callable[[], Any] | None = None
        self.scope = scope  # None: no lease yet, but the body may acquire one
        self.over = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            if self._next is None:
                self._next = iter(self._body).__next__
            return self._next()
        except StopIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self.over = True
        if self.scope is not None:
            self.scope.end(error)


# -- the command line ---------------------------------------------------------------


def _commands() -> AppGroup:
    group = AppGroup("pooling", help="The pools of this application.")

    @group.command("status", help="Print the use of each pool in this process.")
    def status() -> None:
        _manager().print_summary()

    @group.command("doctor", help="Acquire a connection from every pool and report problems.")
    @click.option("--timeout", default=5.0, show_default=True, help="Seconds for all pools together.")
    def doctor(timeout: float) -> None:
        manager = _manager()
        if not len(manager):
            click.echo('no pools: app.config["POOLING"] is empty')
            sys.exit(1)
        health = manager.health_check(timeout)
        for line in health_lines(health, Paint()):
            click.echo(line)
        sys.exit(0 if health else 1)

    return group
