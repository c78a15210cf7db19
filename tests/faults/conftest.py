"""The figures of the fault tests, printed as a table at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_FIGURES = pytest.StashKey[list[tuple[str, str]]]()

Note = Callable[..., None]


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Keep what a test measured: ``note(errors=0, first_good_ms=3.2)``."""
    kept = request.config.stash.setdefault(_FIGURES, [])

    def keep(**figures: object) -> None:
        words = [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in figures.items()
        ]
        kept.append((request.node.name.removeprefix("test_"), ", ".join(words).replace("_", " ")))

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    kept = config.stash.get(_FIGURES, [])
    if kept:
        terminalreporter.section("faults: what was seen")
        for name, words in kept:
            terminalreporter.write_line(f"{name}: {words}")
