"""What is measured on: board, processor, memory, system, versions. No host name, user or path: reports are posted."""

import os
import platform
import re
from collections import Counter
from typing import Any

from pyllama.measure.tree import Tree

ARM = 0x41
#: Arm's own cores by part number (MIDR_EL1); what boards use.
PARTS = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55",
    0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78",
    0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710",
    0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4B: "Cortex-A78C",
    0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
    0xD87: "Cortex-A725",
}  # fmt: skip


def describe(tree: Tree | None = None) -> dict[str, Any]:
    """board, cpu, cores, caches, memory, governor, system and versions; "" or None where nobody tells."""
    import numpy as np

    from pyllama import _kernels
    from pyllama.version import __version__

    tree = tree or Tree()
    cpuinfo = tree.read("proc/cpuinfo")
    memory = re.search(r"^MemTotal:\s*(\d+) kB", tree.read("proc/meminfo"), re.MULTILINE)
    return {
        "board": board(tree),
        "cpu": cpu(tree),
        "virtual": "hypervisor" in cpuinfo,
        "cores": len(os.sched_getaffinity(0)),
        "last_level_cache": last_level_cache(tree),
        "memory_gb": round(int(memory[1]) * 1024 / 1e9, 1) if memory else None,
        "governor": ", ".join(sorted(set(governors(tree).values()))),
        "huge_pages": chosen(tree.read("sys/kernel/mm/transparent_hugepage/enabled")),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyllama": __version__,
        "isa": _kernels.isa(),
        "openmp": bool(_kernels.openmp()),
    }


def board(tree: Tree) -> str:
    """The device tree's name for it, as "Raspberry Pi 5 Model B Rev 1.0"; "" on a PC."""
    return tree.read("proc/device-tree/model") or tree.read("sys/firmware/devicetree/base/model")


def cpu(tree: Tree) -> str:
    """ "4 x Cortex-A76 + 4 x Cortex-A55", or what a PC's processor calls itself."""
    cpuinfo = tree.read("proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    implementers, parts = (
        re.findall(rf"^CPU {field}\s*:\s*(0x[0-9a-fA-F]+)", cpuinfo, re.MULTILINE) for field in ("implementer", "part")
    )
    if not parts or len(parts) != len(implementers):
        return name[1].strip() if name else platform.machine()
    counts = Counter(map(_core, implementers, parts))
    # The faster cores have the larger numbers within a family: first.
    return " + ".join(f"{count} x {core}" for core, count in sorted(counts.items(), key=_size, reverse=True))


def _core(implementer: str, part: str) -> str:
    known = PARTS if int(implementer, 16) == ARM else {}
    return known.get(int(part, 16), f"core {implementer}/{part}")


def _size(item: tuple[str, int]) -> int:
    digits = re.sub(r"\D", "", item[0].split("/")[0])
    return int(digits) if digits else 0


def governors(tree: Tree) -> dict[str, str]:
    """Policy -> its scaling governor; a policy per cluster of cores. Empty where frequencies do not scale."""
    found = {}
    for path in tree.glob("sys/devices/system/cpu/cpufreq/policy*"):
        governor = tree.read(path / "scaling_governor")
        if governor:
            found[path.name] = governor
    if not found and (governor := tree.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")):
        found["cpu0"] = governor
    return found


def last_level_cache(tree: Tree) -> int | None:
    """Bytes of the largest data cache any core sees."""
    sizes = []
    for path in tree.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index*"):
        match = re.fullmatch(r"(\d+)([KM]?)", tree.read(path / "size"))
        if match and tree.read(path / "type") != "Instruction":
            sizes.append(int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]])
    return max(sizes, default=None)


def chosen(text: str) -> str:
    """ "madvise" of "always [madvise] never"."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else text
