"""Requests without pooling: each one opens its own socket, and is counted."""

from __future__ import annotations

import functools
import ssl
from time import monotonic
from typing import Any

import requests
import requests.adapters
from requests import exceptions
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry

from ...core.observer import notify
from ...errors import PoolClosed
from .connections import Connections
from .errors import kind_of, refusal
from .limits import HTTPTimeout, Limits
from .metrics import HostMetrics
from .tls import check_own, is_context
from .wire import Answer

__all__ = ["Unpooled"]


class Unpooled(requests.adapters.BaseAdapter):
    """Sends each request with a new adapter of requests' own.

    Args:
        connections: Those of the pool, whose metrics count the requests.
        timeout: For requests that have none.
        retry: The retry policy.
    """

    def __init__(self, connections: Connections, timeout: HTTPTimeout, retry: Retry) -> None:
        super().__init__()
        self._connections, self._timeout, self._retry = connections, timeout, retry

    def send(  # type: ignore[override]  # other arguments are passed on
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, **kwargs: Any
    ) -> requests.Response:
        metrics, began = self._enter(request), monotonic()
        limits = timeout if isinstance(timeout, Limits) else Limits(HTTPTimeout.of(timeout, self._timeout))
        recorded = hasattr(HTTPConnectionPool.ConnectionCls, "cassette")  # by vcrpy, see `Transport.send`
        adapter_class = requests.adapters.HTTPAdapter if recorded else _Plain
        adapter = adapter_class(max_retries=self._retry)
        try:
            response = adapter.send(request, stream, limits, **kwargs)  # type: ignore[arg-type]
        except exceptions.RequestException as error:
            metrics.failed(_kind_of(error))
            self._notify(request, metrics, error, monotonic() - began)
            raise
        seconds = monotonic() - began
        metrics.answered(response.status_code, seconds, reused=False)
        self._notify(request, metrics, response.status_code, seconds)
        return response

    def _notify(
        self, request: requests.PreparedRequest, metrics: HostMetrics, outcome: int | BaseException, seconds: float
    ) -> None:
        connections, method = self._connections, request.method or ""
        notify(connections.observers, "responded", connections.name, method, metrics.host, outcome, seconds)

    def _enter(self, request: requests.PreparedRequest) -> HostMetrics:
        try:
            return self._connections.host_metrics(request)
        except PoolClosed as error:
            raise refusal(error) from None

    def close(self) -> None:
        """Do nothing: nothing is kept."""


class _Plain(requests.adapters.HTTPAdapter):
    """requests' own adapter, which also skips interim answers and accepts an ``SSLContext`` as ``verify``."""

    context: ssl.SSLContext | None = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _skip_interim(self.poolmanager)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        if not is_context(verify):
            return super().build_connection_pool_key_attributes(request, verify, cert)
        check_own(verify, cert)
        self.context = verify
        host, _ = super().build_connection_pool_key_attributes(request, True)
        return host, {"ssl_context": verify}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        if not is_context(verify):
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        if self.context is not None:
            kwargs["proxy_ssl_context"] = self.context
        return _skip_interim(super().proxy_manager_for(*args, **kwargs))


def _skip_interim(manager: Any) -> Any:
    classes = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _skipping(found) for scheme, found in classes.items()}
    return manager


@functools.cache
def _skipping(pool_class: type[Any]) -> type[Any]:
    connection_class = pool_class.ConnectionCls
    connection_class = type(connection_class.__name__, (connection_class,), {"response_class": Answer})
    return type(pool_class.__name__, (pool_class,), {"ConnectionCls": connection_class})


def _kind_of(error: exceptions.RequestException) -> str:
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return kind_of(cause) if isinstance(cause, HTTPError) else "other"
