"""The examples of docs/howto/replicas.rst run as they are, except for the addresses."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.replication import Replication

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "replicas.rst"


@pytest.fixture(scope="module")
def servers(replication: Replication) -> Replication:
    """A primary and two replicas."""
    replication.execute(replication.primary, "CREATE TABLE orders (id serial PRIMARY KEY, item text)")
    replication.catch_up()
    return replication


@pytest.fixture(scope="module")
def page(servers: Replication) -> Iterator[Any]:
    """The names that the examples of the page have made."""
    body = PAGE.read_text("utf-8")
    one, two, three = (server.dsn for server in servers.servers)
    places = {
        "postgresql://app@db1,db2,db3/orders": servers.url(), "postgresql://app@db1/orders": one,
        "postgresql://app@db2/orders": two, "postgresql://app@db3/orders": three,
    }  # fmt: skip
    for written, real in places.items():
        body = body.replace(written, real)
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", body, re.M)
    assert len(blocks) == 7
    found = types.ModuleType("page")
    try:
        for block in blocks:
            code = "\n".join(line[4:] for line in block.splitlines())
            exec(compile(code, str(PAGE), "exec"), vars(found))  # noqa: S102
            servers.catch_up()
        yield found
    finally:
        for name in ("db", "near"):
            if hasattr(found, name):
                getattr(found, name).close()


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A row of the examples' table."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


def test_the_examples_run(page: Any, servers: Replication) -> None:
    assert page.rows == [("lamp",), ("chair",)]
    assert page.total == 2
    assert page.near.execute_query("SELECT pg_is_in_recovery()") == [(False,)]
    assert set(page.near.servers) == {f"127.0.0.1:{servers.primary.port}", "eu", "us"}
    assert page.stats["primary"] == f"127.0.0.1:{servers.primary.port}"
    assert page.DATABASES["replica"]["OPTIONS"] == {"pool": {"replicas_of": "default"}}


def port(session: Any) -> int:
    return int(session.scalar(select(func.inet_server_port())))


def test_a_session_reads_from_replicas_until_it_writes(page: Any, servers: Replication) -> None:
    replicas = {server.port for server in servers.replicas}
    with page.RoutingSession() as session:
        assert port(session) in replicas
        before = session.scalar(select(func.count()).select_from(Order))
        session.add(Order(item="table"))
        session.flush()
        assert session.scalar(select(func.count()).select_from(Order)) == before + 1
        assert port(session) == servers.primary.port
        session.commit()
        assert port(session) == servers.primary.port  # for some seconds
    with page.RoutingSession() as session:
        session.sticky = 0.0
        session.add(Order(item="table"))
        session.flush()
        assert port(session) == servers.primary.port  # to the end of the transaction, anyway
        session.commit()
        assert port(session) in replicas
    with page.RoutingSession() as session:
        session.execute(Order.__table__.delete().where(Order.__table__.c.item == "table"))
        assert port(session) == servers.primary.port
        session.rollback()
    with page.RoutingSession() as session:
        assert port(session) in replicas
    assert page.db.stats()["in_use"] == 0


def test_a_lost_connection_is_replaced(page: Any, servers: Replication) -> None:
    for server in servers.replicas:
        servers.execute(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with page.RoutingSession() as session:
        assert session.scalar(text("SELECT 1")) == 1
    assert page.db.stats()["in_use"] == 0
