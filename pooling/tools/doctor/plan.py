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
        workers: Number of processes with a pool each, on each host; ``None`` if not known.
        hosts: Number of hosts.
        rollout: Whether old and new processes run side by side during a deployment.
        cleans: Whether sessions are cleaned on the server (``session="clean"``).
        prepares: Whether statements are prepared; ``None`` if not known.
        options: Whether server settings are sent while connecting (``options``,
            ``command_timeout``, ``idle_in_transaction_timeout``).
        resets_fail: Why resets keep failing, if they do.
        command_timeout, idle_in_transaction_timeout: As for `PostgresPool`, in seconds.
        unlimited: Whether ``command_timeout`` is known to be unset.
        budget: The total of the workers' `FleetBudget`; ``None`` without one.

    Raises:
        TypeError, ValueError: ``workers``, ``hosts`` or ``budget`` is not a whole number above 0.
    """

    settings: PoolSettings = field(default_factory=PoolSettings)
    workers: int | None = None
    hosts: int = 1
    rollout: bool = False
    cleans: bool = True
    prepares: bool | None = None
    options: bool = False
    resets_fail: str | None = None
    command_timeout: float | None = None
    idle_in_transaction_timeout: float | None = None
    unlimited: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "hosts", "budget"):
            number = getattr(self, name)
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} must be a whole number or None, not {number!r}")
            if number < 1:
                raise ValueError(f"{name} must be at least 1 or None, not {number!r}")

    @property
    def processes(self) -> int:
        """The maximum number of processes at once; 1 if the number of workers is not known."""
        return (self.workers or 1) * self.hosts * (2 if self.rollout else 1)

    @property
    def connections(self) -> int:
        """The maximum number of connections of all workers together."""
        if self.budget is not None and self.workers is None:
            return self.budget
        planned = self.processes * self.settings.max_size
        return planned if self.budget is None else min(planned, self.budget)

    def __str__(self) -> str:
        if self.budget is not None and self.connections == self.budget:
            return f"a budget of {self.budget}"
        return f"{self.fleet} x max_size {self.settings.max_size}"

    @property
    def fleet(self) -> str:
        """The processes, in words."""
        workers = self.workers or 1
        hosts = "" if self.hosts == 1 else f"{self.hosts} hosts x "
        return f"{hosts}{workers} worker{'s'[:workers != 1]}{' x 2 in a rollout' if self.rollout else ''}"
