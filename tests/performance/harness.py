"""What all benchmarks share: rounds in rotating order, crowds of threads, the check."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Generic, Protocol, TypeVar

from .contenders import Contender, fill
from .figures import rotated

__all__ = [
    "Plan",
    "Rounds",
    "Traffic",
    "Wrong",
    "calibrate",
    "check",
    "crowd",
    "interleave",
    "opened",
    "traffic",
]

T = TypeVar("T")

LEAD = 0.05
"""Seconds before counting begins. The first thread to run is alone, and
would make thousands of checkouts before the second thread gets the interpreter."""

PATIENCE = 60.0
"""Seconds after which a thread that has not come back is stuck for good."""


class Wrong(Exception):
    """A contender did what no pool may do."""


@dataclass(frozen=True)
class Plan:
    """How much to run."""

    quick: bool = False
    rounds: int | None = None

    def choose(self, full: T, quick: T) -> T:
        """Return the one or the other."""
        return quick if self.quick else full

    def count(self, full: int, quick: int) -> int:
        """Return the number of rounds: the one asked for, else the benchmark's own."""
        return self.rounds or self.choose(full, quick)


@dataclass
class Rounds(Generic[T]):
    """What each contender did in each round, and which of them failed."""

    samples: dict[str, list[T]]
    failures: list[str] = field(default_factory=list)

    def of(self, name: str, take: Callable[[T], float]) -> list[float] | None:
        """Return one figure of a contender for each round; ``None`` if it did not run."""
        if name not in self.samples:
            return None
        return [take(sample) for sample in self.samples[name]]


class Named(Protocol):
    """Whatever takes part in the rounds."""

    @property
    def name(self) -> str:
        """What the tables call it."""


N = TypeVar("N", bound=Named)


def interleave(contenders: Sequence[N], rounds: int, measure: Callable[[N], T]) -> Rounds[T]:
    """Measure every contender once in each round, in rotating order.

    One that fails is left out from then on, with all it has shown so far.
    """
    result = Rounds[T]({contender.name: [] for contender in contenders})
    running = list(contenders)
    for number in range(rounds):
        gc.collect()  # one contender's garbage is not charged to another round
        for contender in rotated(running, number):
            try:
                result.samples[contender.name].append(measure(contender))
            except Exception as error:
                result.failures.append(f"{contender.name}: {error!r}")
                del result.samples[contender.name]
                running.remove(contender)
    return result


@contextlib.contextmanager
def opened(
    makers: Sequence[type[Contender]], slots: int
) -> Iterator[tuple[list[Contender], list[str]]]:
    """Give the contenders that are installed, filled and found correct, and what failed.

    Args:
        makers: The classes, in the order of the table.
        slots: How many resources each pool may lend at once.
    """
    contenders: list[Contender] = []
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        for make in makers:
            if not make.installed():
                continue
            try:
                contender = make(slots)
                stack.callback(contender.close)
                fill(contender)
                check(contender)
            except Exception as error:
                failures.append(f"{make.name}: {error!r}")
            else:
                contenders.append(contender)
        yield contenders, failures


def crowd(
    work: Callable[[], T], threads: int, meanwhile: Callable[[], object] = lambda: None
) -> list[T]:
    """Run ``work`` in many threads that begin together; return what each of them returned.

    Args:
        work: What each thread does.
        threads: How many.
        meanwhile: What the calling thread does from the moment they begin.

    Raises:
        Wrong: A thread never came back: it sleeps although a resource is free.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    begin = threading.Event()

    def run() -> None:
        begin.wait()
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    crew = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for thread in crew:
        thread.start()
    begin.set()
    meanwhile()
    deadline = perf_counter() + PATIENCE
    for thread in crew:
        thread.join(max(0.0, deadline - perf_counter()))
    if errors:
        raise errors[0]
    stuck = sum(thread.is_alive() for thread in crew)
    if stuck:
        raise Wrong(f"{stuck} of {threads} threads never came back")
    return results


@dataclass(frozen=True)
class Traffic:
    """How many checkouts each thread made, and in how many seconds."""

    counts: list[int]
    seconds: float

    @property
    def rate(self) -> float:
        """Checkouts in a second, all threads together."""
        return sum(self.counts) / self.seconds


def traffic(contender: Contender, threads: int, seconds: float, chunk: int) -> Traffic:
    """Let the threads check out as fast as they can, for about ``seconds``.

    Args:
        contender: The pool.
        threads: How many borrowers.
        seconds: How long to count, after a short lead.
        chunk: How many checkouts between two looks at whether they count; what
            is under way when the time is up does not.
    """
    counting = False
    running = True
    elapsed = 0.0

    def work() -> int:
        done = 0
        while running:
            contender.loop(chunk)
            if counting:
                done += chunk
        return done

    def watch() -> None:
        nonlocal counting, running, elapsed
        sleep(LEAD)
        counting = True
        began = perf_counter()
        sleep(seconds)
        counting = False
        elapsed = perf_counter() - began
        running = False

    counts = crowd(work, threads, watch)
    return Traffic(counts, elapsed)


def calibrate(loop: Callable[[int], object], seconds: float) -> int:
    """Return how many times round the loop take about ``seconds``."""
    times = 64
    while True:
        began = perf_counter()
        loop(times)
        elapsed = perf_counter() - began
        if elapsed >= seconds / 4:
            return max(1, int(times * seconds / elapsed))
        times *= 2


def check(contender: Contender, times: int = 50) -> None:
    """Borrow from all sides and watch what is lent; untimed.

    Raises:
        Wrong: A resource was lent to two at once, or more were out than there
            are slots.
    """
    lent: set[int] = set()
    lock = threading.Lock()

    def borrow() -> None:
        for _ in range(times):
            with contender.checkout() as handle:
                key = id(contender.resource(handle))
                with lock:
                    if key in lent:
                        raise Wrong("one resource was lent to two borrowers at once")
                    lent.add(key)
                    if len(lent) > contender.slots:
                        raise Wrong(f"{len(lent)} out of {contender.slots} lent at once")
                sleep(0)  # let the others in while it is out
                with lock:
                    lent.remove(key)

    crowd(borrow, 2 * contender.slots if contender.waits else contender.slots)
