"""What is wrong with a plan on a server. Pure: facts and a plan in, findings out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .cleaning import STEPS
from .plan import Plan
from .report import Finding, Report

if TYPE_CHECKING:  # where it is imported psycopg is needed, and a libpq
    from .facts import Facts, Pooler

__all__ = ["examine"]

_SLOW_QUERY = 0.005  # seconds for SELECT 1: another region, or a sick network
_PATIENT = 3600  # seconds of TCP silence: Linux's own default is two hours
_PREPARES_SINCE = (1, 21)  # PgBouncer's version that follows prepared statements over transactions


def examine(facts: Facts, plan: Plan) -> Report:
    """Judge a plan by what a server says of itself."""
    rules = (
        _room, _room_behind, _limits_of_names, _planned_workers, _hidden, _hangs_up, _time_limits, _idle_transactions,
        _silent_clients, _far_away, _unclean, _failing_resets, _no_limit,
    )  # fmt: skip
    findings = [finding for rule in rules for finding in rule(facts, plan)]
    if facts.pooler is not None:
        pooler_rules = (_pooler_room, _startup_options, _transactions_apart)
        findings += [finding for rule in pooler_rules for finding in rule(facts.pooler, plan)]
    return Report(facts, plan, tuple(findings))


# -- is there room? ---------------------------------------------------------------------


def _room(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if facts.pooler is not None:
        return  # our connections are the pooler's there
    wanted, free = plan.connections, facts.room - facts.connected
    if wanted > facts.room:
        yield Finding(
            "breaks",
            f"{plan} = {wanted} connections, and the server takes {facts.room} from ordinary roles",
            f"{_smaller(free, plan)}, raise max_connections to at least "
            f"{wanted + facts.connected + facts.reserved}, or put PgBouncer in between",
        )
    elif wanted > free:
        yield Finding(
            "warning",
            f"{plan} = {wanted} connections, and beside the {facts.connected} that others have now there is "
            f"room for {max(0, free)}",
            f"{_smaller(free, plan)}, or find out who the others are",
        )


def _smaller(free: int, plan: Plan) -> str:
    """What to do so that the pools of all workers fit."""
    workers = plan.workers or 1
    if free < workers:
        return f"Have fewer workers: with max_size 1 there is room for {max(0, free)}"
    return f"Set max_size to at most {free // workers}"


def _limits_of_names(facts: Facts, plan: Plan) -> Iterator[Finding]:
    for what, limit in (("role", facts.role_limit), ("database", facts.database_limit)):
        if 0 <= limit < plan.connections and not facts.superuser:
            yield Finding(
                "breaks",
                f"{plan} = {plan.connections} connections, and this {what}'s CONNECTION LIMIT is {limit}",
                f"{_smaller(limit, plan)}, or ALTER {what.upper()} ... CONNECTION LIMIT -1",
            )
    if facts.superuser:
        yield Finding(
            "note",
            "this role is a superuser: it takes the connections reserved for repairs, and no limit holds it",
            "Give the application a role of its own",
        )


def _planned_workers(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if plan.workers is None and facts.pooler is None:
        free = max(0, facts.room - facts.connected)
        yield Finding(
            "note",
            f"how many workers there are was not said; {free // plan.settings.max_size} with max_size "
            f"{plan.settings.max_size} fit beside who is connected now",
            "Say it (--workers), deployments included: old and new ones run side by side for a while",
        )


def _hidden(facts: Facts, plan: Plan) -> Iterator[Finding]:
    hidden = sum(client.count for client in facts.clients if client.hidden)
    if hidden:
        yield Finding(
            "note",
            f"where {hidden} connections of other roles come from, and whether they are idle in a transaction, "
            "is not shown to this role",
            "GRANT pg_monitor to it, or look as a role that has it",
        )


# -- does the server work against the pool? -------------------------------------------------


def _hangs_up(facts: Facts, plan: Plan) -> Iterator[Finding]:
    limits = {"idle_session_timeout": facts.settings.get("idle_session_timeout", 0)}
    if facts.pooler is not None:
        limits["PgBouncer's client_idle_timeout"] = facts.pooler.number("client_idle_timeout") or 0
    rest, alive = plan.settings.idle_timeout, plan.settings.keepalive_interval
    for name, limit in limits.items():
        kept = plan.settings.min_size or rest is None or rest >= limit
        if limit and kept and not (alive and alive < limit):
            yield Finding(
                "warning",
                f"{name} is {limit:g} s: it hangs up on connections that the pool keeps "
                f"({'for ever' if rest is None else f'idle_timeout {rest:g} s, and min_size for ever'}), "
                "and each must be made anew when it is wanted",
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
                "Make the pool's limit the shorter one, so that errors say who was too slow",
            )


def _idle_transactions(facts: Facts, plan: Plan) -> Iterator[Finding]:
    limit = facts.settings.get("idle_in_transaction_session_timeout", 0)
    if limit and limit < 1:
        yield Finding(
            "warning",
            f"idle_in_transaction_session_timeout is {limit:g} s: a pause of the application ends its connection",
            "Set it to some seconds at least",
        )
    elif limit and not (plan.idle_in_transaction_timeout or plan.settings.leak_timeout):
        yield Finding(
            "note",
            f"idle_in_transaction_session_timeout is {limit:g} s, and the pool has no limit: the server ends a "
            "connection whose holder is slower, and nobody says who that was",
            f"Set leak_timeout to less, {limit / 2:g} for one (--leak-timeout tells it here)",
        )


def _silent_clients(facts: Facts, plan: Plan) -> Iterator[Finding]:
    idle = facts.settings.get("tcp_keepalives_idle", 0)
    if idle >= _PATIENT:
        # It looks while a query runs; servers before 14 know nothing of it.
        blind = facts.settings.get("client_connection_check_interval") == 0
        besides = ", and client_connection_check_interval to 10 s: it ends queries of clients that are gone"
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
            f"the least query takes {facts.query_seconds * 1000:.1f} ms: a transaction needs three round trips, "
            "and a connection is held for each of them",
            "Move the application next to its database",
        )


def _unclean(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if plan.cleans and facts.missing:
        yield Finding(
            "warning",
            f"this server does not execute {', '.join(facts.missing)} for this role: what a borrower leaves of these "
            f"stays for the next one: {', '.join(STEPS[step] for step in facts.missing)}",
            "GRANT it, do without these in the application, or clean with a session= function of your own",
        )


def _failing_resets(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if plan.resets_fail is not None:
        yield Finding(
            "breaks",
            "resets keep failing, so that connections are closed when they come back instead of kept: "
            f"{plan.resets_fail}",
            "Mend what it names: a reset= or session= function, what borrowers leave open, a short reset_timeout",
        )


def _no_limit(facts: Facts, plan: Plan) -> Iterator[Finding]:
    if not plan.unlimited:
        return
    if facts.pooler is None:
        yield Finding(
            "note",
            "there is no command_timeout: a command that waits for a lock, or for a proxy that forwards nothing, "
            "keeps its connection until the server is asked about it (stall_timeout), or longer",
            "Set command_timeout to what the longest command may take (--command-timeout tells it here)",
        )
    else:
        yield Finding(
            "warning",
            "there is no command_timeout, and through PgBouncer the server cannot be asked whether it is at work on a "
            "command (stall_timeout): one that gets no answer keeps its connection for ever",
            "Set command_timeout to what the longest command may take (--command-timeout tells it here), with "
            "ignore_startup_parameters = options",
        )


# -- behind PgBouncer -------------------------------------------------------------------------


def _room_behind(facts: Facts, plan: Plan) -> Iterator[Finding]:
    size = facts.pooler.number("default_pool_size") if facts.pooler is not None else None
    if size is not None and size > facts.room:
        yield Finding(
            "breaks",
            f"PgBouncer's default_pool_size is {size} for each user and database, and the server takes {facts.room}",
            "Make it smaller: some times the server's processors is enough",
        )


def _pooler_room(pooler: Pooler, plan: Plan) -> Iterator[Finding]:
    clients, size = pooler.number("max_client_conn"), pooler.number("default_pool_size")
    if clients is not None and plan.connections > clients:
        yield Finding(
            "breaks",
            f"{plan} = {plan.connections} connections, and PgBouncer's max_client_conn is {clients}",
            "Raise max_client_conn: a client costs it some kilobytes",
        )
    if pooler.mode == "session" and size is not None and plan.connections > size:
        yield Finding(
            "breaks",
            f"in session mode each of the {plan.connections} connections of {plan} keeps one of PgBouncer's "
            f"default_pool_size={size}: the rest waits until query_wait_timeout",
            f"{_smaller(size, plan)}, raise default_pool_size, or use transaction mode",
        )


def _startup_options(pooler: Pooler, plan: Plan) -> Iterator[Finding]:
    ignored = pooler.settings.get("ignore_startup_parameters", "")
    if plan.options and "options" not in ignored:
        yield Finding(
            "breaks",
            "PgBouncer refuses connections that send options (command_timeout and idle_in_transaction_timeout do)",
            "Leave these out here and use ALTER ROLE ... SET statement_timeout, or set "
            "ignore_startup_parameters = options, which then have no effect",
        )


def _transactions_apart(pooler: Pooler, plan: Plan) -> Iterator[Finding]:
    if pooler.mode == "session":
        return
    if plan.cleans:
        yield Finding(
            "warning",
            "in transaction mode each transaction may run on another session, so that cleaning one is a round "
            "trip for nothing",
            'Use session="trust", and keep SET, LISTEN, advisory locks and temporary tables inside of transactions',
        )
    follows = (pooler.version or (0,)) >= _PREPARES_SINCE and pooler.number("max_prepared_statements")
    if plan.prepares is not False and not follows:
        yield Finding(
            "breaks" if plan.prepares else "warning",
            "in transaction mode a prepared statement is not there in the next transaction",
            'Set kwargs={"prepare_threshold": None}, or PgBouncer 1.21 and max_prepared_statements',
        )
