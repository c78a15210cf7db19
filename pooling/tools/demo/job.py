"""The order of one phase."""

from __future__ import annotations

from dataclasses import dataclass

from .place import Place

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """What a phase is told.

    Attributes:
        pooled: With pools or without.
        url: Where the service listens.
        trusted: A file with whom to trust, or ``None`` for plain HTTP.
        place: Where to store.
        threads: How many work.
        seconds: For how long they begin new pieces of work.
        seed: Decides who asks for which symbol.
    """

    pooled: bool
    url: str
    trusted: str | None
    place: Place
    threads: int
    seconds: float
    seed: int
