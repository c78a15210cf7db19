"""The parts of `HTTPPool` that need no network: limits, keys, the environment, untrusted paths."""

from __future__ import annotations

import email
import io
import math
import socket
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import requests.adapters
from requests.cookies import RequestsCookieJar
from urllib3 import HTTPResponse
from urllib3.exceptions import ProtocolError, ReadTimeoutError
from urllib3.util import Timeout

from pooling import HTTPPool, HTTPTimeout, LeaseError, PoolClosed, PoolSettings, PoolTimeout, TooManyWaiting
from pooling.adapters.http import sessions
from pooling.adapters.http.arguments import joined, without_secrets
from pooling.adapters.http.errors import kind_of, refusal
from pooling.adapters.http.hosts import HostKey
from pooling.adapters.http.limits import Limits, OutOfTime
from pooling.adapters.http.metrics import HostMetrics
from pooling.adapters.http.sending import build_response
from pooling.adapters.http.sessions import SharedJar
from pooling.adapters.http.wire import with_deadline


class Now:
    """A clock that the test moves."""

    time = 100.0

    def __call__(self) -> float:
        return self.time


# -- limits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, HTTPTimeout(connect=1, read=2, total=9)),
        (5, HTTPTimeout(connect=5, read=5, total=9)),
        ((3, None), HTTPTimeout(connect=3, read=None, total=9)),
        ([3, 4], HTTPTimeout(connect=3, read=4, total=9)),
        (Timeout(connect=3, read=4), HTTPTimeout(connect=3, read=4, total=9)),
        (Timeout(total=4), HTTPTimeout(connect=None, read=None, total=4)),
        (HTTPTimeout(), HTTPTimeout()),
    ],
)
def test_forms_of_a_timeout(given: Any, expected: HTTPTimeout) -> None:
    assert HTTPTimeout.of(given, HTTPTimeout(connect=1, read=2, total=9)) == expected


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_timeouts_must_be_above_0_and_finite(value: float) -> None:
    for name in ("connect", "read", "write", "total"):
        with pytest.raises(ValueError, match=f"timeout: {name} must be above 0 and finite"):
            HTTPTimeout(**{name: value})
    assert HTTPTimeout(pool=0).pool == 0  # 0 means not to wait


@pytest.mark.parametrize("value", ["5", True, (1, 2)])
def test_timeouts_must_be_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match="timeout: read must be a number of seconds or None"):
        HTTPTimeout(read=value)


def test_total_shortens_every_limit() -> None:
    now = Now()
    limits = Limits(HTTPTimeout(connect=10, read=30, total=5), now)
    assert (limits.left(10), limits.left(1), limits.left(None)) == (5, 1, 5)
    assert limits.for_attempt().connect_timeout == 5
    now.time += 4
    assert (limits.left(10), limits.over) == (1, False)
    assert (limits.allows(0.5), limits.allows(1.0)) == (True, False)
    now.time += 1
    assert limits.over
    with pytest.raises(OutOfTime, match="longer than its total of 5 s"):
        limits.left(10)


def test_limits_without_a_total() -> None:
    now = Now()
    limits = Limits(HTTPTimeout(connect=10, read=None), now)
    now.time += 1e6
    assert (limits.left(10), limits.left(None), limits.over) == (10, None, False)
    assert limits.allows(1e6) and limits.for_attempt() is limits


# -- keys -------------------------------------------------------------------------------------


def key(url: str, verify: Any = True, proxies: Any = None, cert: Any = None) -> HostKey:
    return HostKey.of(requests.Request("GET", url).prepare(), verify, proxies, cert)


def test_requests_with_equal_keys_share_sockets() -> None:
    assert key("https://Example.COM/a?b") == key("https://user:word@example.com:443/c")
    assert key("https://example.com").label == "https://example.com"
    assert key("http://example.com:8080").label == "http://example.com:8080"
    assert key("http://[::1]:80/").label == "http://[::1]"
    assert key("http://[::1]:8080/").label == "http://[::1]:8080"
    assert key("https://h", cert=["a", "b"]) == key("https://h", cert=("a", "b"))
    assert key("http://h", verify=False) == key("http://h", verify="/some/file")  # nothing is encrypted
    assert key("https://h", verify=None) == key("https://h", verify=True)


