"""Tells what clients, health page, dashboard and alerts say, each time that it changes."""

from __future__ import annotations

import contextlib
import json
import re
import textwrap
import time
from collections.abc import Callable
from typing import Any

import requests

from .check import view
from .load import Load
from .stage import Stage

__all__ = ["Story"]

_WIDE, _INDENT = 118, 21
_LONGEST = 330  # characters of a message
_STEADY = 1.5  # seconds: each request is answered by another worker, and some may be well
_LOGGED = re.compile(r"\[(\d+)\] \w+ pooling: (?!alert)(.*)|\[(?:ERROR|CRITICAL)\] (.*)")
_LEFT_OUT = re.compile(r"no requests to (\S+) for now|(http\S+) is left out")
_BACK = re.compile(r"(http\S+) answers again")


class Story:
    """Looks at the application from all sides.

    Args:
        stage: The application.
        load: Its clients.
        say: Writes a line.
    """

    def __init__(self, stage: Stage, load: Load, say: Callable[[str], object]) -> None:
        self._stage, self._load, self._say = stage, load, say
        self._began = time.monotonic()
        self._health, self._health_at = "", self._began
        self._pids = ""
        self._states: dict[str, str] = {}
        self._events: set[tuple[Any, ...]] = {(event["pid"], event["start"]) for event in view(stage)["events"]}
        self._kinds: set[str] = set()
        self._alerts_read, self._log_read = 0, stage.log.stat().st_size
        self._alerts: dict[str, set[int]] = {}  # processes in which an alert lasts, by its key
        self._left_out: set[tuple[str, str]] = set()  # worker, and the backend that it does not ask
        self._failed = self._stored = 0  # at the beginning of the phase
        self._failed_before = self._new_failures = 0  # at the last look, and since

    def tell(self, source: str, text: str) -> None:
        """Write what one source says, with the time since the beginning."""
        text = " ".join(text.split())
        text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
        lines = textwrap.wrap(text, _WIDE - _INDENT, break_long_words=False) or [""]
        self._say(f"{time.monotonic() - self._began:6.1f} s  {source:9}  " + ("\n" + " " * _INDENT).join(lines))

    @property
    def calm(self) -> bool:
        """Whether health is up, no alert lasts, all backends are asked, and no request failed since the last look."""
        lasting = any(self._alerts.values()) or self._left_out
        return self._health == "up" and not lasting and not self._new_failures

    def look(self) -> None:
        """Look at everything, and tell what is new."""
        failed = sum(self._load.errors.values())
        self._new_failures, self._failed_before = failed - self._failed_before, failed
        self._look_at_errors()
        self._look_at_log()
        with contextlib.suppress(requests.RequestException):
            self._look_at_health()
            self._look_at_dashboard()
        self._look_at_alerts()

    def begin_phase(self) -> None:
        """Begin to count for `end_phase`."""
        self._failed, self._stored = sum(self._load.errors.values()), len(self._load.stored)
        self._load.slowest = 0.0

    def end_phase(self, when: str) -> None:
        """Tell what the clients noticed since `begin_phase`."""
        failed, stored = sum(self._load.errors.values()) - self._failed, len(self._load.stored) - self._stored
        self.tell(
            "clients",
            f"{when}: {failed:,} requests failed, {stored:,} orders were stored, "
            f"the slowest answer took {self._load.slowest:.1f} s",
        )

    def _look_at_errors(self) -> None:
        for text in list(self._load.errors):
            if self._is_new_kind(text):
                self.tell("error", text)

    def _is_new_kind(self, text: str) -> bool:
        """Whether nothing like this was told before: only numbers and places differ."""
        kind = re.sub(r"[\d.,]+|\([^)]*\)", "#", text)[:80]
        return kind not in self._kinds and not self._kinds.add(kind)  # type: ignore[func-returns-value]

    def _look_at_log(self) -> None:
        with self._stage.log.open("rb") as log:
            log.seek(self._log_read)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._log_read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            found = _LOGGED.search(line)
            text = "" if found is None else found[2] or found[3]
            if found is not None and (left_out := _LEFT_OUT.search(text)):
                self._left_out.add((found[1], left_out[1] or left_out[2]))
            elif found is not None and (back := _BACK.search(text)):
                self._left_out.discard((found[1], back[1]))
            if text and self._is_new_kind(text):
                self.tell("log", text)

    def _look_at_health(self) -> None:
        health = requests.get(f"{self._stage.url}/health", timeout=10).json()
        now, status = time.monotonic(), health["status"]
        if status == self._health:
            self._health_at = now
        elif status != "up" or not self._health or now - self._health_at > _STEADY:
            reasons = "; ".join(f"{name}: {one['reason']}" for name, one in health["pools"].items() if "reason" in one)
            self._health, self._health_at = status, now
            self.tell("health", status + (f" ({reasons})" if reasons else ""))

    def _look_at_dashboard(self) -> None:
        seen = view(self._stage)
        pids = ", ".join(str(one["pid"]) for one in seen["processes"])
        if pids != self._pids:
            self._pids = pids
            self.tell("dashboard", f"{len(seen['processes'])} processes: {pids}")
        for pool in seen["pools"]:
            if pool["state"] != self._states.get(pool["name"]):
                self._states[pool["name"]] = pool["state"]
                counts = f"{pool['in_use']} of {pool['max_size']} in use, {pool['waiting']} waiting"
                self.tell("dashboard", f"pool {pool['name']!r} is {pool['state']}: {counts}")
        for event in reversed(seen["events"]):
            key = event["pid"], event["start"]
            if key not in self._events:
                self._events.add(key)
                kind = f"{event['pool']} {event['kind']}"
                if kind not in self._kinds:  # each worker has its own
                    self._kinds.add(kind)
                    text = f": {event['text']}" if event["text"] else ""
                    self.tell("dashboard", f"event {event['kind']!r} of pool {event['pool']!r}{text}")

    def _look_at_alerts(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            lines = self._stage.alerts.read_bytes().splitlines()
            for line in lines[self._alerts_read :]:
                self._alert(json.loads(line))
            self._alerts_read = len(lines)

    def _alert(self, alert: dict[str, Any]) -> None:
        """Tell that an alert began in the first worker, and that it ended in the last."""
        where = self._alerts.setdefault(alert["key"], set())
        if alert["state"] == "began":
            if not where:
                self.tell("alert", f"{alert['severity']}: {alert['text']}")
            where.add(alert["pid"])
            return
        where.discard(alert["pid"])
        if not where:
            lasted = alert["ended"] - alert["began"]
            self.tell("alert", f"over after {lasted:.0f} s: {alert['kind']} of pool {alert['pool']!r}")

    def forget(self, pids: list[int]) -> None:
        """Forget what processes told that do not live any more.

        Args:
            pids: Those that live.
        """
        for where in self._alerts.values():
            where &= set(pids)
        self._left_out = {one for one in self._left_out if int(one[0]) in pids}
