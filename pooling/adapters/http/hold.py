"""A request's hold on its connection, from before it connects until its body is read or closed."""

from __future__ import annotations

import http.client
import ssl
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import HTTPError, ProtocolError, SSLError
from urllib3.util.proxy import connection_requires_http_tunnel

from ...core.lease import Lease
from .errors import Superseded
from .hosts import Host
from .limits import Limits
from .logins import begins_login, is_challenge, is_remembered
from .metrics import NOT_OPENED
from .sending import as_dict
from .slots import RequestSlot, discard_lease

__all__ = ["IDEMPOTENT", "Hold"]

IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))  # RFC 9110, 9.2.2
_DEATHS = (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Hold:
    """Replaces the connection in an answer of urllib3, and holds the request's slot.

    urllib3 calls ``release`` when the body was read, and ``close`` when it is
    not read to its end. Both are idempotent, and may be called from any thread
    and by a destructor.

    Args:
        host: The host that the connection belongs to.
        slot: The lease of the slot, which refers to the connection's lease.
        on_release: Called when the connection is idle again.

    Attributes:
        wire: The connection.
        began: When the exchange began, by the monotonic clock.
    """

    __slots__ = (
        "_host", "wire", "began", "response", "_slot", "_connection", "_on_release",
        "_logs_in", "_login_continues", "_body_read",
    )  # fmt: skip

    def __init__(self, host: Host, slot: Lease[RequestSlot], on_release: Callable[[], object]) -> None:
        self._host = host
        self._slot: Lease[RequestSlot] | None = slot  # None: the hold has ended
        self._on_release = on_release
        connection = slot.__enter__().connection_lease  # for less than `resource`
        assert connection is not None
        self._connection = connection
        self.wire = connection.__enter__()
        self.response: Callable[[], Any] = _no_response
        self._logs_in = self._login_continues = self._body_read = False

    @property
    def held_host(self) -> Host:
        """The host that the connection belongs to."""
        return self._host

    @property
    def sock(self) -> Any:
        """The socket, while it is held."""
        return None if self._slot is None else self.wire.sock

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of urllib3's connection (``host``, ``is_verified``, ...), while it is held."""
        if name in Hold.__slots__ or self._slot is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.wire, name)

    # -- send ---------------------------------------------------------------------

    def connect(self, limits: Limits) -> None:
        """Connect, and send no request."""
        wire, template = self.wire, self._host.template
        if wire.sock is not None:
            return
        wire.begin(limits)
        wire.timeout = limits.left(limits.asked.connect)
        try:
            if connection_requires_http_tunnel(template.proxy, template.proxy_config, template.scheme):
                template._prepare_proxy(wire)
            else:
                wire.connect()
        except BaseException:
            wire.close()
            self._discard(self._failure_reason())
            raise

    def exchange(self, method: str, url: str, options: dict[str, Any], limits: Limits, replayable: bool) -> Any:
        """Send a request and return its answer, with the body unread; the end of the body ends the hold."""
        wire, headers = self.wire, options["headers"]
        self.began = began = monotonic()
        if type(headers) is CaseInsensitiveDict and not self._host.template.proxy_headers:
            # Names are compared no more, and urllib3 copies and iterates a dict in a tenth of the time.
            options = dict(options, headers=as_dict(headers))
        self._logs_in = begins_login(headers)
        try:
            try:
                response = self._attempt(method, url, options, limits)
            except Exception as error:
                if not self._may_send_again(error, method, replayable):
                    raise
                self._host.metrics.count("resent")
                self.close_dead_socket()
                response = self._attempt(method, url, options, limits)
        except Superseded as error:
            wire.close()
            self._discard(error.reason)
            raise
        except BaseException as error:
            wire.close()
            self._discard("interrupted" if not isinstance(error, Exception) else self._failure_reason())
            self._notify(method, error, monotonic() - began)
            raise
        seconds = monotonic() - began
        self._host.metrics.answered(response.status, seconds, wire.reused)
        self._notify(method, response.status, seconds)
        if self._logs_in and is_challenge(response):
            self._login_continues, limits.login = True, self
        return response

    def _notify(self, method: str, outcome: int | BaseException, seconds: float) -> None:
        host = self._host
        events = host.pool.engine.events
        if events.observers:
            events.notify("responded", method, host.metrics.host, outcome, seconds)

    def _attempt(self, method: str, url: str, options: dict[str, Any], limits: Limits) -> Any:
        wire = self.wire
        wire.begin(limits)
        own = self._host.template.for_hold(self)
        response = own.attempt(method, url, dict(options, timeout=limits.for_attempt()))
        wire.authenticated = wire.authenticated or self._logs_in or is_remembered(response)
        return response

    def _may_send_again(self, error: Exception, method: str, replayable: bool) -> bool:
        """Whether a kept connection proved dead, and the request cannot take effect twice."""
        wire = self.wire
        if not wire.reused or wire.received or not _is_death(error):
            return False
        return not wire.maybe_sent or (replayable and method.upper() in IDEMPOTENT)

    def close_dead_socket(self) -> None:
        """Close a kept socket that proved dead; the next attempt connects again, in the same slot."""
        self.wire.close()
        self._host.metrics.count_dead_socket()

    def _failure_reason(self) -> str:
        return "failed" if self.wire.opened else NOT_OPENED

    # -- login ----------------------------------------------------------------------

    def continue_login(self, host: Host) -> Hold | None:
        """Return a hold for the next message of a login, with the same connection and slot.

        Returns:
            ``None`` if that is not possible. The login has failed then, and its connection is closed.
        """
        slot = self._slot
        if slot is None or host is not self._host or not self._body_read or not self.wire.is_alive():
            self.end_login()
            return None
        self._slot = None
        self._host.metrics.moved(self.wire.sent, self.wire.received)
        return Hold(host, slot, self._on_release)

    def end_login(self) -> None:
        """No message follows: close the connection, once the body was read."""
        self._login_continues = False
        if self._body_read and self._slot is not None:  # else another hold has the connection
            self.wire.close()
            self._discard("authenticated")

    # -- end --------------------------------------------------------------------------

    def release(self) -> None:
        """The body was read: make the connection available for other requests."""
        slot = self._slot
        if slot is None:
            return
        if self.wire.sock is None:
            self._discard("server_closed")
            return
        if self._login_continues:
            self._body_read, self.wire.limits = True, None
            return  # `continue_login` or `end_login` follows
        reason = self.wire.discard_reason()
        if reason is not None:
            self.wire.close()
            self._discard(reason)
            return
        if self._end(slot):
            self._connection.__exit__(None, None, None)
            slot.__exit__(None, None, None)
            self._on_release()

    def close(self) -> None:
        """The body is not read to its end: close the connection, which cannot be reused."""
        if self._slot is None or self._body_read:
            return  # another request uses it by now, or a login continues
        self.wire.close()
        response = self.response()
        if response is None or getattr(response, "_finalizing", False):
            # The response was dropped without a close. The reaper reports where, and cleans up (P8).
            self._slot = None
        else:
            self._discard(self._close_reason())

    def _close_reason(self) -> str:
        """Return ``"failed"`` where urllib3 closes it because of an error, ``"unread"`` where the user does."""
        if not isinstance(sys.exc_info()[1], (HTTPError, OSError, http.client.HTTPException)):
            return "unread"
        self._host.metrics.failed("body")
        return "failed"

    def _discard(self, reason: str) -> None:
        slot = self._slot
        if slot is not None and self._end(slot):
            discard_lease(self._connection, reason)
            slot.__exit__(None, None, None)

    def _end(self, slot: Lease[RequestSlot]) -> bool:
        """End the hold; return ``False`` if another thread has, or if the slot is the parent process's."""
        self._slot = None
        wire = self.wire
        wire.limits = None
        self._host.metrics.moved(wire.sent, wire.received)
        token = slot._token
        held: RequestSlot | None = None if token is None else token.entry.resource
        if held is None:
            return False
        if held.connection_lease is self._connection:
            held.connection_lease = None
        return True


def _no_response() -> object:
    """Stand for the reference to the response before there is one: it was not dropped."""
    return True


def _is_death(error: BaseException | None) -> bool:
    """Whether an error of urllib3 says that the peer has closed the connection."""
    if isinstance(error, (ProtocolError, SSLError)):
        return any(_is_death(part) for part in error.args if isinstance(part, BaseException))
    return isinstance(error, _DEATHS)
