"""The page that shows pools live: who sees it, what it may load and run, and the server of its own."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pooling.__main__ import main
from pooling.observe.view import Viewer
from pooling.tools.dashboard import TOKEN, DashboardServer, is_local
from pooling.web import dashboard
from pooling.web.dashboard import DashboardEndpoint, dashboard_app

ROOT = Path(__file__).parents[2]
JSON = "application/json"


class Views:
    """Makes views by hand, and counts them."""

    def __init__(self, **more: Any) -> None:
        self.made = 0
        self.more = more

    def view(self) -> dict[str, Any]:
        self.made += 1
        return {"time": time.time(), "processes": [], "pools": [], "events": [], **self.more}


def endpoint(views: Any = None, **options: Any) -> DashboardEndpoint:
    return DashboardEndpoint(**{"token": "secret", "viewer": lambda: views or Views(), **options})


def get(
    answers: Any, method: str = "GET", accept: str = "text/html,*/*", **headers: str
) -> tuple[str, dict[str, str], bytes]:
    environ = {"REQUEST_METHOD": method, "HTTP_ACCEPT": accept}
    environ.update({f"HTTP_{name.upper()}": value for name, value in headers.items()})
    if isinstance(answers, DashboardEndpoint):
        status, rows, body = answers.answer(environ)
        return status, dict(rows), body
    answer: list[Any] = []
    body = b"".join(answers(environ, lambda status, rows: answer.extend((status, dict(rows)))))
    return answer[0], answer[1], body


# -- who sees what ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "token or admit must be given"),
        ({"token": ""}, ValueError, "dashboard token must not be empty"),
        ({"token": 7}, TypeError, "dashboard token must be a string, not int"),
        ({"admit": True}, TypeError, "dashboard admit must be callable, not True"),
    ],
)
def test_bad_argument_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        dashboard_app(**options)


def test_figures_are_for_those_with_the_token() -> None:
    views = Views()
    asked = endpoint(views)
    for sent in ("", "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer sécret"):
        status, headers, body = get(asked, accept=JSON, authorization=sent)
        assert (status, body) == ("401 Unauthorized", b"") and headers["WWW-Authenticate"].startswith("Bearer")
    assert views.made == 0
    status, headers, body = get(asked, accept=JSON, authorization="Bearer secret")
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == ("200 OK", JSON, "no-store")
    assert json.loads(body)["pools"] == [] and json.loads(body)["answered_by"] == os.getpid()


def test_page_asks_for_the_token() -> None:
    """It holds no figures, so it is for everyone; those who are admitted already are not asked."""
    asked = endpoint(token="secret", admit=lambda environ: environ.get("HTTP_FROM") == "me")
    status, _, body = get(asked)
    assert status == "200 OK" and b'data-admitted="no"' in body and b"secret" not in body
    assert b'data-admitted="yes"' in get(asked, **{"from": "me"})[2]
    assert b'data-admitted="yes"' in get(asked, authorization="Bearer secret")[2]


def test_without_a_token_others_see_no_page_either() -> None:
    asked = endpoint(token=None, admit=lambda environ: environ.get("HTTP_FROM") == "me")
    assert get(asked)[0] == get(asked, accept=JSON)[0] == "401 Unauthorized"
    assert get(asked, **{"from": "me"})[0] == get(asked, accept=JSON, **{"from": "me"})[0] == "200 OK"


def test_loopback_alone_admits_nobody() -> None:
    """Behind a reverse proxy on the same host, every client has a loopback address."""
    status, _, _ = endpoint().answer({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_ACCEPT": JSON})
    assert status == "401 Unauthorized"


def test_other_methods() -> None:
    asked = endpoint()
    for accept in ("text/html", JSON):
        status, headers, body = get(asked, "HEAD", accept=accept, authorization="Bearer secret")
        assert (status, body) == ("200 OK", b"") and int(headers["Content-Length"]) > 0
    status, headers, _ = get(asked, "POST", authorization="Bearer secret")
    assert status == "405 Method Not Allowed" and headers["Allow"] == "GET, HEAD"


def test_json_is_only_for_those_who_accept_nothing_else() -> None:
    asked = endpoint(token=None, admit=lambda environ: True)
    browser = "text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8"
    for accept, kind in ((browser, "text/html"), ("*/*", "text/html"), ("", "text/html"), (JSON, JSON)):
        assert get(asked, accept=accept)[1]["Content-Type"].startswith(kind)


# -- the page --------------------------------------------------------------------------------------


def parts_of_page() -> tuple[str, str, str, dict[str, str]]:
    _, headers, body = get(endpoint())
    page = body.decode()
    (style,), (script,) = (re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S) for tag in ("style", "script"))
    return page, style, script, headers


def test_policy_allows_this_page_and_nothing_else() -> None:
    _, style, script, headers = parts_of_page()
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert (policy["script-src"], policy["style-src"]) == (hashed(script), hashed(style))
    assert policy["connect-src"] == "'self'" and "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer" and headers["X-Frame-Options"] == "DENY"


def test_page_loads_nothing() -> None:
    page, style, script, _ = parts_of_page()
    assert "{{" not in page
    outside = page.replace(script, "").replace(style, "")
    assert re.findall(r'(?:href|src)="([^"]*)"', outside) == re.findall(r'href="(data:[^"]*)"', outside)
    assert not re.search(r"\sstyle=|\son\w+=", outside), "the policy forbids them"
    assert not re.search(r"url\(|@import|//", style)
    assert set(re.findall(r"https?://[^\"'\s]*", script)) == {"http://www.w3.org/2000/svg"}


def test_script_never_reads_text_as_html() -> None:
    _, _, script, _ = parts_of_page()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
    assert "localStorage" not in script and "document.cookie" not in script


# -- the views -------------------------------------------------------------------------------------


def test_many_pages_cost_one_view() -> None:
    views = Views()
    asked = endpoint(views)
    for _ in range(20):
        get(asked, accept=JSON, authorization="Bearer secret")
    assert views.made < 20
    made = views.made
    time.sleep(dashboard.MAX_AGE + 0.1)
    get(asked, accept=JSON, authorization="Bearer secret")
    assert views.made == made + 1


def test_request_does_not_wait_for_another_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request gets the last view while the next one is made; only the first view is waited for."""
    monkeypatch.setattr(dashboard, "MAX_AGE", 0.0)
    began, end = threading.Event(), threading.Event()

    class Slow(Views):
        def view(self) -> dict[str, Any]:
            if self.made:
                began.set()
                assert end.wait(20)
            return super().view()

    asked = endpoint(Slow())
    first = json.loads(get(asked, accept=JSON, authorization="Bearer secret")[2])["time"]
    thread = threading.Thread(target=lambda: get(asked, accept=JSON, authorization="Bearer secret"))
    thread.start()
    assert began.wait(20)
    assert json.loads(get(asked, accept=JSON, authorization="Bearer secret")[2])["time"] == first
    end.set()
    thread.join(20)


