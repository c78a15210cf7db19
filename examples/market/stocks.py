"""The stock service: quotes from a provider with several backends, through the cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import requests

from pooling import CircuitBreaker, HTTPPool, HTTPTimeout

from .cache import QuoteCache
from .model import Quote

__all__ = ["ProviderDown", "StockService", "make_http"]


class ProviderDown(Exception):
    """No backend of the provider answers."""


def make_http() -> HTTPPool:
    """Return the pool of connections to the provider's backends."""
    return HTTPPool(
        max_size=100, max_per_host=30, acquire_timeout=5.0, idle_timeout=30.0,
        timeout=HTTPTimeout(connect=1.0, read=3.0, total=5.0),
        breaker=CircuitBreaker(failures=3, open_for=1.0, open_for_max=4.0),  # for each backend
        name="provider",
    )  # fmt: skip


class StockService:
    """Returns quotes: from the cache if they are fresh, otherwise from a backend.

    Args:
        backends: The addresses of the provider's backends.
        http: The pool for requests to them.
        cache: Where quotes are kept.
    """

    def __init__(self, backends: Sequence[str], http: HTTPPool, cache: QuoteCache) -> None:
        self.backends = tuple(backends)
        self.http = http
        self.cache = cache
        self._turns = itertools.count()

    def quote(self, symbol: str) -> Quote:
        """Return a fresh quote.

        Raises:
            ProviderDown: No backend answers.
            PoolError: From a pool.
        """
        quote = self.cache.get(symbol)
        if quote is None:
            quote = self.fetch(symbol)
            self.cache.put(quote)
        return quote

    def fetch(self, symbol: str) -> Quote:
        """Return a new quote from a backend.

        Raises:
            ProviderDown: No backend answers.
        """
        response = self._get(f"/quotes/{symbol}")
        response.raise_for_status()
        return Quote(**response.json())

    def _get(self, path: str) -> requests.Response:
        """Ask one backend after the other, beginning with another one each time, until one answers.

        A backend that keeps failing costs nothing: its circuit is open, so it is not asked.
        """
        first = next(self._turns)
        error: object = "no backends are configured"
        for number in range(len(self.backends)):
            backend = self.backends[(first + number) % len(self.backends)]
            try:
                response = self.http.get(backend + path)
            except (requests.ConnectionError, requests.Timeout) as failure:
                error = failure
                continue
            if response.status_code < 500:
                return response
            error = f"{backend} answers {response.status_code}"
        raise ProviderDown(f"none of the {len(self.backends)} backends answers; the last error: {error}")
