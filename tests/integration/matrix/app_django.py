"""The Django project's WSGI application."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application
from django.db import connection

if os.environ.get("MATRIX_DRIVER") == "PyMySQL":
    import pymysql

    pymysql.install_as_MySQLdb()
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.integration.matrix.site_django"
application = get_wsgi_application()

# At import, in the parent of all workers. If they are forked it is left open, too:
# each inherits it in the thread that will serve its requests.
with connection.cursor() as cursor:
    cursor.execute("SELECT 42")
if "MATRIX_FORKS" not in os.environ:
    connection.close()
