#!/usr/bin/env python3
"""Each fault of a cluster many times over: none hangs, each is told within seconds in a line that names the board.

    python tools/cluster_faults.py [--times 20] [--within 5]                      three ranks on this machine
    tools/cluster_namespaces.sh 3 python tools/cluster_faults.py [--times 20]     three boards, an sshd in each (root)

    killed    a rank is ended by SIGKILL           frozen    by SIGSTOP
    memory    its budget holds nothing
    link      its interface is down                daemon    what started it on its board is killed
    disk      the kernel answers its reads of the model with EIO, for the device has no blocks any more; once it has
              them again, the same ranks answer as before
              (these three in namespaces alone)

Prints a row for each fault: times, seconds until it was told, the longest; and exits with 1 where one hung, was late,
did not name the board, or left a rank behind.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import tiny

import pyllama
from pyllama.errors import PyllamaError

NAMESPACES = os.environ.get("PYLLAMA_NAMESPACES")
HANGS_S = 60.0
PROMPT = list(range(3, 30))


def model_folder(folder: Path) -> Path:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "max_position_embeddings": 512}
    return tiny.write_random(folder, num_hidden_layers=8, **sizes)


class Answering:
    """A model in the midst of passes, on a thread, until it fails."""

    def __init__(self, model):
        self.model, self.steps, self.ended_at = model, 0, 0.0
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        while self.steps < 2 and self.thread.is_alive():
            time.sleep(0.01)

    def _run(self):
        try:
            while True:
                for _ in self.model.generate(PROMPT, max_tokens=400, ignore_eos=True):
                    self.steps += 1
        except BaseException as error:
            self.error = error
        self.ended_at = time.monotonic()

    def told(self) -> str:
        self.thread.join(HANGS_S)
        if self.thread.is_alive():
            return "HANGS"
        return str(self.error)


def ranks_left(pids: set[int]) -> set[int]:
    left = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if b"pyllama.cluster.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                left |= {pid} if state != "Z" else set()
    return left


def left_after_a_while(pids: set[int]) -> set[int]:
    """Those that have not ended by themselves; they are ended."""
    end = time.monotonic() + 10
    while (left := ranks_left(pids)) and time.monotonic() < end:
        time.sleep(0.1)
    for each in left:
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)
    return left


def link(board: str, state: str) -> None:
    subprocess.run(["ip", "-n", f"{NAMESPACES}-{board}", "link", "set", "eth0", state], check=True)


class Disk:
    """A board's own disk for a folder: a file system in a file, on a loop device that can lose its blocks."""

    def __init__(self, board: str, first: bool, folder: Path):
        """Mount it over the folder, with the same content, where the board's processes see it."""
        self._image = folder.parent / "disk"
        self._kept = folder.parent / "kept"
        self._folder = folder
        with self._image.open("wb") as file:
            file.truncate(160 << 20)
        run("mkfs.ext4", "-q", "-d", folder, self._image)
        shutil.copyfile(self._image, self._kept)
        self._device = run("losetup", "--find", "--show", self._image)
        # The first board is where this process is; of the others, sshd has the mounts.
        pids = run("ip", "netns", "pids", f"{NAMESPACES}-{board}").split()
        self._there = () if first else ("nsenter", "--mount", "--target", pids[0])
        run(*self._there, "mount", "-o", "ro", self._device, folder)

    def fail(self) -> None:
        os.truncate(self._image, 0)
        run("losetup", "--set-capacity", self._device)

    def restore(self) -> None:
        with self._kept.open("rb") as source, self._image.open("r+b") as target:
            shutil.copyfileobj(source, target)
        run("losetup", "--set-capacity", self._device)

    def close(self) -> None:
        run(*self._there, "umount", "--lazy", self._folder)
        run("losetup", "--detach", self._device)


def run(*words: object) -> str:
    return subprocess.run([*map(str, words)], check=True, capture_output=True, text=True).stdout.strip()


