"""Adaptive size: how many resources a server is best used with. Pure: values in, a decision out.

`window`      `Sample` and `Windows`: figures of a pool while borrowers wait, in windows of 10 s
`controller`  `Controller`: the next size, and why

No thread, clock, lock or I/O is here, so that simulations and tests run the same code as the pool.
`pooling.core.adapting` takes the samples in the pool's sweep and sets the size. Nothing is imported unless a pool
has ``adaptive="observe"`` or ``"on"``.
"""
