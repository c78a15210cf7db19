"""The statements that clean the server's side of a session, and what each of them is for.

The pool sends them all at once; the doctor tries one by one which of them a server has.
"""

from __future__ import annotations

__all__ = ["LACKING", "STEPS"]

# DISCARD ALL without DEALLOCATE ALL, and a RESET ROLE for a role that was set as the default.
# Source: "DISCARD" in the PostgreSQL manual, which says what ALL stands for.
#: Each statement, and what stays in the session where the server does not execute it.
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
#: SQLSTATEs that say that a server does not execute a statement: it is not supported, not
#: permitted, not understood, or what it names does not exist.
LACKING = {"0A000", "42501", "42601", "42704", "42883"}
