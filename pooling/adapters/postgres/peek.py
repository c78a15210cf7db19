"""Looks at what a socket has received, without reading it and without releasing the GIL.

Uses ``recv()`` of the C library through ctypes (``PyDLL`` keeps the GIL).

Why: ``socket.recv()`` releases the GIL and takes it again, and so do the calls
of libpq that would tell the same. With many threads each of these can mean
waiting until another thread releases it.

Gain: GAIN_PEEK
Without (Windows, a Python without ctypes, or ``POOLING_PLAIN=1``) both
functions return false: `wire.answers` asks libpq after each result, and
`commands` leaves BEGIN and COMMIT to steps that release the GIL more often.
"""

from __future__ import annotations

import socket
from typing import Any

from ..._plain import switched_off

__all__ = ["AVAILABLE", "has_complete_answer", "has_received_nothing"]

_MOST = 1024  # bytes: the answer to a cleaning has about 300
_peek: Any = None
if not switched_off("peek"):
    try:
        import ctypes

        _Buffer, _byte = ctypes.c_char * _MOST, (ctypes.c_char * 1)()
        _FLAGS = socket.MSG_PEEK | socket.MSG_DONTWAIT
        _peek = ctypes.PyDLL(None).recv
        _peek.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        _peek.restype = ctypes.c_ssize_t
    except (ImportError, AttributeError, OSError, TypeError):
        _peek = None

AVAILABLE = _peek is not None


def has_complete_answer(fd: int) -> bool:
    """Return whether the received bytes end with ReadyForQuery, so that no read of the answer would block.

    This cannot be mistaken: no text contains a zero byte. It is never seen on
    an encrypted connection.
    """
    if _peek is None:
        return False
    buffer = _Buffer()
    end = _peek(fd, buffer, _MOST, _FLAGS)
    return end > 5 and buffer.raw[end - 6 : end - 1] == b"Z\0\0\0\5"


def has_received_nothing(fd: int) -> bool:
    """Return whether the socket is open and has received nothing; false where that cannot be known."""
    return _peek is not None and _peek(fd, _byte, 1, _FLAGS) < 0
