"""How many connections a plan needs, and what to set; without a server."""

from __future__ import annotations

from .plan import Plan

__all__ = ["calculate"]

_USUAL, _RESERVED = 100, 3
"""PostgreSQL's default of ``max_connections``, and of ``superuser_reserved_connections`` out of them."""


def calculate(plan: Plan) -> str:
    """Return the text for people."""
    processes, size, room = plan.processes, plan.settings.max_size, _USUAL - _RESERVED
    wanted, floor = processes * size, room // processes
    rows = [("processes", f"{plan.fleet} = {processes}"), ("connections", f"{processes} x max_size {size} = {wanted}")]
    if wanted <= room:
        rows.append(("as it is", f"fits a server with max_connections = {_USUAL} ({_RESERVED} are reserved)"))
    else:
        rows.append(("as it is", f"max_connections of at least {wanted + _RESERVED}, and more for other clients"))
        fits = f"max_size {floor} ({processes} x {floor} = {processes * floor})" if floor else "no max_size"
        rows.append(("smaller", f"{fits} fits max_connections = {_USUAL}"))
    if wanted > room or plan.budget is not None:
        total = plan.budget or room
        shares = f"FleetBudget(total={total}, max_members={processes}): each up to {min(size, total)}, together {total}"
        few = f"a total of {total} is less than one for each process"
        rows.append(("a budget", few if processes > total else shares))
        rows.append(("PgBouncer", f"max_client_conn of at least {wanted}, default_pool_size 2 to 4 x the processors"))
    return "\n".join(f"{name:11}  {text}" for name, text in rows)
