"""A destination -> the folder beside it where the work is done, locked, and renamed to it when all is whole.

The journal in it says what the work is, so that the next run can tell whether what lies there is the beginning of
the same. What the work is made of is not known here.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pyllama.errors import PackError, RequestError, reason_of
from pyllama.machine.durable import sync

JOURNAL = ".pyllama-journal.json"
PARTIAL = ".part"  # ends the name of a file that is being written


class Workplace:
    """`folder`, DST's name with `suffix` added; a context manager that holds its lock.

    kind, content  what is made there, and what that is, for messages

    Raises RequestError where `destination` is taken or has no folder to lie in, PackError where another process
    works at it.
    """

    kind = "folder"
    content = "model"

    def __init__(self, destination: str | os.PathLike[str], suffix: str = ".packing"):
        self.destination = Path(os.path.abspath(destination))
        self.folder = self.destination.with_name(self.destination.name + suffix)
        parent = self.destination.parent
        if not parent.is_dir():
            raise RequestError(f"{destination}: no folder {parent}, expected one to put the {self.content} in")
        if self._taken():
            raise RequestError(f"{destination}: already there, expected the name of a {self.kind} to be made")
        self._fd = -1

    def _taken(self) -> bool:
        """Whether something lies there that a folder cannot replace. Tidies up after a run killed at its very end."""
        journal = self.destination / JOURNAL
        if journal.is_file():
            journal.unlink()
        try:
            return bool(os.listdir(self.destination))
        except NotADirectoryError:
            return True
        except FileNotFoundError:
            return self.destination.is_symlink()

    def __enter__(self) -> Self:
        with disk_errors(self.destination):
            while self._fd < 0:
                self.folder.mkdir(exist_ok=True)
                self._lock()
            sync(self.folder.parent)
        return self

    def _lock(self) -> None:
        try:
            self._fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._fd), os.stat(self.folder)):
                return
        except FileNotFoundError:
            pass  # another process has just finished with it
        except BlockingIOError:
            raise PackError(f"{self.folder}: another process is at work in it") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            return  # a file system without locks
        self._unlock()

    def _unlock(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def journal(self) -> Any:
        """What an earlier run wrote down; None where none did. PackError for what is no folder of ours."""
        path = self.folder / JOURNAL
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            foreign = [name for name in os.listdir(self.folder) if name != JOURNAL + PARTIAL]
            if foreign:
                raise PackError(f"{self.folder}: in the way, and not left by pyllama; move it elsewhere") from None
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise PackError(f"{path}: cannot be read: {error}") from None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise PackError(f"{path}: damaged; if no source file was deleted yet, remove {self.folder}") from None

    def write_journal(self, value: Any) -> None:
        self.write(JOURNAL, json.dumps(value).encode())

    def write(self, name: str, data: bytes) -> None:
        """A small file, whole or not at all, on the disk to stay."""
        path = self.folder / (name + PARTIAL)
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.keep(path)

    def keep(self, partial: Path) -> Path:
        """Give a file, whole and on the disk, the name without PARTIAL."""
        final = partial.with_name(partial.name.removesuffix(PARTIAL))
        os.replace(partial, final)
        sync(self.folder)
        return final

    def drop_partial(self) -> None:
        for name in os.listdir(self.folder):
            if name.endswith(PARTIAL):
                os.unlink(self.folder / name)

    def clear(self) -> None:
        """Remove what is in the folder, the journal last."""
        for name in sorted(os.listdir(self.folder), key=lambda name: name.startswith(JOURNAL)):
            os.unlink(self.folder / name)

    def finish(self) -> None:
        """The folder becomes the destination."""
        sync(self.folder)
        try:
            os.rename(self.folder, self.destination)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise PackError(f"{self.destination}: has come to exist; what was made is in {self.folder}") from None
            raise
        sync(self.destination.parent)
        (self.destination / JOURNAL).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __exit__(self, *exception: object) -> None:
        self._unlock()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns OSError into one line that says what to do: `with disk_errors(path): ...`"""
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename is not None else path
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else reason_of(error)
        raise PackError(f"{where}: {reason}") from None
