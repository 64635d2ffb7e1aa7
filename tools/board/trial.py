#!/usr/bin/env python3
"""What docs/install.md, the README and docs/service.md promise, tried on a whole emulated board.

usage: tools/board/trial.py WORKDIR [--cpu cortex-a76] [--memory 1G] [--steps NAME,...] [--log FILE]

WORKDIR  as tools/board/image.sh left it; the board works on copies of its disks

Pages are followed word for word: their fenced lines are typed by a user in a login shell, with the wheel's and the
clone's address in place. What is asked of the board is asked of this machine too, with the package of the Python that
runs this: same text, same fingerprints. Ends with "N passed, N failed". Seconds in the log are an emulator's, on a
machine that does other things too, and mean nothing.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from machine import Machine

ROOT = Path(__file__).resolve().parents[2]
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
PARTS = {"cortex-a72": "0xd08", "cortex-a76": "0xd0b"}
DISK_RATE = 90_000_000
KEY = "the-key-of-this-trial"
VENV = "~/pyllama-venv/bin"
RUN = "run /models/synthetic Once --memory 200M -c 64 -n 2 --json"
SMALL = "run {} Once --memory 200M -c 64 -n 2 --json"
CHAT = [{"role": "user", "content": "Name the capital of France."}]


class Failed(AssertionError):
    """What was expected did not come."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise Failed(what)


