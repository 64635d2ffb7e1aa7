"""A file -> the rate it can be read at, the way weights are read: direct, in blocks of 4 MB, into huge pages."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllama.checkpoint.files import SECTOR, drop_cache
from pyllama.errors import RequestError, reason_of
from pyllama.streaming.blocks import Span
from pyllama.streaming.direct import DirectFile
from pyllama.streaming.memory import huge_empty

BLOCK = 4 << 20
FILE_NBYTES = 512 << 20  # past the caches of most drives
LEAST_NBYTES = 64 << 20  # a smaller file is measured for too short a time


@dataclass(frozen=True, slots=True)
class Reading:
    """gb_s over `nbytes` read in `seconds`; direct: whether O_DIRECT was used."""

    gb_s: float
    nbytes: int
    seconds: float
    direct: bool


def read_rate(path: Path, *, in_flight: int = 3, seconds: float = 4.0, block: int = BLOCK) -> Reading:
    """Read a file from its start, for so long or to its end, with so many reads under way at once; each at least once.

    What the page cache holds of it is dropped first; direct reads would not use it anyway. Raises RequestError for
    a file smaller than a block, CheckpointError where it cannot be read.
    """
    size = path.stat().st_size // SECTOR * SECTOR
    block = min(block, size)
    if size < SECTOR:
        raise RequestError(f"{path}: {path.stat().st_size} bytes, expected a file of {LEAST_NBYTES >> 20} MB or more")
    drop_cache(path)
    memory = huge_empty(in_flight * block)
    offsets = iter(range(0, size - block + 1, block))  # of all threads: each takes the next

    def read(slot: int) -> int:
        nbytes = 0
        for offset in offsets:
            file.read(Span(path, offset, block), memory[slot * block : (slot + 1) * block])
            nbytes += block
            if time.perf_counter() - started >= seconds:
                break
        return nbytes

    with DirectFile(path) as file, ThreadPoolExecutor(in_flight) as threads:
        started = time.perf_counter()
        try:
            nbytes = sum(threads.map(read, range(in_flight)))
        except BaseException:
            started = -math.inf  # the other threads end with the read that they are at
            raise
        taken = time.perf_counter() - started
        return Reading(nbytes / 1e9 / taken, nbytes, taken, file.direct)


@contextmanager
def temporary_file(folder: Path, nbytes: int, advance: Callable[[int], None] = lambda count: None) -> Iterator[Path]:
    """A file of random bytes in `folder`, on the disk when it is there; gone after the with block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, nbytes)
        descriptor, name = tempfile.mkstemp(prefix="pyllama-bench-", dir=folder)
    except OSError as error:
        raise RequestError(f"{folder}: {reason_of(error)}; give --file FILE") from None
    path = Path(name)
    try:
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                # Random, and no block like another: some drives compress, some find copies.
                noise = np.random.default_rng(1).integers(0, 256, BLOCK, np.uint8)
                for number in range(-(-nbytes // BLOCK)):
                    np.bitwise_xor(noise, np.uint8(number % 255 + 1), out=noise)
                    noise[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
                    file.write(noise[: min(BLOCK, nbytes - number * BLOCK)].data)
                    advance(BLOCK)
                os.fsync(file.fileno())
        except OSError as error:
            raise RequestError(f"{folder}: {reason_of(error)}; give --file") from None
        yield path
    finally:
        path.unlink(missing_ok=True)


def _check_space(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes + (64 << 20):
        raise RequestError(
            f"{folder}: {free // 1_000_000} MB free, expected {nbytes // 1_000_000} to measure the disk; "
            "give --file FILE, an existing large file on that disk"
        )


def largest_file(folders: Iterable[Path]) -> Path | None:
    """The largest model file that lies in these folders, if one is large enough to measure with."""
    walks = (walk for folder in folders for walk in os.walk(folder))
    paths = (Path(at, name) for at, _, names in walks for name in names)
    return largest(path for path in paths if not os.path.islink(path))


def largest(paths: Iterable[Path]) -> Path | None:
    """The largest of these files, if one that can be read is large enough to measure with."""
    best, most = None, LEAST_NBYTES - 1
    for path in paths:
        try:
            size = path.stat().st_size
        except OSError:
            continue
        if size > most and os.access(path, os.R_OK):
            best, most = path, size
    return best
