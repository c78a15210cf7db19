"""Django: database engines whose connections come from a pool, and an application's other pools.

::

    INSTALLED_APPS = [..., "pooling.web.django"]         # checks, `manage.py pooling`, `pools`
    DATABASES = {"default": {
        "ENGINE": "pooling.web.django.postgresql",       # or "pooling.web.django.sqlite3"
        ...
        "OPTIONS": {"pool": {"max_size": 8}},            # or True, or a PoolSettings, or nothing
    }}
    POOLING = {"api": "https://api.example.com"}         # pools["api"].get("/quotes")

A request's connection is given back at the end of its response, when the
last piece of a streamed one was sent or its client has gone. The pool of a
database is ``connections["default"].pool``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._pools import pools

__all__ = ["pools"]


def __getattr__(name: str) -> Any:
    if name == "pools":  # not at import: INSTALLED_APPS are imported before models can be
        from ._pools import pools

        return pools
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
