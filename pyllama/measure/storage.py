"""A path -> what it lies on: SD card, NVMe and its link, USB and its speed, virtual or rotating disk. From sysfs."""

import re
from dataclasses import dataclass
from pathlib import Path

from pyllama.measure.tree import Tree


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a path lies.

    kind         "SD card", "eMMC", "NVMe", "USB", "virtual disk", "SSD", "hard disk", "network", "memory", "unknown"
    device       "nvme0n1", "mmcblk0"; for others the source of the mount
    file_system  "ext4"
    model        as the device calls itself, or ""
    link_gt_s    NVMe: PCIe transfers a second of a lane now, in GT/s (Gen2 is 5, Gen3 is 8); link_max_gt_s: what
                 the drive can; link_width: lanes
    usb_mbit_s   USB: 480, 5000, 10000
    """

    kind: str
    device: str
    file_system: str
    model: str = ""
    link_gt_s: float | None = None
    link_max_gt_s: float | None = None
    link_width: int | None = None
    usb_mbit_s: int | None = None

    def __str__(self) -> str:
        parts = [self.kind]
        if self.link_gt_s:
            parts.append(f"PCIe Gen{generation(self.link_gt_s)} x{self.link_width or '?'}")
        if self.usb_mbit_s:
            parts.append(f"{self.usb_mbit_s} Mbit/s")
        if self.model:
            parts.append(self.model)
        return f"{', '.join(parts)} ({self.device}, {self.file_system})"


def generation(gt_s: float) -> int:
    """PCIe generation of a lane's rate."""
    return {2.5: 1, 5: 2, 8: 3, 16: 4, 32: 5, 64: 6}.get(gt_s, 0)


NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "virtiofs", "ceph"}
IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def storage(path: str | Path, tree: Tree | None = None) -> Storage:
    """What holds an existing file or folder, its links followed."""
    tree = tree or Tree()
    real = tree.root / str(path).lstrip("/")
    try:
        real = real.resolve()
        inside = "/" + str(real.relative_to(tree.root.resolve()))
    except (OSError, ValueError):
        inside = str(path)
    number, kind, source = _mount(inside, tree)
    if kind in NETWORK:
        return Storage("network", source, kind)
    if kind in IN_MEMORY:
        return Storage("memory", source, kind)
    device = tree.resolve(f"sys/dev/block/{number}")
    if device is None and source.startswith("/dev/"):  # btrfs and others have numbers of their own
        named = tree.resolve(source.lstrip("/"))  # /dev/root, /dev/mapper/...
        device = tree.resolve(f"sys/class/block/{(named or Path(source)).name}")
    if device is None:
        return Storage("unknown", source, kind)
    return _device(_disk(device, tree), kind, tree)


def block_device(name: str, tree: Tree) -> Storage:
    """What a device is, by its name under /dev."""
    device = tree.resolve(f"sys/class/block/{name}")
    return _device(_disk(device, tree), "", tree) if device else Storage("unknown", name, "")


def unescaped(name: str) -> str:
    """A path as /proc writes it, where spaces and the like are three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


def _mount(path: str, tree: Tree) -> tuple[str, str, str]:
    """major:minor, file system and source of the mount that a path lies in; the last of the longest counts."""
    best = ("", "", "")
    length = -1
    for line in tree.read("proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, after = left.split(), right.split()
        if len(fields) < 5 or len(after) < 2:
            continue
        point = unescaped(fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= length:
            best, length = (fields[2], after[0], after[1]), len(point)
    return best


def _disk(device: Path, tree: Tree) -> Path:
    """The whole disk of a partition; the first disk under a mapped, encrypted or striped device."""
    for _ in range(8):
        slaves = tree.glob(f"{device.relative_to(tree.root.resolve())}/slaves/*")
        if (device / "partition").exists():
            device = device.parent
        elif slaves:
            device = slaves[0].resolve()
        else:
            break
    return device


def _device(device: Path, file_system: str, tree: Tree) -> Storage:
    name, where = device.name, str(device)
    model = " ".join(tree.read(device / "device/model").split())
    if name.startswith("zram"):
        return Storage("memory", name, file_system)
    if name.startswith("nvme"):
        link = _ancestor(device, "current_link_speed") or device  # where nobody says, the rates stay None
        return Storage(
            "NVMe", name, file_system, model, _gt_s(tree.read(link / "current_link_speed")),
            _gt_s(tree.read(link / "max_link_speed")), tree.number(link / "current_link_width"),
        )  # fmt: skip
    if name.startswith("mmcblk"):
        kind = "eMMC" if tree.read(device / "device/type") == "MMC" else "SD card"
        return Storage(kind, name, file_system, tree.read(device / "device/name"))
    if "/usb" in where:
        usb = _ancestor(device, "idVendor") or device
        return Storage("USB", name, file_system, model, usb_mbit_s=tree.number(usb / "speed"))
    if "/virtio" in where or name.startswith(("vd", "xvd")):
        return Storage("virtual disk", name, file_system, model)
    rotational = tree.read(device / "queue/rotational")
    kind = {"0": "SSD", "1": "hard disk"}.get(rotational, "unknown")
    return Storage(kind, name, file_system, model)


def _ancestor(device: Path, file: str) -> Path | None:
    """The nearest folder above that has such a file."""
    return next((folder for folder in device.parents if (folder / file).exists()), None)


def _gt_s(text: str) -> float | None:
    match = re.match(r"([0-9.]+) GT/s", text)
    return float(match[1]) if match else None
