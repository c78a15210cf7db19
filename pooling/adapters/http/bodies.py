"""Bodies of answers: whether one is unread, reading it ahead, and cutting it off."""

from __future__ import annotations

from typing import Any, NoReturn

import requests

__all__ = ["cut_off", "is_unread", "read_ahead"]

_SMALL = 65536  # maximum bytes of an error's body that is read ahead although it is streamed


def is_unread(response: requests.Response | None) -> bool:
    """Whether there is a response, and its body was neither read nor iterated to its end."""
    return response is not None and not response._content_consumed  # type: ignore[attr-defined]


def cut_off(response: requests.Response, error: Exception) -> None:
    """Close a response; if its body was not read to the end, reading on raises ``error``.

    Without this, requests and urllib3 would end the iteration as if the body were complete.
    """
    raw: Any = response.raw
    if getattr(raw, "_connection", None) is None:  # the body was read, or the response was closed
        response.close()
        return
    raw.auto_close = False  # so that `closed` is true from here on, whatever `_fp` says
    response.close()
    raw._fp = _CutOff(error)


class _CutOff:
    """Replaces what urllib3 reads a body from: reading on raises the error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def isclosed(self) -> bool:
        return False

    def close(self) -> None:
        """Do nothing: the response is closed already."""

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error.with_traceback(None)


def read_ahead(response: requests.Response | None, stream: bool) -> None:
    """Read a body into memory, which frees its connection, if requests would do so later anyway.

    Of a streamed answer, only the small body of an error is read.
    """
    if response is None or not is_unread(response) or getattr(response.raw, "_connection", None) is None:
        return
    if stream:
        length = response.headers.get("Content-Length", "")
        if response.status_code < 400 or not length.isdecimal() or int(length) > _SMALL:
            return
    try:
        response.content  # noqa: B018
    except requests.RequestException as error:
        cut_off(response, error)  # raised where the body is read
