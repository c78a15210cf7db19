"""Connections of other classes: subclasses with ways of their own, what tracing agents return, test doubles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pooling import PoolSettings, PostgresPool
from pooling.adapters.postgres.stalls import Watch
from pooling.adapters.postgres.tracking import Tracking
from pooling.compat.psycopg_pool import ConnectionPool, NullConnectionPool
from tests.servers import PostgresServer

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)
Row = TypeVar("Row")
Make = Callable[..., PostgresPool]


@pytest.fixture
def make(postgres: PostgresServer) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def made(conninfo: Any = postgres.dsn, **options: Any) -> PostgresPool:
            return stack.enter_context(contextlib.closing(PostgresPool(conninfo, ONE, **options)))

        yield made


def works(pool: PostgresPool, server: PostgresServer) -> None:
    """What holds for each connection of psycopg's, whatever its class."""
    with pool.connection() as conn:
        first = conn.info.backend_pid
        conn.execute("CREATE TEMP TABLE leak (n int); SET lock_timeout = '77s'")
        conn.row_factory = psycopg.rows.dict_row
    with contextlib.suppress(ValueError), pool.connection() as conn:
        assert conn.info.backend_pid == first  # it was kept
        assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)  # and cleaned on both sides
        assert conn.execute("SELECT to_regclass('leak')").fetchone() == (None,)
        raise ValueError
    assert pool.execute_query("SELECT 1") == [(1,)]
    assert pool.run(lambda conn: conn.execute("SELECT 2").fetchone()) == (2,)
    with server.connect(autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 30000)", [first])
    assert pool.execute_query("SELECT pg_backend_pid()") != [(first,)]


# -- what has been put in the place of psycopg.Connection.connect ----------------------