@pytest.mark.parametrize(
    "other",
    [
        {"url": "http://h:443"}, {"url": "https://h2"}, {"url": "https://h:444"}, {"verify": False},
        {"verify": "/some/file"}, {"cert": "c.pem"}, {"proxies": {"https": "http://p"}},
    ],
)  # fmt: skip
def test_requests_with_different_keys_share_no_sockets(other: dict[str, Any]) -> None:
    assert key("https://h") != key(**{"url": "https://h", **other})


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [PoolTimeout, TooManyWaiting, PoolClosed, LeaseError])
def test_pool_errors_are_also_errors_of_requests(ours: type[Exception]) -> None:
    cause = OSError("why")
    error = ours("the pool's message")
    error.__cause__ = cause
    known = refusal(error)  # type: ignore[arg-type]
    assert isinstance(known, requests.ConnectionError)
    assert isinstance(known, ours) or ours is LeaseError
    assert str(known) == "the pool's message" and known.__cause__ is cause
    assert isinstance(known, requests.exceptions.Timeout) == (ours is PoolTimeout)


def test_kinds_of_failures() -> None:
    assert kind_of(ReadTimeoutError(None, "/", "late")) == "read_timeout"  # type: ignore[arg-type]
    assert kind_of(ProtocolError("cut")) == "connection"


# -- sessions and metrics -----------------------------------------------------------------------


def test_new_pool_opens_no_socket_and_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_thread.start_new_thread", lambda *args: pytest.fail("a thread was started"))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a socket was opened"))
    http = HTTPPool(PoolSettings(), base_url="https://api.example.com", health_url="/health", name="api")
    with http.acquire() as session:
        assert session.headers["User-Agent"].startswith("python-requests")
    http.session(), http.stats(), http.holders(), http.metrics.snapshot(), http.health_check()
    assert repr(http) == "<HTTPPool 'api': 0/10 in use, 0 idle, 0 waiting>"
    assert http.metrics.hosts() == []


def test_new_session_equals_one_of_requests() -> None:
    plain, ours = vars(requests.Session()), vars(HTTPPool().session())
    assert plain.keys() < ours.keys() and len(ours) == len(plain) + 1  # its transport
    for name in plain.keys() - {"adapters", "cookies"}:
        assert plain[name] == ours[name] and type(plain[name]) is type(ours[name]), name
    http = HTTPPool(proxies={"http": "http://proxy.example"})
    one, two = http.session(), http.session()
    assert one.proxies == two.proxies == {"http": "http://proxy.example"}
    for name in ("headers", "hooks", "params", "proxies", "cookies", "adapters"):
        assert getattr(one, name) is not getattr(two, name)
    assert one.hooks["response"] is not two.hooks["response"]


def test_environment_is_read_as_in_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    sessions = [requests.Session(), HTTPPool().session()]

    def merged(*args: Any) -> dict[str, Any]:
        first, second = (session.merge_environment_settings("https://h/", *args) for session in sessions)
        assert {**first, "proxies": dict(first["proxies"])} == {**second, "proxies": dict(second["proxies"])}
        return second

    assert merged({}, None, None, None)["verify"] is True
    assert merged({"https": "http://p"}, True, False, "c.pem")["cert"] == "c.pem"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/some/file")
    assert merged({}, None, None, None)["verify"] == "/some/file"
    assert merged({}, None, False, None)["verify"] is False
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "http://from-env")
            assert "http://from-env" in merged({}, None, None, None)["proxies"].values()
            patch.setenv("no_proxy", "h")
            assert not merged({}, None, None, None)["proxies"]


def test_verify_overrides_the_environment_with_any_session_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/from/env")
    for factory in (requests.Session, lambda: requests.Session()):
        session = HTTPPool(session_factory=factory, verify=False).session()
        assert session.merge_environment_settings("https://h/", {}, None, None, None)["verify"] is False


def test_ssl_context_of_another_class_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ssl.create_default_context()
    monkeypatch.setattr("ssl.SSLContext", type("SSLContext", (ssl.SSLContext,), {}))  # as truststore does
    session = HTTPPool(ssl_context=plain).session()
    assert key("https://h", session.verify).verify is plain


