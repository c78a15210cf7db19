"""The benchmark project's WSGI application."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.performance.django_site"
application = get_wsgi_application()
