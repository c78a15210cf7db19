"""Paths of database files: checks, ``file:`` URIs, and the identity of an open file."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from urllib.parse import quote

from ..._masking import is_address, masked, shown, suspicious

__all__ = ["DatabaseFile", "absolute_uri", "checked_path", "default_name", "file_of", "identity_of", "printable_path"]

DatabaseFile = tuple[str, tuple[int, int]]
"""The path of a database file, and its device and inode."""


def checked_path(path: str | os.PathLike[str]) -> str:
    """Return a path as a string.

    Raises:
        TypeError: It is neither a string nor a path of strings.
        ValueError: It is empty, an address with a scheme, or contains a null character.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be a string or a path, not {shown(text)}")
    if not text:  # SQLite would open a separate temporary database for each connection
        raise ValueError("path must not be empty; use ':memory:' for a database in memory")
    # A `Path` is certainly the name of a file.
    if isinstance(path, str) and (is_address(path) or re.match(r"(?i)sqlite3?(\+\w+)?:", path)):
        raise ValueError("path looks like an address; use from_url for sqlite: URLs, and pathlib.Path for a file")
    if "\0" in text:
        raise ValueError("path must not contain a null character")
    return text


def printable_path(path: str) -> str:
    """Return a path for a log: without secrets, and encodable as UTF-8."""
    return masked(path).encode("utf-8", "backslashreplace").decode()


def default_name(path: str) -> str | None:
    """Return the name of a pool after its file; ``None`` for a database in memory, or if it may contain a secret."""
    name = Path(path.partition("?")[0]).name.strip(":")
    return printable_path(name) if name and ":" not in name and not suspicious(name) else None


def absolute_uri(uri: str) -> str:
    """Return a ``file:`` URI that does not depend on the current directory."""
    path, mark, rest = re.match(r"file:([^?#]*)(.?)(.*)", uri, re.S).groups()  # type: ignore[union-attr]
    in_memory = path == ":memory:" or re.search(r"(?:^|&)(?:mode=memory|vfs=memdb)(?:&|#|$)", rest)
    if path.startswith("/") or not path or (mark != "#" and in_memory):
        return uri
    return f"file:{quote(os.fsencode(os.getcwd())).rstrip('/')}/{path}{mark}{rest}"


def file_of(conn: sqlite3.Connection) -> DatabaseFile | None:
    """Return the file that a connection has open; ``None`` for a database in memory."""
    factory, conn.text_factory = conn.text_factory, os.fsdecode  # a file name need not be UTF-8
    try:
        path = sqlite3.Cursor(conn).execute("PRAGMA database_list").fetchone()[2]
    finally:
        conn.text_factory = factory
    identity = identity_of(path) if path else None
    return (path, identity) if identity else None


def identity_of(path: str) -> tuple[int, int] | None:
    """Return the device and inode of a file; ``None`` if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
