"""The switch for code that uses internals of drivers, libc or CPython.

Each such spot is a module of its own. It says why it is there, what it gains,
and what happens without it. The plain way is also taken, automatically, when
the installed version lacks the internal.

The environment variable ``POOLING_PLAIN``, read once at import, switches the
plain way on: ``POOLING_PLAIN=1`` everywhere, ``POOLING_PLAIN=cursors,steps`` in
these modules. It serves to find out whether such a module is at fault, and to
test that everything works without them.
"""

from __future__ import annotations

import os

__all__ = ["switched_off"]

_PLAIN = {name.strip() for name in os.environ.get("POOLING_PLAIN", "").split(",")}


def switched_off(module: str) -> bool:
    """Return whether this module is to take the plain way."""
    return "1" in _PLAIN or module in _PLAIN
