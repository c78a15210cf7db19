"""A plain WSGI application with our middleware."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import parse_qsl

from pooling import Pool, PostgresPool
from pooling.manager import PoolManager
from pooling.web.wsgi import PoolingMiddleware, lease
from tests.integration.matrix.answers import SETTINGS, answer

pool = PostgresPool(os.environ["MATRIX_DSN"], SETTINGS, name="db")
manager = PoolManager()
manager.add_pool(pool)
pool.open()  # at import, in the parent of all workers
assert pool.execute_query("SELECT 42") == [(42,)]


class Psycopg:
    """A request's connection; psycopg's own transactions."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ

    @property
    def pool(self) -> Pool[Any]:
        return pool

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = lease(self._environ, "db").execute(sql, params).fetchall()
        return found

    def transaction(self) -> AbstractContextManager[object]:
        made: AbstractContextManager[object] = lease(self._environ, "db").transaction()
        return made

    def stream(self, sql: str, *params: object) -> Iterator[tuple[Any, ...]]:
        with lease(self._environ, "db").cursor(name="piecemeal") as cursor:
            cursor.itersize = 20
            cursor.execute(sql, params)
            yield from cursor


def site(environ: dict[str, Any], start_response: Any) -> Any:
    text = answer(environ["PATH_INFO"].strip("/"), dict(parse_qsl(environ["QUERY_STRING"])), Psycopg(environ))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()] if isinstance(text, str) else (piece.encode() for piece in text)


application = PoolingMiddleware(site, manager)
