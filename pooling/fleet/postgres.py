"""A store in the database of the pool itself: the table ``pooling_budget``, a row for each process.

A renewal is one message, which the server executes as one transaction: it takes
an advisory lock of the budget, and decides as `Ledger.renew` does. It goes over
a connection of the pool, which counts like any other. Only a process that has
none to spare, because all are in use for longer than a second, or because it
begins without ``max_members``, opens another for a moment: for these one
connection of the total is not handed out.

The table is created if it is missing. Where the role may not do that, create
it by hand: see `TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import PoolError
from .model import TTL, Answer, Request, Terms
from .stores import PATIENCE, StoreError

__all__ = ["TABLE", "PostgresStore"]

TABLE = """
CREATE TABLE IF NOT EXISTS pooling_budget (
    budget text NOT NULL,
    member text NOT NULL,  -- empty: until when the store learns
    need integer NOT NULL,
    held integer NOT NULL,
    share integer NOT NULL,
    until double precision NOT NULL,
    number bigint NOT NULL,
    epoch text,
    PRIMARY KEY (budget, member)
)
"""

_BEGIN = """
SELECT set_config('statement_timeout', '{patience:.0f}', true), set_config('synchronous_commit', 'on', true);
SELECT pg_advisory_xact_lock(hashtext('pooling_budget'), hashtext('{budget}'));
"""

# All statements of one message have the same statement_timestamp().
_RENEW = _BEGIN + """
INSERT INTO pooling_budget AS t (budget, member, need, held, share, until, number, epoch)
VALUES ('{budget}', '', 0, 0, 0, '-infinity', 0, extract(epoch FROM pg_postmaster_start_time())::text)
ON CONFLICT (budget, member) DO UPDATE
SET until = extract(epoch FROM statement_timestamp()) + {ttl}, epoch = excluded.epoch
WHERE t.epoch <> excluded.epoch OR {undeclared} AND (
    SELECT bool_and(until <= extract(epoch FROM statement_timestamp())) FROM pooling_budget
    WHERE budget = '{budget}' AND member <> ''
);
DELETE FROM pooling_budget WHERE budget = '{budget}' AND member NOT IN ('', '{member}')
AND until <= extract(epoch FROM statement_timestamp());
INSERT INTO pooling_budget AS t (budget, member, need, held, share, until, number)
VALUES ('{budget}', '{member}', {need}, {held}, {held}, extract(epoch FROM statement_timestamp()) + {ttl}, {number})
ON CONFLICT (budget, member) DO UPDATE
SET need = excluded.need, held = excluded.held, until = excluded.until, number = excluded.number
WHERE excluded.number > t.number;
WITH members AS (
    SELECT member, greatest(need, {floor}) AS want, greatest(held, {least}) AS holds, greatest(share, {least}) AS share
    FROM pooling_budget WHERE budget = '{budget}' AND member <> ''
), facts AS (
    SELECT count(*)::int AS members, sum(holds)::int AS held, {size} - {floor} * greatest(0, {declared} - count(*)::int)
    AS size FROM members
), counts AS (
    SELECT want, count(*)::int AS number FROM members GROUP BY want
), steps AS (
    SELECT want, greatest(size, 0) - (sum(want * number) OVER (ORDER BY want) - want * number) AS remaining,
    sum(number) OVER (ORDER BY want DESC) AS wanting FROM counts, facts
), top AS (
    SELECT (remaining / wanting)::int AS level, remaining % wanting > 0 AS over FROM steps
    WHERE want * wanting > remaining ORDER BY want LIMIT 1
), sums AS (
    SELECT sum(greatest(0, least(want, level) - holds))::int AS short,
    coalesce(sum(greatest(0, holds - share)) FILTER (WHERE member <> '{member}'), 0)::int AS coming
    FROM members LEFT JOIN top ON true
), own AS (
    SELECT want, holds, least(want, level) AS mine, level, over, size, held, coming,
    short - greatest(0, least(want, level) - holds) AS short, held - holds AS others, members.members,
    greatest(0, until - extract(epoch FROM statement_timestamp())::float8) AS learning
    FROM (SELECT * FROM members, facts WHERE member = '{member}') AS members LEFT JOIN top ON true, sums,
    (SELECT until FROM pooling_budget WHERE budget = '{budget}' AND member = '') AS meta
), room AS (
    SELECT *, greatest(0, size - held) AS free, short - (size - held) - coming AS lack,
    least(holds + greatest(0, size - held - short), CASE WHEN level IS NULL THEN {like}
    ELSE least(want, level + over::int) END) AS more FROM own
), decided AS (
    SELECT *, greatest({least}, CASE
        WHEN learning > 0 THEN greatest(holds, least({floor}, holds + free))
        WHEN lack > 0 THEN greatest(least(mine, holds + free), least(more, holds - lack))
        ELSE greatest(least(mine, holds + free), more)
    END) AS decision FROM room
)
UPDATE pooling_budget AS t SET share = decision, held = greatest(t.held, decision) FROM decided
WHERE t.budget = '{budget}' AND t.member = '{member}' AND t.number = {number}
RETURNING decision, mine, others, members, learning
"""

_RELEASE = _BEGIN + """
DELETE FROM pooling_budget WHERE budget = '{budget}' AND member = '{member}' AND number < {number}
"""

_WAIT = 1.0  # seconds for a connection of the pool
_MISSING = "42P01"  # undefined_table
_EXISTS = ("23505", "42P07", "42710")  # another process has just created it: a duplicate key, table or type


class PostgresStore:
    """The table in the database of the first `PostgresPool` with the budget.

    Args:
        name: Of the budget.
    """

    ttl = TTL
    reserve = 1

    def __init__(self, name: str) -> None:
        self._name = name

    def renew(self, request: Request, terms: Terms, pools: Sequence[Any]) -> Answer:
        rows = self._execute(_pool_of(pools), statement(self._name, request, terms), True)
        if not rows:
            raise StoreError("requests arrived out of order")
        share, mine, others, members, learning = rows[0]
        return Answer(share, mine, others, members, learning)

    def release(self, member: str, number: int, pools: Sequence[Any]) -> None:
        text = _RELEASE.format(budget=self._name, member=member, number=number, patience=PATIENCE * 1000)
        self._execute(_pool_of(pools), text, False)

    def close(self) -> None:
        """Nothing is open."""

    abandon = close

    def _execute(self, pool: Any, text: str, borrow: bool) -> list[Any]:
        run: Callable[[Any], list[Any]] = lambda conn: _run(conn, text)  # noqa: E731
        if borrow and pool.engine.state.max_size and not pool.closed:
            try:
                lease = pool.acquire(_WAIT)
            except PoolError as error:
                if error.__cause__ is not None:  # the server is down, or full
                    raise
            else:
                with lease as conn:
                    return run(conn)
        adapter = pool.engine.adapter
        conn = adapter.create()
        try:
            return run(conn)
        finally:
            adapter.close(conn)


def statement(name: str, request: Request, terms: Terms) -> str:
    """Return the statements of a renewal. The values are numbers and names of our own, which need no quotes."""
    declared = terms.max_members is not None
    return _RENEW.format(
        budget=name, patience=PATIENCE * 1000, ttl=terms.ttl, floor=terms.floor, size=terms.total - terms.reserve,
        least=terms.floor if declared else 0, declared=terms.max_members or 0, undeclared=str(not declared).lower(),
        **request._asdict(),
    )  # fmt: skip


def _pool_of(pools: Sequence[Any]) -> Any:
    for pool in pools:
        if any(each.__name__ == "PostgresPool" for each in type(pool).__mro__):
            return pool
    raise StoreError("the store 'postgresql:' needs a PostgresPool with this budget")


def _run(conn: Any, text: str) -> list[Any]:
    """Execute statements in one message; return the rows of the last one."""
    conn.autocommit = True
    try:
        return _rows(conn, text)
    except Exception as error:
        if getattr(error, "sqlstate", None) != _MISSING:
            raise
    try:
        _rows(conn, TABLE)
    except Exception as error:
        if getattr(error, "sqlstate", None) not in _EXISTS:
            raise
    return _rows(conn, text)


def _rows(conn: Any, text: str) -> list[Any]:
    from psycopg.rows import tuple_row

    with conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(text, prepare=False)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []
