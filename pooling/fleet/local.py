"""A store for the processes of one host: a file.

The file has the `Ledger`, and is replaced as a whole: a writer that is killed
leaves the one before. Locks on bytes of a second file, ``.lock``, say who may
write and which members live. The kernel releases them when a process ends,
however it ends; so nothing depends on a clock, and a frozen process keeps its
share. A member that has died is counted for another second, in which the
server notices that its connections are gone.

Assumes: POSIX record locks. A process loses them as soon as it closes *any*
descriptor of the file, so each process opens it only once.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

from .._masking import shown
from .model import Answer, Ledger, Request, Row, Terms
from .stores import PATIENCE, StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LocalStore"]

_MUTEX = 0  # the byte that a writer locks
_FIRST = 1  # the byte of the first member
_MOST = 100_000  # members; a lock needs no byte that exists
_GONE = 1.0  # seconds that a dead member is still counted
_STEP = 0.002


class LocalStore:
    """A file that all members of one host and user share.

    Args:
        path: Of the file; empty for one in the user's runtime directory.
        name: Of the budget.
    """

    ttl = inf
    reserve = 0
    _locks = -1  # the open file

    def __init__(self, path: str, name: str) -> None:
        if "\0" in path or "/" in name:
            raise ValueError(f"a local store needs a path and a name that files can have, not {shown(path or name)}")
        self._path, self._name = path, name
        self._byte = 0  # ours; 0 before

    def renew(self, request: Request, terms: Terms, pools: Sequence[Any]) -> Answer:
        with self._turn():
            ledger, bytes_of = self._read()
            if request.member not in ledger.rows:
                self._join(set(bytes_of.values()))
            bytes_of[request.member] = self._byte
            answer = ledger.renew(request, terms, time.monotonic(), "")
            self._write(ledger, bytes_of)
        return answer

    def release(self, member: str, number: int, pools: Sequence[Any]) -> None:
        with self._turn():
            ledger, bytes_of = self._read()
            ledger.release(member, number)
            self._write(ledger, bytes_of)
            self._lock(fcntl.LOCK_UN, self._byte)
            self._byte = 0

    def close(self) -> None:
        locks, self._locks, self._byte = self._locks, -1, 0
        if locks >= 0:
            os.close(locks)

    __del__ = close  # before another one opens the file: closing it ends the locks of all

    def abandon(self) -> None:
        self.close()  # locks are not inherited, so the parent keeps its own

    # -- the files ---------------------------------------------------------------

    def _open(self) -> None:
        if self._locks >= 0:
            return
        if fcntl is None:
            raise StoreError("the system has no POSIX record locks; use a store on a server")
        if not self._path:
            root = os.environ.get("XDG_RUNTIME_DIR") or os.path.join(tempfile.gettempdir(), f"pooling-{os.getuid()}")
            folder = os.path.join(root, "pooling")
            os.makedirs(folder, 0o700, exist_ok=True)
            for each in (root, folder):
                found = os.stat(each)
                if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise StoreError(f"{each!r} must belong to this user alone; or name a file: local:/path")
            self._path = os.path.join(folder, f"budget-{self._name}")
        self._locks = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._open()
        deadline = time.monotonic() + PATIENCE
        while not self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, _MUTEX):
            if time.monotonic() > deadline:
                raise StoreError(f"another process has kept the lock of {self._path!r} for {PATIENCE:g} s")
            time.sleep(_STEP)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _MUTEX)

    def _lock(self, how: int, byte: int) -> bool:
        try:
            fcntl.lockf(self._locks, how, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _join(self, taken: set[int]) -> None:
        if not self._byte:
            for byte in range(_FIRST, _MOST):
                if byte not in taken and self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, byte):
                    self._byte = byte
                    return
            raise StoreError(f"more than {_MOST} processes share {self._path!r}")

    def _read(self) -> tuple[Ledger, dict[str, int]]:
        """Return the ledger and the byte of each member; those that have died expire soon."""
        try:
            with open(self._path, "rb") as file:
                found: dict[str, list[Any]] = json.load(file)
        except FileNotFoundError:
            found = {}
        now, ledger, bytes_of = time.monotonic(), Ledger(epoch=""), {}
        for member, (need, held, share, until, number, byte) in found.items():
            if until is None and byte != self._byte and self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, byte):
                self._lock(fcntl.LOCK_UN, byte)
                until = now + _GONE
            if until is None or now < until <= now + _GONE:  # later only if a boot has set the clock back
                ledger.rows[member] = Row(need, held, share, inf if until is None else until, number)
                bytes_of[member] = byte
        return ledger, bytes_of

    def _write(self, ledger: Ledger, bytes_of: dict[str, int]) -> None:
        rows = {
            name: [row.need, row.held, row.share, None if row.until == inf else row.until, row.number, bytes_of[name]]
            for name, row in ledger.rows.items()
        }
        draft = f"{self._path}.new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump(rows, file, separators=(",", ":"))
        os.replace(draft, self._path)
