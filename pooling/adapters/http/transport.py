"""Where requests meets the pool: the transport adapter that sessions mount."""

from __future__ import annotations

import logging
import time
import weakref
from typing import Any, NoReturn

import requests
import requests.adapters
from requests import exceptions
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import Retry
from urllib3.util.request import set_file_position

from ...errors import LeaseError, PoolError
from .bodies import cut_off, is_unread, read_ahead
from .errors import DeadlineExceeded, WriteTimeout, refusal
from .hold import Hold
from .hosts import Host
from .interfaces import Client
from .limits import HTTPTimeout, Limits

__all__ = ["SameConnection", "Transport", "translate_error"]

logger = logging.getLogger("pooling")


class Transport(requests.adapters.HTTPAdapter):
    """Sends requests over the sockets of a pool; mount it on any session.

    It belongs to the pool: to close it, or a session that it is mounted on,
    closes nobody's sockets. A session that is not the pool's own says itself
    what it makes of the environment, and sends each redirect as a request of
    its own: a ``total`` begins anew there. Those that `HTTPPool.session` makes
    have one for all.
    """

    def __init__(self, pool: Client, timeout: HTTPTimeout, retry: Retry) -> None:
        super().__init__()
        self.max_retries = retry
        self._pool = pool
        self._timeout = timeout

    def limits(self, timeout: Any) -> Limits:
        """Return the time limits of a request that begins now."""
        if isinstance(timeout, Limits):
            return timeout  # it began before: this is a redirect of it
        return Limits(HTTPTimeout.of(timeout, self._timeout))

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None,
        verify: Any = True, cert: Any = None, proxies: Any = None,
    ) -> requests.Response:  # fmt: skip
        limits = self.limits(timeout)
        if hasattr(HTTPConnectionPool.ConnectionCls, "cassette"):
            # vcrpy records or replays: it knows connections that urllib3 makes itself, and only them.
            send = self._pool._unpooled.send
            unpooled: requests.Response = send(request, stream, limits, verify=verify, cert=cert, proxies=proxies)
            return unpooled
        try:
            response = super().send(request, stream, limits, verify, cert, proxies)  # type: ignore[arg-type]
            limits.answers.append((weakref.ref(response), stream))
            if limits.login is not None:
                response.connection = SameConnection(self, limits.login)  # type: ignore[assignment]
            if limits is not timeout:  # not our session
                limits.login = None  # its answer alone keeps a login
                if not stream:
                    self._pool._remember(response)
            return response
        except exceptions.RequestException as error:
            better = translate_error(error, limits)
            if better is error:
                raise
            raise better from better.__cause__ or error

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        return _Call(self._pool, self._pool._host(request, verify, proxies, cert))

    def let_go(self, response: requests.Response | None, streamed: bool, error: BaseException) -> None:
        """End an answer whose request raises, in a hook for instance: its place is not to wait for the collector.

        Handlers of the error may read the answer: what requests would have read is read.
        """
        if response is None or not is_unread(response):
            return
        if isinstance(error, Exception):
            read_ahead(response, streamed)
        if is_unread(response):
            cut_off(response, LeaseError(f"pool {self._pool.name!r}: the request failed before its response was read"))

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        try:
            return super().build_response(req, resp)
        except BaseException:
            resp.close()
            raise

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: with ``ca_certs`` set, urllib3 reads the file for each connection."""

    def close(self) -> None:
        """Do nothing: the sockets are the pool's."""


def translate_error(error: exceptions.RequestException, limits: Limits) -> exceptions.RequestException:
    """Return the error to raise: what the pool or the deadline had to do with it is said."""
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
    """Sends the next message of a login over the connection of the last one, also for sessions not ours."""

    def __init__(self, transport: Transport, login: Hold) -> None:
        super().__init__()
        self._transport, self._login = transport, login

    def send(  # type: ignore[override]  # what is not named here is handed on
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, **kwargs: Any
    ) -> requests.Response:
        limits = self._transport.limits(timeout)
        limits.login = self._login
        return self._transport.send(request, stream, limits, **kwargs)

    def close(self) -> None:
        """Do nothing, as `Transport.close`."""


