"""Django: database engines with pooled connections, and an application's other pools.

::

    INSTALLED_APPS = [..., "pooling.web.django"]         # checks, `manage.py pooling`, `pools`
    DATABASES = {"default": {
        "ENGINE": "pooling.web.django.postgresql",       # or "....mysql", or "....sqlite3"
        ...
        "OPTIONS": {"pool": {"max_size": 8}},            # or True, or a PoolSettings, or omit it
    }}
    POOLING = {"api": "https://api.example.com"}         # pools["api"].get("/quotes")

A request's connection is released at the end of its response: when the last
piece of a streamed one was sent, or the client has disconnected. The pool of a
database is ``connections["default"].pool``.

Django's own tests pass with the PostgreSQL engine and the MySQL engine, with these intended exceptions:

- four of ``ConnectionHealthChecksTests`` (``test_health_checks_enabled``,
  ``test_health_checks_enabled_errors_occurred``, ``test_health_checks_disabled``,
  ``test_set_autocommit_health_checks_enabled``) set ``CONN_MAX_AGE = None``, which is
  refused, because the pool itself checks whether connections are alive;
- ``test_pooling_health_checks`` (PostgreSQL) reads a private attribute of psycopg_pool;
- ``test_ignores_connection_configuration_queries`` makes Django's ``ensure_connection``
  call the engine's, which calls Django's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._pools import pools

__all__ = ["pools"]


def __getattr__(name: str) -> Any:
    if name == "pools":  # not at import: INSTALLED_APPS are imported before models can be imported
        from ._pools import pools

        return pools
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
