"""Responses of an HTTPPool are those of requests, in every attribute, where the pool builds them itself."""

from __future__ import annotations

import gzip
import http.cookiejar
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests
from requests.cookies import RequestsCookieJar

from pooling import HTTPPool
from tests.raw import Asked, RawServer, ok
from tests.web import WebServer

PACKED = gzip.compress(b"well compressed")
ANSWERS: dict[str, bytes] = {
    "text": ok("hello", "Content-Type: text/plain"),
    "charset": ok("hello", 'content-type: text/html; Charset="UTF-8"'),
    "json": ok('{"a": 1}', "Content-Type: application/json"),
    "no type": ok("hello"),
    "nothing": ok(""),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
    "no reason": b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\na",
    "error": ok("what?", status="404 Not Found"),
    "fields twice": ok("a", "X-A: 1", "x-a: 2", "X-B: 3"),
    "cookies": ok("a", "Set-Cookie: a=1; Path=/", "set-cookie: b=2; Path=/"),
    "old cookies": ok("a", 'Set-Cookie2: a=1; Version="1"'),
    "wrong cookie": ok("a", "Set-Cookie: a=1; Domain=elsewhere.example"),
    "packed": ok(PACKED, "Content-Encoding: gzip"),
    "packed wrongly": ok(b"not packed", "Content-Encoding: gzip"),
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    "until the end": b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "large": ok(b"x" * 2_000_000),
    "redirect": ok("there", "Location: /text", "Set-Cookie: a=1; Path=/", status="302 Found"),
    "redirect to itself": ok("there", "Location: /redirect%20to%20itself", status="302 Found"),
    "redirect to nowhere": ok("there", "Location: http://", status="302 Found"),
    "redirect without a target": ok("there", status="302 Found"),
}
ASKED: dict[str, dict[str, Any]] = {
    "GET": {},
    "HEAD": {"method": "HEAD"},
    "not followed": {"allow_redirects": False},
    "streamed": {"stream": True},
    "POST": {"method": "POST", "data": b"abc"},
}


ENDED = ("until the end", "cut short")  # by closing the connection


def answered(asked: Asked) -> Iterator[bytes]:
    name = requests.utils.unquote(asked.target[1:])
    answer = ANSWERS[name]
    yield answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if asked.method == "HEAD" else answer
    if name in ENDED:
        raise ConnectionAbortedError("the end")


def described(session: requests.Session, url: str, asked: dict[str, Any]) -> dict[str, Any]:
    session.max_redirects = 3
    try:
        response = session.request(**{"method": "GET", "url": url, "timeout": 30, **asked})
        found = attributes(response)
        found["content"] = response.content
    except requests.RequestException as error:
        inner = [type(one) for one in error.args]
        found = {"error": type(error), "inner": inner, "url": error.request and error.request.url}
    found["jar"] = cookies(session.cookies)
    return found


def attributes(response: requests.Response) -> dict[str, Any]:
    assert response.elapsed > timedelta(0)
    assert response.next is None or response.next.url
    return {
        "status": response.status_code, "reason": response.reason, "url": response.url, "headers": response.headers,
        "items": list(response.headers.items()), "encoding": response.encoding, "cookies": cookies(response.cookies),
        "consumed": vars(response)["_content_consumed"], "history": [attributes(one) for one in response.history],
        "next": response.next and response.next.url, "sent": list(response.request.headers.items()),
        "ok": response.ok, "redirect": response.is_redirect, "raw": (response.raw.status, response.raw.chunked),
        "names": sorted(vars(response)),
    }  # fmt: skip


def cookies(jar: http.cookiejar.CookieJar) -> list[tuple[str, Any, str]]:
    return sorted((one.name, one.value, one.path) for one in jar)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("name", ANSWERS)
def test_responses_are_those_of_requests(name: str, asked: dict[str, Any]) -> None:
    with RawServer(answered) as server, HTTPPool() as http, requests.Session() as theirs:
        url = f"{server.url}/{requests.utils.quote(name)}"
        assert described(http.session(), url, asked) == described(theirs, url, asked)


@pytest.mark.parametrize("change", ["hook", "send", "adapter", "jar"])
def test_what_a_program_replaces_is_used(change: str, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Jar(RequestsCookieJar):
        def extract_cookies(self, *args: Any) -> None:
            seen.append("jar")
            super().extract_cookies(*args)

    def noting(target: Any, name: str) -> None:
        before = getattr(target, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(change)
            return before(*args, **kwargs)

        monkeypatch.setattr(target, name, call)

    with HTTPPool() as http:
        session = http.session()
        if change == "hook":
            session.hooks["response"].append(lambda response, **kwargs: seen.append("hook"))
        elif change == "jar":
            session.cookies = Jar()
        elif change == "send":
            noting(requests.Session, "send")
        else:
            noting(requests.adapters.HTTPAdapter, "build_response")
        assert session.get(f"{web.url}/echo").json()["method"] == "GET"
        assert seen == [change]


def test_responses_share_nothing(web: WebServer) -> None:
    """P5: neither headers nor cookies nor what was sent."""
    with HTTPPool(headers={"X-One": "1"}) as http:
        first = http.get(f"{web.url}/cookie?a=1")
        first.headers["X-Two"] = first.request.headers["X-Three"] = "2"
        second = http.get(f"{web.url}/cookie?b=1")
        assert "X-Two" not in second.headers and "X-Three" not in second.request.headers
        assert second.request.headers["X-One"] == "1"
        assert (cookies(first.cookies), cookies(second.cookies)) == ([("a", "1", "/")], [("b", "1", "/")])
        session = http.session()
        session.headers["X-One"] = "2"
        assert http.session().headers["X-One"] == "1"
        assert session.get(f"{web.url}/echo").json()["headers"].count(["X-One", "2"]) == 1


@pytest.mark.parametrize("name", ["https_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_proxies_of_the_environment_are_seen_at_once(
    name: str, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(one, raising=False)
        monkeypatch.delenv(one.upper(), raising=False)
    with HTTPPool() as http:
        session = http.session()
        settings = session.merge_environment_settings("http://h.example", {}, None, None, None)
        assert settings["proxies"] == {}
        monkeypatch.setenv(name, "http://proxy.example:1")
        settings = session.merge_environment_settings("http://h.example", {}, None, None, None)
        assert list(settings["proxies"].values()) == ["http://proxy.example:1"]


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_of_the_environment_are_seen_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(one, raising=False)
    with HTTPPool() as http:
        session = http.session()

        def verify() -> Any:
            return session.merge_environment_settings("https://h.example", {}, None, None, None)["verify"]

        assert verify() is True
        monkeypatch.setenv(name, "/some/file.pem")
        assert verify() == "/some/file.pem"
        monkeypatch.setenv(name, "")
        assert verify() is True
