"""The control groups this process is in, of version 1 and 2, and text files of the kernel."""

from collections.abc import Iterator
from pathlib import Path


def control_groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each group that may bound this process: its own first, then those around it.

    root  of the file system that is looked at

    Version 1 has a hierarchy for each controller, below a folder of that name. In a container the group may be
    mounted as the root itself.
    """
    groups = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, top = 2, groups
        elif controller in controllers.split(","):
            version, top = 1, groups / controller
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for n in range(len(parts), -1, -1):
            yield version, top.joinpath(*parts[:n])


def fields(path: Path, separator: str = ":") -> dict[str, str]:
    """Names and values of a file of the kernel that has them line by line."""
    return dict(line.split(separator, 1) for line in read(path).splitlines() if separator in line)


def read(path: Path) -> str:
    """What a file of the kernel says, without white space around it; "" where there is none to read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
