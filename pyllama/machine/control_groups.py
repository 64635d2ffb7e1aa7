"""The control groups this process is in, of version 1 and 2, and text files of the kernel."""

from collections.abc import Iterator
from pathlib import Path


def control_groups(controller: str, proc: Path, cgroup_root: Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each group that may bound this process: its own first, then those around it.

    Version 1 has a hierarchy for each controller, below a folder of that name. In a container the group may be
    mounted as the root itself.
    """
    for line in read(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, root = 2, cgroup_root
        elif controller in controllers.split(","):
            version, root = 1, cgroup_root / controller
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for n in range(len(parts), -1, -1):
            yield version, root.joinpath(*parts[:n])


def read(path: Path) -> str:
    """What a file of the kernel says, without white space around it; "" where there is none to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
