"""`Controller`: hill climbing on the completed leases per second.

A larger pool is tried while borrowers wait, and kept if it completed more. Where it did not, and the server takes
longer for the same work, the size goes back: the best one lies between the last two. From there it goes down as long
as that helps. What it is made of, and where that is known from:

- Slow start and doubling: TCP (RFC 5681). It ends with the first step that did not help.
- Additive increase, multiplicative decrease (+1, x 0.9), and no growth unless at least half of the limit is in use:
  Netflix's concurrency-limits, ``AIMDLimit``.
- The time without load, which longer times are compared with: TCP Vegas (Brakmo and Peterson, 1995), the gradient
  controller of Envoy's adaptive concurrency filter, and ``Gradient2Limit`` with its long average.
- The ceiling: Little's law, and for small numbers the square-root rule of Halfin and Whitt (1981).

concurrency-limits is known to drift and to oscillate (its issues #35, #88, #125, #134, #165). Against that: only the
time under pressure is looked at (see `window`); each step is judged by its effect; a direction is kept for
`COOL_DOWN` seconds after a reversal, unless a step clearly cost completions or the server refuses connections; and
growth that did not help is tried again only when the load has changed, or after 10 minutes, then 20, 40, 60.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .window import Window

__all__ = ["COOL_DOWN", "START", "Controller", "Decision"]

START = 10
"""The size to begin with, if the bounds allow it: a pool's default ``max_size``, and HikariCP's."""

COOL_DOWN = 300.0
"""Seconds after a reversal for which the direction does not change again."""

_AGAIN, _AGAIN_MOST = 600.0, 3600.0  # seconds after which growth that did not help is tried again
_OVERLOADED = 1.5  # times the long average of the server's time
_CONTENDED = 1.1  # times, above which requests are in each other's way
_SHARE = 1 / 3  # of the growth, that completions must rise by
_CLEAR = 0.05  # loss of completions that is undone at once, if chance does not explain it
_FEW = 20  # completed leases, with fewer of which nothing is decided
_CHANGED = 1.2  # times, by which the load or the server has changed
_RISE, _FALL = 0.02, 0.3  # weights of a window in the averages of times, upwards and downwards


class Decision(NamedTuple):
    """What to do after a window.

    Attributes:
        at: When.
        before: The size in force, or the one that was asked for and not granted.
        after: The size from now on, within the bounds.
        wanted: The same without the bounds.
        reason: Why, in words and figures.
    """

    at: float
    before: int
    after: int
    wanted: int
    reason: str


class _Trial(NamedTuple):
    """A step that is judged after the next window."""

    before: int
    after: int
    rate: float
    time: float


class Controller:
    """Finds the size with the most completions per second. Pure, not thread-safe.

    Attributes:
        size: The size that it wants now, within the bounds.
        last: The last decision, if there was one.
        reversals: How often the direction has changed.

    Args:
        low: The lowest size, 1 or more.
        high: The highest.
    """

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.size = max(low, min(high, START))
        self.last: Decision | None = None
        self.reversals = 0
        self._direction = 0  # of the last step
        self._reversed_at = -math.inf
        self._slow_start = True
        self._trial: _Trial | None = None
        self._unproved = False  # trouble came before the last step could be judged
        self._undo: int | None = None  # the size to go back to when the cool-down permits
        self._restoring = False  # the step that is chosen undoes the last one
        self._usual = self._usual_rate = self._usual_trip = 0.0  # long averages; 0.0: none yet
        self._usual_size = 0  # the smallest size at which the usual time was seen
        self._closed_until, self._closed_for = -math.inf, 0.0  # growth did not help
        self._settled = 0.0, 0.0  # rate and time then

    def set_bounds(self, low: int, high: int) -> None:
        """Apply other bounds; the size is moved between them."""
        if (low, high) != (self.low, self.high):
            self.low, self.high = low, high
            self.size = max(low, min(high, self.size))
            self._trial = self._undo = None
            self._closed_until = -math.inf

    def decide(self, window: Window, act: bool = True) -> Decision:
        """Return the next size.

        Args:
            window: What happened since the last step, or a part of that.
            act: Whether the decision is carried out. If not, the next one starts from the size in force.
        """
        if not act or window.size > self.size:
            self.size = max(self.low, min(self.high, window.size))
        before, self._restoring = self.size, False
        trial, self._trial = self._trial, None
        wanted, reason = self._choose(window, trial)
        after = max(self.low, min(self.high, wanted))
        if wanted > self.high:
            reason += f"; max_size={self.high} allows no more"
        elif wanted < self.low:
            reason += f"; min_size={self.low} allows no less"
        if act and after != before:
            self._step(window, after)
        self.last = Decision(window.at, before, after, wanted, reason)
        return self.last

    def _step(self, window: Window, after: int) -> None:
        direction = 1 if after > self.size else -1
        if direction == -self._direction:
            self.reversals += 1
            self._reversed_at = window.at
            self._slow_start = False
        self._direction = direction
        if window.completed >= _FEW and not (window.full or self._restoring):
            self._trial = _Trial(window.size, after, window.rate, self._time(window))
        self._undo = None
        self.size = after

    # -- what to do ------------------------------------------------------------------

    def _choose(self, window: Window, trial: _Trial | None) -> tuple[int, str]:
        """Return the wanted size and why; the wanted size is the present one if nothing is to change."""
        if window.trouble is not None:
            self._unproved = trial is not None or self._unproved
            return self.size, f"frozen: {window.trouble}"
        if window.full:
            self._settle(math.inf, 0.0, window.at)  # growth is tried again after some minutes only
            self._reversed_at = window.at
            fewer = min(self.size - 1, max(window.live, math.floor(0.9 * self.size)))
            return fewer, f"the server refuses more connections; {window.live} are open"
        if window.completed < _FEW:
            return self.size, f"borrowers waited for moments only: {window.completed} leases ended meanwhile"
        if window.size < self.size:
            self._learn(window)
            return self.size, f"asks for {self.size}; another limit grants {window.size}"
        chosen = None
        if self._unproved:
            chosen = self.size, f"the effect of the last step is not known: {self._figures(window)}"
            self._unproved = False
        elif trial is not None and trial.after == window.size:
            judge = self._after_growth if trial.after > trial.before else self._after_shrink
            chosen = judge(window, trial)
        if chosen is None:
            chosen = self._undo_later(window) or self._shrink_if_overloaded(window) or self._grow(window)
        self._learn(window)
        return chosen

    def _after_growth(self, window: Window, trial: _Trial) -> tuple[int, str] | None:
        """Judge a growth; ``None`` if it helped."""
        gain = window.rate / trial.rate - 1
        if gain >= max(_SHARE * (window.size / trial.before - 1), 1 / math.sqrt(window.completed)):
            self._closed_for = 0.0
            return None
        self._closed_for = min(_AGAIN_MOST, max(_AGAIN, 2 * self._closed_for))
        self._settle(window.rate, self._time(window), window.at)
        outcome = f"{trial.before} -> {window.size} changed the completions by {gain:+.1%}: {self._figures(window)}"
        lost = -gain > self._clear(window)
        longer = self._time(window) > _CONTENDED * trial.time
        if window.size - trial.before > 1 and (lost or longer):
            back = (trial.before + window.size) // 2
            if lost or self._may(-1, window):
                return back, f"half of the last step back, {outcome}"
        if lost:
            return self._restore(trial, outcome)
        self._undo = trial.before
        return self.size, f"no further growth, {outcome}"

    def _after_shrink(self, window: Window, trial: _Trial) -> tuple[int, str] | None:
        """Judge a shrink: it goes on while it helps, and is undone if it clearly cost completions."""
        change, share = window.rate / trial.rate - 1, 1 - window.size / trial.before
        time = self._time(window)
        outcome = f"{trial.before} -> {window.size} changed the completions by {change:+.1%}: {self._figures(window)}"
        self._settle(window.rate, time, window.at)
        if change < 0 and 1 - time / trial.time < share / 2:  # the work takes longer now, however many do it at once
            self._usual, self._usual_size = time, window.size
        if -change > max(self._clear(window), share / 3):
            return self._restore(trial, outcome)
        known = self._usual_size < window.size
        if known:
            helped = change > 0.01 or time > _OVERLOADED * self._usual
            contended = time > _CONTENDED * self._usual
        else:  # no time without contention is known to compare with: see how the time follows the size
            helped = change > -0.02
            contended = 1 - time / trial.time > share / 2
        if helped and contended:
            return window.size - self._decrease(window), f"a smaller size helps, {outcome}"
        if change < -share / 3:
            self._undo = trial.before
        return self.size, f"best size so far, {outcome}"

    def _undo_later(self, window: Window) -> tuple[int, str] | None:
        """Undo the last step, which did not help, as soon as the cool-down permits."""
        if self._undo is None or self._undo == window.size:
            self._undo = None
            return None
        if not self._may(1 if self._undo > window.size else -1, window):
            return self.size, f"the last step did not help, and is undone later: {self._figures(window)}"
        return self._undo, f"the last step did not help, and is undone: {self._figures(window)}"

    def _shrink_if_overloaded(self, window: Window) -> tuple[int, str] | None:
        """x 0.9 if the server takes 1.5 times as long as usual, and does not complete more."""
        if not self._usual or window.rate > 1.05 * self._usual_rate:
            return None
        ratio = self._time(window) / self._usual
        if window.driver is None:  # the borrowers' own work is in it: the server must be slow, too
            trips = window.round_trip / self._usual_trip if window.round_trip and self._usual_trip else 0.0
            ratio = min(ratio, trips)
        if ratio <= _OVERLOADED or not self._may(-1, window):
            return None
        self._slow_start = False
        return window.size - max(1, round(0.1 * window.size)), (
            f"the server takes {ratio:.1f} times as long as usual, without more completions: {self._figures(window)}"
        )

    def _grow(self, window: Window) -> tuple[int, str]:
        figures, size = self._figures(window), window.size
        if 2 * window.in_use < size:
            return self.size, f"less than half of {size} is in use: {figures}"
        need = self._need(window)
        ceiling = math.ceil(max(1.3 * need, need + 2 * math.sqrt(need)))
        if size >= ceiling:
            return self.size, f"enough: by Little's law {need:.3g} are in use, and {size} leave room: {figures}"
        if not self._open_for_growth(window):
            return self.size, f"the last growth did not help, and the load has not changed: {figures}"
        if not self._may(1, window):
            left = self._reversed_at + COOL_DOWN - window.at
            return self.size, f"no change of direction for another {left:.0f} s: {figures}"
        step = size if self._slow_start else max(1, size // 20)
        wanted = min(size + step, ceiling)
        return wanted, f"{window.waiting:.3g} waited on average: {figures}"

    # -- what is known ---------------------------------------------------------------

    @staticmethod
    def _time(window: Window) -> float:
        """Seconds of a lease inside the driver; those it was held, where that is not known."""
        return window.held if window.driver is None else window.driver

    def _need(self, window: Window) -> float:
        """How many are in use at this rate if the server takes the usual time, by Little's law."""
        time = self._time(window)
        own = max(0.0, window.held - time)  # the borrowers' own work between calls needs a connection, too
        return window.rate * (min(time, self._usual or time) + own)

    @staticmethod
    def _clear(window: Window) -> float:
        """The smallest loss that chance does not explain: 2.5 standard deviations of the number of completions."""
        return max(_CLEAR, 2.5 / math.sqrt(window.completed))

    def _decrease(self, window: Window) -> int:
        if self._usual_size >= window.size:
            return max(1, window.size // 5)
        return 1 if self._time(window) < 1.25 * self._usual else max(1, round(0.1 * window.size))

    def _may(self, direction: int, window: Window) -> bool:
        """Whether the cool-down permits a step in this direction."""
        return direction != -self._direction or window.at >= self._reversed_at + COOL_DOWN

    def _restore(self, trial: _Trial, outcome: str) -> tuple[int, str]:
        """Undo the last step at once. That is no trial: the size is known."""
        self._settled, self._restoring = (trial.rate, trial.time), True
        return trial.before, f"the last step is undone, {outcome}"

    def _settle(self, rate: float, time: float, at: float) -> None:
        """Close the growth until the load differs from this one, or for some minutes."""
        self._closed_until = at + max(_AGAIN, self._closed_for)
        self._settled = rate, time
        self._slow_start = False

    def _open_for_growth(self, window: Window) -> bool:
        if window.at >= self._closed_until:
            return True
        rate, time = self._settled
        return window.rate > _CHANGED * rate or self._time(window) * _CHANGED < time

    def _learn(self, window: Window) -> None:
        """Add a window to the long averages. Longer times count little: an overload must not become usual soon."""
        time, rate = self._time(window), window.rate
        if not self._usual:
            self._usual, self._usual_rate, self._usual_size = time, rate, window.size
        self._usual += (_FALL if time < self._usual else _RISE) * (time - self._usual)
        self._usual_rate += 0.2 * (rate - self._usual_rate)
        self._usual_size = min(self._usual_size, window.size)
        if window.round_trip is not None:
            self._usual_trip = self._usual_trip or window.round_trip
            weight = _FALL if window.round_trip < self._usual_trip else _RISE
            self._usual_trip += weight * (window.round_trip - self._usual_trip)

    def _figures(self, window: Window) -> str:
        text = f"{window.rate:.4g} completions/s, {_duration(self._time(window))} "
        if window.driver is None:
            text += "held per lease (the adapter does not time its driver, so completions decide"
            text += f"; round trips {_duration(window.round_trip)})" if window.round_trip else ")"
        else:
            text += f"in the driver per lease ({'counted' if window.counted else 'sampled'}"
            text += f", usually {_duration(self._usual)})" if self._usual else ")"
        return text + (f", {window.failed} acquires failed" if window.failed else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
