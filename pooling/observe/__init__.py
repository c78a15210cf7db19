"""Observation: figures of pools for people and for monitoring systems. Nothing here is imported unless it is used.

`figures`     the figures of this process's pools, with counters that never decrease
`local`       the figures of one process
`slotfile`    a file with one record, which is safe against ``kill -9`` and readers in the middle of a write
`shared`      the directory ``POOLING_METRICS_DIR``: the figures of all processes of one application
`prometheus`  a collector for prometheus_client, for one process or all
"""
