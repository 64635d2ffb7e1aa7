#!/usr/bin/env python3
"""Each fault of a cluster many times over: none hangs, each is told within seconds in a line that names the board.

    python tools/cluster_faults.py [--times 20] [--within 5]                      three ranks on this machine
    tools/cluster_namespaces.sh 3 python tools/cluster_faults.py [--times 20]     three boards, an sshd in each (root)

    killed    a rank is ended by SIGKILL           frozen    by SIGSTOP
    memory    its budget holds nothing
    link      its interface is down                daemon    what started it on its board is killed
                                                   (both in namespaces alone)

Prints a row for each fault: times, seconds until it was told, the longest; and exits with 1 where one hung, was late,
did not name the board, or left a rank behind.
"""

import argparse
import contextlib
import os
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


def link(board: str, state: str) -> None:
    subprocess.run(["ip", "-n", f"{NAMESPACES}-{board}", "link", "set", "eth0", state], check=True)


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
    end = time.monotonic() + 10
    while (left := ranks_left(pids)) and time.monotonic() < end:
        time.sleep(0.1)
    for each in left:
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)
    return seconds, line, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--within", type=float, default=5.0)
    parser.add_argument("--faults")
    args = parser.parse_args()
    hosts = os.environ.get("PYLLAMA_BOARDS", "localhost,localhost,localhost")
    names = hosts.split(",")
    known = ["killed", "frozen", "memory", *(["link", "daemon"] if NAMESPACES else [])]
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
