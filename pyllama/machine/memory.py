"""How much memory this process may use: what the machine or its control group has, and sizes as people write them."""

import os
import re
import resource
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllama.errors import BudgetError, RequestError
from pyllama.machine.control_groups import control_groups, fields, read

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?)(?:i?b)?", re.IGNORECASE)

#: Left to everything else on the board, where nobody said how much to take.
MARGIN = 128 << 20
#: Page tables, stacks and buffers of the kernel, which a control group is charged for beside the resident set.
GROUP_MARGIN = 8 << 20
MACHINE, GROUP = "this machine", "the control group"


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


def interpreter_nbytes(tokenizer: Any) -> int:
    """What a process that has loaded a model's tokenizer has besides weights, and what its template takes outside."""
    return resident_nbytes() + int(tokenizer.template_nbytes)


def peak_resident_nbytes() -> int:
    """The largest resident set this process has had (VmHWM: not inherited from what started it)."""
    # getrusage() also counts what the process was before exec: its parent's pages, after a vfork.
    peak = fields(Path("/proc/self/status")).get("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if peak is None else _nbytes(peak)


def default_budget(root: Path = Path("/")) -> int:
    """What a process may take in all when nobody says: what is available, plus what it has already, less a margin."""
    left = [limit.room - margin(limit) for limit in limits(root)]
    return max(min(left) + resident_nbytes(), 1)


def available_nbytes(root: Path = Path("/")) -> int:
    """Bytes that can still be taken: the least of the machine's MemAvailable and the room in each control group.

    In a group the page cache counts as room, since the kernel gives it up first.
    """
    return min(limit.room for limit in limits(root))


@dataclass(frozen=True, slots=True)
class Limit:
    """What bounds this process's memory.

    name    in words: "this machine", "a control group", "a limit of the address space (ulimit -v)"
    nbytes  the bound
    room    bytes of it that are left
    """

    name: str
    nbytes: int
    room: int


def limits(root: Path = Path("/")) -> list[Limit]:
    """All there are; the machine comes first.

    root  of the file system that is looked at
    """
    found = [_machine(root)]
    for version, folder in control_groups("memory", root):
        if version == 1:
            found += _group(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            for name in ("memory.max", "memory.high"):  # beyond the latter, a process is slowed down to a crawl
                found += _group(folder, name, "memory.current", "inactive_file")
    return found + _own_limits(root)


def margin(limit: Limit) -> int:
    """What is left to others: on the machine, all else that runs; in a group, what the kernel charges it besides."""
    if limit.name == MACHINE:
        return min(MARGIN, limit.room // 2)
    if limit.name == GROUP:
        return min(MARGIN, max(GROUP_MARGIN, limit.nbytes // 16))
    return min(MARGIN, limit.room // 4)  # stacks of threads, and what allocators ask for and do not use


def enough_for(nbytes: int) -> str:
    """In words, what the control group must have for a default_budget() of so many bytes; "" where none is tight."""
    found = limits()
    tight = min(found, key=lambda limit: limit.room - margin(limit))
    if tight.name != GROUP:
        return ""
    taken = tight.nbytes - tight.room - resident_nbytes()  # by others in the group
    least = max(nbytes + max(taken, 0) + GROUP_MARGIN, (nbytes + max(taken, 0)) * 16 // 15 + 1)
    return f" (the control group has {mb(tight.nbytes)} MB: give it {BudgetError.enough_mb(least)} MB)"


def budget_of(memory: str | int | None) -> int:
    """Bytes that a process may take where somebody says so, or nobody does (None): as parse_size(), default_budget().

    Warns (BudgetWarning) of what is more than there is.
    """
    if memory is None:
        return default_budget()
    nbytes = parse_size(memory)
    tight = min(limits(), key=lambda limit: limit.nbytes)
    if nbytes > tight.nbytes:
        warnings.warn(
            f"memory: {mb(nbytes)} MB is more than {tight.name} has, {mb(tight.nbytes)} MB; the kernel may end this "
            "process when it takes them",
            BudgetWarning,
            stacklevel=3,
        )
    return nbytes


class BudgetWarning(UserWarning):
    """A budget was asked for that is more than the machine or the control group has."""


def _machine(root: Path) -> Limit:
    amounts = fields(root / "proc/meminfo")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total, room = (_nbytes(amounts[name]) if name in amounts else pages for name in ("MemTotal", "MemAvailable"))
    return Limit(MACHINE, total, room)


def _nbytes(amount: str) -> int:
    """Of an amount as the kernel writes it: `300 kB`."""
    return int(amount.split()[0]) << 10


def _group(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> list[Limit]:
    """One limit of a group, if it has it."""
    limit, usage = read(folder / limit_name), read(folder / usage_name)
    if not limit.isdigit() or not usage.isdigit() or int(limit) >= 1 << 60:  # "max", or v1's no limit
        return []
    cache = int(fields(folder / "memory.stat", " ").get(cache_name, 0))
    return [Limit(GROUP, int(limit), max(0, int(limit) - int(usage) + cache))]


def _own_limits(root: Path) -> list[Limit]:
    """Limits on mappings, which count what is reserved and not only what is resident."""
    status = fields(root / "proc/self/status")
    found = []
    for name, number, field in (
        ("the limit of the address space (ulimit -v)", resource.RLIMIT_AS, "VmSize"),
        ("the limit of private memory (ulimit -d)", resource.RLIMIT_DATA, "VmData"),
    ):
        nbytes = resource.getrlimit(number)[0]
        if nbytes != resource.RLIM_INFINITY and field in status:
            found.append(Limit(name, nbytes, max(0, nbytes - _nbytes(status[field]))))
    return found


def mb(nbytes: int) -> int:
    """Megabytes of 1,000,000, rounded up."""
    return -(-nbytes // 1_000_000)
