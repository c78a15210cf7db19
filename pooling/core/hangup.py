"""Has the peer of a resource hung up? The kernel tells, without a round trip and without reading a byte.

For resources of which nothing else is known: those that are a connected
socket, or have one where clients of the standard library and others keep it.
What they were when they were made is decided once (`watchable`), so that
others cost nothing later.

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

_SOCKETS = ("sock", "socket")  # smtplib, ftplib, imaplib, poplib, http.client, paramiko; ldap3
_RDHUP = getattr(select, "POLLRDHUP", 0)
_PEEKED = 4096  # bytes; what a peer sends unasked before it ends a TLS session is some tickets
_ALERT, _DATA = 21, 23  # types of TLS records
# A close_notify of TLS 1.3 looks like data: 2 bytes, 1 for the type, 16 of a tag (8 with CCM_8). So do two bytes of
# data that were not asked for; then a good resource is replaced.
_ENCRYPTED_ALERTS = (19, 11)


def native_poll() -> Any:
    """Return the system's ``poll``, or ``None``: gevent's takes 10 µs and switches greenlets, and ours never waits."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("select"):
        return gevent.get_original("select", "poll") if hasattr(select, "poll") else None
    return getattr(select, "poll", None)


_poll = native_poll()


def watchable(resource: object) -> bool:
    """Say whether a resource that was made just now is a connected socket, or has one."""
    if _poll is None:  # Windows
        return False
    try:
        found = _socket_of(resource)
        fd = -1 if found is None else found.fileno()
        # One that is not connected yet looks as one that has ended: it is left alone.
        return type(fd) is int and fd >= 0 and stat.S_ISSOCK(os.fstat(fd).st_mode) and connected(resource)
    except Exception:  # its fileno() is something else
        return False


def connected(resource: object) -> bool:
    """Say whether a `watchable` resource still has its socket, and the peer has not hung up."""
    found = _socket_of(resource)
    fd = -1 if found is None else found.fileno()
    if fd < 0:
        return False
    poll = _poll()  # select() knows no descriptor above 1023
    poll.register(fd, select.POLLIN | _RDHUP)
    ready = poll.poll(0)
    if not ready:
        return True
    if ready[0][1] != select.POLLIN:
        return False
    ssl = sys.modules.get("ssl")
    return ssl is None or not isinstance(found, ssl.SSLSocket) or not _says_goodbye(found)


def _socket_of(resource: object) -> Any:
    """Return what has the descriptor.

    Without ``__getattr__``: a proxy would ask its server for ``fileno``.
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
        # The system's own recv: that of the TLS socket decrypts, and so consumes.
        system: Any = sys.modules["_socket"]
        data = system.socket.recv(getattr(sock, "_sock", sock), _PEEKED, system.MSG_PEEK)
    except (OSError, TypeError):
        return False
    start, kind, length = 0, 0, 0
    while start + 5 <= len(data):
        kind, length = data[start], int.from_bytes(data[start + 3 : start + 5], "big")
        start += 5 + length
    return start == len(data) and (kind == _ALERT or (kind == _DATA and length in _ENCRYPTED_ALERTS))
