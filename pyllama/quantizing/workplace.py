"""Where a file is made that takes hours: a folder beside it, with how far the work is, until the file is whole.

The file grows from its first byte to its last. Now and then what was written is brought to the disk, and a mark says
so: how far, and the checksum of all before. After a kill the work goes on from the last mark.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from pyllama.closing import Closing
from pyllama.errors import PackError, RequestError
from pyllama.packing.workplace import JOURNAL, Workplace, sync

SUFFIX = ".quantizing"
UNFINISHED = "unfinished"
MARK = "mark.json"
STATE = "importance.npz"  # how far a calibration is
MARK_NBYTES = 64 << 20  # written between two marks
_CHUNK = 4 << 20


class Mark(NamedTuple):
    """How far the file is: `nbytes` of it are on the disk, up to row `row` of tensor `tensor`."""

    tensor: int
    row: int
    nbytes: int
    crc32: int


class FileWorkplace(Workplace):
    """The folder beside a file to be made; a context manager that holds its lock.

    Raises RequestError where the file is there already or has no folder to lie in, PackError where another process
    works at it.
    """

    def __init__(self, destination: str | os.PathLike[str]):
        self.destination = Path(os.path.abspath(destination))
        self.folder = self.destination.with_name(self.destination.name + SUFFIX)
        self._fd = -1
        if not self.destination.parent.is_dir():
            raise RequestError(f"{destination}: no folder {self.destination.parent}, expected one to put the file in")
        if os.path.lexists(self.destination):
            self._tidy()
            raise RequestError(f"{destination}: already there, expected the name of a file to be made")

    def _tidy(self) -> None:
        """Remove what a run left that was killed when its file had just got its name."""
        try:
            if set(os.listdir(self.folder)) <= {JOURNAL, MARK, STATE}:
                self.abandon()
        except (FileNotFoundError, NotADirectoryError):
            pass

    @property
    def unfinished(self) -> Path:
        return self.folder / UNFINISHED

    def mark(self) -> Mark | None:
        """The last mark, if the file still has what it says; costs reading that much."""
        try:
            found = Mark(*json.loads((self.folder / MARK).read_bytes()))
            with open(self.unfinished, "rb") as file:
                left, crc32 = found.nbytes, 0
                while left and (data := file.read(min(left, _CHUNK))):
                    crc32 = zlib.crc32(data, crc32)
                    left -= len(data)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return found if left == 0 and crc32 == found.crc32 else None

    def finish(self) -> None:
        """The unfinished file, whole by now, becomes the destination."""
        if os.path.lexists(self.destination):
            raise PackError(f"{self.destination}: has come to exist; what was made is {self.unfinished}")
        os.rename(self.unfinished, self.destination)
        sync(self.destination.parent)
        self.clear()
        os.rmdir(self.folder)


class GrowingFile(Closing):
    """A file that is written from the beginning, or from a mark on; a context manager.

    Raises OSError where the disk fails or is full.
    """

    def __init__(self, work: FileWorkplace, mark: Mark | None):
        self._work = work
        self._fd = os.open(work.unfinished, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._nbytes = mark.nbytes if mark else 0
        self._crc32 = mark.crc32 if mark else 0
        self._reached = mark
        self._marked = self._nbytes
        os.ftruncate(self._fd, self._nbytes)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def write(self, data: bytes | memoryview) -> None:
        """All of it, at the end."""
        view = memoryview(data)
        self._crc32 = zlib.crc32(view, self._crc32)
        while len(view):
            count = os.pwrite(self._fd, view, self._nbytes)
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._work.unfinished))
            self._nbytes += count
            view = view[count:]

    def fill(self, nbytes: int) -> None:
        """Zeros up to this size."""
        self.write(bytes(nbytes - self._nbytes))

    def reached(self, tensor: int, row: int) -> None:
        """Everything up to this row is written: bring it to the disk and say so, if there is enough of it."""
        self._reached = Mark(tensor, row, self._nbytes, self._crc32)
        if self._nbytes - self._marked >= MARK_NBYTES:
            self.keep()

    def keep(self) -> None:
        """A mark of what was reached last."""
        mark = self._reached
        if mark is not None and mark.nbytes > self._marked:
            self.sync()
            self._work.write(MARK, json.dumps(mark).encode())
            self._marked = mark.nbytes

    def sync(self) -> None:
        os.fsync(self._fd)
        # The page cache is for others: what is on the disk may leave it.
        os.posix_fadvise(self._fd, 0, self._nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._fd)
