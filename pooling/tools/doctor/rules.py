"""Checks a plan against a server. Pure: facts and a plan in, findings out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .cleaning import STEPS
from .plan import Plan
from .report import Finding, Report

if TYPE_CHECKING:  # importing it needs psycopg and libpq
    from .facts import Facts, Pooler

__all__ = ["examine"]

_SLOW_QUERY = 0.005  # seconds for SELECT 1: another region, or a slow network
_PATIENT = 3600  # seconds of TCP silence: Linux's default is two hours
_PREPARES_SINCE = (1, 21)  # the first PgBouncer that keeps prepared statements across transactions


def examine(facts: Facts, plan: Plan) -> Report:
    """Check a plan against the facts about a server."""
    rules = (
        _room, _room_behind, _limits_of_names, _fence, _planned_workers, _hidden, _closes_idle, _time_limits,
        _idle_transactions, _silent_clients, _far_away, _unclean, _failing_resets, _no_limit,
    )  # fmt: skip
    findings = [finding for rule in rules for finding in rule(facts, plan)]
    if facts.pooler is not None:
        pooler_rules = (_pooler_room, _startup_options, _transactions_apart)
        findings += [finding for rule in pooler_rules for finding in rule(facts.pooler, plan)]
    return Report(facts, plan, tuple(findings))


# -- number of connections --------------------------------------------------------------


def _room(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if facts.pooler is not None:
        return  # the server only sees the pooler's connections
    wanted, free = plan.connections, facts.room - facts.connected
    if wanted > facts.room:
        yield Finding(
            "breaks",
            f"{plan} = {wanted} connections, but the server accepts only {facts.room} from ordinary roles",
            f"{_smaller(free, plan)}, raise max_connections to at least "
            f"{wanted + facts.connected + facts.reserved}, or use PgBouncer",
        )
    elif wanted > free:
        yield Finding(
            "warning",
            f"{plan} = {wanted} connections, but with the {facts.connected} of other clients now only "
            f"{max(0, free)} are free",
            f"{_smaller(free, plan)}, or find out what the other clients are",
        )


def _smaller(free: int, plan: Plan) -> str:
    """Return the advice that makes the pools of all workers fit."""
    if plan.budget is not None and plan.connections == plan.budget:
        return f"Set the budget's total to at most {max(0, free)}"
    workers = plan.processes
    if free < workers:
        return f"Use fewer workers: with max_size 1, {max(0, free)} fit"
    return f"Set max_size to at most {free // workers}"


def _limits_of_names(facts: Facts, plan: Plan) -> Iterator[Finding]:
    for what, limit in (("role", facts.role_limit), ("database", facts.database_limit)):
        if 0 <= limit < plan.connections and not facts.superuser:
            yield Finding(
                "breaks",
                f"{plan} = {plan.connections} connections, but this {what}'s CONNECTION LIMIT is {limit}",
                f"{_smaller(limit, plan)}, or ALTER {what.upper()} ... CONNECTION LIMIT -1",
            )
    if facts.superuser:
        yield Finding(
            "note",
            "this role is a superuser: it uses connections reserved for administration, and no limit applies to it",
            "Use a separate role for the application",
        )


def _fence(facts: Facts, plan: Plan) -> Iterator[Finding]:
    """A budget is kept by the processes themselves; only the server can stop one that is frozen."""
    if plan.budget is None or facts.superuser or facts.pooler is not None:
        return
    if not 0 <= facts.role_limit <= plan.budget:
        limit = "has no CONNECTION LIMIT" if facts.role_limit < 0 else f"has a CONNECTION LIMIT of {facts.role_limit}"
        role = facts.address.rpartition(" as ")[2].replace('"', '""')
        yield Finding(
            "note",
            f"this role {limit}, so only the processes keep their budget of {plan.budget}: one that is frozen for "
            "longer than its lease keeps its connections, and the others open as many again",
            f'ALTER ROLE "{role}" CONNECTION LIMIT {plan.budget}; at that limit the pools go on with what they have',
        )


def _planned_workers(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if plan.workers is None and plan.budget is None and facts.pooler is None:
        free = max(0, facts.room - facts.connected)
        yield Finding(
            "note",
            f"the number of workers is unknown; {free // plan.settings.max_size} with max_size "
            f"{plan.settings.max_size} fit beside the clients connected now",
            "Pass it (--workers), including deployments, when old and new workers run side by side",
        )


def _hidden(facts: Facts, plan: Plan) -> Iterator[Finding]:
    hidden = sum(client.count for client in facts.clients if client.hidden)
    if hidden:
        yield Finding(
            "note",
            f"this role may not see where {hidden} connections of other roles come from, and whether they are idle "
            "in a transaction",
            "GRANT pg_monitor to it, or run this with a role that has it",
        )


# -- server settings that conflict with pooling ---------------------------------------------


def _closes_idle(facts: Facts, plan: Plan) -> Iterator[Finding]:
    limits = {"idle_session_timeout": facts.settings.get("idle_session_timeout", 0)}
    if facts.pooler is not None:
        limits["PgBouncer's client_idle_timeout"] = facts.pooler.number("client_idle_timeout") or 0
    rest, alive = plan.settings.idle_timeout, plan.settings.keepalive_interval
    for name, limit in limits.items():
        kept = plan.settings.min_size or rest is None or rest >= limit
        if limit and kept and not (alive and alive < limit):
            yield Finding(
                "warning",
                f"{name} is {limit:g} s: it closes idle connections that the pool keeps "
                f"({'for ever' if rest is None else f'idle_timeout {rest:g} s, and min_size for ever'}), "
                "so each must be created again when needed",
                f"Set keepalive_interval to {limit / 2:g}, or this limit to 0",
            )


def _time_limits(facts: Facts, plan: Plan) -> Iterator[Finding]:
    pairs = (
        ("idle_in_transaction_session_timeout", plan.idle_in_transaction_timeout or plan.settings.leak_timeout),
        ("statement_timeout", plan.command_timeout),
        ("transaction_timeout", plan.command_timeout),
    )
    for name, ours in pairs:
        limit = facts.settings.get(name, 0)
        if limit and ours and limit < ours:
            yield Finding(
                "warning",
                f"{name} is {limit:g} s on the server, shorter than the {ours:g} s that the pool allows",
                "Make the pool's limit the shorter one, so that errors name the slow holder",
            )


def _idle_transactions(facts: Facts, plan: Plan) -> Iterator[Finding]:
    limit = facts.settings.get("idle_in_transaction_session_timeout", 0)
    if limit and limit < 1:
        yield Finding(
            "warning",
            f"idle_in_transaction_session_timeout is {limit:g} s: any pause in a transaction ends the connection",
            "Set it to at least several seconds",
        )
    elif limit and not (plan.idle_in_transaction_timeout or plan.settings.leak_timeout):
        yield Finding(
            "note",
            f"idle_in_transaction_session_timeout is {limit:g} s, and the pool has no limit: the server closes a "
            "slower holder's connection, and no message names the holder",
            f"Set leak_timeout to less, for example {limit / 2:g} (for this check: --leak-timeout)",
        )


def _silent_clients(facts: Facts, plan: Plan) -> Iterator[Finding]:
    idle = facts.settings.get("tcp_keepalives_idle", 0)
    if idle >= _PATIENT:
        # It applies while a query runs; servers before 14 do not have it.
        blind = facts.settings.get("client_connection_check_interval") == 0
        besides = ", and client_connection_check_interval to 10 s, which ends queries of clients that are gone"
        yield Finding(
            "note",
            f"tcp_keepalives_idle is {idle:g} s on the server: a client whose machine is gone keeps its "
            "connection for that long",
            f"Set tcp_keepalives_idle to 60 there{besides if blind else ''}",
        )


def _far_away(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if facts.query_seconds > _SLOW_QUERY:
        yield Finding(
            "warning",
            f"the shortest query takes {facts.query_seconds * 1000:.1f} ms: a transaction needs three round trips, "
            "and holds its connection during all of them",
            "Run the application close to its database",
        )


def _unclean(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if plan.cleans and facts.missing:
        yield Finding(
            "warning",
            f"this server does not execute {', '.join(facts.missing)} for this role, so these leak from one borrower "
            f"to the next: {', '.join(STEPS[step] for step in facts.missing)}",
            "GRANT it, avoid these in the application, or clean with your own session= function",
        )


def _failing_resets(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if plan.resets_fail is not None:
        yield Finding(
            "breaks",
            f"resets keep failing, so connections are closed when they are released: {plan.resets_fail}",
            "Fix the cause: the reset= or session= function, something that borrowers leave open, or a short "
            "reset_timeout",
        )


def _no_limit(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if not plan.unlimited:
        return
    if facts.pooler is None:
        yield Finding(
            "note",
            "there is no command_timeout: a command that waits for a lock, or behind a proxy that forwards nothing, "
            "keeps its connection at least until the pool asks the server about it (stall_timeout)",
            "Set command_timeout to the longest time a command may take (for this check: --command-timeout)",
        )
    else:
        yield Finding(
            "warning",
            "there is no command_timeout, and through PgBouncer the pool cannot ask the server whether it is working "
            "on a command (stall_timeout), so a command without an answer keeps its connection for ever",
            "Set command_timeout to the longest time a command may take (for this check: --command-timeout), with "
            "ignore_startup_parameters = options",
        )


# -- behind PgBouncer -------------------------------------------------------------------------


def _room_behind(facts: Facts, plan: Plan) -> Iterator[Finding]:
    size = facts.pooler.number("default_pool_size") if facts.pooler is not None else None
    if size is not None and size > facts.room:
        yield Finding(
            "breaks",
            f"PgBouncer's default_pool_size is {size} per user and database, but the server accepts only {facts.room}",
            "Reduce it: a few times the number of the server's processors is enough",
        )


def _pooler_room(pooler: Pooler, plan: Plan) -> Iterator[Finding]:
    clients, size = pooler.number("max_client_conn"), pooler.number("default_pool_size")
    if clients is not None and plan.connections > clients:
        yield Finding(
            "breaks",
            f"{plan} = {plan.connections} connections, but PgBouncer's max_client_conn is {clients}",
            "Raise max_client_conn: a client needs only a few kilobytes",
        )
    if pooler.mode == "session" and size is not None and plan.connections > size:
        yield Finding(
            "breaks",
            f"in session mode each of the {plan.connections} connections of {plan} keeps one of PgBouncer's "
            f"default_pool_size={size}, and the rest wait until query_wait_timeout",
            f"{_smaller(size, plan)}, raise default_pool_size, or use transaction mode",
        )


def _startup_options(pooler: Pooler, plan: Plan) -> Iterator[Finding]:
    ignored = pooler.settings.get("ignore_startup_parameters", "")
    if plan.options and "options" not in ignored:
        yield Finding(
            "breaks",
            "PgBouncer refuses connections that send options (command_timeout and idle_in_transaction_timeout do)",
            "Unset these and use ALTER ROLE ... SET statement_timeout instead, or set "
            "ignore_startup_parameters = options, so that they have no effect",
        )


def _transactions_apart(pooler: Pooler, plan: Plan) -> Iterator[Finding]:
    if pooler.mode == "session":
        return
    if plan.cleans:
        yield Finding(
            "warning",
            "in transaction mode each transaction may run on another session, so cleaning a session is a wasted "
            "round trip",
            'Use session="trust", and keep SET, LISTEN, advisory locks and temporary tables inside transactions',
        )
    follows = (pooler.version or (0,)) >= _PREPARES_SINCE and pooler.number("max_prepared_statements")
    if plan.prepares is not False and not follows:
        yield Finding(
            "breaks" if plan.prepares else "warning",
            "in transaction mode a prepared statement may be missing in the next transaction",
            'Set kwargs={"prepare_threshold": None}, or use PgBouncer 1.21 with max_prepared_statements',
        )
