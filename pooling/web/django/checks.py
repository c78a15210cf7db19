"""System checks: ``manage.py check`` reports invalid settings before a request fails."""

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
from ._servers import clients_allowed

__all__ = ["WorkerLayout", "check_server", "check_settings", "worker_layout"]


class WorkerLayout(NamedTuple):
    """The number of worker processes, and of threads in each; ``None`` if unknown."""

    workers: int | None
    threads: int | None


def worker_layout() -> WorkerLayout:
    """Return what is known about the server that runs the project.

    The settings ``POOLING_WORKERS`` and ``POOLING_THREADS`` take precedence over
    gunicorn's ``GUNICORN_CMD_ARGS`` and ``WEB_CONCURRENCY``.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-w", "--workers", type=int)
    parser.add_argument("--threads", type=int)
    given = argparse.Namespace(workers=None, threads=None)
    try:
        parser.parse_known_args(shlex.split(os.environ.get("GUNICORN_CMD_ARGS", "")), given)
    except (argparse.ArgumentError, ValueError):
        pass  # gunicorn reports it itself
    workers = os.environ.get("WEB_CONCURRENCY", "")
    return WorkerLayout(
        getattr(settings, "POOLING_WORKERS", given.workers or (int(workers) if workers.isdigit() else None)),
        getattr(settings, "POOLING_THREADS", given.threads),
    )


def check_settings(app_configs: object, **kwargs: object) -> list[checks.CheckMessage]:
    """Check ``DATABASES`` and ``POOLING`` without contacting any server."""
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
    if not wrapper.is_pooled():
        return
    if age != 0:
        yield checks.Error(f"{where}: {bad_age(age)}", hint="Remove CONN_MAX_AGE.", id="pooling.E002")
        return
    try:
        pool: Pool[Any] = wrapper.pool
    except ImproperlyConfigured as error:
        yield checks.Error(str(error), id="pooling.E001")
        return
    limits, threads = pool.settings, worker_layout().threads
    if threads is not None and limits.max_size < threads:
        yield checks.Warning(
            f"{where}: max_size is {limits.max_size}, but a worker has {threads} threads, so some will have to wait",
            hint=f'Set OPTIONS["pool"]["max_size"] to {threads}.', id="pooling.W001",
        )  # fmt: skip
    given = options.get("pool")
    max_idle = given.get("max_idle") if isinstance(given, dict) else None
    if isinstance(max_idle, (int, float)) and max_idle > limits.max_size:
        yield checks.Warning(
            f"{where}: max_idle is {max_idle}, more than max_size. It is a number of connections, not a time",
            hint="For psycopg_pool's max_idle, in seconds, set idle_timeout.", id="pooling.W003",
        )  # fmt: skip


def check_server(
    app_configs: object, databases: Sequence[str] | None = None, **kwargs: object
) -> list[checks.CheckMessage]:
    """Check the databases, with ``check --database`` and ``migrate``.

    Warns if the pools of all workers do not fit into the server, and if the
    database changes sessions in ways that ``"session": "watch"`` cannot see.
    """
    found: list[checks.CheckMessage] = []
    for alias in databases or ():
        wrapper = connections[alias]
        if not isinstance(wrapper, PooledWrapper) or not wrapper.is_pooled():
            continue
        try:
            found += [*_check_room(alias, wrapper), *_check_watching(alias, wrapper)]
        except (Error, ImproperlyConfigured):
            continue  # other checks report it
    return found


def _check_room(alias: str, wrapper: PooledWrapper) -> Iterator[checks.CheckMessage]:
    workers = worker_layout().workers
    if workers is None:
        return
    most, wish = clients_allowed(wrapper), workers * wrapper.pool.settings.max_size
    if most is not None and wish > most:
        yield checks.Warning(
            f"DATABASES[{alias!r}]: {workers} workers may open {wish} connections, but the server accepts only {most}",
            hint=f'Set OPTIONS["pool"]["max_size"] to at most {max(1, most // workers)}.', id="pooling.W002",
        )  # fmt: skip


def _check_watching(alias: str, wrapper: Any) -> Iterator[checks.CheckMessage]:
    if wrapper.vendor != "postgresql" or wrapper.pool_options().arguments.get("session", "watch") != "watch":
        return
    with wrapper.temporary_connection() as cursor:
        cursor.execute(_UNSEEN)
        names = [f"{kind} {name}" for kind, name in cursor.fetchall()]
    if names:
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        yield checks.Warning(
            f"DATABASES[{alias!r}]: these may change the session, \"session\": \"watch\" does not detect it, and the "
            f"changes may leak into the next request: {listed}",
            hint='Set OPTIONS["pool"]["session"] to "clean". If none of their changes outlasts a transaction, '
            "silence this check (SILENCED_SYSTEM_CHECKS).", id="pooling.W004",
        )  # fmt: skip


# Objects that set session settings, or read them (so something sets them). Excludes the functions of extensions.
_UNSEEN = r"""
    WITH mine AS (
        SELECT oid, nspname FROM pg_namespace
        WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
    ), found AS (
        SELECT 'function' AS kind, format('%I.%I', nspname, proname) AS name, pg_get_functiondef(p.oid) AS text
        FROM pg_proc AS p JOIN mine ON mine.oid = pronamespace
        WHERE prokind IN ('f', 'p') AND NOT EXISTS (
            SELECT 1 FROM pg_depend
            WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e'
        )
      UNION ALL
        SELECT 'trigger', format('%I on %s', tgname, tgrelid::regclass), pg_get_triggerdef(t.oid)
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid JOIN mine ON mine.oid = relnamespace
        WHERE NOT tgisinternal
      UNION ALL
        SELECT 'policy', format('%I on %s', polname, polrelid::regclass),
            concat_ws(' ', pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
        FROM pg_policy
      UNION ALL
        SELECT 'rule', format('%I on %s', rulename, ev_class::regclass), pg_get_ruledef(r.oid)
        FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = ev_class JOIN mine ON mine.oid = relnamespace
        WHERE NOT EXISTS (
            SELECT 1 FROM pg_depend
            WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e'
        )
      UNION ALL
        SELECT 'default', format('%I of %s', attname, adrelid::regclass), pg_get_expr(adbin, adrelid)
        FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
            JOIN pg_class AS c ON c.oid = adrelid JOIN mine ON mine.oid = relnamespace
    )
    SELECT DISTINCT kind, name FROM found WHERE text ~* '\m(set_config|current_setting)\M'
    ORDER BY kind, name
"""
