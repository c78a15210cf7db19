"""psycopg in a process whose threads have become greenlets.

psycopg chooses its way of waiting when it is imported. Its compiled one would
block the hub, and so would selectors that it imported before gevent replaced
them, as under ``gunicorn -k gevent --preload``.
"""

from __future__ import annotations

import importlib

from psycopg import waiting

from ...core.runtime.gevent import patched

__all__ = ["adopt"]

_adopted = False


def adopt() -> None:
    """Have psycopg choose again after gevent has patched: its classes look up ``psycopg.waiting`` at each wait."""
    global _adopted
    if not _adopted and patched():
        importlib.reload(waiting)
        _adopted = True
