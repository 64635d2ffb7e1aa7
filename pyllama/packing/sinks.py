"""Where a file that is being packed goes, piece by piece: to a disk here, or (cluster/pushing.py) to another board."""

import errno
import os
from pathlib import Path
from typing import Protocol

from pyllama.checkpoint.files import SECTOR
from pyllama.closing import Closing

SYNC_NBYTES = 64 << 20  # that the page cache may hold of a file


class Sink(Protocol):
    """Where a file of a packed model goes: pieces of it, each at its place, and in the end all of it or nothing."""

    def write(self, data: memoryview, at: int, direct: bool = False) -> None:
        """direct: `data` begins on a page boundary in memory and in the file."""
        ...

    def finish(self, crc32: int) -> None:
        """All is written; crc32: of the header. Returns once it is there to stay."""
        ...

    def close(self) -> None: ...


class FileSink(Closing):
    """A new file, past the page cache where that works: it would fill with what nobody reads, and push out what
    somebody does."""

    def __init__(self, path: Path):
        flags = os.O_WRONLY | os.O_CLOEXEC
        self._fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
        self._direct = -1
        self._cached = 0  # bytes of it that the page cache may hold
        if hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(path, flags | os.O_DIRECT)
            except OSError:  # tmpfs and others have no direct writes
                pass

    def write(self, data: memoryview, at: int, direct: bool = False) -> None:
        direct = direct and self._direct >= 0
        done = 0
        while done < len(data):
            direct = direct and done % SECTOR == 0  # a short write ends anywhere
            try:
                done += os.pwrite(self._direct if direct else self._fd, data[done:], at + done)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                direct = False  # accepted at opening, refused now
        if not direct:
            self._cached += len(data)
            if self._cached > SYNC_NBYTES:
                # Waits until these pages are on the disk: before, there is nothing to drop.
                os.fdatasync(self._fd)
                self._drop()

    def finish(self, crc32: int = 0) -> None:
        os.fsync(self._fd)
        self._drop()

    def _drop(self) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._cached = 0

    def close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1
