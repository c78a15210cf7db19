"""Adaptive size of one pool: samples while borrowers wait, and the limit or the proposal that follows.

The samples are taken in the sweeps that the pool makes anyway while borrowers wait. While no borrower waits there is
nothing to decide, and nothing is read or scheduled (P11). Acquire and release do not know of it: what they count,
and what the adapter reports about blocked holders, is enough. The decisions are `pooling.adaptive`'s.
"""

from __future__ import annotations

import logging
from typing import Any, Generic, TypeVar

from .._fields import fields
from ..adaptive.controller import Controller, Decision
from ..adaptive.window import Sample, Windows
from .adapter import overridden
from .engine import Engine
from .schedule import NEVER
from .sizing import limit_size

__all__ = ["Adapting"]

R = TypeVar("R")
logger = logging.getLogger("pooling")

BY = "adaptive"  # the name of its limit
_EVERY = 0.2  # seconds between two samples, at least
_MOST_ASKED = 64  # holders of whom it is asked whether they are blocked
_QUIET = 300.0  # seconds between two proposals that are not carried out


class Adapting(Generic[R]):
    """Steers the size of one engine, or proposes to.

    Attributes:
        controller: Decides.
        windows: Adds up the samples.
    """

    def __init__(self, engine: Engine[R]) -> None:
        self.engine = engine
        self.renew()

    def renew(self) -> None:
        """Begin; again in a forked child, which has no resources and no limits yet."""
        engine = self.engine
        self.controller, self.windows = Controller(*self._bounds()), Windows()
        self._sample_at = self._full_at = -NEVER
        self._told: tuple[int, int] | None = None
        self._quiet_until = -NEVER
        begins = engine.settings.adaptive == "on" and not engine.state.entries  # otherwise the sweep sets the limit
        if begins and self.controller.low < self.controller.high:
            with engine.lock:
                engine.state.limits[BY] = self.controller.size
                engine.configure(engine.settings)

    def _bounds(self) -> tuple[int, int]:
        settings = self.engine.settings
        return max(1, settings.min_size), settings.max_size

    def sweep(self, now: float) -> float:
        """Take a sample if borrowers wait; decide at the end of a window. Return when to call again."""
        engine, state, controller = self.engine, self.engine.state, self.controller
        controller.set_bounds(*self._bounds())
        steers = engine.settings.adaptive == "on" and controller.low < controller.high
        self._apply(steers)  # the settings may have changed
        if engine.settings.adaptive == "off" or state.closed or controller.low >= controller.high:
            self.windows.restart()
            return NEVER
        if not state.waiters and self.windows.ends is None:
            return NEVER
        if now >= self._sample_at:
            self._sample_at = now + _EVERY
            window = self.windows.add(self._sample(now))
            if window is not None:
                decision = controller.decide(window, act=steers)
                self._apply(steers)
                self._tell(decision, steers, now)
        if self.windows.ends is None:
            return NEVER
        return self._sample_at if state.waiters else max(self._sample_at, self.windows.ends)

    def _apply(self, steers: bool) -> None:
        size = self.controller.size if steers else None
        if size != self.engine.state.limits.get(BY):
            limit_size(self.engine, BY, size)

    # -- read ------------------------------------------------------------------------

    def _sample(self, now: float) -> Sample:
        engine = self.engine
        driver, blocked = self._driver_time(), self._blocked()
        with engine.lock:
            return self._sample_locked(now, driver, blocked)

    def _sample_locked(self, now: float, driver: float | None, blocked: int | None) -> Sample:
        state, outage, metrics = self.engine.state, self.engine.outage, self.engine.metrics
        refused_at, full_at = outage.full_at, self._full_at
        self._full_at = max(full_at, refused_at)
        created, validated = metrics.durations.create.timed, metrics.durations.validate.timed
        return Sample(
            at=now, size=state.max_size, live=state.live, in_use=state.in_use,
            waiting=state.waiting_for_release, completed=metrics.completed,
            failed=metrics.count["timeouts"] + metrics.count["refusals"], blocked=blocked, driver=driver,
            round_trips=(created[0] + validated[0], created[1] + validated[1]),
            full=refused_at > full_at, trouble=self._trouble_locked(now),
        )  # fmt: skip

    def _trouble_locked(self, now: float) -> str | None:
        """Return why the completions say nothing about the size now."""
        outage, state = self.engine.outage, self.engine.state
        if outage.error is not None:
            return f"the server cannot be reached ({outage.text})"
        if outage.incident.since is not None:
            return "an outage has just ended"
        if now < outage.lapses_at < NEVER:
            return "connections died"
        return "the pool is paused" if state.paused else None

    def _driver_time(self) -> float | None:
        try:
            return self.engine.adapter.driver_time()
        except Exception:
            self._log_hook("driver_time")
            return None

    def _blocked(self) -> int | None:
        """Return how many holders are blocked in a driver call; ``None`` if the adapter cannot tell."""
        adapter = self.engine.adapter
        if overridden(adapter, "command_of") is None:
            return None
        lent = self.engine.state.lent()
        asked = [entry.resource for entry in lent[:_MOST_ASKED]]
        try:
            found = sum(1 for one in asked if one is not None and adapter.command_of(one) is not None)
        except Exception:
            self._log_hook("command_of")
            return None
        return round(found * len(lent) / len(asked)) if asked else 0

    def _log_hook(self, hook: str) -> None:
        name = self.engine.name
        logger.debug("pool %r: %s() failed", name, hook, exc_info=True, extra=fields("hook_failed", name, hook=hook))

    # -- report ----------------------------------------------------------------------

    def _tell(self, decision: Decision, steers: bool, now: float) -> None:
        """Report a step; and a proposal, unless it is the last one again, or that was a moment ago."""
        if steers and decision.after != decision.before:
            self._report(decision.before, decision.after, decision.reason, True)
            return
        proposal = (decision.before, decision.wanted)
        if decision.wanted != decision.before and proposal != self._told and now >= self._quiet_until:
            self._told, self._quiet_until = proposal, now + _QUIET
            self._report(*proposal, decision.reason, False)

    def _report(self, before: int, after: int, reason: str, applied: bool) -> None:
        events = self.engine.events
        logger.info(
            "pool %r: the size %s from %d to %d: %s",
            events.name, "changes" if applied else "would change", before, after, reason,
            extra=fields("adapted", events.name, before=before, after=after, reason=reason, applied=applied),
        )  # fmt: skip
        events.notify("adapted", before, after, reason, applied)

    def stats(self) -> dict[str, Any]:
        """Return the mode, the limit that is set, the size that is wanted, and why; ``None``: not decided yet."""
        last = self.controller.last
        return {
            "mode": self.engine.settings.adaptive,
            "limit": self.engine.state.limits.get(BY),
            "wanted": self.controller.size if last is None else last.wanted,
            "reason": None if last is None else last.reason,
        }
