"""The transport adapter of a pool, which sessions mount, and its retries."""

from __future__ import annotations

import logging
import time
import weakref
from typing import Any, NoReturn

import requests
import requests.adapters
from requests import exceptions
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry
from urllib3.util.request import set_file_position

from ..._fields import fields
from ...errors import CircuitOpen, LeaseError, PoolError
from .bodies import cut_off, is_unread, read_ahead
from .connections import Connections
from .errors import DeadlineExceeded, WriteTimeout, kind_of, refusal
from .hold import Hold
from .hosts import Host
from .limits import HTTPTimeout, Limits
from .sending import build_response
from .unpooled import Unpooled

__all__ = ["Attempts", "SameConnection", "Transport", "retry_after", "translate_error"]

logger = logging.getLogger("pooling")


class Transport(requests.adapters.HTTPAdapter):
    """Sends requests over the sockets of a pool; mount it on any session.

    Closing it, or a session that it is mounted on, closes no socket: the pool
    owns them. A session that the pool has not made reads the environment by
    itself, and sends each redirect as a new request, for which the ``total``
    timeout begins again. For sessions of `HTTPPool.session` it covers all.
    """

    def __init__(
        self, connections: Connections, timeout: HTTPTimeout, retry: Retry, pooled: bool
    ) -> None:
        super().__init__()
        self.max_retries = retry
        self.connections = connections
        self._timeout = timeout
        self.unpooled = Unpooled(connections, timeout, retry)
        self._pooled = pooled

    @property
    def mounted(self) -> requests.adapters.BaseAdapter:
        """The adapter that the pool's own sessions mount: this one, unless pooling is off."""
        return self if self._pooled else self.unpooled

    def unpooled_url(self, url: str) -> str:
        """Return what to request instead of a URL on a socket that is not the pool's."""
        return url

    def limits(self, timeout: Any) -> Limits:
        """Return the time limits of a request that begins now."""
        if isinstance(timeout, Limits):
            return timeout  # of the request that this one is a redirect of
        return Limits(HTTPTimeout.of(timeout, self._timeout))

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None,
        verify: Any = True, cert: Any = None, proxies: Any = None,
    ) -> requests.Response:  # fmt: skip
        limits = self.limits(timeout)
        if hasattr(HTTPConnectionPool.ConnectionCls, "cassette"):
            # vcrpy records or replays, which works only with connections that urllib3 makes itself.
            return self.unpooled.send(request, stream, limits, verify=verify, cert=cert, proxies=proxies)
        try:
            response = super().send(request, stream, limits, verify, cert, proxies)  # type: ignore[arg-type]
            limits.answers.append((weakref.ref(response), stream))
            if limits.login is not None:
                response.connection = SameConnection(self, limits.login)  # type: ignore[assignment]
            if limits is not timeout:  # the session is not the pool's own
                limits.login = None  # only `response.connection` can continue the login
                if not stream:
                    self.connections.calls.remember(response)
            return response
        except exceptions.RequestException as error:
            translated = translate_error(error, limits)
            breaker = self.connections.settings.breaker
            if isinstance(translated, CircuitOpen) and breaker is not None and breaker.fallback is not None:
                return breaker.fallback(request, translated)  # type: ignore[no-any-return]
            if translated is error:
                raise
            raise translated from translated.__cause__ or error

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        return Attempts(self.connections, self.connections.host_of(self, request, verify, proxies, cert))

    def request_url(self, request: Any, proxies: Any) -> str:
        url = str(request.path_url)
        if proxies or url.startswith("//"):  # what becomes of two slashes depends on the version of requests
            return super().request_url(request, proxies)
        return url

    def end_answer(self, response: requests.Response | None, streamed: bool, error: BaseException) -> None:
        """Free the connection of an answer whose request raises, in a hook for example.

        What requests would have read is read before, so that handlers of the
        error can use the answer.
        """
        if response is None or not is_unread(response):
            return
        if isinstance(error, Exception):
            read_ahead(response, streamed)
        if is_unread(response):
            name = self.connections.name
            cut_off(response, LeaseError(f"pool {name!r}: the request failed before its response was read"))

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        try:
            response = build_response(self, req, resp)
            return super().build_response(req, resp) if response is None else response  # one is false from 400 on
        except BaseException:
            resp.close()
            raise

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: with ``ca_certs`` set, urllib3 would read the file for each connection."""

    def close(self) -> None:
        """Do nothing: the sockets are the pool's."""


def translate_error(error: exceptions.RequestException, limits: Limits) -> exceptions.RequestException:
    """Return the error to raise: one that says so, where the pool or the total timeout caused it."""
    if isinstance(error, PoolError):
        return error
    inner = error.args[0] if error.args else None
    if isinstance(inner, PoolError) and isinstance(inner, exceptions.RequestException):
        inner.request = error.request
        return inner
    if limits.over and isinstance(error, (exceptions.ConnectionError, exceptions.Timeout)):
        return DeadlineExceeded(
            f"the request took longer than its total of {limits.asked.total:g} s", request=error.request
        )
    parts: tuple[Any, ...] = getattr(inner, "args", ())
    if type(error) is exceptions.ConnectionError and len(parts) > 1 and isinstance(parts[1], TimeoutError):
        return WriteTimeout(*error.args, request=error.request)
    return error


