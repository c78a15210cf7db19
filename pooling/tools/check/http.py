"""The checks of HTTP services: GET requests to one URL, some 30 of them."""

from __future__ import annotations

import ssl
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import requests

from ..._console import duration
from ...adapters.http import HTTPPool, HTTPTimeout
from ...errors import PoolTimeout
from .general import general_checks
from .outcome import Failed, Skipped
from .resource import TIMEOUT, Check, Target

__all__ = ["HTTP"]

_REQUESTS = 8  # for keep-alive, and by threads
_SIZE = 2
_SHORT = 0.3  # seconds of a wait that is to time out
_TINY = 0.0001  # seconds in which no server answers
_LATE = 5.0  # seconds that it may take longer on a busy machine


class HTTP(Target):
    """A service, by the URL of a page that may be requested with GET."""

    kind = "HTTP"

    def pool(self, **settings: Any) -> HTTPPool:
        timeout = settings.pop("timeout", HTTPTimeout(connect=TIMEOUT, read=TIMEOUT, total=2 * TIMEOUT))
        return HTTPPool(timeout=timeout, name="check", **{"min_size": 0, "acquire_timeout": TIMEOUT, **settings})

    def ping(self, resource: Any) -> None:
        resource.get(self.address)

    def checks(self) -> list[Check]:
        general = general_checks(self)
        return [
            Check("connect", 0.5, self._connect), Check("keep-alive", 0.5, self._keep_alive),
            Check("acquire", 0.5, self._acquire), Check("timeout", _SHORT, self._exhausted),
            Check("slow answer", 0.1, self._slow), Check("TLS", 0.2, self._tls), general["fork"],
            Check("close", 0.2, self._close),
        ]  # fmt: skip

    def _connect(self) -> str:
        with self.pool() as http:
            began = time.perf_counter()
            response = http.get(self.address)
            took = time.perf_counter() - began
        text = f"status {response.status_code}, {len(response.content):,} bytes after {duration(took)}"
        if response.status_code >= 500:
            raise Failed(text)
        return text + ("" if self.address.lower().startswith("https") else ", not encrypted")

    def _keep_alive(self) -> str:
        with self.pool() as http:
            for _ in range(_REQUESTS):
                http.get(self.address, allow_redirects=False)
            opened = sum(host.opened for host in http.metrics.hosts())
        if opened > 1:
            raise Skipped(f"{_REQUESTS} requests needed {opened} sockets: the server closes them after an answer")
        return f"{_REQUESTS} requests over one socket"

    def _acquire(self) -> str:
        failures: list[Exception] = []

        def fetch(http: HTTPPool) -> None:
            try:
                http.get(self.address, allow_redirects=False)
            except Exception as error:
                failures.append(error)

        with self.pool(max_size=_SIZE, max_per_host=_SIZE) as http:
            threads = [threading.Thread(target=fetch, args=(http,), daemon=True) for _ in range(_REQUESTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            most = http.metrics.snapshot().peak_in_use
        if failures:
            raise failures[0]
        if most > _SIZE:
            raise Failed(f"{most} requests at once, although max_size is {_SIZE}")
        return f"{_REQUESTS} requests by {_REQUESTS} threads, at most {most} of {_SIZE} at once"

    def _exhausted(self) -> str:
        with self.pool(max_size=1, max_per_host=1) as http:
            with http.get(self.address, stream=True, allow_redirects=False) as held:
                if not http.stats()["in_use"]:
                    raise Skipped("not tried: the answer has no body that could be held")
                began = time.perf_counter()
                try:
                    http.get(self.address, timeout=HTTPTimeout(pool=_SHORT, total=TIMEOUT)).close()
                except PoolTimeout:
                    took = time.perf_counter() - began
                else:
                    raise Failed("a second request was sent, although max_size is 1")
                held.close()
            http.get(self.address, allow_redirects=False)
        if took > _SHORT + _LATE:
            raise Failed(f"it took {duration(took)} to give up after {_SHORT:g} s")
        return f"PoolTimeout after {duration(took)} while an answer was not read to its end; then it works again"

    def _slow(self) -> str:
        with self.pool(timeout=HTTPTimeout(total=_TINY)) as http:
            began = time.perf_counter()
            try:
                http.get(self.address)
            except (requests.Timeout, requests.ConnectionError):
                took = time.perf_counter() - began
            else:
                raise Skipped(f"the server answers within {duration(_TINY)}")
        if took > _LATE:
            raise Failed(f"it took {duration(took)} to give up after {duration(_TINY)}")
        return f"a request with a total timeout of {duration(_TINY)} gave up after {duration(took)}"

    def _tls(self) -> str:
        if urlsplit(self.address).scheme.lower() != "https":
            raise Skipped("the address is http")
        nothing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it trusts no authority
        with self.pool(ssl_context=nothing) as http:
            try:
                http.get(self.address)
            except requests.exceptions.SSLError:
                pass
            else:
                raise Failed("a certificate was accepted although no authority is trusted")
        return "the certificate is verified: it is accepted, and refused where its authority is not trusted"

    def _close(self) -> str:
        http = self.pool(max_size=_SIZE)
        http.get(self.address, allow_redirects=False)
        http.close(TIMEOUT)
        left = http.stats()
        if left["in_use"] or left["idle"]:
            raise Failed(f"{left['in_use']} requests and {left['idle']} sockets are left")
        return "no socket is left"
