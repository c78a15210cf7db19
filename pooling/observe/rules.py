"""What alerts are about: a rule says of a pool, from a few figures, whether and why it needs attention."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._masking import shown
from .._members import member_of
from ..core.managed import ManagedPool
from ..core.report.holders import describe
from .spread import Spread, Totals

__all__ = ["DEFAULT_RULES", "SEVERITIES", "Rule", "Sample", "Watch", "checked_rules", "usual_rules"]

SEVERITIES = ("warning", "critical")

_WINDOW = 60.0  # seconds over which waits are counted
_STEP = 5.0  # seconds between two readings that are kept for it
_FEWEST = 20  # acquires in the window; with fewer a percentile says nothing
_PLACES = 3  # of holders, in a text


@dataclass(frozen=True)
class Sample:
    """One pool at one moment, and what happened since the sample before.

    Attributes:
        pool: Its label.
        seconds: Since the sample before; 0 for the first.
        in_use, max_size, waiting: Counts; ``max_size`` is 0 for a foreign pool without a limit.
        exhausted: ``"exhausted: 20 of 20 in use, ..."`` if all are in use, else ``None``.
        down: The last connection error while the server is considered down.
        resets_failing: Why resets keep failing.
        unhealthy: Why the last health check failed.
        timeouts, refusals, leaks, orphans: How many since the sample before.
        leaked: Leases that are held for longer than ``leak_timeout`` now, with the places.
        p99_wait: The 99th percentile of the wait over the last minute, in seconds; ``None`` below 20 acquires.
        acquire_timeout: Of the pool's settings, in seconds; ``None`` for a foreign pool.
        holders: Where the resources in use were acquired, as text; evaluated when it is called.
    """

    pool: str
    seconds: float = 0.0
    in_use: int = 0
    max_size: int = 0
    waiting: int = 0
    exhausted: str | None = None
    down: str | None = None
    resets_failing: str | None = None
    unhealthy: str | None = None
    timeouts: int = 0
    refusals: int = 0
    leaks: int = 0
    orphans: int = 0
    leaked: str | None = None
    p99_wait: float | None = None
    acquire_timeout: float | None = None
    holders: Callable[[], str] = str


Test = Callable[[Sample], str | None]


@dataclass(frozen=True)
class Rule:
    """When to alert.

    Attributes:
        kind: A word for what it is about, unique among the rules: ``"exhausted"``.
        test: Called with each `Sample` of a pool; returns why the pool needs attention, or ``None``. Must not block.
        after: Seconds that this must last before an alert begins.
        clear: Seconds that it must be over before the alert ends.
        severity: ``"warning"`` or ``"critical"``.

    Raises:
        ValueError, TypeError: One of these is invalid.
    """

    kind: str
    test: Test
    after: float = 0.0
    clear: float = 60.0
    severity: str = "warning"

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not self.kind.isidentifier():
            raise ValueError(f"Rule.kind must be a word, not {shown(self.kind)}")
        if not callable(self.test):
            raise TypeError(f"Rule.test must be callable, not {shown(self.test)}")
        for name in ("after", "clear"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Rule.{name} must be a number of seconds, not {shown(value)}")
            if not 0 <= value <= 86400:
                raise ValueError(f"Rule.{name} must be from 0 to 86400 seconds, not {shown(value)}")
        if self.severity not in SEVERITIES:
            raise ValueError(f"Rule.severity must be one of {', '.join(SEVERITIES)}, not {shown(self.severity)}")


# -- the rules --------------------------------------------------------------------


def _outage(sample: Sample) -> str | None:
    return None if sample.down is None else f"the server is down: {sample.down}"


def _unhealthy(sample: Sample) -> str | None:
    return None if sample.unhealthy is None or sample.down else f"the health check fails: {sample.unhealthy}"


def _exhausted(sample: Sample) -> str | None:
    if sample.exhausted is None or not sample.waiting:
        return None
    holders = sample.holders()
    return sample.exhausted + (f"; held by: {holders}" if holders else "")


def _timeouts(sample: Sample) -> str | None:
    if not sample.timeouts or sample.down:  # an outage is an alert of its own
        return None
    holders = sample.holders()
    return _count(sample.timeouts, "acquire") + " timed out" + (f"; held by: {holders}" if holders else "")


def _refused(sample: Sample) -> str | None:
    return f"{_count(sample.refusals, 'acquire')} refused: the wait queue is full" if sample.refusals else None


def _leak(sample: Sample) -> str | None:
    if sample.leaked is not None:
        return f"held for longer than leak_timeout: {sample.leaked}"
    return f"{_count(sample.leaks, 'lease')} held for longer than leak_timeout" if sample.leaks else None


def _dropped(sample: Sample) -> str | None:
    return f"{_count(sample.orphans, 'lease')} dropped without release" if sample.orphans else None


def _resets(sample: Sample) -> str | None:
    return None if sample.resets_failing is None else f"resets keep failing: {sample.resets_failing}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _slow(limit: float | None) -> Test:
    def test(sample: Sample) -> str | None:
        most = limit
        if most is None and sample.acquire_timeout is not None:
            most = sample.acquire_timeout / 2
        if most is None or sample.p99_wait is None or sample.p99_wait <= most or sample.down:
            return None
        return f"1 acquire of 100 waits for {sample.p99_wait:.2f} s or more (limit {most:g} s)"

    return test


def _busy(share: float) -> Test:
    def test(sample: Sample) -> str | None:
        if not sample.max_size or sample.in_use <= share * sample.max_size:
            return None
        return f"{sample.in_use} of {sample.max_size} in use (limit {100 * share:g} %)"

    return test


def usual_rules(
    *,
    outage: float | None = 5.0,
    unhealthy: float | None = 0.0,
    exhausted: float | None = 10.0,
    timeouts: bool = True,
    refused: bool = True,
    leaks: bool = True,
    resets: bool = True,
    wait: float | None = None,
    wait_after: float | None = 60.0,
    utilization: float = 0.9,
    utilization_after: float | None = 300.0,
) -> list[Rule]:
    """Return the usual rules with other limits; ``None`` or ``False`` leaves one out.

    Args:
        outage: Seconds for which the server must be down.
        unhealthy: Seconds for which health checks must fail.
        exhausted: Seconds for which all must be in use while others wait.
        timeouts: An acquire timed out, and the server is up.
        refused: An acquire was refused, because ``max_waiting`` others wait.
        leaks: A lease is held for longer than ``leak_timeout``, or was dropped without a release.
        resets: Resets keep failing.
        wait: Limit of the 99th percentile of the wait, in seconds; ``None`` means half of ``acquire_timeout``.
        wait_after: Seconds for which it must be exceeded.
        utilization: Limit of in use / ``max_size``, above 0 and below 1.
        utilization_after: Seconds for which it must be exceeded.

    Raises:
        ValueError, TypeError: A limit is invalid.
    """
    durations = {"outage": outage, "unhealthy": unhealthy, "exhausted": exhausted, "wait": wait,
                 "wait_after": wait_after, "utilization_after": utilization_after}  # fmt: skip
    for name, seconds in durations.items():
        _check_number(name, seconds, 0.0, 86400.0, optional=True)
    _check_number("utilization", utilization, 0.01, 0.99)
    found: list[tuple[bool, str, Test, float | None, str]] = [
        (outage is not None, "outage", _outage, outage, "critical"),
        (unhealthy is not None, "unhealthy", _unhealthy, unhealthy, "critical"),
        (exhausted is not None, "exhausted", _exhausted, exhausted, "warning"),
        (timeouts, "timeouts", _timeouts, 0.0, "critical"),
        (refused, "refused", _refused, 0.0, "critical"),
        (leaks, "leak", _leak, 0.0, "warning"),
        (leaks, "dropped", _dropped, 0.0, "warning"),
        (resets, "resets", _resets, 0.0, "warning"),
        (wait_after is not None, "slow", _slow(wait), wait_after, "warning"),
        (utilization_after is not None, "busy", _busy(utilization), utilization_after, "warning"),
    ]
    return [
        Rule(kind, test, after=after or 0.0, clear=_CLEAR.get(kind, 60.0), severity=severity)
        for wanted, kind, test, after, severity in found if wanted
    ]  # fmt: skip


_CLEAR = {"outage": 10.0, "unhealthy": 10.0}  # seconds: a server that answers again is known to


def _check_number(name: str, value: Any, least: float, most: float, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g}, not {shown(value)}")


DEFAULT_RULES: tuple[Rule, ...] = tuple(usual_rules())


def checked_rules(given: Iterable[Rule] | None) -> tuple[Rule, ...]:
    """Return the rules of an `Alerts`.

    Raises:
        TypeError, ValueError: It is not a list of rules, or two have one kind.
    """
    if given is None:
        return DEFAULT_RULES
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(f"Alerts.rules must be a list of pooling.observe.Rule, not {shown(given)}")
    found = tuple(given)
    for rule in found:
        if not isinstance(rule, Rule):
            raise TypeError(f"Alerts.rules must be a list of pooling.observe.Rule; one is {shown(rule)}")
    kinds = [rule.kind for rule in found]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"Alerts.rules has two rules of the kind {kind!r}")
    return found


# -- samples ----------------------------------------------------------------------


class Watch:
    """Takes the samples of one pool. It does not keep it alive: its user passes it for each one.

    Args:
        label: How the pool is called.
        new: Whether all that it has counted is new; otherwise only what it counts from the first sample on.
    """

    def __init__(self, label: str, new: bool) -> None:
        self.label = label
        self._at: float | None = None
        self._counts: dict[str, int] | None = {} if new else None
        self._since = 0.0
        self._checked: float | None = None
        self._unhealthy: str | None = None
        self._waits: deque[tuple[float, Totals]] = deque()

    def sample(self, pool: Any, now: float) -> Sample:
        """Return a sample of the pool, now."""
        seconds = 0.0 if self._at is None else now - self._at
        self._at = now
        return (self._own if isinstance(pool, ManagedPool) else self._foreign)(pool, seconds, now)

    def _own(self, pool: ManagedPool[Any], seconds: float, now: float) -> Sample:
        stats, snapshot, settings = pool.stats(), pool.metrics.snapshot(), pool.settings
        new = self._new(
            snapshot.duration, timeouts=snapshot.timeouts, refusals=snapshot.refusals, leaks=snapshot.leaks,
            orphans=snapshot.orphans, failures=snapshot.health_failures,
        )  # fmt: skip
        waits = Totals.of(snapshot.wait.count, snapshot.wait.mean, pool.metrics.buckets()["wait"])
        leaked = None
        if snapshot.leaks and settings.leak_timeout is not None:
            limit = settings.leak_timeout
            leaked = describe([one for one in pool.holders() if one.seconds >= limit], _PLACES) or None
        return Sample(
            pool=self.label, seconds=seconds, in_use=stats["in_use"], max_size=stats["max_size"],
            waiting=stats["waiting"], exhausted=pool.exhaustion(), down=stats["down"],
            resets_failing=stats["resets_failing"],
            unhealthy=self._health(pool, snapshot.last_health_check, new["failures"]),
            timeouts=new["timeouts"], refusals=new["refusals"], leaks=new["leaks"], orphans=new["orphans"],
            leaked=leaked, p99_wait=self._p99(waits, now), acquire_timeout=settings.acquire_timeout,
            holders=lambda: describe(pool.holders(), _PLACES),
        )  # fmt: skip

    def _foreign(self, pool: Any, seconds: float, now: float) -> Sample:
        member = member_of(pool)
        figures = member.metrics()
        failed = round(figures.get("error_rate", 0.0) * figures.get("connection_requests", 0))
        return Sample(
            pool=self.label, seconds=seconds, in_use=figures["in_use"], max_size=figures["max_size"],
            waiting=int(figures.get("waiting_requests", 0)), exhausted=member.trouble(),
            timeouts=self._new(now, timeouts=failed)["timeouts"],
        )  # fmt: skip

    def _new(self, since: float, **counts: int) -> dict[str, int]:
        """Return what was counted since the sample before, ``since`` seconds after the last reset."""
        known = counts if self._counts is None else self._counts
        if since < self._since:  # the figures were reset
            known = {}
        self._counts, self._since = counts, since
        return {name: max(0, number - known.get(name, 0)) for name, number in counts.items()}

    def _health(self, pool: Any, last: float | None, failures: int) -> str | None:
        """Return why the last health check failed: each is remembered until the next one."""
        if hasattr(pool.metrics, "hosts"):  # an HTTP pool: the result of the last probe
            found = pool.health_check()
            return str(found.get("last_error")) if found["status"] == "unhealthy" else None
        if last != self._checked:
            self._checked = last
            self._unhealthy = "the last round trip failed" if failures else None
        return self._unhealthy

    def _p99(self, waits: Totals, now: float) -> float | None:
        """Return the 99th percentile of the waits of the last minute."""
        kept = self._waits
        if kept and waits.count < kept[-1][1].count:
            kept.clear()
        if not kept or now - kept[-1][0] >= _STEP:
            kept.append((now, waits))
        while len(kept) > 2 and kept[1][0] <= now - _WINDOW:
            kept.popleft()
        spread = Spread()
        spread.add(kept[0][1], waits)
        return spread.percentile(0.99) if spread.count >= _FEWEST else None
