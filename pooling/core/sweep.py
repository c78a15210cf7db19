"""What the reaper does to a pool when something is due: a client of the pool's own verbs.

Each of these looks at one thing, does what is due, and says when to look again.
"""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

from .entry import Entry, Key
from .state import _copy

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["AHEAD", "AUDIT", "NEVER", "sweep"]

logger = logging.getLogger("pooling")

AUDIT = 0.25
"""Seconds between audits while somebody waits (P8): they should never find anything."""

_OVERDUE = 1.0  # seconds in line after which a lease may have been forgotten in a cycle
_COLLECT_EVERY = 10.0  # seconds between two collections that the reaper asks for

AHEAD = 2.0
"""Seconds before the end of its lifetime that a core member is replaced, at most."""

NEVER = float("inf")


def sweep(pool: Pool[Any], now: float) -> float:
    """Do what is due in one pool.

    Returns:
        When to look again; infinity for "when something happens".
    """
    pool._background.workers.nudge()
    if pool._health.jumped(now, pool._clock.wall()):
        logger.info("pool %r: the process was frozen; idle resources are suspect", pool.name)
    return min(
        _overdue_work(pool, now),
        _rested_too_long(pool, now),
        _lived_too_long(pool, now),
        _keepalive(pool, now),
        _health_check(pool, now),
        _leaks(pool, now),
        _stalls(pool, now),
        _audit(pool, now),
    )


def _overdue_work(pool: Pool[Any], now: float) -> float:
    """Take their slots from a creation, a check and a close that hang (P4)."""
    state, settings = pool._state, pool._settings
    due = NEVER
    for entries, limit in (
        (state.creating, settings.create_timeout),
        (state.closing, settings.close_timeout),
    ):
        for entry in list(entries):
            due = min(due, _limit(pool, entry, now, limit))
    for entry, errand in list(state.checking.items()):
        due = min(due, _limit(pool, entry, now, errand.limit))
    return due


def _limit(pool: Pool[Any], entry: Entry, now: float, limit: float) -> float:
    if entry.since + limit > now:
        return entry.since + limit
    pool._abandon(entry, now, limit)
    return NEVER


def _rested_too_long(pool: Pool[Any], now: float) -> float:
    """Evict what lay idle too long, above ``min_size``; oldest first, from the left end.

    What is not due goes back where it was: through `_deliver` it would land on
    top, the stack would rotate, and nothing would ever age out.
    """
    state, limit = pool._state, pool._settings.idle_timeout
    if limit is None:
        return NEVER
    idle = state.idle
    while idle and len(state.entries) - len(state.closing) > state.min_size:
        try:
            key = idle.popleft()
        except IndexError:
            break
        due = key.entry.idle_since + limit
        if due > now:
            idle.appendleft(key)
            return due
        pool._evict(key, "idle_timeout")
    if len(state.entries) <= state.min_size:
        return NEVER  # a creation brings the next look
    return now + limit


def _lived_too_long(pool: Pool[Any], now: float) -> float:
    """Evict the idle ones past their lifetime, and mark the lent ones for their return.

    Those that `min_size` will miss are replaced a moment before.
    """
    state = pool._state
    due = NEVER
    ahead = pool._ahead
    for key in _copy(state.idle):
        if key.entry.expires <= now:
            _evict_idle(pool, key, "lifetime")
    ending = 0
    for entry in list(state.entries):
        if entry.expires <= now:
            entry.generation = None
        elif entry.expires - ahead <= now:
            ending += 1
            due = min(due, entry.expires)
        else:
            due = min(due, entry.expires - ahead)
    if ending:
        pool._replace_ahead(ending)
    return due


def _evict_idle(pool: Pool[Any], key: Key, reason: str) -> None:
    if _take(pool, key):
        pool._evict(key, reason)


