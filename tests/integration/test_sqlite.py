"""`SQLitePool`: readers and writers, databases in memory, limits, resets, files, damage and figures."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from pooling import CreateFailed, Lease, Observer, PoolSettings, PoolTimeout, SQLitePool, from_url
from pooling.adapters.sqlite import SQLiteAdapter, split, turns
from pooling.adapters.sqlite.memory import SharedMemory
from pooling.adapters.sqlite.pool import INTEGRITY_CHECK_INTERVAL
from pooling.adapters.sqlite.queries import without_values
from pooling.adapters.sqlite.upkeep import interrupted_after
from pooling.config import url_of
from tests.integration.tools import in_thread, run_forking, wait_until

FEW = PoolSettings(min_size=0, max_size=4, acquire_timeout=30)
ONE = FEW.replace(max_size=1)
ROOT = Path(__file__).parents[2]
FOR_EVER = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "test.db")) as conn:
        conn.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, word TEXT)")
    return tmp_path / "test.db"


@pytest.fixture
def open_pool(path: Path) -> Iterator[Callable[..., SQLitePool]]:
    pools: list[SQLitePool] = []

    def make(settings: PoolSettings = FEW, path: Any = path, **arguments: Any) -> SQLitePool:
        pools.append(SQLitePool(path, settings, **arguments))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


Make = Callable[..., SQLitePool]


# -- readers and writers ---------------------------------------------------------


def test_readers_read_during_a_write(open_pool: Make) -> None:
    db = open_pool(readers=3)
    with db.connection() as writer:
        writer.execute("INSERT INTO t VALUES (1, 'a')")
        with db.connection(readonly=True) as one, db.connection(readonly=True) as two:
            assert one.execute("SELECT * FROM t").fetchall() == two.execute("SELECT * FROM t").fetchall() == []
        assert db.execute_query("SELECT count(*) FROM t") == [(0,)]
        with pytest.raises(PoolTimeout):  # there is only one writer
            db.acquire(timeout=0.0)
    assert db.execute_query("SELECT word FROM t") == [("a",)]
    assert db.stats()["max_size"] == 1 and db.stats()["readers"]["max_size"] == 3


def test_reader_cannot_write(open_pool: Make) -> None:
    db = open_pool(readers=1)
    with pytest.raises(sqlite3.OperationalError, match="readonly"), db.connection(readonly=True) as conn:
        conn.execute("INSERT INTO t VALUES (1, 'a')")
    with db.connection(readonly=True) as conn:
        conn.execute("PRAGMA query_only=OFF")
    with pytest.raises(sqlite3.OperationalError, match="readonly"), db.connection(readonly=True) as conn:
        conn.execute("INSERT INTO t VALUES (1, 'a')")


def test_queries_run_on_readers_and_other_statements_on_the_writer(open_pool: Make) -> None:
    db = open_pool(readers=1)
    for number, sql in enumerate((
        "INSERT INTO t VALUES (1, 'a') RETURNING n",
        "  WITH x(n) AS (VALUES (2))\n INSERT INTO t SELECT n, 'b' FROM x",
        "UPDATE t SET word = 'select' WHERE n = 1",
        "/* a note */ DELETE FROM t WHERE n = 2",
        "PRAGMA user_version = 7",
    ), 1):  # fmt: skip
        db.execute_query(sql)
        assert db.metrics.snapshot().acquired == number
    assert db.readers is not None
    for number, sql in enumerate((
        "SELECT * FROM t", "\n select 1", "VALUES (1)", "WITH x AS (SELECT 1) SELECT * FROM x", "EXPLAIN SELECT 1",
        "SELECT replace(word, 'a', 'b') FROM t WHERE word <> 'UPDATE'", "EXPLAIN DELETE FROM t",
    ), 1):  # fmt: skip
        db.execute_query(sql)
        assert db.readers.metrics.snapshot().acquired == number
    assert db.metrics.snapshot().acquired == 5
    assert db.execute_query("SELECT word FROM t") == [("select",)]


def test_writers_wait_in_the_wait_queue(open_pool: Make) -> None:
    """SQLite itself does not wait here: its busy timeout is 0."""
    db = open_pool(readers=2, timeout=0.0)
    failed: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 25):
                with db.connection() as conn:
                    conn.execute("INSERT INTO t VALUES (?, 'x')", (number,))
                assert db.execute_query("SELECT word FROM t WHERE n = ?", (number,)) == [("x",)]
        except BaseException as error:
            failed.append(error)

    threads = [in_thread(lambda first=first: work(first)) for first in range(0, 400, 25)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert failed == []
    assert db.execute_query("SELECT count(*) FROM t") == [(400,)]


def test_reader_sleeps_if_a_writer_waits_for_a_long_write(
    open_pool: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    db = open_pool(readers=1)
    db.execute_query("SELECT 1")
    monkeypatch.setattr(turns, "HAS_GIL", True)
    monkeypatch.setattr(turns, "time", SimpleNamespace(sleep=slept.append))
    with db.connection():
        (entry,) = db.writer.engine.state.entries
        entry.since = entry.idle_since = began = entry.since - 1.0
        db.execute_query("SELECT 1")
        assert slept == []  # no writer waits
        writer = in_thread(lambda: db.execute_query("INSERT INTO t VALUES (1, 'a')"))
        wait_until(lambda: db.stats()["waiting"] == 1)
        db.execute_query("SELECT 1")
        assert len(slept) == 1
        entry.since = began + 60.0  # the write has just begun
        db.execute_query("SELECT 1")
        assert len(slept) == 1
        entry.since = began
    writer.join()


def test_block_whose_commit_fails_releases_its_connection(open_pool: Make) -> None:
    db = open_pool(max_size=1)
    db.execute_query("CREATE TABLE child (id INTEGER PRIMARY KEY, p REFERENCES child DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError) as caught, db.connection() as conn:
        conn.execute("INSERT INTO child VALUES (1, 2)")
    assert caught.tb is not None  # which refers to the block
    assert db.stats()["in_use"] == 0
    assert db.execute_query("SELECT count(*) FROM child") == [(0,)]


def test_block_that_cannot_begin_releases_its_connection(open_pool: Make) -> None:
    class Refusing(sqlite3.Connection):
        def __enter__(self) -> Any:
            raise OSError("not now")

    db = open_pool(max_size=1, factory=Refusing)
    with pytest.raises(OSError, match="not now") as caught, db.connection():
        pass
    assert caught.tb is not None
    assert db.stats()["in_use"] == 0


def test_reader_yields_to_a_writer_that_has_not_woken_up(open_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    yielded: list[None] = []
    db = open_pool(readers=1)
    monkeypatch.setattr(turns, "HAS_GIL", True)
    monkeypatch.setattr(turns, "yield_gil", lambda: yielded.append(None))

    def read() -> None:
        db.execute_query("SELECT 1")
        with db.connection(readonly=True) as conn:
            conn.execute("SELECT 1")

    db.execute_query("CREATE TABLE turns (id)")
    read()
    assert yielded == []  # no writer is about to run
    with db.connection():
        (entry,) = db.writer.engine.state.entries
        read()
        assert yielded == []  # it runs
        began, entry.since = entry.since, entry.idle_since - 1.0  # as between the hand-over and the end of `acquire`
        read()
        assert len(yielded) == 2
        entry.since = began
    read()
    assert len(yielded) == 2


def test_readers_open_and_close_with_the_pool(open_pool: Make) -> None:
    db = open_pool(FEW.replace(min_size=2), readers=3)
    assert db.readers is not None
    with db:
        assert (db.stats()["idle"], db.readers.stats()["idle"]) == (1, 2)
        db.drain()
        db.check()
        db.pause()
        assert db.readers.stats()["paused"]
        db.resume()
        assert db.execute_query("SELECT 1") == [(1,)]
    assert db.readers.closed
    assert db.readers.name == "test.db-readers"


def test_sizes_concern_the_readers(open_pool: Make) -> None:
    db = open_pool(FEW.replace(min_size=2), readers=2)

    def sizes() -> list[tuple[int, int]]:
        found = db.stats()
        return [(one["min_size"], one["max_size"]) for one in (found, found["readers"])]

    assert sizes() == [(1, 1), (2, 2)]
    db.resize(5)
    assert sizes() == [(1, 1), (2, 5)]
    db.resize(3, 0)
    assert sizes() == [(0, 1), (0, 3)]
    db.reconfigure(min_size=3, max_idle=3, acquire_timeout=7.0)
    assert sizes() == [(1, 1), (3, 3)]
    assert db.readers is not None
    assert db.settings.acquire_timeout == db.readers.settings.acquire_timeout == 7.0
    with pytest.raises(ValueError, match="max_size"):
        db.reconfigure(max_size=0, acquire_timeout=1.0)
    assert sizes() == [(1, 1), (3, 3)]
    assert db.settings.acquire_timeout == db.readers.settings.acquire_timeout == 7.0
    db.fill(3)
    wait_until(lambda: (db.stats()["idle"], db.readers.stats()["idle"]) == (1, 3))  # type: ignore[union-attr]
    plain = open_pool()
    plain.resize(5)
    assert plain.stats()["max_size"] == 5


def test_readers_are_observed_and_shown(open_pool: Make) -> None:
    heard: list[str] = []

    class Listener(Observer):
        def acquired(self, pool: str, waited: float) -> None:
            heard.append(pool)

    db = open_pool(readers=2)
    db.add_observer(Listener())
    with db.connection(readonly=True), db.connection():
        found = [(holder.file, holder.function) for holder in db.holders()]
        assert found == [(__file__, "test_readers_are_observed_and_shown")] * 2
        assert repr(db) == (
            "<SQLitePool 'test.db': 1/1 in use, 0 idle, 0 waiting; "
            "readers <Pool 'test.db-readers': 1/2 in use, 0 idle, 0 waiting>>"
        )
    assert heard == ["test.db-readers", "test.db"]


class Recorder(Observer):
    """Records the names of the pools that were drained."""

    def __init__(self) -> None:
        self.drained_pools: list[str] = []

    def drained(self, pool: str) -> None:
        self.drained_pools.append(pool)


def test_calls_reach_writers_and_readers(open_pool: Make) -> None:
    db, recorder = open_pool(readers=2), Recorder()
    assert db.readers is not None
    db.add_observer(recorder)
    db.drain()
    assert recorder.drained_pools == ["test.db", "test.db-readers"]
    db.remove_observer(recorder)
    db.drain()
    assert len(recorder.drained_pools) == 2
    db.pause()
    assert [pool.stats()["paused"] for pool in (db.writer, db.readers)] == [True, True]
    db.resume()
    assert [pool.stats()["paused"] for pool in (db.writer, db.readers)] == [False, False]
    with pytest.raises(ValueError, match="timeout must be at least 0 seconds"):
        db.close(-1)
    db.close()
    assert [pool.closed for pool in (db, db.writer, db.readers)] == [True, True, True]


def test_readers_of_an_unnamed_pool_have_its_name(open_pool: Make, tmp_path: Path) -> None:
    db = open_pool(path=tmp_path / "a:b", readers=1)
    assert db.readers is not None
    assert db.name.startswith("pool-") and db.readers.name == f"{db.name}-readers"


@pytest.mark.parametrize("readers", [None, 1])
def test_overridden_acquire_is_used(path: Path, readers: int | None) -> None:
    class Counted(SQLitePool):
        acquired = 0

        def acquire(self, timeout: float | None = None, _depth: int = 1) -> Lease[sqlite3.Connection]:
            self.acquired += 1
            return super().acquire(timeout, _depth + 1)

    with Counted(path, FEW, readers=readers) as db:
        with db.connection():
            assert [holder.function for holder in db.holders()] == ["test_overridden_acquire_is_used"]
        db.execute_query("DELETE FROM t")
        db.optimize()
        assert db.acquired == 3


@pytest.mark.parametrize("method", ["open", "close"])
def test_timeout_is_for_writers_and_readers_together(
    open_pool: Make, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    given: list[float] = []
    now = [100.0]

    def take_three_seconds(timeout: float, **others: bool) -> None:
        given.append(timeout)
        now[0] += 3.0

    db = open_pool(readers=1)
    for pool in (db.writer, db.readers):
        monkeypatch.setattr(pool, method, take_three_seconds)
    monkeypatch.setattr(split, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for timeout in (10.0, 2.0):
        getattr(db, method)(timeout)
    assert given == [10.0, 7.0, 2.0, 0.0]
    monkeypatch.undo()


def test_a_copy_is_refused(open_pool: Make) -> None:
    db = open_pool(readers=1)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="SQLitePool objects cannot be copied or pickled"):
            copied(db)


# -- in memory -------------------------------------------------------------------


@pytest.mark.parametrize("readers", [None, 2])
def test_memory_is_shared_by_the_pool(open_pool: Make, readers: int | None) -> None:
    db = open_pool(path=":memory:", readers=readers)
    with db.connection() as conn:
        conn.execute("CREATE TABLE t (n)")
        conn.execute("INSERT INTO t VALUES (1)")
    with db.acquire() as one, db.connection(readonly=True) as two:
        assert one is not two
        assert two.execute("SELECT * FROM t").fetchall() == [(1,)]
    db.drain()  # the pool has no connection any more, but the database exists
    assert db.execute_query("SELECT * FROM t") == [(1,)]


def test_memory_is_private_to_the_pool_and_deleted_with_it(open_pool: Make) -> None:
    one, two = open_pool(path=":memory:"), open_pool(path=":memory:")
    one.execute_query("CREATE TABLE t (n)")
    assert two.execute_query("SELECT * FROM sqlite_master") == []
    uri = one.writer.engine.adapter.memory.uri()  # type: ignore[attr-defined]
    one.close()
    with closing(sqlite3.connect(uri, uri=True)) as conn:
        assert conn.execute("SELECT * FROM sqlite_master").fetchall() == []


def is_open(conn: sqlite3.Connection) -> bool:
    try:
        conn.execute("SELECT 1")
    except sqlite3.ProgrammingError as error:
        assert "closed" in str(error)
        return False
    return True


def test_memory_has_one_anchor_if_two_threads_are_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second thread closes its connection: CPython 3.13+ warns about a connection that is only dropped."""
    memory, real, made = SharedMemory(), sqlite3.connect, []
    at_once = threading.Barrier(2, timeout=30)

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        conn = real(*args, **kwargs)
        made.append(conn)
        at_once.wait()
        return conn

    monkeypatch.setattr(sqlite3, "connect", connect)
    for thread in [in_thread(memory.uri) for _ in range(2)]:
        thread.join()
    assert sorted(map(is_open, made)) == [False, True]
    memory.drop()
    assert [is_open(conn) for conn in made] == [False, False]


