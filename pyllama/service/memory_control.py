"""Whether the kernel keeps a service inside MemoryMax: systemd ignores it in silence where it cannot."""

from pathlib import Path

from pyllama.machine.control_groups import read


def why_not(user: int | None, root: Path = Path("/")) -> str | None:
    """The reason why MemoryMax has no effect on a service, and what to do; None if it has.

    user  the owner of a user's service manager; None for the system's
    root  of the file system that is looked at
    """
    groups = root / "sys/fs/cgroup"
    if not _enabled(root / "proc/cgroups"):
        return "the kernel's memory controller is off; cgroup_enable=memory on its command line turns it on"
    if (groups / "cgroup.controllers").exists():
        if "memory" not in read(groups / "cgroup.controllers").split():
            return "the memory controller is not in the unified hierarchy"
        if user is not None:
            own = groups / f"user.slice/user-{user}.slice/user@{user}.service/cgroup.controllers"
            if "memory" not in read(own).split():
                return "the memory controller is not delegated to users; see Delegate= in systemd.resource-control(5)"
        return None
    if user is not None:
        return "with control groups version 1 a user's services have no memory limit"
    return None if (groups / "memory").is_dir() else "no memory controller is mounted"


def _enabled(cgroups: Path) -> bool:
    """From /proc/cgroups, whose rows are name, hierarchy, number of groups, enabled."""
    rows = [line.split() for line in read(cgroups).splitlines()]
    memory = [row for row in rows if row[:1] == ["memory"]]
    # Kernels without version 1 list no controllers there, or have no such file.
    return memory[0][-1] == "1" if memory else not any(row and not row[0].startswith("#") for row in rows)
