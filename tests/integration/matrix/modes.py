"""The servers, in all their modes."""

from __future__ import annotations

import signal

from .server import Mode

__all__ = ["APPS", "MODES", "PAIRWISE", "PREFORK", "cells"]

APPS = ("django", "flask", "wsgi")
WORKERS = 2


def _gunicorn(kind: str, preload: bool, patched: bool = False) -> Mode:
    options = {"gthread": ["--threads", "4"], "gevent": ["--worker-connections", "20"]}.get(kind, [])
    return Mode(
        f"gunicorn {kind}{' --preload' if preload else ''}{', patched' if patched else ''}",
        [
            "gunicorn", "{app}:application", "--bind", "127.0.0.1:{port}", "--workers", str(WORKERS),
            "--worker-class", kind, *options, *(["--preload"] if preload else []),
            *(["--config", "python:tests.integration.matrix.patched"] if patched else []),
            "--timeout", "{timeout}", "--graceful-timeout", "{timeout}", "--max-requests", "150",
            "--max-requests-jitter", "50", "--error-logfile", "{log}", "--log-level", "warning",
            "--no-control-socket",
        ],
        workers=WORKERS,
        parent=preload,
        kills=kind == "sync",
        last_words=("SystemExit: 1",),
    )  # fmt: skip


def _uwsgi(lazy: bool, threads: bool) -> Mode:
    name = f"uWSGI {'--lazy-apps' if lazy else 'forking'}{', 4 threads' if threads else ''}"
    return Mode(
        name,
        [
            "uwsgi", "--http-socket", "127.0.0.1:{port}", "--module", "{app}:application", "--master", "--need-app",
            "--processes", str(WORKERS), *(["--lazy-apps"] if lazy else []),
            *(["--threads", "4", "--enable-threads"] if threads else []), "--harakiri", "{timeout}",
            "--max-requests", "150", "--max-requests-delta", "50", "--min-worker-lifetime", "1",
            "--worker-reload-mercy", "{timeout}",
            "--die-on-term", "--disable-logging", "--logger", "file:{log}", "--listen", "100", "--buffer-size", "8192",
        ],
        workers=WORKERS,
        parent=not lazy,
        kills=True,
        noise=("[uWSGI]", "*** Starting uWSGI", "compiled with", "os: ", "nodename", "machine", "clock source",
               "pcre", "detected", "current working", "your ", "uWSGI running as root", "***", "uwsgi socket"),
    )  # fmt: skip


MODES = {
    mode.name: mode
    for mode in [
        *(_gunicorn(kind, preload) for kind in ("sync", "gthread", "gevent") for preload in (False, True)),
        _gunicorn("gevent", True, patched=True),
        *(_uwsgi(lazy, threads) for lazy in (False, True) for threads in (False, True)),
        Mode(
            "waitress",
            ["waitress", "--listen", "127.0.0.1:{port}", "--threads", "6", "{app}:application"],
            ends=signal.SIGINT,
            noise=("INFO:waitress", "WARNING:waitress.queue"),
        ),
        Mode(
            "flask run",
            ["flask", "--app", "{app}", "run", "--port", "{port}"],
            ends=signal.SIGINT,
            noise=("WARNING: This is a dev", " * ", "Press CTRL+C", "127.0.0.1 - - ", "\x1b"),
        ),
        Mode(
            "runserver",
            ["django", "runserver", "--noreload", "--settings", "{settings}", "127.0.0.1:{port}"],
            ends=signal.SIGINT,
            noise=("[", "WARNING: This is a dev", "Broken pipe"),
        ),
    ]
}
"""By their names."""

PREFORK = ("multiprocessing", "billiard", "ProcessPoolExecutor")
"""Forked workers without a server, see `prefork`."""

ONLY = {
    "flask run": ("flask",),
    "runserver": ("django",),
    "gunicorn gevent --preload": ("flask", "wsgi"),  # Django itself does not work there: see `patched`
}
"""Modes that are not for every framework."""

# Each server, each of its modes and each application at least once; the rest runs only in the full matrix.
PAIRWISE = [
    ("gunicorn sync", "flask"),
    ("gunicorn sync --preload", "django"),
    ("gunicorn gthread --preload", "wsgi"),
    ("gunicorn gthread", "django"),
    ("gunicorn gevent --preload", "flask"),
    ("gunicorn gevent --preload, patched", "django"),
    ("gunicorn gevent", "django"),
    ("uWSGI forking, 4 threads", "django"),
    ("uWSGI forking", "flask"),
    ("uWSGI --lazy-apps", "django"),
    ("uWSGI --lazy-apps, 4 threads", "wsgi"),
    ("waitress", "django"),
    ("flask run", "flask"),
    ("runserver", "django"),
]


def cells() -> list[tuple[str, str]]:
    """Return the full matrix: names of modes and of applications."""
    return [(name, app) for name in MODES for app in ONLY.get(name, APPS)]
