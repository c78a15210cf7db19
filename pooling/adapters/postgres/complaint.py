"""What libpq says of an address that it cannot read, without a piece of the password."""

from __future__ import annotations

import re

from ..._masking import is_secret

__all__ = ["complaint_of"]


def complaint_of(conninfo: object, error: Exception, source: str = "conninfo") -> str:
    """Say in libpq's words what is wrong, if all that it quotes are names of parameters.

    It also quotes what it cannot read, which may be a piece of the password.

    Args:
        conninfo: What libpq cannot read.
        error: What it says.
        source: Where ``conninfo`` comes from: the argument, or a variable of the environment.
    """
    text = str(error).strip()
    quoted = set(re.findall(r'"([^"]*)"', text))
    if quoted and quoted <= {"=", *_names(str(conninfo))}:
        return f"{source}: {text}"
    if str(conninfo).startswith(("postgresql://", "postgres://")):
        return f"{source} is no well-formed postgresql:// URL"
    return f"{source} is neither a postgresql:// URL nor key=value pairs, or names a parameter that libpq does not know"


def _names(conninfo: str) -> list[str]:
    """Return the names of parameters that cannot be a piece of a password."""
    if "://" in conninfo:
        found = re.findall(r"[?&]([^=&]*)", conninfo.rpartition("@")[2])
    else:
        found = re.findall(r"(\w+)\s*=", conninfo)
    secret = next((number for number, name in enumerate(found) if is_secret(name)), len(found))
    return found[: secret + 1]
