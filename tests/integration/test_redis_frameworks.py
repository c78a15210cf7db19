"""What a program writes so that Django's cache, django-redis, Flask-Caching and Celery use a `RedisPool`.

Each case runs in a process of its own, as it stands in docs/howto/redis-frameworks.rst.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import redis

from pooling.adapters.redis import SharedRedisPool
from tests.integration.tools import ROOT
from tests.redisserver import RedisServer

THREADS = """
import threading
wrong = []

def in_threads(use, number=20):
    def work(each):
        try:
            for _ in range(20):
                use(each)
        except BaseException as error:
            wrong.append(repr(error))
    threads = [threading.Thread(target=work, args=(each,)) for each in range(number)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong, wrong[:3]
"""

DJANGO = """
import django
from django.conf import settings

settings.configure(
    CACHES={{
        "default": {{
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": "{url}",
            "OPTIONS": {{
                "pool_class": "pooling.adapters.redis.SharedRedisPool",
                "max_size": 3,
                "acquire_timeout": 30,
            }},
        }}
    }}
)
django.setup()
from django.core.cache import cache

def use(number):
    cache.set(f"k{{number}}", number, 60)
    assert cache.get(f"k{{number}}") == number
    assert cache.get_many([f"k{{number}}"]) == {{f"k{{number}}": number}}

in_threads(use)
pool = cache._cache.get_client().connection_pool
"""

DJANGO_REDIS = """
import django
from django.conf import settings

settings.configure(
    CACHES={{
        "default": {{
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": "{url}",
            "OPTIONS": {{
                "CONNECTION_POOL_CLASS": "pooling.adapters.redis.SharedRedisPool",
                "CONNECTION_POOL_KWARGS": {{"max_size": 3, "acquire_timeout": 30}},
            }},
        }}
    }}
)
django.setup()
from django.core.cache import cache
from django_redis import get_redis_connection

def use(number):
    cache.set(f"k{{number}}", number, 60)
    assert cache.get(f"k{{number}}") == number
    with cache.lock(f"l{{number}}", timeout=60):
        pass

in_threads(use)
pool = get_redis_connection().connection_pool
"""

FLASK = """
import redis
from flask import Flask
from flask_caching import Cache
from pooling import RedisPool

pool = RedisPool.from_url("{url}", max_size=3, acquire_timeout=30)
app = Flask("app")
app.config.update(CACHE_TYPE="RedisCache", CACHE_REDIS_HOST=redis.Redis(connection_pool=pool))
cache = Cache(app)

@cache.memoize(60)
def square(number):
    return number * number

@app.route("/<int:number>")
def view(number):
    return str(square(number))

def use(number):
    assert app.test_client().get(f"/{{number}}").text == str(number * number)

in_threads(use)
"""

CELERY = """
from celery import Celery
from celery.backends.redis import RedisBackend
from pooling import RedisPool

class Backend(RedisBackend):
    ConnectionPool = RedisPool       # its arguments are the backend's settings

app = Celery("app", broker="memory://", backend=f"{{__name__}}:Backend+{url}")
app.conf.update(redis_max_connections=3, result_backend_thread_safe=True)  # else each thread has a pool

@app.task
def add(a, b):
    return a + b

app.backend

def use(number):
    app.backend.store_result(f"t{{number}}", number, "SUCCESS")
    assert app.backend.get_result(f"t{{number}}") == number

in_threads(use)
from celery.contrib.testing.worker import start_worker
with start_worker(app, perform_ping_check=False, pool="solo"):
    assert add.delay(2, 3).get(timeout=60) == 5
pool = app.backend.client.connection_pool
"""

END = """
from pooling import RedisPool
assert isinstance(pool, RedisPool), pool
seen = pool.metrics.snapshot()
assert pool.settings.max_size == 3 and seen.created <= 6, seen
assert seen.acquired >= 400, seen
import redis
mine = [each for each in redis.Redis.from_url("{url}").client_list() if int(each["id"]) > {last}]
assert len(mine) <= 6, mine
print("well")
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(DJANGO, id="Django"),
        pytest.param(DJANGO_REDIS, id="django-redis"),
        pytest.param(FLASK, id="Flask-Caching"),
        pytest.param(CELERY, id="Celery"),
    ],
)
def test_framework(redis_server: RedisServer, program: str) -> None:
    last = redis_server.connect().client_id()  # those before are of other tests
    code = THREADS + (program + END).format(url=redis_server.url, last=last)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.splitlines()[-1:]) == (0, ["well"]), run.stderr[-3000:]


def test_reset_replaces_connections_only_if_their_arguments_have_changed(redis_server: RedisServer) -> None:
    pool = SharedRedisPool.from_url(redis_server.url, max_size=2)
    client = redis.Redis(connection_pool=pool)
    client.ping()
    pool.connection_kwargs["password"] = None  # what django-redis does in each thread that has just got the pool
    pool.reset()
    client.ping()
    assert pool.metrics.snapshot().created == 1
    pool.connection_kwargs["client_name"] = "renamed"
    pool.reset()
    assert client.client_getname() == "renamed"
    assert pool.metrics.snapshot().created == 2
    pool.close()


FORKED = """
import os
import redis
from pooling.adapters.redis import SharedRedisPool

pool = SharedRedisPool.from_url("{url}", max_size=1)
client = redis.Redis(connection_pool=pool)
parents = client.client_id()
pid = os.fork()
if pid == 0:
    pool.connection_kwargs["password"] = None
    pool.reset()
    own = client.client_id()
    pool.reset()
    os._exit(0 if own != parents and client.client_id() == own else 1)
assert os.waitpid(pid, 0)[1] == 0
assert client.client_id() == parents
print("well")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_reset_in_a_forked_process_leaves_the_connection_of_its_parent(redis_server: RedisServer) -> None:
    code = FORKED.format(url=redis_server.url)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.splitlines()) == (0, ["well"]), run.stderr[-3000:]
