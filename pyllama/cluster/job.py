"""The ranks of a cluster as one child process, mpiexec's: started, watched, ended.

Each rank gives a sign of life twice a second through mpiexec. Whichever gives none for three seconds is frozen, or its
link is down; one that has ended is named by mpiexec. Either way the job is ended, all of it, and the fault is a line
with the board's name.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyllama.cluster.hosts import Host, is_here
from pyllama.cluster.wire import SOCKET, ClosedError, Link
from pyllama.errors import BoardError, RequestError
from pyllama.printable import one_line

LATE_S = 3.0  # without a sign of life
START_S = 60.0  # until the first one
ABORT_S = 2  # of a rank that has lost its connection to another
_END_S = 1.5  # that mpiexec is given to end its ranks

_KILLED = re.compile(r"process rank (\d+) with PID (\d+) on node (\S+) exited on signal (\d+)")
_ENDED = re.compile(r"Process name: \[[^\]]*,(\d+)\] Exit code: (\d+)")
_PEER = re.compile(
    r"Peer host: (\S+)|lost communication with a remote daemon.* on node (\S+) This is|peer: (\S+) mca_btl_tcp"
)
_ABORTED = re.compile(r"\[([^\s:\[\]]+):\d+\] \*\*\* An error occurred in Socket closed")
# What ssh says, not what mpiexec does of ssh: "plm:ssh: Warning: setpgid(...) failed ... Permission denied(13)", often.
_SSH = re.compile(
    r"^(ssh: [^\n]*|[^\n]*Permission denied \([^\n]*|[^\n]*Host key verification failed[^\n]*)", re.MULTILINE
)
_HARMLESS = re.compile("plm:ssh: Warning")


class Job:
    """Running ranks, the first of which is linked to this process.

    hosts  of each rank
    link   to the first
    signs  what each rank said of itself last: pid, layer, bytes read
    """

    def __init__(self, hosts: Sequence[Host], interface: str | None = None):
        """Starts them. Raises BoardError where they do not come up, and RequestError without MPI."""
        self.hosts = tuple(hosts)
        self.signs: list[dict[str, Any]] = [{} for _ in hosts]
        self._seen = [0.0] * len(hosts)
        self._started = time.monotonic()
        self._fault: str | None = None
        self._ending = False
        self._errors: deque[str] = deque(maxlen=200)
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="pyllama-"))
        try:
            self.link = self._start(interface)
        except BaseException:
            self.end()
            raise

    def _start(self, interface: str | None) -> Link:
        where = str(self._folder / "front")
        (self._folder / "hosts").write_text("".join(f"{host.name}\n" for host in self.hosts))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(where)
            listening.listen(1)
            listening.settimeout(0.1)
            self._process = subprocess.Popen(
                command(self._folder / "hosts", self.hosts, interface),
                env={**os.environ, SOCKET: where, "OMP_WAIT_POLICY": "passive"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the front end's
            )
            for read in (self._read_signs, self._read_errors, self._watch):
                threading.Thread(target=read, name="pyllama-cluster", daemon=True).start()
            while True:
                with contextlib.suppress(TimeoutError):
                    connection, _ = listening.accept()
                    break
                if found := _SSH.search("\n".join(self._errors)):  # mpiexec itself takes its time
                    self._set_fault(f"hosts: {found[1].strip()}")
                if self._fault is not None or self._process.poll() is not None:
                    raise self.fault()
        connection.settimeout(None)
        return Link(connection)

    @property
    def running(self) -> bool:
        return self._fault is None and not self._ending

    def fault(self) -> BoardError:
        """Why the ranks are gone, in one line; ends what is left of them."""
        if self._fault is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2 * _END_S)
            time.sleep(0.1)  # its last words
            self._set_fault(self._last_words())
        self.end()
        return BoardError(self._fault or "")

    def _set_fault(self, text: str) -> None:
        with self._lock:
            self._fault = self._fault or text

    def _last_words(self) -> str:
        text = " ".join(" ".join(self._errors).split())
        if found := _KILLED.search(text):
            number = int(found[4])
            name = signal.Signals(number).name if number in {each.value for each in signal.Signals} else number
            hint = "; was its memory short?" if number == signal.SIGKILL else ""
            return f"{self.name(int(found[1]))}: the rank was ended by signal {name}{hint}"
        peer = _PEER.search(text)
        lost = peer and (peer[1] or peer[2] or peer[3])
        if any(host.name == lost for host in self.hosts):
            return f"{lost}: the rank there has ended, or its link is down"
        if found := _ABORTED.search(text):  # MPI asked nobody
            return f"{found[1]}: lost its connection to another rank, which has ended or whose link is down"
        said = [line for line in self._errors if line.startswith("pyllama: ")]
        if found := _ENDED.search(text):
            return f"{self.name(int(found[1]))}: {said[-1][9:] if said else f'the rank ended with code {found[2]}'}"
        if found := _SSH.search("\n".join(self._errors)):
            return f"hosts: {found[1].strip()}"
        told = (line for line in reversed(self._errors) if line.strip("- ") and not _HARMLESS.search(line))
        last = next(told, "mpiexec ended")
        return one_line(f"hosts: {last}")

    def name(self, rank: int) -> str:
        """A rank by its board, and by its number where several are on one."""
        if not 0 <= rank < len(self.hosts):
            return f"rank {rank}"
        name = self.hosts[rank].name
        several = sum(host.name == name for host in self.hosts) > 1
        return f"{name} (rank {rank})" if several else name

    # --- threads ---

    def _read_signs(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # to the end of whoever has the other one, which may be ssh
            with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
                said = json.loads(line)
                self.signs[said["rank"]] = said
                self._seen[said["rank"]] = time.monotonic()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line.decode("utf-8", "replace").strip("\0 \t\r\n")[:1000])

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._ending:
            time.sleep(0.2)
            now = time.monotonic()
            if now - looked > 1.0:  # this process was stopped itself: the others get their time anew
                self._seen = [seen and now for seen in self._seen]
                self._started += now - looked
            looked = now
            if self._process.poll() is not None:
                break
            late = [rank for rank, seen in enumerate(self._seen) if seen and now - seen > LATE_S]
            if not all(self._seen) and now - self._started > START_S:
                missing = ", ".join(self.name(rank) for rank, seen in enumerate(self._seen) if not seen)
                self._set_fault(f"{missing}: not started within {START_S:.0f} s")
            elif late:
                names = ", ".join(self.name(rank) for rank in late)
                if len(late) == len(self.hosts) > 1:
                    names = "the cluster"
                self._set_fault(f"{names}: no sign of life for {LATE_S:.0f} s: frozen, or its link is down")
            else:
                continue
            self._end_ranks()
            break
        if hasattr(self, "link"):
            self.link.close()  # whoever waits for rank 0 hears of it

    def _end_ranks(self) -> None:
        """mpiexec ends them, if it can; those of this machine are ended by number as well."""
        process = self._process
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        for said, host in zip(self.signs, self.hosts, strict=True):
            if "pid" in said and is_here(host.name) and _is_rank(said["pid"]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(said["pid"], signal.SIGKILL)
        if process.poll() is None:
            process.kill()
        process.wait()

    def _end_group(self) -> None:
        """What mpiexec has left of its own: ssh to a board that does not answer."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Ends the ranks, if they run. Ending twice does nothing."""
        self._ending = True
        if hasattr(self, "link"):
            with contextlib.suppress(ClosedError):
                self.link.send("end")
            if self._fault is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_END_S)
            self.link.close()
        if hasattr(self, "_process"):
            if self._process.poll() is None:
                self._end_ranks()
            self._end_group()
        shutil.rmtree(self._folder, ignore_errors=True)


