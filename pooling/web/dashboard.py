"""A web page that shows the pools live: one self-contained page that polls its own address for JSON.

::

    from pooling.web.dashboard import dashboard_app

    pools_page = dashboard_app(token="a-long-secret")      # mount it at /pools, say

It shows the pools of this process, or of all that share ``POOLING_METRICS_DIR``,
whichever of them answers. The same address answers with JSON if that is what
the client accepts: ``curl -H "Accept: application/json" -H "Authorization: Bearer ..."``.

A poll takes no lease and never waits for a borrower. The page loads nothing
from elsewhere and runs no script but its own, which its
``Content-Security-Policy`` names by hash.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import importlib.resources
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._fields import fields
from ._access import Access, Admit, Answer, pack

if TYPE_CHECKING:
    from ..observe.view import Viewer

__all__ = ["DashboardEndpoint", "dashboard_app"]

logger = logging.getLogger("pooling")

MAX_AGE = 0.4
"""Seconds for which a view is reused, so that many open pages cost no more than one. Internal."""

PATIENCE = 5.0
"""Seconds to wait for the first view, which another thread makes. Internal."""

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_SCRIPTS = ("dom.js", "parts.js", "sections.js", "live.js")
_WORTH_ZIPPING = 2048  # bytes
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Vary", "Accept, Accept-Encoding, Authorization"),
)


class DashboardEndpoint:
    """Answers with the page, or with what it shows as JSON if the client accepts only that.

    The page itself holds no figures. Where there is a token, every client gets
    it, because it has the form that asks for the token.

    Args:
        token: Clients that send it as ``Authorization: Bearer ...`` are admitted.
        admit: Called with the WSGI environment; returns whether to admit the client.
        viewer: Returns what makes the views; called at the first use, in each process.
            ``None`` means the pools of this process, or of all that share ``POOLING_METRICS_DIR``.
        scope: What the viewer sees: ``"process"``, ``"directory"`` or ``"attached"``;
            ``None`` means that of this process.

    Raises:
        ValueError, TypeError: An argument is invalid, or neither ``token`` nor ``admit`` is given.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        admit: Admit | None = None,
        viewer: Callable[[], Viewer] | None = None,
        scope: str | None = None,
    ) -> None:
        self._access = Access("dashboard", token, admit)
        if token is None and admit is None:
            raise ValueError(
                "token or admit must be given: the dashboard names pools and code; "
                "admit=lambda environ: True shows it to all clients"
            )
        self._asks_for_token = token is not None
        self._viewer, self._scope = viewer or _viewer_of_process, scope
        self._views: dict[int, _Views] = {}  # by process id: a forked child must not use those of its parent
        self._failing = False

    def answer(self, environ: Mapping[str, Any], admitted: bool = False) -> Answer:
        """Return status, headers and body for a request.

        Args:
            environ: The WSGI environment.
            admitted: Whether the caller has admitted the client already.
        """
        method = environ.get("REQUEST_METHOD", "GET")
        if method not in ("GET", "HEAD"):
            return pack("405 Method Not Allowed", b"", "text/plain", ("Allow", "GET, HEAD"), *_HEADERS)
        admitted = admitted or self._access.admits(environ)
        accepted = str(environ.get("HTTP_ACCEPT", ""))
        if "application/json" in accepted and "text/html" not in accepted:
            answer = self._figures(environ) if admitted else _refusal()
        elif admitted or self._asks_for_token:
            page, policy = _page()
            body = page.replace("{{admitted}}", "yes" if admitted else "no").encode()
            answer = pack("200 OK", body, "text/html; charset=utf-8", ("Content-Security-Policy", policy), *_HEADERS)
        else:
            answer = _refusal()
        return (*answer[:2], b"") if method == "HEAD" else answer

    def _figures(self, environ: Mapping[str, Any]) -> Answer:
        try:
            view = self._of_process().latest()
        except OSError:  # the shared directory, or no turn to read it
            if not self._failing:  # once, not with every poll
                self._failing = True
                extra = fields("dashboard_unreadable")
                logger.warning("the dashboard cannot read the figures", exc_info=True, extra=extra)
            reason = json.dumps({"error": "the figures cannot be read; see the log"}).encode()
            return pack("503 Service Unavailable", reason, "application/json", *_HEADERS)
        self._failing = False
        if "gzip" in str(environ.get("HTTP_ACCEPT_ENCODING", "")) and len(view) > _WORTH_ZIPPING:
            zipped = gzip.compress(view, 1)
            return pack("200 OK", zipped, "application/json", ("Content-Encoding", "gzip"), *_HEADERS)
        return pack("200 OK", view, "application/json", *_HEADERS)

    def _of_process(self) -> _Views:
        pid = os.getpid()
        found = self._views.get(pid)
        if found is None:
            # Assumes: `dict.setdefault` is atomic.
            found = self._views.setdefault(pid, _Views(self._viewer, self._scope))
        return found


