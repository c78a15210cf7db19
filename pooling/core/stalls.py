"""Stalls: holders that wait for a command which the server is not working on.

The adapter reports which command the holder of a lent resource is blocked in.
If there was no progress for the adapter's ``stall_timeout``, it asks the server
about it on a worker, one holder set at a time, and interrupts holders whose
command the server is not working on.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Generic, TypeVar

from .._fields import fields
from .adapter import Verdicts
from .engine import Engine
from .entry import Entry
from .schedule import NEVER

__all__ = ["Stalls"]

R = TypeVar("R")
logger = logging.getLogger("pooling")


class Stalls(Generic[R]):
    """Finds the stalled holders of one engine."""

    def __init__(self, engine: Engine[R]) -> None:
        self.engine = engine
        self.renew()

    def renew(self) -> None:
        """Start from scratch; also in a forked child."""
        self._commands: dict[Entry, tuple[object, float]] = {}  # the commands that holders are blocked in, since when
        self._sweep_at = -NEVER
        self._asking_since: float | None = None
        self._unknown = ""  # the last logged reason why the server could not be asked

    def sweep(self, now: float) -> float:
        """Find holders blocked in one command for ``stall_timeout``; return when to check again."""
        engine, limit = self.engine, self.engine.adapter.stall_timeout
        if limit is None or not engine.state.entries:
            return NEVER
        if now < self._sweep_at <= now + limit:
            return self._sweep_at
        seen = {}
        for entry in engine.state.lent():
            command = self._command_of(entry)
            if command is not None:
                known = self._commands.get(entry)
                seen[entry] = known if known is not None and known[0] == command else (command, now)
        self._commands = seen
        overdue = [(entry, command) for entry, (command, since) in seen.items() if since + limit <= now]
        if overdue:
            self._ask_about(overdue, now)
        self._sweep_at = now + limit / 4
        return self._sweep_at

    def _command_of(self, entry: Entry) -> object:
        resource = entry.resource
        try:
            return None if resource is None else self.engine.adapter.command_of(resource)
        except Exception:
            name = self.engine.name
            extra = fields("hook_failed", name, hook="command_of")
            logger.debug("pool %r: command_of() failed", name, exc_info=True, extra=extra)
            return None

    def _ask_about(self, waiting: list[tuple[Entry, object]], now: float) -> None:
        """Ask the server about holders that have been blocked for long, on a worker, one call at a time (P2, P7)."""
        settings = self.engine.settings
        limit = settings.create_timeout + settings.health_check_timeout
        if self._asking_since is not None and now < self._asking_since + limit:
            return
        self._asking_since = now
        self.engine.runtime.workers.submit(self._end_stalled, waiting, now, self.engine.ref())

    def _end_stalled(self, waiting: list[tuple[Entry, object]], now: float, owner: object = None) -> None:
        engine, limit = self.engine, self.engine.adapter.stall_timeout or 0.0
        asked: list[Any] = [(entry.resource, command) for entry, command in waiting if entry.resource is not None]
        try:
            found = engine.adapter.end_stalled(asked, limit)
        except Exception:
            extra = fields("hook_failed", engine.name, hook="end_stalled")
            logger.exception("pool %r: end_stalled() failed", engine.name, extra=extra)
            found = Verdicts()
        finally:
            if self._asking_since == now:
                self._asking_since = None
        if not found.again:
            later = engine.fast.now()
            for entry, command in waiting:  # ask again about running commands after another limit
                if entry in self._commands:
                    self._commands[entry] = (command, later)
        self._report(found, limit)

    def _report(self, found: Verdicts, limit: float) -> None:
        name = self.engine.name
        for reason, count in Counter(found.ended).items():
            logger.warning(
                "pool %r: %d holder(s) interrupted after %g s or more in one command: %s", name, count, limit, reason,
                extra=fields("stalled", name, count=count, limit=limit, error=reason),
            )
        for reason, count in Counter(found.unknown).items():
            level = logging.DEBUG if reason == self._unknown else logging.WARNING  # once for the same reason
            self._unknown = reason
            logger.log(
                level, "pool %r: %d holder(s) in one command for %g s or more, cannot determine whether the "
                "server is working on it: %s", name, count, limit, reason,
                extra=fields("stall_unknown", name, count=count, limit=limit, error=reason),
            )
