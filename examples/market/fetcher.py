"""The data fetcher: many quotes at once, with threads, and with progress."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from pooling import PoolError

from .model import Quote
from .progress import Progress
from .stocks import ProviderDown, StockService

__all__ = ["DataFetcher"]


class DataFetcher:
    """Fetches quotes and stores them in the cache.

    Args:
        stocks: Where quotes come from.
        threads: How many requests are made at once. The pool lends each thread a connection in its turn.
    """

    def __init__(self, stocks: StockService, threads: int = 8) -> None:
        self.stocks = stocks
        self.threads = threads

    def fetch(self, symbols: Sequence[str], progress: Progress | None = None) -> dict[str, str]:
        """Fetch these quotes.

        Args:
            symbols: What to fetch.
            progress: Shows how many are done; ``None`` means nothing is shown.

        Returns:
            The symbols that failed, each with the error.
        """
        failed: dict[str, str] = {}
        with ThreadPoolExecutor(self.threads, thread_name_prefix="fetch") as executor:
            jobs = {executor.submit(self._fetch, symbol): symbol for symbol in symbols}
            for done, job in enumerate(as_completed(jobs), 1):
                try:
                    job.result()
                except (ProviderDown, PoolError) as error:
                    failed[jobs[job]] = str(error)
                if progress is not None:
                    progress.update(done, f"{done} of {len(symbols)} quotes, {len(failed)} failed")
        return failed

    def _fetch(self, symbol: str) -> Quote:
        quote = self.stocks.fetch(symbol)
        self.stocks.cache.put(quote)
        return quote