def test_first_view_that_never_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(dashboard, "PATIENCE", 0.05)
    began, end = threading.Event(), threading.Event()

    class Hung(Views):
        def view(self) -> dict[str, Any]:
            began.set()
            assert end.wait(20)
            return super().view()

    asked = endpoint(Hung())
    thread = threading.Thread(target=lambda: get(asked, accept=JSON, authorization="Bearer secret"))
    thread.start()
    assert began.wait(20)
    assert get(asked, accept=JSON, authorization="Bearer secret")[0] == "503 Service Unavailable"
    end.set()
    thread.join(20)


def test_figures_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Views):
        def view(self) -> dict[str, Any]:
            if self.more["failures"]:
                self.more["failures"] -= 1
                raise TimeoutError("no turn")
            return super().view()

    asked = endpoint(Broken(failures=2))
    with caplog.at_level(logging.WARNING, "pooling"):
        status, headers, body = get(asked, accept=JSON, authorization="Bearer secret")
    assert status == "503 Service Unavailable" and "see the log" in json.loads(body)["error"]
    assert "no turn" in caplog.text and headers["Cache-Control"] == "no-store"
    assert get(asked, accept=JSON, authorization="Bearer secret")[0] == "503 Service Unavailable"
    assert len(caplog.records) == 1, "it is logged once"
    assert get(asked, accept=JSON, authorization="Bearer secret")[0] == "200 OK"