def test_writers_of_a_database_in_memory_wait(open_pool: Make) -> None:
    db = open_pool(path=":memory:", timeout=30.0)
    db.execute_query("CREATE TABLE t (n INTEGER PRIMARY KEY)")

    def write(first: int) -> None:
        for number in range(first, first + 25):
            db.execute_query("INSERT INTO t VALUES (?)", (number,))

    threads = [in_thread(lambda first=first: write(first)) for first in range(0, 200, 25)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert db.execute_query("SELECT count(*) FROM t") == [(200,)]


def test_memory_after_a_fork() -> None:
    run_forking("""
import os
from pooling import SQLitePool
db = SQLitePool(":memory:")
db.execute_query("CREATE TABLE t (n)")
if os.fork() == 0:
    assert db.execute_query("SELECT * FROM sqlite_master") == []
    db.execute_query("CREATE TABLE mine (n)")
    db.close()
    print("child ok", flush=True)
    raise SystemExit
assert os.wait()[1] == 0
assert db.execute_query("SELECT name FROM sqlite_master") == [("t",)]
print("parent ok")
""")


def test_reader_after_a_fork(path: Path) -> None:
    run_forking(f"""
import os
from pooling import SQLitePool
db = SQLitePool({str(path)!r}, readers=2)
db.execute_query("INSERT INTO t VALUES (1, 'a')")
with db.connection(readonly=True) as held:
    if os.fork() == 0:
        assert db.execute_query("SELECT n FROM t") == [(1,)]
        db.execute_query("INSERT INTO t VALUES (2, 'b')")
        assert db.queries().count == 2
        print("child ok", flush=True)
        raise SystemExit
    assert os.wait()[1] == 0
    assert held.execute("SELECT n FROM t").fetchall() == [(1,), (2,)]
assert db.execute_query("SELECT count(*) FROM t") == [(2,)]
print("parent ok")
""")


# -- limits ----------------------------------------------------------------------


def test_statement_timeout(open_pool: Make) -> None:
    db = open_pool(ONE, statement_timeout=0.05)
    with pytest.raises(sqlite3.OperationalError, match=r"took over 0\.05 s \(statement_timeout\)"):
        db.execute_query(FOR_EVER)
    with db.acquire() as conn:
        rows = conn.execute("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c")
        with pytest.raises(sqlite3.OperationalError, match="statement_timeout"):
            rows.fetchall()
        with pytest.raises(sqlite3.OperationalError, match="statement_timeout"):
            conn.executemany("INSERT INTO t SELECT n, ? FROM (" + FOR_EVER.replace("max(n)", "n") + ")", [("a",)])
        assert conn.execute("SELECT 1").fetchall() == [(1,)]
    assert db.metrics.snapshot().created == 1


TWO_ROWS_AND_NO_END = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c WHERE n < 3"


@pytest.mark.parametrize(
    "rest",
    [
        lambda rows: rows.fetchone(), list, lambda rows: rows.fetchmany(5), lambda rows: rows.fetchmany(size=5)
    ],
)  # fmt: skip
def test_interruption_while_rows_are_fetched_is_explained(open_pool: Make, rest: Callable[[Any], Any]) -> None:
    db = open_pool(ONE, statement_timeout=0.05)
    with db.acquire() as conn:
        for cursor in (conn.cursor(), conn):
            rows = cursor.execute(TWO_ROWS_AND_NO_END)
            assert rows.fetchone() == (1,)  # takes too few steps for the progress handler
            with pytest.raises(sqlite3.OperationalError, match=r"took over 0\.05 s \(statement_timeout\)"):
                rest(rows)
        assert list(conn.execute("VALUES (1), (2)")) == [(1,), (2,)]
        assert conn.execute("VALUES (1), (2)").fetchmany() == [(1,)]


def test_deadline_ends_with_its_lease(open_pool: Make) -> None:
    work = FOR_EVER.replace("FROM c)", "FROM c LIMIT 5000)")
    db = open_pool(ONE.replace(validation_interval=0.0, validation_query=work), statement_timeout=60.0)
    for _ in range(3):
        with db.acquire() as conn:
            conn.execute("SELECT 1").fetchall()
            conn.limit.deadline = 0.0  # type: ignore[attr-defined]  # expired
    snapshot = db.metrics.snapshot()
    assert (snapshot.created, snapshot.validation_failures) == (1, 0)
    with db.acquire() as conn:
        conn.limit.deadline = 0.0  # type: ignore[attr-defined]
        db.writer.engine.adapter.validate(conn, 1.0)  # while it is in use, as after an error


def test_busy_timeout_is_at_most_the_statement_timeout(open_pool: Make) -> None:
    db = open_pool(ONE, timeout=600.0, statement_timeout=0.5)
    assert db.execute_query("PRAGMA busy_timeout") == [(500,)]
    with open_pool().acquire() as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            db.execute_query("DELETE FROM t")
    assert open_pool(timeout=2.0, statement_timeout=60).execute_query("PRAGMA busy_timeout") == [(2000,)]


def test_borrower_cannot_remove_the_limit(open_pool: Make) -> None:
    db = open_pool(ONE, statement_timeout=0.05)
    with db.acquire() as conn:
        conn.set_progress_handler(None, 0)
    with pytest.raises(sqlite3.OperationalError, match="statement_timeout"):
        db.execute_query(FOR_EVER)


# -- reset -----------------------------------------------------------------------


def test_partly_read_cursor_is_closed_and_keeps_no_snapshot(open_pool: Make) -> None:
    db = open_pool(ONE)
    with db.connection() as conn:
        conn.executemany("INSERT INTO t VALUES (?, 'x')", [(n,) for n in range(100)])
    with db.acquire() as conn:
        cursor = conn.execute("SELECT * FROM t")
        cursor.fetchone()
        other = conn.cursor()
        other.execute("SELECT * FROM t").fetchone()
    for left in (cursor, other):
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            left.fetchone()
    with db.acquire() as again:
        assert again is conn
        assert again.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0  # not busy


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH ':memory:' AS other",
        "CREATE TEMP TABLE mine (n)",
        "CREATE TEMPORARY VIEW mine AS SELECT 1",
        " /* comment */ ATTACH ':memory:' AS other",
        "-- comment\nCREATE TEMP TABLE mine (n)",
    ],
)
def test_attached_databases_and_temporary_tables_close_the_connection(open_pool: Make, statement: str) -> None:
    db = open_pool(ONE)
    with db.acquire() as conn:
        conn.execute(statement)
        conn.commit()
    with db.acquire() as again:
        assert again is not conn
        names = [row[1] for row in again.execute("PRAGMA database_list")]
        assert names == ["main"]