def block(heading: str, number: int = 0) -> list[str]:
    """The lines of a fenced block of docs/install.md."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", INSTALL, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)[number].splitlines()


class Trial:
    def __init__(self, work: Path, cpu: str, memory: str, log: Callable[[str], None]):
        self.work, self.cpu, self.memory, self.log = work, cpu, memory, log
        self.board = Machine(work, cpu, memory, DISK_RATE, log)

    # -- ways of asking

    def typed(self, lines: list[str], **others: int) -> None:
        """Type a page's lines, one after the other; `others`: the exit code of a line with this word, 0 else."""
        wheel = next(self.work.glob("pyllama-*_aarch64.whl")).name
        for line in lines:
            line = re.sub(r"pyllama-[\d.]+-cp311-abi3-manylinux_2_28_aarch64\.whl", wheel, line)
            line = line.replace("git clone URL", "git clone file:///srv/pyllama.git")
            status, _ = self.board.run(line, timeout=7200)
            expected = next((code for word, code in others.items() if word in line), 0)
            need(status in (0, expected), f"{line}: exit code {status}")

    def succeed(self, command: str, user: str = "pi", quiet: bool = False, timeout: float = 3600) -> str:
        status, text = self.board.run(command, user, timeout, quiet)
        need(status == 0, f"{command}: exit code {status}")
        return text

    def here(self, arguments: str) -> str:
        """What pyllama on this machine answers to the same command line."""
        arguments = arguments.replace("/models/", f"{self.work}/models/")
        command = [sys.executable, "-m", "pyllama", *arguments.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
        need(done.returncode == 0, f"{arguments}, here: {done.stderr}")
        return done.stdout

    def same_as_here(self, on_board: str, arguments: str) -> None:
        ours, theirs = (json.loads(text[text.index("{") :]) for text in (self.here(arguments), on_board))
        for key in ("fingerprint", "token_ids", "text"):
            need(ours[key] == theirs[key], f"{key}: {theirs[key]}, here {ours[key]}")
        self.log(f"    fingerprint {ours['fingerprint']}, here too")

    def ask(self, path: str, body: object = None, timeout: float = 1800) -> bytes:
        """A request from this machine to the server on the board."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.board.port}{path}")
        request.add_header("Authorization", f"Bearer {KEY}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()

    def chat(self, messages: list[dict], **fields: object) -> dict:
        body = {"model": "smollm2", "messages": messages, "temperature": 0, "max_tokens": 12, **fields}
        answer = json.loads(self.ask("/v1/chat/completions", body))
        self.log(f"    from here, over the network: {answer['choices'][0]['message']['content']!r}")
        return answer

    def wait_for(self, what: str, condition: Callable[[], object], timeout: float = 1200) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            need(time.monotonic() < deadline, f"{what}: not within {timeout:.0f} s")
            time.sleep(2)

    def serving(self) -> bool:
        try:
            return b"smollm2" in self.ask("/v1/models", timeout=900)
        except OSError:
            return False

    def limited(self, limit: str, command: str) -> tuple[str, int]:
        """(output, peak in bytes, page cache included) of a command in a control group; no kill in it."""
        script = [
            f"{command}; status=$?",
            "group=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)",
            "echo peak $(cat $group/memory.peak); grep oom_kill $group/memory.events; exit $status",
        ]
        self.succeed(f"printf '%s\\n' {' '.join(map(shlex.quote, script))} >/tmp/limited")
        text = self.succeed(
            f"sudo systemd-run -q --pipe --wait --collect -p MemoryMax={limit} -p MemorySwapMax=0 --uid=pi"
            " /bin/bash -l /tmp/limited"
        )
        need(re.search(r"^oom_kill 0$", text, re.MULTILINE), "something was killed for want of memory")
        return text[: text.rindex("peak ")], int(re.search(r"^peak (\d+)$", text, re.MULTILINE)[1])

    # -- the steps, in this order

    def step_board(self) -> None:
        """It is the board that was asked for: CPU, memory, memory controller, a disk of models."""
        need(self.succeed("uname -m") == "aarch64", "not aarch64")
        need(PARTS[self.cpu] in self.succeed("grep -m1 'CPU part' /proc/cpuinfo"), "another CPU")
        total = int(re.search(r"\d+", self.succeed("grep MemTotal /proc/meminfo"))[0])
        need(total < {"512M": 524_288, "1G": 1_048_576}[self.memory], "more memory than asked for")
        need("memory" in self.succeed("cat /sys/fs/cgroup/cgroup.controllers").split(), "no memory controller")
        need("/dev/nvme0n1" in self.succeed("findmnt -n -o SOURCE /models"), "no disk of models")

    def step_install(self) -> None:
        """docs/install.md, from a wheel, then PATH and completion."""
        self.typed(block("From a wheel"))
        self.typed(block("PATH and completion"))
        need("pyllama 0." in self.succeed("pyllama --version"), "not on the PATH after the next login")

    def step_first_run(self) -> None:
        """docs/install.md, the first run; doctor may find fault with the board and then ends with 2."""
        self.typed(block("The first run"), doctor=2)
        need("Paris" in self.succeed('pyllama run smollm2 "What is the capital of France?"'), "no Paris")

    def step_fingerprints(self) -> None:
        """Tiny models of every architecture and format, and SmolLM2: the same lines as on this machine."""
        self.here("pull --quiet smollm2")
        self.succeed("mkdir -p /tmp/source && tar -xzf /srv/pyllama-*.tar.gz -C /tmp/source --strip-components=1")
        command = "-P /tmp/source/tools/fingerprints.py smollm2"
        theirs = self.succeed(f"rm -rf /tmp/source/pyllama; {VENV}/python {command}", quiet=True, timeout=7200)
        with tempfile.TemporaryFile("w+") as output:
            tool = [sys.executable, "-P", ROOT / "tools" / "fingerprints.py", "smollm2"]
            need(subprocess.run(tool, stdout=output).returncode == 0, "tools/fingerprints.py failed here")
            output.seek(0)
            ours = output.read().splitlines()
        self.log(f"    {len(ours)} lines here, {len(theirs.splitlines())} there; the last: {theirs.splitlines()[-1]}")
        need(ours == theirs.splitlines(), "they differ")

    def step_bench(self) -> None:
        """bench measures the board and a model to the end; its figures are an emulator's and not kept."""
        text = self.succeed("pyllama bench smollm2 --memory 150M --quiet", quiet=True, timeout=7200)
        for word in ("memory", "disk", "streamed"):
            need(word in text, f"no {word} in the report")
        self.log(f"    a report of {len(text.splitlines())} lines")

    def step_plan(self) -> None:
        """plan's verdict on a model larger than the memory; what it says of the process's memory is exact."""
        text = self.succeed("pyllama plan /models/synthetic --memory 200M -c 64 --board pi4")
        need("runs in 200M" in text.splitlines()[0], "no verdict in the first line")

    def step_larger_than_memory(self) -> None:
        """Models larger than the memory of the board, within --memory, in a group with a limit just above it."""
        text, peak = self.limited("232M", f"pyllama {RUN}")
        self.log(f"    peak of the control group {peak} bytes, page cache included; --memory 200M")
        need(peak <= 232 << 20, "more than the group allows")
        self.same_as_here(text, RUN)
        if (self.work / "models" / "large.gguf").exists():
            command = "run /models/large.gguf Once --memory 300M -c 64 -n 2 --json"
            text, peak = self.limited("340M", f"pyllama {command}")
            self.log(f"    peak of the control group {peak} bytes; --memory 300M")
            self.same_as_here(text, command)

    def step_pack(self) -> None:
        """pack, its power cut in the middle; the same command goes on; verify; the same fingerprint."""
        self.succeed("nohup pyllama pack /models/small /models/packed >/tmp/pack.log 2>&1 & echo begun")
        self.wait_for("50 MB of a packed model", lambda: self.packed() > 50_000_000)
        self.board.cut_power()
        self.board.boot()
        need(self.board.run("ls -d /models/packed")[0] != 0, "half a model under its name")
        self.succeed("pyllama pack /models/small /models/packed")
        self.succeed("pyllama verify /models/packed")
        need(self.board.run("ls -d /models/packed.packing")[0] != 0, "what was left is still there")
        self.same_as_here(self.succeed("pyllama " + SMALL.format("/models/packed")), SMALL.format("/models/small"))

    def packed(self) -> int:
        """Bytes that pack has written so far."""
        need(self.board.run("ls -d /models/packed", quiet=True)[0] != 0, "packed before the power could go")
        status, text = self.board.run("du -s -B1 /models/packed.packing 2>/dev/null; tail -n 1 /tmp/pack.log")
        return int(text.split()[0]) if status == 0 and text[:1].isdigit() else 0

    def step_full_disk(self) -> None:
        """A disk that is full, and one that fills while pack writes: one line, exit code 2, nothing left behind."""
        self.succeed(
            "fallocate -l 400M /full.img && mke2fs -q -t ext4 /full.img && mkdir -p /full"
            " && mount -o loop /full.img /full && chown pi /full",
            user="root",
        )
        self.succeed("fallocate -l 200M /full/ballast")
        self._refused("pyllama pack /models/small /full/packed")
        self.succeed("rm /full/ballast")
        written = "du -s -B1 /full/packed.packing 2>&1 | cut -f1"
        fill = f'until [ "$({written})" -gt 20000000 ]; do sleep 0.2; done; cat /dev/zero >/full/ballast'
        fill = f"({fill}) >/dev/null 2>&1 &"
        self._refused(f"{fill} pyllama pack /models/small /full/packed")
        left = self.succeed("sleep 2; ls -A /full; pkill -x cat; sleep 1; rm -f /full/ballast")
        need("packed" not in left, "something was left behind")
        self.succeed("fallocate -l 200M /full/ballast")
        self._refused("XDG_CACHE_HOME=/full pyllama pull smollm2")
        self.succeed("umount /full; rm /full.img", user="root")

    def _refused(self, command: str) -> None:
        status, text = self.board.run(command)
        need(status == 2, f"exit code {status}, expected 2")
        need("Traceback" not in text and text.count("pyllama:") == 1, "not one line of error")

    def step_serve(self) -> None:
        """serve, its page's files, and a chat from this machine over the network: the same text as here."""
        self.succeed(f"printf %s '{KEY}' > ~/key; chmod 600 ~/key")
        self.succeed(
            "nohup pyllama serve smollm2 --memory 200M -c 512 --host 0.0.0.0 --api-key-file ~/key --log-requests"
            " >/tmp/serve.log 2>&1 & echo $! >/tmp/serve.pid"
        )
        self.wait_for("an answer of the server", self.serving)
        page = self.ask("/").decode()
        files = re.findall(r"(?:src|href)=\"(/?[\w./-]+\.(?:js|css|svg|webmanifest))\"", page)
        need(files, "the page names no files")
        for name in files:
            content = self.ask("/" + name.lstrip("/"))
            self.log(f"    {name}: {len(content)} bytes")
            need(content, f"{name} is empty")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.board.port}/v1/models", timeout=60)
            need(False, "served without a key")
        except urllib.error.HTTPError as error:
            need(error.code == 401, f"without a key: {error.code}")
        answer = self.chat(CHAT)
        code = "import sys, pyllama; print(pyllama.load('smollm2').generate(" + f"{CHAT}, max_tokens=12, temperature=0"
        here = subprocess.run([sys.executable, "-c", f"{code}).read(), end='')"], capture_output=True, text=True)
        need(here.stdout == answer["choices"][0]["message"]["content"], f"here it is {here.stdout!r} {here.stderr}")
        streamed = self.ask("/v1/chat/completions", {"model": "smollm2", "messages": CHAT, "temperature": 0,
                                                    "max_tokens": 12, "stream": True}).decode()  # fmt: skip
        pieces = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces if piece["choices"])
        need(text == answer["choices"][0]["message"]["content"], f"streamed: {text!r}")
        self.succeed("kill -TERM $(cat /tmp/serve.pid); while kill -0 $(cat /tmp/serve.pid); do sleep 1; done; true")
        log = self.succeed("cat /tmp/serve.log")
        need("Traceback" not in log and "http://" in log, "the log tells no address, or of an error")

    def shown(self, *names: str) -> dict[str, str]:
        text = self.succeed(f"systemctl show pyllama {' '.join(f'-p {name}' for name in names)}")
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def step_service(self) -> None:
        """sudo pyllama service install: ready when it returns, fenced, watched, restarted when it hangs, stopped."""
        self.succeed(f"printf %s '{KEY}' > /etc/pyllama.key; chmod 600 /etc/pyllama.key", user="root")
        self.succeed(
            "sudo ~/pyllama-venv/bin/pyllama service install smollm2 --memory 200M -c 512 --host 0.0.0.0"
            " --api-key-file /etc/pyllama.key"
        )
        need(self.serving(), "installed, and not ready")
        state = self.shown("ActiveState", "Type", "MemoryMax", "WatchdogUSec", "StatusText", "NRestarts")
        need(state["ActiveState"] == "active" and state["Type"] == "notify", f"{state}")
        need(int(state["MemoryMax"]) == (200 + 128) << 20, "MemoryMax is not 128 MiB above --memory")
        need(state["WatchdogUSec"] == "5min", "no watchdog")
        self.succeed("pyllama service status")
        first = self.chat(CHAT)["choices"][0]["message"]
        group = "/sys/fs/cgroup/system.slice/pyllama.service"
        need(int(self.succeed(f"cat {group}/memory.peak")) <= int(state["MemoryMax"]), "beyond MemoryMax")
        need("oom_kill 0" in self.succeed(f"cat {group}/memory.events"), "killed")
        self.step_watchdog()
        self.succeed("time sudo systemctl stop pyllama")
        need(self.shown("Result")["Result"] == "success", "it did not stop well")
        need(self.succeed("sudo find /var/lib/private/pyllama -type f"), "no conversation was saved")
        self.succeed("sudo systemctl start pyllama")
        more = [*CHAT, first, {"role": "user", "content": "And of Spain?"}]
        answer = self.chat(more)
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        need(cached > 20, f"only {cached} tokens of the conversation were there after a restart")

    def step_watchdog(self) -> None:
        """Of step_service: with 30 s in place of 5 min, fed while idle; a process that stands still is replaced."""
        folder = "/etc/systemd/system/pyllama.service.d"
        self.succeed(
            f"mkdir -p {folder} && printf '[Service]\\nWatchdogSec=30s\\n' > {folder}/trial.conf"
            " && systemctl daemon-reload && systemctl restart pyllama",
            user="root",
        )
        before = self.shown("MainPID", "NRestarts")
        time.sleep(75)
        need(self.shown("MainPID", "NRestarts") == before, "restarted though it was idle and well")
        self.succeed(f"kill -STOP {before['MainPID']}", user="root")
        self.wait_for("a restart", lambda: int(self.shown("NRestarts")["NRestarts"]) > int(before["NRestarts"]))
        self.wait_for("an answer after the restart", self.serving)
        self.succeed("journalctl -u pyllama -o cat | grep -m1 -i watchdog", user="root")
        self.succeed("rm -r /etc/systemd/system/pyllama.service.d && systemctl daemon-reload", user="root")
        self.succeed("systemctl restart pyllama", user="root")

    def step_power_cut_in_a_conversation(self) -> None:
        """The power goes while an answer is written. The service is back after boot, and the conversation goes on."""
        first = self.chat(CHAT)
        text = first["choices"][0]["message"]["content"]
        more = [*CHAT, first["choices"][0]["message"], {"role": "user", "content": "Write a long story about the sea."}]
        writing = threading.Thread(target=self._ignored, args=(more,), daemon=True)
        writing.start()
        time.sleep(20)
        need(writing.is_alive(), "the answer was complete before the power could go")
        self.board.cut_power()
        self.board.boot()
        self.wait_for("the service after boot", self.serving)
        need(self.chat(CHAT)["choices"][0]["message"]["content"] == text, "another answer after the power cut")
        self.chat(more)
        need("Traceback" not in self.succeed("journalctl -b -u pyllama -o cat", user="root"), "an error in the log")

    def _ignored(self, messages: list[dict]) -> None:
        try:
            self.chat(messages, max_tokens=400)
        except (OSError, ValueError):
            pass

    def step_clone(self) -> None:
        """docs/install.md, from a clone: Debian's compiler, on the board; then what the page says of an upgrade."""
        self.typed(block("From a clone"))
        self.succeed("pyllama doctor; test $? = 0 -o $? = 2")
        need("Paris" in self.succeed('pyllama run smollm2 "What is the capital of France?"'), "no Paris")

    def step_upgrade(self) -> None:
        self.typed(block("Upgrade and removal"))
        need(self.shown("ActiveState")["ActiveState"] == "active", "the service is not there after an upgrade")

    def step_readme(self) -> None:
        """The README's first command, in a clone."""
        command = subprocess.run(
            ["bash", ROOT / "tools" / "readme_command.sh", "pyllama run"], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.succeed("test -d pyllama || git clone -q file:///srv/pyllama.git pyllama")
        need("Paris" in self.succeed(f"cd pyllama && {command}", timeout=7200), "no Paris")

    def step_removal(self) -> None:
        """docs/install.md, removal: neither program nor models nor service are left."""
        self.typed(block("Upgrade and removal", 1))
        need(self.board.run("bash -lc pyllama")[0] == 127, "still there")
        left = self.succeed("find ~ -iname '*pyllama*' -not -path '*/pyllama/*' -not -name 'pyllama-*.whl'")
        need(left.split() in ([], ["/home/pi/pyllama"]), f"left behind: {left}")


STEPS = [name.removeprefix("step_") for name in vars(Trial) if name.startswith("step_") and name != "step_watchdog"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--cpu", choices=sorted(PARTS), default="cortex-a76")
    parser.add_argument("--memory", choices=("512M", "1G"), default="1G")
    parser.add_argument(
        "--steps",
        default=",".join(STEPS),
        help="default: all, and some need what those before them left: " + ", ".join(STEPS),
    )
    parser.add_argument("--log", type=Path, help="also write it here")
    args = parser.parse_args()
    file = args.log.open("w") if args.log else None
    start = time.monotonic()

    def log(line: str) -> None:
        line = "".join(c if c.isprintable() else "." for c in line)
        print(line, flush=True)
        if file:
            print(line, file=file, flush=True)

    trial = Trial(args.work.resolve(), args.cpu, args.memory, log)
    passed, failed = 0, []
    try:
        log(f"== an emulated board: {args.cpu}, {args.memory}, an NVMe held to {DISK_RATE // 10**6} MB/s")
        trial.board.boot()
        for name in args.steps.split(","):
            step = getattr(trial, f"step_{name}")
            log(f"== {name}: {(step.__doc__ or 'as the page says').split(chr(10))[0]}")
            try:
                step()
            except (Failed, TimeoutError, OSError, ValueError, KeyError) as error:
                failed.append(name)
                log(f"== FAILED {name}: {type(error).__name__}: {error}")
            else:
                passed += 1
                log(f"== passed {name}")
        trial.board.power_off()
    finally:
        trial.board.discard()
    log(f"== {time.monotonic() - start:.0f} s of an emulator, which say nothing of a board")
    if failed:
        log(f"failed: {', '.join(failed)}")
    log(f"{passed} passed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
