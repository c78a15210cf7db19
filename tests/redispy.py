"""redis-py's own tests of its connection pools, with `RedisPool` in their place.

    python -m tests.redispy [argument of pytest ...]

Fetches the sources of the installed version of redis-py from the package index
and runs its ``tests/test_connection_pool.py`` on a private server. This is
no part of the test suite, which uses no network.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.redisserver import RedisServer

ROOT = Path(__file__).parents[1]

REPLACE = """
import redis, redis.client, redis.connection
from pooling import RedisPool

theirs = redis.ConnectionPool

class ConnectionPool(RedisPool):
    # its limit is an error at once, as redis-py's
    def __init__(self, **arguments):
        super().__init__(**{"timeout": 0.5, "min_size": 0, "max_size": 100, **arguments} if not arguments.get(
            "max_connections") else {"timeout": 0.5, "min_size": 0, **arguments})

class BlockingConnectionPool(RedisPool):
    pass

for module in (redis, redis.client, redis.connection):
    module.ConnectionPool = ConnectionPool
for module in (redis, redis.connection):
    module.BlockingConnectionPool = BlockingConnectionPool
"""


def main(arguments: list[str]) -> int:
    """Run them; return pytest's exit code."""
    version = importlib.metadata.version("redis")
    with tempfile.TemporaryDirectory() as name, RedisServer() as server:
        place = Path(name)
        fetch = ["download", "-q", "--no-deps", "--no-binary", "redis", f"redis=={version}"]
        subprocess.run([sys.executable, "-m", "pip", *fetch, "-d", name], check=True)
        needs = ["packaging", "pytest-asyncio", "pytest-cov"]  # in a place of their own, as pytest loads what it finds
        install = ["install", "-q", "--no-deps", "-t", place / "needs"]
        subprocess.run([sys.executable, "-m", "pip", *install, *needs], check=True)
        with tarfile.open(next(place.glob("redis-*.tar.gz"))) as sources:
            sources.extractall(place)
        home = place / f"redis-{version}"
        (home / "replaced.py").write_text(REPLACE)
        (home / "redis").rename(home / "not-imported")  # the installed one is tested
        command = ["-m", "pytest", "-q", "-rfEs", "-p", "replaced", "-p", "no:cacheprovider", "--tb=short"]
        where = [f"--redis-url=redis://127.0.0.1:{server.port}/0", "tests/test_connection_pool.py"]
        path = f"{home}:{ROOT}:{place / 'needs'}"
        whole = [sys.executable, *command, *where, *arguments]
        return subprocess.run(whole, cwd=home, env={**os.environ, "PYTHONPATH": path}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