def test_reset_after_a_script_and_after_a_cursor_of_another_class(open_pool: Make) -> None:
    class Own(sqlite3.Cursor):
        pass

    db = open_pool(ONE)
    for use, seen in (
        (lambda conn: conn.executescript("SELECT 1; PRAGMA foreign_keys=OFF;"), True),
        (lambda conn: conn.cursor(Own).execute("PRAGMA foreign_keys=OFF"), False),
        (lambda conn: conn.cursor().execute("\n\tPRAGMA foreign_keys=OFF"), True),
    ):
        with db.acquire() as conn:
            use(conn)
            assert conn.execute("PRAGMA foreign_keys").fetchone() == (0,)
        with db.acquire() as again:
            assert (again is conn) is seen
            assert again.execute("PRAGMA foreign_keys").fetchone() == (1,)


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        "query_only=ON", "recursive_triggers = ON", "synchronous(OFF)", "main.cache_size=17", "locking_mode=EXCLUSIVE",
        "wal_autocheckpoint=0", "ignore_check_constraints=ON", "read_uncommitted=ON", "writable_schema=ON",
        "temp_store=2", "max_page_count=10", "/* comment */ analysis_limit=9", "'cell_size_check'=1",
        "journal_mode=DELETE",
    ],
)  # fmt: skip
def test_pragmas_do_not_affect_the_next_borrower(open_pool: Make, change: str, script: bool) -> None:
    names = re.findall(r"\w+", change.replace("main.", "").replace("/* comment */", ""))
    read = f"PRAGMA {names[0]}"
    db = open_pool(ONE)
    with db.acquire() as conn:
        before = conn.execute(read).fetchall()
    with db.acquire() as conn:
        if script:
            conn.executescript(f"SELECT 1; PRAGMA {change}")
        else:
            conn.execute(f"PRAGMA {change}").fetchall()
    with db.acquire() as again:
        assert again.execute(read).fetchall() == before


