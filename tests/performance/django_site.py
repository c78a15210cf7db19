"""A Django project for the benchmark: one page of two queries; the database as the environment says."""

from __future__ import annotations

import json
import os
from typing import Any

from django.urls import path

ALLOWED_HOSTS = ["*"]
SECRET_KEY = "of no use"
ROOT_URLCONF = __name__
USE_TZ = True
INSTALLED_APPS: list[str] = []
DATABASES = {"default": json.loads(os.environ["BENCH_DATABASE"])}


def page(request: Any, number: int) -> Any:
    from django.db import connection
    from django.http import HttpResponse

    with connection.cursor() as cursor:
        cursor.execute("SELECT id, name FROM bench_item WHERE id = %s", [number])
        (found,) = cursor.fetchall()
        cursor.execute('SELECT id, name FROM bench_item WHERE "group" = %s ORDER BY id LIMIT 10', [number % 10])
        others = cursor.fetchall()
    return HttpResponse(f"{found[0]} {found[1]} {len(others)}")


urlpatterns = [path("<int:number>", page)]
