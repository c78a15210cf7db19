"""The stock service: quotes from a provider with several backends, through the cache."""

from __future__ import annotations

from collections.abc import Sequence

import requests

from pooling import Balancing, HTTPPool, HTTPTimeout

from .cache import QuoteCache
from .model import Quote

__all__ = ["ProviderDown", "StockService", "make_http"]


class ProviderDown(Exception):
    """No backend of the provider answers."""


def make_http(backends: Sequence[str]) -> HTTPPool:
    """Return the pool of connections to the provider's backends, which chooses one for each request."""
    return HTTPPool(
        base_urls=backends, max_size=100, max_per_host=30, acquire_timeout=5.0, idle_timeout=30.0,
        timeout=HTTPTimeout(connect=1.0, read=3.0, total=5.0),
        balancing=Balancing(eject_after=3, eject_for=1.0, eject_for_max=4.0),
        name="provider",
    )  # fmt: skip


class StockService:
    """Returns quotes: from the cache if they are fresh, otherwise from a backend.

    Args:
        http: The pool for requests to the provider's backends.
        cache: Where quotes are kept.
    """

    def __init__(self, http: HTTPPool, cache: QuoteCache) -> None:
        self.http = http
        self.cache = cache

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
        try:
            response = self.http.get(f"/quotes/{symbol}")  # a retry goes to another backend
            response.raise_for_status()
        except requests.RequestException as error:
            raise ProviderDown(f"no backend answers; the last error: {error}") from error
        return Quote(**response.json())
