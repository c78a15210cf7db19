"""Three hosts with four workers each and a budget of 60, while things go wrong.

::

    python -m tests.faults.fleet_hosts --seconds 600 --store redis

The hosts are network namespaces, each with one cable to the database and one to
the store, which is cut for a while to make a partition. That needs root. With
``--loopback`` all workers are on this host, and there are no partitions.

The server's own list of connections is sampled every 20 ms. It prints what
happened and ends with exit code 1 if there were ever more than 60, if a thread
got an error, or if the workers do not have their fair shares in the end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from pooling.fleet.model import RENEWAL, TTL, level
from tests.faults.fleet import Sampler, Worker, address, prepare, until
from tests.redisserver import RedisServer
from tests.servers import PostgresServer

__all__ = ["HOSTS", "Hosts", "TOTAL", "WORKERS", "cannot", "run"]

HOSTS, WORKERS, TOTAL, MOST = 3, 4, 60, 18
_HOLD = 0.2  # seconds of a lease: the point is the number of connections, not the load


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def cannot() -> str | None:
    """Return why there can be no network namespaces here, ``None`` if there can."""
    try:
        with Hosts():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces (they need root and iproute2): {getattr(error, 'stderr', None) or error}"


class Hosts:
    """Network namespaces with two cables each, to the networks of the database and of the store."""

    def __init__(self) -> None:
        mark, net = os.getpid() % 10_000, os.getpid() % 60
        self.names = [f"plh{mark}-{number}" for number in range(HOSTS)]
        self._bridges = {"d": f"plb{mark}d", "s": f"plb{mark}s"}
        self._nets = {"d": f"10.23{net % 5}.{net * 4}", "s": f"10.23{net % 5}.{net * 4 + 1}"}
        self.database, self.store = (f"{self._nets[kind]}.1" for kind in "ds")
        self._mark = mark

    def __enter__(self) -> Hosts:
        try:
            for kind, bridge in self._bridges.items():
                _ip("link", "add", bridge, "type", "bridge")
                _ip("addr", "add", f"{self._nets[kind]}.1/24", "dev", bridge)
                _ip("link", "set", bridge, "up")
            for number, name in enumerate(self.names):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
                for kind, bridge in self._bridges.items():
                    cable = self._cable(number, kind)
                    _ip("link", "add", cable, "type", "veth", "peer", "name", f"eth{kind}", "netns", name)
                    _ip("link", "set", cable, "master", bridge, "up")
                    _ip("-n", name, "addr", "add", f"{self._nets[kind]}.{number + 11}/24", "dev", f"eth{kind}")
                    _ip("-n", name, "link", "set", f"eth{kind}", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        gone = [("netns", name) for name in self.names] + [("link", each) for each in self._bridges.values()]
        for kind, name in gone:
            subprocess.run(["ip", kind, "del", name], capture_output=True, check=False)

    def _cable(self, number: int, kind: str) -> str:
        return f"plv{self._mark}{kind}{number}"

    def cut(self, number: int) -> None:
        """Part a host from the store."""
        _ip("link", "set", self._cable(number, "s"), "down")

    def mend(self, number: int) -> None:
        """Connect it again."""
        _ip("link", "set", self._cable(number, "s"), "up")

    def prefix(self, number: int) -> list[str]:
        """Return what runs a command on a host."""
        return ["ip", "netns", "exec", self.names[number]]


class Scene:
    """The fleet, and what happens to it."""

    def __init__(self, stack: ExitStack, store: str, loopback: bool, seed: int) -> None:
        self.random = random.Random(seed)
        self.hosts = None if loopback else stack.enter_context(Hosts())
        listen = "127.0.0.1" if self.hosts is None else f"127.0.0.1,{self.hosts.database}"
        self.server = stack.enter_context(PostgresServer(listen_addresses=listen, max_connections=120))
        prepare(self.server)
        self.redis: Any = None
        budget = f"{TOTAL},max_members={MOST},store="
        if store == "redis":
            options = () if self.hosts is None else ("--bind", "127.0.0.1", self.hosts.store, "--protected-mode", "no")
            self.redis = stack.enter_context(RedisServer(*options))
            budget += f"redis://{'127.0.0.1' if self.hosts is None else self.hosts.store}:{self.redis.port}/0"
        else:
            budget += "postgresql:"
        self.budget, self.reserve = budget, 0 if self.redis else 1
        if self.hosts is not None:
            with (self.server.data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {self.hosts.database}/24 trust\n")
            with self.server.connect(autocommit=True) as admin:
                admin.execute("SELECT pg_reload_conf()")
        self.workers: list[list[Worker]] = [[] for _ in range(HOSTS)]
        self.done = 0
        self.errors: dict[str, int] = {}
        stack.callback(self.end)

    @property
    def all(self) -> list[Worker]:
        return [worker for host in self.workers for worker in host]

    def start(self, number: int) -> None:
        host = "127.0.0.1" if self.hosts is None else self.hosts.database
        prefix = [] if self.hosts is None else self.hosts.prefix(number)
        worker = Worker(address(self.server, host), self.budget, self.random.choice([0, 4, 8, 12]), _HOLD, prefix)
        self.workers[number].append(worker)

    def end(self) -> None:
        for worker in self.all:
            worker.kill()

    # -- events --------------------------------------------------------------------------

    def demand(self) -> str:
        for worker in self.all:
            worker.want(self.random.choice([0, 2, 4, 8, 12]))
        return "other demands"

    def kill(self) -> str:
        number = self.random.randrange(HOSTS)
        self.workers[number].pop(0).kill()
        self.start(number)
        return f"a worker of host {number} was killed, another one started"

    def rollout(self) -> str:
        number = self.random.randrange(HOSTS)
        old, self.workers[number] = self.workers[number], []
        for _ in range(WORKERS):
            self.start(number)
        time.sleep(3)
        for worker in old:
            self._count(worker.leave())
        return f"host {number} was rolled out"

    def freeze(self) -> str:
        number = self.random.randrange(HOSTS)
        worker = self.workers[number][0]
        worker.signal(signal.SIGSTOP)
        time.sleep(self.random.uniform(2, 6))
        worker.signal(signal.SIGCONT)
        return f"a worker of host {number} was frozen within its lease"

    def partition(self) -> str:
        number = self.random.randrange(HOSTS)
        if self.hosts is None or self.redis is None:
            return self.demand()
        self.hosts.cut(number)
        time.sleep(self.random.uniform(4, 20))
        self.hosts.mend(number)
        return f"host {number} was cut off from the store"

    def restart(self) -> str:
        if self.redis is None:
            return self.demand()
        self.redis.kill()
        time.sleep(self.random.uniform(0, 20))
        self.redis.start()
        return "the store was restarted"

    def _count(self, stats: dict[str, Any]) -> None:
        self.done += stats["done"]
        for error, number in stats["errors"].items():
            self.errors[error] = self.errors.get(error, 0) + number

    def settle(self, patience: float = 2 * TTL + 2 * RENEWAL) -> float:
        """Let every worker want as much as it can, and wait for the fair shares; return the seconds it took."""
        for worker in self.all:
            worker.want(12)
        size = TOTAL - self.reserve - (MOST - len(self.all))
        top, _ = level(size, {12: len(self.all)})
        return until(lambda: all(worker.share >= top for worker in self.all), patience)


def run(seconds: float, store: str, *, loopback: bool = False, seed: int = 1) -> list[str]:
    """Run it; return what went wrong.

    Args:
        seconds: How long things go wrong.
        store: ``"redis"`` or ``"postgresql"``.
        loopback: All on this host.
        seed: Of what happens.
    """
    with ExitStack() as stack:
        scene = Scene(stack, store, loopback, seed)
        sampler = stack.enter_context(Sampler(scene.server, TOTAL))
        for number in range(HOSTS):
            for _ in range(WORKERS):
                scene.start(number)
        began = time.monotonic()
        events = [scene.kill, scene.rollout, scene.partition, scene.restart, scene.freeze, scene.demand]
        print(f"fair shares after {scene.settle(120.0):.1f} s, with the start of the processes", flush=True)
        turn = 0
        while time.monotonic() < began + seconds:
            event = events[turn % len(events)] if turn < len(events) else scene.random.choice(events)
            turn += 1
            text = event()
            print(f"{time.monotonic() - began:6.1f} s  {text}; at most {sampler.most} so far", flush=True)
            time.sleep(scene.random.uniform(0.5, 3))
        wrong = []
        try:
            print(f"fair shares after {scene.settle():.1f} s", flush=True)
        except AssertionError as error:
            wrong.append(f"no fair shares: {error}; {[worker.share for worker in scene.all]}")
        for worker in scene.all:
            scene._count(worker.stats())
    print(f"{sampler.samples} samples, at most {sampler.most} of {TOTAL} connections; {scene.done} transactions")
    if sampler.above:
        wrong.append(f"more than {TOTAL} connections in {len(sampler.above)} samples: {sampler.above[:10]}")
    if scene.errors:
        wrong.append(f"errors: {scene.errors}")
    if sampler.most < TOTAL - MOST + HOSTS * WORKERS - 6:
        wrong.append(f"never more than {sampler.most} connections")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--store", choices=("redis", "postgresql"), default="redis")
    parser.add_argument("--loopback", action="store_true", help="without network namespaces")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    failed = run(chosen.seconds, chosen.store, loopback=chosen.loopback, seed=chosen.seed)
    print("\n".join(failed) or "all well")
    sys.exit(bool(failed))