def test_shared_jar_is_renewed_without_its_lock() -> None:
    jar = SharedJar()
    jar.set("a", "1", domain="h", path="/")
    with jar._cookies_lock:  # type: ignore[attr-defined]
        copy = jar.renewed()
    copy.set("b", "2", domain="h", path="/")
    assert (jar.get_dict(), copy.get_dict()) == ({"a": "1"}, {"a": "1", "b": "2"})
    assert copy._cookies_lock is not jar._cookies_lock  # type: ignore[attr-defined]


def test_counts_of_a_host() -> None:
    metrics = HostMetrics("http://h")
    metrics.connected(0.01)
    for status, seconds in ((200, 0.1), (200, 0.2), (503, 0.4)):
        metrics.answered(status, seconds, reused=status == 503)
    metrics.closed(60.0)
    metrics.failed("tls")
    metrics.moved(10, 200)
    metrics.count("retries")
    found = metrics.snapshot()
    assert (found.requests, found.statuses, found.failures) == (4, {200: 2, 503: 1}, {"tls": 1})
    assert (found.bytes_sent, found.bytes_received, found.opened, found.reused, found.retries) == (10, 200, 1, 1, 1)
    assert found.latency.count == 3 and found.latency.max == 0.4
    assert found.lifetime.count == 1 and found.lifetime.max == 60.0
    assert found.to_dict()["statuses"] == {"200": 2, "503": 1}


def test_connection_classes_extend_those_of_urllib3() -> None:
    from urllib3.connection import HTTPConnection, HTTPSConnection

    for kind in (HTTPConnection, HTTPSConnection):
        wire = with_deadline(kind)("h", 1)
        assert isinstance(wire, kind) and type(wire) is with_deadline(kind)
        assert wire.is_alive() and not wire.opened
        wire.interrupt()
        wire.abandon()
        wire.close()


class RecordingSocket:
    """A socket that records what is sent, and the time limit."""

    def __init__(self) -> None:
        self.calls: list[tuple[float | None, bytes]] = []
        self.limit: float | None = None

    def settimeout(self, limit: float | None) -> None:
        self.limit = limit

    def sendall(self, data: Any) -> None:
        self.calls.append((self.limit, bytes(data)))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("total", [None, 60])
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(data).cast("I")])
def test_write_timeout_is_for_each_piece_of_a_body(kind: Any, total: float | None, secure: bool) -> None:
    """The limit does not apply to a steady upload as a whole."""
    from urllib3.connection import HTTPConnection, HTTPSConnection

    wire: Any = with_deadline(HTTPSConnection if secure else HTTPConnection)("h", 1)
    wire.sock = sock = RecordingSocket()
    wire.begin(Limits(HTTPTimeout(write=2, total=total), Now()))
    body = bytes(range(250)) * 200  # as 4-byte words, it has fewer items than a piece has bytes
    wire.send(kind(body))
    wire.send(b"small")
    assert b"".join(data for _, data in sock.calls) == body + b"small"
    assert max(len(data) for _, data in sock.calls) <= 16384
    assert {limit for limit, _ in sock.calls} == {2}
    assert wire.sent == len(body) + 5


def test_write_timeout_replaces_that_to_connect() -> None:
    from urllib3.connection import HTTPConnection

    wire: Any = with_deadline(HTTPConnection)("h", 1)
    sock, peer = socket.socketpair()
    with sock, peer:
        wire.sock = sock
        for before in (10.0, 2.0, None):
            sock.settimeout(before)
            wire.begin(Limits(HTTPTimeout(write=2), Now()))
            wire.send(b"data")
            assert sock.gettimeout() == 2


