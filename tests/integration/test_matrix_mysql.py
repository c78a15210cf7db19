"""Django's MySQL engine under the servers that differ most, with a worker killed, and MariaDB killed and restarted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.integration.matrix import cell, modes
from tests.mariadb import MariaDBServer, needs_mariadb, needs_mysqlclient
from tests.servers import requires

pytest.importorskip("django")  # installed in CI: see test_django.py

CELLS = {
    "gunicorn sync": "mysqlclient", "gunicorn gthread": "PyMySQL", "uWSGI forking, 4 threads": "mysqlclient",
    "gunicorn gevent": "PyMySQL",
}  # fmt: skip
"""Each with its driver; mysqlclient's library would block all greenlets."""


def run(name: str) -> cell.Report:
    with MariaDBServer() as server:
        return cell.run_mariadb(modes.MODES[name], CELLS[name], server, answers=50)


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[str, Future[cell.Report]]]:
    """All cells, two at a time, because they wait most of the time."""
    needs_mariadb()
    with ThreadPoolExecutor(2) as workers:
        yield {name: workers.submit(run, name) for name in CELLS}


@pytest.mark.parametrize("name", CELLS)
def test_cell(reports: dict[str, Future[cell.Report]], name: str) -> None:
    needs_mysqlclient(CELLS[name])
    requires("uWSGI", modes.MODES[name].installed, "pip install pyuwsgi")
    report = reports[name].result(300)
    assert report.good, str(report)
    assert report.answers
