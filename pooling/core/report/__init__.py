"""What a pool says of itself: figures, holders and the words of its messages.

`histogram`  durations in buckets
`snapshot`   the figures of one moment
`metrics`    `PoolMetrics`, which counts and takes snapshots
`holders`    who holds a resource, and where it was acquired
`messages`   counts and errors in words
"""
