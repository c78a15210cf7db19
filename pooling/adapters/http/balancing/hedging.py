"""Hedging: a request that its server has not begun to answer is sent to another one, and the first answer wins.

There is no second thread. The one that waits for the first byte of the answer
sends the request again meanwhile, and then waits for both:

1.  `HedgedAttempts` gives the request a `Hedge`, whose `read` waits for
    ``hedge_after`` seconds. If nothing came, it calls back, and the request is
    sent to the `Second` server.
2.  Where that attempt would wait for its own first byte, `Race.read` waits for
    the first byte of either.
3.  The attempt that lost ends with `Superseded`, which closes its connection.
    So the frames of the second attempt lie above those of the first one.

A server that fails while the other may still answer has lost as well. Only if
both fail, the error of the first is raised, as without hedging.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import select
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

from requests.utils import urldefragauth
from urllib3.exceptions import HTTPError

from ....errors import PoolError
from ..connections import Connections
from ..errors import Superseded, kind_of
from ..hold import IDEMPOTENT, Hold
from ..hosts import Host
from ..limits import Limits
from ..logins import begins_login
from ..transport import Attempts
from .attempts import NEUTRAL, GroupAttempts
from .group import Backend

__all__ = ["HedgedAttempts", "has_place", "receive", "wait_for"]

_MOST_BODY = 16384  # bytes, which a socket's buffer takes at once: meanwhile, the first server may answer
_LONGEST = 86400.0  # seconds of one wait: poll() takes a number of milliseconds that is an int in C
_NOT_OF_SECOND = NEUTRAL | {"connect_timeout"}  # it has less time to connect than any other request
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Hedge:
    """What may happen once while a request waits for the first byte of its answer.

    Args:
        after: How many seconds it waits before it is sent to another server.
        send: Sends it there, with the limits of the request; returns whether
            that server has answered first. Raises nothing that the server caused.
    """

    __slots__ = ("_after", "_send")

    def __init__(self, after: float, send: Callable[[Race, Limits], bool]) -> None:
        self._after, self._send = min(after, _LONGEST), send

    def read(self, limits: Limits, sock: Any, buffer: Any) -> int:
        """Read the first bytes of the answer into a buffer; return how many, 0 for the end of the stream.

        Raises:
            Superseded: The other server has answered.
            OSError: This one has not, as from the socket.
        """
        limits.hedge = None
        timeout, began = sock.gettimeout(), monotonic()
        if not isinstance(sock, socket.socket) or (timeout is not None and timeout <= self._after):
            return sock.recv_into(buffer)  # type: ignore[no-any-return]  # a TLS socket of another kind may block
        sock.settimeout(self._after)
        try:
            return sock.recv_into(buffer)
        except TimeoutError:
            pass
        finally:
            sock.settimeout(timeout)
        race = Race(sock, buffer, math.inf if timeout is None else began + timeout)
        if self._send(race, limits):
            raise Superseded("hedged" if race.outcome is None else "failed")
        try:
            return race.first()
        finally:
            sock.settimeout(timeout)


class Race:
    """Two servers that may answer.

    Args:
        sock: The connection to the first server.
        buffer: For the first bytes of its answer.
        deadline: Until when it may answer, by the monotonic clock. The other has no more time.

    Attributes:
        outcome: What came of the first one: bytes that it has sent, 0 if it has closed the connection, or the error;
            ``None`` while it may answer.
    """

    __slots__ = ("_sock", "_into", "_deadline", "outcome")

    def __init__(self, sock: socket.socket, buffer: Any, deadline: float) -> None:
        self._sock, self._into, self._deadline = sock, buffer, deadline
        self.outcome: int | OSError | None = None

    def read(self, limits: Limits, sock: Any, buffer: Any) -> int:
        """Read the first bytes from the second server into a buffer, as `Hedge.read` does from the first one.

        Raises:
            Superseded: The first one was faster, or the time is over.
            OSError: The second one has failed.
        """
        limits.hedge = None
        if not isinstance(sock, socket.socket):
            return sock.recv_into(buffer)  # type: ignore[no-any-return]
        timeout = sock.gettimeout()
        self._sock.settimeout(0.0)
        sock.settimeout(0.0)
        try:
            while True:
                if self.outcome is None:
                    self._look_at_first()
                if isinstance(self.outcome, int) and self.outcome > 0:
                    raise Superseded("hedged")
                count = receive(sock, buffer)
                if count is not None:
                    return count
                if not wait_for([sock] if self.outcome is not None else [sock, self._sock], self._deadline):
                    raise Superseded("hedged")
        finally:
            sock.settimeout(timeout)

    def _look_at_first(self) -> None:
        try:
            self.outcome = receive(self._sock, self._into)
        except OSError as error:
            self.outcome = error.with_traceback(None)  # which would refer to this object

    def first(self) -> int:
        """Return what came of the first one; wait for it, if it may still answer."""
        outcome, self.outcome = self.outcome, None
        if isinstance(outcome, OSError):
            try:
                raise outcome
            finally:
                del outcome
        if outcome is not None:
            return outcome
        self._sock.settimeout(0.0)
        while True:
            count = receive(self._sock, self._into)
            if count is not None:
                return count
            if not wait_for([self._sock], self._deadline):
                raise TimeoutError("timed out")


class Second(Attempts):
    """A request at the second server, which takes it at once or not at all.

    Attributes:
        backend: The server.
        host: Its sockets.
        whole: The URL of the request there.
        response: The answer of urllib3, when there is one.
    """

    __slots__ = ("backend", "whole", "response")

    def __init__(self, connections: Connections, backend: Backend, host: Host, whole: str) -> None:
        super().__init__(connections, host)
        self.backend, self.whole = backend, whole
        self.response: Any = None

    @property
    def host(self) -> Host:
        """The sockets of the server."""
        return self._host

    @property
    def hold(self) -> Hold:
        """The hold on the connection, once there was a place for the request."""
        return self._hold

    def take(self, limits: Limits) -> Hold:
        hold = self._connections.take(self._host, limits)
        self._host.metrics.count("hedges")
        return hold

    def close(self) -> None:
        """Close the answer, which nobody reads."""
        if self.response is not None:
            self.response.close()


class HedgedAttempts(GroupAttempts):
    """One request to a group with ``hedge_after``."""

    __slots__ = ("_second",)

    def attempt(self, method: str, url: str, options: dict[str, Any], limits: Limits, replayable: bool) -> Any:
        self._second: Second | None = None
        limits.hedge, after = None, self._group.policy.hedge_after
        safe = replayable and method.upper() in IDEMPOTENT and may_hedge(options)
        if safe and after is not None and not self._tried and limits.login is None:
            limits.hedge = Hedge(after, functools.partial(self._send_to_other, after, method, url, options))
        try:
            return super().attempt(method, url, options, limits, replayable)
        except BaseException:
            limits.hedge = None
            if self._second is not None:
                self._second.close()
            raise

    def attempt_at(
        self, backend: Backend, method: str, url: str, options: dict[str, Any], limits: Limits, replayable: bool
    ) -> Any:
        try:
            return super().attempt_at(backend, method, url, options, limits, replayable)
        except Superseded as lost:
            return self._change_to_second(lost)

    def _send_to_other(
        self, after: float, method: str, url: str, options: dict[str, Any], race: Race, limits: Limits
    ) -> bool:
        """Send the request to another server if that is possible at once; return whether it has answered first."""
        group, request, backend = self._group, self._request, self._group.other(self._backend)
        if backend is None:
            return False
        host = group.host(backend, self._transport, request, self._verify, self._proxies, self._cert)
        if not has_place(self._connections, backend, host) or not group.allows_retry():
            return False
        target, whole = request.url.at(backend.base)
        if url[0] != "/":
            target = urldefragauth(whole)  # as a proxy expects it
        self._second = second = Second(self._connections, backend, host, whole)
        limits = limits.hastened(after)
        limits.hedge = race
        try:
            second.response = second.attempt(method, target, options, limits, False)
            return True
        except Superseded:
            group.slow(backend, second.hold.began)
        except HTTPError as error:
            reason = kind_of(error)
            if reason not in _NOT_OF_SECOND:
                host.metrics.failed(reason)
                group.failed(backend, self, second.hold.began, reason.replace("_", " "))
        except (PoolError, OSError):
            pass  # another request has taken the place, or the time is over
        return False

    def _change_to_second(self, lost: Superseded) -> Any:
        """Let the second server be the one that this attempt was made at; return its answer."""
        group, first, second = self._group, self._backend, self._second
        assert second is not None
        if lost.reason == "hedged":
            group.slow(first, self._hold.began)
        else:
            self._host.metrics.failed("connection")
            group.failed(first, self, self._hold.began, "connection")
        group.left(self)
        second.host.metrics.count("hedges_won")
        self._tried = (first,)
        self._backend, self._host, self._hold = second.backend, second.host, second.hold
        response = second.response
        response._backend, response._whole = second.backend, second.whole
        self._note(second.backend, response, response.status)
        return response


def may_hedge(options: dict[str, Any]) -> bool:
    """Whether a request that may be repeated can be sent to two servers.

    Its body has to be sent without waiting for the server, and it must not log
    in: the messages of a login need the same connection.
    """
    body = options["body"]
    if body is not None and (not isinstance(body, (bytes, str)) or len(body) > _MOST_BODY):
        return False
    return not begins_login(options["headers"])


def has_place(connections: Connections, backend: Backend, host: Host) -> bool:
    """Whether a server can be sent one more request at once, as far as known without trying.

    A name is not looked up for it, because a lookup cannot be interrupted: then
    it needs an open socket. So does a proxy.
    """
    if host.pool.engine.state.exhausted or connections.slots.engine.state.exhausted:
        return False
    if host.circuit is not None and host.circuit.state != "closed":
        return False
    return host.idle > 0 or (
        host.template.proxy is None and (backend.address is not None or _is_address(host.template.host))
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def receive(sock: socket.socket, buffer: Any) -> int | None:
    """Read from a socket that does not block; return ``None`` if nothing has arrived but messages of TLS."""
    try:
        return sock.recv_into(buffer)
    except _NOT_YET:
        return None


def wait_for(socks: list[socket.socket], deadline: float) -> bool:
    """Wait until one of the sockets is readable; return ``False`` if the time is over."""
    left = min(deadline - monotonic(), _LONGEST)
    if left <= 0:
        return False
    if hasattr(select, "poll"):  # looked up now: gevent may have replaced it. select() takes no descriptor above 1023
        poll = select.poll()
        for sock in socks:
            poll.register(sock.fileno(), select.POLLIN)
        poll.poll(math.ceil(left * 1000))
    else:
        select.select(socks, [], [], left)
    return True
