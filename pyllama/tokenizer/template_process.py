"""Renders templates of strangers in another process, which the kernel keeps small and this one ends in time.

Steps are counted inside the interpreter (sandbox.py); what one of them takes is not: compiling a template, a method
that allocates, a library's own loops. A limit on an address space, and one on processor time, hold for all of it. The
process is started when it is first needed, serves every template of this one, and goes with the last of them. It is a
new interpreter, started with vfork: nothing is copied, however large this process is, and no lock of its other threads
is taken along.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from pyllama.errors import RequestError, TokenizerError, reason_of
from pyllama.tokenizer.marks import Marks

START_S = 10.0
#: What an idle process of the kind takes, and what a template may take on top.
NBYTES = (22 + 40) << 20
#: Of an answer, whatever a template's own limits let through.
_MAX_ANSWER_NBYTES = 40 << 20
_KINDS = {b"t": "text", b"r": "refused", b"b": "bad", b"s": "spent"}
# The two packages stand in for themselves: their __init__ would load NumPy.
_BOOT = """\
import sys, types
root, *paths = sys.argv[1:]
sys.path += paths
for name in ("pyllama", "pyllama.tokenizer"):
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [root + name[7:].replace(".", "/")]
from pyllama.tokenizer.template_worker import main
main()
"""
_ENVIRONMENT = ("LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH", "PATH", "TZ", "TZDIR")


class TemplateProcess:
    """The process and its pipes. One request at a time; more wait."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def render(self, source: str, variables: dict[str, Any], marks: Marks, seconds: float) -> tuple[str, str]:
        """As Renderer.render of sandbox.py. TokenizerError: there is no process, or it was ended."""
        if self._owner != os.getpid():  # forked: the lock and the pipes were the parent's
            TemplateProcess.__init__(self)
        own = {"marks": marks.originals, "seconds": 0.95 * seconds}  # so that it can still say what took so long
        request = {"source": source, "variables": variables, **own}
        try:
            text = json.dumps(request, ensure_ascii=False, check_circular=False)
        except ValueError as error:  # an integer of thousands of digits
            raise RequestError.about("messages", f"{str(error)[:100].lower()}") from None
        data = text.encode("utf-8", "surrogatepass")
        with self._lock:
            running, self._running = self._running, None  # whatever goes wrong below, it is not used again
            if running is not None and running.has_ended():
                running.stop()
                running = None
            running = running or _Running()
            try:
                kind, answer = running.ask(data, seconds)
            except BaseException:
                running.stop()
                raise
            if kind == "spent":
                running.stop()
            else:
                self._running = running
        return kind, answer


class _Running:
    """One process that has said hello."""

    def __init__(self) -> None:
        paths = [_folder_of("jinja2"), _folder_of("markupsafe")]
        command = [sys.executable, "-I", "-S", "-c", _BOOT, str(Path(__file__).parents[1]), *paths]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,  # Ctrl-C is for this process
            )
        except (OSError, ValueError) as error:
            reason = reason_of(error).lower()
            raise TokenizerError(f"chat template: the process that renders it does not start: {reason}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        # Also when nobody asks it anything any more, or this interpreter ends.
        self.stop = weakref.finalize(self, _end, self._process, os.getpid())
        try:
            os.set_blocking(self._in, False)
            os.set_blocking(self._out, False)
            late = f"the process that renders it did not begin within {START_S:g} seconds"
            self._exchange(b"", 1, time.monotonic() + START_S, late)
        except BaseException:
            self.stop()
            raise

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, request: bytes, seconds: float) -> tuple[str, str]:
        deadline = time.monotonic() + seconds
        late = f"more than {max(1, round(seconds))} seconds"
        data = len(request).to_bytes(8, "little") + request
        head = self._exchange(data, 9, deadline, late)
        kind, nbytes = _KINDS.get(head[:1]), int.from_bytes(head[1:], "little")
        if kind is None or nbytes > _MAX_ANSWER_NBYTES:
            raise TokenizerError("chat template: the process that renders it answered out of turn")
        try:
            return kind, str(self._exchange(b"", nbytes, deadline, late), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise TokenizerError("chat template: the process that renders it answered with no text") from None

    def _exchange(self, data: bytes, nbytes: int, deadline: float, late: str) -> bytes:
        """Write all of `data` and read so many bytes, neither waiting for the other. TokenizerError."""
        unsent, received = memoryview(data), bytearray()
        while unsent or len(received) < nbytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TokenizerError(f"chat template: {late}")
            poll = select.poll()
            poll.register(self._out, select.POLLIN)
            if unsent:
                poll.register(self._in, select.POLLOUT)
            for descriptor, _ in poll.poll(left * 1000):
                try:
                    if descriptor == self._in:
                        unsent = unsent[os.write(self._in, unsent[: 1 << 20]) :]
                        continue
                    part = os.read(self._out, min(nbytes - len(received), 1 << 20) or 1)
                except BlockingIOError:
                    continue
                except OSError:
                    part = b""
                if not part:
                    raise TokenizerError(f"chat template: {self._how_it_ended()}")
                received += part
        if len(received) > nbytes:
            raise TokenizerError("chat template: the process that renders it answered out of turn")
        return bytes(received)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            code = None
        how = {None: "closed its pipe", -24: "took more time than it may"}.get(
            code, f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
        )
        return f"the process that renders it {how}"


def _end(process: subprocess.Popen, owner: int) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if owner != os.getpid():
        process.returncode = 0  # not ours to end or to wait for
        return
    process.kill()
    process.wait()


def _folder_of(package: str) -> str:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise TokenizerError(f"chat template: the package {package} is missing")
    return str(Path(spec.origin).parents[1])


_shared: weakref.ref[TemplateProcess] | None = None


def shared() -> TemplateProcess:
    """The one of this interpreter, as long as anybody holds it."""
    global _shared
    process = _shared() if _shared is not None else None
    if process is None:
        process = TemplateProcess()
        _shared = weakref.ref(process)
    return process
