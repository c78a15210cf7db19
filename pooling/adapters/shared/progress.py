"""Whether bytes are transferred on a connection that another thread waits for."""

from __future__ import annotations

import _socket
import socket
import struct
from contextlib import suppress

__all__ = ["bytes_transferred"]

_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
_BYTES = struct.Struct("=QQ")  # tcpi_bytes_acked and tcpi_bytes_received of Linux 4.2's struct tcp_info
_BYTES_AT = 120


def bytes_transferred(fd: int) -> tuple[int, int] | None:
    """Return how many bytes the peer has acknowledged and sent; ``None`` if the system does not tell.

    Raises:
        ValueError: Something was received that the holder has yet to read.
        OSError: The socket is closed.
    """
    peer = _socket.socket(fileno=fd)  # gevent's would wait in spite of the flag
    try:
        if hasattr(socket, "MSG_DONTWAIT"):
            with suppress(BlockingIOError):
                peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                raise ValueError("something was received")
        if _TCP_INFO is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            info = peer.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
        except OSError:
            return None
        if len(info) < _BYTES_AT + _BYTES.size:
            return None
        acked, received = _BYTES.unpack_from(info, _BYTES_AT)
        return acked, received
    finally:
        peer.detach()
