"""Unit files put in place, and systemctl and journalctl called to do the rest. Refuses to know what is in a unit."""

import os
import re
import shutil
import subprocess
import sys
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
            # sudo has a PATH of its own, which leads to no virtual environment.
            program = os.path.abspath(sys.argv[0]) if os.path.basename(sys.argv[0]) == "pyllama" else "pyllama"
            raise RequestError(
                f"service {what}: changes the system, so it takes root: sudo {program} service {what} ..., or --user"
                " for your own"
            )

    def install(self, name: str, text: str) -> None:
        """Put a unit in place, have it started at boot, and (re)start it; returns once it is ready.

        Raises RequestError if systemd refuses any of it.
        """
        self._check_running()  # before anything is written
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
        links = [folder / path.name for folder in path.parent.glob("*.wants")]
        left = [one for one in (path, path.with_suffix(".new"), *links) if one.exists() or one.is_symlink()]
        if not left:
            raise RequestError(f"{path}: no such unit; --name says which, --user whether it is yours")
        # What an install that failed has left may be no unit that systemd knows, or no systemd may run.
        self._systemctl("disable", "--quiet", "--now", f"{name}.service", may_fail=True)
        if purge:
            self._systemctl("clean", "--what=state", f"{name}.service", may_fail=path not in left)
        for one in left:
            one.unlink(missing_ok=True)  # disable has removed its links
        self._systemctl("daemon-reload", may_fail=True)
        self._systemctl("reset-failed", f"{name}.service", may_fail=True)

    def status(self, name: str) -> int:
        """What `systemctl status` says, on this process's standard output; its exit code."""
        self.path(name)
        return subprocess.run(self._command("status", "--no-pager", f"{name}.service")).returncode

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

    def _check_running(self) -> None:
        """Raises RequestError where systemctl is not there, or nobody listens to it (a container, another init)."""
        reason = self._failure("list-units", "--no-pager", "--no-legend", "pyllama*.service")
        if reason:
            raise RequestError(
                f"systemctl does not answer ({reason}); a service needs systemd, `pyllama serve` does not"
            )

    def _command(self, *arguments: str) -> list[str]:
        return [self._program("systemctl"), *(("--user",) if self.user else ()), *arguments]

    @staticmethod
    def _program(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            raise RequestError(f"{name}: not found; a service needs systemd, and `pyllama serve` does not")
        return found

    def _systemctl(self, *arguments: str, may_fail: bool = False) -> None:
        reason = self._failure(*arguments)
        if reason and not may_fail:
            raise RequestError(f"systemctl {' '.join(arguments)}: {reason}")

    def _failure(self, *arguments: str) -> str:
        """Why systemctl failed; "" if it did not."""
        done = subprocess.run(self._command(*arguments), capture_output=True, text=True)
        return (" ".join(done.stderr.split()) or f"exit code {done.returncode}") if done.returncode else ""
