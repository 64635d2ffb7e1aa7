"""What is set wrong on this machine for running models, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass

from pyllama.measure import machine
from pyllama.measure.condition import condition, hottest
from pyllama.measure.storage import Storage, block_device, generation, storage, unescaped
from pyllama.measure.tree import Tree

HOT_C = 80.0  # a Raspberry Pi slows down from here on
_CONFIG = "/boot/firmware/config.txt"


@dataclass(frozen=True, slots=True)
class Advice:
    """problem: what is so, and what it costs; remedy: what to type or change."""

    problem: str
    remedy: str


def advice(disk: Storage, tree: Tree | None = None, states: list[dict] | None = None) -> list[Advice]:
    """Everything found amiss.

    disk    what the models lie on
    states  condition() before and after measuring; default: now
    """
    tree = tree or Tree()
    board = machine.board(tree)
    found = [*_cgroup(tree), *_disk(disk, board), *_governor(tree), *_swap(tree), *_huge_pages(tree)]
    return found + list(_condition(states or [condition(tree)], board))


def _cgroup(tree: Tree) -> Iterator[Advice]:
    words = tree.read("proc/cmdline").split()
    # The firmware of a Raspberry Pi puts cgroup_disable=memory in front; the last word counts.
    memory = [word for word in words if word in ("cgroup_disable=memory", "cgroup_enable=memory")]
    if memory and memory[-1] == "cgroup_disable=memory":
        yield Advice(
            "the kernel was started with cgroup_disable=memory: no container or service can be given a memory limit, "
            "and pyllama sees none",
            "add cgroup_enable=memory to the one line of /boot/firmware/cmdline.txt and reboot",
        )


def _disk(disk: Storage, board: str) -> Iterator[Advice]:
    if disk.kind == "NVMe" and disk.link_gt_s is not None and disk.link_gt_s < 8:
        now = generation(disk.link_gt_s)
        if "Raspberry Pi 5" in board or "Compute Module 5" in board:
            yield Advice(
                f"the NVMe runs at PCIe Gen{now}, 450 MB/s at most; Gen3 reads 850 MB/s",
                f"add dtparam=pciex1_gen=3 to {_CONFIG} and reboot",
            )
        elif disk.link_max_gt_s and disk.link_max_gt_s > disk.link_gt_s:
            most = generation(disk.link_max_gt_s)
            yield Advice(
                f"the NVMe runs at PCIe Gen{now}, it can do Gen{most}",
                "see whether the board's firmware or another slot allows the faster link",
            )
    if disk.kind == "SD card":
        yield Advice(
            f"the model lies on an SD card ({disk.device}), which reads 90 MB/s at best",
            "move it to an NVMe or USB3 SSD: HF_HUB_CACHE says where models are kept",
        )
    if disk.kind == "USB" and disk.usb_mbit_s is not None and disk.usb_mbit_s <= 480:
        yield Advice(
            f"the disk is connected by USB 2 ({disk.usb_mbit_s} Mbit/s), 40 MB/s at most",
            "plug it into a blue (USB 3) port, with a USB 3 cable",
        )


def _governor(tree: Tree) -> Iterator[Advice]:
    slow = sorted({g for g in machine.governors(tree).values() if g in ("powersave", "ondemand", "conservative")})
    driver = tree.read("sys/devices/system/cpu/cpufreq/policy0/scaling_driver")
    if slow and not driver.startswith(("intel_pstate", "amd-pstate-epp")):  # whose powersave is no slower
        yield Advice(
            f"the CPU's frequency governor is {' and '.join(slow)}: the clock rises late after each wait",
            "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor (until reboot)",
        )


def _swap(tree: Tree) -> Iterator[Advice]:
    for line in tree.read("proc/swaps").splitlines()[1:]:
        fields = line.split()
        if len(fields) < 2:
            continue
        name = unescaped(fields[0])
        on = storage(name, tree) if fields[1] == "file" else block_device(name.rsplit("/", 1)[-1], tree)
        if on.kind in ("SD card", "eMMC"):
            yield Advice(
                f"swap lies on the {on.kind} ({name}): it wears out, and stalls what runs",
                "sudo swapoff -a; on Raspberry Pi OS for good: sudo systemctl disable --now dphys-swapfile"
                " (zram swap does no harm)",
            )


def _huge_pages(tree: Tree) -> Iterator[Advice]:
    if machine.chosen(tree.read("sys/kernel/mm/transparent_hugepage/enabled")) == "never":
        yield Advice(
            "transparent huge pages are off: direct reads and scans of weights are slower into 4 KB pages",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled (until reboot)",
        )


def _condition(states: list[dict], board: str) -> Iterator[Advice]:
    happened = {name for state in states if state["throttled"] for name in state["throttled"]["now"]}
    before = {name for state in states if state["throttled"] for name in state["throttled"]["since_boot"]} - happened
    if "under-voltage" in happened | before:
        when = "now" if "under-voltage" in happened else "since it was switched on"
        supply = "27 W (5.1 V, 5 A)" if "Raspberry Pi 5" in board else "15 W (5.1 V, 3 A)"
        yield Advice(f"the supply's voltage was too low {when}: the clock is capped", f"use a supply of {supply}")
    hot = max((h for h in map(hottest, states) if h is not None), default=0.0)
    slowed = {"throttled", "soft temperature limit"} & happened
    if hot >= HOT_C or slowed:
        what = f"at {hot:.0f} degrees" if hot >= HOT_C else "by its temperature limit"
        yield Advice(f"the processor is slowed down {what}", "a heat sink with a fan (the Active Cooler)")
