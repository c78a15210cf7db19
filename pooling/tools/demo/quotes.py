"""The quotes of the demo's service, and the comparison with the database."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

__all__ = ["SYMBOLS", "Quote", "Verdict", "price_of", "symbol_of", "compare"]

#: A few hundred invented, pronounceable symbols.
SYMBOLS = tuple("".join(letters) for letters in product("ABDGKMPT", "AEIO", "LNRSTX", "CM"))


class Quote(NamedTuple):
    """One row, and one record of the service."""

    serial: int  #: The service's count of its answers, which is unique.
    piece: int  #: The job that requested it. Distinguishes two requests for one symbol.
    symbol: str
    price: int  #: In cents, which compare exactly in every database.


def symbol_of(seed: int, piece: int) -> str:
    """Return the symbol that a job requests: the same in both phases."""
    return SYMBOLS[_number(seed, "symbol", piece) % len(SYMBOLS)]


def price_of(seed: int, symbol: str, serial: int) -> int:
    """Return the price in cents of this answer."""
    return 100 + _number(seed, symbol, serial) % 10_000_000


def _number(*parts: object) -> int:
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class Verdict(NamedTuple):
    """The differences between the rows of a table and the quotes served."""

    right: int
    missing: list[Quote]  #: Served, but not in the table.
    extra: list[Quote]  #: In the table a second time, or never served.
    mixed: list[Quote]  #: In the table with a different job, symbol or price.

    @property
    def perfect(self) -> bool:
        """Whether every row is right. False for a table without rows, which proves nothing."""
        return self.right > 0 and not (self.missing or self.extra or self.mixed)

    def __str__(self) -> str:
        if self.perfect:
            return f"all {self.right:,} rows are exactly as served"
        if not any(self):
            return "no rows"
        found = [f"{self.right:,} rows as served"]
        for kind in ("missing", "extra", "mixed"):
            if rows := getattr(self, kind):
                found.append(f"{len(rows):,} {kind}, such as {tuple(rows[0])}")
        return "; ".join(found)


def compare(rows: Iterable[Quote], served: Iterable[Quote], seed: int) -> Verdict:
    """Compare all rows of a table with the service's records.

    Args:
        rows: The rows of the table, in any order.
        served: The service's records.
        seed: The seed of the prices, which are computed again here to detect a
            wrong price in the records, too.
    """
    book = {quote.serial: quote for quote in served}
    right, extra, mixed = 0, [], []
    seen: Counter[int] = Counter()
    for row in map(Quote._make, rows):
        seen[row.serial] += 1
        if row.serial not in book or seen[row.serial] > 1:
            extra.append(row)
        elif row != book[row.serial] or row.price != price_of(seed, row.symbol, row.serial):
            mixed.append(row)
        else:
            right += 1
    missing = [quote for serial, quote in book.items() if serial not in seen]
    return Verdict(right, missing, extra, mixed)
