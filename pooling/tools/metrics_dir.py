"""The directory in which processes share their figures, for the commands that read it."""

from __future__ import annotations

import os

__all__ = ["VARIABLE", "existing"]

VARIABLE = "POOLING_METRICS_DIR"


def existing(given: str | os.PathLike[str] | None) -> str | None:
    """Return the directory that ``--dir`` or else the environment names; ``None`` if neither does.

    A reader creates none: it would hide a mistyped name.

    Args:
        given: The value of ``--dir``; ``None`` if it was not used.

    Raises:
        NotADirectoryError: There is no such directory.
    """
    name, path = ("argument --dir", os.fspath(given)) if given is not None else (VARIABLE, os.environ.get(VARIABLE))
    if given is None and not path:
        return None
    if not os.path.isdir(path or ""):
        raise NotADirectoryError(f"{name}: no such directory: {path!r}")
    return path
