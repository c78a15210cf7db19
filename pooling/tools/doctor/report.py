"""The doctor's findings and report."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, Literal

from .plan import Plan

__all__ = ["Finding", "Level", "Report"]

Level = Literal["breaks", "warning", "note"]
_MARKS: dict[Level, str] = {"breaks": "BREAKS ", "warning": "warning", "note": "note   "}


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        level: ``"breaks"``: expect errors; ``"warning"``: costs performance, or
            fails sometimes; ``"note"``: good to know.
        what: The problem.
        cure: The fix.
    """

    level: Level
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}. {self.cure}."


@dataclass(frozen=True)
class Report:
    """The facts and the findings; ``str()`` formats them for people."""

    facts: Any  # of the server's kind: `facts.Facts`, `mysql.Facts`
    plan: Plan
    findings: tuple[Finding, ...]

    @property
    def breaks(self) -> bool:
        """Whether anything will fail."""
        return any(finding.level == "breaks" for finding in self.findings)

    @property
    def warns(self) -> bool:
        """Whether anything costs performance, or fails sometimes."""
        return any(finding.level == "warning" for finding in self.findings)

    def __str__(self) -> str:
        lines = self.facts.lines()
        for finding in sorted(self.findings, key=lambda one: list(_MARKS).index(one.level)):
            mark = f"  {_MARKS[finding.level]}  "
            text = f"{finding.what}. {finding.cure}."
            lines += textwrap.wrap(text, 100, initial_indent=mark, subsequent_indent=" " * len(mark))
        if not self.findings:
            lines.append(f"  no problems found for {self.plan}")
        return "\n".join(lines)
