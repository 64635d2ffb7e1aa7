"""Files opened read-only and read at given offsets: short reads continued, errors named.

Knows sizes and bytes, and no format.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyllama.errors import CheckpointError, reason_of


class InputFile:
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
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"cannot read {len(buffer)} bytes at {offset} of {self.path}: {reason_of(error)}"
                ) from None
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: nothing at byte {offset + done}, expected {self.nbytes} (did the file shrink?)"
                )
            done += count

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes from `offset`. The range is checked against the size before memory is taken."""
        if nbytes < 0 or offset < 0 or offset + nbytes > self.nbytes:
            raise CheckpointError(
                f"{self.path}: ends at {self.nbytes}, expected {nbytes} bytes at {offset} (truncated?)"
            )
        data = bytearray(nbytes)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_small(path: Path, limit: int) -> bytes:
    """The whole of a file that should be small, such as a config; more than `limit` bytes are refused."""
    file = InputFile(path)
    try:
        if file.nbytes > limit:
            raise CheckpointError(f"{path}: {file.nbytes} bytes, expected at most {limit}")
        return file.read(0, file.nbytes)
    finally:
        file.close()
