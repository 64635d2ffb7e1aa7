"""pyllama as a process of its own: through pipes, and on a pseudo-terminal."""

import errno
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

DEADLINE_S = 120  # on an emulator everything takes its time


def pyllama_process(*args, **options):
    return subprocess.Popen([sys.executable, "-m", "pyllama", *map(str, args)], **options)


def pyllama_run(*args, **options):
    options = {"capture_output": True, "timeout": DEADLINE_S, **options}
    return subprocess.run([sys.executable, "-m", "pyllama", *map(str, args)], **options)


class Terminal:
    """A pyllama process on a pseudo-terminal of its own."""

    def __init__(self, *args, environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ |= environment
            os.execv(sys.executable, [sys.executable, "-m", "pyllama", *map(str, args)])
        self.environment = environment
        self.output = self.seen = ""

    def read_until(self, pattern: str) -> str:
        """What came up to the end of the first match, which is not looked at again."""
        deadline = time.monotonic() + DEADLINE_S
        while not (match := re.search(pattern, self.output)):
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"waited for {pattern!r}, got {self.output!r}"
            try:
                raw = os.read(self.fd, 65536)
            except OSError as error:
                assert error.errno == errno.EIO  # the other side is gone
                raw = b""
            assert raw, f"ended before {pattern!r}: {self.output!r}"
            text = raw.decode("utf-8", "replace").replace("\r\n", "\n")
            self.output += text
            self.seen += text
        seen, self.output = self.output[: match.end()], self.output[match.end() :]
        return seen

    def type(self, text: str):
        os.write(self.fd, text.encode())

    def interrupt_until(self, pattern: str):
        """Ctrl-C at the prompt, and again: one that comes just as input() begins to wait is seen at the next key."""
        for _ in range(20):
            self.type("\x03")
            if select.select([self.fd], [], [], 2)[0]:
                break
        self.read_until(pattern)

    def wait(self) -> int:
        """The exit code, once everything it wrote was read."""
        try:
            while raw := os.read(self.fd, 65536):
                self.output += raw.decode("utf-8", "replace")
        except OSError:
            pass
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)
