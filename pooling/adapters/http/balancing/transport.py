"""The transport adapter of a group: each attempt of a request goes to the server that the balancer chooses."""

from __future__ import annotations

from typing import Any

import requests
from requests.utils import select_proxy

from ..arguments import joined
from ..connections import weakly
from ..transport import SameConnection, Transport
from .attempts import GroupAttempts
from .bases import GroupURL
from .group import Backend, Group
from .hedging import HedgedAttempts

__all__ = ["DEFAULT_RETRIES", "GroupTransport", "backend_of"]

DEFAULT_RETRIES = 2
"""Retries of a group, each at another server."""

_REDIRECTS = frozenset((301, 302, 303, 307, 308))


class GroupTransport(Transport):
    """Sends requests for the group to one of its servers, and all others as `Transport`.

    Attributes:
        group: The servers; set before the first request.
    """

    group: Group
    _attempts: type[GroupAttempts]

    def use(self, group: Group) -> Group:
        """Use this group, and return it."""
        self.group = group
        self._attempts = GroupAttempts if group.policy.hedge_after is None else HedgedAttempts
        self.connections.metrics.backends = weakly(group.stats)
        return group

    def unpooled_url(self, url: str) -> str:
        return joined(self.group.healthiest().url, url) if url.startswith("/") else url

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        if type(request.url) is not GroupURL:
            return super().get_connection_with_tls_context(request, verify, proxies, cert)
        self.connections.begin_request()
        if self.group.settled is not self.connections.hosts:
            self.group.begin()
        return self._attempts(self, self.group, request, verify, proxies, cert)

    def request_url(self, request: Any, proxies: Any) -> str:
        url = request.url
        if type(url) is not GroupURL or (proxies and select_proxy(url, proxies)):
            return super().request_url(request, proxies)
        return url.target

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        response = Transport.build_response(self, req, resp)  # by `super()` it would take twice as long
        backend = getattr(resp, "_backend", None)
        if backend is not None:
            response._backend = backend  # type: ignore[attr-defined]
            if resp.status not in _REDIRECTS:  # else relative ones are resolved first
                response.url = resp._whole
            if resp.status == 401:
                response.connection = SameServer(self, backend)  # type: ignore[assignment]
        return response


def backend_of(response: requests.Response) -> Backend | None:
    """Return the server of the group that has given a response; ``None`` for anything else."""
    return getattr(response, "_backend", None)


class SameServer(SameConnection):
    """Sends the answer to a challenge (digest authentication) to the server that has made it."""

    def __init__(self, transport: GroupTransport, backend: Backend) -> None:
        super().__init__(transport, None)
        self._backend = backend

    def send(  # type: ignore[override]  # other arguments are passed on
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, **kwargs: Any
    ) -> requests.Response:
        if type(request.url) is GroupURL:
            _, request.url = request.url.at(self._backend.base)
        return self._transport.send(request, stream, timeout, **kwargs)
