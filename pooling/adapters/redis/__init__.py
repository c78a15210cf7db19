"""`RedisPool`, and a map of its parts:

`pool`        the pool that users and redis-py's clients call
`sentinel`    a pool for the master, or the replicas, that sentinels name
`shared`      one pool for all threads, for programs that make one in each
`adapter`     how connections are created, checked, cleaned and closed
`lease`       what a borrower holds; where nothing was left behind, the release is short
`connection`  the connections that are lent; they note what a borrower sends
`marks`       which commands leave a session in a state of its own
`packing`     the usual commands as bytes
`replies`     the usual replies from bytes
`holder`      the application's code that uses a connection
`client`      a client on a connection of one's own
`arguments`   redis-py's arguments and ours, and what is refused
`errors`      the pool's errors, which are also redis-py's
"""

from .adapter import RedisAdapter
from .pool import RedisPool
from .sentinel import RedisSentinelPool
from .shared import SharedRedisPool

__all__ = ["RedisAdapter", "RedisPool", "RedisSentinelPool", "SharedRedisPool"]
