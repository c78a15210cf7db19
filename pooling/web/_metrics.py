"""The metrics of an application over HTTP, for Prometheus.

They name pools, hosts and errors, so only those who are admitted see them.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping
from typing import Any

from .._masking import shown

__all__ = ["MetricsEndpoint"]

logger = logging.getLogger("pooling")

Answer = tuple[str, list[tuple[str, str]], bytes]

_TEXT = "text/plain; charset=utf-8"


class MetricsEndpoint:
    """Answers with the metrics in the format that the client accepts.

    Args:
        token: Who sends it as ``Authorization: Bearer ...`` is admitted.
        admit: Called with the WSGI environment; returns whether to admit the client.
        names, labels: As for `PoolCollector`.

    Raises:
        ValueError, TypeError: An argument is bad, or neither ``token`` nor ``admit`` is given.
        ImportError: prometheus_client is missing.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        admit: Callable[[Mapping[str, Any]], object] | None = None,
        names: str = "otel",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        if token is not None and not isinstance(token, str):
            raise TypeError(f"token must be a string, not of type {type(token).__name__}")
        if token is not None and not token:
            raise ValueError("token must not be empty")
        if admit is not None and not callable(admit):
            raise TypeError(f"admit must be callable, not {shown(admit)}")
        if token is None and admit is None:
            raise ValueError(
                "token or admit must be given: metrics name pools and hosts; "
                "admit=lambda environ: True shows them to everybody"
            )
        from prometheus_client import CollectorRegistry

        from ..observe.prometheus import PoolCollector

        self._token = None if token is None else token.encode()
        self._admit = admit
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PoolCollector(names=names, labels=labels))

    def answer(self, environ: Mapping[str, Any]) -> Answer:
        """Return status, headers and body for a request."""
        method = environ.get("REQUEST_METHOD", "GET")
        if method not in ("GET", "HEAD"):
            return _pack("405 Method Not Allowed", b"", _TEXT, ("Allow", "GET, HEAD"))
        if not self._admitted(environ):
            return _pack("401 Unauthorized", b"", _TEXT, ("WWW-Authenticate", 'Bearer realm="metrics"'))
        from prometheus_client.exposition import choose_encoder

        encode, kind = choose_encoder(str(environ.get("HTTP_ACCEPT", "")))
        try:
            body = encode(self._registry)
        except OSError:  # the shared directory, or no turn to read it
            logger.warning("metrics cannot be read", exc_info=True)
            return _pack("503 Service Unavailable", b"metrics cannot be read; see the log\n", _TEXT)
        answer = _pack("200 OK", body, kind)
        return (*answer[:2], b"") if method == "HEAD" else answer

    def _admitted(self, environ: Mapping[str, Any]) -> bool:
        scheme, _, given = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        sent = given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        if self._token is not None and hmac.compare_digest(sent, self._token):
            return True
        return self._admit is not None and bool(self._admit(environ))


def _pack(status: str, body: bytes, kind: str, *more: tuple[str, str]) -> Answer:
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    return status, [*headers, *more], body