def test_case_sensitivity_of_like_does_not_affect_the_next_borrower(open_pool: Make) -> None:
    """Its PRAGMA cannot be read."""
    db = open_pool(ONE)
    with db.acquire() as conn:
        conn.execute("PRAGMA case_sensitive_like=ON")
    assert db.execute_query("SELECT 'A' LIKE 'a'") == [(1,)]


def test_harmless_pragmas_do_not_close_the_connection(open_pool: Make) -> None:
    db = open_pool(ONE, pragmas={"Synchronous": "NORMAL"})
    for sql in ("PRAGMA table_info(t)", "PRAGMA query_only", "PRAGMA synchronous=OFF", "PRAGMA user_version=7"):
        db.execute_query(sql)
    assert db.execute_query("PRAGMA synchronous") == [(1,)]
    with db.acquire() as conn:
        for sql in ("BEGIN", "commit", "\nBEGIN IMMEDIATE", " End TRANSACTION"):
            conn.execute(sql)
        assert not conn.dirty  # type: ignore[attr-defined]  # otherwise its release would take longer
    assert db.metrics.snapshot().created == 1


def _forbid(*args: Any) -> int:
    return sqlite3.SQLITE_DENY


IRREVERSIBLE: dict[str, Callable[[Any], Any]] = {
    "create_function": lambda conn: conn.create_function("upper", 1, lambda text: "mine"),
    "create_aggregate": lambda conn: conn.create_aggregate("max", 1, object),
    "create_window_function": lambda conn: conn.create_window_function("sum", 1, object),
    "create_collation": lambda conn: conn.create_collation("NOCASE", lambda one, two: 0),
    "set_authorizer": lambda conn: conn.set_authorizer(_forbid),
    "setlimit": lambda conn: conn.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 20),  # type: ignore[attr-defined,unused-ignore]
    "setconfig": lambda conn: conn.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False),  # type: ignore[attr-defined,unused-ignore]
    "deserialize": lambda conn: conn.deserialize(conn.serialize()),
    "enable_load_extension": lambda conn: conn.enable_load_extension(True),
}


@pytest.mark.parametrize("method", [name for name in IRREVERSIBLE if hasattr(sqlite3.Connection, name)])
def test_irreversible_change_closes_the_connection(open_pool: Make, method: str) -> None:
    db = open_pool(ONE)
    db.execute_query("SELECT 1")
    with db.acquire() as conn:
        IRREVERSIBLE[method](conn)
    with db.acquire() as again:
        assert again is not conn
        assert again.execute("SELECT upper('a') FROM (SELECT 1)").fetchall() == [("A",)]
    snapshot = db.metrics.snapshot()
    assert (snapshot.created, snapshot.closed) == (2, {"reset": 1})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="blobs came with CPython 3.11")
def test_open_blob_is_closed(open_pool: Make) -> None:
    db = open_pool(ONE)
    db.execute_query("INSERT INTO t VALUES (1, zeroblob(100))")
    with db.acquire() as conn:
        blob = conn.blobopen("t", "word", 1)  # type: ignore[attr-defined,unused-ignore]
        blob.write(b"x")
    with db.acquire() as again:
        assert again is conn
        assert not again.in_transaction
        with pytest.raises(sqlite3.ProgrammingError, match="closed blob"):
            blob.read()
    assert db.execute_query("UPDATE t SET word = 'free' RETURNING word") == [("free",)]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit came with CPython 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit_of_a_borrower_is_reset(open_pool: Make, autocommit: bool) -> None:
    db = open_pool(ONE)
    with db.acquire() as conn:
        conn.autocommit = autocommit  # type: ignore[attr-defined,unused-ignore]
    with db.acquire() as again:
        assert again is conn
        assert not again.in_transaction
        assert again.autocommit == sqlite3.LEGACY_TRANSACTION_CONTROL  # type: ignore[attr-defined,unused-ignore]


