"""Which statements leave something behind in a session: in doubt, any."""

from __future__ import annotations

import pytest

from pooling.web.django._statements import leaves_traces


@pytest.mark.parametrize(
    "query",
    [
        'SELECT "shop_order"."id" FROM "shop_order" WHERE "shop_order"."id" = %s FOR UPDATE',
        "  select 1",
        '(SELECT "a"."id" FROM "a") UNION (SELECT "b"."id" FROM "b")',
        "INSERT INTO t (a) VALUES (%s) RETURNING id",
        "UPDATE t SET a = %s",
        "DELETE FROM t",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        'SAVEPOINT "s1_x1"',
        'RELEASE SAVEPOINT "s1_x1"',
        'ROLLBACK TO SAVEPOINT "s1_x1"',
        "SET CONSTRAINTS ALL IMMEDIATE",
        "SET LOCAL statement_timeout = 100",
        "SELECT 1;",
        "SELECT 1 ;  \n",
    ],
)
def test_rows_leave_none(query: str) -> None:
    assert not leaves_traces(query)


@pytest.mark.parametrize(
    "query",
    [
        "SET statement_timeout = 100",
        "set time zone 'UTC'",
        "SET ROLE other",
        "RESET ALL",
        "LISTEN channel",
        "PREPARE p AS SELECT 1",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "CREATE TEMP TABLE t (a int)",
        "CREATE TABLE t (a int)",
        "SELECT 1 INTO TEMP t",
        "SELECT * INTO LOCAL TEMPORARY t FROM u",
        "SELECT set_config('a.b', 'c', false)",
        "SELECT SET_CONFIG('a.b', 'c', false)",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock(1)",
        "INSERT INTO pg_temp.t VALUES (1)",
        "SELECT 1; SET statement_timeout = 100",
        "SELECT 1;\nLISTEN a",
        "COMMIT PREPARED 'x'",
        "DO $$ BEGIN PERFORM 1; END $$",
        "CALL p()",
        "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
        "-- a comment\nSELECT 1",
        "",
    ],
)
def test_all_else_does(query: str) -> None:
    assert leaves_traces(query)
