"""What the ring and the store of experts share: threads that read past the page cache, and a fork meanwhile."""

import threading

from pyllama.machine import forked


class Readers(forked.ForkAware):
    """Whoever has threads that read into memory of its own; it counts under `_changed`, and tells of each change.

    _reading  reads under way
    _forks    forks under way: no read may begin
    """

    _changed: threading.Condition
    _reading: int
    _forks: int

    def before_fork(self) -> None:
        # A page that a direct read is on its way into must not be shared with a child: older kernels may copy it
        # for the parent and let the read end in the child's (open(2), "O_DIRECT").
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._reading)

    def after_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()
