"""Several servers of one service behind one `HTTPPool`. A map of the package, along one request:

1.  `policy.Balancing` has the settings, `bases` checks ``base_urls`` and ``zones``.
2.  `sessions.GroupSession` sends paths to the group: it gives them the URL of
    the first server, marked as `bases.GroupURL`.
3.  For `transport.GroupTransport`, `attempts.GroupAttempts` makes the
    attempts. For each it asks `group.Group` for a server, and reports how it ended.
4.  `model.Balancer` decides, from values only: which server is chosen, which
    one is ejected and when it returns; whether a retry is within the budget.
5.  `hedging` sends it to a second server if the first one does not begin to
    answer, and waits for both.

Sockets, limits, circuits and metrics are those of each server's host, as of
every host of an `HTTPPool`. `resolving` looks up the addresses of names.
"""
