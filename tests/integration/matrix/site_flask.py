"""A Flask application with our extension."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from flask import Flask, Response, request

from pooling import Pool, PostgresPool
from pooling.web.flask import Pooling
from tests.integration.matrix.answers import SETTINGS, answer

pool = PostgresPool(os.environ["MATRIX_DSN"], SETTINGS, name="db")
pool.open()  # at import, in the parent of all workers
assert pool.execute_query("SELECT 42") == [(42,)]
app = application = Flask(__name__)
app.config["POOLING"] = {"db": pool}
pools = Pooling(app)


class Psycopg:
    """A request's connection; psycopg's own transactions."""

    @property
    def pool(self) -> Pool[Any]:
        return pool

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = pools.lease("db").execute(sql, params).fetchall()
        return found

    def transaction(self) -> AbstractContextManager[object]:
        made: AbstractContextManager[object] = pools.lease("db").transaction()
        return made

    def stream(self, sql: str, *params: object) -> Iterator[tuple[Any, ...]]:
        conn = pools.lease("db")  # now, because the body is produced without a context

        def pieces() -> Iterator[tuple[Any, ...]]:
            with conn.cursor(name="piecemeal") as cursor:
                cursor.itersize = 20
                cursor.execute(sql, params)
                yield from cursor

        return pieces()


@app.get("/<what>")
def site(what: str) -> Response:
    return Response(answer(what, request.args, Psycopg()), content_type="text/plain")