def _take(pool: Pool[Any], key: Key) -> bool:
    """Take a certain key off the idle stack; ``False`` if somebody was faster."""
    try:
        pool._state.idle.remove(key)
    except ValueError:
        return False
    return True


def _keepalive(pool: Pool[Any], now: float) -> float:
    """Make a round trip on what was not heard of for ``keepalive_interval``."""
    interval = pool._settings.keepalive_interval
    if interval is None or pool._validate is None or not pool._state.entries:
        return NEVER
    due = now + interval
    for key in _copy(pool._state.idle):
        seen = max(key.entry.idle_since, key.entry.checked)
        if seen + interval > now:
            due = min(due, seen + interval)
        elif _take(pool, key):
            pool._ask_on_worker(key)  # it goes back where it was
    return due


def _health_check(pool: Pool[Any], now: float) -> float:
    """Ask the server how it is, at its interval, over the resource that rests longest."""
    interval = pool._settings.health_check_interval
    if interval is None or pool._validate is None or not pool._state.entries:
        return NEVER
    health = pool._health
    health.check_at = min(health.check_at, now + interval)  # the interval may have been shortened
    if now < health.check_at:
        return health.check_at
    health.check_at = now + interval
    for key in _copy(pool._state.idle):
        if _take(pool, key):
            pool._ask_on_worker(key, health=True)
            break
    return now + interval


def _leaks(pool: Pool[Any], now: float) -> float:
    """Report each lease that is out for longer than ``leak_timeout``, once."""
    limit = pool._settings.leak_timeout
    if limit is None or not pool._state.entries:
        return NEVER
    due = now + limit  # somebody may borrow the next moment, without a word to us
    for entry in pool._state.lent():
        if entry.leaked:
            continue
        if entry.since + limit <= now:
            pool._report_leak(entry, now)
        else:
            due = min(due, entry.since + limit)
    return due


def _stalls(pool: Pool[Any], now: float) -> float:
    """Have the adapter find out about holders that have been blocked in one command for ``stall_timeout``."""
    limit = pool._adapter.stall_timeout
    if limit is None or not pool._state.entries:
        return NEVER
    if now < pool._stalls_at <= now + limit:
        return pool._stalls_at
    seen = {}
    for entry in pool._state.lent():
        command = _command_of(pool, entry)
        if command is not None:
            known = pool._commands.get(entry)
            seen[entry] = known if known is not None and known[0] == command else (command, now)
    pool._commands = seen
    overdue = [(entry, command) for entry, (command, since) in seen.items() if since + limit <= now]
    if overdue:
        pool._ask_about(overdue, now)
    pool._stalls_at = now + limit / 4
    return pool._stalls_at


def _command_of(pool: Pool[Any], entry: Entry) -> object:
    resource = entry.resource
    try:
        return None if resource is None else pool._adapter.command_of(resource)
    except Exception:
        logger.debug("pool %r: command_of() failed", pool.name, exc_info=True)
        return None


def _audit(pool: Pool[Any], now: float) -> float:
    """Pair and plan again; while somebody waits, look again soon, and when a probe is due."""
    pool._serve(audit=True)
    outage = pool._outage
    holding = outage.error is not None or outage.full is not None
    due = outage.retry_at if holding and outage.retry_at > now else NEVER
    try:
        oldest = pool._state.waiters[0].arrived
    except IndexError:
        return due
    if now - oldest >= _OVERDUE:
        _collect(pool, now, now - oldest)
    return min(due, now + AUDIT)


def _collect(pool: Pool[Any], now: float, waited: float) -> None:
    """Look for leases that lie forgotten in a cycle: nobody allocates, so nobody collects."""
    reaper = pool._background.reaper
    if now < reaper.collect_after or not pool._state.in_use or not gc.isenabled():
        return
    reaper.collect_after = now + _COLLECT_EVERY
    logger.info("pool %r: a borrower waits for %.1f s; collecting garbage", pool.name, waited)
    gc.collect()
