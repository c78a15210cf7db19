"""The one client of a process, and its environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pooling import (
    HTTPPool,
    HTTPTimeout,
    PoolClosed,
    get_http_pool,
    init_http_pool,
    make_http_request,
    shutdown_http_pool,
)
from pooling.adapters.http.client import pool_arguments
from tests.web import WebServer


@pytest.fixture(autouse=True)
def no_client_left() -> Iterator[None]:
    yield
    shutdown_http_pool()


def test_one_client_for_all(web: WebServer) -> None:
    assert make_http_request("GET", web.url + "/echo").ok
    http = get_http_pool()
    assert http is get_http_pool() and http.name == "http"
    assert make_http_request("POST", web.url + "/echo", json=[1]).json()["body"] == "[1]"
    assert web.book()["accepted"] == 1
    shutdown_http_pool()
    shutdown_http_pool()
    assert http.closed
    with pytest.raises(PoolClosed):
        http.get(web.url)
    assert get_http_pool() is not http


def test_made_anew_the_old_one_is_closed(web: WebServer) -> None:
    first = init_http_pool(base_url=web.url, name="mine")
    assert make_http_request("GET", "/echo").ok
    second = init_http_pool()
    assert first.closed and get_http_pool() is second


def test_its_defaults() -> None:
    http = init_http_pool()
    settings, timeout = http.settings, http.adapter.limits(None).asked
    assert (settings.max_size, settings.max_idle, settings.idle_timeout) == (100, 20, 300)
    assert (timeout, settings.acquire_timeout) == (HTTPTimeout(connect=10, read=30, write=10), 5)


def test_the_environment_sets_it_up(monkeypatch: pytest.MonkeyPatch, web: WebServer) -> None:
    for name, value in {
        "HTTP_MAX_CONNECTIONS": "50", "HTTP_MAX_CONNECTIONS_PER_HOST": "7", "HTTP_MAX_KEEPALIVE_CONNECTIONS": "9",
        "HTTP_KEEPALIVE_EXPIRY": "15", "HTTP_CONNECTION_TIMEOUT": "3", "HTTP_READ_TIMEOUT": "4.5",
        "HTTP_RETRY_ATTEMPTS": "2", "HTTP_MAX_LIFETIME": "60", "HTTP_TOTAL_TIMEOUT": "none", "ENABLE_METRICS": "false",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    http = get_http_pool()
    settings = http.settings
    assert (settings.max_size, settings.max_idle, settings.idle_timeout, settings.max_lifetime) == (50, 9, 15, 60)
    assert not settings.enable_metrics
    assert http.stats()["max_per_host"] == 7
    assert http.adapter.limits(None).asked == HTTPTimeout(connect=3, read=4.5, write=10)
    assert http.get(web.url + "/status/503?times=2&key=env").ok
    assert init_http_pool(max_per_host=3).stats()["max_per_host"] == 3  # the program's word beats it


def test_pooling_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, web: WebServer) -> None:
    monkeypatch.setenv("HTTP_POOLING", "off")
    for _ in range(3):
        assert make_http_request("GET", web.url + "/echo").ok
    assert web.book()["accepted"] == 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HTTP_MAX_CONNECTIONS", "many", "HTTP_MAX_CONNECTIONS='many'.*whole number"),
        ("HTTP_MAX_CONNECTIONS_PER_HOST", "0", "HTTP_MAX_CONNECTIONS_PER_HOST='0'.*at least 1"),
        ("HTTP_RETRY_ATTEMPTS", "-1", "HTTP_RETRY_ATTEMPTS='-1'.*at least 0"),
        ("HTTP_READ_TIMEOUT", "soon", "HTTP_READ_TIMEOUT='soon'.*number of seconds"),
        ("HTTP_POOLING", "perhaps", "HTTP_POOLING='perhaps'.*true or false"),
        ("ENABLE_METRICS", "2", "ENABLE_METRICS='2'.*true or false"),
    ],
)
def test_what_does_not_parse_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_arguments("HTTP_", {name: value})


def test_two_names_of_one_time() -> None:
    same = {"APP_CONNECT_TIMEOUT": "3", "APP_CONNECTION_TIMEOUT": "3.0"}
    assert pool_arguments("APP_", same)["timeout"].connect == 3
    with pytest.raises(ValueError, match="APP_CONNECT_TIMEOUT and APP_CONNECTION_TIMEOUT both"):
        pool_arguments("APP_", same | {"APP_CONNECTION_TIMEOUT": "4"})
    HTTPPool(**pool_arguments("APP_", {}))
