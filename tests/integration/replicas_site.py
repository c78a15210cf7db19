"""A Django project on a cluster, in a process of its own: python -m tests.integration.replicas_site SCENE PORTS

The first port is the primary's.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import django
import psycopg
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.urls import path

SCENE, PORTS = sys.argv[1], [int(port) for port in sys.argv[2:]]
PRIMARY, REPLICAS = PORTS[0], set(PORTS[1:])
urlpatterns: list[Any] = []

common = {
    "ENGINE": "pooling.web.django.postgresql", "NAME": "postgres", "USER": "postgres",
    "HOST": ",".join(["127.0.0.1"] * len(PORTS)), "PORT": ",".join(map(str, PORTS[::-1])),
}  # fmt: skip
settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["pooling.web.django"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    DATABASES={
        "default": {**common, "OPTIONS": {"pool": {"max_size": 4, "cluster": {"max_lag": 30.0}}}},
        "replica": {**common, "OPTIONS": {"pool": {"replicas_of": "default"}}, "TEST": {"MIRROR": "default"}},
    },
    DATABASE_ROUTERS=["pooling.web.django.routers.PrimaryReplicaRouter"],
    MIDDLEWARE=["pooling.web.django.routers.sticky_middleware"] if SCENE in ("user", "asynchronous") else [],
    POOLING_REPLICAS={"sticky": 1.5},
)
django.setup()

from django.db import connections, models, transaction  # noqa: E402
from django.test import AsyncClient, Client, override_settings  # noqa: E402

from pooling.web.django import routers  # noqa: E402
from pooling.web.django._pools import database_pools  # noqa: E402


class Item(models.Model):
    """A row of the test's table."""

    id = models.IntegerField(primary_key=True)
    value = models.IntegerField()

    class Meta:
        app_label = "pooling"
        db_table = "item"
        managed = False


