"""HTTP: sessions of requests that share a pool of sockets. A map of the package, along one request:

1.  `pool.HTTPPool` is what users call; `verbs` has ``get``, ``post``, ...
2.  `sessions.Sessions` makes a ``requests.Session``; `sessions.View` makes it
    unusable after its lease. `limits.Limits` has the time limits of a request.
3.  `transport.Transport` is the adapter that the session mounts. It makes the
    attempts and retries; `unpooled.Unpooled` replaces it where pooling is off.
4.  `connections.Connections` waits for a connection to the host (`hosts`) and
    for one of the request slots (`slots`). `calls` first reads what this
    thread has not read yet.
5.  `hold.Hold` keeps both until the body is read or closed; `logins` detects
    connections that are authenticated, and so must not be reused.
6.  `template.Template` is urllib3's connection pool for one attempt.
7.  `wire.Wire` is urllib3's connection: bytes, and their deadline.

Each host is a `Pool` of sockets, and the slots are another one. An `HTTPPool`
has all of them, but is not a `Pool` itself.

`preparing` and `sending` do what requests does with most requests and answers,
in less time; `environment` reads the variables that it reads.

The other modules: `warming` opens sockets ahead of need, `health` probes a
URL, `metrics` and `listeners` report, `tls` shares TLS contexts, `bodies` reads
or cuts off bodies, `errors` and `arguments` have the errors and the checks of
arguments. `client` is the pool of the process.
"""

import re

import urllib3

_version: str = vars(urllib3)["__version__"]
if re.fullmatch(r"\d+\.\d+\.9\d\d", _version):  # so end its versions; a request would fail somewhere inside
    raise ImportError(
        f"HTTPPool needs urllib3, which urllib3-future {_version} has replaced in this environment; another package, "
        "such as niquests, requires it. Use an environment of its own for that package, or remove it: "
        "pip uninstall urllib3-future, then pip install --force-reinstall urllib3"
    )

from .limits import HTTPTimeout  # noqa: E402
from .pool import HTTPPool  # noqa: E402

__all__ = ["HTTPPool", "HTTPTimeout"]
