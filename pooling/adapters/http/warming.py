"""Warm-up: sockets that are opened before they are needed."""

from __future__ import annotations

import logging
import queue
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests import exceptions

from ..._fields import fields
from ...errors import PoolClosed, PoolError
from .arguments import checked_number
from .balancing.bases import is_path
from .balancing.group import Group
from .connections import Connections
from .hold import Hold
from .hosts import Host
from .limits import HTTPTimeout, Limits
from .transport import Transport

__all__ = ["Warming"]

logger = logging.getLogger("pooling")


class Warming:
    """`warm_up` and `fill`."""

    _base_url: str
    group: Group | None
    connections: Connections
    adapter: Transport

    if TYPE_CHECKING:

        def session(self) -> requests.Session: ...

        def _whole(self, url: str) -> str: ...

    def warm_up(self, urls: Iterable[str] | None = None, *, each: int = 1, timeout: float | None = None) -> None:
        """Open sockets before the first request needs them, all at the same time.

        Args:
            urls: URLs, or paths if the pool has a ``base_url``; only their
                hosts matter. ``None`` means the ``base_url``, or all ``base_urls``.
            each: How many sockets to open to each host; at most ``max_per_host``.
            timeout: Seconds to wait; ``None`` means the ``connect`` timeout.

        Raises:
            requests.RequestException: One could not be opened; the others were. With ``base_urls``: none could.
            PoolClosed: The pool was closed.
            ValueError: More sockets than ``max_per_host`` or ``max_size`` allows,
                or ``urls`` is ``None`` and there is no ``base_url``.
            TypeError: ``urls`` is one string.
        """
        if isinstance(urls, str):
            raise TypeError("urls must be several URLs, not one string")
        if urls is None and not self._base_url and self.group is None:
            raise ValueError("warm_up() needs urls if the pool has no base_url")
        checked_number("each", each)
        hosts = Counter(host for url in (["/"] if urls is None else urls) for host in self._hosts_of(url))
        self._check_limits(each * max(hosts.values(), default=0), each * hosts.total())
        wanted = list(hosts.elements()) * each
        total = timeout or self.adapter.limits(None).asked.connect
        limits = self.adapter.limits(HTTPTimeout(connect=total, pool=total, total=total))
        workers = self.connections.slots.engine.runtime.workers
        done: Any = queue.SimpleQueue()
        for host in wanted:
            workers.submit(_open, self.connections, host, limits, done)
        results = [done.get() for _ in wanted]
        for result in results:
            if isinstance(result, Hold):
                result.release()
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors and (self.group is None or len(errors) == len(results)):
            raise _as_requests(errors[0])

    def fill(self, size: int | None = None) -> None:
        """Open sockets to the host of the ``base_url``, or to each server, ahead of need, without waiting for them.

        Args:
            size: How many; ``None`` means ``min_size``, but at most ``max_per_host``.

        Raises:
            ValueError: There is no ``base_url``, or ``size`` is more than ``max_per_host`` or ``max_size``.
        """
        connections = self.connections
        number = min(connections.settings.min_size, connections.max_per_host) if size is None else size
        if not self._base_url and self.group is None:
            raise ValueError("fill() needs a base_url; see warm_up()")
        if number:
            servers = 1 if self.group is None else len(self.group.servers)
            self._check_limits(checked_number("size", number), number * servers)
            connections.slots.engine.runtime.workers.submit(self._fill, number)

    def _fill(self, number: int) -> None:
        try:
            self.warm_up(each=number)
        except (exceptions.RequestException, PoolError) as error:
            name = self.connections.name
            extra = fields("fill_failed", name, error=str(error))
            logger.info("pool %r: fill() failed: %s", name, error, extra=extra)

    def _check_limits(self, one_host: int, all_hosts: int) -> None:
        """Refuse to open more sockets than allowed: the last ones would wait for the first."""
        connections = self.connections
        for number, name, most in (
            (one_host, "max_per_host", connections.max_per_host), (all_hosts, "max_size", connections.settings.max_size)
        ):  # fmt: skip
            if number > most:
                raise ValueError(f"cannot open {number} sockets: {name} is {most}")

    def _hosts_of(self, url: str) -> list[Host]:
        """Return the host of a URL, or those of all servers for a path."""
        session = self.session()
        request = session.prepare_request(requests.Request("GET", self._whole(url)))
        found = session.merge_environment_settings(request.url, {}, None, None, None)
        settings = (found["verify"], found["proxies"], found["cert"])
        if self.group is None or not is_path(url):
            return [self.connections.host_of(self.adapter, request, *settings)]
        self.connections.begin_request()
        return self.group.all_hosts(self.adapter, request, *settings)


def _open(connections: Connections, host: Host, limits: Limits, done: Any) -> None:
    """Open one socket, and put its hold or the error into a queue."""
    try:
        hold = connections.take(host, limits)
        hold.connect(limits)
        done.put(hold)
    except BaseException as error:
        done.put(error)


def _as_requests(error: BaseException) -> BaseException:
    """Return an error of opening a socket as requests would raise it."""
    if isinstance(error, (exceptions.RequestException, PoolClosed)):
        return error
    if isinstance(error, urllib3.exceptions.SSLError):
        return exceptions.SSLError(error)
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return exceptions.ConnectTimeout(error)
    return exceptions.ConnectionError(error)
