"""How much memory this process may use: what the machine or its control group has, and sizes as people write them."""

import os
import re
from pathlib import Path

from .errors import RequestError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?)(?:i?b)?", re.IGNORECASE)

#: Left to everything else on the board, where nobody said how much to take.
MARGIN = 128 << 20


def parse_size(text: str | int) -> int:
    """Bytes of "250M", "1.5G", "2GiB" (powers of 1024) or a plain number. Raises RequestError."""
    if isinstance(text, int) and not isinstance(text, bool):
        nbytes = text
    else:
        match = _SIZE.fullmatch(str(text).strip())
        if not match:
            raise RequestError(f"memory: got {text!r}, expected a size such as 250M or 1.5G")
        nbytes = int(float(match[1]) * _UNITS[match[2].lower()])
    if not 0 < nbytes < 1 << 50:
        raise RequestError(f"memory: got {text!r}, expected more than 0 bytes and less than a petabyte")
    return nbytes


def resident_nbytes() -> int:
    """Resident set of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_nbytes() -> int:
    """The largest resident set this process has had (VmHWM: not inherited from what started it)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def default_budget() -> int:
    """What a process may take in all when nobody says: what is available, plus what it has already, less MARGIN."""
    return max(available_nbytes() + resident_nbytes() - MARGIN, 1)


def available_nbytes(proc: Path = Path("/proc"), cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be taken: the least of the machine's MemAvailable and the room in each control group.

    In a group the page cache counts as room, since the kernel gives it up first.
    """
    rooms = [_machine(proc)]
    for line in _read(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            rooms += _groups(cgroup_root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroup_root / "memory"
            rooms += _groups(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return min(rooms)


def _machine(proc: Path) -> int:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups(root: Path, path: str, limit_name: str, usage_name: str, cache_name: str) -> list[int]:
    """The room in a group and in each group around it. In a container the group may be mounted as the root itself."""
    rooms = []
    parts = path.strip("/").split("/") if path.strip("/") else []
    for n in range(len(parts), -1, -1):
        folder = root.joinpath(*parts[:n])
        limit, usage = _read(folder / limit_name).strip(), _read(folder / usage_name).strip()
        if not limit.isdigit() or not usage.isdigit() or int(limit) >= 1 << 60:  # "max", or v1's no limit
            continue
        stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
        rooms.append(max(0, int(limit) - int(usage) + int(stat.get(cache_name, 0))))
    return rooms


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
