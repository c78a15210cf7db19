"""How many orders a second the storage takes, each in a transaction of its own."""

from __future__ import annotations

import threading
import time

from pooling import PoolSettings

from ..model import SYMBOLS, Order, Quote, price_of
from ..orders import OrderStore
from .stage import Stage

__all__ = ["measure"]

_THREADS = 16
_SETTINGS = PoolSettings(min_size=10, max_size=100, acquire_timeout=10.0)


def measure(stage: Stage, seconds: float) -> str:
    """Store orders for some seconds; return the result in words."""
    store = OrderStore(stage.orders, stage.schema, _SETTINGS)
    quotes = {symbol: Quote(symbol, 1, price_of(symbol, 1)) for symbol in SYMBOLS}
    counts = [0] * _THREADS
    stop = threading.Event()

    def place(number: int) -> None:
        while not stop.is_set():
            order = Order(f"bench-{number}-{counts[number]}", SYMBOLS[counts[number] % len(SYMBOLS)], 1)
            store.place([order], quotes)
            counts[number] += 1

    with store.pool:
        store.create_table()
        threads = [threading.Thread(target=place, args=(number,), daemon=True) for number in range(_THREADS)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        stop.wait(seconds)
        stop.set()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        stored = len(store.rows())
    if stored != sum(counts):
        raise RuntimeError(f"{sum(counts)} orders were stored, but {stored} are there")
    return f"{stored / took:,.0f} a second by {_THREADS} threads, each order in a transaction of its own"
