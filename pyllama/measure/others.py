"""Cores that other processes, and other virtual machines, kept busy while this one measured."""

import os
import time
from collections.abc import Sequence

from pyllama.measure.tree import Tree

QUIET = 0.1  # with one thread a core, more than this stalls the rest


class Others:
    """Call share() after each child has been waited for: a child's time counts as ours only then.

    running: process ids of children that go on running; what they have used counts as ours at once.
    """

    def __init__(self, tree: Tree | None = None, *, running: Sequence[int] = ()) -> None:
        self._tree = tree or Tree()
        self._running = running
        self._last = self._sample()

    def _sample(self) -> tuple[float, float, float]:
        """Seconds: wall clock, busy in all, busy for us."""
        fields = [int(field) for field in self._tree.read("proc/stat").split("\n")[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, stolen = (*fields, *[0] * (8 - len(fields)))
        ticks = os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:4]) + sum(map(self._used, self._running)) / ticks
        return time.monotonic(), (user + nice + system + irq + softirq + stolen) / ticks, own

    def _used(self, pid: int) -> int:
        """Ticks of user and system time of a process: /proc/PID/stat, after the name, which may hold spaces."""
        fields = self._tree.read(f"proc/{pid}/stat").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12]) if len(fields) > 12 else 0

    def share(self) -> float:
        """Busy cores that were not ours since the last call: 0 on a quiet machine."""
        before, self._last = self._last, self._sample()
        wall, busy, own = (new - old for new, old in zip(self._last, before, strict=True))
        return max(0.0, busy - own) / wall if wall > 0 else 0.0
