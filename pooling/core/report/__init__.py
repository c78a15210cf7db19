"""What a pool says of itself: figures, holders and the words of its messages.

`histogram`  durations in buckets
`snapshot`   the figures of one moment
`metrics`    `PoolMetrics`, which counts and takes snapshots
`holders`    the holders of resources, and where they acquired them
`messages`   counts and errors in words
"""
