"""How connections are made, checked and closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from ...core.adapter import Adapter
from .connection import Connection

__all__ = ["HTTP2Adapter"]


class HTTP2Adapter(Adapter[Any]):
    """How connections are made and kept.

    Args:
        options: Returns the arguments of ``httpx.HTTPTransport``.
        health_url: Requested to validate a connection.
    """

    noun = "connection"
    blocking = False  # the first request opens it
    enforces_timeouts = True
    close_inline = True

    def __init__(self, options: Callable[[], dict[str, Any]], health_url: str | None) -> None:
        self._options = options
        self._health_url = health_url
        if health_url is None:
            vars(self)["validate"] = None  # the pool then makes no round trip

    def create(self) -> Connection:
        return Connection(self._options())

    def is_alive(self, resource: Connection) -> bool:
        return resource.is_alive()

    def validate(self, resource: Connection, timeout: float) -> None:
        assert self._health_url is not None
        extensions = {"timeout": dict.fromkeys(("connect", "read", "write"), timeout), "total": timeout}
        request = httpx.Request("GET", self._health_url, extensions=extensions)
        response = resource.send(request)
        response.request = request
        try:
            response.read()
        finally:
            response.close()
        response.raise_for_status()

    def refuse(self, resource: Connection, waiting: bool) -> str | None:
        if resource.answers or resource.cut_off:
            return "unread"
        return None

    def is_broken(self, resource: Connection, error: BaseException) -> bool:
        # A request that timed out has no answer yet; a lost connection has none any more.
        return isinstance(error, (httpx.TransportError, httpx.StreamError)) or super().is_broken(resource, error)

    def close(self, resource: Connection) -> None:
        resource.close()

    def abandon(self, resource: Connection) -> None:
        resource.abandon()

    def interrupt(self, resource: Connection) -> None:
        resource.interrupt()
