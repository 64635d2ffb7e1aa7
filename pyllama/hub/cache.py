"""A repository and a commit become paths inside the Hub's own cache, and locks and links there.

The layout is huggingface_hub's, so that either finds what the other fetched:
models--org--name/ holds blobs/<hash> (the bytes), snapshots/<commit>/<file>
(relative links to them) and refs/<revision> (the commit). Does not use the
network, and does not know which files a model needs.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyllama.errors import HubError
from pyllama.hub.names import COMMIT
from pyllama.machine.durable import sync

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def hub_cache() -> Path:
    """The folder of all repositories, by the same environment variables as huggingface_hub."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(expanded(cache or os.path.join(hf_home(), "hub")))


def hf_home() -> str:
    return os.environ.get("HF_HOME") or os.path.join(xdg_cache(), "huggingface")


def xdg_cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")


def expanded(path: str) -> str:
    return os.path.abspath(os.path.expandvars(os.path.expanduser(path)))


def is_offline() -> bool:
    return is_on("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def is_on(*names: str) -> bool:
    """Whether the first of these environment variables that is set says yes."""
    value = next(filter(None, map(os.environ.get, names)), "")
    return value.upper() in {"1", "ON", "YES", "TRUE"}


class Repository:
    """One repository's folder in the cache. Nothing is created before it is needed."""

    def __init__(self, repository: str) -> None:
        self.cache = hub_cache()
        self.folder_name = "models--" + repository.replace("/", "--")
        self.folder = self.cache / self.folder_name

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest

    def partial(self, digest: str) -> Path:
        """Where a blob's bytes gather until they are all there."""
        return self.folder / "blobs" / f"{digest}.incomplete"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def commit(self, revision: str) -> str | None:
        """The commit a revision stood for when it was last fetched, or None."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise HubError(f"{self.folder / 'refs' / revision}: {error}") from error
        return commit if COMMIT.fullmatch(commit) else None

    def holds(self, commit: str, file_name: str, nbytes: int, digest: str) -> bool:
        """Whether a snapshot has this file, linking it to its blob if only that is there."""
        if _nbytes(self.snapshot(commit) / file_name) == nbytes:
            return True
        if _nbytes(self.blob(digest)) != nbytes:
            return False
        self.link(commit, file_name, digest)
        return True

    def link(self, commit: str, file_name: str, digest: str) -> None:
        """Make snapshots/<commit>/<file_name> stand for the blob, whatever was there before."""
        pointer, blob = self.snapshot(commit) / file_name, self.blob(digest)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(blob, pointer.parent)
        try:
            try:
                os.symlink(target, pointer)
            except FileExistsError:
                # Never takes a right link away, not even for a moment: a model may be opened through it.
                if not (pointer.is_symlink() and os.readlink(pointer) == target):
                    pointer.unlink()
                    os.symlink(target, pointer)
        except FileExistsError:
            pass  # another pull was quicker
        except OSError:
            # exFAT has no links; there huggingface_hub moves the blob to its name, and so do we.
            os.replace(blob, pointer)

    def keep(self, digest: str) -> None:
        """Give a whole, checked partial file its final name; on return it is on the disk to stay."""
        partial, blob = self.partial(digest), self.blob(digest)
        try:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, blob)
        except FileNotFoundError:
            # Where locks hold nobody back, another pull of the same bytes may have been first.
            if not blob.is_file():
                raise
        sync(blob.parent)

    def set_commit(self, revision: str, commit: str) -> None:
        """Record that `revision` stands for `commit`, whose files are all there."""
        if revision != commit:
            write_atomically(self.folder / "refs" / revision, commit)

    @contextmanager
    def locked(self, digest: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock huggingface_hub takes for this blob; `waiting()` is called if somebody has it."""
        path = self.cache / ".locks" / self.folder_name / f"{digest}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path, waiting):
            yield


@contextmanager
def exclusive_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """flock on a file of its own; freed by the kernel when the process ends, however it ends.

    Where the file system has no locks the work goes on without: two processes
    then write the same bytes to the same places, and each checks its own.
    """
    descriptor = -1
    try:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            # Whoever had the lock may have deleted its file (newer filelock does): then ours guards nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    break
            os.close(descriptor)
            descriptor = -1
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")
    with open(fresh, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    sync(path.parent)


def _nbytes(path: Path) -> int | None:
    """Size of the file a path leads to, None if it leads to none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
