"""The time limits of a request: the configured ones, and what is left of them."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from time import monotonic
from typing import Any

from urllib3.util import Timeout

from .arguments import shown

__all__ = ["HTTPTimeout", "Limits", "OutOfTime"]

Seconds = float | None


class OutOfTime(TimeoutError):
    """The total time of a request is over. Raised where a socket would time out."""


@dataclass(frozen=True, kw_only=True)
class HTTPTimeout:
    """The time limits of a request, in seconds; ``None`` means no limit.

    Attributes:
        connect: To connect, including the TLS handshake. As in requests, it
            applies to each address of the host.
        read: Between two bytes of the answer, and before the first.
        write: For the server to accept one chunk (16 KiB) of the request.
        pool: To wait for a connection while all are in use; ``None`` means
            the settings' ``acquire_timeout``, ``0`` means do not wait.
        total: For everything together: waiting, redirects, retries and
            reading the body. Only the DNS lookup is not covered, because it
            cannot be interrupted: the system's limits apply to it
            (``/etc/resolv.conf``).

    Raises:
        ValueError, TypeError: A limit is not a finite number of seconds above 0.
    """

    connect: Seconds = 10.0
    read: Seconds = 30.0
    write: Seconds = 10.0
    pool: Seconds = None
    total: Seconds = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _checked(field.name, value))

    @classmethod
    def of(cls, value: Any, default: HTTPTimeout) -> HTTPTimeout:
        """Return what a ``timeout=`` argument means.

        Args:
            value: An `HTTPTimeout`; as in requests, a number or a pair of
                connect and read; a ``urllib3.Timeout``; ``None`` for the default.
            default: The limits that ``value`` does not set.

        Raises:
            ValueError, TypeError: It is none of these, or out of bounds.
        """
        if value is None:
            return default
        if isinstance(value, HTTPTimeout):
            return value
        if isinstance(value, Timeout):
            total = value.total if isinstance(value.total, (int, float)) else default.total
            return replace(
                default, connect=_given(value._connect), read=_given(value._read), total=total
            )
        if isinstance(value, (tuple, list)):
            if len(value) != 2:
                raise ValueError(f"timeout must be a number or (connect, read), not {shown(value)}")
            return replace(default, connect=value[0], read=value[1])
        return replace(default, connect=value, read=value)


def _checked(name: str, value: Any) -> Seconds:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"timeout: {name} must be a number of seconds or None, not {shown(value)}")
    if not 0 < value <= threading.TIMEOUT_MAX and not (name == "pool" and value == 0):
        raise ValueError(f"timeout: {name} must be above 0 and finite, not {value!r}")
    return float(value)


def _given(value: Any) -> Seconds:
    return float(value) if isinstance(value, (int, float)) else None


class AttemptTimeout(Timeout):
    """Time limits that urllib3 copies twice for each attempt, without checking the values again."""

    def clone(self) -> Timeout:
        copy = AttemptTimeout.__new__(AttemptTimeout)
        copy._connect, copy._read, copy.total, copy._start_connect = self._connect, self._read, self.total, None
        return copy


class Limits(AttemptTimeout):
    """The time limits of one request in progress.

    requests passes a ``urllib3.Timeout`` on to urllib3 unchanged, and passes
    the same object for every redirect. That is why this is a subclass.

    Attributes:
        end: When the total time is over, by the monotonic clock; infinity
            if there is no such limit.
        answers: The answers so far, and whether each is streamed.
        outer: The request in whose response hook this one is made, if any.
        thread: The thread that makes it, see `Calls`.
        login: The `Hold` of a login that continues on the same connection.
        hedge: Reads the first bytes of the next answer; ``None`` to read them from the socket. See `balancing.hedging`.
    """

    outer: Limits | None = None
    thread = 0
    login: Any = None
    hedge: Any = None

    def __init__(self, timeout: HTTPTimeout, now: Callable[[], float] = monotonic) -> None:
        super().__init__(connect=timeout.connect, read=timeout.read)
        self.asked = timeout
        self.write, self.pool = timeout.write, timeout.pool
        self._now = now
        self.answers: list[tuple[weakref.ref[Any], bool]] = []
        self.end = math.inf if timeout.total is None else now() + timeout.total

    def left(self, limit: Seconds) -> Seconds:
        """Return a time limit, but no more than what is left of the total.

        Raises:
            OutOfTime: Nothing is left.
        """
        if self.end == math.inf:
            return limit
        rest = self.end - self._now()
        if rest <= 0:
            raise OutOfTime(f"the request took longer than its total of {self.asked.total:g} s")
        return rest if limit is None else min(limit, rest)

    @property
    def over(self) -> bool:
        """Whether the total time is over."""
        return self.end != math.inf and self._now() >= self.end

    def allows(self, delay: float) -> bool:
        """Return whether there is time for a pause and a request after it."""
        return self._now() + delay < self.end

    def hastened(self, seconds: float) -> Limits:
        """Return limits with the same end, for an attempt that waits for no connection.

        Args:
            seconds: For how long it may connect, and wait until a chunk is accepted.
        """
        asked = self.asked
        connect, write = (seconds if one is None else min(one, seconds) for one in (asked.connect, asked.write))
        made = Limits(replace(asked, connect=connect, write=write, pool=0), self._now)
        made.end = self.end
        return made

    def for_attempt(self) -> Timeout:
        """Return the limits for one attempt by urllib3."""
        if self.end == math.inf:
            return self
        return Timeout(connect=self.left(self.asked.connect), read=self.left(self.asked.read))


HTTPTimeout.__module__ = "pooling"  # where users import it from
