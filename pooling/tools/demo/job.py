"""The job description of one phase."""

from __future__ import annotations

from dataclasses import dataclass

from .place import Place

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """The parameters of a phase.

    Attributes:
        pooled: Whether to use pools.
        url: The URL of the service.
        trusted: A file of trusted authorities, or ``None`` for plain HTTP.
        place: The table to store in.
        threads: Number of threads.
        seconds: How long they start new jobs.
        seed: Determines the symbol of each job.
    """

    pooled: bool
    url: str
    trusted: str | None
    place: Place
    threads: int
    seconds: float
    seed: int