def smallest_budgets(folder: Path, names: list[str]) -> Path:
    """A file of hosts, each with what its rank needs and little more: it keeps next to nothing, and goes on reading."""
    budgets = []
    for rank in range(len(names)):
        boards = folder.parent / "boards"
        boards.write_text("".join(f"{name}{' memory=30M' if i == rank else ''}\n" for i, name in enumerate(names)))
        try:
            pyllama.load(folder, context_length=512, hosts=boards).close()
        except PyllamaError as error:
            found = re.search(r"needs at least (\d+) MB", str(error))
            assert found, error
            budgets.append(int(found[1]) + 2)
    boards.write_text("".join(f"{name} memory={budget}MB\n" for name, budget in zip(names, budgets, strict=True)))
    return boards


def failing_disk(names: list[str], rank: int, folder: Path) -> tuple[float, str, set[int]]:
    """As once() does; the ranks stay, and go on once the disk is back."""
    boards = smallest_budgets(folder, names)
    disk = Disk(names[rank], rank == 0, folder)
    try:
        with pyllama.load(folder, context_length=512, hosts=boards) as model:
            expected = [step.token_id for step in model.generate(PROMPT, max_tokens=4, ignore_eos=True)]
            answering = Answering(model)
            pids = {sign["pid"] for sign in model.decoder.signs}
            since = time.monotonic()
            disk.fail()
            line = answering.told()
            seconds = answering.ended_at - since
            disk.restore()
            again = [step.token_id for step in model.generate(PROMPT, max_tokens=4, ignore_eos=True)]
            if again != expected or pids != {sign["pid"] for sign in model.decoder.signs}:
                line += "\nthe ranks did not go on"
    finally:
        disk.close()
    return seconds, line, left_after_a_while(pids)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def once(fault: str, hosts: str, rank: int, folder: Path) -> tuple[float, str, set[int]]:
    """(seconds until it was told, the line, ranks that were left five seconds later)"""
    names = hosts.split(",")
    if fault == "memory":
        boards = folder.parent / "boards"
        boards.write_text("".join(f"{name}{' memory=30M' if i == rank else ''}\n" for i, name in enumerate(names)))
        started = time.monotonic()
        try:
            pyllama.load(folder, context_length=512, hosts=boards).close()
        except PyllamaError as error:
            return time.monotonic() - started, str(error), set()
        return 0.0, "nothing was told", set()
    if fault == "disk":
        return failing_disk(names, rank, folder)
    with pyllama.load(folder, context_length=512, hosts=hosts) as model:
        answering = Answering(model)
        pids = {sign["pid"] for sign in model.decoder.signs}
        pid = model.decoder.signs[rank]["pid"]
        since = time.monotonic()
        if fault == "killed":
            os.kill(pid, signal.SIGKILL)
        elif fault == "frozen":
            os.kill(pid, signal.SIGSTOP)
        elif fault == "daemon":
            os.kill(parent(pid), signal.SIGKILL)
        elif fault == "link":
            link(names[rank], "down")
        try:
            line = answering.told()
        finally:
            if fault == "link":
                link(names[rank], "up")
        seconds = answering.ended_at - since
    return seconds, line, left_after_a_while(pids)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--within", type=float, default=5.0)
    parser.add_argument("--faults")
    args = parser.parse_args()
    hosts = os.environ.get("PYLLAMA_BOARDS", "localhost,localhost,localhost")
    names = hosts.split(",")
    known = ["killed", "frozen", "memory", *(["link", "daemon", "disk"] if NAMESPACES else [])]
    failed = False
    print(f"{'fault':8} {'times':>5} {'median':>7} {'longest':>8}  told", flush=True)
    for fault in args.faults.split(",") if args.faults else known:
        seconds, last = [], ""
        for number in range(args.times):
            rank = number % len(names)
            if fault in ("link", "daemon"):  # not of the board where the front end is
                rank = 1 + number % (len(names) - 1)
            with tempfile.TemporaryDirectory() as folder:
                took, last, left = once(fault, hosts, rank, model_folder(Path(folder) / "m"))
            seconds.append(took)
            expected = names[rank] if len(set(names)) > 1 else f"rank {rank}"
            named = expected in last
            slow = took > args.within and fault != "memory"  # that one is told while ranks are started
            if left or slow or not named or last == "HANGS" or "\n" in last:
                failed = True
                print(f"{fault}, rank {rank}: {took:.1f} s, left {left}: {last}", flush=True)
        print(f"{fault:8} {len(seconds):5} {statistics.median(seconds):7.2f} {max(seconds):8.2f}  {last}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
