"""Shared by all pools of a process: background threads, the list of pools, fork and exit.

`workers`   the threads for slow work: create, validate, reset, close
`reaper`    the thread for scheduled work
`poolref`   weak references to pools, and the protocol `Sweepable`
`registry`  `Runtime`, which holds workers and reaper, and the list of live pools
`fork`      a child process finds its pools empty (P9)
`shutdown`  idle resources are closed when the process exits (P10)
`immortal`  inherited objects that must never be destroyed
`parking`   CPython's list of parked threads, cleared after a fork in C
`gevent`    the threading primitives, which gevent may replace at any time
"""