def _is_rank(pid: int) -> bool:
    try:
        return b"pyllama.cluster.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def command(hostfile: Path, hosts: Sequence[Host], interface: str | None) -> list[str]:
    """What starts the ranks, in the order of their hosts, unbound; faults are found by this process, not by MPI."""
    mpiexec = Path(sys.prefix) / "bin" / "mpiexec"
    found = str(mpiexec) if mpiexec.exists() else shutil.which("mpiexec")
    if found is None:
        from pyllama.extras import how_to_install

        raise RequestError(f"hosts: Open MPI is not installed; {how_to_install('cluster')}")
    words = [
        found,
        "--hostfile",
        str(hostfile),
        "--map-by",
        "seq:OVERSUBSCRIBE",
        "--bind-to",
        "none",
        "--stdin",
        "none",
    ]
    words += ["-n", str(len(hosts)), "-x", SOCKET, "-x", "OMP_WAIT_POLICY"]
    words += ["--mca", "mpi_yield_when_idle", "1"]
    # A rank whose connection to another one breaks ends the job in its own name; what it is given time for is that
    # mpiexec hears, from the daemon beside it, of the rank that has ended, and says how.
    words += ["--mca", "opal_abort_delay", str(ABORT_S)]
    # A board that is gone without a word: its daemon and mpiexec find out within seconds.
    for name, value in (("time", 3), ("intvl", 1), ("probes", 2)):
        words += ["--prtemca", f"oob_tcp_keepalive_{name}", str(value)]
    words += ["--prtemca", "plm_ssh_args", "-o BatchMode=yes -o ConnectTimeout=3 -o ServerAliveInterval=2"]
    if all(is_here(host.name) for host in hosts):
        words += ["--mca", "btl", "self,sm"]
    elif interface:
        words += ["--mca", "btl_tcp_if_include", interface, "--prtemca", "prte_if_include", interface]
    if os.geteuid() == 0:
        words.append("--allow-run-as-root")
    return [*words, sys.executable, "-P", "-m", "pyllama.cluster.worker"]