def test_response_that_arrives_during_a_cleanup_is_closed_with_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads use one session: one drops the responses that were read while the other gets one."""
    closed: list[int] = []

    class Answer(requests.Response):
        def close(self) -> None:
            closed.append(id(self))

    class Below(requests.adapters.BaseAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
            return Answer()

    view = sessions.View(HTTPPool().connections, Below())
    request = requests.Request("GET", "http://h").prepare()
    answers = [view.send(request) for _ in range(32)]
    plain = sessions.is_unread

    def meanwhile(response: requests.Response | None) -> bool:
        monkeypatch.setattr(sessions, "is_unread", plain)
        answers.append(view.send(request))
        return plain(response)

    monkeypatch.setattr(sessions, "is_unread", meanwhile)
    answers.append(view.send(request))
    view.end()
    assert sorted(closed) == sorted(map(id, answers))
    closed.clear()
    with pytest.raises(LeaseError):
        view.send(request)

    class Late(Below):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            late.end()
            return Answer()

    late = sessions.View(HTTPPool().connections, Late())
    assert closed == [id(late.send(request))]


# -- untrusted paths, and secrets ------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/x", "https://u:p@api.test/v1/x"),
        ("/", "https://u:p@api.test/v1/"),
        ("/@evil.test/x", "https://u:p@api.test/v1/@evil.test/x"),
        ("//evil.test/x", "https://u:p@api.test/v1//evil.test/x"),
        ("/\\evil.test/x", "https://u:p@api.test/v1/\\evil.test/x"),
        ("/http://evil.test/", "https://u:p@api.test/v1/http://evil.test/"),
        ("/../admin", "https://u:p@api.test/v1/admin"),
        ("/a/../../admin", "https://u:p@api.test/v1/admin"),
        ("/a/./b/..", "https://u:p@api.test/v1/a/"),
        ("/%2e%2e/admin", "https://u:p@api.test/v1/admin"),
        ("/.%2E/admin", "https://u:p@api.test/v1/admin"),
        ("/..", "https://u:p@api.test/v1/"),
        ("/a%2Fb/%252e%252e/%41?q=/../#/../", "https://u:p@api.test/v1/a%2Fb/%252e%252e/%41?q=/../#/../"),
        ("/a..b/...", "https://u:p@api.test/v1/a..b/..."),
    ],
)
def test_untrusted_path_stays_below_the_base_url(path: str, url: str) -> None:
    assert joined("https://u:p@api.test/v1", path) == url
    sent: list[requests.PreparedRequest] = []

    class Recorder(requests.Session):
        def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
            sent.append(request)
            return requests.Response()

    for base in ("https://u:p@api.test/v1/", "https://api.test"):
        HTTPPool(base_url=base, session_factory=Recorder).get(path)
    assert [HostKey.of(request, True, None, None).host for request in sent] == ["api.test"] * 2
    assert sent[0].path_url.startswith("/v1/")


@pytest.mark.parametrize(
    "path", ["/..%2fadmin", "/..%5Cadmin", "/..\\admin", "/%2e%2e%2Fadmin", "/x%2f..%2fadmin", "/..;/a"]
)
def test_path_that_a_server_may_read_as_dots_raises(path: str) -> None:
    with pytest.raises(requests.exceptions.InvalidURL, match=r"must not have \.\."):
        HTTPPool(base_url="https://api.test/v1").get(path)


@pytest.mark.parametrize("text", ["@evil.test", "\\\\evil.test\\x", "evil.test/x", "", "x:y"])
def test_text_that_is_neither_a_path_nor_a_url_raises(text: str) -> None:
    with HTTPPool(base_url="http://127.0.0.1:1/v1", retry=None) as http, pytest.raises(ValueError):
        http.get(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"settings": "http://u:PW@h"}, "settings must be a PoolSettings, not a str; a URL goes into base_url="),
        ({"base_url": "u:PW@h"}, "base_url must begin with http:// or https://"),
        ({"base_url": b"http://u:PW@h"}, "base_url must be a string, not a bytes"),
        ({"base_url": "http://u:PW/x@h"}, "base_url must name a host"),
        ({"base_url": "http://h:PW"}, "base_url must name a host"),
        ({"base_url": "http://[PW"}, "base_url must name a host"),
        ({"base_url": "http:///PW"}, "base_url must name a host"),
        ({"base_url": "http://u:PW@ho st"}, "base_url must name a host"),
        ({"base_url": "http://u:PW@*.h"}, "base_url must name a host"),
        ({"base_url": "http://u:PW@h:0"}, "base_url must name a host"),
        ({"base_url": "http://h/?key=PW"}, "base_url must have no query"),
        ({"base_url": "http://h/#PW"}, "base_url must have no query"),
        ({"health_url": "u:PW@h"}, "health_url must begin with"),
        ({"health_url": "http://u:PW/x@h"}, "health_url must name a host"),
        ({"cookies": {"id": "PW"}}, 'cookies must be "isolated" or "shared", not a dict'),
        ({"session_factory": "PW"}, "session_factory must be callable, not a str"),
        ({"timeout": "PW"}, "not a str"),
        ({"timeout": ("PW", 1, 2)}, "not a tuple"),
        ({"max_per_host": "PW"}, "not a str"),
        ({"retry": "PW"}, "not a str"),
        ({"verify": b"PW"}, "not of bytes"),
        ({"observers": ["PW"]}, "not a str"),
    ],
)
def test_errors_about_arguments_show_no_secret(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        HTTPPool(**wrong)
    assert message in str(caught.value)
    shown = caught.value
    while shown is not None:
        assert "PW" not in str(shown)
        shown = shown.__cause__  # type: ignore[assignment]
    with pytest.raises(TypeError) as caught_too:
        HTTPPool().warm_up("http://u:PW@h")
    assert "PW" not in str(caught_too.value)


def test_health_url_is_shown_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    url = "http://user:p%40ss@127.0.0.1:1/health?token=t0ken"
    with HTTPPool(health_url=url) as http:
        found = http.health_check(ask=True)
    assert (found["url"], found["status"]) == ("http://127.0.0.1:1/health", "unhealthy")
    shown = repr(found) + caplog.text
    assert "Max retries exceeded with url: /health?***" in shown
    assert not any(secret in shown for secret in ("user", "p%40ss", "p@ss", "t0ken"))


def test_control_characters_in_a_servers_text_are_escaped() -> None:
    text = without_secrets("500 \x1b[2J\x9bm bad\nline /a?b=c", "http://h/a?b=c")
    assert text == "500 \\x1b[2J\\x9bm bad\\nline /a?***"


# -- preparing requests ----------------------------------------------------------------------

SIMPLE = "http://example.com/path"
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "lower case": {"method": "get"},
    "no path": {"url": "http://Example.com"},
    "space and umlaut": {"url": " http://b\xfccher.example/a b\xfc"},
    "query": {"url": f"{SIMPLE}?a=1&b=c d#end"},
    "credentials in the URL": {"url": "http://me:se%20cret@example.com/"},
    "no scheme": {"url": "example.com"},
    "other scheme": {"url": "mailto:me@example.com"},
    "no host": {"url": "http://"},
    "wildcard": {"url": "http://*.example.com"},
    "not a string": {"url": b"http://example.com/bytes"},
    "params": {"params": {"a": "1", "b": None}},
    "header": {"headers": {"X-One": "1", "accept": "text/html"}},
    "header removed": {"headers": {"ACCEPT": None}},
    "header as bytes": {"headers": {b"X-One": b"1"}},
    "wrong header": {"headers": {"X-One": "1\n2"}},
    "wrong header of a wrong type": {"headers": {"X-One": 1}},
    "cookies": {"cookies": {"a": "1"}},
    "form": {"method": "POST", "data": {"a": "1"}},
    "bytes": {"method": "POST", "data": b"abc"},
    "empty": {"method": "POST"},
    "body of a GET": {"data": b"abc"},
    "empty form of a GET": {"data": {}},
    "empty list of a GET": {"data": []},
    "json of a GET": {"json": {}},
    "stream of a GET": {"data": iter(())},
    "json": {"method": "PUT", "json": {"a": 1}},
    "file": {"method": "POST", "files": {"a": ("name", b"abc")}},
    "login": {"auth": ("me", "secret")},
    "login by a function": {"auth": lambda request: request},
    "hook": {"hooks": {"response": print}},
}


def _same(session: requests.Session) -> None:
    """Leave it as it is."""


def _with_headers(session: requests.Session) -> None:
    session.headers.update({"X-Mine": "1", "Accept": None, "x-one": "0"})  # type: ignore[dict-item]


def _with_a_dict(session: requests.Session) -> None:
    session.headers = {"X-Mine": "1"}  # type: ignore[assignment]


def _with_login(session: requests.Session) -> None:
    session.auth, session.hooks = ("us", "other"), {"response": [repr]}


def _with_params(session: requests.Session) -> None:
    session.params = {"c": "3"}


def _with_cookies(session: requests.Session) -> None:
    session.cookies.set("mine", "1")


@pytest.mark.parametrize("change", [_same, _with_headers, _with_a_dict, _with_login, _with_params, _with_cookies])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_requests_are_prepared_as_by_requests(asked: dict[str, Any], change: Any) -> None:
    with HTTPPool(PoolSettings()) as http:
        results = [_prepared(session, asked, change) for session in (requests.Session(), http.session())]
    theirs, ours = results
    assert ours == theirs
    assert list(ours) == list(theirs)


def _prepared(session: requests.Session, asked: dict[str, Any], change: Any) -> dict[str, Any]:
    change(session)
    given = {"method": "GET", "url": SIMPLE, **asked}
    try:
        made = session.prepare_request(requests.Request(**given))
    except Exception as error:
        return {"error": type(error), "text": str(error)}
    found: dict[str, Any] = {
        name: dict(value) if isinstance(value, RequestsCookieJar) else value for name, value in vars(made).items()
    }
    found["headers"] = list(made.headers.items())
    if asked.get("files"):  # its boundary is a random number
        found["headers"], found["body"] = None, len(made.body or b"")
    return found


def test_prepared_requests_share_nothing() -> None:
    """P5: what a hook does with one does not reach the next."""
    with HTTPPool(PoolSettings()) as http:
        session = http.session()
        first, second = (session.prepare_request(requests.Request("GET", SIMPLE)) for _ in range(2))
    first.headers["X-One"], first.url = "1", "http://other.example"
    first.hooks["response"].append(print)
    assert "X-One" not in second.headers and "X-One" not in session.headers
    assert second.url == SIMPLE and second.hooks["response"] == session.hooks["response"] == []
    assert http.session().prepare_request(requests.Request("GET", SIMPLE)).url == SIMPLE


def test_header_overrides_a_password_that_a_tool_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.sessions, "get_netrc_auth", lambda *args, **kwargs: ("me", "secret"))
    with HTTPPool(PoolSettings()) as http:
        session = http.session()
        found = session.prepare_request(requests.Request("GET", SIMPLE)).headers
        given = session.prepare_request(requests.Request("GET", SIMPLE, {"Authorization": "mine"})).headers
    assert found["Authorization"].startswith("Basic ") and given["Authorization"] == "mine"


@pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
def test_password_file_is_found_as_soon_as_it_exists(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with HTTPPool(PoolSettings()) as http:
        session = http.session()
        assert "Authorization" not in session.prepare_request(requests.Request("GET", SIMPLE)).headers
        (tmp_path / name).write_text("machine example.com login me password secret")
        if name == "elsewhere":
            monkeypatch.setenv("NETRC", str(tmp_path / name))
        assert session.prepare_request(requests.Request("GET", SIMPLE)).headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("owner", [requests.Session, requests.PreparedRequest])
def test_replaced_methods_of_requests_are_called(owner: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As tools do that record or trace requests."""
    name = "prepare_request" if owner is requests.Session else "prepare"
    original, calls = getattr(owner, name), []

    def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, replaced)
    with HTTPPool(PoolSettings()) as http:
        http.session().prepare_request(requests.Request("GET", SIMPLE))
    assert calls == [name]


