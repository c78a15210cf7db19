"""What the parts of `HTTPPool` need of the pool itself: they are written against this, not against its class."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from typing import Any, Protocol

import requests

from ...core.checkin import Checkin
from ...core.engine import Engine
from ...core.fastpath import FastPath
from .hold import Hold
from .hosts import Host
from .limits import Limits
from .metrics import HostMetrics, HTTPMetrics

__all__ = ["Client"]


class Client(Protocol):
    """The pool, as sessions, the transport, warm-up and health probes use it."""

    engine: Engine[Any]
    _fast: FastPath
    _checkin: Checkin[Any]
    _calls: dict[int, Limits]
    _answers: dict[int, weakref.ref[requests.Response]]
    _unpooled: Any
    _probes: Any

    @property
    def name(self) -> str:
        """The pool's name."""

    @property
    def metrics(self) -> HTTPMetrics:
        """The pool's metrics."""

    def drain(self) -> None:
        """Begin a new generation of sockets."""

    def request_context(self, method: str, url: str, **options: Any) -> AbstractContextManager[requests.Response]:
        """Make a request whose response is closed with the block."""

    def _host(self, request: Any, verify: Any, proxies: Any, cert: Any) -> Host: ...

    def _metrics_for(self, request: Any) -> HostMetrics: ...

    def _take(self, host: Host, limits: Limits) -> Hold: ...

    def _remember(self, response: requests.Response) -> None: ...

    def _read_outer(self) -> None: ...

    def _health_checked(self, error: BaseException | None) -> None: ...
