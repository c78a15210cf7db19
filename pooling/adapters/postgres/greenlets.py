"""psycopg in a process whose threads have become greenlets.

psycopg chooses how it waits when it is imported. With what is compiled it
would block the hub, and so would selectors that it has taken hold of before
gevent replaced them, as under ``gunicorn -k gevent --preload``.
"""

from __future__ import annotations

import importlib

from psycopg import waiting

from ...core.runtime.gevent import patched

__all__ = ["adopt"]

_adopted = False


def adopt() -> None:
    """Have psycopg choose again if gevent has come since: all of it looks up there how to wait."""
    global _adopted
    if not _adopted and patched():
        importlib.reload(waiting)
        _adopted = True
