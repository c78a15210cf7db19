"""The pool: it knows no driver, no framework and no exporter.

The life of one resource, with the names to look for:

1.  `Pool.acquire` finds the idle stack empty: a `Checkout` puts a `Waiter` into the wait queue.
2.  `Engine.plan_locked` wants a creation; `Engine.reserve_locked` takes a slot: an `Entry`, owned by a `Token`.
3.  `Engine.create` calls the adapter on a worker, in the borrower's context.
4.  `Engine.make_available` hands the token to the oldest waiter, or pushes it onto the idle stack.
5.  The borrower gets a `Lease`; `Lease.__exit__` pushes the token back onto the idle stack.
6.  `Checkin.run` does the same where a reset, a limit or an error asks for more.
7.  `Engine.serve` hands a released resource to the oldest waiter.
8.  The next `Pool.acquire` pops it without a lock; `Liveness.is_sound` checks it, and a `Checkout` validates
    it where a round trip is needed. If the release has only sent the reset, both first wait for the answer.
9.  `Maintenance.sweep`, run by the `Reaper`, finds it idle for too long, or expired.
10. `Engine.evict` closes it on a worker by `Engine.close_entry`; `Engine.retire` frees its slot.

Decisions are pure: `PoolState` with its `IdleStack` and `WaitQueue`, `Outage`, `Suspicion`; `FastPath` is what acquire
and release read without a lock. `Events` counts, logs and notifies. Beside the life of one resource:

- `Probe` makes the round trips of health checks, which never enter the wait queue.
- `LaneState` and `LaneQueue` take the place of `PoolState` and `WaitQueue` in a pool with lanes.
- `Limits` bound the size below ``max_size``: `Adapting` sets one where the settings ask for it, a `Budget` another.
- The `CircuitState` of a pool with a breaker is pure, too; the outage opens and closes it.
- `Stalls` interrupts holders whose connections nothing passes through.
- `ManagedPool` is the interface of every pool of this package, `Adapter` that of a kind of resource.

`report` has metrics, holders and messages; `runtime` the background threads, fork, exit and gevent. No module here
imports one above it: ``tests/unit/test_package.py`` lists the order.
"""
