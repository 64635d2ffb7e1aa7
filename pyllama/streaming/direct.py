"""Files read past the page cache: aligned O_DIRECT reads where the file system has them.

The page cache would keep a second copy of every block, and evict, on a cyclic scan, just what is needed next.
Where O_DIRECT is refused, buffered reads are followed by POSIX_FADV_DONTNEED. Knows no tensors.
"""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np

from pyllama.checkpoint.files import SECTOR, Descriptor, read_at
from pyllama.checkpoint.index import Span
from pyllama.errors import CheckpointError, reason_of


class DirectFile(Descriptor):
    """One file, open for reads of any range by several threads. `direct` tells whether O_DIRECT is in use."""

    def __init__(self, path: Path):
        self.path = path
        self.direct = hasattr(os, "O_DIRECT")
        try:
            try:
                self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECT", 0))
            except OSError:
                self.direct = False
                self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"cannot open {path}: {reason_of(error)}") from None
        self._state = self._status()

    def _status(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns

    def read(self, span: Span, memory: np.ndarray) -> np.ndarray:
        """The span's bytes, as a view into `memory` (uint8, span.room bytes, from a SECTOR boundary).

        Reads in whole sectors. Raises CheckpointError for an I/O error, for an end of file inside the span, and
        for a file that has changed since it was opened.
        """
        skip = span.offset % SECTOR
        start, want = span.offset - skip, skip + span.nbytes
        direct = self.direct
        try:
            done = read_at(self.fd, start, memory[: span.room].data, want, SECTOR)
        except OSError as error:
            if direct and error.errno == errno.EINVAL:  # accepted at opening, refused at reading (some FUSE)
                self._give_up_direct()
                return self.read(span, memory)
            raise CheckpointError(
                f"cannot read {span.nbytes} bytes at {span.offset} of {self.path}: {reason_of(error)}"
            ) from None
        if not self.direct:
            os.posix_fadvise(self.fd, start, done, os.POSIX_FADV_DONTNEED)
        if done < want or self._status() != self._state:
            raise CheckpointError(
                f"{self.path}: changed while in use (was {self._state[0]} bytes); load the model again"
            )
        return memory[skip:want]

    def _give_up_direct(self) -> None:
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        self.direct = False
