"""What an `HTTPPool` may be told, checked."""

from __future__ import annotations

import os
import ssl
from typing import Any

from urllib3.util import Retry

from .tls import check_own, is_context

__all__ = ["checked_number", "checked_url", "checked_verify", "retries"]


def retries(retry: Retry | int | None) -> Retry:
    if isinstance(retry, Retry):
        return retry
    if not retry:
        return Retry(0, read=False)  # as in requests
    return Retry(
        checked_number("retry", retry), backoff_factor=0.1, backoff_max=10, backoff_jitter=0.1,
        status_forcelist=(429, 502, 503, 504), raise_on_status=False,
    )  # fmt: skip


def checked_number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    return value


def checked_url(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {value!r}")
    if not value.startswith(("http://", "https://")):
        raise ValueError(f"{name} must begin with http:// or https://, not be {value!r}")
    return value


def checked_verify(verify: Any, context: Any, cert: Any) -> bool | str | ssl.SSLContext:
    """Return whom to trust, by ``verify`` or by ``ssl_context``."""
    if context is not None:
        if not is_context(context):
            raise TypeError(f"ssl_context must be an ssl.SSLContext, not of {type(context).__name__}")
        if verify is not True:
            raise ValueError("verify and ssl_context say the same thing: give one of them")
        verify = context
    check_own(verify, cert)
    if isinstance(verify, bool) or is_context(verify):
        return verify  # type: ignore[no-any-return]
    if not isinstance(verify, (str, os.PathLike)):
        raise TypeError(f"verify must be a bool, a path or an ssl.SSLContext, not of {type(verify).__name__}")
    return str(verify)
