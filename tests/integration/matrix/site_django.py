"""A Django project in one module: settings, URLs and view."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from django.urls import path
from psycopg.conninfo import conninfo_to_dict

from pooling import Pool
from tests.integration.matrix.answers import SETTINGS, answer

SECRET_KEY = "of no use"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = __name__
WSGI_APPLICATION = "tests.integration.matrix.app_django.application"
INSTALLED_APPS = ["pooling.web.django"]
USE_TZ = True
LOGGING = {  # the errors of views, which Django would only mail to the administrators
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {"django.request": {"handlers": ["stderr"], "level": "ERROR"}},
}


def _database(dsn: str) -> dict[str, object]:
    if dsn.startswith("mysql"):
        found = urlsplit(dsn)
        return {
            "ENGINE": "pooling.web.django.mysql", "NAME": found.path[1:], "USER": found.username,
            "HOST": found.hostname, "PORT": found.port, "OPTIONS": {"pool": SETTINGS},
        }  # fmt: skip
    parameters = conninfo_to_dict(dsn)
    return {
        "ENGINE": "pooling.web.django.postgresql",
        "NAME": parameters["dbname"], "USER": parameters["user"], "HOST": parameters["host"],
        "PORT": parameters["port"],
        "OPTIONS": {"application_name": parameters["application_name"], "pool": SETTINGS},
    }  # fmt: skip


DATABASES = {"default": _database(os.environ["MATRIX_DSN"])}


class Django:
    """This thread's connection."""

    @property
    def pool(self) -> Pool[Any]:
        pool: Pool[Any] = _connection().pool
        return pool

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        with _connection().cursor() as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall())

    def transaction(self) -> AbstractContextManager[object]:
        from django.db import transaction

        made: AbstractContextManager[object] = transaction.atomic()
        return made

    def stream(self, sql: str, *params: object) -> Iterator[tuple[Any, ...]]:
        with _connection().chunked_cursor() as cursor:
            cursor.itersize = 20
            cursor.execute(sql, params)
            yield from cursor


def _connection() -> Any:
    from django.db import connection

    return connection


def site(request: Any, what: str) -> Any:
    from django.http import HttpResponse, StreamingHttpResponse

    text = answer(what, request.GET, Django())
    kind = HttpResponse if isinstance(text, str) else StreamingHttpResponse
    return kind(text, content_type="text/plain")


urlpatterns = [path("<what>", site)]
