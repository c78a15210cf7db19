"""The metrics of an application over HTTP, for Prometheus.

They name pools, hosts and errors, so only those who are admitted see them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .._fields import fields
from ._access import Access, Admit, Answer, pack

__all__ = ["MetricsEndpoint"]

logger = logging.getLogger("pooling")

_TEXT = "text/plain; charset=utf-8"


class MetricsEndpoint:
    """Answers with the metrics in the format that the client accepts.

    Args:
        token: Clients that send it as ``Authorization: Bearer ...`` are admitted.
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
        admit: Admit | None = None,
        names: str = "otel",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._access = Access("metrics", token, admit)
        if token is None and admit is None:
            raise ValueError(
                "token or admit must be given: metrics name pools and hosts; "
                "admit=lambda environ: True shows them to all clients"
            )
        from ..observe.prometheus import PoolCollector

        collector = PoolCollector(names=names, labels=labels)
        from prometheus_client import CollectorRegistry  # after it: its error says what to install

        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)

    def answer(self, environ: Mapping[str, Any]) -> Answer:
        """Return status, headers and body for a request."""
        method = environ.get("REQUEST_METHOD", "GET")
        if method not in ("GET", "HEAD"):
            return pack("405 Method Not Allowed", b"", _TEXT, ("Allow", "GET, HEAD"))
        if not self._access.admits(environ):
            return pack("401 Unauthorized", b"", _TEXT, ("WWW-Authenticate", 'Bearer realm="metrics"'))
        from prometheus_client.exposition import choose_encoder

        encode, kind = choose_encoder(str(environ.get("HTTP_ACCEPT", "")))
        try:
            body = encode(self._registry)
        except OSError:  # the shared directory, or no turn to read it
            logger.warning("metrics cannot be read", exc_info=True, extra=fields("metrics_unreadable"))
            return pack("503 Service Unavailable", b"metrics cannot be read; see the log\n", _TEXT)
        answer = pack("200 OK", body, kind)
        return (*answer[:2], b"") if method == "HEAD" else answer
