"""`PostgresPool.advise`: what the server says about a pool's settings."""

from __future__ import annotations

import psycopg

from ...core.report.messages import format_error
from ...settings import PoolSettings
from ...tools.doctor.facts import read
from ...tools.doctor.plan import Plan
from ...tools.doctor.report import Report
from ...tools.doctor.rules import examine
from .address import OWN, Address
from .session import Session

__all__ = ["advise"]


def advise(
    address: Address, session: Session, settings: PoolSettings, failing: BaseException | None, workers: int | None,
    budget: int | None,
) -> Report:  # fmt: skip
    """See `PostgresPool.advise`.

    Args:
        address: The pool's connection parameters.
        session: How its sessions are cleaned.
        settings: Its settings.
        failing: The error with which resets keep failing, if they do.
        workers: How many processes have such a pool, if it is known.
        budget: The total of its budget, if it has one.
    """
    arguments = address.ask().arguments
    plan = Plan(
        settings=settings, workers=workers, budget=budget, cleans=session.cleans,
        prepares=arguments.get("prepare_threshold", 5) is not None, options="options" in arguments,
        command_timeout=session.command_timeout, unlimited=session.command_timeout is None,
        resets_fail=None if failing is None else format_error(failing),
    )  # fmt: skip
    plain = {name: value for name, value in arguments.items() if name not in OWN}
    ours = plain.get("application_name") or plain["fallback_application_name"]
    return examine(read(lambda **other: psycopg.connect(**{**plain, **other}), ours), plan)
