"""Descriptors that a forked child has inherited."""

from __future__ import annotations

import os

__all__ = ["redirect_to_null"]


def redirect_to_null(fd: int) -> None:
    """Let a descriptor refer to ``/dev/null``, for a child process that has inherited a connection.

    Drivers send a goodbye message when they close or destroy a connection. This
    keeps it, and anything else that is written to the descriptor, from the
    parent's server session. The parent's own descriptor is not affected.

    Raises:
        OSError: The process has no free descriptor.
    """
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, fd, inheritable=False)
    finally:
        os.close(null)
