"""How many functions of the core a resource passes through: deterministic, unlike a timing.

Counted are calls of functions of ``pooling.core``. The queue between a borrower
and a worker (``workers.py``) is not: its jobs run inline here.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pooling.core
from pooling import Adapter, Pool
from pooling.testing import VirtualClock

from .conftest import Make, Task, fill


class Calls:
    """Records calls of the core's functions, and the stack at the calls that matter."""

    def __init__(self, *marks: str) -> None:
        self.names: list[str] = []
        self.stacks: dict[str, list[list[str]]] = {}
        self.files: dict[str, set[str]] = {}
        self._marks = marks

    def __enter__(self) -> Calls:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_name if event == "call" else getattr(argument, "__name__", "")
        if event == "call" and own(frame):
            self.names.append(name)
        if event in ("call", "c_call") and name in self._marks:
            self.stacks.setdefault(name, []).append([code.co_name for code in stack(frame)])
            self.files.setdefault(name, set()).update(code.co_filename for code in stack(frame))


def own(frame: FrameType) -> bool:
    file = frame.f_code.co_filename.replace("\\", "/")
    return "/pooling/core/" in file and not file.endswith(("/workers.py", "/clock.py", "/adapter.py"))


def stack(frame: FrameType | None) -> list[CodeType]:
    """The core's functions that are being called, outermost first."""
    found: list[CodeType] = []
    while frame is not None:
        if own(frame):
            found.insert(0, frame.f_code)
        frame = frame.f_back
    return found


def creating_now() -> None:
    """A resource is being created."""


def closing_now() -> None:
    """A resource is being closed."""


class Plain(Adapter[object]):
    def create(self) -> object:
        creating_now()
        return object()


class Checked(Plain):
    """Checks and resets within the borrower's thread."""

    enforces_timeouts = True

    def is_alive(self, resource: object) -> bool:
        return True

    def validate(self, resource: object, timeout: float) -> None:
        """Alive."""

    def reset(self, resource: object) -> bool | None:
        return None


class Closed(Plain):
    def close(self, resource: object) -> None:
        closing_now()


def test_bare_checkout_and_checkin_are_one_call_each(make: Make) -> None:
    pool = make(adapter=Plain())
    fill(pool, 1)
    with Calls() as taking:
        lease = pool.acquire()
    with Calls() as giving:
        lease.__exit__(None, None, None)
    assert (taking.names, giving.names) == (["acquire"], ["__exit__"])


def test_checkout_and_checkin_with_checks_are_three_calls_each(make: Make) -> None:
    pool = make(adapter=Checked())
    fill(pool, 1)
    pool.acquire().release()
    with Calls() as taking:
        lease = pool.acquire()
    with Calls() as giving:
        lease.__exit__(None, None, None)
    assert taking.names == ["acquire", "is_sound", "trusts"]
    assert giving.names == ["__exit__", "run", "reset"]


def test_release_reaches_a_waiter_within_four_calls(make: Make, clock: VirtualClock) -> None:
    pool = make(adapter=Plain(), max_size=1)
    lease = pool.acquire()
    waiter = Task(pool.acquire)
    clock.until_parked(1)
    with Calls("put") as calls:
        lease.__exit__(None, None, None)
    waiter.result().release()
    (steps,) = calls.stacks["put"]
    assert len(steps) <= 4, steps
    assert len(calls.files["put"]) <= 4, calls.files


def test_creation_takes_eight_functions(make: Make) -> None:
    """Four from acquire to the worker, one to the adapter, three from there into the waiter's box."""
    pool: Pool[Any] = make(adapter=Plain())
    with Calls("creating_now", "put") as calls:
        pool.acquire()
    (steps,) = calls.stacks["creating_now"]  # the job runs inline, so all is on one stack
    assert len(steps) <= 5, steps
    assert len(calls.files["creating_now"]) <= 4, calls.files
    ends = [steps[steps.index("create") + 1 :] for steps in calls.stacks["put"] if "create" in steps]
    assert min(len(steps) for steps in ends if "make_available" in steps) <= 3, ends


def test_discard_closes_within_five_functions(make: Make) -> None:
    pool: Pool[Any] = make(adapter=Closed())
    lease = pool.acquire()
    with Calls("closing_now") as calls:
        lease.discard()
    assert calls.stacks["closing_now"] == [["discard", "run", "evict", "close", "close_entry"]]
    assert len(calls.files["closing_now"]) <= 4, calls.files


def test_the_map_is_true() -> None:
    """Each name in it is a class of the core, or a method of one; the life of a resource has at most 15 lines."""
    text = inspect.getdoc(pooling.core) or ""
    life = text[text.index("1. ") : text.index("\n\nDecisions")]
    assert len(life.splitlines()) <= 15
    found: dict[str, type] = {}
    for path in Path(pooling.core.__file__).parent.rglob("*.py"):
        name = ".".join(path.relative_to(Path(pooling.__file__).parents[1]).with_suffix("").parts)
        found.update((key, of) for key, of in vars(importlib.import_module(name)).items() if isinstance(of, type))
    for name in re.findall(r"(?<!`)`([A-Z][\w.]*)`(?!`)", text):
        owner, _, method = name.partition(".")
        assert owner in found and (not method or hasattr(found[owner], method)), name
