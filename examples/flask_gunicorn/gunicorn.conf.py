"""Read by gunicorn when it is started in this directory."""

import os

wsgi_app = "app:app"
bind = os.environ.get("BIND") or "127.0.0.1:8000"
preload_app = True
workers = 2
threads = 8
max_requests = 10_000
