"""A file with one record, or with several independent ones, each replaced in place.

A record has two slots. A write goes to the slot with the older record, and
each record has a number and a checksum. So there is always one whole record:
if the writer is killed in the middle of a write, or the disk is full, the other
slot still has the record before. A reader that meets a write does the same.

A process locks one byte of its file for as long as it lives. The kernel
releases the lock when the process ends, however it ends, and a forked child
does not inherit it.

Assumes: POSIX record locks. A process loses them on a file as soon as it closes
*any* descriptor of that file, so each process opens its own file only once.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["HEAD", "MOST_BYTES", "Record", "SlotFile", "offset_of", "open_private"]

HEAD = struct.Struct("<QQQ16s")
"""What stands before a record: its number, tag, length and checksum."""
_NO_LOCKS = "processes cannot share metrics here: the system has no POSIX record locks"
_ATTEMPTS = 5  # to read while the writer writes
_FIRST = 4096  # where the first slot begins; the bytes before it are for locks
MOST_BYTES = 1 << 24
"""Bytes from one slot to the next, and the limit of a record with its head. The unused ones take no space on disk."""


class Record(NamedTuple):
    """What was written last."""

    number: int
    tag: int
    data: bytes


class SlotFile:
    """One open file.

    Args:
        descriptor: Open for reading and writing; `close` closes it.
        part: Which of its records, from 0.
    """

    def __init__(self, descriptor: int, part: int = 0) -> None:
        self.descriptor = descriptor
        self._first = _FIRST + 2 * part * MOST_BYTES

    @classmethod
    def open(cls, name: str, directory: int, *, create: bool = False, fresh: bool = False) -> SlotFile:
        """Open a file; never through a symbolic link.

        Args:
            name: Its name.
            directory: Descriptor of its directory.
            create: Create it if it does not exist.
            fresh: Create it, and fail if it exists.

        Raises:
            OSError: As from ``os.open``; or the system has no POSIX record locks.
        """
        if fcntl is None:
            raise OSError(_NO_LOCKS)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if create or fresh:
            flags |= os.O_CREAT | (os.O_EXCL if fresh else 0)
        return cls(os.open(name, flags, 0o600, dir_fd=directory))

    def lock(self) -> bool:
        """Lock the file for this process; return ``False`` if another process has locked it.

        Raises:
            OSError: The file system has no locks.
        """
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(self) -> None:
        """Release the lock."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, 0)

    @property
    def linked(self) -> bool:
        """Whether the file has not been deleted."""
        return os.fstat(self.descriptor).st_nlink > 0

    def write(self, data: bytes, tag: int = 0) -> None:
        """Replace the record. There may be only one writer at a time.

        Args:
            data: The new record.
            tag: A number beside it.

        Raises:
            ValueError: The record is too long.
            OSError: It could not be written, because the disk is full for example; the last record is still there.
        """
        if len(data) > MOST_BYTES - HEAD.size:
            raise ValueError(f"data must be at most {MOST_BYTES - HEAD.size} bytes long, not {len(data)}")
        last = self.read()
        number = 1 if last is None else last.number + 1
        block = HEAD.pack(number, tag, len(data), _checksum(number, tag, data)) + data
        offset = self._offset(number)
        while block:
            written = os.pwrite(self.descriptor, block, offset)
            block, offset = block[written:], offset + written

    def read(self) -> Record | None:
        """Return the last record that is whole, ``None`` if there is none."""
        for _ in range(_ATTEMPTS):
            found = self._read()
            if found is not None or os.fstat(self.descriptor).st_size == 0:
                return found
        return None

    def _read(self) -> Record | None:
        """Return ``None`` also if the writer has written twice meanwhile."""
        heads = [HEAD.unpack(head) for head in map(self._head, (0, 1)) if len(head) == HEAD.size]
        for number, tag, length, checksum in sorted(heads, reverse=True):
            if number > 0 and length <= MOST_BYTES - HEAD.size:
                data = os.pread(self.descriptor, length, self._offset(number) + HEAD.size)
                if len(data) == length and _checksum(number, tag, data) == checksum:
                    return Record(number, tag, data)
        return None

    def _head(self, slot: int) -> bytes:
        return os.pread(self.descriptor, HEAD.size, self._offset(slot))

    def _offset(self, number: int) -> int:
        return self._first + number % 2 * MOST_BYTES

    def close(self) -> None:
        """Close the file, which releases this process's locks on it. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def offset_of(number: int) -> int:
    """Return where the record with this number, and its head, begins in a file with one record."""
    return _FIRST + number % 2 * MOST_BYTES


def _checksum(number: int, tag: int, data: bytes) -> bytes:
    digest = hashlib.blake2b(struct.pack("<QQQ", number, tag, len(data)), digest_size=16)
    digest.update(data)
    return digest.digest()


def open_private(path: str, *, follow: bool = True, create: bool = True) -> int:
    """Open a directory.

    Args:
        path: Where it is.
        follow: It may be a symbolic link.
        create: Create it if need be.

    Raises:
        PermissionError: It belongs to another user, or others can write to it.
        OSError: It cannot be opened or created.
    """
    if fcntl is None:
        raise OSError(_NO_LOCKS)
    if create:
        try:
            os.makedirs(path, 0o700)
        except FileExistsError:
            pass
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise PermissionError(
                f"{path!r} must belong to the user of the process ({os.geteuid()}), not to user {found.st_uid}"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(found.st_mode)
            raise PermissionError(f"{path!r} must not be writable for others, but has mode {mode:o}: use chmod 700")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
