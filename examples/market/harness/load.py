"""The clients: threads that read quotes and send orders, and remember what they sent."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from typing import Any

import requests

from pooling import HTTPPool, HTTPTimeout

from ..model import SYMBOLS, Order, Quote, price_of

__all__ = ["Load"]

_TRIES = 5  # of one basket; an order that is sent twice is stored once
_PAUSE = 0.2  # seconds before another try


class Load:
    """Clients of the application.

    Args:
        url: The application's address.
        threads: How many clients.
        basket: Orders in one request.
        pause: Seconds between two requests of a client.

    Attributes:
        sent: Every order that was sent, by id.
        stored: The ids of those that the application confirmed.
        errors: How often each error came.
        wrong: Quotes with a wrong price.
    """

    def __init__(self, url: str, threads: int = 8, basket: int = 5, pause: float = 0.0) -> None:
        self.sent: dict[str, Order] = {}
        self.stored: set[str] = set()
        self.errors: Counter[str] = Counter()
        self.wrong: list[Quote] = []
        self.requests = 0
        self.slowest = 0.0  # seconds of the slowest answer since this was reset
        self._basket, self._pause = basket, pause
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._http = HTTPPool(
            base_url=url, max_size=threads, max_per_host=threads, timeout=HTTPTimeout(connect=5, read=15),
            name="clients",
        )  # fmt: skip
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"client {number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the clients."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each client end what it is doing."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self._http.close(1.0)

    def __str__(self) -> str:
        seconds = max(0.001, time.monotonic() - self._began)
        failed = sum(self.errors.values())
        return (
            f"{self.requests:6,} requests {self.requests / seconds:7,.0f}/s  "
            f"{len(self.stored):6,} orders {len(self.stored) / seconds:7,.0f}/s  {failed:4,} failed"
        )

    def _run(self, number: int) -> None:
        dice = random.Random(number)
        for turn in itertools.count():
            if self._stop.is_set():
                return
            if turn % 2:
                self._read(dice.choice(SYMBOLS))
            else:
                self._order([
                    Order(f"{number}-{turn}-{piece}", dice.choice(SYMBOLS), dice.randint(1, 1000))
                    for piece in range(self._basket)
                ])
            self._stop.wait(self._pause)

    def _read(self, symbol: str) -> None:
        answer = self._ask("GET", f"/quotes/{symbol}")
        if answer is not None:
            quote = Quote(**answer)
            if quote.symbol != symbol or quote.price != price_of(symbol, quote.serial):
                self.wrong.append(quote)

    def _order(self, orders: list[Order]) -> None:
        """Send a basket until it is confirmed, or often enough."""
        with self._lock:
            self.sent.update((order.id, order) for order in orders)
        for _ in range(_TRIES):
            if self._ask("POST", "/orders", json=[order._asdict() for order in orders]) is not None:
                with self._lock:
                    self.stored.update(order.id for order in orders)
                return
            if self._stop.wait(_PAUSE):
                return

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        began = time.monotonic()
        try:
            response = self._http.request(method, path, **body)
        except requests.RequestException as error:
            self._count(f"no answer: {_cause(error)}", began)
            return None
        if response.ok:
            self._count("", began)
            return response.json()
        try:
            told = response.json()
            text = f"{response.status_code} {told['error']}: {told['message']}"
        except (ValueError, KeyError, TypeError):
            text = f"{response.status_code} {response.reason}"
        self._count(text, began)
        return None

    def _count(self, error: str, began: float) -> None:
        with self._lock:
            self.requests += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            if error:
                self.errors[error] += 1


def _cause(error: BaseException) -> str:
    """Return the reason at the bottom of an error of requests."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {error}"
