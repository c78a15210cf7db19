"""A Django project with pooled database connections.

::

    pip install "pooling[django,binary]" gunicorn
    python examples/django_project/run.py                                # SQLite, in this directory
    DATABASE_URL=postgresql://... python examples/django_project/run.py  # your PostgreSQL

Creates the tables and serves http://127.0.0.1:8000/ from 2 processes of 8 threads
each. /orders/ lists orders and POST adds one, /export/ streams them all, /health/
reports whether the database is up.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    os.chdir(HERE)
    subprocess.run([sys.executable, "manage.py", "migrate", "--verbosity", "0"], check=True)
    bind = os.environ.get("BIND") or "127.0.0.1:8000"
    server = [sys.executable, "-m", "gunicorn", "shop.wsgi", "--bind", bind]
    os.execv(sys.executable, [*server, "--workers", "2", "--threads", "8", "--preload"])


if __name__ == "__main__":
    main()
