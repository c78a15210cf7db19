"""libpq's message about a malformed conninfo, without any part of the password."""

from __future__ import annotations

import re

from ..._masking import is_secret

__all__ = ["complaint_of"]


def complaint_of(conninfo: object, error: Exception, source: str = "conninfo") -> str:
    """Return libpq's message if it quotes nothing but names of parameters, else one without details.

    libpq quotes what it cannot parse, which may be a part of the password.

    Args:
        conninfo: The text that libpq refused.
        error: libpq's error.
        source: Where the text comes from: the argument's name, or the environment variable's.
    """
    text = str(error).strip()
    quoted = set(re.findall(r'"([^"]*)"', text))
    if quoted and quoted <= {"=", *_names(str(conninfo))}:
        return f"{source}: {text}"
    if str(conninfo).startswith(("postgresql://", "postgres://")):
        return f"{source} is no well-formed postgresql:// URL"
    return f"{source} is neither a postgresql:// URL nor key=value pairs, or names a parameter that libpq does not know"


def _names(conninfo: str) -> list[str]:
    """Return the names of parameters that cannot be part of a password."""
    if "://" in conninfo:
        found = re.findall(r"[?&]([^=&]*)", conninfo.rpartition("@")[2])
    else:
        found = re.findall(r"(\w+)\s*=", conninfo)
    secret = next((number for number, name in enumerate(found) if is_secret(name)), len(found))
    return found[: secret + 1]
