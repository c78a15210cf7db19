"""What a database's server says of its connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["SERVERS", "activity", "clients_allowed"]

SERVERS = {"postgresql", "mysql"}
"""The vendors, by Django's names, whose databases have a server."""

_POSTGRES = """
    SELECT coalesce(nullif(application_name, ''), '-'), coalesce(state, 'starting'), count(*)
    FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    GROUP BY 1, 2 ORDER BY 1, 2
"""


def clients_allowed(wrapper: Any) -> int | None:
    """Return how many connections the server accepts from this user to this database; ``None`` if unlimited."""
    if wrapper.vendor == "postgresql":
        query, least = (
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
            " - coalesce(current_setting('reserved_connections', true), '0')::int,"
            " (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),"
            " (SELECT datconnlimit FROM pg_database WHERE datname = current_database())"
        ), 0
    elif wrapper.vendor == "mysql":
        query, least = "SELECT @@max_connections, @@max_user_connections", 1  # 0: no limit for the user
    else:
        return None
    with wrapper.temporary_connection() as cursor:
        cursor.execute(query)
        server, *limits = map(int, cursor.fetchone())
    return min([server, *(limit for limit in limits if limit >= least)])


def activity(wrapper: Any) -> Sequence[tuple[str, str, int]]:
    """Return the connections to a database besides our own: program or user, state, and how many."""
    with wrapper.temporary_connection() as cursor:
        if wrapper.vendor == "postgresql":
            cursor.execute(_POSTGRES)
            rows: Sequence[tuple[str, str, int]] = cursor.fetchall()
            return rows
        cursor.execute("SELECT CONNECTION_ID(), DATABASE()")
        own, here = cursor.fetchone()
        cursor.execute("SHOW PROCESSLIST")  # without the privilege PROCESS, only the user's own
        found = Counter(
            (str(user), "idle" if command == "Sleep" else str(command).lower())
            for number, user, _, database, command, *_ in cursor.fetchall()
            if number != own and database == here
        )
    return [(user, state, count) for (user, state), count in sorted(found.items())]
