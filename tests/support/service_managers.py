"""A service manager of the tests' own: a user's, and the whole system's in namespaces that end with it.

Both take root and a machine whose control groups can be written. Each lives in a control group of its own and sees
an empty /run/systemd (or /run), so that a systemd that manages the machine is left alone.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

SYSTEMD = shutil.which("systemd") or next((p for p in ("/lib/systemd/systemd",) if os.path.exists(p)), None)
DEADLINE_S = 60
HIERARCHIES = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd")]

# "$$" is the shell that becomes the manager; $1 the folder, $2 the control group.
_JOIN = """
for root in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    [ -e $root/cgroup.procs ] || continue
    mkdir -p $root/$2 && echo $$ >$root/$2/cgroup.procs || exit 77
done
"""
_USER = (
    _JOIN
    + """
mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/system || exit 77
exec "$3" --user --log-target=console --unit=basic.target
"""
)
_SYSTEM = (
    _JOIN
    + """
exec unshare --pid --fork --uts --ipc --mount --propagation private bash -c '
    # Shared among themselves, as at boot: credentials come as a mount. Nothing of it is seen outside.
    mount --make-rshared / && mount -t proc proc /proc && mount -t tmpfs -o mode=755 tmpfs /run || exit 77
    mount -t tmpfs -o mode=755 tmpfs /var/lib && mount --bind "$1/units" /etc/systemd/system || exit 77
    exec env -i container=tests PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/etc/systemd/system \\
        "$3" --system --log-target=console --show-status=no
' bash "$1" "$2" "$3"
"""
)
_TARGETS = ("default", "basic", "sysinit", "shutdown", "network", "network-online", "multi-user")


class Manager:
    """A running manager; a context manager. Raises Unavailable where none can be started."""

    def __init__(self, folder: Path, user: bool):
        if SYSTEMD is None or os.geteuid() != 0 or shutil.which("unshare") is None:
            raise Unavailable("takes systemd and root")
        self.user = user
        self.folder = folder
        self._group = f"pyllama-tests-{os.getpid()}"
        # Sockets have short names: pytest's folders are too long for them.
        self._runtime = Path(tempfile.mkdtemp(prefix="pyllama-"))
        self.units = folder / ("config/systemd/user" if user else "units")
        self.units.mkdir(parents=True)
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_RUNTIME_DIR": str(self._runtime),
        }
        self.environment.pop("DBUS_SESSION_BUS_ADDRESS", None)
        if not user:
            for name in _TARGETS:
                (self.units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        self._log = open(folder / "manager.log", "wb")
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", _USER if user else _SYSTEM]
            + ["bash", str(folder), self._group, SYSTEMD],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._pid: int | None = None
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Unavailable(f"the manager ended: {(self.folder / 'manager.log').read_text()[-500:]}")
            self._pid = self._manager()
            # Not is-system-running: it looks at the machine first.
            state = ["show", "--property=SystemState", "--value"]
            if self._pid and self.systemctl(*state, check=False).stdout.strip() in ("running", "degraded"):
                return
            time.sleep(0.1)
        raise Unavailable("the manager does not answer")

    def _manager(self) -> int | None:
        """The manager's process: the one started, or the child that is the first of its namespace."""
        pid = self._process.pid
        if self.user:
            return pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        return None

    def run(self, *command, check=True, **options) -> subprocess.CompletedProcess:
        """A command where this manager is the one that systemctl meets."""
        inside = [] if self.user else ["nsenter", f"--target={self._pid}", "--mount", "--pid"]
        options = {"capture_output": True, "text": True, "timeout": 120, "env": self.environment, **options}
        done = subprocess.run([*inside, *map(str, command)], **options)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def systemctl(self, *arguments, **options) -> subprocess.CompletedProcess:
        return self.run("systemctl", *(["--user"] if self.user else []), *arguments, **options)

    def pyllama(self, *arguments, **options) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-P", "-m", "pyllama", *arguments, **options)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit).stdout.strip()

    def close(self) -> None:
        pids = [self._process.pid] if self.user or not self._pid else [self._pid]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGTERM if self.user else signal.SIGKILL)  # namespaces end with their first process
            except ProcessLookupError:
                pass
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        for root in HIERARCHIES:
            group = root / self._group
            for folder in sorted([*group.rglob("*/"), group], key=lambda path: -len(path.parts)):
                if folder.is_dir():
                    _remove(folder)
        shutil.rmtree(self._runtime, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class Unavailable(Exception):
    pass


def _remove(group: Path) -> None:
    for _ in range(50):
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:  # its last process is not quite gone
            time.sleep(0.1)
