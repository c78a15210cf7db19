"""`PostgresCluster`: a PostgreSQL primary and its replicas.

`pool`       `PostgresCluster` and its verbs
`group`      the servers as one pool, for a `PoolManager`
`replicas`   the replicas as a pool
`routing`    where a request goes, and the leases it gets
`standing`   which server is the primary, and which replicas can be read
`watch`      asks the servers at intervals, and when something happens
`server`     one server: its pool, and what it says of itself
`choosing`   which replica, which primary; pure
`history`    how far behind a replica is; pure
`position`   positions in the log, and tokens; pure
`addresses`  the servers, from what a user gives

Each server has a `PostgresPool` of its own, which is named after the host, and which any exporter shows.

Private: users import from `pooling`.
"""

from .pool import PostgresCluster

__all__ = ["PostgresCluster"]
