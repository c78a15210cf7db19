"""A connection budget for all processes of an application, on all hosts.

- `budget`: `FleetBudget`, what a user makes and gives to pools.
- `model`: who may have how many connections. Pure; every store decides by it.
- `membership`: this process's part: measures what its pools need, renews its
  share, and sets their limits. It runs on the reaper and the workers.
- `stores`: what a store is. `local`, `postgres`, `redis`: the stores. `kinds`:
  which of them a text means.

The protocol. A process is a *member*. It renews every 5 s, sooner if it lacks
connections, with one request: what it *needs* (in use and waiting), what it
would *like* to keep open, and what it *holds*: the most connections that it may
have from now on. The store answers with the new *share*.

- Shrink first. A smaller share is a limit at once, but the store goes on counting
  what the member holds until the member reports that the surplus is closed.
- Grow from what is free. The store adds a grant to what the member holds before
  it answers, and only if the sum of all that is held stays within the total.
- Leases. A share ends `TTL` after the request. The member counts from before it
  sent the request, the store from when it received it, so the member's lease ends
  first. Without an answer a member keeps no more than its floor from `MARGIN`
  before that end. The store forgets a member whose lease has ended.
- Floors. With ``max_members`` the store keeps a floor for each member that it
  does not know, so every process may use its floor unasked. Without it, a floor
  is granted from what is free, and a member that is cut off keeps it.
- Order. Requests are numbered. A late one changes nothing.
- Restart. A store that has lost its memory, or was away, grants nothing above
  the floor for one `TTL`, until each member has said what it holds.
- A member that exits reports that it holds nothing.

Not promised: a process that is frozen, or that lends a connection for longer
than `MARGIN` while it is cut off, keeps it after its lease. Only the server can
refuse more then: ``ALTER ROLE ... CONNECTION LIMIT``.
"""

from .budget import FleetBudget

__all__ = ["FleetBudget"]

FleetBudget.__module__ = "pooling"  # where users import it from
