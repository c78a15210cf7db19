"""The engine, in the module where Django looks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ....adapters.mysql import MySQLPool
from ....adapters.mysql.driver import Driver
from ....adapters.mysql.tracking import Delaying
from ....core.pool import Pool
from .._engine import AliasPools, PooledWrapper
from ._driver import DRIVER, base

__all__ = ["DatabaseWrapper"]

ARGUMENTS = frozenset({
    "check", "command_timeout", "connection_class", "kwargs", "name", "observers", "query_statistics", "reset",
    "session", "stall_timeout", "validation_query",
})  # fmt: skip
"""The arguments of `MySQLPool` that ``OPTIONS["pool"]`` may have, besides the settings."""


class DatabaseCreation(base.DatabaseCreation):
    """Django's, which leaves no connections to a test database that is dropped."""

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:
        self.connection.close_pool()
        super()._destroy_test_db(test_database_name, verbosity)


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):
    """Django's engine, with connections from a `MySQLPool`.

    ``OPTIONS["pool"]`` is ``True``, a `PoolSettings`, or a mapping of its
    fields and of arguments of `MySQLPool`; ``False`` turns pooling off.

    The driver is mysqlclient, or PyMySQL if mysqlclient is not installed, or
    after ``pymysql.install_as_MySQLdb()``.

    Django sets the isolation level with each connection that it opens. Here
    this is done once, and again by the round trip that cleans the session at
    the end of a request. At the end of ``atomic()`` it turns autocommit on;
    here the server is told with the next query, if one follows that is not in
    ``atomic()`` again.
    """

    pools = AliasPools()
    arguments = ARGUMENTS
    creation_class = DatabaseCreation
    _driver: Driver  # of the pool
    _configured = False  # the connection was just acquired, and `_configure` has done what Django does next

    def pool_recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        given = self.settings_dict
        checks, pool = given["CONN_HEALTH_CHECKS"], given["OPTIONS"].get("pool")
        recipe = {**params, "isolation_level": self.isolation_level, "CONN_HEALTH_CHECKS": checks, "pool": pool}
        if self.overrides_params():  # a new password does not need a new pool
            recipe.pop("password", None)
        return recipe

    def make_pool(self, params: dict[str, Any]) -> Pool[Any]:
        options = self.pool_options()
        arguments = {"name": self.alias, **options.arguments}
        return MySQLPool(
            "mysql://",  # so that DATABASE_URL in the environment is ignored
            options.settings,
            **{**arguments, "kwargs": self.connect_kwargs(params, arguments.get("kwargs"))},
            driver=DRIVER,
            configure=_configure(self.isolation_level),
        )

    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        params.pop("pool", None)
        if self.is_pooled():
            params["autocommit"] = True  # Django changes it as needed; this is the value after a reset
        return params

    def error_of_dead_connection(self, connection: Any) -> BaseException | None:
        if not self._driver.is_open(connection):
            error: BaseException = base.Database.OperationalError(2013, "the connection was lost while it was in use")
            return error
        return None

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        connection = super().get_new_connection(conn_params)
        self._configured = self._lease is not None
        if self._configured:
            self._driver = self.pool.driver
        return connection

    def init_connection_state(self) -> None:
        configured, self._configured = self._configured, False
        if configured:
            BaseDatabaseWrapper.init_connection_state(self)  # without the SETs of Django's engine
        else:
            super().init_connection_state()

    def is_usable(self) -> bool:
        lease = self._lease
        if self.connection is None or not (lease is None or lease.active):  # not active: the parent process's
            return False
        if lease is None:
            return bool(super().is_usable())
        try:
            # Not ``ping()``: that of PyMySQL before 1.2 connects again.
            self._driver.ask(self.connection, "SELECT 1", self.pool.settings.health_check_timeout)
        except base.Database.Error:
            return False
        return True

    def _set_autocommit(self, autocommit: bool) -> None:
        if self._lease is not None:
            with self.wrap_database_errors:
                if self.connection.get_autocommit() == autocommit:
                    return
                if autocommit and isinstance(self.connection, Delaying) and self.pool.session_rules.cleans:
                    self.connection.turn_autocommit_on()
                    return
        super()._set_autocommit(autocommit)


DatabaseWrapper.engine = DatabaseWrapper


def _configure(level: str | None) -> Callable[[Any], None]:
    """Return what does for a new connection what Django does for each that it opens."""

    def configure(conn: Any) -> None:
        if conn.encoders.get(bytes) is bytes:  # mysqlclient before 2.1
            conn.encoders.pop(bytes)
        with conn.cursor() as cursor:
            cursor.execute("SET sql_auto_is_null = 0")
            if level:
                cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {level.upper()}")

    return configure
