"""The figures of the fault tests, printed as a table at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_FIGURES = pytest.StashKey[list[tuple[str, str]]]()

Note = Callable[..., None]


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Keep what a test measured: ``note(errors=0, first_good_ms=3.2)``, in one line or several calls."""
    kept = request.config.stash.setdefault(_FIGURES, [])

    def keep(**figures: object) -> None:
        words = [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in figures.items()
        ]
        name, more = request.node.name.removeprefix("test_"), ", ".join(words).replace("_", " ")
        if kept and kept[-1][0] == name:
            more = f"{kept.pop()[1]}, {more}"
        kept.append((name, more))

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    kept = config.stash.get(_FIGURES, [])
    if kept:
        terminalreporter.section("faults: what was seen")
        for name, words in kept:
            terminalreporter.write_line(f"{name}: {words}")
