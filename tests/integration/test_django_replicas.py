"""Django on a cluster: the aliases, the router and the middleware. Each scene is a process, see `replicas_site`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.replication import Replication

ROOT = Path(__file__).parents[2]
SCENES = ["aliases", "atomic", "thread", "user", "asynchronous", "rules"]


@pytest.mark.parametrize("scene", SCENES)
def test_django(replication: Replication, scene: str) -> None:
    replication.execute(replication.primary, "DROP TABLE IF EXISTS item")
    replication.execute(replication.primary, "CREATE TABLE item (id int PRIMARY KEY, value int)")
    for replica in replication.replicas:
        replication.resume_replay(replica)
    replication.catch_up()
    ports = [str(server.port) for server in replication.servers]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.integration.replicas_site", scene, *ports],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.endswith("ok\n"), f"{done.stdout}\n{done.stderr}"
