"""HTTP: sessions of requests' own on warm sockets that all of them share.

Follow one request: `pool` (what users call) → `sessions` (what they are lent)
→ `transport` (where requests meets us; retries) → `hold` (the request's place
and connection) → `template` (urllib3, one attempt) → `wire` (bytes, the
deadline). `hosts` has the sockets, `places` counts what is under way, `client`
is the process's own pool; `unpooled` is in `transport`'s place where pooling is off.
"""

from .limits import HTTPTimeout
from .pool import HTTPPool

__all__ = ["HTTPPool", "HTTPTimeout"]
