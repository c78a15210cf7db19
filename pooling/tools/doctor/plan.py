"""The connections that an application plans to open."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...settings import PoolSettings

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One pool per worker.

    Attributes:
        settings: The settings of each pool.
        workers: Number of processes with a pool each; ``None`` if not known.
        cleans: Whether sessions are cleaned on the server (``session="clean"``).
        prepares: Whether statements are prepared; ``None`` if not known.
        options: Whether server settings are sent while connecting (``options``,
            ``command_timeout``, ``idle_in_transaction_timeout``).
        resets_fail: Why resets keep failing, if they do.
        command_timeout, idle_in_transaction_timeout: As for `PostgresPool`, in seconds.
        unlimited: Whether ``command_timeout`` is known to be unset.
        budget: The total of the workers' `FleetBudget`; ``None`` without one.

    Raises:
        TypeError, ValueError: ``workers`` or ``budget`` is not a whole number above 0.
    """

    settings: PoolSettings = field(default_factory=PoolSettings)
    workers: int | None = None
    cleans: bool = True
    prepares: bool | None = None
    options: bool = False
    resets_fail: str | None = None
    command_timeout: float | None = None
    idle_in_transaction_timeout: float | None = None
    unlimited: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "budget"):
            number = getattr(self, name)
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} must be a whole number or None, not {number!r}")
            if number < 1:
                raise ValueError(f"{name} must be at least 1 or None, not {number!r}")

    @property
    def connections(self) -> int:
        """The maximum number of connections of all workers together."""
        if self.budget is not None and self.workers is None:
            return self.budget
        planned = (self.workers or 1) * self.settings.max_size
        return planned if self.budget is None else min(planned, self.budget)

    def __str__(self) -> str:
        workers = self.workers or 1
        if self.budget is not None and self.connections == self.budget:
            return f"a budget of {self.budget}"
        return f"{workers} worker{'s'[:workers != 1]} x max_size {self.settings.max_size}"
