"""Where requests meets the pool: the transport adapter that sessions mount."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NoReturn

import requests
import requests.adapters
from requests import exceptions
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

from ...errors import PoolError
from .errors import DeadlineExceeded, WriteTimeout, refusal
from .hold import Hold
from .hosts import Host
from .limits import HTTPTimeout, Limits

if TYPE_CHECKING:
    from .pool import HTTPPool

__all__ = ["Transport", "told"]


class Transport(requests.adapters.HTTPAdapter):
    """Sends requests over the sockets of a pool; mount it on any session.

    It belongs to the pool: to close it, or a session that it is mounted on,
    closes nobody's sockets. A session that is not the pool's own says itself
    what it makes of the environment, and sends each redirect as a request of
    its own: a ``total`` begins anew there. Those that `HTTPPool.session` makes
    have one for all.
    """

    def __init__(self, pool: HTTPPool, timeout: HTTPTimeout, retry: Retry) -> None:
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
        try:
            return super().send(request, stream, limits, verify, cert, proxies)  # type: ignore[arg-type]
        except exceptions.RequestException as error:
            better = told(error, limits)
            if better is error:
                raise
            raise better from better.__cause__ or error

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        return _Call(self._pool, self._pool._host(request, verify, proxies, cert))

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: with ``ca_certs`` set, urllib3 reads the file for each connection."""

    def close(self) -> None:
        """Do nothing: the sockets are the pool's."""


def told(error: exceptions.RequestException, limits: Limits) -> exceptions.RequestException:
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


class _Call:
    """One request on its way through: takes its place, and tries again where that is right."""

    __slots__ = ("_pool", "_host")

    def __init__(self, pool: HTTPPool, host: Host) -> None:
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
                further, pause = self._after_answer(retries, method, url, response)
                if further is None or not (replayable and timeout.allows(pause)):
                    response.retries = retries
                    return response
                retries = further
                response.drain_conn()
            self._host.metrics.count("retries")
            if pause:
                time.sleep(pause)

    def _take(self, limits: Limits) -> Hold:
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
        if not retries.is_retry(method, response.status, "Retry-After" in response.headers):
            return None, 0.0
        try:
            further = retries.increment(method, url, response=response, _pool=self._host.template)
        except MaxRetryError:
            if not retries.raise_on_status:
                return None, 0.0
            response.drain_conn()
            raise
        asked = further.get_retry_after(response) if further.respect_retry_after_header else None
        if asked and asked > further.backoff_max:
            return None, 0.0  # how long our thread sleeps is for us to say, and sooner is not wanted
        return further, asked or further.get_backoff_time()

    def _give_up(self, method: str, url: str, error: HTTPError) -> NoReturn:
        self._after_failure(_NO_MORE, method, url, error)
        raise error


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
