"""The pool: it knows no driver, no framework and no exporter.

The life of one resource, with the names to look for:

1.  `Pool.acquire` finds the idle stack empty and starts a `Checkout`, which
    puts a `Waiter` into the wait queue and asks the `Engine` for a plan.
2.  `Engine.reserve_locked` takes a slot: an `Entry`, owned by a `Token`.
3.  `Engine.create` calls the adapter on a worker, in the borrower's context.
4.  `Engine.make_available` hands the token to the oldest waiter, or pushes it
    onto the idle stack; the borrower gets a `Lease`.
5.  `Lease.__exit__` pushes the token back; where a reset, a limit or an error
    asks for more, `Checkin.run` does it.
6.  The next `Pool.acquire` pops it without a lock; `Liveness.is_sound` checks
    it, and a `Checkout` validates it where a round trip is needed.
7.  `Engine.serve` hands a released resource to the oldest waiter.
8.  `Maintenance.sweep`, run by the `Reaper`, finds it idle or expired.
9.  `Engine.evict` and `Engine.close_entry` close it on a worker.
10. `Engine.retire` frees the slot, and `Engine.serve` uses it for a waiter.

`Probe` makes the round trips of health checks, which never enter the wait queue.
`Adapting` steers the size while borrowers wait, where the settings ask for it.
`PoolState` and `Outage` decide and are pure, and so is the `CircuitState` of a
pool with a breaker, which the outage opens and closes; `Events` counts,
logs and notifies. `report` has metrics, holders and messages; `runtime` the background
threads, fork, exit and gevent. No module here imports one above it:
``tests/unit/test_package.py`` lists the order.
"""
