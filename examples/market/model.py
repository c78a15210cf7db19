"""What the service is about: quotes and orders."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

__all__ = ["SYMBOLS", "Order", "Quote", "price_of"]

SYMBOLS = tuple(first + second for first in ("AL", "BO", "CE", "DU", "FA", "GI", "KO", "MU") for second in "DKMNRSTX")
"""The invented symbols that the provider knows."""


class Quote(NamedTuple):
    """A price at one moment.

    Attributes:
        symbol: What is quoted.
        serial: The provider's number of this quote, which determines the price.
        price: In cents.
    """

    symbol: str
    serial: int
    price: int


class Order(NamedTuple):
    """An order as the client sends it.

    Attributes:
        id: Chosen by the client. An order that is sent twice is stored once.
        symbol: What to buy.
        quantity: How many.
    """

    id: str
    symbol: str
    quantity: int

    @classmethod
    def of(cls, data: object) -> Order:
        """Read an order from JSON.

        Raises:
            ValueError: A field is missing or wrong.
        """
        if not isinstance(data, dict) or set(data) != set(cls._fields):
            raise ValueError(f"an order has the fields {', '.join(cls._fields)}, not {data!r}")
        order = cls(**data)
        if not (isinstance(order.id, str) and 0 < len(order.id) <= 40):
            raise ValueError(f"id must be a string of 1 to 40 characters, not {order.id!r}")
        if order.symbol not in SYMBOLS:
            raise ValueError(f"symbol must be one of the {len(SYMBOLS)} that the provider knows, not {order.symbol!r}")
        if type(order.quantity) is not int or not 1 <= order.quantity <= 1_000_000:
            raise ValueError(f"quantity must be a whole number from 1 to 1000000, not {order.quantity!r}")
        return order


def price_of(symbol: str, serial: int) -> int:
    """Return the price in cents of one quote. Anyone can compute it, so every stored price can be checked."""
    digest = hashlib.blake2b(f"{symbol}/{serial}".encode(), digest_size=8).digest()
    return 100 + int.from_bytes(digest, "big") % 1_000_000
