"""A Django project for tests: two PostgreSQL databases, one SQLite database, and the views of the test."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from django.conf import settings
from django.urls import clear_url_caches, path, set_urlconf

from tests.servers import PostgresServer

__all__ = ["SECRET", "alter", "check_nothing_is_lent", "end_of_request", "one", "route", "running"]

URLS = "django_test_urls"
SECRET = "p4ssw0rd-of-the-database"


@contextlib.contextmanager
def running(postgres: PostgresServer, folders: pytest.TempPathFactory) -> Iterator[None]:
    """Set the project up until the block ends; Django allows only one per process, so it is always the same."""
    urls: Any = types.ModuleType(URLS)
    urls.urlpatterns = []
    sys.modules[URLS] = urls
    if not settings.configured:
        _fill(postgres)
        _configure(postgres.port, folders)
    yield
    for alias in django.db.connections:
        django.db.connections[alias].close()
        django.db.connections[alias].close_pool()
    del sys.modules[URLS]


def _fill(postgres: PostgresServer) -> None:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE ROLE clerk LOGIN SUPERUSER")
        conn.execute("CREATE DATABASE django_site")
    with postgres.connect(dbname="django_site") as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY, name text, at timestamptz DEFAULT now())")
        conn.execute("INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 5000) n")


def _configure(port: int, folders: pytest.TempPathFactory) -> None:
    common = {
        "ENGINE": "pooling.web.django.postgresql", "NAME": "django_site", "USER": "postgres",
        "HOST": "127.0.0.1", "PORT": port, "PASSWORD": SECRET,
    }  # fmt: skip
    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["pooling.web.django"],
        ROOT_URLCONF=URLS,
        USE_TZ=True,
        POOLING={"api": "http://127.0.0.1:9"},
        DATABASES={
            "default": {**common, "OPTIONS": {"pool": {"max_size": 2, "acquire_timeout": 5}}},
            "second": {**common, "USER": "clerk", "ATOMIC_REQUESTS": True},
            "lite": {
                "ENGINE": "pooling.web.django.sqlite3",
                "NAME": folders.mktemp("django") / "lite.db",
            },
        },
    )
    django.setup()


def check_nothing_is_lent() -> None:
    for alias in django.db.connections:
        assert django.db.connections[alias].pool.stats()["in_use"] == 0


def route(*views: Callable[..., Any], **places: Callable[..., Any]) -> None:
    """Give the site exactly these views: the first one at its root, or by the names of their paths."""
    pages = {"": views[0]} if views else {}
    pages.update(places)
    sys.modules[URLS].urlpatterns = [path(place, view) for place, view in pages.items()]  # type: ignore[attr-defined]
    clear_url_caches()
    set_urlconf(None)


def one(connection: Any, query: str, *params: Any) -> Any:
    """Return the first value of a query's first row."""
    with connection.cursor() as cursor:
        cursor.execute(query, params or None)
        return cursor.fetchone()[0]


def end_of_request() -> None:
    """Do what happens when a response is closed."""
    from django.core.signals import request_finished

    request_finished.send(sender=None)


def alter(monkeypatch: pytest.MonkeyPatch, connection: Any, **changes: Any) -> None:
    """Change settings of a database for one test."""
    for name, value in changes.items():
        monkeypatch.setitem(connection.settings_dict, name, value)
