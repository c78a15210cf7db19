"""The budget of a pool, from an argument or the environment."""

from __future__ import annotations

import os

from ...core.sizing import Budget

__all__ = ["as_budget", "database_budget"]


def as_budget(given: Budget | str | None) -> Budget | None:
    """Return the budget that an argument means.

    Raises:
        ValueError: It is a text that means none.
    """
    if not isinstance(given, str):
        return given
    from ...fleet.budget import FleetBudget  # here: most pools have none

    return FleetBudget.parse(given)


def database_budget(given: Budget | str | None) -> Budget | None:
    """Return the budget of a pool of database connections: that of the environment variable, if it is given none.

    Raises:
        ValueError: The argument or the variable means none.
    """
    if given is not None or not os.environ.get("POOLING_BUDGET", "").strip():
        return as_budget(given)
    from ...fleet.budget import budget_from_env

    return budget_from_env()
