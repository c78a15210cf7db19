"""One ``SSLContext`` for each way to trust, shared by all connections of a pool.

Reading the usual list of trusted certificates takes some ten milliseconds and
0.7 MB, and requests and urllib3 do so for each connection.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import MutableMapping
from typing import Any

import requests
from urllib3.util.ssl_ import create_urllib3_context

__all__ = ["Cert", "TLSContexts", "Verify", "check_own", "is_context"]

Verify = bool | str | os.PathLike[str] | ssl.SSLContext
Cert = str | tuple[str, str] | None
_Key = tuple[Any, ...]


class TLSContexts:
    """Makes a context when it is needed first, and keeps it.

    Assumes: getting and setting a dict's item are atomic.
    """

    def __init__(self) -> None:
        self._made: MutableMapping[_Key, ssl.SSLContext] = {}
        self._lock = threading.Lock()

    def get(self, verify: Any, cert: Any) -> ssl.SSLContext:
        """Return the context for what requests calls ``verify`` and ``cert``.

        Raises:
            OSError: A file is not there; the message names it.
            ssl.SSLError: A file is not what it should be.
            ValueError: There is a ``cert`` beside a context of the program's own.
        """
        if is_context(verify):
            check_own(verify, cert)
            return verify  # type: ignore[no-any-return]
        bundle = _bundle(verify)
        key = (bundle, tuple(cert) if isinstance(cert, (tuple, list)) else cert)
        context = self._made.get(key)
        return context if context is not None else self._make(key, bundle, cert)

    def forget(self) -> None:
        """Read the files anew when they are needed next."""
        self._made.clear()

    def _make(self, key: _Key, bundle: str | None, cert: Any) -> ssl.SSLContext:
        # One thread reads the list for all. The lock only saves work, so it has
        # a time limit: whoever holds it may be stopped for long.
        locked = self._lock.acquire(timeout=1.0)
        try:
            context = self._made.get(key)
            if context is None:
                context = self._made[key] = _context(bundle, cert)
            return context
        finally:
            if locked:
                self._lock.release()


def is_context(verify: Any) -> bool:
    """Whether this is an ``SSLContext``; by what it does: truststore replaces the class."""
    return hasattr(verify, "wrap_socket")


def check_own(verify: Any, cert: Any) -> None:
    """Refuse a client certificate beside an ``SSLContext``: whoever else uses the context would send it."""
    if cert and is_context(verify):
        raise ValueError("cert cannot be given beside an ssl.SSLContext; load it there by load_cert_chain()")


def _bundle(verify: Any) -> str | None:
    """Return where the trusted certificates are; ``None`` means that anybody is trusted."""
    if verify is False:
        return None
    if verify is True or verify is None:
        return requests.utils.DEFAULT_CA_BUNDLE_PATH
    return str(os.fspath(verify))


def _context(bundle: str | None, cert: Any) -> ssl.SSLContext:
    context = create_urllib3_context(
        cert_reqs=ssl.CERT_NONE if bundle is None else ssl.CERT_REQUIRED
    )
    if bundle is not None and os.path.isdir(bundle):
        context.load_verify_locations(capath=bundle)
    elif bundle is not None:
        if not os.path.exists(bundle):  # OpenSSL would not say which file
            raise OSError(f"no such file or folder of trusted certificates: {bundle}")
        context.load_verify_locations(cafile=bundle)
    for part in [cert] if isinstance(cert, str) else cert or ():
        if part and not os.path.exists(part):
            raise OSError(f"no such file of a client certificate or its key: {part}")
    if cert:
        context.load_cert_chain(*([cert] if isinstance(cert, str) else cert))
    return context