class _Views:
    """The views of one process, as JSON; a thread that finds another one at work takes the last."""

    def __init__(self, viewer: Callable[[], Viewer], scope: str | None) -> None:
        self._make, self._scope = viewer, scope
        self._viewer: Viewer | None = None
        self._turn = [None]  # taken by pop and returned by append: works however gevent has patched the locks
        self._last, self._made = b"", 0.0

    def latest(self) -> bytes:
        """Return a view that is not older than `MAX_AGE`, or the last one while another thread makes the next.

        Raises:
            OSError: The figures cannot be read.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            if self._last and time.monotonic() - self._made < MAX_AGE:
                return self._last
            try:
                self._turn.pop()
            except IndexError:
                if self._last and time.monotonic() - self._made < PATIENCE:
                    return self._last
                if time.monotonic() > deadline:
                    raise TimeoutError("another thread has been reading the figures for seconds") from None
                time.sleep(0.01)
                continue
            try:
                self._last, self._made = self._render(), time.monotonic()
                return self._last
            finally:
                self._turn.append(None)

    def _render(self) -> bytes:
        from ..observe.incidents import WORDS

        if self._viewer is None:
            self._viewer = self._make()
        view = self._viewer.view()
        scope = _scope_of_process() if self._scope is None else self._scope
        shown = {**view, "words": WORDS, "scope": scope, "answered_by": os.getpid()}
        return json.dumps(shown, separators=(",", ":")).encode()


def dashboard_app(*, token: str | None = None, admit: Admit | None = None) -> WSGIApp:
    """Return a WSGI application with a page that shows the pools live.

    They are those of this process, or of all that share ``POOLING_METRICS_DIR``.
    Mount it at ``/pools``, say: it answers at any path. The page polls the same
    address once a second, and less often while it is hidden or gets no answer.

    Args:
        token: Clients that send it as ``Authorization: Bearer ...`` see the pools. The
            page has a form for it, and keeps it in the browser's tab.
        admit: Called with the WSGI environment; returns whether the client may see the pools.
            Do not decide by ``REMOTE_ADDR`` behind a reverse proxy on the same
            host: there every client has a loopback address.

    Raises:
        ValueError, TypeError: An argument is invalid, or neither ``token`` nor ``admit`` is given.
    """
    endpoint = DashboardEndpoint(token=token, admit=admit)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers, body = endpoint.answer(environ)
        start_response(status, headers)
        return [body]

    return app


def _refusal() -> Answer:
    return pack("401 Unauthorized", b"", "text/plain", ("WWW-Authenticate", 'Bearer realm="pools"'), *_HEADERS)


def _viewer_of_process() -> Viewer:
    from ..observe.view import Viewer

    return Viewer.of_process()


def _scope_of_process() -> str:
    from ..observe.shared import SharedDirectory, current

    return "directory" if isinstance(current(), SharedDirectory) else "process"


@functools.lru_cache(maxsize=1)
def _page() -> tuple[str, str]:
    """Return the page, but for whether the client is admitted, and its policy."""
    folder = importlib.resources.files(__package__) / "page"
    style = (folder / "dashboard.css").read_text("utf-8")
    script = "".join((folder / name).read_text("utf-8") for name in _SCRIPTS)
    page = (folder / "dashboard.html").read_text("utf-8").replace("{{style}}", style).replace("{{script}}", script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return page, policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
