"""gunicorn's settings: ``gunicorn -c examples/market/gunicorn.conf.py``."""

import contextlib
import logging
import os

logging.basicConfig(format="%(asctime)s [%(process)d] %(levelname)s %(name)s: %(message)s")  # the pools' warnings

wsgi_app = "examples.market.app:create_app()"
bind = os.environ.get("MARKET_BIND") or "127.0.0.1:8000"
workers = int(os.environ.get("MARKET_WORKERS") or 4)
worker_class = "gthread"
threads = 8
preload_app = True  # imported once; the pools are opened by each worker, after the fork
graceful_timeout = 10


def post_worker_init(worker):
    from examples.market.app import lifespan

    worker.market = contextlib.ExitStack()
    worker.market.enter_context(lifespan(worker.wsgi))


def worker_exit(server, worker):
    if hasattr(worker, "market"):  # it may have failed to start
        worker.market.close()
