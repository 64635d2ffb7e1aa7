"""A board by its name -> a process of pyllama on it, reached by ssh, that this one talks to over a Link.

On this machine the same process is started without ssh. What is said is not known here.
"""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from pyllama.closing import Closing
from pyllama.cluster.hosts import is_here
from pyllama.cluster.wire import ClosedError, Link, Pipes
from pyllama.errors import BoardError, PyllamaError
from pyllama.printable import one_line
from pyllama.version import __version__

_MARK = b"\n<pyllama>\n"  # what a login shell prints comes before it
_NOISE = 1 << 16
CONNECT_S = 5


def ssh() -> list[str]:
    """The words of ssh: MPI's own setting of which one, so that one serves both."""
    agent = os.environ.get("PRTE_MCA_prte_ssh_agent", "").split(":")[0].strip()
    return [*shlex.split(agent or "ssh"), "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}",
            "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]  # fmt: skip


def words_of(module: str) -> list[str]:
    """The command that runs a module of this pyllama, which other boards have at the same path."""
    return [sys.executable, "-P", "-m", module]


class Remote(Closing):
    """A module of pyllama at work on a board; a context manager.

    name  the board's
    link  to the process, which has said its version already
    """

    def __init__(self, name: str, module: str):
        """Starts it. Raises BoardError where the board is not reached, or has no pyllama or another version."""
        self.name = name
        words = words_of(module)
        if not is_here(name):
            words = [*ssh(), name, "exec " + shlex.join(words)]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is this process's
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        out, back = (os.dup(stream.fileno()) for stream in (self._process.stdin, self._process.stdout))
        self._process.stdin.close()
        self._process.stdout.close()
        self.link = Link(Pipes(back, out))
        try:
            self._skip_noise(back)
            version = self.receive("hello")["version"]
            if version != __version__:
                raise BoardError(f"{name}: pyllama {version}, expected {__version__} as here")
        except BaseException:
            self.close()
            raise

    def _skip_noise(self, fd: int) -> None:
        seen = b""
        while not seen.endswith(_MARK):
            byte = os.read(fd, 1)
            if not byte or len(seen) > _NOISE:
                self.fail()
            seen += byte

    def send(self, kind: str, data: Any = b"") -> None:
        """Raises BoardError, with what the board said last."""
        try:
            self.link.send(kind, data)
        except ClosedError:
            self._told()

    def receive(self, kind: str) -> Any:
        """JSON of the next message, which is of this kind. Raises BoardError where the board says otherwise."""
        import json

        try:
            heard, data = self.link.receive()
        except ClosedError:
            self.fail()
        if heard == "error":
            raise BoardError(f"{self.name}: {bytes(data).decode('utf-8', 'replace')}")
        if heard != kind:
            self.fail()
        return json.loads(data or b"null")

    def _told(self) -> NoReturn:
        """Why the process has gone, which it may have said before."""
        while True:
            self.receive("")

    def fail(self) -> NoReturn:
        """Why there is no answer, as far as ssh or Python told."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        if self._process.poll() is None:
            self._process.kill()
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode("utf-8", "replace").splitlines()
        told = [line.strip() for line in lines if line.strip()] or ["the connection was lost"]
        if any("No module named" in line or "not found" in line or "No such file" in line for line in told):
            raise BoardError(f"{self.name}: no pyllama at {sys.executable} there, expected the same path as here")
        raise BoardError(one_line(f"{self.name}: {told[-1].removeprefix('pyllama: ')}"))

    def close(self) -> None:
        """End it."""
        self.link.close()
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


@contextlib.contextmanager
def answering() -> Iterator[Link]:
    """The link to whoever started this process, whose end ends the block; so does a PyllamaError, told over it."""
    link = accept()
    try:
        yield link
    except ClosedError:
        pass
    except PyllamaError as error:
        with contextlib.suppress(ClosedError):
            link.send("error", str(error).encode())


def accept() -> Link:
    """The other end, on the board: standard input and output, and nothing else may print there."""
    out = os.dup(1)
    os.dup2(2, 1)
    os.write(out, _MARK)
    link = Link(Pipes(0, out))
    link.send("hello", {"version": __version__})
    return link
