"""Which clients see the details of a page, and how a page is answered."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Any

from .._masking import shown

__all__ = ["Access", "Admit", "Answer", "pack"]

Answer = tuple[str, list[tuple[str, str]], bytes]
Admit = Callable[[Mapping[str, Any]], object]


class Access:
    """Admits clients by a token or by a function.

    Args:
        what: The page, for error messages.
        token: Clients that send it as ``Authorization: Bearer ...`` are admitted.
        admit: Called with the WSGI environment; returns whether to admit the client.

    Raises:
        ValueError, TypeError: The token is empty or not a string, or ``admit``
            is not callable.
    """

    def __init__(self, what: str, token: str | None, admit: Admit | None) -> None:
        if token is not None and not isinstance(token, str):
            raise TypeError(f"{what} token must be a string, not {type(token).__name__}")
        if token is not None and not token:
            raise ValueError(f"{what} token must not be empty")
        if admit is not None and not callable(admit):
            raise TypeError(f"{what} admit must be callable, not {shown(admit)}")
        self._token = None if token is None else token.encode()
        self._admit = admit

    def admits(self, environ: Mapping[str, Any]) -> bool:
        """Whether the client of a request is admitted."""
        scheme, _, given = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        sent = given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        if self._token is not None and hmac.compare_digest(sent, self._token):
            return True
        return self._admit is not None and bool(self._admit(environ))


def pack(status: str, body: bytes, kind: str, *more: tuple[str, str]) -> Answer:
    """Return an answer with its headers, which no cache keeps."""
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    return status, [*headers, *more], body
