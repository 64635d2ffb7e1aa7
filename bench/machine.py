"""What was measured on: CPU, memory, system, versions; and who else was using it meanwhile."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pyllama.measure import machine
from pyllama.measure.others import Others

__all__ = ["Others", "commit", "describe"]


def describe() -> dict:
    """What `pyllama bench` tells of a machine, and the commit. No host name, user or path: results are published."""
    return machine.describe() | {"commit": commit()}


def commit() -> str:
    """Of the tree this script lies in, with a + if the package there was changed since."""

    def git(*arguments: str) -> str:
        try:
            command = ["git", "-C", Path(__file__).resolve().parent.parent, *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    changed = git("status", "--porcelain", "--", "pyllama")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
