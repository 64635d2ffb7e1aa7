"""A forked child has its parent's memory and none of its parent's other threads: what depends on those is renewed.

Locks that another thread held stay locked there for ever, and whoever waits for another thread's work waits in vain.
Objects that have threads or locks register here. Knows nothing of what they do.
"""

import os
import threading
import weakref


class ForkAware:
    """What a fork asks of an object; all of it runs on the thread that forks. Nothing, unless overridden."""

    def before_fork(self) -> None:
        """In the parent: begin nothing from here to after_fork() that a fork must not see half done."""

    def after_fork(self) -> None:
        """In the parent: go on."""

    def renew_in_child(self) -> None:
        """In the child: the other threads are gone, and the locks they held are held for good."""


_objects: "weakref.WeakSet[ForkAware]" = weakref.WeakSet()
_lock = threading.RLock()  # held through a fork: what registers meanwhile, such as a new ring, waits
_told: list[ForkAware] = []


def register(forks: ForkAware) -> None:
    """Tell this object of every fork to come, as long as it lives."""
    with _lock:
        _objects.add(forks)


def _before() -> None:
    _lock.acquire()
    for forks in list(_objects):
        _told.append(forks)
        forks.before_fork()


def _in_parent() -> None:
    while _told:
        _told.pop().after_fork()
    _lock.release()


def _in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _told.clear()
    for forks in list(_objects):
        forks.renew_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
