"""Reads the usual replies at a third of the cost of redis-py's parsers in Python: one text, one number, or nothing.

They parse all other replies, and any that has not come whole. hiredis's parser is left alone: it is faster still.

Assumes: these parsers keep what they have received and not parsed yet in ``_buffer._buffer``, a ``BytesIO``.
"""

from __future__ import annotations

from typing import Any

from redis._parsers.resp2 import _RESP2Parser
from redis._parsers.resp3 import _RESP3Parser

__all__ = ["read_reply"]

_PARSERS = (_RESP2Parser, _RESP3Parser)
_TEXT, _STATUS, _NUMBER, _NULL = b"$+:_"


def read_reply(parser: Any) -> Any:
    """Return the next reply, as the parser's ``read_response`` does.

    Raises:
        OSError: As from the socket.
        redis.RedisError: As from the parser.
    """
    buffer = parser._buffer if type(parser) in _PARSERS else None
    if buffer is None or buffer._buffer.getvalue():
        return parser.read_response()
    data: bytes = buffer._sock.recv(buffer.socket_read_size)
    end = data.find(b"\r\n")
    if end > 0:
        kind, text = data[0], None
        if end < len(data) - 2:
            if kind == _TEXT and len(data) == end + 4 + int(data[1:end]):
                text = data[end + 2 : -2]
        elif kind == _STATUS:
            text = data[1:end]
        elif kind == _NUMBER:
            return int(data[1:end])
        elif kind == _NULL or data == b"$-1\r\n":
            return None
        if text is not None:
            encoder = parser.encoder
            return text.decode(encoder.encoding, encoder.encoding_errors) if encoder.decode_responses else text
    buffer._buffer.write(data)
    buffer._buffer.seek(0)
    return parser.read_response()
