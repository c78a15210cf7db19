"""`FleetBudget`: what a user makes and gives to pools."""

from __future__ import annotations

import _thread
import os
import re
import weakref
from collections.abc import Mapping
from typing import Any, NoReturn

from .._masking import shown
from ..core.clock import SYSTEM
from ..core.engine import Engine
from ..core.observer import Observer
from ..core.report.messages import no_copy
from ..core.runtime import registry, shutdown
from ..core.runtime.fork import SAME_PROCESS, ensure_process
from ..core.runtime.immortal import keep_forever
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS, OptionalRef, Reaper, SweepRequest
from ..core.sizing import limit_first
from ..settings import variable
from .kinds import open_store
from .membership import BY, Membership
from .model import Terms

__all__ = ["VARIABLE", "FleetBudget", "budget_from_env"]

VARIABLE = "POOLING_BUDGET"
"""The environment variable with the budget of the database pools that are given none."""

_CALM = 0.05  # seconds between two steps that waiting borrowers cause: a busy pool has thousands of them
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")


class FleetBudget:
    """A limit on the connections of all processes of an application together, on all hosts.

    ::

        budget = FleetBudget(total=60, store="postgresql:", max_members=24)
        db = PostgresPool("postgresql://app@db/orders", max_size=20, budget=budget)

    The pools of all processes with this budget never have more than ``total``
    connections. Each process gets a max-min fair share of what is asked for:
    as much as it needs, or as much as any other. What a process does not need
    it lends to the others, except for its floor. A share changes within two
    renewals, 10 s, usually much sooner. The hot path knows nothing of it.

    It may be made at import and used by several pools. Nothing is opened and
    no thread started before the first use of one of them. A forked child is a
    process of its own.

    Args:
        total: Connections of all processes together. Leave some of the server's
            for administration.
        floor: Connections that each process keeps while it lives.
        store: Where the processes meet. ``"local:"``: a file of this user on this
            host, or the file ``"local:/path"``; ``"postgresql:"``: the table
            ``pooling_budget`` in the pool's own database; or a ``redis://`` URL.
        max_members: The number of processes at most, those of a rollout and those
            killed in the last 15 s included. Then every process may use its floor
            at once, and keep it without the store.
        name: Budgets with different names are independent.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, the floors of ``max_members``
            exceed the total, or this process has such a budget already.
    """

    def __init__(
        self, total: int, *, floor: int = 1, store: str = "local:", max_members: int | None = None,
        name: str = "default",
    ) -> None:  # fmt: skip
        for field, value in (("total", total), ("floor", floor), ("max_members", max_members)):
            if value is None and field == "max_members":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"FleetBudget.{field} must be a whole number, not {shown(value)}")
            if value < 1:
                raise ValueError(f"FleetBudget.{field} must be at least 1, not {value}")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"FleetBudget.name must be 1 to 60 letters, digits, '.', '_' or '-', not {shown(name)}")
        try:
            reserve = open_store(store, name).reserve
        except (TypeError, ValueError) as error:
            raise type(error)(f"FleetBudget.{error}") from None
        kept = f" and {reserve} for the store" if reserve else ""
        if total < floor * (max_members or 1) + reserve:
            members = "" if max_members is None else f"{max_members} members with "
            raise ValueError(
                f"FleetBudget.total must be enough for {members}floor={floor}{kept}: at least "
                f"{floor * (max_members or 1) + reserve}, not {total}"
            )
        self.name = name
        self.store = store
        self.terms = Terms(total, floor, max_members)
        key = (store, name)
        if _budgets.get(key) is not None:
            raise ValueError(f"this process has a budget {name!r} in this store: use that one, or another name")
        _budgets[key] = self
        self._engines: dict[int, weakref.ref[Engine[Any]]] = {}  # by their ids
        self._processes: dict[int, Membership] = {}  # by process id: this one's, or its parent's
        self._locks: dict[int, Any] = {}  # by process id: never one that a thread of the parent held
        self._wake = _Wake(self)

    def __repr__(self) -> str:
        return f"<FleetBudget {self.name!r}: {self._membership().note()}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        no_copy(self, "a process has one of a name; pools share it, and forked processes inherit it")

    def stats(self) -> dict[str, Any]:
        """Return total, share, and what others hold, as this process knows it."""
        return self._membership().stats()

    @classmethod
    def parse(cls, text: str) -> FleetBudget:
        """Return the budget that a text means; the same text means the same object.

        Args:
            text: The total, and other arguments: ``"60"`` or ``"60,store=postgresql:,max_members=24"``. In a URL they
                may be separated by ``+``.

        Raises:
            ValueError: It means none.
        """
        found = _parsed.get(text)
        if found is None:
            given: dict[str, Any] = {}
            for part in re.split(r"[,\s]+", text.strip()):
                key, equals, value = part.partition("=")
                key, value = (key, value) if equals else ("total", key)
                if key not in _PARTS:
                    raise ValueError(f"budget has no part {shown(key)}; it has {', '.join(_PARTS)}")
                if key in given:
                    raise ValueError(f"budget has {key} twice")
                try:
                    given[key] = _PARTS[key](value)
                except ValueError:
                    raise ValueError(f"budget: {key} must be a whole number, not {shown(value)}") from None
            if "total" not in given:
                raise ValueError("budget needs a total, such as 60,store=postgresql:")
            found = _parsed[text] = cls(**given)
        return found

    # -- pools -----------------------------------------------------------------------

    def attach(self, engine: Engine[Any]) -> None:
        """Limit a new pool. Called by the pool."""
        if engine.clock is not SYSTEM:
            raise ValueError(f"pool {engine.name!r}: a pool with a clock of its own cannot have a budget")
        limit_first(engine, BY, 0)
        self._engines[id(engine)] = weakref.ref(engine)
        engine.observe((*engine.events.observers, self._wake))
        if not registry.runtime_of(SYSTEM).current_reaper.ended:  # else it begins with the reaper
            self.wake()

    def wake(self) -> None:
        """Look at the pools soon: one of them lacks something."""
        membership, runtime = self._membership(), registry.runtime_of(SYSTEM)
        now = SYSTEM.now()
        membership.woken = True  # first: a step that ends now looks again
        due = max(now, membership.stepped + _CALM)
        if membership.due > due:
            membership.due = due
            runtime.reaper.post(SweepRequest(OptionalRef(self), due))

    def sweep(self, due: float, now: float) -> bool:
        """Take a step. Called by the reaper."""
        membership = self._membership()
        if due != membership.due:
            return False
        membership.due = now + 1.0  # if the step fails
        membership.woken, membership.stepped = False, now
        try:
            membership.due = membership.step(self._pools(), now)
            if membership.woken:
                membership.due = min(membership.due, now + _CALM)
        finally:
            registry.runtime_of(SYSTEM).reaper.post(SweepRequest(OptionalRef(self), membership.due))
        return True

    def begin(self, reaper: Reaper) -> None:
        """Take steps from now on, as long as this reaper runs."""
        membership = self._membership()
        membership.due = SYSTEM.now()
        reaper.inbox.put(SweepRequest(OptionalRef(self), membership.due))

    def leave(self) -> None:
        """At exit: return the share."""
        self._membership().leave(self._pools())

    def _pools(self) -> list[Engine[Any]]:
        for number, reference in list(self._engines.items()):
            if reference() is None:
                self._engines.pop(number, None)
        found = [reference() for reference in list(self._engines.values())]
        return [engine for engine in found if engine is not None]

    def _membership(self) -> Membership:
        if not SAME_PROCESS[0]:
            ensure_process()
        pid = os.getpid()
        found = self._processes.get(pid)
        return self._join(pid) if found is None else found

    def _join(self, pid: int) -> Membership:
        with self._locks.setdefault(pid, _thread.RLock()):
            if pid not in self._processes:
                for inherited in self._processes.values():
                    inherited.store.abandon()
                    keep_forever(inherited)
                self._processes = {pid: Membership(self.name, self.terms, self.store)}
                self._locks = {pid: self._locks[pid]}
            return self._processes[pid]