def test_connect_replaced_by_a_function(
    make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = psycopg.Connection.connect
    seen: list[tuple[Any, ...]] = []

    def connect(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return real(*args, **kwargs)  # of psycopg's own class

    monkeypatch.setattr(psycopg.Connection, "connect", connect)
    pool = make()
    works(pool, postgres)
    assert seen[0] == (postgres.dsn,)
    with pool.acquire() as conn:
        assert type(conn).__name__ == "Connection" and isinstance(conn, Tracking)


def test_connect_that_is_delayed(make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = psycopg.Connection.__dict__["connect"].__func__

    def connect(cls: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01)
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(connect))
    works(make(), postgres)


class Proxy:
    """As wrapt's ObjectProxy: it passes on what it does not do itself."""

    __slots__ = ("__wrapped__", "executed")

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "__wrapped__", wrapped)
        object.__setattr__(self, "executed", [])

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.__wrapped__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self.executed.append(query)
        return self.__wrapped__.execute(query, *args, **kwargs)


@pytest.mark.parametrize("inner", ["the pool's own class", "psycopg's class"])
def test_connect_that_returns_a_proxy(
    make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    real = psycopg.Connection.__dict__["connect"].__func__

    def connect(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if inner == "psycopg's class":
            cls = psycopg.Connection
        return Proxy(Proxy(real(cls, *args, **kwargs)))

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(connect))
    pool = make(configure=lambda conn: conn.execute("SET work_mem = '5MB'"))
    works(pool, postgres)
    with pool.connection() as conn:
        assert type(conn) is Proxy and conn.execute("SHOW work_mem").fetchone() == ("5MB",)
        assert conn.executed[-1] == "SHOW work_mem"  # the borrower's commands are seen by its own hooks


def test_wrapt(make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapt = pytest.importorskip("wrapt", reason="wrapt is not installed: pip install wrapt")

    class Traced(wrapt.ObjectProxy):  # type: ignore[misc]
        pass

    def traced(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        return Traced(wrapped(*args, **kwargs))

    before = psycopg.Connection.__dict__["connect"]
    wrapt.wrap_function_wrapper(psycopg.Connection, "connect", traced)
    try:
        works(make(), postgres)
        with ConnectionPool(postgres.dsn, min_size=1, open=False) as pool, pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
    finally:
        psycopg.Connection.connect = before


def test_opentelemetry(make: Make, postgres: PostgresServer) -> None:
    instrumentation = pytest.importorskip(
        "opentelemetry.instrumentation.psycopg", reason="pip install opentelemetry-instrumentation-psycopg"
    )
    instrumentor = instrumentation.PsycopgInstrumentor()
    before = {owner: vars(owner)["connect"] for owner in (psycopg, psycopg.Connection, psycopg.AsyncConnection)}
    instrumentor.instrument()
    try:
        works(make(), postgres)
    finally:
        instrumentor.uninstrument()
        for owner, connect in before.items():  # it leaves methods that are bound to psycopg's own class
            owner.connect = connect


def test_opentelemetry_of_any_driver(make: Make, postgres: PostgresServer) -> None:
    dbapi = pytest.importorskip(
        "opentelemetry.instrumentation.dbapi", reason="pip install opentelemetry-instrumentation-dbapi"
    )
    before = vars(psycopg.Connection)["connect"]
    dbapi.wrap_connect("test", psycopg.Connection, "connect", "postgresql")
    try:
        pool = make()
        works(pool, postgres)
        with pool.acquire() as conn:
            assert "Traced" in type(conn).__name__
    finally:
        psycopg.Connection.connect = before


class Double:
    """What a test puts in the place of a connection."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.closed = False

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Double:
        self.log.append("execute")
        return self

    def fetchone(self) -> tuple[int]:
        return (1,)

    def commit(self) -> None:
        self.log.append("commit")

    def rollback(self) -> None:
        self.log.append("rollback")

    def close(self) -> None:
        self.closed = True


def test_a_double(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Double] = []

    def connect(*args: Any, **kwargs: Any) -> Double:
        made.append(Double())
        return made[-1]

    monkeypatch.setattr(psycopg.Connection, "connect", connect)
    pool = make(validation_query="SELECT 1")
    with pool.connection() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    with contextlib.suppress(ValueError), pool.connection():
        raise ValueError
    assert len(made) == 1 and made[0].log == ["execute", "commit", "rollback", "rollback"]
    pool.check()
    made[0].closed = True
    with pool.connection() as conn:
        assert conn is made[1]  # type: ignore[comparison-overlap]
    pool.close()
    assert all(one.closed for one in made)


def test_a_mock(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from unittest.mock import MagicMock

    mock = MagicMock(closed=False)
    monkeypatch.setattr(psycopg.Connection, "connect", lambda *args, **kwargs: mock)
    pool = make()
    for _ in range(2):
        with pool.connection() as conn:
            assert conn is mock
    assert mock.commit.call_count == 2 and mock.rollback.call_count == 2
    pool.close()
    mock.close.assert_called_once()


# -- subclasses ---------------------------------------------------------------------------


class Generically(psycopg.Connection[Row], Generic[Row]):
    pass


class Minting(psycopg.Connection[Any]):
    """Makes the conninfo anew, as for a token of a cloud; takes no parameter of libpq's by name but one."""

    asked: list[tuple[str, dict[str, Any]]] = []

    @classmethod
    def connect(  # type: ignore[override]
        cls, conninfo: str, *, autocommit: bool = False, connect_timeout: int = 0
    ) -> psycopg.Connection[Any]:
        cls.asked.append((conninfo, {"autocommit": autocommit}))
        assert conninfo.startswith("postgresql://")
        rewritten = make_conninfo(conninfo, password="token", application_name="minted")
        return super().connect(rewritten, autocommit=autocommit, connect_timeout=connect_timeout)


def test_a_generic_alias(make: Make, postgres: PostgresServer) -> None:
    pool = make(connection_class=Generically[Any])
    works(pool, postgres)
    with pool.acquire() as conn:
        assert isinstance(conn, Generically)
    other = ConnectionPool(postgres.dsn, min_size=1, connection_class=Generically[Any], open=False)
    with other, other.connection() as conn:
        assert isinstance(conn, Generically)
    with pytest.raises(TypeError, match="connection_class must be a psycopg.Connection"):
        make(connection_class=list[int])


def test_connect_of_a_subclass_gets_the_users_arguments(make: Make, postgres: PostgresServer) -> None:
    Minting.asked.clear()
    pool = make(connection_class=Minting, kwargs={"autocommit": True}, command_timeout=30, name="reports")
    works(pool, postgres)
    assert Minting.asked[0] == (postgres.dsn, {"autocommit": True})
    with pool.acquire() as conn:
        said = conninfo_to_dict(conn.info.dsn)
        assert said["application_name"] == "minted"  # what the class said
        assert said["keepalives_idle"] == "10"  # and the pool's defaults, for what it did not say
        assert conn.execute("SHOW statement_timeout").fetchone() == ("29s",)


def test_the_pool_names_itself_only_where_the_class_does_not(make: Make) -> None:
    class Plain(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            assert "application_name" not in conninfo and not {"application_name", "options"} & kwargs.keys()
            return super().connect(conninfo, **kwargs)

    pool = make(connection_class=Plain, name="reports")
    assert pool.execute_query("SELECT current_setting('application_name')") == [("reports",)]


@pytest.mark.parametrize("session", ["clean", "trust"])
def test_commit_and_rollback_of_a_subclass_are_called(make: Make, session: str) -> None:
    calls: list[str] = []

    class Telling(psycopg.Connection[Any]):
        def commit(self) -> None:
            calls.append("commit")
            super().commit()

        def rollback(self) -> None:
            calls.append("rollback")
            super().rollback()

    pool = make(connection_class=Telling, session=session)
    with pool.connection() as conn:
        first = conn.info.backend_pid
        conn.execute("SELECT 1")
    assert calls == ["commit"]
    calls.clear()
    with contextlib.suppress(ValueError), pool.connection() as conn:
        conn.execute("SELECT 1")
        raise ValueError
    assert calls == ["rollback"]
    calls.clear()
    with pool.acquire() as conn:
        assert conn.info.backend_pid == first
        conn.execute("SELECT 1")
    assert calls == ["rollback"]


# -- where the branches met ------------------------------------------------------------------


class Plainly:
    """A proxy with attributes of its own, unlike wrapt's, in a ``__dict__``."""

    def __init__(self, wrapped: Any) -> None:
        vars(self)["__wrapped__"] = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["__wrapped__"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["__wrapped__"], name, value)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    real = psycopg.Connection.__dict__["connect"].__func__

    def connect(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return Plainly(real(cls, *args, **kwargs))

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(connect))


@pytest.mark.usefixtures("proxied")
def test_a_proxy_outlives_what_its_borrower_sets(make: Make) -> None:
    pool = make()  # with a stall_timeout, which has notes of its own about proxies
    for _ in range(2):
        with pool.transaction(read_only=True) as conn:
            assert type(conn) is Plainly and conn.execute("SELECT 1").fetchone() == (1,)
    assert pool.execute_many("SELECT %s::int", [(1,), (2,)]) == 2


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
def test_a_proxy_comes_back_to_the_drop_in_in_a_transaction(postgres: PostgresServer, kind: Any) -> None:
    with kind(postgres.dsn, max_size=4 if kind is ConnectionPool else 1, open=False, timeout=10) as pool:
        for _ in range(5):
            conn = pool.getconn()
            conn.execute("SELECT 1")
            pool.putconn(conn)
        with contextlib.suppress(ValueError), pool.connection() as conn:
            conn.execute("SELECT 1")
            raise ValueError
        with pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_mock_in_every_verb(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from unittest.mock import MagicMock

    mock = MagicMock(closed=False)
    mock.transaction.return_value.__exit__.return_value = None
    mock.cursor.return_value.__exit__.return_value = None
    monkeypatch.setattr(psycopg.Connection, "connect", lambda *args, **kwargs: mock)
    pool = make()
    with pool.transaction() as conn:
        assert conn is mock
    assert pool.run(lambda conn: conn) is mock
    pool.execute_many("INSERT", [(1,)])
    assert pool.execute_query("SELECT 1") is mock.cursor.return_value.fetchall.return_value


def test_doubles_in_the_drop_in(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psycopg.Connection, "connect", lambda *args, **kwargs: Double())
    hook = lambda conn: conn.execute("SELECT 1")  # noqa: E731
    with ConnectionPool(postgres.dsn, min_size=1, max_size=1, configure=hook, open=False, timeout=5) as pool:
        for _ in range(3):
            conn: Any = pool.getconn()
            pool.putconn(conn)
            with pytest.raises(ValueError, match="mine"), pool.connection():
                raise ValueError("mine")  # passed on as it is
            with pool.connection() as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_proxy_in_an_engine_of_sqlalchemy(postgres: PostgresServer) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="pip install sqlalchemy")
    from pooling.adapters import sqlalchemy as ours

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", poolclass=ours.Pool, creator=lambda: Proxy(psycopg.connect(postgres.dsn))
    )
    for _ in range(2):
        with engine.begin() as conn:
            assert conn.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
            watch = conn.connection.dbapi_connection._pooling
            assert isinstance(watch, Watch) and watch.backend.pid  # it is watched
    engine.dispose()
