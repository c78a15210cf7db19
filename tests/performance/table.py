"""Tables of measured values with the targets beside them; as text and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .plot import Bars

__all__ = ["Column", "Table", "Target", "to_json"]

Row = Mapping[str, object]

_MARKS = {True: "met", False: "NOT MET", None: "not measured"}


@dataclass(frozen=True)
class Column:
    """One column: the key of its values, its heading, and how a value is written."""

    key: str
    heading: str
    spec: str = ""

    def write(self, row: Row) -> str:
        """Return the row's value as text; what was not measured is a dash."""
        value = row.get(self.key)
        return "-" if value is None else format(value, self.spec)


@dataclass(frozen=True)
class Target:
    """What this project set out to reach, and what was measured.

    A ``value`` of ``None`` was not measured: a peer is not installed.
    """

    what: str
    value: float | None
    sense: Literal["<=", ">="]
    limit: float
    unit: str = ""
    spec: str = ",.2f"

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; ``None`` if nothing was measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.sense == "<=" else self.value >= self.limit

    def cells(self) -> tuple[str, str, str, str]:
        """Return the target as four texts: what, the limit, the measured value, the mark."""
        measured = "-" if self.value is None else f"{self.value:{self.spec}}{self.unit}"
        limit = f"{self.sense} {self.limit:{self.spec}}{self.unit}"
        return self.what, limit, measured, _MARKS[self.met]

    def as_dict(self) -> dict[str, object]:
        """Return the target with its verdict, for JSON."""
        return {
            "what": self.what,
            "value": self.value,
            "sense": self.sense,
            "limit": self.limit,
            "unit": self.unit.strip(),
            "met": self.met,
        }


@dataclass
class Table:
    """What one benchmark found.

    ``failures`` are wrong results and crashes; nothing else makes the run fail.
    ``bars`` are for the picture.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()
    failures: Sequence[str] = field(default=())
    bars: Sequence[Bars] = ()

    def render(self) -> str:
        """Return the table as text: rows, then targets, then notes."""
        lines = [f"{self.name}: {self.title}"]
        lines += _aligned([[c.heading for c in self.columns], *self._cells()], "  ")
        lines += _aligned((target.cells() for target in self.targets), "  target  ")
        lines += [f"  note    {note}" for note in self.notes]
        lines += [f"  WRONG   {failure}" for failure in self.failures]
        return "\n".join(lines)

    def _cells(self) -> list[list[str]]:
        return [[column.write(row) for column in self.columns] for row in self.rows]

    def as_dict(self) -> dict[str, object]:
        """Return everything the table holds, for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "rows": [dict(row) for row in self.rows],
            "targets": [target.as_dict() for target in self.targets],
            "notes": list(self.notes),
            "failures": list(self.failures),
        }


def _aligned(rows: Iterable[Sequence[str]], margin: str) -> list[str]:
    """Return the rows as lines, the first column to the left and the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append((margin + "   ".join(cells)).rstrip())
    return lines


def to_json(environment: Mapping[str, object], tables: Iterable[Table]) -> str:
    """Return the whole run as JSON; infinity, which JSON does not know, becomes null."""
    document = {**environment, "benchmarks": [table.as_dict() for table in tables]}
    return json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
