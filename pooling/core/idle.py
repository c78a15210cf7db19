"""The idle stack."""

from __future__ import annotations

from collections import deque

from .entry import Token

__all__ = ["IdleStack"]


class IdleStack(deque[Token]):
    """The tokens of idle resources; the right end was used last.

    Threads push and pop at its ends without a lock: `append`, `pop` and
    `popleft` of a deque are atomic. All else is done under the pool's lock,
    and must expect that the ends change meanwhile.
    """

    def tokens(self) -> list[Token]:
        """Copy the stack.

        ``list(deque)`` raises when the deque changes under it, which happens
        without the GIL, or when the garbage collector runs a destructor in between.
        """
        while True:
            try:
                return list(self)
            except RuntimeError:
                continue

    def take(self, token: Token) -> bool:
        """Remove a token; return ``False`` if it was lent meanwhile."""
        try:
            self.remove(token)
        except ValueError:
            return False
        return True

    def put_back(self, token: Token) -> None:
        """Insert a token, ordered by the time of its last release.

        A resource that was only checked returns to its former position. On top
        it would count as used last, the stack would rotate, and no resource
        would ever reach its idle timeout.
        """
        entry = token.entry
        since = entry.idle_since
        if entry.checked <= since and (not self or self[-1].entry.idle_since <= since):
            self.append(token)  # just released or created
            return
        for position, other in enumerate(self.tokens()):
            if other.entry.idle_since >= since:
                self.insert(position, token)  # near enough if the stack changed meanwhile
                return
        self.append(token)
