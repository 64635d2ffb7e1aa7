"""What the ring and the store of experts share: threads that read past the page cache, and a fork meanwhile."""

import threading
from collections.abc import Callable

from pyllama.machine import forked


class Readers(forked.ForkAware):
    """Whoever has threads that read into memory of its own; it counts under `_changed`, and tells of each change.

    reading  reads under way
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self.reading = 0
        self._forks = 0  # forks under way: no read may begin
        self._stopping = False

    def _begin(self, count: int, read: Callable[[], None], name: str) -> None:
        """So many threads that call `read`."""
        self._threads = [threading.Thread(target=read, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the reader threads; reads under way are finished first."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def before_fork(self) -> None:
        # A page that a direct read is on its way into must not be shared with a child: older kernels may copy it
        # for the parent and let the read end in the child's (open(2), "O_DIRECT").
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self.reading)

    def after_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()
