"""What tests of psycopg's cursors share: each of its kinds, a plain connection beside the pool's, a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.servers import PostgresServer

KINDS = [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    """The cursor class of a pool."""
    return request.param


@pytest.fixture
def plain(postgres: PostgresServer, kind: Any) -> Iterator[psycopg.Connection[Any]]:
    """A plain psycopg connection for comparison."""
    with postgres.connect(cursor_factory=kind) as conn:
        yield conn


@pytest.fixture
def table(postgres: PostgresServer) -> Iterator[str]:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS t; CREATE TABLE t (n integer)")
        yield "t"
        conn.execute("DROP TABLE t")
