"""Files opened read-only and read at given offsets: short reads continued, errors named.

Knows sizes and bytes, and no format.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyllama.closing import Closing
from pyllama.errors import CheckpointError, reason_of

SECTOR = 4096  # direct reads begin and end on such a boundary, and so do blocks of packed files


def padded(nbytes: int) -> int:
    """Bytes of whole sectors."""
    return -(-nbytes // SECTOR) * SECTOR


def read_at(fd: int, offset: int, buffer: memoryview, nbytes: int, multiple: int = 1) -> int:
    """Read `nbytes` bytes into the buffer, going on where a read was short; how many came before the file's end.

    multiple  where reads begin and, unless the file ends, end: what came beyond it is read again

    Raises OSError.
    """
    done = 0
    while done < nbytes:
        start = done - done % multiple
        count = os.preadv(fd, [buffer[start:]], offset + start)
        if start + count <= done:
            break
        done = start + count
    return done


class Descriptor(Closing):
    """An open file's descriptor, closed by close(), and when nobody has the object: a process may have some thousand.

    fd  the descriptor; -1: closed, or never open
    """

    fd = -1

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


class InputFile(Descriptor):
    """An open file: `path`, `nbytes`, and reads that give all the bytes asked for or raise.

    Reads use their own offset (pread), so threads can share one. The size is the one at opening: a
    file that shrinks later is found by the read that comes up short.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            # O_NONBLOCK: opening a FIFO must not wait for a writer; it is refused below.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot open {path}: {reason_of(error)}") from None
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CheckpointError(f"cannot read {path}: not a regular file")
        self.nbytes = status.st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (bytes, writable) from `offset`."""
        try:
            done = read_at(self.fd, offset, buffer, len(buffer))
        except OSError as error:
            what = f"cannot read {len(buffer)} bytes at {offset} of {self.path}"
            raise CheckpointError(f"{what}: {reason_of(error)}") from None
        if done < len(buffer):
            raise CheckpointError(
                f"{self.path}: nothing at byte {offset + done}, expected {self.nbytes} (did the file shrink?)"
            )

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes from `offset`. The range is checked against the size before memory is taken."""
        if nbytes < 0 or offset < 0 or offset + nbytes > self.nbytes:
            raise CheckpointError(
                f"{self.path}: ends at {self.nbytes}, expected {nbytes} bytes at {offset} (truncated?)"
            )
        data = bytearray(nbytes)
        self.read_into(offset, memoryview(data))
        return bytes(data)


def drop_cache(path: Path) -> None:
    """Give up what the page cache holds of a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextmanager
def opening() -> Iterator[dict[Path, InputFile]]:
    """A place for the files that something opens: closed again should it fail."""
    files: dict[Path, InputFile] = {}
    try:
        yield files
    except BaseException:
        for file in files.values():
            file.close()
        raise


def read_small(path: Path, limit: int) -> bytes:
    """The whole of a file that should be small, such as a config; more than `limit` bytes are refused."""
    with InputFile(path) as file:
        if file.nbytes > limit:
            raise CheckpointError(f"{path}: {file.nbytes} bytes, expected at most {limit}")
        return file.read(0, file.nbytes)
