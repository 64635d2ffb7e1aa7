"""Unit files put in place, and systemctl and journalctl called to do the rest. Refuses to know what is in a unit."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pyllama.errors import RequestError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}")


@dataclass(frozen=True, slots=True)
class Units:
    """The units of one service manager: this user's, or the system's."""

    user: bool

    def path(self, name: str) -> Path:
        """Where the unit of a service is. Raises RequestError for a name that is none."""
        if not _NAME.fullmatch(name) or name.endswith(".service"):
            raise RequestError(f"--name: got {name!r}, expected letters, digits and _.- , without .service")
        if not self.user:
            return Path("/etc/systemd/system") / f"{name}.service"
        config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(config) / "systemd" / "user" / f"{name}.service"

    def check_allowed(self, what: str) -> None:
        """Raises RequestError if this user may not change units."""
        if not self.user and os.geteuid() != 0:
            raise RequestError(f"service {what}: changes the system, so it takes root: sudo, or --user for your own")

    def install(self, name: str, text: str) -> None:
        """Put a unit in place, have it started at boot, and (re)start it; returns once it is ready.

        Raises RequestError if systemd refuses any of it.
        """
        self._program("systemctl")  # before anything is written
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)
        self._systemctl("daemon-reload")
        self._systemctl("reset-failed", f"{name}.service", may_fail=True)
        self._systemctl("enable", "--quiet", f"{name}.service")
        self._systemctl("restart", f"{name}.service")

    def uninstall(self, name: str, purge: bool) -> None:
        """Stop a service and forget it. purge: what it saved as well. Raises RequestError."""
        path = self.path(name)
        if not path.exists():
            raise RequestError(f"{path}: no such unit; --name says which, --user whether it is yours")
        self._systemctl("disable", "--quiet", "--now", f"{name}.service")
        if purge:
            self._systemctl("clean", "--what=state", f"{name}.service")
        path.unlink()
        self._systemctl("daemon-reload")
        self._systemctl("reset-failed", f"{name}.service", may_fail=True)

    def status(self, name: str) -> int:
        """What `systemctl status` says, on this process's standard output; its exit code."""
        self.path(name)
        return subprocess.run([*self._command("systemctl"), "status", "--no-pager", f"{name}.service"]).returncode

    def logs(self, name: str, lines: int, follow: bool) -> int:
        """What the service wrote, on this process's standard output; journalctl's exit code."""
        self.path(name)
        unit = f"--user-unit={name}.service" if self.user else f"--unit={name}.service"
        command = [self._program("journalctl"), unit, "--no-pager", f"--lines={lines}", "--output=short-iso"]
        return subprocess.run([*command, "--follow"] if follow else command).returncode

    def lingers(self) -> bool:
        """Whether this user's services run while he is not logged in. Always so for the system's."""
        import getpass

        return not self.user or (Path("/var/lib/systemd/linger") / getpass.getuser()).exists()

    def _command(self, name: str) -> list[str]:
        return [self._program(name), "--user"] if self.user else [self._program(name)]

    @staticmethod
    def _program(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            raise RequestError(f"{name}: not found; a service needs systemd, and `pyllama serve` does not")
        return found

    def _systemctl(self, *arguments: str, may_fail: bool = False) -> None:
        done = subprocess.run([*self._command("systemctl"), *arguments], capture_output=True, text=True)
        if done.returncode and not may_fail:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise RequestError(f"systemctl {' '.join(arguments)}: {reason}")
