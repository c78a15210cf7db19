"""Sockets that are opened before they are needed."""

from __future__ import annotations

import logging
import queue
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests import exceptions

from ...errors import PoolClosed, PoolError
from .arguments import checked_number
from .hold import Hold
from .hosts import Host
from .limits import HTTPTimeout, Limits

if TYPE_CHECKING:
    from ...settings import PoolSettings
    from .transport import Transport

__all__ = ["Warming"]

logger = logging.getLogger("pooling")


class Warming:
    """`warm_up` and `fill`."""

    _base_url: str
    _max_per_host: int
    _asked: PoolSettings
    engine: Any
    adapter: Transport
    name: str

    if TYPE_CHECKING:

        def session(self) -> requests.Session: ...

        def _whole(self, url: str) -> str: ...

        def _host(self, request: Any, verify: Any, proxies: Any, cert: Any) -> Host: ...

        def _take(self, host: Host, limits: Limits) -> Hold: ...

    def warm_up(self, urls: Iterable[str] | None = None, *, each: int = 1, timeout: float | None = None) -> None:
        """Open sockets before the first user needs them, all at the same time.

        Args:
            urls: Whole URLs, or paths if the pool has a ``base_url``; only
                their hosts matter. ``None`` means the ``base_url``.
            each: How many sockets to open to each of them; at most ``max_per_host``.
            timeout: Seconds to wait; ``None`` means the time to connect.

        Raises:
            requests.RequestException: One could not be opened; the others were.
            ValueError: It is more than one host may have, or than all may.
        """
        if isinstance(urls, str):
            raise TypeError("urls must be several URLs, not one text")
        if urls is None and not self._base_url:
            raise ValueError("warm_up() needs urls, where the pool has no base_url")
        checked_number("each", each)
        hosts = Counter(self._host_of(self._whole(url)) for url in (["/"] if urls is None else urls))
        self._check_room(each * max(hosts.values(), default=0), each * hosts.total())
        wanted = list(hosts.elements()) * each
        total = timeout or self.adapter.limits(None).asked.connect
        limits = self.adapter.limits(HTTPTimeout(connect=total, pool=total, total=total))
        done: Any = queue.SimpleQueue()
        for host in wanted:
            self.engine.runtime.workers.submit(self._open_one, host, limits, done)
        results = [done.get() for _ in wanted]
        for result in results:
            if isinstance(result, Hold):
                result.release()
        for result in results:
            if isinstance(result, BaseException):
                raise _as_requests(result)

    def _check_room(self, one_host: int, all_hosts: int) -> None:
        """Refuse to open more than there may be: the last ones would wait for the first."""
        for number, name, most in (
            (one_host, "max_per_host", self._max_per_host), (all_hosts, "max_size", self._asked.max_size)
        ):  # fmt: skip
            if number > most:
                raise ValueError(f"cannot open {number} sockets: {name} is {most}")

    def _host_of(self, url: str) -> Host:
        session = self.session()
        request = session.prepare_request(requests.Request("GET", url))
        found = session.merge_environment_settings(request.url, {}, None, None, None)
        return self._host(request, found["verify"], found["proxies"], found["cert"])

    def _open_one(self, host: Host, limits: Limits, done: Any) -> None:
        try:
            hold = self._take(host, limits)
            hold.connect(limits)
            done.put(hold)
        except BaseException as error:
            done.put(error)

    def fill(self, size: int | None = None) -> None:
        """Open sockets to the ``base_url``'s host ahead of need, without waiting for them.

        Args:
            size: How many; ``None`` means ``min_size``, as far as one host may have as many.

        Raises:
            ValueError: The pool has no ``base_url``, or may not have so many.
        """
        number = min(self._asked.min_size, self._max_per_host) if size is None else size
        if not self._base_url:
            raise ValueError("fill() needs a base_url; see warm_up()")
        if number:
            self._check_room(checked_number("size", number), number)
            self.engine.runtime.workers.submit(self._warm_up_quietly, number)

    def _warm_up_quietly(self, each: int) -> None:
        try:
            self.warm_up(each=each)
        except (exceptions.RequestException, PoolError) as error:
            logger.info("pool %r: filling it failed: %s", self.name, error)


def _as_requests(error: BaseException) -> BaseException:
    """Return an error of opening a socket as requests would raise it."""
    if isinstance(error, (exceptions.RequestException, PoolClosed)):
        return error
    if isinstance(error, urllib3.exceptions.SSLError):
        return exceptions.SSLError(error)
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return exceptions.ConnectTimeout(error)
    return exceptions.ConnectionError(error)
