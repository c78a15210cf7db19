"""Which PRAGMAs a reset cannot undo."""

from __future__ import annotations

import pytest

from pooling.adapters.sqlite.traces import pragma_left, pragmas_in

RESTORED = frozenset({"foreign_keys", "cache_size"})


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA query_only", "pragma query_only ;", "PRAGMA foreign_keys=OFF", "PRAGMA main . Cache_Size (5)",
        "PRAGMA table_info('query_only=1')", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA\n user_version = 3",
        "SELECT * FROM pragma_table_info('t')", "CREATE TABLE pragmas (n)", "PRAGMA query_only; PRAGMA foreign_keys=1",
    ],
)  # fmt: skip
def test_harmless_or_restored_pragmas(sql: str) -> None:
    assert pragma_left(sql, RESTORED) is None


@pytest.mark.parametrize(
    ("sql", "left"),
    [
        ("PRAGMA query_only=1", "PRAGMA query_only"),
        ("\n pragma Query_Only (1)", "PRAGMA Query_Only"),
        ("PRAGMA key = 'secret'", "PRAGMA key"),
        ("PRAGMA foreign_keys=1; SELECT 1;PRAGMA synchronous=0", "PRAGMA synchronous"),
        ("EXPLAIN PRAGMA synchronous=0", "PRAGMA synchronous"),
        ("PRAGMA temp.cache_size=1", "PRAGMA"),  # the pool restores that of main
        ("PRAGMA 'cache_size'=1", "PRAGMA"),
        ("PRAGMA/**/query_only=1", "PRAGMA"),
        ("PRAGMA query_only/**/=1", "PRAGMA"),
        ("/* comment */PRAGMA--\nquery_only=1", "PRAGMA"),
    ],
)
def test_pragmas_that_cannot_be_undone(sql: str, left: str) -> None:
    assert pragma_left(sql, RESTORED) == left


def test_names_of_the_pragmas_that_are_set() -> None:
    assert pragmas_in(["PRAGMA Cache_Size=1", "PRAGMA foreign_keys", "SELECT 1; PRAGMA mmap_size(0)"]) == {
        "cache_size", "mmap_size",
    }  # fmt: skip
