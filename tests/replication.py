"""A PostgreSQL primary and streaming replicas, all private to a test (see `servers`).

Promotion, a replay that is paused, and a former primary that comes back as a replica are one call each.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from tests.servers import LOOPBACK, PostgresServer, run_program

__all__ = ["Replica", "Replication"]

_REPLICATED = {"wal_level": "replica", "max_wal_senders": 10, "hot_standby": True, "wal_keep_size": "64MB"}


class Replica(PostgresServer):
    """A server that begins as a copy of another one, and streams from it."""

    def start_from(self, primary: PostgresServer) -> None:
        """Copy the primary's data with ``pg_basebackup``, and start as its replica."""
        run_program(
            "pg_basebackup", "-D", self.data, "-h", LOOPBACK, "-p", str(primary.port), "-U", "postgres",
            "-X", "stream", "-c", "fast", "--no-sync", home=self.data.parent,
        )  # fmt: skip
        self.follow(primary)

    def follow(self, primary: PostgresServer) -> None:
        """Start as a replica of this server, after a failover for example."""
        follow(self, primary)


def follow(server: PostgresServer, primary: PostgresServer) -> None:
    """Start a server that is down as a replica of another one."""
    (server.data / "standby.signal").touch()
    server.configure(primary_conninfo=f"host={LOOPBACK} port={primary.port} user=postgres")
    server.start()


def rewind(server: PostgresServer, primary: PostgresServer) -> None:
    """Let a former primary that is down follow its successor: what it alone has written is undone."""
    run_program(
        "pg_rewind", "-D", server.data, "--source-server", f"{primary.dsn}?connect_timeout=5", "--no-sync",
        home=server.data.parent,
    )  # fmt: skip
    follow(server, primary)


class Replication:
    """One primary and its replicas.

    Args:
        replicas: How many.
        settings: Lines of ``postgresql.conf`` of all servers.

    Attributes:
        primary: The server that began as the primary.
        replicas: Those that began as replicas.
    """

    def __init__(self, replicas: int = 2, **settings: object) -> None:
        common: dict[str, Any] = {**_REPLICATED, "wal_log_hints": True, **settings}
        self.primary = PostgresServer(**common)
        self.replicas = [Replica(**common) for _ in range(replicas)]

    @property
    def servers(self) -> list[PostgresServer]:
        """All servers, the primary first."""
        return [self.primary, *self.replicas]

    def start(self) -> None:
        """Start all of them."""
        self.primary.start()
        for replica in self.replicas:
            replica.start_from(self.primary)

    def url(self, *servers: PostgresServer, query: str = "") -> str:
        """Return the URL with several hosts, of all servers if none are given."""
        hosts = ",".join(f"{LOOPBACK}:{server.port}" for server in servers or self.servers)
        return f"postgresql://postgres@{hosts}/postgres{query}"

    def execute(self, server: PostgresServer, sql: str) -> Any:
        """Execute one statement on a server; return the first value, if there is one."""
        with server.connect(autocommit=True) as conn:
            cursor = conn.execute(sql)
            row = cursor.fetchone() if cursor.description else None
            return None if row is None else row[0]

    def catch_up(self, *replicas: PostgresServer, primary: PostgresServer | None = None) -> None:
        """Wait until the replicas have replayed what the primary has written so far."""
        position = self.execute(primary or self.primary, "SELECT pg_current_wal_flush_lsn()::text")
        for replica in replicas or self.replicas:
            deadline = time.monotonic() + 30
            while not self.execute(replica, f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"):
                assert time.monotonic() < deadline, "a replica does not catch up"
                time.sleep(0.02)

    def pause_replay(self, replica: PostgresServer) -> None:
        """Let a replica receive but not replay."""
        self.execute(replica, "SELECT pg_wal_replay_pause()")
        deadline = time.monotonic() + 10
        while self.execute(replica, "SELECT pg_get_wal_replay_pause_state()") != "paused":
            assert time.monotonic() < deadline, "the replay does not pause"
            time.sleep(0.02)

    def resume_replay(self, replica: PostgresServer) -> None:
        """Let it replay again."""
        self.execute(replica, "SELECT pg_wal_replay_resume()")

    def furthest_first(self) -> list[PostgresServer]:
        """Return the replicas, the one that has received most first: the others can follow only that one."""
        received = "SELECT pg_last_wal_receive_lsn() - '0/0'::pg_lsn"
        return sorted(self.replicas, key=lambda replica: -self.execute(replica, received))

    def promote(self, replica: PostgresServer) -> None:
        """Make a replica the primary; the other servers are left as they are."""
        assert self.execute(replica, "SELECT pg_promote(true, 20)")

    def close(self) -> None:
        """Stop all servers and remove their files."""
        for server in self.servers[::-1]:
            server.close()

    def __enter__(self) -> Replication:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
