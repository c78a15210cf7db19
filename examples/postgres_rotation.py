"""Credentials that change while the application runs. Run it with

    python examples/postgres_rotation.py postgresql://postgres@localhost/app

with a role that may create roles. The callable stands for a secrets manager; it
is called for each new connection.
"""

from __future__ import annotations

import secrets
import sys
import threading
from typing import Any

import psycopg
from psycopg import sql

from pooling import PoolSettings, PostgresPool

ROLES = ("example_blue", "example_green")


def create_roles(dsn: str, vault: dict[str, str]) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for role in ROLES:
            vault[role] = secrets.token_hex(8)
            conn.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), vault[role]))


def drop_roles(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for role in ROLES:
            conn.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def main(dsn: str) -> None:
    vault: dict[str, str] = {}
    create_roles(dsn, vault)
    current = [ROLES[0]]

    def credentials() -> dict[str, Any]:
        return {"user": current[0], "password": vault[current[0]]}

    seen: list[str] = []
    errors: list[Exception] = []
    over = threading.Event()

    def work(db: PostgresPool) -> None:
        while not over.is_set():
            try:
                seen.append(db.execute_query("SELECT current_user")[0][0])
            except Exception as error:
                errors.append(error)

    with PostgresPool(dsn, PoolSettings(min_size=2, max_size=4), kwargs=credentials) as db:
        crew = [threading.Thread(target=work, args=(db,)) for _ in range(8)]
        for thread in crew:
            thread.start()
        current[0] = ROLES[1]  # the secret is rotated ...
        db.rotate()            # ... and applied now, not when the next connection is created
        over.set()
        for thread in crew:
            thread.join()
        print(f"{len(errors)} errors in {len(seen) > 0 and 'all' or 'no'} queries; now as {credentials()['user']}")
        assert db.execute_query("SELECT current_user") == [(ROLES[1],)]
    drop_roles(dsn)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
