"""The WSGI application: routes, errors, and the life cycle of the pools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flask import Flask, Response, abort, jsonify, request

from pooling import PoolError, PoolManager, application_lifespan
from pooling.observe import Alert, Alerts, PerformanceMonitor, usual_rules
from pooling.tools.dashboard import is_local
from pooling.web.flask import Pooling

from .cache import PooledCache, make_cache
from .config import Config
from .fetcher import DataFetcher
from .model import SYMBOLS, Order
from .orders import OrderStore
from .stocks import ProviderDown, StockService, make_http

__all__ = ["Market", "create_app", "lifespan"]


class Market:
    """The services of the application, and the pools under them.

    Attributes:
        manager: The pools, by name.
        cache, stocks, fetcher, orders: The services.
        monitor: While `lifespan` is active, what measures the pools.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.cache = make_cache(config.cache)
        self.stocks = StockService(make_http(config.backends), self.cache)
        self.fetcher = DataFetcher(self.stocks)
        self.orders = OrderStore(config.orders, config.schema)
        self.monitor: PerformanceMonitor | None = None
        self.manager = PoolManager()
        self.manager.add_pool(self.stocks.http, critical=False)  # the cache still answers without the provider
        self.manager.add_pool(self.orders.pool)
        if isinstance(self.cache, PooledCache):
            self.manager.add_pool(self.cache.pool)

    def create_tables(self) -> None:
        """Create the tables, if they are missing."""
        self.cache.create_table()
        self.orders.create_table()


def create_app(config: Config | None = None) -> Flask:
    """Make the application. It opens no connection, so gunicorn may call it before it forks.

    Args:
        config: The settings; ``None`` means those of the environment.
    """
    market = Market(Config.from_env() if config is None else config)
    app = Flask(__name__)
    app.extensions["market"] = market
    pools = Pooling(app, manager=market.manager)
    app.register_blueprint(pools.health_blueprint("/health", admit=is_local))
    app.register_blueprint(pools.dashboard_blueprint("/pools", admit=is_local))
    _add_routes(app, market)
    if market.config.faults:
        _add_faults(app, market)
    return app


@contextmanager
def lifespan(app: Flask) -> Iterator[None]:
    """Warm the pools up, watch them, and close them at the end. Each worker is in this block while it serves."""
    market: Market = app.extensions["market"]
    # The limits are short, so that a demonstration of 20 seconds shows alerts that begin and end.
    rules = [replace(rule, clear=3.0) for rule in usual_rules(outage=2.0, exhausted=2.0)]
    targets: list[Any] = ["log"] if market.config.alerts is None else ["log", _append_to(market.config.alerts)]
    # Less than gunicorn's graceful_timeout, after which the worker would be killed in the middle of the closing.
    with application_lifespan(manager=market.manager, shutdown_timeout=5.0):
        market.create_tables()
        alerts = Alerts(market.manager, rules=rules, to=targets, interval=0.5, group="market")
        try:
            with PerformanceMonitor(market.manager) as market.monitor:
                yield
        finally:
            alerts.stop()


def _append_to(path: str) -> Any:
    def write(alert: Alert) -> None:
        line = json.dumps(alert.to_dict()).encode() + b"\n"
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)  # at once, so that the lines of several workers do not mix
        finally:
            os.close(file)

    return write


def _add_routes(app: Flask, market: Market) -> None:
    @app.get("/")
    def index() -> Response:
        return jsonify(symbols=SYMBOLS, worker=os.getpid(), pages=["/health", "/pools", "/report"])

    @app.get("/quotes/<symbol>")
    def quote(symbol: str) -> Response:
        if symbol not in SYMBOLS:
            abort(404)
        return jsonify(market.stocks.quote(symbol)._asdict())

    @app.post("/orders")
    def place() -> tuple[Response, int]:
        given = request.get_json()
        if not isinstance(given, list) or not given:
            raise ValueError("the body must be a list of at least one order")
        orders = [Order.of(one) for one in given]
        quotes = {symbol: market.stocks.quote(symbol) for symbol in {order.symbol for order in orders}}
        market.orders.place(orders, quotes)
        return jsonify(stored=len(orders)), 201

    @app.post("/refresh")
    def refresh() -> Response:
        return jsonify(failed=market.fetcher.fetch(SYMBOLS))

    @app.get("/report")
    def report() -> Response:
        if not is_local(request.environ):
            abort(403)
        assert market.monitor is not None
        return Response(market.monitor.generate_report(), content_type="text/plain; charset=utf-8")

    @app.errorhandler(ValueError)
    def invalid(error: ValueError) -> tuple[Response, int]:
        return jsonify(error="invalid", message=str(error)), 400

    def unavailable(error: Exception) -> tuple[Response, int, dict[str, str]]:
        """The client may try again: an order with the same id is stored once."""
        return jsonify(error=type(error).__name__, message=str(error)), 503, {"Retry-After": "1"}

    for kind in (PoolError, ProviderDown, *market.orders.errors):
        app.register_error_handler(kind, unavailable)


def _add_faults(app: Flask, market: Market) -> None:
    """What the harness breaks from inside."""
    leaked: list[Any] = []

    @app.post("/faults/leak")
    def leak() -> Response:
        leaked.append(market.orders.pool.acquire())  # and never released: this is the bug
        return jsonify(worker=os.getpid(), leaked=len(leaked))

    @app.delete("/faults/leak")
    def mend() -> Response:
        number = len(leaked)
        while leaked:
            leaked.pop().release()
        return jsonify(worker=os.getpid(), released=number)
