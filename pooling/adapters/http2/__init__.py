"""HTTP/2: clients of httpx, each on a connection of its own. A map of the package, along one request:

1.  `pool.HTTP2Pool` is what users call; its ``get``, ``post``, ... acquire a client for one request.
2.  `client.ClientLease` lends an ``httpx.Client``, made for this borrower, whose transport is a `client.View`.
3.  `connection.Connection` is the pool's resource: one connection, its requests and how they are sent again.
4.  `adapter.HTTP2Adapter` checks it, and closes one that a borrower left with an unread body.

`frames` reads what the server sent while a connection was idle, with private names of httpcore (``POOLING_PLAIN``).

No stream is shared between threads: a connection is lent to one borrower at a time.
"""

from .pool import HTTP2Pool

__all__ = ["HTTP2Pool"]
