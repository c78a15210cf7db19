"""The statements that clean a session on the server, and the purpose of each.

The pool sends them all at once; the doctor tries each one separately.
"""

from __future__ import annotations

__all__ = ["LACKING", "STEPS"]

# DISCARD ALL without DEALLOCATE ALL, plus RESET ROLE for a role that was set as the default.
# Source: "DISCARD" in the PostgreSQL manual, which lists what ALL stands for.
#: Each statement, and what stays in the session if the server does not execute it.
STEPS = {
    "CLOSE ALL": "cursors WITH HOLD",
    "SET SESSION AUTHORIZATION DEFAULT": "the user of SET SESSION AUTHORIZATION",
    "RESET ROLE": "the role of SET ROLE",
    "RESET ALL": "settings (SET, set_config)",
    "UNLISTEN *": "channels of LISTEN",
    "SELECT pg_advisory_unlock_all()": "advisory locks of the session",
    "DISCARD TEMP": "temporary tables",
    "DISCARD SEQUENCES": "values of currval() and lastval()",
}
#: SQLSTATEs of a statement that the server does not execute: not supported, not permitted, a
#: syntax error, or an unknown name.
LACKING = {"0A000", "42501", "42601", "42704", "42883"}