def test_long_answers_are_compressed_for_those_who_accept_that() -> None:
    asked = endpoint(Views(pools=[{"name": "x" * 5000}]))
    _, headers, body = get(asked, accept=JSON, authorization="Bearer secret", accept_encoding="gzip, br")
    assert headers["Content-Encoding"] == "gzip" and int(headers["Content-Length"]) == len(body) < 1000
    assert json.loads(gzip.decompress(body))["pools"][0]["name"] == "x" * 5000
    _, headers, body = get(asked, accept=JSON, authorization="Bearer secret")
    assert "Content-Encoding" not in headers and len(body) > 5000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_makes_its_own_viewer() -> None:
    code = """if True:
        import json, os, sys
        from pooling.web.dashboard import DashboardEndpoint
        made = []
        class Views:
            def view(self): return {"time": 0, "processes": [], "pools": [], "events": [], "of": self.pid}
        def viewer():
            views = Views(); views.pid = os.getpid(); return views
        asked = DashboardEndpoint(admit=lambda environ: True, viewer=viewer)
        def view(): return json.loads(asked.answer({"HTTP_ACCEPT": "application/json"})[2])
        assert view()["of"] == view()["answered_by"] == os.getpid()
        child = os.fork()
        if not child:
            os._exit(0 if view()["of"] == view()["answered_by"] == os.getpid() else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_nothing_is_observed_before_the_first_poll() -> None:
    code = "import sys, pooling.web.dashboard as d; d.dashboard_app(token='t'); print('pooling.observe' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- frameworks ------------------------------------------------------------------------------------


def test_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    flask = pytest.importorskip("flask")
    from pooling.web.flask import Pooling

    monkeypatch.setattr(Viewer, "of_process", Views)
    app = flask.Flask(__name__)
    app.register_blueprint(Pooling.dashboard_blueprint("/pools", token="secret"))
    client = app.test_client()
    assert client.get("/pools/").status_code == 200
    page = client.get("/pools")
    assert page.status_code == 200 and page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert client.get("/pools", headers={"Accept": JSON}).status_code == 401
    answer = client.get("/pools", headers={"Accept": JSON, "Authorization": "Bearer secret"})
    assert answer.json["scope"] == "process" and "outage" in answer.json["words"]
    with pytest.raises(ValueError, match="token or admit"):
        Pooling.dashboard_blueprint()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", "401 401 401 401"),
        ("POOLING_DASHBOARD_TOKEN='secret'", "200 401 200 401"),
        ("POOLING_HEALTH_TOKEN='secret'", "200 401 200 401"),
        ("POOLING_DASHBOARD_TOKEN='other', POOLING_HEALTH_TOKEN='secret'", "200 401 401 401"),
        ("POOLING_DASHBOARD_ADMIT=lambda request: request.headers.get('From') == 'me'", "401 401 401 200"),
        ("POOLING_DASHBOARD_ADMIT='operator.not_'", "401 401 401 401"),
    ],
)
def test_django(settings: str, expected: str) -> None:
    pytest.importorskip("django")
    code = f"""if True:
        import django
        from django.conf import settings
        settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="k", {settings})
        django.setup()
        from django.test import Client
        from django.urls import path
        from pooling.observe.view import Viewer
        from pooling.web.django.dashboard import dashboard
        class Views:
            def view(self): return {{"time": 0, "processes": [], "pools": [], "events": []}}
        Viewer.of_process = Views
        urlpatterns = [path("pools/", dashboard)]
        asks = [dict(), dict(accept="application/json"),
                dict(accept="application/json", authorization="Bearer secret"),
                dict(accept="application/json", **{{"from": "me"}})]
        print(*[Client().get("/pools/", headers=headers).status_code for headers in asks])
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stderr, done.stdout.strip()) == ("", expected)


