"""The benchmark: `pooling` beside its peers, in one run.

``python -m tests.performance`` prints a table for each question a user of a
pool would ask, with the targets of this project beside the measured values. It
never fails on time: machines are shared and noisy. It fails when a pool gives
wrong results, because a fast wrong pool is no contender.

How the figures are made comparable:

- **Interleaved.** Each round runs every contender once, for a short slice, in
  rotating order, so that a slow second of the machine hits all of them.
- **Ratios before medians.** A ratio is taken within each round and then the
  median over the rounds; dividing two medians would mix two different moments.
- **In its own idiom.** Each contender is driven the way its documentation says,
  in a loop of its own, so that no adapter of ours slows a peer.
- **Without the drivers' work.** Connections are stand-ins whose methods do
  nothing: what is left is the pool.
- **As in real life.** The garbage collector stays on and the switch interval
  is the interpreter's own.
"""
