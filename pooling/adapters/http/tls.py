"""One ``SSLContext`` for each ``verify`` and ``cert``, shared by all connections of a pool.

Loading the default list of trusted certificates takes about ten milliseconds
and 0.7 MB. requests and urllib3 load it for each connection.
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
    """Creates a context when it is first needed, and keeps it.

    Attributes:
        lock: Held while a thread reads files; internal.

    Assumes: getting and setting a dict's item are atomic.
    """

    def __init__(self) -> None:
        self._made: MutableMapping[_Key, ssl.SSLContext] = {}
        self.lock = threading.Lock()

    def get(self, verify: Any, cert: Any) -> ssl.SSLContext:
        """Return the context for ``verify`` and ``cert``, as in requests.

        Raises:
            OSError: A file does not exist; the message names it.
            ssl.SSLError: A file has the wrong content.
            ValueError: ``verify`` is an ``SSLContext``, and there is a ``cert``.
        """
        if is_context(verify):
            check_own(verify, cert)
            return verify  # type: ignore[no-any-return]
        bundle = _bundle(verify)
        key = (bundle, tuple(cert) if isinstance(cert, (tuple, list)) else cert)
        context = self._made.get(key)
        return context if context is not None else self._make(key, bundle, cert)

    def forget(self) -> None:
        """Read the files again when they are next needed."""
        self._made.clear()

    def _make(self, key: _Key, bundle: str | None, cert: Any) -> ssl.SSLContext:
        # One thread reads the list for all. The lock only saves work, so waiting
        # for it has a time limit: the thread that holds it may be suspended.
        locked = self.lock.acquire(timeout=1.0)
        try:
            context = self._made.get(key)
            if context is None:
                context = self._made[key] = _context(bundle, cert)
            return context
        finally:
            if locked:
                self.lock.release()


def is_context(verify: Any) -> bool:
    """Whether this is an ``SSLContext``. Duck typing, because truststore replaces the class."""
    return hasattr(verify, "wrap_socket")


def check_own(verify: Any, cert: Any) -> None:
    """Raise `ValueError` for a client certificate beside an ``SSLContext``, whose other users would send it too."""
    if cert and is_context(verify):
        raise ValueError("cert cannot be given beside an ssl.SSLContext; load it there by load_cert_chain()")


def _bundle(verify: Any) -> str | None:
    """Return the path of the trusted certificates; ``None`` means that nothing is verified."""
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
