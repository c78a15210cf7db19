"""`Alert`: what a target gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Alert"]


@dataclass(frozen=True)
class Alert:
    """The beginning or the end of an alert.

    Attributes:
        kind: The kind of the rule: ``"outage"``, ``"exhausted"``, ...
        state: ``"began"`` or ``"ended"``.
        pool: The label of the pool.
        severity: ``"warning"`` or ``"critical"``.
        text: What is wrong, or that it is over, in one line, without secrets.
        began, ended: Times of day, in seconds since the epoch; ``ended`` is ``None`` at the beginning.
        flaps: How often it was over and came back meanwhile.
        group: As given to `Alerts`.
        host, pid: Where it happened.
    """

    kind: str
    state: str
    pool: str
    severity: str
    text: str
    began: float
    ended: float | None = None
    flaps: int = 0
    group: str | None = None
    host: str = ""
    pid: int = 0

    @property
    def key(self) -> str:
        """The same at the beginning and the end, and in all processes of the group, or else of the host."""
        return f"{self.group or self.host}:{self.pool}:{self.kind}"

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON: all attributes and the ``key``."""
        return {
            "key": self.key, "kind": self.kind, "state": self.state, "pool": self.pool, "severity": self.severity,
            "text": str(self), "began": self.began, "ended": self.ended, "flaps": self.flaps, "group": self.group,
            "host": self.host, "pid": self.pid,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"pool {self.pool!r}: {self.text}"
