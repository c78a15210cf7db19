"""A request's hold on its connection, from before it connects until the body is read or closed."""

from __future__ import annotations

import http.client
import ssl
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from urllib3.exceptions import HTTPError, ProtocolError, SSLError
from urllib3.util.proxy import connection_requires_http_tunnel

from ...core.lease import Lease
from .hosts import Host
from .limits import Limits
from .logins import begins_login, is_challenge, is_remembered
from .metrics import NOT_OPENED
from .wire import Wire

__all__ = ["Hold", "RequestSlot"]

_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))  # RFC 9110, 9.2.2
_DEATHS = (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class RequestSlot:
    """One of the requests that may be under way at once, over all hosts.

    It is what the `HTTPPool` itself lends, to each request. When the lease is
    lost its close ends what was held with it.
    """

    __slots__ = ("line",)

    def __init__(self) -> None:
        self.line: Lease[Wire] | None = None

    def give_up(self, reason: str) -> None:
        """Close the connection that is held, if any."""
        line, self.line = self.line, None
        if line is not None:
            _give_up(line, reason)


def _give_up(line: Lease[Wire], reason: str) -> None:
    key, line._token = line._token, None
    if key is not None:
        line._pool._checkin.run(key, None, reason)


class Hold:
    """What an answer has in place of its connection.

    ``release`` and ``close`` are what urllib3 does to a connection when the
    body was read, or is given up. Both may be called again and again, from
    any thread and by a destructor.
    """

    __slots__ = ("_host", "wire", "response", "_place", "_line", "_done", "_log_in", "_goes_on", "_body_read")

    def __init__(self, host: Host, place: Lease[RequestSlot], done: Callable[[], object]) -> None:
        self._host = host
        self._place: Lease[RequestSlot] | None = place
        self._done = done
        line = place.resource.line
        assert line is not None
        self._line = line
        self.wire = line.resource
        self.response: Callable[[], Any] = _nobody
        self._log_in = self._goes_on = self._body_read = False

    @property
    def sock(self) -> Any:
        """The socket, as long as it is held."""
        return None if self._place is None else self.wire.sock

    def __getattr__(self, name: str) -> Any:
        """Show what urllib3's connection shows (``host``, ``is_verified``, ...), as long as it is held."""
        if name in Hold.__slots__ or self._place is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.wire, name)

    def exchange(self, method: str, url: str, options: dict[str, Any], limits: Limits, replayable: bool) -> Any:
        """Send a request and return the head of its answer; the body ends the hold."""
        wire, began = self.wire, monotonic()
        self._log_in = begins_login(options["headers"])
        try:
            try:
                response = self._attempt(method, url, options, limits)
            except Exception as error:
                if not self._may_send_again(error, method, replayable):
                    raise
                self._host.metrics.count("resent")
                self.hang_up()
                response = self._attempt(method, url, options, limits)
        except BaseException as error:
            wire.close()
            self._end("interrupted" if not isinstance(error, Exception) else self._failed())
            raise
        self._host.metrics.answered(response.status, monotonic() - began, wire.reused)
        if self._log_in and is_challenge(response):
            self._goes_on, limits.login = True, self
        return response

    def _attempt(self, method: str, url: str, options: dict[str, Any], limits: Limits) -> Any:
        wire = self.wire
        wire.begin(limits)
        own = self._host.template.for_hold(self)
        response = own.attempt(method, url, dict(options, timeout=limits.for_attempt()))
        wire.personal = wire.personal or self._log_in or is_remembered(response)
        return response

    def go_on(self, host: Host) -> Hold | None:
        """Return a hold for the next message of a login, on the same connection and in the same place.

        ``None``: that cannot be, and this one is over.
        """
        place = self._place
        if place is None or host is not self._host or not self._body_read or not self.wire.is_alive():
            self.end_login()
            return None
        self._place = None
        self._host.metrics.moved(self.wire.sent, self.wire.received)
        return Hold(host, place, self._done)

    def end_login(self) -> None:
        """No message follows: close the connection, once the body was read."""
        self._goes_on = False
        if self._body_read and self._place is not None:  # else another hold has the connection
            self.wire.close()
            self._end("authenticated")

    def _may_send_again(self, error: Exception, method: str, replayable: bool) -> bool:
        """Whether a kept connection turned out to be dead, and nothing can happen twice."""
        wire = self.wire
        if not wire.reused or wire.received or not _is_death(error):
            return False
        return not wire.tried or (replayable and method.upper() in _IDEMPOTENT)

    def hang_up(self) -> None:
        """Close a kept connection that has died; the next attempt connects anew, in the same place."""
        self.wire.close()
        self._host.metrics.count_dead_socket()

    def _failed(self) -> str:
        return "failed" if self.wire.opened else NOT_OPENED

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
            self._end(self._failed())
            raise

    def release(self) -> None:
        """The body was read: the connection may serve the next one."""
        place = self._place
        if place is None:
            return
        if self.wire.sock is None:
            self._end("server_closed")
            return
        if self._goes_on:
            self._body_read, self.wire.limits = True, None
            return  # `go_on` or `end_login` follows
        reason = self.wire.why_not_again()
        if reason is not None:
            self.wire.close()
            self._end(reason)
            return
        if self._leave(place):
            self._line.__exit__(None, None, None)
            place.__exit__(None, None, None)
            self._done()

    def close(self) -> None:
        """The body is given up: close the connection, which would have to be read to its end."""
        if self._place is None or self._body_read:
            return  # it serves another request by now, or a login goes on
        self.wire.close()
        response = self.response()
        if response is None or getattr(response, "_finalizing", False):
            # Nobody closed it, it was forgotten: the reaper says where, and cleans up (P8).
            self._place = None
        else:
            self._end(self._why())

    def _why(self) -> str:
        """Whether it is urllib3 that gives it up, amid an error, or the user."""
        if not isinstance(sys.exc_info()[1], (HTTPError, OSError, http.client.HTTPException)):
            return "unread"
        self._host.metrics.failed("body")
        return "failed"

    def _end(self, reason: str) -> None:
        place = self._place
        if place is None:
            return
        if self._leave(place):
            _give_up(self._line, reason)
            place.__exit__(None, None, None)

    def _leave(self, place: Lease[RequestSlot]) -> bool:
        """Take leave of the place; ``False`` if another thread did, or if it is the parent process's."""
        self._place = None
        wire = self.wire
        wire.limits = None
        self._host.metrics.moved(wire.sent, wire.received)
        key = place._token
        held: RequestSlot | None = None if key is None else key.entry.resource
        if held is None:
            return False
        if held.line is self._line:
            held.line = None
        return True


def _nobody() -> object:
    """Before there is an answer nobody can have forgotten it."""
    return object()


def _is_death(error: BaseException | None) -> bool:
    """Whether an error of urllib3's says that the other side has gone."""
    if isinstance(error, (ProtocolError, SSLError)):
        return any(_is_death(part) for part in error.args if isinstance(part, BaseException))
    return isinstance(error, _DEATHS)


