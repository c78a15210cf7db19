"""Pools of other clients: each file says what to create, check, reset and close, and sends threads to one server."""
