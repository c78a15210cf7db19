"""Reads the HTTP/2 frames that came while a connection was idle, with private names of httpcore.

Servers send settings, window updates and pings at any time, and GOAWAY before
they close a connection. httpcore reads frames only during a request; a
connection with unread ones looks as if the server had closed it.

Gain: a server that pings its idle connections gets an answer, and costs no new
connection and handshake for the next request; after a GOAWAY together with a
response, the next request goes to a new connection instead of failing.
Without (other names, or ``POOLING_PLAIN=1``) a connection on which anything came
counts as closed and is replaced, and such a request is sent again only if it
cannot take effect twice.

``tests/integration/test_http2.py`` compares the names with the installed version.
"""

from __future__ import annotations

from typing import Any

import httpcore
import httpx

from ..._plain import switched_off

__all__ = ["AVAILABLE", "is_alive"]

_LOST = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)
_AT_ONCE = httpcore.Request("GET", "https://localhost", extensions={"timeout": {"read": 0.001, "write": 0.001}})
AVAILABLE = not switched_off("frames")


def is_alive(transport: httpx.HTTPTransport, stream: Any) -> bool:
    """Return whether the server has not closed a connection, and has not announced to.

    Args:
        transport: It has one connection at most.
        stream: That connection's `httpcore.NetworkStream`; ``None`` if there is none yet.
    """
    if AVAILABLE:
        try:
            return _has_no_end(transport)
        except AttributeError:  # another version, with other names
            pass
    return stream is None or not stream.get_extra_info("is_readable")


def _has_no_end(transport: Any) -> bool:
    for outer in transport._pool.connections:
        inner = outer._connection
        if inner is None:
            continue
        if isinstance(inner, httpcore.HTTP11Connection):
            return not inner.has_expired()  # it is readable
        try:
            while inner._network_stream.get_extra_info("is_readable"):
                inner._receive_events(_AT_ONCE)
        except _LOST:
            return False
        if not inner.is_available() or inner._connection_terminated is not None:
            return False
    return True
