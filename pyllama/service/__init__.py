"""A server that systemd looks after: the unit, what it tells the service manager, and what a board must allow it.

Knows nothing of models beyond their files, and of HTTP only the server's hooks.
"""
