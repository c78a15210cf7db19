"""Positions in the write-ahead log (LSN), and the tokens that users get.

A token is ``"1:0/16B3748"``: the timeline, which a promotion increments, and the LSN as PostgreSQL writes it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .._masking import shown

__all__ = ["Position", "end_of_record"]

_TOKEN = re.compile(r"(?:([0-9]{1,10}):)?([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_PAGE_HEADER, _SEGMENT_HEADER = 24, 40  # bytes at the beginning of each page, and of the first one of a segment file


class Position(NamedTuple):
    """A position in the log.

    Attributes:
        timeline: 0 if it is not known.
        lsn: As a number.
    """

    timeline: int
    lsn: int

    @classmethod
    def parse(cls, token: object) -> Position:
        """Return the position that a token means; an LSN without a timeline is one, too.

        Raises:
            TypeError: It is not a string.
            ValueError: It is not a token.
        """
        if not isinstance(token, str):
            raise TypeError(f"after must be a token from position(), not {shown(token)}")
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise ValueError(f"after must be a token from position(), such as '1:0/16B3748', not {shown(token)}")
        return cls(int(found[1] or 0), (int(found[2], 16) << 32) + int(found[3], 16))

    @property
    def token(self) -> str:
        """The token."""
        return f"{self.timeline}:{self.lsn >> 32:X}/{self.lsn & 0xFFFFFFFF:X}"


def end_of_record(lsn: int, page: int, segment: int) -> int:
    """Return where the last record ends, of the LSN at which the next one begins.

    The two differ by the header of a page if the next record is the first one there. A replica that has replayed
    everything stands at the end of the last record.

    Args:
        lsn: As from ``pg_current_wal_insert_lsn()``.
        page: The server's ``wal_block_size``, in bytes.
        segment: Its ``wal_segment_size``, in bytes.
    """
    if lsn % segment == _SEGMENT_HEADER:
        return lsn - _SEGMENT_HEADER
    if lsn % page == _PAGE_HEADER and lsn % segment != _PAGE_HEADER:
        return lsn - _PAGE_HEADER
    return lsn