class _Wake(Observer):
    """Tells a budget when a borrower has to wait."""

    def __init__(self, budget: FleetBudget) -> None:
        self._budget = weakref.ref(budget)

    def exhausted(self, pool: str, waiting: int) -> None:
        budget = self._budget()
        if budget is not None:
            budget.wake()


_PARTS: Mapping[str, Any] = {"total": int, "floor": int, "store": str, "max_members": int, "name": str}
_budgets: weakref.WeakValueDictionary[tuple[str, str], FleetBudget] = weakref.WeakValueDictionary()
_parsed: weakref.WeakValueDictionary[str, FleetBudget] = weakref.WeakValueDictionary()


def budget_from_env(environ: Mapping[str, str] | None = None) -> FleetBudget | None:
    """Return the budget in the environment variable; ``None`` if it is unset or empty.

    Raises:
        ValueError: It is not one; the message names the variable.
    """
    text = variable(os.environ if environ is None else environ, VARIABLE)
    if text is None:
        return None
    try:
        return FleetBudget.parse(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{VARIABLE}: {error}") from None


def _listen(reaper: Reaper, dropped: PoolRef | None) -> None:
    if dropped is None and reaper is registry.runtime_of(SYSTEM).current_reaper:
        for budget in _alive():
            budget.begin(reaper)


def _leave() -> None:
    for budget in _alive():
        budget.leave()


def _alive() -> list[FleetBudget]:
    found = [reference() for reference in _budgets.valuerefs()]
    return [budget for budget in found if budget is not None]


LISTENERS.append(_listen)
shutdown.LAST.append(_leave)
