"""What was measured on: CPU, memory, system, versions; and who else was using it meanwhile."""
from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from pyllama.bench import machine
from pyllama.bench.tree import Tree


def describe() -> dict:
    """What `pyllama bench` tells of a machine, and the commit. No host name, user or path: results are published."""
    return machine.describe() | {"commit": commit()}


def commit() -> str:
    """Of the tree this script lies in, with a + if the package there was changed since."""
    def git(*arguments: str) -> str:
        try:
            command = ["git", "-C", Path(__file__).resolve().parent.parent, *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    changed = git("status", "--porcelain", "--", "pyllama")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


class Others:
    """Cores other processes and other virtual machines kept busy while this one measured.

    Call share() after each child has been waited for: a child's time counts as ours only then.
    """

    def __init__(self) -> None:
        self.last = self.sample()

    @staticmethod
    def sample() -> tuple[float, float, float]:
        fields = [int(field) for field in Tree().read("proc/stat").split("\n")[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, stolen = fields
        ticks = os.sysconf("SC_CLK_TCK")
        return time.monotonic(), (user + nice + system + irq + softirq + stolen) / ticks, sum(os.times()[:4])

    def share(self) -> float:
        """Busy cores that were not ours since the last call: 0 on a quiet machine."""
        before, self.last = self.last, self.sample()
        wall, busy, own = (new - old for new, old in zip(self.last, before, strict=True))
        return max(0.0, busy - own) / wall
