"""Arrows mark the differences from a project without pooling."""

import os
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

SECRET_KEY = "only an example"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
INSTALLED_APPS = ["shop", "pooling.web.django"]  # <-- checks, `manage.py pooling`
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True

POOL = {"max_size": 8, "acquire_timeout": 5.0, "leak_timeout": 60.0}  # 8: the number of threads in a process

if url := os.environ.get("DATABASE_URL"):
    found = conninfo_to_dict(url)
    DATABASES = {
        "default": {
            "ENGINE": "pooling.web.django.postgresql",  # <-- instead of django.db.backends.postgresql
            "NAME": found.get("dbname", ""),
            "USER": found.get("user", ""),
            "PASSWORD": found.get("password", ""),
            "HOST": found.get("host", ""),
            "PORT": found.get("port", ""),
            "OPTIONS": {"pool": POOL},  # <-- or True, or omit it
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "pooling.web.django.sqlite3",  # <-- instead of django.db.backends.sqlite3
            "NAME": Path(__file__).parents[1] / "shop.db",
            "OPTIONS": {"pool": POOL},
        }
    }
