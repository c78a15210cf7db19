"""The time limit of statements (``statement_timeout``)."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable

__all__ = ["STEPS", "Limit"]

STEPS = 1000
"""Instructions of SQLite's virtual machine between two calls of the progress handler, about 0.1 ms."""

_now = time.perf_counter


class Limit:
    """The time limit of one connection's statements, enforced by SQLite's progress handler.

    Attributes:
        seconds: The limit.
        deadline: When the current statement is interrupted; infinite if none runs.
        exceeded: Whether it interrupted the last statement.
    """

    __slots__ = ("seconds", "deadline", "exceeded")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = float("inf")
        self.exceeded = False

    def start(self, now: float) -> None:
        """Set the deadline of a statement that starts now."""
        self.deadline = now + self.seconds
        self.exceeded = False

    def stop(self) -> None:
        """Remove the deadline: the statements of the pool itself have no limit."""
        self.deadline = float("inf")

    def expired(self) -> bool:
        """Return whether the deadline has passed; as a progress handler, this interrupts the statement."""
        self.exceeded = _now() > self.deadline
        return self.exceeded

    def combined_with(self, handler: Callable[[], object] | None, steps: int) -> tuple[Callable[[], object], int]:
        """Return a progress handler, and its steps, for this limit and another handler: SQLite accepts only one."""
        if handler is None:
            return self.expired, STEPS
        every, calls = max(1, steps // STEPS), itertools.count(1)

        def both() -> object:
            return self.expired() or (next(calls) % every == 0 and handler())

        return both, min(STEPS, steps)

    def explain(self, error: sqlite3.OperationalError) -> sqlite3.OperationalError:
        """Return an error that names the limit, if the limit caused this one; else the error itself."""
        if not self.exceeded:
            return error
        text = f"interrupted: the statement took over {self.seconds:g} s (statement_timeout)"
        explained = sqlite3.OperationalError(text)
        explained.__cause__ = error
        return explained
