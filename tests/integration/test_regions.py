"""Three regions, 20, 60 and 140 ms away, of which the nearest dies and comes back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from pooling import Balancing, HTTPPool, HTTPTimeout
from tests.integration.test_balancing import Traffic
from tests.integration.tools import wait_until
from tests.proxy import Proxy
from tests.web import WebServer

DISTANCES = {"eu": 0.02, "us": 0.06, "ap": 0.14}
POLICY = Balancing(eject_for=2.0, eject_for_max=2.0, slow_start=2.0)


class Region:
    """A server behind a network with a delay."""

    def __init__(self, server: WebServer, proxy: Proxy, distance: float) -> None:
        self.server, self.proxy = server, proxy
        self.url = f"http://127.0.0.1:{proxy.port}"
        proxy.delay(distance / 2)

    def requests(self) -> int:
        return int(self.server.book()["requests"])

    def die(self) -> None:
        self.proxy.refuse()
        self.proxy.cut()

    def come_back(self) -> None:
        self.proxy.accept()


@pytest.fixture
def regions() -> Iterator[dict[str, Region]]:
    with contextlib.ExitStack() as stack:
        made = {}
        for name, distance in DISTANCES.items():
            server = stack.enter_context(WebServer())
            made[name] = Region(server, stack.enter_context(Proxy(server.port)), distance)
        yield made


def shares(regions: dict[str, Region], seconds: float) -> dict[str, float]:
    """Return which part of the requests of the next seconds each region gets."""
    for region in regions.values():
        region.server.new_book()
    time.sleep(seconds)
    counts = {name: region.requests() for name, region in regions.items()}
    assert sum(counts.values()) > 10
    return {name: number / sum(counts.values()) for name, number in counts.items()}


@pytest.mark.parametrize("zoned", [True, False], ids=["zones", "latency alone"])
def test_the_nearest_region_dies_and_comes_back(regions: dict[str, Region], zoned: bool) -> None:
    """With zones, requests go to the near one; without, they avoid the farther of any two."""
    urls = {region.url: name for name, region in regions.items()}
    zones = {"zone": "eu", "zones": urls} if zoned else {}
    timeout = HTTPTimeout(connect=5.0, read=5.0)
    with HTTPPool(base_urls=urls, timeout=timeout, balancing=POLICY, **zones) as pool:
        with Traffic(pool, threads=4) as traffic:
            time.sleep(2.0)
            before = shares(regions, 3.0)
            regions["eu"].die()
            wait_until(lambda: pool.stats()["backends"][regions["eu"].url]["ejections"])
            without = shares(regions, 3.0)
            assert pool.stats()["backends"][regions["eu"].url]["state"] in ("ejected", "being tried")
            regions["eu"].come_back()
            wait_until(lambda: pool.stats()["backends"][regions["eu"].url]["state"] == "in service")
            time.sleep(1.0)
            after = shares(regions, 3.0)
        assert traffic.errors == []
    for found in (before, after):
        assert found["eu"] > (0.95 if zoned else 0.5), (before, without, after)
        assert found["ap"] < 0.05 or not zoned
    assert without["eu"] < 0.05 and without["us"] > 0.6 > without["ap"], (before, without, after)


def test_a_slow_near_zone_is_still_preferred(regions: dict[str, Region]) -> None:
    """It is near for other reasons than time, such as the cost of traffic."""
    urls = {region.url: name for name, region in regions.items()}
    with HTTPPool(base_urls=urls, zone="ap", zones=urls, balancing=POLICY) as pool, Traffic(pool):
        time.sleep(1.0)
        assert shares(regions, 2.0)["ap"] == 1.0


def test_a_full_near_zone_overflows(regions: dict[str, Region]) -> None:
    urls = {region.url: name for name, region in regions.items()}
    with HTTPPool(base_urls=urls, zone="eu", zones=urls, max_per_host=2) as pool, Traffic(pool, threads=8):
        time.sleep(1.0)
        found = shares(regions, 3.0)
        assert found["us"] > 0.1, found
        pool.reconfigure(max_per_host=50)
        time.sleep(1.0)
        assert shares(regions, 2.0)["eu"] == 1.0