# -- the server of its own -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "local"),
    [
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:8089"}, True),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost:8089"}, True),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "LOCALHOST"}, True),
        ({"REMOTE_ADDR": "::1", "HTTP_HOST": "[::1]:8089"}, True),
        ({"REMOTE_ADDR": "::ffff:127.0.0.1", "HTTP_HOST": "localhost"}, True),
        ({"REMOTE_ADDR": "192.168.1.7", "HTTP_HOST": "localhost:8089"}, False),
        ({"REMOTE_ADDR": "", "HTTP_HOST": "localhost"}, False),  # a Unix socket: a proxy's
        ({"REMOTE_ADDR": "127.0.0.1"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "attacker.example:8089"}, False),  # DNS rebinding
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost.attacker.example"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1.attacker.example:80"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_X_FORWARDED_FOR": "127.0.0.1"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_X_FORWARDED_PROTO": "https"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_FORWARDED": "for=1.2.3.4"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_X_REAL_IP": "1.2.3.4"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_VIA": "1.1 proxy"}, False),
    ],
)
def test_which_requests_are_local(environ: dict[str, str], local: bool) -> None:
    assert is_local(environ) is local


Ask = Callable[..., tuple[int, bytes]]


@contextmanager
def serving(token: str | None, directory: Path) -> Iterator[tuple[Ask, int]]:
    with DashboardServer("127.0.0.1", 0, directory, token) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()

        def ask(path: str = "/", **headers: str) -> tuple[int, bytes]:
            conn = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
            try:
                conn.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
                answer = conn.getresponse()
                return answer.status, answer.read()
            finally:
                conn.close()

        yield ask, server.server_port
        server.shutdown()
        thread.join(20)


def test_server_on_loopback(tmp_path: Path) -> None:
    with serving(None, tmp_path) as (ask, _):
        assert ask()[0] == 200 and ask("/favicon.ico")[0] == 404
        for headers in ({"Host": "attacker.example"}, {"X_Forwarded_For": "1.2.3.4"}):
            for accept in ("text/html", JSON):
                status, body = ask(Accept=accept, **headers)
                assert status == 403 and b"Start it with --token" in body


def test_server_with_a_token(tmp_path: Path) -> None:
    with serving("secret", tmp_path) as (ask, _):
        assert ask(Accept=JSON)[0] == 401
        status, page = ask(Host="pools.example")
        assert status == 200 and b'data-admitted="no"' in page


def test_server_answers_while_a_client_is_silent(tmp_path: Path) -> None:
    with serving(None, tmp_path) as (ask, port), socket.create_connection(("127.0.0.1", port)):
        assert ask()[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::"])
def test_other_addresses_need_a_token(host: str, tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=f"a token is needed: --token or .{TOKEN}"):
        DashboardServer(host, 0, tmp_path, None)


def test_address_of_the_page(tmp_path: Path) -> None:
    try:
        server = DashboardServer("::1", 0, tmp_path, None)
    except OSError:
        pytest.skip("no IPv6")
    with server:
        assert server.url == f"http://[::1]:{server.server_port}/"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "argument --port: must be a whole number from 0 to 65535, not '70000'"),
        (["--port", "x"], "argument --port: must be a whole number from 0 to 65535, not 'x'"),
        (["--host", "0.0.0.0", "--port", "0"], "'0.0.0.0' can be reached from other machines, so a token is needed"),
        (["--token", ""], "argument --token: must not be empty"),
        (["--dir", "/nowhere"], "argument --dir: no such directory: '/nowhere'"),
        (["--host", "192.0.2.1", "--port", "0", "--token", "t"], "cannot listen on '192.0.2.1', port 0"),
    ],
)
def test_bad_option(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["dashboard", *arguments])
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_directory_that_others_can_write_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SystemExit) as exit:
        main(["dashboard", "--dir", str(tmp_path), "--port", "0"])
    assert exit.value.code == 2
    assert re.search(f"cannot read {tmp_path}: .* must not be writable for others", capsys.readouterr().err)


def test_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with DashboardServer("127.0.0.1", 0, tmp_path, None) as server, pytest.raises(SystemExit):
        main(["dashboard", "--port", str(server.server_port)])
    assert f"port {server.server_port}: Address already in use" in capsys.readouterr().err