def test_changes_of_configure_are_kept(open_pool: Make, path: Path) -> None:
    def configure(conn: sqlite3.Connection) -> None:
        conn.text_factory = bytes
        conn.execute("ATTACH ':memory:' AS other")
        conn.execute("CREATE TEMP TABLE notes (n)")
        conn.execute("PRAGMA cache_size=17")
        conn.create_function("twice", 1, lambda n: 2 * n)

    db = open_pool(ONE, configure=configure)
    for _ in range(3):
        with db.connection() as conn:
            conn.execute("PRAGMA foreign_keys=OFF")
            assert conn.execute("SELECT twice(4) FROM pragma_cache_size WHERE cache_size = 17").fetchall() == [(8,)]
            conn.execute("SELECT * FROM notes, other.sqlite_master")
    assert db.metrics.snapshot().created == 1
    another = f"DETACH other; ATTACH '{path}' AS other"
    for change in ("DETACH other", another, "DROP TABLE temp.notes", "CREATE TEMP TABLE mine (n)"):
        with db.acquire() as conn:
            conn.execute("PRAGMA foreign_keys")
            conn.executescript(change)
        with db.acquire() as again:
            assert again is not conn


def test_handlers_of_a_borrower_are_removed(open_pool: Make) -> None:
    db = open_pool(ONE)
    heard: list[str] = []
    with db.acquire() as conn:
        conn.set_trace_callback(heard.append)
        conn.set_progress_handler(lambda: 1, 1)
        if sys.version_info >= (3, 12):
            conn.autocommit = True
    with db.acquire() as again:
        assert again is conn
        assert len(again.execute(FOR_EVER.replace("FROM c)", "FROM c LIMIT 9)")).fetchall()) == 1
        again.execute("INSERT INTO t VALUES (1, 'x')")
        assert again.in_transaction
    assert heard == []


@pytest.mark.parametrize("readers", [None, 1])
def test_every_borrower_gets_the_configured_state(open_pool: Make, readers: int | None) -> None:
    def configure(conn: sqlite3.Connection) -> None:
        conn.row_factory = sqlite3.Row
        conn.create_function("twice", 1, lambda n: 2 * n)

    db = open_pool(ONE, configure=configure, readers=readers)
    for _ in range(2):
        with db.connection(readonly=True) as conn:
            row = conn.execute("SELECT twice(4) AS found").fetchone()
            assert row["found"] == 8
            conn.row_factory = None


@pytest.mark.parametrize("limit", [None, 60])
def test_every_borrower_gets_the_configured_handlers(open_pool: Make, limit: float | None) -> None:
    """Also after a borrower has changed them."""
    heard: list[str] = []
    calls: list[int] = []

    def configure(conn: sqlite3.Connection) -> None:
        conn.set_trace_callback(heard.append)
        conn.set_progress_handler(lambda: calls.append(1), 100)

    db = open_pool(ONE, configure=configure, statement_timeout=limit)
    kept = None
    for change in range(4):
        with db.acquire() as conn:
            kept = kept or conn
            assert conn is kept
            heard.clear()
            calls.clear()
            conn.execute(FOR_EVER.replace("FROM c)", "FROM c LIMIT 999)")).fetchall()
            assert len(heard) == 1 and heard[0].startswith("WITH RECURSIVE")
            assert len(calls) > 20
            if change == 1:
                conn.set_trace_callback(None)
                conn.set_progress_handler(None, 0)
            if change == 2:
                conn.set_trace_callback(lambda sql: None)
                conn.set_progress_handler(lambda: 1, 1)


def test_configured_handler_does_not_disable_the_limit(open_pool: Make) -> None:
    calls: list[int] = []
    db = open_pool(
        ONE, configure=lambda conn: conn.set_progress_handler(lambda: calls.append(1), 10_000), statement_timeout=0.2
    )
    with pytest.raises(sqlite3.OperationalError, match="statement_timeout"):
        db.execute_query(FOR_EVER)
    assert calls
    stop: list[int] = []
    stops = open_pool(
        ONE, configure=lambda conn: conn.set_progress_handler(lambda: len(stop), 10), statement_timeout=60
    )
    assert stops.execute_query("SELECT 1") == [(1,)]
    stop.append(1)
    with pytest.raises(sqlite3.OperationalError, match="^interrupted$"):
        stops.execute_query(FOR_EVER)


# -- arguments of sqlite3.connect ------------------------------------------------


class Counting(sqlite3.Connection):
    """A connection class of the user."""

    def execute(self, *args: Any) -> Any:
        self.executed = getattr(self, "executed", 0) + 1
        return super().execute(*args)

    def hello(self) -> str:
        return "hello"


@pytest.mark.parametrize("readers", [None, 1])
def test_types_are_detected(open_pool: Make, readers: int | None) -> None:
    db = open_pool(detect_types=sqlite3.PARSE_COLNAMES, readers=readers)
    sqlite3.register_converter("upper", lambda text: text.decode().upper())
    assert db.execute_query("SELECT 'a' AS 'x [upper]'") == [("A",)]
    assert open_pool().execute_query("SELECT 'a' AS 'x [upper]'") == [("a",)]


def test_execute_query_calls_execute_of_the_users_class(path: Path) -> None:
    with SQLitePool(path, factory=Counting, max_size=1) as db:
        with db.acquire() as conn:
            before = conn.executed  # type: ignore[attr-defined]
        assert db.execute_query("SELECT 1") == [(1,)]
        with db.acquire() as conn:
            assert conn.executed == before + 1  # type: ignore[attr-defined]


def test_execute_query_leaves_no_cursor_open_after_an_error(path: Path) -> None:
    with SQLitePool(path, max_size=1) as db, closing(sqlite3.connect(path)) as other:
        for text in (b"a", b"\xff", b"b"):  # the second is not UTF-8
            db.execute_query("INSERT INTO t (word) VALUES (CAST(? AS TEXT))", (text,))
        try:
            db.execute_query("SELECT word FROM t")
        except sqlite3.Error as error:
            kept = error  # and with it the frames of its traceback
        assert "decode" in str(kept)
        other.execute("INSERT INTO t (word) VALUES ('c')")
        other.commit()
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0  # no reader


def test_factory(open_pool: Make) -> None:
    db = open_pool(ONE, factory=Counting)
    with db.acquire() as conn:
        assert isinstance(conn, Counting)
        before = conn.executed
        conn.execute("SELECT 1")
        assert (conn.executed, conn.hello()) == (before + 1, "hello")
        conn.execute("PRAGMA foreign_keys=OFF")
    with db.acquire() as again:
        assert again is conn
        assert again.execute("PRAGMA foreign_keys").fetchone() == (1,)
        again.execute("PRAGMA temp_store=2")
    with db.acquire() as another:
        assert another is not conn


def test_isolation_level(open_pool: Make) -> None:
    for level in (None, "DEFERRED", "exclusive", ""):
        db = open_pool(ONE, isolation_level=level)
        for _ in range(2):
            with db.acquire() as conn:
                assert conn.isolation_level == (level.upper() if level else level)
                conn.execute("DELETE FROM t")
                assert conn.in_transaction == (level is not None)
                conn.isolation_level = "IMMEDIATE"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit came with CPython 3.12")
