"""What must be right in the end: every stored row, and no lease out."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import requests

from pooling import PoolSettings

from ..model import price_of
from ..orders import OrderStore
from .load import Load
from .stage import Stage

__all__ = ["complaints", "view"]

_PATIENCE = 10.0  # seconds for the figures of all workers to arrive
_FEW = 3  # of a kind are shown


def complaints(stage: Stage, load: Load) -> Iterator[str]:
    """Yield what is wrong, in words. The load has stopped.

    Args:
        stage: The application, still running.
        load: What was sent.
    """
    if not load.stored:
        yield "no order was stored, so nothing was checked"
    yield from _orders(stage, load)
    yield from _cache(stage)
    for quote in load.wrong[:_FEW]:
        yield f"a client got a wrong quote: {quote}"
    yield from _leases(stage)


def _orders(stage: Stage, load: Load) -> Iterator[str]:
    store = OrderStore(stage.orders, stage.schema, PoolSettings(min_size=0, max_size=1))
    with contextlib.closing(store.pool):
        rows = store.rows()
    bad = []
    for id, symbol, quantity, serial, price in rows:
        sent = load.sent.get(id)
        if sent is None:
            bad.append(f"order {id} is stored, but no client sent it")
        elif (symbol, quantity) != (sent.symbol, sent.quantity):
            bad.append(f"order {id} is stored as {quantity} {symbol}, but {sent.quantity} {sent.symbol} was sent")
        elif price != price_of(symbol, serial):
            bad.append(f"order {id} has the price {price}, but quote {serial} says {price_of(symbol, serial)}")
    missing = load.stored - {row[0] for row in rows}
    bad += [f"order {id} was confirmed, but is not stored" for id in sorted(missing)]
    yield from _first(bad)


def _cache(stage: Stage) -> Iterator[str]:
    with contextlib.closing(sqlite3.connect(stage.cache)) as conn:
        rows = conn.execute("SELECT symbol, serial, price FROM quotes").fetchall()
    bad = [
        f"the cache has the price {price} for quote {serial} of {symbol}, not {price_of(symbol, serial)}"
        for symbol, serial, price in rows if price != price_of(symbol, serial)
    ]  # fmt: skip
    yield from _first(bad)


def _leases(stage: Stage) -> Iterator[str]:
    """Wait for figures of all workers that are newer than the load; complain if a lease is out then."""
    began = time.time()
    deadline = time.monotonic() + _PATIENCE
    while True:
        seen = view(stage)
        new = bool(seen["processes"]) and all(seen["time"] - one["age"] > began for one in seen["processes"])
        out = sum(pool["in_use"] for pool in seen["pools"])
        if new and not out:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.25)
    for pool in seen["pools"]:
        if pool["in_use"]:
            places = ", ".join(sorted({holder["where"] for holder in pool["holders"]})) or "an unknown place"
            yield f"pool {pool['name']!r}: {pool['in_use']} still in use, acquired in {places}"
    if not new:
        yield "a worker has told no figures since the load ended"


def view(stage: Stage) -> dict[str, Any]:
    """Return what the dashboard shows, as JSON."""
    response = requests.get(f"{stage.url}/pools", headers={"Accept": "application/json"}, timeout=10)
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    return found


def _first(bad: list[str]) -> Iterator[str]:
    yield from bad[:_FEW]
    if len(bad) > _FEW:
        yield f"and {len(bad) - _FEW:,} more like these"
