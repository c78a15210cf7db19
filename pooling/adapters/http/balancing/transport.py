"""The transport adapter of a group: each attempt of a request goes to the server that the balancer chooses."""

from __future__ import annotations

from typing import Any

import requests
from requests.utils import select_proxy, urldefragauth
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from ..arguments import joined
from ..connections import weakly
from ..errors import HTTPCircuitOpen, kind_of
from ..hold import IDEMPOTENT
from ..limits import Limits
from ..transport import Attempts, SameConnection, Transport, retry_after
from .bases import GroupURL
from .group import Backend, Group
from .model import Server

__all__ = ["DEFAULT_RETRIES", "GroupTransport", "backend_of"]

DEFAULT_RETRIES = 2
"""Retries of a group, each at another server."""

_NEUTRAL = {"other"}  # failures that are not the server's
_BUSY = (429, 503)
_REDIRECTS = frozenset((301, 302, 303, 307, 308))


class GroupTransport(Transport):
    """Sends requests for the group to one of its servers, and all others as `Transport`.

    Attributes:
        group: The servers; set before the first request.
    """

    group: Group

    def use(self, group: Group) -> Group:
        """Use this group, and return it."""
        self.group = group
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
        return _GroupAttempts(self, request, verify, proxies, cert)

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


class _GroupAttempts(Attempts):
    """One request to the group."""

    __slots__ = ("_transport", "_request", "_verify", "_proxies", "_cert", "_group", "_backend", "_tried")

    def __init__(self, transport: GroupTransport, request: Any, verify: Any, proxies: Any, cert: Any) -> None:
        self._connections, self._transport, self._group = transport.connections, transport, transport.group
        self._request, self._verify, self._proxies, self._cert = request, verify, proxies, cert
        self._tried: tuple[Server, ...] = ()

    def attempt(self, method: str, url: str, options: dict[str, Any], limits: Limits, replayable: bool) -> Any:
        group, safe = self._group, replayable and (method in IDEMPOTENT or method.upper() in IDEMPOTENT)
        tried, retry = self._tried, bool(self._tried)
        refused: dict[Server, HTTPCircuitOpen] = {}
        backend = None if limits.login is None else group.backend_with(limits.login.held_host)
        try:
            while True:
                if backend is None:
                    backend = group.choose(self, safe, (*tried, *refused) if refused else tried, retry)
                if backend is not None:
                    try:
                        return self._attempt_at(backend, method, url, options, limits, replayable)
                    except HTTPCircuitOpen as error:
                        group.left(self)
                        group.rest(backend, error.retry_after)
                        refused[backend], backend, retry = error, None, True
                elif tried:
                    tried, retry = (), True  # there is no other: again any of them
                else:
                    raise min(refused.values(), key=lambda error: error.retry_after)
        except BaseException:
            group.left(self)
            raise

    def _attempt_at(
        self, backend: Backend, method: str, url: str, options: dict[str, Any], limits: Limits, replayable: bool
    ) -> Any:
        group, self._backend = self._group, backend
        request = self._request
        self._host = host = group.host(backend, self._transport, request, self._verify, self._proxies, self._cert)
        target, whole = request.url.at(backend.base)
        if url[0] != "/":
            target = urldefragauth(whole)  # as a proxy expects it
        circuit = host.circuit
        was_closed = circuit is None or circuit.state == "closed"
        try:
            if circuit is None:  # as `Attempts.attempt`
                self._hold = hold = self.take(limits)
                response = hold.exchange(method, target, options, limits, replayable)
            else:
                response = super().attempt(method, target, options, limits, replayable)
        except HTTPError as error:
            reason = kind_of(error)
            if reason not in _NEUTRAL and not (limits.over and self._tried):  # else the others have used up the time
                group.failed(backend, self, self._hold.began, reason.replace("_", " "))
            raise
        response._backend, response._whole, status = backend, whole, response.status
        if status < 429 and self._hold.wire.reused:
            group.succeeded(backend, self, self._hold.began)
        else:
            self._note(backend, response, status)
        if not was_closed and circuit is not None and circuit.state == "closed":
            group.recover(backend)
        return response

    def _note(self, backend: Backend, response: Any, status: int) -> None:
        # The time to wait for a connection, and to connect, says nothing about the server.
        wire, began = self._hold.wire, self._hold.began
        if not wire.reused:
            began = max(began, getattr(wire, "connected_at", 0.0))
        if status < 500 and status != 429:
            self._group.succeeded(backend, self, began)
        elif status in _BUSY and "Retry-After" in response.headers:
            self._group.left(self)
            self._group.rest(backend, retry_after(_ANY, response) or 0.0)
        elif status == 429:
            self._group.succeeded(backend, self, began)
        else:
            self._group.failed(backend, self, began, f"status {status}")

    # -- retries ------------------------------------------------------------------

    def after_failure(self, retries: Retry, method: str, url: str, error: HTTPError) -> tuple[Retry, float]:
        further, pause = super().after_failure(retries, method, url, error)
        self._tried = (*self._tried, self._backend)
        if not self._group.allows_retry():
            self.give_up(method, url, error)
        return further, 0.0 if self._group.has_other(self._tried) else pause

    def after_answer(self, retries: Retry, method: str, url: str, response: Any) -> tuple[Retry | None, float]:
        if response.status < 400:
            return None, 0.0
        return super().after_answer(retries, method, url, response)

    def pause_after(self, asked: float | None, further: Retry) -> float | None:
        self._tried = (*self._tried, self._backend)
        pause = 0.0 if self._group.has_other(self._tried) else super().pause_after(asked, further)
        return None if pause is None or not self._group.allows_retry() else pause


_ANY = Retry()
