"""What the adaptive size did, or would do, in the report of a pool's ``advise()``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...tools.doctor.report import Finding, Report

__all__ = ["with_adaptive"]


def with_adaptive(report: Report, stats: Mapping[str, Any]) -> Report:
    """Return the report with the last decision of the adaptive size, if the pool has made one.

    Args:
        report: About the server.
        stats: The pool's `stats`.
    """
    found = stats.get("adaptive")
    if found is None or found["reason"] is None:
        return report
    mode, wanted, size = found["mode"], found["wanted"], stats["max_size"]
    what = f"adaptive={mode!r} found at a limit of {size}: {found['reason']}"
    if wanted == size:
        cure = "It proposes no other size"
    elif mode == "on":
        cure = f"It wants {wanted}, and settings or a budget allow {size}"
    else:
        cure = f"It would try {wanted}; set adaptive='on' to let it"
    return dataclasses.replace(report, findings=(*report.findings, Finding("note", what, cure)))
