"""How many threads to compute with: the physical cores this process may use, within its control group's quota.

Two threads on one core share its multipliers and its memory port, and gain a memory-bound loop nothing. Slow cores
beside fast ones (RK3588: four A76 and four A55) count too: work is handed out in small pieces as threads come for
it, so a slow core takes fewer and holds nobody back.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from pyllama.machine.control_groups import control_groups, read


def default_threads(cpus: set[int] | None = None, root: Path = Path("/")) -> int:
    """At least 1.

    cpus  the processors the scheduler may use; default: this process's affinity
    root  of the file system that is looked at
    """
    cpus = os.sched_getaffinity(0) if cpus is None else cpus
    cores = {_core(root / f"sys/devices/system/cpu/cpu{cpu}/topology", cpu) for cpu in cpus}
    # A quota of 2.5 processors keeps three threads busier than two.
    return max(1, min([len(cores), *map(math.ceil, _quotas(root))]))


def _core(topology: Path, cpu: int) -> tuple[str, ...]:
    """What hardware threads of one core have in common; a processor alone where the kernel does not tell."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        siblings = read(topology / name)
        if siblings:
            return (siblings,)
    return ("cpu", str(cpu))


def _quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time that each control group allows which allows some."""
    for version, folder in control_groups("cpu", root):
        if version == 1:
            fields = [read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")]
        else:
            fields = read(folder / "cpu.max").split()
        if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]):
            yield int(fields[0]) / int(fields[1])
