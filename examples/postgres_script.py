"""A cron script: imports orders, prints a report, ends. Run it with your PostgreSQL server:

    python examples/postgres_script.py postgresql://localhost/app

Without an argument it uses ``DATABASE_URL`` or the ``PG*`` variables.
"""

from __future__ import annotations

import sys

from psycopg.rows import dict_row

from pooling import PoolSettings, PostgresPool

ORDERS = [("lamp", 2), ("chair", 4), ("table", 1), ("lamp", 5)]


def main(dsn: str) -> None:
    # A script may wait longer for its server, and needs few connections. `with` opens them,
    # or raises the reason why it cannot, and closes them at the end.
    settings = PoolSettings(min_size=1, max_size=2, acquire_timeout=30)
    with PostgresPool(dsn, settings, name="nightly-import", command_timeout=60) as db:
        with db.connection() as conn:  # one transaction: all or nothing
            conn.execute("CREATE TABLE IF NOT EXISTS example_orders (item text, quantity int)")
            conn.execute("TRUNCATE example_orders")
            with conn.cursor().copy("COPY example_orders FROM STDIN") as copy:
                for order in ORDERS:
                    copy.write_row(order)
        db.execute_many("UPDATE example_orders SET quantity = quantity + %s WHERE item = %s", [(1, "table")])
        report = "SELECT item, sum(quantity) AS pieces FROM example_orders GROUP BY item ORDER BY item"
        for row in db.execute_query(report, row_factory=dict_row):
            print(f"{row['item']}: {row['pieces']}")
        db.execute_query("DROP TABLE example_orders")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