class SameConnection(requests.adapters.BaseAdapter):
    """Sends the next message of a login on the same connection; sessions that the pool has not made need it."""

    def __init__(self, transport: Transport, login: Hold | None) -> None:
        super().__init__()
        self._transport, self._login = transport, login

    def send(  # type: ignore[override]  # other arguments are passed on
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, **kwargs: Any
    ) -> requests.Response:
        limits = self._transport.limits(timeout)
        limits.login = self._login
        return self._transport.send(request, stream, limits, **kwargs)

    def close(self) -> None:
        """Do nothing, as `Transport.close`."""


class Attempts:
    """One request: takes a connection for each attempt, and retries where the policy allows it."""

    __slots__ = ("_connections", "_host", "_hold")

    def __init__(self, connections: Connections, host: Host) -> None:
        self._connections, self._host = connections, host

    def urlopen(
        self, method: str, url: str, body: Any = None, headers: Any = None, retries: Any = None,
        timeout: Any = None, chunked: bool = False, decode_content: bool = True, **others: Any,
    ) -> Any:  # fmt: skip
        """Do for requests what ``urllib3.HTTPConnectionPool.urlopen`` does.

        No connection is held during the pause between two attempts.
        """
        position = set_file_position(body, None)
        position = position if isinstance(position, int) else None
        replayable = body is None or isinstance(body, (bytes, str)) or position is not None
        options = {
            "body": body, "body_pos": position, "headers": headers,
            "chunked": chunked, "decode_content": decode_content,
        }  # fmt: skip
        while True:
            try:
                response = self.attempt(method, url, options, timeout, replayable)
            except HTTPError as error:
                self._host.metrics.failed(kind_of(error))
                retries, pause = self.after_failure(retries, method, url, error)
                if not (replayable and timeout.allows(pause)):
                    self.give_up(method, url, error)
            else:
                try:
                    further, pause = self.after_answer(retries, method, url, response)
                except BaseException:
                    response.close()
                    raise
                if further is None or not (replayable and timeout.allows(pause)):
                    response.retries = retries
                    return response
                retries = further
                response.drain_conn()
            self._host.metrics.count("retries")
            if pause:
                time.sleep(pause)

    def attempt(self, method: str, url: str, options: dict[str, Any], limits: Limits, replayable: bool) -> Any:
        """Make one attempt, unless the host's circuit is open."""
        circuit = self._host.circuit
        if circuit is None:
            self._hold = self.take(limits)
            return self._hold.exchange(method, url, options, limits, replayable)
        try:
            call = circuit.enter()
        except PoolError as error:
            raise refusal(error) from None
        try:
            self._hold = self.take(limits)
            response = self._hold.exchange(method, url, options, limits, replayable)
            if response.status in (502, 504) or (response.status == 503 and "Retry-After" not in response.headers):
                circuit.failed(call, f"status {response.status}")
            else:
                circuit.succeeded(call)
            return response
        except HTTPError as error:
            circuit.failed(call, kind_of(error).replace("_", " "))
            raise
        finally:
            circuit.left(call)

    def take(self, limits: Limits) -> Hold:
        login, limits.login = limits.login, None
        hold: Hold | None = None if login is None else login.continue_login(self._host)
        if hold is not None:
            return hold
        self._connections.calls.read_answers()
        try:
            return self._connections.take(self._host, limits)
        except PoolError as error:
            raise refusal(error) from error.__cause__

    def after_failure(self, retries: Retry, method: str, url: str, error: HTTPError) -> tuple[Retry, float]:
        """Return the remaining retries, and the pause before the next one; raise if none remains."""
        retries = retries.increment(
            method, url, error=error, _pool=self._host.template, _stacktrace=error.__traceback__
        )
        return retries, retries.get_backoff_time()

    def after_answer(self, retries: Retry, method: str, url: str, response: Any) -> tuple[Retry | None, float]:
        """Return the same for an answer that calls for a retry; ``None`` for one that does not."""
        asked = retry_after(retries, response)
        if not retries.is_retry(method, response.status, asked is not None):
            return None, 0.0
        try:
            further = retries.increment(method, url, response=response, _pool=self._host.template)
        except MaxRetryError:
            if not retries.raise_on_status:
                return None, 0.0
            response.drain_conn()
            raise
        pause = self.pause_after(asked, further)
        return (None, 0.0) if pause is None else (further, pause)

    def pause_after(self, asked: float | None, further: Retry) -> float | None:
        """Return the pause after an answer, for which the server may have asked; ``None`` for no retry."""
        if asked and asked > further.backoff_max:
            return None  # a server must not make our thread sleep longer, and does not want a retry sooner
        return asked or further.get_backoff_time()

    def give_up(self, method: str, url: str, error: HTTPError) -> NoReturn:
        self.after_failure(_NO_RETRIES, method, url, error)
        raise error


def retry_after(retries: Retry, response: Any) -> float | None:
    """Return the seconds that a server asks to wait; ``None`` if it does not, or if they cannot be parsed."""
    if not retries.respect_retry_after_header or "Retry-After" not in response.headers:
        return None
    try:
        return retries.get_retry_after(response)
    except Exception:  # depending on the text: InvalidHeader, ValueError, OverflowError, ...
        text = response.headers["Retry-After"]
        logger.debug("cannot parse Retry-After: %.100r", text, extra=fields("bad_retry_after"))
        return None


_NO_RETRIES = Retry(0, read=False)  # requests' own default
