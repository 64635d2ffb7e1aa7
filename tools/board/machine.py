"""An emulated board: boots, runs commands in a shell inside, loses its power, boots again.

Knows QEMU, and the shell that image.sh puts behind a virtio port; refuses to know what is tried on the board.
"""

import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

BOOT_S = 900  # 22 s alone on a fast machine; a busy one takes its time
WEB_PORT = 8000  # of servers inside


class Machine:
    """One board, its disks in `work`: copies of what image.sh made, so that a trial begins with fresh ones."""

    def __init__(self, work: Path, cpu: str, memory: str, disk_rate: int, log: Callable[[str], None]):
        self.work, self.cpu, self.memory, self.disk_rate, self.log = work, cpu, memory, disk_rate, log
        self.folder = work / f"{cpu}-{memory}"
        self.folder.mkdir(exist_ok=True)
        for disk in ("board.img", "nvme.img"):
            subprocess.run(["cp", "--sparse=always", work / disk, self.folder / disk], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen | None = None
        self.shell: socket.socket | None = None
        self.count = 0

    def boot(self) -> float:
        """Seconds until the shell inside answers."""
        start, door = time.monotonic(), self.folder / "shell.socket"
        door.unlink(missing_ok=True)
        disk = "file={},format=raw,if=none,id={}"
        rates = f"throttling.bps-read={self.disk_rate},throttling.bps-write={self.disk_rate}"
        command = [
            *("qemu-system-aarch64", "-M", "virt", "-cpu", self.cpu, "-smp", "1", "-m", self.memory),
            *("-kernel", self.work / "vmlinuz", "-initrd", self.work / "initrd"),
            *("-append", "root=/dev/vda rw console=ttyAMA0 quiet"),
            *("-drive", disk.format(self.folder / "board.img", "root"), "-device", "virtio-blk-pci,drive=root"),
            *("-drive", f"{disk.format(self.folder / 'nvme.img', 'nvme')},{rates}"),
            *("-device", "nvme,drive=nvme,serial=1", "-device", "virtio-rng-pci"),
            *("-chardev", f"socket,id=trial,path={door},server=on,wait=off"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=trial,name=trial"),
            # Nothing outside is reached from the board; its port 8000 is reached from this machine alone.
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:{WEB_PORT}"),
            *("-device", "virtio-net-pci,netdev=net"),
            *("-display", "none", "-serial", f"file:{self.folder / 'console.log'}", "-monitor", "none", "-no-reboot"),
        ]
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL)
        while not door.exists():
            self._check_running(start)
            time.sleep(0.1)
        self.shell = socket.socket(socket.AF_UNIX)
        self.shell.connect(str(door))
        self.shell.settimeout(5)
        while True:  # until somebody is behind the door
            self._check_running(start)
            self.shell.sendall(b"echo rea''dy\n")
            try:
                if b"ready" in self.shell.recv(4096):
                    break
            except TimeoutError:
                pass
        self._drain()
        return time.monotonic() - start

    def _check_running(self, start: float) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"the emulator ended with {self.process.returncode}")
        if time.monotonic() - start > BOOT_S:
            raise TimeoutError(f"no shell after {BOOT_S} s; {self.folder / 'console.log'} tells more")

    def _drain(self) -> None:
        """Drop the answers to what was asked before anybody listened."""
        self.shell.sendall(b"echo the''end\n")
        seen = b""
        while b"theend" not in seen:
            seen += self.shell.recv(4096)

    def run(self, command: str, user: str = "pi", timeout: float = 3600, quiet: bool = False) -> tuple[int, str]:
        """(exit status, output) of a command in a login shell of `user`, standard error included.

        quiet   the output is not logged, as that of a benchmark, whose figures mean nothing here
        """
        self.count += 1
        self.log(f"{user}$ {command}")
        mark = f"@@{self.count}@@"
        inside = command if user == "root" else f"runuser -l {user} -c {shlex.quote(command)}"
        self.shell.sendall(f"( {inside}\n) </dev/null 2>&1; echo; echo '{mark}' $?\n".encode())
        self.shell.settimeout(10)
        deadline, seen = time.monotonic() + timeout, b""
        while not (b"\n" + mark.encode() in seen and seen.endswith(b"\n")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{command}: no end after {timeout} s; so far: {seen[-2000:]!r}")
            try:
                more = self.shell.recv(65536)
            except TimeoutError:
                continue
            if not more:
                raise RuntimeError("the board is gone")
            seen += more
        text, _, status = seen.decode(errors="replace").replace("\r", "").rpartition(f"\n{mark} ")
        text = text.removesuffix("\n")
        if not quiet:
            for line in text.splitlines():
                self.log(f"    {line}")
        return int(status), text

    def cut_power(self) -> None:
        """The machine is killed: what it had not written is lost."""
        self.log("(the power is cut)")
        self.process.kill()
        self.process.wait()
        self.shell.close()

    def power_off(self) -> None:
        self.log("(the board is switched off)")
        self.shell.sendall(b"systemctl poweroff --no-block\n")
        try:
            self.process.wait(300)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.shell.close()

    def discard(self) -> None:
        """Stop it, whatever it is doing, and remove its disks."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