def port_of(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT inet_server_port()")
        return int(cursor.fetchone()[0])


def value(number: int) -> int | None:
    row = Item.objects.filter(id=number).first()
    return None if row is None else row.value


def pause(stopped: bool) -> None:
    """Stop the replay of the replicas, or let it go on."""
    for port in REPLICAS:
        with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres", autocommit=True) as conn:
            conn.execute(f"SELECT pg_wal_replay_{'pause' if stopped else 'resume'}()")


def until_read(number: int, wanted: int) -> None:
    deadline = time.monotonic() + 20
    while value(number) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def aliases() -> None:
    """Each alias has its servers, the two share one cluster, and a lost connection is replaced."""
    assert port_of("default") == PRIMARY and port_of("replica") in REPLICAS
    cluster = connections["default"].pool
    assert type(cluster).__name__ == "PostgresCluster" and connections["replica"].pool.cluster is cluster
    assert set(database_pools()) == {"default", "replica"}
    for alias in ("default", "replica"):
        connections[alias].close()
    assert cluster.stats()["in_use"] == 0
    with pytest.raises(django.db.utils.InternalError, match="read-only"), connections["replica"].cursor() as cursor:
        cursor.execute("INSERT INTO item VALUES (99, 0)")
    connections["replica"].close()
    connections["replica"].close_pool()  # which does not close the cluster
    assert port_of("replica") in REPLICAS and port_of("default") == PRIMARY
    connections["default"].close()
    connections["default"].close_pool()
    assert cluster.closed
    connections["replica"].close()
    assert port_of("default") == PRIMARY and port_of("replica") in REPLICAS
    assert connections["replica"].pool.cluster is not cluster


def atomic() -> None:
    """Reads in atomic always see own writes: 300 times, while the replicas replay nothing."""
    Item.objects.create(id=1, value=0)
    time.sleep(1.6)  # until the write of this thread is forgotten
    until_read(1, 0)
    pause(True)
    try:
        for number in range(1, 301):
            with transaction.atomic():
                Item.objects.filter(id=1).update(value=number)
                assert value(1) == number
                with transaction.atomic():
                    assert Item.objects.get(id=1).value == number
        time.sleep(1.6)
        assert value(1) == 0  # elsewhere the lag is seen
        with transaction.atomic():
            assert value(1) == 300  # also in one that only reads
    finally:
        pause(False)


def thread() -> None:
    """For a while after a write, the reads of its thread go to the primary; not those of others."""
    Item.objects.create(id=2, value=0)
    time.sleep(1.6)
    until_read(2, 0)
    pause(True)
    try:
        Item.objects.filter(id=2).update(value=1)
        assert value(2) == 1
        found: list[int | None] = []
        other = threading.Thread(target=lambda: (found.append(value(2)), connections.close_all()))
        other.start()
        other.join()
        assert found == [0]
        time.sleep(1.6)
        assert value(2) == 0
        with routers.on_primary():
            assert value(2) == 1
        assert value(2) == 0
        with connections["default"].cursor() as cursor:  # which no router sees
            cursor.execute("UPDATE item SET value = 2 WHERE id = 2")
        assert value(2) == 0
        routers.mark_written()
        assert value(2) == 2
    finally:
        pause(False)


def write(request: Any) -> HttpResponse:
    Item.objects.update_or_create(id=3, defaults={"value": int(request.GET["value"])})
    return HttpResponse(str(value(3)))


def read(request: Any) -> HttpResponse:
    return HttpResponse(str(value(3)))


async def write_async(request: Any) -> HttpResponse:
    await Item.objects.aupdate_or_create(id=3, defaults={"value": int(request.GET["value"])})
    return HttpResponse(str((await Item.objects.aget(id=3)).value))


async def read_async(request: Any) -> HttpResponse:
    return HttpResponse(str((await Item.objects.aget(id=3)).value))


urlpatterns += [
    path("write", write), path("read", read), path("write-async", write_async), path("read-async", read_async),
]  # fmt: skip


def user() -> None:
    """The user who wrote reads from the primary, in other requests, too; all others from the replicas."""
    Item.objects.create(id=3, value=0)
    time.sleep(1.6)
    until_read(3, 0)
    pause(True)
    try:
        writer, other = Client(), Client()
        response = writer.get("/write?value=5")
        assert response.content == b"5"
        cookie = response.cookies[routers.COOKIE]
        assert (cookie["max-age"], cookie["httponly"], cookie["samesite"]) == (2, True, "Lax")
        assert writer.get("/read").content == b"5"
        assert other.get("/read").content == b"0"
        assert routers.COOKIE not in writer.get("/read").cookies  # a read does not prolong it
        time.sleep(1.6)
        assert writer.get("/read").content == b"0"
        for wrong in ("x", "", "nan", "inf", "-inf", str(time.time() + 1e6)):
            other.cookies[routers.COOKIE] = wrong
            assert other.get("/read").content == b"0", wrong
    finally:
        pause(False)


def asynchronous() -> None:
    """The same in asynchronous views."""
    Item.objects.create(id=3, value=0)
    time.sleep(1.6)
    until_read(3, 0)
    pause(True)

    async def run() -> None:
        writer, other = AsyncClient(), AsyncClient()
        assert (await writer.get("/write-async?value=6")).content == b"6"
        assert (await writer.get("/read-async")).content == b"6"
        assert (await other.get("/read-async")).content == b"0"

    try:
        asyncio.run(run())
    finally:
        pause(False)


def rules() -> None:
    """Relations, migrations, invalid settings."""
    router = routers.PrimaryReplicaRouter()
    one, two = Item(id=1), Item(id=2)
    one._state.db, two._state.db = "default", "replica"
    assert router.allow_relation(one, two) is True
    two._state.db = "elsewhere"
    assert router.allow_relation(one, two) is None
    assert router.allow_migrate("replica", "pooling") is False and router.allow_migrate("default", "pooling") is None
    for wrong, message in (
        (7, "must be a mapping"), ({"x": 1}, "primary, replicas and sticky"),
        ({"replicas": "replica"}, "list of aliases"), ({"replicas": []}, "list of aliases"),
        ({"replicas": ["none"]}, "'none' is not in DATABASES"), ({"primary": "replica"}, "cannot be its own replica"),
        ({"sticky": -1}, "seconds from 0"), ({"sticky": "5"}, "seconds from 0"),
    ):  # fmt: skip
        with override_settings(POOLING_REPLICAS=wrong), pytest.raises(ImproperlyConfigured, match=message):
            router.db_for_write(Item)
    assert router.db_for_write(Item) == "default"
    from django.core.management import call_command

    call_command("check")
    for options, message in (
        ({"pool": {"cluster": 7}}, "cluster must be True or a mapping"),
        ({"pool": {"cluster": {"lag": 1}}}, "cluster has max_lag"),
        ({"pool": {"replicas_of": "none"}}, "replicas_of must be an alias"),
        ({"pool": {"replicas_of": "replica"}}, "replicas_of must be an alias"),
    ):  # fmt: skip
        wrapper = type(connections["default"])({**connections["default"].settings_dict, "OPTIONS": options}, "other")
        with pytest.raises(ImproperlyConfigured, match=message):
            wrapper.pool  # noqa: B018


if __name__ == "__main__":
    globals()[SCENE]()
    connections.close_all()
    print("ok")
