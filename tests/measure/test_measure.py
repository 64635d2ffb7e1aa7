"""`pyllama bench`: boards made up as trees of /proc and /sys, and every figure on a tiny model and small buffers."""

import csv
import json
import os
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import write_model

from pyllama import _kernels
from pyllama.cli import main
from pyllama.errors import CheckpointError, PyllamaError, RequestError
from pyllama.measure import advice as advising
from pyllama.measure import csv_file, disk, drafting, kernels, machine, plot, report, report_lines, watch
from pyllama.measure.ceilings import Ceilings
from pyllama.measure.condition import condition
from pyllama.measure.others import Others
from pyllama.measure.storage import block_device, storage
from pyllama.measure.tree import Tree

# --- boards ---


class Made:
    """A tree of small files and links."""

    def __init__(self, root: Path):
        self.root = root
        self.tree = Tree(root)

    def write(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def block(self, number: str, name: str, device: str, partition: bool = False) -> None:
        """sys/dev/block/NUMBER and sys/class/block/NAME lead to `device` below sys/devices."""
        folder = self.root / "sys/devices" / device
        folder.mkdir(parents=True, exist_ok=True)
        if partition:
            (folder / "partition").write_text("1\n")
        for link in (f"sys/dev/block/{number}", f"sys/class/block/{name}"):
            path = self.root / link
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(folder, path.parent))

    def mounts(self, *lines: tuple[str, str, str, str]) -> None:
        """(major:minor, mount point, file system, source)"""
        text = [f"{20 + i} 1 {dev} / {point} rw - {kind} {source} rw\n"
                for i, (dev, point, kind, source) in enumerate(lines)]  # fmt: skip
        self.write("proc/self/mountinfo", "".join(text))

    def cores(self, *parts: str) -> None:
        text = [f"processor\t: {i}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n" for i, part in enumerate(parts)]
        self.write("proc/cpuinfo", "".join(text))

    def policy(self, number: int, governor: str, mhz: int, driver: str = "cpufreq-dt") -> None:
        at = f"sys/devices/system/cpu/cpufreq/policy{number}"
        self.write(f"{at}/scaling_governor", governor + "\n")
        self.write(f"{at}/scaling_driver", driver + "\n")
        self.write(f"{at}/scaling_cur_freq", f"{mhz * 1000}\n")

    def advice(self, path: str = "/models") -> list[str]:
        return [item.problem for item in advising.advice(storage(path, self.tree), self.tree)]


NVME = "platform/axi/1000110000.pcie/pci0001:00/0001:00:00.0/0001:01:00.0/nvme/nvme0/nvme0n1"
PCI = "sys/devices/platform/axi/1000110000.pcie/pci0001:00/0001:00:00.0/0001:01:00.0"