class _Call:
    """One request on its way through: takes its place, and tries again where that is right."""

    __slots__ = ("_pool", "_host")

    def __init__(self, pool: Client, host: Host) -> None:
        self._pool, self._host = pool, host

    def urlopen(
        self, method: str, url: str, body: Any = None, headers: Any = None, retries: Any = None,
        timeout: Any = None, chunked: bool = False, decode_content: bool = True, **others: Any,
    ) -> Any:  # fmt: skip
        """Do for requests what ``urllib3.HTTPConnectionPool.urlopen`` does.

        Each attempt takes a place of its own, so a pause between two holds nothing.
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
                response = self._take(timeout).exchange(method, url, options, timeout, replayable)
            except HTTPError as error:
                self._host.metrics.failed(kind_of(error))
                retries, pause = self._after_failure(retries, method, url, error)
                if not (replayable and timeout.allows(pause)):
                    self._give_up(method, url, error)
            else:
                try:
                    further, pause = self._after_answer(retries, method, url, response)
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

    def _take(self, limits: Limits) -> Hold:
        login, limits.login = limits.login, None
        hold = None if login is None else login.go_on(self._host)
        if hold is not None:
            return hold  # type: ignore[no-any-return]
        self._pool._read_outer()
        try:
            return self._pool._take(self._host, limits)
        except PoolError as error:
            raise refusal(error) from error.__cause__

    def _after_failure(self, retries: Retry, method: str, url: str, error: HTTPError) -> tuple[Retry, float]:
        """Return what is left of the retries, and the pause before the next; raise if there is none."""
        retries = retries.increment(
            method, url, error=error, _pool=self._host.template, _stacktrace=error.__traceback__
        )
        return retries, retries.get_backoff_time()

    def _after_answer(self, retries: Retry, method: str, url: str, response: Any) -> tuple[Retry | None, float]:
        """Return the same for an answer that is to be tried again; ``None`` for one that is not."""
        asked = _retry_after(retries, response)
        if not retries.is_retry(method, response.status, asked is not None):
            return None, 0.0
        try:
            further = retries.increment(method, url, response=response, _pool=self._host.template)
        except MaxRetryError:
            if not retries.raise_on_status:
                return None, 0.0
            response.drain_conn()
            raise
        if asked and asked > further.backoff_max:
            return None, 0.0  # how long our thread sleeps is for us to say, and sooner is not wanted
        return further, asked or further.get_backoff_time()

    def _give_up(self, method: str, url: str, error: HTTPError) -> NoReturn:
        self._after_failure(_NO_MORE, method, url, error)
        raise error


def _retry_after(retries: Retry, response: Any) -> float | None:
    """Return the seconds that a server asks to wait; what cannot be read counts as nothing said."""
    if not retries.respect_retry_after_header or "Retry-After" not in response.headers:
        return None
    try:
        return retries.get_retry_after(response)
    except Exception:  # by the text: InvalidHeader, ValueError, OverflowError, ...
        logger.debug("an unreadable Retry-After: %.100r", response.headers["Retry-After"])
        return None


_NO_MORE = Retry(0, read=False)  # requests' own default

_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (ProxyError, "proxy"),
    (SSLError, "tls"),
    (NameResolutionError, "name"),
    (NewConnectionError, "connect"),
    (ConnectTimeoutError, "connect_timeout"),
    (ReadTimeoutError, "read_timeout"),
    (ProtocolError, "connection"),
)


def kind_of(error: HTTPError) -> str:
    """Return a word for an error of urllib3's, one of a few."""
    return next((word for kind, word in _KINDS if isinstance(error, kind)), "other")
