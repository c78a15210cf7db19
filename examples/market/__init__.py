"""A market-data service: quotes over HTTP, a cache, order storage, and pools under all of them.

From a checkout::

    pip install -e ".[flask,top]" gunicorn
    python -m examples.market                    # serves until Ctrl-C, and prints the address of the dashboard
    python -m examples.market --check            # 20 seconds of load, then every stored row is checked
    python -m examples.market --break database   # or backend, leak, kill: what happens, and what tells you

The application::

    app.py             Flask: quotes, orders, health, dashboard, report; its life cycle
     ├─ config.py      settings from the environment
     ├─ stocks.py      quotes by HTTP from several backends of a provider, through the cache
     ├─ cache.py       quotes in SQLite, pooled or with a connection for each call
     ├─ orders.py      orders in SQLite or PostgreSQL
     ├─ fetcher.py     many quotes at once, with threads; progress.py shows how far it is
     └─ model.py       a quote and an order
    gunicorn.conf.py   starts it with four workers

What stands around it: ``provider.py``, the provider's backends, and ``harness``, which starts all of
it, drives load, breaks something on request, and checks every row.
"""
