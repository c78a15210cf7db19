"""Detects that the peer of a resource has hung up, without a round trip and without reading a byte.

For resources without a check of their own that are a connected socket, or have
one in the attribute where clients of the standard library and others keep it.
This is decided once, after creation (`watchable`), so that other resources cost
nothing later.

Assumes: ``poll()`` reports the end of a stream even behind unread data: by
POLLRDHUP on Linux and FreeBSD, by POLLHUP on macOS.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import Any

__all__ = ["connected", "native_poll", "watchable"]

_SOCKETS = ("sock", "socket", "_sock")  # smtplib, ftplib, imaplib, poplib, http.client, paramiko; ldap3; PyMySQL
_RDHUP = getattr(select, "POLLRDHUP", 0)
_PEEKED = 4096  # bytes; before the end of a TLS session a peer sends at most a few tickets unasked
_ALERT, _DATA = 21, 23  # types of TLS records
# A close_notify of TLS 1.3 looks like data: 2 bytes, 1 for the type, 16 for a tag (8 with CCM_8). Two bytes of
# unsolicited data look the same; then a good resource is replaced.
_ENCRYPTED_ALERTS = (19, 11)


def native_poll() -> Any:
    """Return the system's ``poll``, or ``None``. gevent's takes 10 µs and switches greenlets; this use never waits."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("select"):
        return gevent.get_original("select", "poll") if hasattr(select, "poll") else None
    return getattr(select, "poll", None)


_poll = native_poll()


def watchable(resource: object) -> bool:
    """Return whether a newly created resource is a connected socket, or has one."""
    if _poll is None:  # Windows
        return False
    try:
        found = _socket_of(resource)
        fd = -1 if found is None else found.fileno()
        # A socket that is not connected yet looks like one that has ended, so it is not watched.
        return type(fd) is int and fd >= 0 and stat.S_ISSOCK(os.fstat(fd).st_mode) and connected(resource)
    except Exception:  # its fileno() has another meaning
        return False


def connected(resource: object) -> bool:
    """Return whether a `watchable` resource still has its socket, and the peer has not hung up."""
    found = _socket_of(resource)
    fd = -1 if found is None else found.fileno()
    if fd < 0:
        return False
    poll = _poll()  # not select(), which supports no descriptor above 1023
    poll.register(fd, select.POLLIN | _RDHUP)
    ready = poll.poll(0)
    if not ready:
        return True
    if ready[0][1] != select.POLLIN:
        return False
    ssl = sys.modules.get("ssl")
    return ssl is None or not isinstance(found, ssl.SSLSocket) or not _says_goodbye(found)


def _socket_of(resource: object) -> Any:
    """Return the object with the descriptor.

    Bypasses ``__getattr__``, because a proxy would ask its server for ``fileno``.
    """
    try:
        object.__getattribute__(resource, "fileno")
        return resource
    except AttributeError:
        pass
    for name in _SOCKETS:
        try:
            found = object.__getattribute__(resource, name)
        except AttributeError:
            continue
        if found is not None:
            return found
    return None


def _says_goodbye(sock: Any) -> bool:
    """Whether the unread records of a TLS socket end with an alert; tickets and data do not count."""
    try:
        # The system's recv: the TLS socket's decrypts, and so consumes.
        system: Any = sys.modules["_socket"]
        data = system.socket.recv(getattr(sock, "_sock", sock), _PEEKED, system.MSG_PEEK)
    except (OSError, TypeError):
        return False
    start, kind, length = 0, 0, 0
    while start + 5 <= len(data):
        kind, length = data[start], int.from_bytes(data[start + 3 : start + 5], "big")
        start += 5 + length
    return start == len(data) and (kind == _ALERT or (kind == _DATA and length in _ENCRYPTED_ALERTS))
