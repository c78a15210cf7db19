"""System checks: ``manage.py check`` names bad settings before a request finds them."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections

from ...core.pool import Pool
from ...manager import PoolManager
from ._engine import PooledWrapper, bad_age

__all__ = ["Crowd", "check_server", "check_settings", "clients_allowed", "crowd"]


class Crowd(NamedTuple):
    """How many processes serve, and how many threads in each; ``None``: nobody says."""

    workers: int | None
    threads: int | None


def crowd() -> Crowd:
    """Return what is known of the server that runs the project.

    ``POOLING_WORKERS`` and ``POOLING_THREADS`` of the settings come first,
    then gunicorn's ``GUNICORN_CMD_ARGS`` and ``WEB_CONCURRENCY``.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-w", "--workers", type=int)
    parser.add_argument("--threads", type=int)
    said = argparse.Namespace(workers=None, threads=None)
    try:
        parser.parse_known_args(shlex.split(os.environ.get("GUNICORN_CMD_ARGS", "")), said)
    except (argparse.ArgumentError, ValueError):
        pass  # gunicorn says so itself
    workers = os.environ.get("WEB_CONCURRENCY", "")
    return Crowd(
        getattr(settings, "POOLING_WORKERS", said.workers or (int(workers) if workers.isdigit() else None)),
        getattr(settings, "POOLING_THREADS", said.threads),
    )


def check_settings(app_configs: object, **kwargs: object) -> list[checks.CheckMessage]:
    """Look at ``DATABASES`` and ``POOLING``; nobody is asked anything."""
    found: list[checks.CheckMessage] = []
    for alias in connections:
        wrapper = connections[alias]
        if isinstance(wrapper, PooledWrapper):
            found += _check_database(alias, wrapper)
    try:
        PoolManager.from_mapping(getattr(settings, "POOLING", None) or {})
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        found.append(checks.Error(f"POOLING: {error}", id="pooling.E003"))
    return found


def _check_database(alias: str, wrapper: PooledWrapper) -> Iterator[checks.CheckMessage]:
    where = f"DATABASES[{alias!r}]"
    options = wrapper.settings_dict["OPTIONS"]
    age = wrapper.settings_dict.get("CONN_MAX_AGE", 0)
    if not wrapper._is_pooled():
        return
    if age != 0:
        yield checks.Error(f"{where}: {bad_age(age)}", hint="Remove CONN_MAX_AGE.", id="pooling.E002")
        return
    try:
        pool: Pool[Any] = wrapper.pool
    except ImproperlyConfigured as error:
        yield checks.Error(str(error), id="pooling.E001")
        return
    limits, threads = pool.settings, crowd().threads
    if threads is not None and limits.max_size < threads:
        yield checks.Warning(
            f"{where}: max_size is {limits.max_size}, and a worker has {threads} threads: some will wait in line",
            hint=f'Set OPTIONS["pool"]["max_size"] to {threads}.', id="pooling.W001",
        )  # fmt: skip
    said = options.get("pool")
    if isinstance(said, dict) and isinstance(said.get("max_idle"), (int, float)) and said["max_idle"] > limits.max_size:
        yield checks.Warning(
            f"{where}: max_idle is {said['max_idle']}, more than max_size. It is how many are kept, not for how long",
            hint="psycopg_pool's max_idle, in seconds, is idle_timeout.", id="pooling.W003",
        )  # fmt: skip


def check_server(
    app_configs: object, databases: Sequence[str] | None = None, **kwargs: object
) -> list[checks.CheckMessage]:
    """Ask the servers whether all workers' pools fit in, with ``check --database`` and ``migrate``."""
    found = []
    workers = crowd().workers
    for alias in databases or ():
        wrapper = connections[alias]
        if workers is None or not isinstance(wrapper, PooledWrapper) or not wrapper._is_pooled():
            continue
        try:
            most, wish = clients_allowed(wrapper), workers * wrapper.pool.settings.max_size
        except (Error, ImproperlyConfigured):
            continue  # who asks for nothing but this check sees that in the others
        if most is not None and wish > most:
            found.append(
                checks.Warning(
                    f"DATABASES[{alias!r}]: {workers} workers may open {wish} connections, and the server takes {most}",
                    hint=f'Set OPTIONS["pool"]["max_size"] to {max(1, most // workers)} at most.', id="pooling.W002",
                )  # fmt: skip
            )
    return found


def clients_allowed(wrapper: Any) -> int | None:
    """Return how many connections the server takes from this user to this database; ``None``: as many as you like."""
    if wrapper.vendor != "postgresql":
        return None
    with wrapper.temporary_connection() as cursor:
        cursor.execute(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
            " - coalesce(current_setting('reserved_connections', true), '0')::int,"
            " (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),"
            " (SELECT datconnlimit FROM pg_database WHERE datname = current_database())"
        )
        server, role, database = cursor.fetchone()
    return min([server, *(limit for limit in (role, database) if limit >= 0)])  # type: ignore[no-any-return]