@pytest.fixture
def pi5(tmp_path):
    """A Raspberry Pi 5 as its system leaves it: memory groups off, NVMe at Gen2, ondemand, swap on the SD card."""
    made = Made(tmp_path)
    made.write("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    made.cores(*["0xd0b"] * 4)
    made.write("proc/cmdline", "reboot=w cgroup_disable=memory console=tty1 root=PARTUUID=1 rootwait\n")
    made.policy(0, "ondemand", 1500)
    made.write("sys/class/thermal/thermal_zone0/temp", "58050\n")
    made.write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    made.write("sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "0\n")
    made.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    made.block("259:0", "nvme0n1", NVME)
    made.block("259:2", "nvme0n1p2", f"{NVME}/nvme0n1p2", partition=True)
    made.write(f"{PCI}/nvme/nvme0/nvme0n1/device/model", "WD BLACK SN770M 1TB   \n")
    made.write(f"{PCI}/current_link_speed", "5.0 GT/s PCIe\n")
    made.write(f"{PCI}/max_link_speed", "16.0 GT/s PCIe\n")
    made.write(f"{PCI}/current_link_width", "1\n")
    sd = "platform/axi/1000fff000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0"
    made.block("179:0", "mmcblk0", sd)
    made.block("179:2", "mmcblk0p2", f"{sd}/mmcblk0p2", partition=True)
    made.write(f"sys/devices/{sd}/device/type", "SD\n")
    made.write(f"sys/devices/{sd}/device/name", "SN128\n")
    made.mounts(("179:2", "/", "ext4", "/dev/mmcblk0p2"), ("259:2", "/models", "ext4", "/dev/nvme0n1p2"))
    made.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/var/swap file 524288 0 -2\n")
    return made


def test_a_pi_5_is_known_by_name_and_what_is_set_wrong_is_found(pi5):
    assert machine.board(pi5.tree) == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.cpu(pi5.tree) == "4 x Cortex-A76"
    disk_of = storage("/models/Llama-2-7b", pi5.tree)
    assert (disk_of.kind, disk_of.device, disk_of.link_gt_s, disk_of.link_width) == ("NVMe", "nvme0n1", 5.0, 1)
    assert str(disk_of) == "NVMe, PCIe Gen2 x1, WD BLACK SN770M 1TB (nvme0n1, ext4)"
    assert storage("/home/pi", pi5.tree).kind == "SD card"
    found = {item.problem: item.remedy for item in advising.advice(disk_of, pi5.tree)}
    text = "\n".join(f"{problem}: {remedy}" for problem, remedy in found.items())
    assert len(found) == 4
    for words in ("cgroup_enable=memory", "dtparam=pciex1_gen=3", "governor is ondemand", "swap lies on the SD card"):
        assert words in text


def test_a_pi_5_set_right_gets_no_advice(pi5):
    pi5.write("proc/cmdline", "cgroup_disable=memory root=PARTUUID=1 cgroup_enable=memory\n")
    pi5.write(f"{PCI}/current_link_speed", "8.0 GT/s PCIe\n")
    pi5.policy(0, "performance", 2400)
    pi5.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 524288 0 100\n")
    pi5.block("253:0", "zram0", "virtual/block/zram0")
    assert pi5.advice() == []
    assert pi5.advice("/home") == ["the model lies on an SD card (mmcblk0), which reads 90 MB/s at best"]


def test_heat_and_a_weak_supply_are_told(pi5):
    before = condition(pi5.tree)
    assert before == {
        "temperature_c": {"cpu-thermal": 58.0},
        "clock_mhz": {"policy0": 1500},
        "throttled": {"now": [], "since_boot": []},
    }
    pi5.write("sys/class/thermal/thermal_zone0/temp", "84500\n")
    pi5.write("sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "50004\n")
    after = condition(pi5.tree)
    assert after["throttled"] == {"now": ["throttled"], "since_boot": ["under-voltage", "throttled"]}
    found = advising.advice(storage("/models", pi5.tree), pi5.tree, [before, after])[-2:]
    assert "voltage was too low since it was switched on" in found[0].problem and "27 W" in found[0].remedy
    assert "slowed down at 84 degrees" in found[1].problem


def test_a_pi_4_on_the_wrong_usb_port(tmp_path):
    made = Made(tmp_path)
    made.write("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    made.cores(*["0xd08"] * 4)
    usb = "platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0/usb1/1-1/1-1.2"
    made.block("8:0", "sda", f"{usb}/1-1.2:1.0/host0/target0:0:0/0:0:0:0/block/sda")
    made.block("8:1", "sda1", f"{usb}/1-1.2:1.0/host0/target0:0:0/0:0:0:0/block/sda/sda1", partition=True)
    made.write(f"sys/devices/{usb}/idVendor", "174c\n")
    made.write(f"sys/devices/{usb}/speed", "480\n")
    made.mounts(("8:1", "/", "ext4", "/dev/sda1"))
    made.policy(0, "powersave", 600)
    assert machine.cpu(made.tree) == "4 x Cortex-A72"
    assert str(storage("/models", made.tree)) == "USB, 480 Mbit/s (sda, ext4)"
    assert [words in text for words, text in zip(("USB 2", "powersave"), made.advice(), strict=True)] == [True, True]
    made.write(f"sys/devices/{usb}/speed", "5000\n")
    made.policy(0, "performance", 1800)
    assert made.advice() == []


def test_an_rk3588_has_two_kinds_of_cores_and_a_slow_link(tmp_path):
    made = Made(tmp_path)
    made.write("proc/device-tree/model", "Radxa ROCK 5B\0")
    made.cores(*["0xd05"] * 4, *["0xd0b"] * 4)
    made.block("259:0", "nvme0n1", NVME)
    for name, text in (("current_link_speed", "2.5 GT/s PCIe"), ("max_link_speed", "8.0 GT/s PCIe"),
                       ("current_link_width", "4")):  # fmt: skip
        made.write(f"{PCI}/{name}", text + "\n")
    made.mounts(("0:40", "/", "btrfs", "/dev/nvme0n1"))  # btrfs has numbers of its own
    made.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")
    made.policy(0, "schedutil", 1800)
    made.policy(4, "schedutil", 2400)
    assert machine.cpu(made.tree) == "4 x Cortex-A76 + 4 x Cortex-A55"
    assert str(storage("/models", made.tree)) == "NVMe, PCIe Gen1 x4 (nvme0n1, btrfs)"
    slow, pages = made.advice()
    assert "runs at PCIe Gen1, it can do Gen3" in slow and "huge pages are off" in pages


def test_a_virtual_machine_has_nothing_to_set(tmp_path):
    made = Made(tmp_path)
    made.write("proc/cpuinfo", "processor : 0\nmodel name : AMD EPYC\nflags : fpu hypervisor\n")
    made.block("254:0", "vda", "pci0000:00/0000:00:02.0/virtio1/block/vda")
    made.write("sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/queue/rotational", "1\n")
    made.mounts(
        ("254:0", "/", "ext4", "/dev/vda"), ("0:30", "/mnt/a\\040b", "nfs4", "host:/x"), ("0:5", "/tmp", "tmpfs", "t")
    )
    assert machine.cpu(made.tree) == "AMD EPYC" and machine.board(made.tree) == ""
    assert storage("/models", made.tree).kind == "virtual disk"
    assert storage("/mnt/a b/model", made.tree).kind == "network" and storage("/tmp/x", made.tree).kind == "memory"
    assert made.advice() == [] and condition(made.tree)["throttled"] is None


def test_disks_under_mappers_and_unknown_ones(tmp_path):
    made = Made(tmp_path)
    made.block("253:1", "dm-1", "virtual/block/dm-1")
    made.block("8:0", "sda", "pci0000:00/ata1/host0/block/sda")
    made.write("sys/devices/pci0000:00/ata1/host0/block/sda/queue/rotational", "0\n")
    slaves = tmp_path / "sys/devices/virtual/block/dm-1/slaves"
    slaves.mkdir()
    (slaves / "sda").symlink_to(tmp_path / "sys/devices/pci0000:00/ata1/host0/block/sda")
    made.mounts(("253:1", "/", "ext4", "/dev/mapper/root"))
    assert (storage("/x", made.tree).kind, storage("/x", made.tree).device) == ("SSD", "sda")
    assert block_device("nothing", made.tree).kind == "unknown"
    empty = Tree(tmp_path / "empty")
    assert storage("/x", empty).kind == "unknown" and machine.cpu(empty) and machine.governors(empty) == {}
    assert advising.advice(storage("/x", empty), empty) == []


def test_an_unknown_core_shows_its_numbers(tmp_path):
    made = Made(tmp_path)
    made.cores("0xfff", "0xd80")
    assert machine.cpu(made.tree) in ("1 x Cortex-A520 + 1 x core 0x41/0xfff", "1 x core 0x41/0xfff + 1 x Cortex-A520")


def test_caches_are_found_and_instructions_do_not_count(tmp_path):
    made = Made(tmp_path)
    caches = [("64K", "Instruction"), ("64K", "Data"), ("512K", "Unified"), ("2M", "Unified")]
    for index, (size, kind) in enumerate(caches):
        made.write(f"sys/devices/system/cpu/cpu0/cache/index{index}/size", size + "\n")
        made.write(f"sys/devices/system/cpu/cpu0/cache/index{index}/type", kind + "\n")
    assert machine.last_level_cache(made.tree) == 2 << 20
    assert machine.last_level_cache(Tree(tmp_path / "none")) is None


def test_this_machine_is_described_without_names_or_paths():
    about = machine.describe()
    text = json.dumps(about)
    assert about["cpu"] and about["cores"] >= 1 and about["isa"] == _kernels.isa()
    assert os.uname().nodename not in text.replace(about["kernel"], "") or len(os.uname().nodename) < 4
    assert "/" not in text.replace(about["cpu"], "").replace("0x", "")


def test_cores_kept_busy_by_others_are_those_that_are_not_ours(tmp_path, monkeypatch):
    made, now, own = Made(tmp_path), [0.0], [5.0]
    monkeypatch.setattr("pyllama.measure.others.time.monotonic", lambda: now[0])
    monkeypatch.setattr("pyllama.measure.others.os.times", lambda: (own[0], 0.0, 0.0, 0.0, 0.0))
    ticks = os.sysconf("SC_CLK_TCK")
    made.write("proc/stat", "cpu  0 0 0 900 0 0 0 0 0 0\ncpu0 1\n")
    others = Others(made.tree)
    now[0], own[0] = 10.0, 12.0
    made.write("proc/stat", f"cpu  {9 * ticks} 0 {2 * ticks} 900 77 0 0 {ticks} 0 0\n")
    assert others.share() == pytest.approx(0.5)  # 12 seconds busy, 7 of them ours, in 10
    assert others.share() == 0.0


def test_children_that_go_on_running_are_ours(tmp_path, monkeypatch):
    """bench/quantized.py's engines are waited for at its end only: all that they did was told as others' work."""
    made, now = Made(tmp_path), [0.0]
    monkeypatch.setattr("pyllama.measure.others.time.monotonic", lambda: now[0])
    monkeypatch.setattr("pyllama.measure.others.os.times", lambda: (0.0, 0.0, 0.0, 0.0, 0.0))
    ticks = os.sysconf("SC_CLK_TCK")

    def engine(user: int, system: int) -> None:
        made.write("proc/77/stat", f"77 (an (odd) name) S 1 77 77 0 -1 0 0 0 0 0 {user} {system} 5 5 20 0 3 0 99\n")

    made.write("proc/stat", "cpu  0 0 0 900 0 0 0 0 0 0\ncpu0 1\n")
    engine(0, 0)
    others = Others(made.tree, running=[77, 78])  # 78 is no longer there
    now[0] = 10.0
    made.write("proc/stat", f"cpu  {20 * ticks} 0 0 900 0 0 0 0 0 0\n")
    engine(15 * ticks, 3 * ticks)
    assert others.share() == pytest.approx(0.2)  # 20 seconds busy, 18 of them the engine's, in 10


# --- measuring, small ---


def test_the_disk_is_read_to_the_end_of_the_file_or_of_the_time(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(9 * 65536))
    for in_flight in (1, 3):
        reading = disk.read_rate(file, in_flight=in_flight, seconds=60, block=65536)
        assert reading.nbytes == 9 * 65536 and reading.gb_s == pytest.approx(reading.nbytes / 1e9 / reading.seconds)
    assert 65536 <= disk.read_rate(file, seconds=0, block=65536).nbytes <= 3 * 65536
    (tmp_path / "small").write_bytes(b"x" * 100)
    with pytest.raises(RequestError, match="100 bytes, expected a file of"):
        disk.read_rate(tmp_path / "small")


def test_a_disk_that_fails_while_measured_is_an_error(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(bytes(9 * 65536))

    def failing(*args):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match="input/output error"):
        disk.read_rate(file, block=65536)


def test_the_file_made_to_be_read_holds_no_block_twice_and_goes_again(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "BLOCK", 4096)
    told = []
    with disk.temporary_file(tmp_path / "new", 300 * 4096 + 100, told.append) as path:
        data = path.read_bytes()
        assert len(data) == 300 * 4096 + 100 and len(told) == 301
        blocks = {data[i : i + 4096] for i in range(0, 300 * 4096, 4096)}
        assert len(blocks) == 300
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(RequestError, match="MB free, expected .* give --file"), disk.temporary_file(tmp_path, 1 << 60):
        pass


def test_the_kernels_measured_are_the_same_matrix_in_three_layouts():
    made = kernels.matrices(32 * 64 * 2 * 4, cols=64)
    assert list(made) == ["rows", "panels", "packed"]
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    outs = []
    for matrix in made.values():
        outs.append(np.full((3, matrix.rows), np.nan, np.float32))
        _kernels.matmul(matrix, x, outs[-1])
    assert made["rows"].rows == 128 and np.isfinite(outs[0]).all()
    assert (outs[0] == outs[1]).all() and (outs[0] == outs[2]).all()


def test_the_watch_keeps_few_samples_of_any_run(monkeypatch):
    monkeypatch.setattr(watch, "MOST_SAMPLES", 8)
    with watch.Watch(lambda: 7, interval_s=0.001) as watching:
        while watching._interval_s < 0.004:
            time.sleep(0.001)
        watching.mark("token")
    series = watching.series()
    assert 2 <= len(series["time_s"]) <= 9 and series["time_s"] == sorted(series["time_s"])
    assert set(series["bytes_read"]) == {7} and min(series["rss_bytes"]) > 1e6
    assert series["events"][0][1] == "token"


SMALL = {"file_nbytes": 1 << 20, "buffer_nbytes": 2 << 20, "seconds": 0.01, "spin_rounds": 1000, "positions": 64,
         "threads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 10 MB: large enough for a budget to be between nothing and all of it."""
    path = tmp_path_factory.mktemp("models") / "small"
    return write_model(path, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8,
                       num_key_value_heads=8, head_dim=32)  # fmt: skip


REPEATS = "again and again and " * 40


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    """A whole run of it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    threads = _kernels.num_threads()
    told = []
    try:
        made = report.measure(
            str(folder), prompts=(8, 64), decode=3, say=told.append, draft="lookup", text=REPEATS, drafted_tokens=12,
            **SMALL,
        )  # fmt: skip
    finally:
        patch.undo()
        _kernels.set_num_threads(threads)
    return made, told


def test_a_whole_run_puts_each_figure_beside_its_ceiling(measured):
    made, told = measured
    assert json.loads(json.dumps(made)) == made
    assert told[0] == "memory and arithmetic" and any("streamed" in text for text in told)
    rates = made["ceilings"]["1"]
    for kernel in made["kernels"]:
        beside = rates["read_gb_s" if kernel["beside"] == "read" else "peak_gflop_s"]
        assert kernel["ceiling"] == beside and kernel["of_ceiling"] == pytest.approx(kernel["value"] / beside)
    assert len(made["kernels"]) == 6 + 2 * 4  # two of each quantized format that is measured
    resident, streamed = made["models"]
    assert (resident["kind"], streamed["kind"]) == ("resident", "streamed")
    assert resident["streamed_nbytes"] == 0 and resident["decode"]["bytes_read"] < resident["bytes_read"]
    for run in (resident, streamed):
        assert run["decode"]["tokens"] == 3 and set(run["prefill"]) == {"8", "64"}
        decode = run["decode"]
        assert decode["of_ceiling"] == pytest.approx(decode["ceiling_s"] * decode["tok_s"])
        assert run["prefill"]["64"]["bound"] in ("disk", "memory", "compute")
        assert 10e6 < run["peak_rss_bytes"] < 2e9
        assert [what for _, what in run["series"]["events"]].count("token") == 3


def test_a_drafter_is_measured_beside_nobody(measured):
    made, _ = measured
    run = made["drafting"]
    assert (run["draft"], run["name"], run["given_up"]) == ("lookup", "look-up", None)
    assert run["budget"] == made["models"][1]["budget"] + (4 << 20) and run["tokens"] == 3 * 12
    assert 0 <= run["accepted_tokens"] <= run["proposed_tokens"]
    assert run["tokens_a_pass"] == pytest.approx(36 / (36 - run["accepted_tokens"]))
    if run["proposed_tokens"]:
        assert run["acceptance"] == pytest.approx(run["accepted_tokens"] / run["proposed_tokens"])
        assert run["draft_s"] > 0
    assert run["gain"] == pytest.approx(run["token_s_off"] / run["token_s"]) and "token_ids" not in run
    text = "\n".join(report_lines.lines(made))
    assert "drafted by look-up, under" in text and "tokens a pass" in text and "times as fast" in text
    nobody = run | {"draft": "auto", "name": None, "proposed_tokens": 0}
    assert "nobody drafts here" in "\n".join(report_lines.lines(made | {"drafting": nobody}))


def test_another_text_with_a_drafter_would_be_told(monkeypatch):
    def run(draft, tokens=drafting.WITH, **options):
        ids = [[1, 2, 3] if draft == "off" else [1, 2, 4, 5]]
        return {"token_ids": ids, "token_s": 1.0}

    with pytest.raises(PyllamaError, match="this is a bug"):
        drafting.compared(run, "lookup")


def test_pieces_of_a_text_are_as_far_apart_as_it_allows():
    encode = lambda text: list(range(len(text)))
    assert [piece[0] for piece in drafting.pieces("x" * 1000, encode)] == [0, 436, 872]
    assert drafting.pieces("x" * 50, encode) == [list(range(50))]
    assert len(drafting.pieces(None, encode)) == 3
    with pytest.raises(RequestError, match="no text in it"):
        drafting.pieces("", encode)


def test_options_of_a_drafter_that_go_together(capsys, tmp_path):
    for options, words in (
        (["--draft", "lookup"], "--draft: needs MODEL"),
        (["m", "--text", "x"], "--text: needs --draft"),
        (["m", "--draft", "lookup", "--text", str(tmp_path / "none")], "no such file"),
    ):
        assert main(["bench", *options]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_the_report_names_what_a_reader_needs(measured):
    text = "\n".join(report_lines.lines(measured[0]))
    for words in ("memory read", "peak ", "disk read", "product of 1 token, bf16 packed", "attention over 64",
                  "small, resident", "small, streamed", "prompt of 64", "3 tokens", "peak memory",
                  "of what "):  # fmt: skip
        assert words in text
    assert str(Path.home()) not in text


def test_advice_and_what_was_not_measured_are_in_the_report(measured):
    made = measured[0] | {
        "others": 1.25,
        "advice": [{"problem": "too hot", "remedy": "a fan"}],
        "models": [{"kind": "resident", "skipped": "needs 14.00 GB, 2.00 available"}],
        "condition": {
            "before": {"temperature_c": {"cpu": 50.0}, "clock_mhz": {}, "throttled": None},
            "after": {
                "temperature_c": {"cpu": 61.0},
                "clock_mhz": {},
                "throttled": {"now": [], "since_boot": ["throttled"]},
            },
        },
    }
    text = list(report_lines.lines(made))
    assert "resident: not measured, needs 14.00 GB, 2.00 available" in text
    assert text[-3] == "! not quiet: something else kept 1.2 cores busy; run again before believing this"
    assert text[-2:] == ["! too hot", "  a fan"]
    assert "condition    cpu 50 to 61 C" in text
    assert "throttling   now no; since it was switched on throttled" in text


def test_csv_lines_add_up_under_one_header(measured, tmp_path):
    path = tmp_path / "machine.csv"
    rows = csv_file.rows_of(measured[0])
    csv_file.append(path, rows)
    csv_file.append(path, csv_file.rows_of(measured[0] | {"models": []}))
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["engine"] for row in read] == ["pyllama resident", "pyllama streamed", ""]
    assert list(read[0]) == list(csv_file.COLUMNS)
    assert float(read[1]["decode_tok_s"]) == pytest.approx(measured[0]["models"][1]["decode"]["tok_s"], rel=1e-3)
    assert float(read[0]["prefill_64_tok_s"]) > 0 and read[0]["prefill_512_tok_s"] == ""


def test_the_plot_is_svg_with_every_token(measured):
    text = plot.plot(measured[0]["models"], "a <title> & more", 0.5)
    svg = ElementTree.fromstring(text)
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    lines = svg.findall("{http://www.w3.org/2000/svg}line")
    assert sum(line.get("stroke") == plot.TOKEN for line in lines) == 6
    assert len(svg.findall("{http://www.w3.org/2000/svg}polyline")) == 4
    words = [element.text for element in svg.findall("{http://www.w3.org/2000/svg}text")]
    assert "a <title> & more" in words and "small, streamed: resident set, MB" in words
    assert ElementTree.fromstring(plot.plot([], "nothing", 0.5)) is not None


def test_ticks_are_round_and_reach_the_top():
    for most in (1e-9, 0.03, 1, 7.3, 99, 100, 101, 2345, 8e9):
        ticks = plot.nice_ticks(most)
        assert ticks[0] == 0 and ticks[-1] >= most * 0.999999 and 2 <= len(ticks) <= 7


def test_the_rate_of_the_plot_is_bytes_over_time():
    times = [i / 10 for i in range(31)]
    read = [int(1e8 * t) if t <= 1 else int(1e8) for t in times]  # 100 MB/s for a second, then nothing
    steps = plot.rate_steps(times, read, 3.0)
    assert all(rate == pytest.approx(100) for t, rate in steps if t < 0.95)
    assert all(rate == 0 for t, rate in steps if t > 1.2)


def test_a_run_that_fails_tells_the_process_s_last_line(tmp_path):
    with pytest.raises(Exception, match="bench: .*no such file"):
        report.in_own_process("model", tmp_path / "nothing")


def test_a_run_is_not_of_the_folder_where_the_user_stands(shadowed, tmp_path):
    with pytest.raises(Exception, match="bench: .*no such file"):
        report.in_own_process("model", tmp_path / "nothing")


def test_a_model_too_small_to_stream_has_only_a_resident_run(base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "in_own_process", refuse_to_stream)
    resident, streamed = report._models(base_folder, None, {}, lambda text: None)
    assert resident["kind"] == "resident" and streamed["skipped"] == "too small to stream"


def refuse_to_stream(module, path, **options):
    if "keep" in options:
        raise PyllamaError("bench: too small to stream")
    return {"streamed_nbytes": 0}


# --- the command ---


def test_bench_writes_its_files_and_prints_the_report(folder, tmp_path, monkeypatch, capsys):
    good, threads = report.measure, _kernels.num_threads()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def small(model, **options):
        return good(model, **(options | SMALL | {"prompts": (8,), "decode": 2}))

    monkeypatch.setattr(report, "measure", small)
    files = [tmp_path / "a.csv", tmp_path / "a.svg"]
    arguments = ["bench", str(folder), "--csv", str(files[0]), "--plot", str(files[1])]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "small, streamed" in captured.out and captured.err == ""
    assert all(file.stat().st_size > 300 for file in files)
    assert main(["bench", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == []
    _kernels.set_num_threads(threads)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--plot", "a.svg"], "--plot: needs MODEL"),
        (["--memory", "1G"], "--memory: needs MODEL"),
        (["--threads", "0"], "threads: 0, expected 1 to 1024"),
        (["org/absent-model"], "not in the cache"),
        ([".", "--memory", "1M"], "no model"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(capsys, args, message):
    assert main(["bench", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err


def test_too_little_memory_is_told_before_anything_is_measured(folder, capsys):
    assert main(["bench", str(folder), "--memory", "5M"]) == 2
    assert "this model needs at least" in capsys.readouterr().err


def test_the_ceilings_are_read_from_memory_that_was_written():
    ceilings = Ceilings(1 << 20)
    assert int(ceilings.buffer.min()) == 1
    threads = _kernels.num_threads()
    rates = ceilings.measure(1, rounds=1000)
    _kernels.set_num_threads(threads)
    assert rates["read_gb_s"] > 0 and rates["peak_gflop_s"] > 0
