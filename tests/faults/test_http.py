"""HTTPPool across forks, under gevent, and without leaked descriptors; each test in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Authority
from tests.web import WebServer

ROOT = Path(__file__).parents[2]


def run(scene: str, *servers: WebServer, trust: str = "", how: str = "hook") -> None:
    """Run a scene of `http_scenes`, which must succeed and print nothing."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning",
         "-m", "tests.faults.http_scenes", scene, *(server.url for server in servers)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "FORK": how, "TRUST": trust, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("how", ["hook", "bare"])
@pytest.mark.parametrize("secure", [False, True])
def test_child_opens_its_own_sockets(
    web: WebServer, secure_web: WebServer, authority: Authority, how: str, secure: bool
) -> None:
    run("fork", secure_web if secure else web, trust=authority.file, how=how)


@pytest.mark.parametrize("how", ["hook", "bare"])
@pytest.mark.parametrize("secure", [False, True])
def test_fork_in_a_hook(web: WebServer, secure_web: WebServer, authority: Authority, how: str, secure: bool) -> None:
    run("fork_hook", secure_web if secure else web, trust=authority.file, how=how)


@pytest.mark.parametrize("how", ["hook", "bare"])
def test_fork_while_another_thread_holds_all_locks(web: WebServer, how: str) -> None:
    """The child waits for none of them."""
    run("fork_locked", web, how=how)


def test_make_http_request_after_a_fork(web: WebServer) -> None:
    run("fork_client", web)


def test_under_gevent(web: WebServer, secure_web: WebServer, authority: Authority) -> None:
    pytest.importorskip("gevent")
    run("gevent", web, secure_web, trust=authority.file)


def test_hedges_under_gevent(authority: Authority) -> None:
    pytest.importorskip("gevent")
    with WebServer(delay=20.0) as slow, WebServer() as other:
        run("gevent_hedges", slow, other)
    with WebServer(authority.server, delay=20.0) as slow, WebServer(authority.server) as other:
        run("gevent_hedges", slow, other, trust=authority.file)


def test_no_descriptor_and_no_thread_is_left(web: WebServer, secure_web: WebServer, authority: Authority) -> None:
    run("descriptors", web, secure_web, trust=authority.file)


def test_process_exits_with_everything_left_open(web: WebServer) -> None:
    """A stream, a session and a pool (P10)."""
    run("exit", web)
