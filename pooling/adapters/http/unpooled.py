"""Pooling that is switched off: each request has a socket of its own, and is counted."""

from __future__ import annotations

from time import monotonic
from typing import Any

import requests
import requests.adapters
from requests import exceptions
from urllib3.exceptions import HTTPError, MaxRetryError

from ...errors import PoolClosed
from .errors import refusal
from .limits import Limits
from .metrics import HostMetrics
from .transport import Transport, kind_of

__all__ = ["Unpooled"]


class Unpooled(requests.adapters.BaseAdapter):
    """Makes a new adapter of requests' own for each request."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self._transport = transport

    def limits(self, timeout: Any) -> Limits:
        """Return the time limits of a request that begins now."""
        return self._transport.limits(timeout)

    def send(  # type: ignore[override]  # what is not named here is handed on
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, **kwargs: Any
    ) -> requests.Response:
        metrics, began = self._enter(request), monotonic()
        plain = requests.adapters.HTTPAdapter(max_retries=self._transport.max_retries)
        try:
            response = plain.send(request, stream, self.limits(timeout), **kwargs)  # type: ignore[arg-type]
        except exceptions.RequestException as error:
            metrics.failed(_kind(error))
            raise
        metrics.answered(response.status_code, monotonic() - began, reused=False)
        return response

    def _enter(self, request: requests.PreparedRequest) -> HostMetrics:
        try:
            return self._transport._pool._metrics_for(request)
        except PoolClosed as error:
            raise refusal(error) from None

    def close(self) -> None:
        """Do nothing: nothing is kept."""


def _kind(error: exceptions.RequestException) -> str:
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return kind_of(cause) if isinstance(cause, HTTPError) else "other"
