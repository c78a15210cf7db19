"""The doctor's findings and report."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .plan import Plan

if TYPE_CHECKING:
    from .facts import Facts

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

    facts: Facts
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
        lines = [*self._heading(), *self._connected()]
        for finding in sorted(self.findings, key=lambda one: list(_MARKS).index(one.level)):
            mark = f"  {_MARKS[finding.level]}  "
            text = f"{finding.what}. {finding.cure}."
            lines += textwrap.wrap(text, 100, initial_indent=mark, subsequent_indent=" " * len(mark))
        if not self.findings:
            lines.append(f"  no problems found for {self.plan}")
        return "\n".join(lines)

    def _heading(self) -> list[str]:
        facts = self.facts
        ratio = facts.connect_seconds / facts.query_seconds if facts.query_seconds else 0
        lines = [
            f"PostgreSQL {facts.version} at {facts.address}",
            f"  connecting takes {facts.connect_seconds * 1000:.1f} ms, a query {facts.query_seconds * 1000:.2f} ms: "
            f"a new connection costs as much as {ratio:.0f} queries",
        ]
        if facts.pooler is not None:
            lines.append(f"  behind {facts.pooler}")
        return lines

    def _connected(self) -> list[str]:
        facts = self.facts
        lines = [
            f"  {facts.room} of max_connections={facts.max_connections} are available to ordinary roles; "
            f"{facts.connected} are in use now"
        ]
        for client in facts.clients[:10]:
            lines.append(f"    {client}")
        if len(facts.clients) > 10:
            lines.append(f"    and {sum(client.count for client in facts.clients[10:])} others")
        return lines
