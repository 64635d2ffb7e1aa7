"""What was measured on: CPU, memory, system, versions; and who else was using it meanwhile."""
from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

import numpy as np

import pyllama
from pyllama import _kernels


def read(path: str) -> str:
    try:
        return Path(path).read_text().strip("\0\n ")
    except OSError:
        return ""


def describe() -> dict:
    """No host name, user or path: results are published."""
    cpuinfo = read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", read("/proc/meminfo"), re.M)
    return {
        "board": read("/proc/device-tree/model"),
        "cpu": model[1] if model else platform.machine(),
        "virtual": "hypervisor" in cpuinfo,
        "cores": len(os.sched_getaffinity(0)),
        "last_level_cache": read("/sys/devices/system/cpu/cpu0/cache/index3/size")
                            or read("/sys/devices/system/cpu/cpu0/cache/index2/size"),
        "memory_gb": round(int(memory[1]) * 1024 / 1e9, 1) if memory else None,
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyllama": pyllama.__version__,
        "commit": commit(),
        "isa": _kernels.isa(),
        "openmp": bool(_kernels.openmp()),
    }


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
        fields = [int(field) for field in read("/proc/stat").split("\n")[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, stolen = fields
        ticks = os.sysconf("SC_CLK_TCK")
        return time.monotonic(), (user + nice + system + irq + softirq + stolen) / ticks, sum(os.times()[:4])

    def share(self) -> float:
        """Busy cores that were not ours since the last call: 0 on a quiet machine."""
        before, self.last = self.last, self.sample()
        wall, busy, own = (new - old for new, old in zip(self.last, before, strict=True))
        return max(0.0, busy - own) / wall
