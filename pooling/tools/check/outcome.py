"""What the checks found, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..._console import Paint, duration, verdict_line

__all__ = ["Failed", "Outcome", "Results", "Skipped", "verdict"]

_NAME = 16  # characters of the longest name, and one


class Failed(Exception):
    """A check failed; the text says what is wrong."""


class Skipped(Exception):
    """A check has no result; the text says why."""


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        name: The check.
        good: Whether it passed; ``None`` if there is no result.
        text: What was seen, or what is wrong.
        seconds: How long it took.
    """

    name: str
    good: bool | None
    text: str
    seconds: float

    def line(self, paint: Paint) -> str:
        """Return it as text: the mark, the name, and what was seen."""
        return verdict_line(self.good, self.name, self.text, _NAME, paint, indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"name": self.name, "good": self.good, "text": self.text, "seconds": round(self.seconds, 3)}


@dataclass
class Results:
    """The outcomes for one target.

    Attributes:
        target: Its address, without secrets.
        kind: What it is: ``"PostgreSQL"``.
        outcomes: Of the checks so far.
    """

    target: str
    kind: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        """The names of the checks that failed."""
        return [one.name for one in self.outcomes if one.good is False]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "target": self.target, "kind": self.kind, "good": not self.bad,
            "checks": [one.to_dict() for one in self.outcomes],
        }  # fmt: skip


def verdict(results: list[Results], seconds: float, paint: Paint) -> str:
    """Return the last line."""
    outcomes = [one for result in results for one in result.outcomes]
    passed, left_out = (sum(one.good is state for one in outcomes) for state in (True, None))
    rest = f", {left_out} without a result" if left_out else ""
    bad = [f"{name} of {result.target}" for result in results for name in result.bad]
    if bad:
        return f"{paint('bad', 'BAD')}: {', '.join(bad)}; {passed} passed{rest}, in {duration(seconds)}"
    return f"{paint('good', 'good')}: {passed} checks passed{rest}, in {duration(seconds)}"