def test_method_of_a_session_class_is_called() -> None:
    class Mine(requests.Session):
        def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
            made = super().prepare_request(request)
            made.headers["X-Mine"] = "1"
            return made

    with HTTPPool(PoolSettings(), session_factory=Mine) as http:
        assert http.session().prepare_request(requests.Request("GET", SIMPLE)).headers["X-Mine"] == "1"


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Content-Type": "text/html; charset=latin-2", "X-Other": "1"}, {"CONTENT-TYPE": "application/json"},
        {"Set-Cookie": "a=1", "Content-Type": "image/png"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 404])
def test_responses_are_built_as_by_requests(headers: dict[str, str], status: int) -> None:
    request = requests.Request("GET", SIMPLE).prepare()
    answer = HTTPResponse(io.BytesIO(b"body"), headers, status, reason="So", preload_content=False)
    answer._original_response = SimpleNamespace(msg=email.message_from_string(_lines(headers)))  # type: ignore[assignment]
    adapter = requests.adapters.HTTPAdapter()
    theirs = adapter.build_response(request, answer)
    ours = build_response(adapter, request, answer)
    assert ours is not None and type(ours) is requests.Response
    assert vars(ours).keys() == vars(theirs).keys()
    for name, value in vars(theirs).items():
        assert type(vars(ours)[name]) is type(value), name
        if name == "cookies":
            assert dict(ours.cookies) == dict(theirs.cookies) == ({"a": "1"} if "Set-Cookie" in headers else {})
        else:
            assert vars(ours)[name] == value, name
    another = build_response(adapter, request, answer)
    assert another is not None
    for name in ("headers", "history", "cookies"):
        assert getattr(another, name) is not getattr(ours, name)


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())