@pytest.mark.parametrize("readers", [None, 1])
@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit(open_pool: Make, path: Path, autocommit: bool, readers: int | None) -> None:
    db = open_pool(ONE, autocommit=autocommit, readers=readers, pragmas={"cache_size": 99})
    for number in range(3):
        with db.connection() as conn:
            assert conn.autocommit is autocommit  # type: ignore[attr-defined,unused-ignore]
            assert conn.in_transaction is not autocommit
            conn.execute("INSERT INTO t VALUES (?, 'x')", (number,))
            conn.execute("PRAGMA cache_size=7")
            conn.autocommit = not autocommit  # type: ignore[attr-defined,unused-ignore]
        assert db.execute_query("PRAGMA cache_size") == [(99,)]
        assert db.execute_query("PRAGMA foreign_keys") == [(1,)]
    db.optimize(vacuum=True)
    assert db.size().file > 0
    db.health_check()
    with contextlib.suppress(ZeroDivisionError), db.connection() as conn:
        conn.execute("INSERT INTO t VALUES (9, 'x')")
        1 / 0  # noqa: B018
    assert db.execute_query("SELECT count(*) FROM t") == [(4 if autocommit else 3,)]
    assert open_pool().execute_query("PRAGMA journal_mode") == [("wal",)]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="autocommit is supported")
def test_autocommit_needs_cpython_3_12(path: Path) -> None:
    with pytest.raises(TypeError, match=r"autocommit needs CPython 3\.12"):
        SQLitePool(path, autocommit=True)


def test_file_name_that_looks_like_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SQLitePool("file:x.db", FEW, uri=False) as db:
        db.execute_query("CREATE TABLE t (n)")
    assert (tmp_path / "file:x.db").exists()


def test_from_url(path: Path) -> None:
    query = "detect_types=3&cached_statements=7&isolation_level=deferred&uri=true"
    db = SQLitePool.from_url(f"sqlite:////{path}?{query}", settings=ONE)
    assert db.writer.engine.adapter.connect == {"detect_types": 3, "cached_statements": 7}  # type: ignore[attr-defined]
    with db.acquire() as conn:
        assert conn.isolation_level == "DEFERRED"
    db.close()
    with SQLitePool.from_url("sqlite:///x.db?isolation_level=none", settings=ONE) as db:
        assert db.writer.engine.adapter.isolation_level is None  # type: ignore[attr-defined]
    with SQLitePool.from_url(f"sqlite:///file:{path}?mode=ro&uri=true&timeout=2", settings=ONE) as db:
        assert db.execute_query("SELECT count(*) FROM t") == [(0,)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute_query("DELETE FROM t")
    with pytest.raises(ValueError, match="unknown parameter 'mode'"):
        SQLitePool.from_url("sqlite:///x.db?mode=ro")
    if sys.version_info >= (3, 12):
        with SQLitePool.from_url(f"sqlite:////{path}?autocommit=on", settings=ONE) as db, db.acquire() as conn:
            assert conn.autocommit is True  # type: ignore[attr-defined,unused-ignore]


def test_sqlite_without_thread_support_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "threadsafety", 0)
    with pytest.raises(sqlite3.NotSupportedError, match="compiled for programs with one thread"):
        SQLitePool(path)


# -- the file --------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [True, False])
def test_replaced_or_deleted_file_is_detected(
    open_pool: Make, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, replaced: bool
) -> None:
    db = open_pool(readers=1)
    db.execute_query("INSERT INTO t VALUES (1, 'old')")
    assert db.execute_query("SELECT word FROM t") == [("old",)]
    with db.acquire() as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    if replaced:
        with closing(sqlite3.connect(tmp_path / "new.db")) as new:
            new.execute("CREATE TABLE t (word)")
            new.execute("INSERT INTO t VALUES ('new')")
            new.commit()
        os.replace(tmp_path / "new.db", path)
        assert db.execute_query("SELECT word FROM t") == [("new",)]
    else:
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            db.execute_query("SELECT word FROM t")
    assert f"{path}: the database file was replaced or deleted" in caplog.text


