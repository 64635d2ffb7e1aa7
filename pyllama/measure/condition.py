"""How the machine is just now: temperatures, clock, throttling. Read before and after measuring."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pyllama.measure.tree import Tree

#: Bits of the Raspberry Pi firmware's get_throttled: now; the same 16 bits up: since it was switched on.
THROTTLING = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
_SINCE_BOOT = 16


def condition(tree: Tree | None = None) -> dict[str, Any]:
    """temperature_c by zone, clock_mhz by policy, throttled {"now": [...], "since_boot": [...]} or None."""
    tree = tree or Tree()
    temperatures = {}
    for path in tree.glob("sys/class/thermal/thermal_zone*"):
        value = tree.number(path / "temp")
        if value is not None:
            name = tree.read(path / "type") or path.name
            temperatures[name if name not in temperatures else f"{name} ({path.name})"] = round(value / 1000, 1)
    clocks = {}
    for path in tree.glob("sys/devices/system/cpu/cpufreq/policy*"):
        value = tree.number(path / "scaling_cur_freq")
        if value is not None:
            clocks[path.name] = value // 1000
    return {"temperature_c": temperatures, "clock_mhz": clocks, "throttled": throttled(tree)}


def throttled(tree: Tree) -> dict[str, list[str]] | None:
    """What the firmware says has held the processor back; None where no firmware tells."""
    bits = None
    for path in tree.glob("sys/devices/platform/soc*/soc*:firmware/get_throttled"):
        bits = _bits(tree.read(path))
    if bits is None and tree.root == Path("/"):
        bits = _vcgencmd()
    if bits is None:
        return None
    return {
        "now": [name for i, name in enumerate(THROTTLING) if bits >> i & 1],
        "since_boot": [name for i, name in enumerate(THROTTLING) if bits >> (i + _SINCE_BOOT) & 1],
    }


def hottest(state: dict[str, Any]) -> float | None:
    return max(state["temperature_c"].values(), default=None)


def _vcgencmd() -> int | None:
    program = shutil.which("vcgencmd")
    if not program:
        return None
    try:
        done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return _bits(done.stdout.strip().removeprefix("throttled="))


def _bits(text: str) -> int | None:
    return int(text, 16) if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text) else None
