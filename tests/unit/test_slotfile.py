"""The file with two slots: whole records only, whatever happens in the middle of a write."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pooling.observe import slotfile
from pooling.observe.slotfile import MOST_BYTES, Record, SlotFile

OLD, NEW = b'{"counters":[1,2,3]}', b'{"counters":[4,5,6],"longer":true}'


class Killed(BaseException):
    """The writer is killed here."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def file(folder: int) -> Iterator[SlotFile]:
    made = SlotFile.open("one", folder, fresh=True)
    yield made
    made.close()


def killed_after(written: int) -> Callable[[int, bytes, int], int]:
    """``os.pwrite`` that writes so many bytes, and is killed."""
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, data[:written], offset)
        raise Killed

    return pwrite


def test_record_is_read_back(file: SlotFile) -> None:
    assert file.read() is None
    for number in range(1, 6):
        file.write(b"x" * number, tag=number * 10)
        assert file.read() == Record(number, number * 10, b"x" * number)


def test_empty_record_is_a_record(file: SlotFile) -> None:
    file.write(b"")
    assert file.read() == Record(1, 0, b"")


@pytest.mark.parametrize("before", [1, 2, 3])
def test_torn_write_leaves_the_last_record(file: SlotFile, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """At each byte boundary, in either slot, over nothing and over an older record."""
    size = slotfile.HEAD.size + len(NEW)
    for written in range(size + 1):
        for number in range(before):
            file.write(OLD + b" " * (number % 2))
        last = file.read()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", killed_after(written))
            with pytest.raises(Killed):
                file.write(NEW, tag=7)
        found = file.read()
        assert last is not None and found is not None
        assert found == (last if written < size else Record(last.number + 1, 7, NEW))
        os.ftruncate(file.descriptor, 0)


def test_torn_first_write_is_no_record(file: SlotFile, monkeypatch: pytest.MonkeyPatch) -> None:
    for written in range(slotfile.HEAD.size + len(NEW)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", killed_after(written))
            with pytest.raises(Killed):
                file.write(NEW)
        assert file.read() is None


def test_writer_goes_on_after_a_torn_write(file: SlotFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(OLD)
    for written in (3, 50, 60):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", killed_after(written))
            with pytest.raises(Killed):
                file.write(NEW)
    file.write(NEW)
    assert file.read() == Record(2, 0, NEW)


def test_changed_byte_is_noticed(file: SlotFile) -> None:
    file.write(OLD)
    file.write(NEW, tag=3)
    start = slotfile.offset_of(2)
    for place in range(slotfile.HEAD.size + len(NEW)):
        (byte,) = os.pread(file.descriptor, 1, start + place)
        os.pwrite(file.descriptor, bytes([byte ^ 0x10]), start + place)
        assert file.read() == Record(1, 0, OLD), f"byte {place}"
        os.pwrite(file.descriptor, bytes([byte]), start + place)
    assert file.read() == Record(2, 3, NEW)


@pytest.mark.parametrize("writes", [1, 2, 3])
@pytest.mark.parametrize("moment", range(3))
def test_reader_that_meets_writes_gets_a_whole_record(
    file: SlotFile, folder: int, monkeypatch: pytest.MonkeyPatch, moment: int, writes: int
) -> None:
    """1. The reader has read so many parts of the file. 2. The writer replaces the record. 3. The reader goes on."""
    file.write(OLD)
    file.write(OLD * 2)
    calls, real = 0, os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls == moment + 1:
            monkeypatch.setattr(os, "pread", real)
            for number in range(writes):
                file.write(NEW * (number + 1))
            monkeypatch.setattr(os, "pread", pread)
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    found = file.read()
    assert found is not None
    assert found.data in {1: {OLD}, 2: {OLD * 2}}.get(found.number, {NEW * (found.number - 2)})


def test_reader_amid_a_write_gets_the_record_before(file: SlotFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(OLD)
    seen: list[Any] = []
    real = os.pwrite

    def slowly(descriptor: int, data: bytes, offset: int) -> int:
        written = real(descriptor, data[:1], offset)
        seen.append(file.read())
        return written

    monkeypatch.setattr(os, "pwrite", slowly)
    file.write(NEW)
    assert set(seen[:-1]) == {Record(1, 0, OLD)} and seen[-1] == Record(2, 0, NEW)


def test_full_disk_leaves_the_last_record(file: SlotFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file.write(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            file.write(NEW)
    assert file.read() == Record(1, 0, OLD)


def test_record_that_is_too_long_is_refused(file: SlotFile) -> None:
    with pytest.raises(ValueError, match=r"data must be at most 16777176 bytes long, not 16777216"):
        file.write(bytes(MOST_BYTES))


def test_longest_record_stays_in_its_slot(file: SlotFile) -> None:
    longest = bytes(MOST_BYTES - slotfile.HEAD.size)
    file.write(OLD)
    file.write(longest)
    assert file.read() == Record(2, 0, longest)
    file.write(longest)
    found = file.read()
    assert found is not None and found.number == 3


def test_file_is_never_opened_through_a_link(folder: int, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError):
        SlotFile.open("link", folder)


def test_file_is_private(file: SlotFile) -> None:
    assert os.fstat(file.descriptor).st_mode & 0o777 == 0o600


LOCKED = """
import os, sys
from pooling.observe.slotfile import SlotFile
file = SlotFile.open("one", os.open(sys.argv[1], os.O_RDONLY))
print(file.lock(), flush=True)
sys.stdin.read()
"""


def test_lock_is_another_process_s_until_it_is_killed(file: SlotFile, tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", LOCKED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert other.stdout is not None and other.stdout.readline() == b"True\n"
        assert not file.lock()
        other.kill()
        other.wait()
        assert file.lock()
    finally:
        other.kill()
        other.communicate()


def test_deleted_file_is_not_linked(file: SlotFile, tmp_path: Path) -> None:
    assert file.linked
    (tmp_path / "one").unlink()
    assert not file.linked
