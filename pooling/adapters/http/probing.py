"""How the `health_url` of a pool is requested: with the pool's own sessions and sockets."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable

import requests

from ...errors import PoolTimeout
from .connections import Connections, weakly
from .health import Health, ping
from .limits import HTTPTimeout
from .sessions import Sessions
from .transport import Transport

__all__ = ["start_health"]


def start_health(connections: Connections, url: str, sessions: Sessions, transport: Transport) -> Health:
    """Return the health probe of a pool, which starts with the first request.

    It lives as long as the transport, which sessions may use longer than
    the pool. So it must refer to neither, except weakly.
    """
    health = Health(
        connections.name, url, connections.settings,
        request=_requester(sessions, transport, wait=False),
        drain=weakly(connections.drain),
        record=weakly(connections.health_checked),
    )  # fmt: skip
    connections.before_request = health.ensure_started
    outside = _requester(sessions, transport, pooled=False)
    vars(connections.slots.engine.adapter)["ping"] = functools.partial(ping, outside, url)
    return health


def _requester(
    sessions: Sessions, transport: Transport, *, wait: bool = True, pooled: bool = True
) -> Callable[[str, HTTPTimeout], requests.Response | None]:
    """Return a function that requests a URL, or returns ``None`` when the transport no longer exists.

    Args:
        sessions, transport: Those of the pool.
        wait: Whether to wait for a connection; otherwise it raises `PoolTimeout` if it would have to.
        pooled: Whether to use a connection of the pool; otherwise one of its own.
    """
    reference = weakref.ref(transport)

    def request(url: str, timeout: HTTPTimeout) -> requests.Response | None:
        transport = reference()
        if transport is None:
            return None
        connections = transport.connections
        if not wait and connections.is_full_for(url):
            raise PoolTimeout(f"pool {connections.name!r}: no connection at once ({connections.counts()})")
        session = sessions.make(transport, transport.mounted if pooled else transport.unpooled)
        url = url if pooled else transport.unpooled_url(url)
        return session.get(url, timeout=timeout, stream=True)  # type: ignore[arg-type]

    return request
