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

from .limits import HTTPTimeout
from .pool import HTTPPool

__all__ = ["HTTPPool", "HTTPTimeout"]
