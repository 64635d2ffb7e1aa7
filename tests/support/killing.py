"""Processes that are killed just before a chosen change to the disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyllama

_COUNTED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def counted(call):
    def wrapped(*args, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return wrapped
def count(*names):
    for name in names:
        setattr(os, name, counted(getattr(os, name)))
"""


def run_killed(program: str, step: int, *arguments: str | Path) -> int:
    """Run a Python program, and kill it just before the step-th call of what it has passed to count() by name, of `os`.

    Returns 0, or the steps that its whole life has. The program finds its arguments from sys.argv[1] on.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(pyllama.__file__).parents[1])}
    command = [sys.executable, "-c", f"{_COUNTED}{program}\nprint(-left)", str(step), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return step + int(done.stdout) if done.returncode == 0 else 0
