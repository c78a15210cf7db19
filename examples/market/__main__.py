"""``python -m examples.market``: the provider, the application under gunicorn, and load, with one command."""

from __future__ import annotations

import importlib.util
import os
import sys


def main() -> int:
    """Run the command, if what it needs is there; return its exit code."""
    missing = [name for name in ("flask", "gunicorn") if importlib.util.find_spec(name) is None]
    if os.name == "nt" or missing:
        reason = "gunicorn, which does not run on Windows" if os.name == "nt" else " and ".join(missing)
        print(f'the sample application needs {reason}: pip install -e ".[flask,top]" gunicorn', file=sys.stderr)
        return 2
    from .harness.command import main as command  # here: it imports them

    return command()


if __name__ == "__main__":
    sys.exit(main())
