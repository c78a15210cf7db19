"""One request to the group: each attempt goes to a server that the balancer chooses, and tells it how that ended."""

from __future__ import annotations

from typing import Any

from requests.utils import urldefragauth
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from ..errors import HTTPCircuitOpen, kind_of
from ..hold import IDEMPOTENT
from ..limits import Limits
from ..transport import Attempts, Transport, retry_after
from .group import Backend, Group
from .model import Server

__all__ = ["GroupAttempts", "NEUTRAL"]

NEUTRAL = frozenset(("other",))
"""Kinds of failures that are not the server's."""

_BUSY = (429, 503)


class GroupAttempts(Attempts):
    """One request to the group."""

    __slots__ = ("_transport", "_request", "_verify", "_proxies", "_cert", "_group", "_backend", "_tried")

    def __init__(
        self, transport: Transport, group: Group, request: Any, verify: Any, proxies: Any, cert: Any
    ) -> None:
        self._connections, self._transport, self._group = transport.connections, transport, group
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
                        return self.attempt_at(backend, method, url, options, limits, replayable)
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

    def attempt_at(
        self, backend: Backend, method: str, url: str, options: dict[str, Any], limits: Limits, replayable: bool
    ) -> Any:
        """Make one attempt at this server, and note how it ends; return its answer."""
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
            if reason not in NEUTRAL and not (limits.over and self._tried):  # else the others have used up the time
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
