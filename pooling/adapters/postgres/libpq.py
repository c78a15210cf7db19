"""Calls of libpq that only read or write its buffers, without releasing the GIL.

psycopg releases the GIL around ``PQisBusy``, ``PQnotifies`` and, in a pipeline,
``PQsendQueryParams``, though none of them waits. Where many threads work,
another one takes it each time, and this one sleeps until that has to wait for
something. Here they are called by `ctypes`, for which psycopg documents
``PGconn.pgconn_ptr``.

Gain: 20 threads on 10 connections make 20 to 30 % more blocks a second, 100
threads 2 to 5 %. In a single thread each call takes 0.1 µs more.
Without (psycopg in pure Python, a build without the GIL, Windows, another libpq
in the process, or ``POOLING_PLAIN=1``) psycopg's own methods are called.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq import PGconn, PGnotify

from ..._plain import switched_off

__all__ = ["AVAILABLE", "is_busy", "queue", "take_notification"]

_NAMES = ("PQisBusy", "PQnotifies", "PQfreemem", "PQsendQueryParams")


def _find() -> Any:
    """Return the library that psycopg calls, as one that keeps the GIL; ``None`` if it is not known which one that is.

    The extension module depends on it. But if the process had another libpq in its global scope before, psycopg calls
    that one.
    """
    module = sys.modules.get(f"psycopg_{pq.__impl__}._psycopg")
    if module is None or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    try:
        found, everywhere = ctypes.PyDLL(str(module.__file__)), ctypes.PyDLL(None)
        same = found.PQlibVersion() == pq.version()
        for name in _NAMES:
            place = ctypes.cast(found[name], ctypes.c_void_p).value
            if hasattr(everywhere, name):
                same = same and place == ctypes.cast(everywhere[name], ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):  # the last one is Windows', which has no global scope
        return None
    return found if same else None


_libpq: Any = None if switched_off("libpq") else _find()
AVAILABLE = _libpq is not None

#: The class whose objects are passed to libpq. Of all others the methods are called: what a test double or a proxy has
#: for a pointer would crash the process.
_DIRECT: Any = PGconn if AVAILABLE else None

if AVAILABLE:
    _is_busy, _notifies, _free, _send = (_libpq[name] for name in _NAMES)
    _is_busy.argtypes = _notifies.argtypes = _free.argtypes = (ctypes.c_void_p,)
    _notifies.restype, _free.restype = ctypes.c_void_p, None
    _send.argtypes = (
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, *[ctypes.c_void_p] * 4, ctypes.c_int
    )  # fmt: skip


class _Notification(ctypes.Structure):
    _fields_ = (("relname", ctypes.c_char_p), ("be_pid", ctypes.c_int), ("extra", ctypes.c_char_p))


# The pointer is looked up at each call: another thread may have closed the connection. Then it is None, which libpq
# takes as NULL.


def is_busy(pgconn: Any) -> int:
    """Whether ``get_result()`` would wait."""
    found: int = _is_busy(pgconn.pgconn_ptr) if type(pgconn) is _DIRECT else pgconn.is_busy()
    return found


def take_notification(pgconn: Any) -> PGnotify | None:
    """Return the next notification that has come, if any."""
    if type(pgconn) is not _DIRECT:
        found: PGnotify | None = pgconn.notifies()
        return found
    address = _notifies(pgconn.pgconn_ptr)
    if address is None:
        return None
    try:
        taken = _Notification.from_address(address)
        return PGnotify(taken.relname, taken.be_pid, taken.extra)
    finally:
        _free(address)


def queue(pgconn: Any, command: bytes) -> None:
    """Add a command without parameters to a pipeline. Nothing is sent before ``pipeline_sync()``.

    Raises:
        psycopg.OperationalError: The connection is lost, or in no pipeline.
    """
    if type(pgconn) is not _DIRECT:
        pgconn.send_query_params(command, None)
    elif not _send(pgconn.pgconn_ptr, command, 0, None, None, None, None, 0):
        raise psycopg.OperationalError(f"sending a command failed: {pgconn.get_error_message()}")