def test_path_does_not_depend_on_the_current_directory(
    path: Path, open_pool: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    db = open_pool(path="test.db")
    monkeypatch.chdir("/")
    assert db.execute_query("SELECT count(*) FROM t") == [(0,)]
    assert db.name == "test.db"


def test_simultaneous_opens_of_a_new_file(open_pool: Make, tmp_path: Path) -> None:
    for number in range(20):
        db = open_pool(FEW.replace(min_size=8, max_size=8), path=tmp_path / f"{number}.db")
        with db:
            snapshot = db.metrics.snapshot()
            assert (snapshot.created, snapshot.errors) == (8, {})


def test_lock_during_the_change_to_wal_is_waited_for(tmp_path: Path) -> None:
    """The busy timeout has no effect there; about 1 of 1,000 simultaneous opens finds the file locked."""

    tries: list[str] = []

    class Locked(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if "journal_mode" in sql:
                tries.append(sql)
                if len(tries) < 3:
                    raise sqlite3.OperationalError("database is locked")
            return super().execute(sql, *parameters)

    def create(timeout: float) -> None:
        tries.clear()
        adapter = SQLiteAdapter(tmp_path / "x.db", timeout=timeout, factory=Locked)
        adapter.close(adapter.create())

    create(30.0)
    assert tries == ["PRAGMA journal_mode=WAL"] * 3
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        create(0.0)


def test_other_journal_mode(open_pool: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    db = open_pool(path=tmp_path / "plain.db", pragmas={"journal_mode": "DELETE"})
    assert db.execute_query("PRAGMA journal_mode") == [("delete",)]
    assert caplog.text == ""
    memory = open_pool(path="file:test?mode=memory")
    assert memory.execute_query("SELECT 1") == [(1,)]
    assert "the journal mode is memory, because WAL is not possible" in caplog.text


READ_ONLY = """
import os, sqlite3, sys
from contextlib import closing
from pooling import PoolSettings, SQLitePool
folder, mode = sys.argv[1:]
for readers in (None, 1):  # loads modules first: the ordinary user may not read the interpreter's folder
    with SQLitePool(":memory:", PoolSettings(max_size=2), readers=readers, pragmas={"journal_mode": "WAL"}) as db:
        db.execute_query("SELECT 1")
        db.health_check()
        db.size()
with closing(sqlite3.connect(folder + "/x.db")) as conn:
    conn.executescript("PRAGMA journal_mode=DELETE; CREATE TABLE t (n); INSERT INTO t VALUES (7)")
    conn.commit()
os.chmod(folder + "/x.db", int(mode, 8))
os.chmod(folder, 0o555)
if os.getuid() == 0:  # root may write everywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
with closing(sqlite3.connect(folder + "/x.db")) as conn:
    assert conn.execute("SELECT n FROM t").fetchall() == [(7,)]
    try:
        conn.execute("INSERT INTO t VALUES (8)")
        raise SystemExit("the file is writable, so this test proves nothing")
    except sqlite3.OperationalError:
        pass
for path in (folder + "/x.db", "file:" + folder + "/x.db?mode=ro"):
    for readers in (None, 1):
        with SQLitePool(path, PoolSettings(max_size=2), readers=readers) as db:
            assert db.execute_query("SELECT n FROM t") == [(7,)]
            db.health_check()
            db.size()
            try:
                db.execute_query("INSERT INTO t VALUES (8)")
                raise SystemExit("written")
            except sqlite3.OperationalError as error:
                assert "readonly" in str(error) or "unable to open" in str(error), error
print("read")
"""


@pytest.mark.parametrize("mode", ["444", "666"])
def test_read_only_file_can_be_read(mode: str) -> None:
    """As an ordinary user, with a read-only folder, and a read-only or writable file."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are private to its user
        os.chmod(folder, 0o755)
        command = [sys.executable, "-W", "error", "-c", READ_ONLY, folder, mode]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        os.chmod(folder, 0o755)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
    assert done.stderr.count("the journal mode is delete, because WAL is not possible") == 6  # once for each adapter


def test_unreadable_database_raises(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database" * 1000)
    with SQLitePool(tmp_path / "x.db", ONE.replace(acquire_timeout=0.2)) as db, pytest.raises(
        (CreateFailed, PoolTimeout), match="file is not a database"
    ):
        db.acquire()


@pytest.mark.parametrize(
    "uri", ["file:test.db", "file:./test.db?mode=rwc", "file:te%73t.db?cache=private#x", "file:../{here}/test.db"]
)
def test_relative_uri_does_not_depend_on_the_current_directory(
    path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    uri = uri.format(here=path.parent.name)
    with SQLitePool(uri, FEW) as db:
        monkeypatch.chdir("/")
        db.execute_query("INSERT INTO t VALUES (1, 'a')")
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT n FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize(
    "uri",
    ["file:/abs/x.db?mode=ro", "file:///abs/x.db", "file://localhost/abs/x.db", "file::memory:?cache=shared",
     "file:name?mode=memory&cache=shared", "file:name?cache=shared&mode=memory", "file:"],
)  # fmt: skip
def test_other_uris_are_not_changed(uri: str) -> None:
    assert SQLiteAdapter(uri).path == uri


def test_uri_in_a_folder_with_special_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.fsencode(tmp_path) + b"/a ?#%\xff"
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    with SQLitePool("file:x.db", FEW) as db:
        monkeypatch.chdir("/")
        db.execute_query("CREATE TABLE t (n)")
    assert os.path.exists(folder + b"/x.db")


def test_file_name_that_is_not_utf8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.db")
    url = "sqlite:///" + quote(os.fsencode(name))
    made = [SQLitePool(name, FEW), SQLitePool(Path(name), FEW, readers=1), SQLitePool.from_url(url, settings=FEW)]
    made.append(from_url(url_of(name)))  # type: ignore[arg-type]
    for number, db in enumerate(made):
        db.execute_query("CREATE TABLE IF NOT EXISTS t (n)")
        db.execute_query("INSERT INTO t VALUES (?)", (number,))
        with db.acquire() as conn:
            conn.execute("CREATE TEMP TABLE notes (n)")  # the reset reads the database list then
        assert db.execute_query("SELECT count(*) FROM t") == [(number + 1,)]
        db.size()
        repr(db).encode()
    os.rename(name, f"{name}.old")
    made[0].execute_query("CREATE TABLE t (n)")
    assert r"caf\udce9.db: the database file was replaced or deleted" in caplog.text
    caplog.text.encode()
    for db in made:
        db.close()


@pytest.mark.parametrize("readers", [None, 1])
def test_pragmas_of_the_file_format_are_set_before_the_file_exists(tmp_path: Path, readers: int | None) -> None:
    pragmas = {"cache_size": 99, "page_size": 8192, "Auto_Vacuum": "FULL", "encoding": "'UTF-16le'"}
    with SQLitePool(tmp_path / "new.db", FEW, pragmas=pragmas, readers=readers) as db:
        db.execute_query("CREATE TABLE t (n)")
        for name, value in (("page_size", 8192), ("auto_vacuum", 1), ("encoding", "UTF-16le"), ("cache_size", 99)):
            assert db.execute_query(f"PRAGMA {name}") == [(value,)]
        assert db.execute_query("PRAGMA journal_mode") == [("wal",)]
    with SQLitePool(":memory:", ONE, pragmas={"page_size": 8192}) as db:
        db.execute_query("CREATE TABLE t (n)")
        assert db.execute_query("PRAGMA page_size") == [(8192,)]


def test_statistics_are_refreshed_before_close(path: Path) -> None:
    def analysed() -> bool:
        with closing(sqlite3.connect(path)) as conn:
            return bool(conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchall())

    def use(**arguments: Any) -> None:
        with SQLitePool(path, ONE, **arguments) as db, db.connection() as conn:
            conn.execute("CREATE INDEX IF NOT EXISTS i ON t (word)")
            conn.executemany("INSERT INTO t (word) VALUES (?)", [(str(n % 7),) for n in range(1000)])
            conn.execute("SELECT * FROM t WHERE word = '3'").fetchall()

    use(optimize=False)
    assert not analysed()
    use()
    assert analysed()


def test_size_and_optimize(open_pool: Make, path: Path) -> None:
    db = open_pool()
    with db.connection() as conn:
        conn.executemany("INSERT INTO t (word) VALUES (?)", [("x" * 1000,) for _ in range(1000)])
    full = db.size()
    assert full.wal > 500_000 and full.free == 0
    db.execute_query("DELETE FROM t")
    assert db.size().free > 500_000
    db.optimize()
    assert db.size().wal == 0 and db.size().free > 500_000
    db.optimize(vacuum=True)
    small = db.size()
    assert small.file < full.file / 10 and small.free == 0
    assert small.file == path.stat().st_size


def test_maintenance_ignores_the_limit_and_the_factories(open_pool: Make) -> None:
    def configure(conn: sqlite3.Connection) -> None:
        conn.text_factory, conn.row_factory = bytes, lambda cursor, row: {"mine": row}

    db = open_pool(ONE, configure=configure, statement_timeout=0.001)
    with db.connection() as conn:
        conn.limit = None  # type: ignore[attr-defined]  # the INSERT takes longer
        conn.set_progress_handler(None, 0)
        conn.executemany("INSERT INTO t (word) VALUES (?)", [(f"{n}" * 50,) for n in range(30_000)])
        conn.execute("CREATE INDEX i ON t (word)")
    assert db.check_integrity(60.0, full=True) == []
    db.optimize(vacuum=True)
    assert db.size().file > 1_000_000
    db.health_check(60.0)
    db.drain()  # replaces the connection without a limit
    with pytest.raises(sqlite3.OperationalError, match="statement_timeout"):
        db.execute_query(FOR_EVER)


# -- damage ----------------------------------------------------------------------


def damage(path: Path, db: SQLitePool) -> None:
    with db.connection() as conn:
        conn.executemany("INSERT INTO t (word) VALUES (?)", [("x" * 500,) for _ in range(200)])
        conn.execute("CREATE INDEX i ON t (word)")
    db.optimize()
    data = bytearray(path.read_bytes())
    data[8192:12288] = b"\xff" * 4096
    path.write_bytes(data)
    db.drain()


def test_damage_is_found(open_pool: Make, path: Path) -> None:
    db = open_pool()
    assert db.check_integrity() == db.check_integrity(full=True) == []
    damage(path, db)
    assert db.check_integrity(30.0)
    with pytest.raises(sqlite3.DatabaseError, match="the file is damaged"):
        db.health_check(30.0)


def test_health_check_checks_integrity_at_intervals(
    open_pool: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = open_pool()
    db.health_check(30.0)
    damage(path, db)
    db.health_check(30.0)  # only reads: the last integrity check was just now
    later = time.monotonic() + INTEGRITY_CHECK_INTERVAL
    monkeypatch.setattr("pooling.adapters.sqlite.pool.time", SimpleNamespace(monotonic=lambda: later))
    for _ in range(2):
        with pytest.raises(sqlite3.DatabaseError, match="damaged"):
            db.health_check(30.0)


def test_integrity_check_that_takes_too_long_is_interrupted(open_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_pool(ONE)
    with db.acquire() as conn:
        with pytest.raises(TimeoutError, match=r"interrupted after 0\.01 s"), interrupted_after(conn, 0.01):
            conn.execute(FOR_EVER)
        with pytest.raises(sqlite3.OperationalError, match="no such table"), interrupted_after(conn, 60.0):
            conn.execute("SELECT * FROM missing")

    def too_long(*args: object, **options: object) -> list[str]:
        raise TimeoutError

    monkeypatch.setattr("pooling.adapters.sqlite.upkeep.find_damage", too_long)
    db.health_check()  # reading is enough


# -- figures ---------------------------------------------------------------------


def test_statements_are_timed(open_pool: Make) -> None:
    db = open_pool(readers=2)
    secret = "s3cret"
    db.execute_query("INSERT INTO t VALUES (?, ?)", (1, secret))
    for _ in range(10):
        db.execute_query("SELECT 1")
    slow = FOR_EVER.replace("FROM c)", "FROM c LIMIT 300000)") + f" WHERE '{secret}' <> 'x'"
    db.execute_query(slow)
    found = db.queries()
    assert found.count == 12
    assert found.slowest[0].sql == without_values(slow)
    assert found.slowest[0].seconds == found.max > found.p50
    assert found.mean * 12 >= found.max
    assert secret not in str(found.to_dict())
    for pool in (db, db.readers):
        assert pool is not None
        pool.drain()
        wait_until(lambda pool=pool: not pool.stats()["closing"])  # type: ignore[misc]
    assert db.queries().count == 12  # including those of closed connections


def test_fetching_is_timed(open_pool: Make) -> None:
    db = open_pool()
    db.execute_query("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 200000) SELECT n FROM c")
    assert db.queries().max > 0.005  # the first row alone takes microseconds


def test_statements_are_not_timed_without_metrics(open_pool: Make) -> None:
    db = open_pool(FEW.replace(enable_metrics=False))
    db.execute_query("SELECT 1")
    assert db.queries().count == 0


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("SELECT  *\n FROM t2 WHERE a = 12.5 AND b = 'it''s'", "SELECT * FROM t2 WHERE a = ? AND b = ?"),
        ("x" * 300, "x" * 197 + "..."),
    ],
)
def test_values_are_never_shown(sql: str, shown: str) -> None:
    assert without_values(sql) == shown


# -- arguments -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"timeout": -1}, ValueError, "timeout must be at least 0"),
        ({"timeout": "5"}, TypeError, "timeout must be a number"),
        ({"statement_timeout": 0}, ValueError, "statement_timeout must be at least 0.001"),
        ({"readers": 0}, ValueError, "readers must be at least 1"),
        ({"readers": 1.5}, TypeError, "readers must be a whole number"),
        ({"readers": True}, TypeError, "readers must be a whole number"),
        ({"writer": 0}, ValueError, "writer must be at least 1"),
        ({"configure": 3}, TypeError, "configure must be callable"),
        ({"detect_types": "3"}, TypeError, "detect_types must be a whole number"),
        ({"cached_statements": -1}, ValueError, "cached_statements must be at least 0"),
        ({"uri": 1}, TypeError, "uri must be true, false or None"),
        ({"factory": dict}, TypeError, "factory must be a subclass of sqlite3.Connection"),
        ({"isolation_level": "SERIALIZABLE"}, ValueError, "isolation_level must be one of"),
    ],
)
def test_bad_arguments(path: Path, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        SQLitePool(path, **arguments)


def test_old_sqlite_cannot_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 35, 5))
    with pytest.raises(ValueError, match=r"needs SQLite 3\.36"):
        SQLitePool(":memory:")


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("", ValueError, "path must not be empty; use ':memory:'"),
        ("a\0b", ValueError, "path must not contain a null character"),
        (b"x.db", TypeError, "path must be a string or a path, not b'x.db'"),
        ("sqlite:app.db", ValueError, "path looks like an address; use from_url"),
        ("SQLite3:/var/app.db", ValueError, "path looks like an address; use from_url"),
        ("sqlite+pysqlite:app.db", ValueError, "path looks like an address; use from_url"),
    ],
)
def test_bad_paths(path: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        SQLitePool(path)


def test_folder_instead_of_a_file(open_pool: Make, tmp_path: Path) -> None:
    with pytest.raises(CreateFailed, match="unable to open database file"):
        open_pool(path=tmp_path).execute_query("SELECT 1")


def test_missing_folder(open_pool: Make, tmp_path: Path) -> None:
    db = open_pool(path=tmp_path / "missing" / "x.db", readers=1)
    for sql in ("SELECT 1", "DELETE FROM t"):
        with pytest.raises(CreateFailed, match="unable to open database file"):
            db.execute_query(sql)


def test_dropped_pool_is_closed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        db = SQLitePool(path, FEW, readers=2)
        db.execute_query("INSERT INTO t VALUES (1, 'a')")
        memory = SQLitePool(":memory:", FEW)
        memory.execute_query("SELECT 1")
        before = threading.active_count()
        del db, memory
        gc.collect()
    assert caplog.text == "" and threading.active_count() <= before


@pytest.mark.parametrize("readers", [None, 2])
def test_dropped_pool_is_closed_by_reference_count(path: Path, readers: int | None) -> None:
    db = SQLitePool(path, FEW, readers=readers)
    db.execute_query("SELECT 1")
    pools = [weakref.ref(pool) for pool in (db, db.writer, db.readers) if pool is not None]
    gc.disable()
    try:
        del db
        assert [pool() for pool in pools] == [None] * len(pools)
    finally:
        gc.enable()
