"""Under gunicorn and uWSGI, `application_lifespan` leaves the signals to them, even with ``signals=True``."""

from __future__ import annotations

import os
import urllib.request

import pytest

from tests.integration.matrix.modes import MODES
from tests.integration.matrix.server import Server
from tests.servers import requires


@pytest.mark.parametrize("name", ["gunicorn sync", "uWSGI --lazy-apps"])
def test_signals_are_left_to_the_server(name: str) -> None:
    mode = MODES[name]
    if os.environ.get("UWSGI_REQUIRED") == "1":  # certain to be installed on only one interpreter
        requires("uWSGI", mode.installed, "pip install pyuwsgi")
    if not mode.installed:
        pytest.skip("uWSGI: pip install pyuwsgi")
    server = Server(mode, "lifespan", "")
    try:
        server.wait_until_up()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=60) as response:
            said = response.read().decode().splitlines()
        runner = f"{name.split()[0]} runs this process and handles its signals"
        assert said == ["handlers are the same", f"signal handlers not installed: {runner}"]
        assert server.end()[1] is not None
        if "uWSGI" not in name:  # a uWSGI worker that was just loading prints a traceback when it is stopped
            assert server.complaints(killed=False) == []
    finally:
        server.close()
