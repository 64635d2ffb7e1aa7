"""Pages of the KV cache as files in a directory, so that a restart does not cost what is known.

    <directory>/<model>/<text>.page        names are digests
    b"pyllama page 1\n"  sha256 of all that follows  path length (uint32)  path  page

The path is the tokens of the text up to and in this page, 32 to a page, as int32; all numbers little-endian. A file
is written under another name, synced and renamed, so it is whole or not there; the checksum catches what a disk does
to it later. Files of other models in the directory are left alone until their room is needed. What is written can be
read back by whoever can read the directory: conversations, in effect. So it belongs to the user alone.
"""

import hashlib
import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyllama.decoder.page_pool import POSITIONS
from pyllama.errors import RequestError, reason_of
from pyllama.version import __version__

if TYPE_CHECKING:
    from pyllama.checkpoint import Checkpoint

_MAGIC = b"pyllama page 1\n"
_HEADER = struct.Struct("<15s32sI")
_PAGE_KEY = 4 * POSITIONS
_SUFFIX = ".page"

_log = logging.getLogger("pyllama")


def model_digest(checkpoint: "Checkpoint", kv_dtype: str) -> str:
    """Names all that a page's bits depend on besides its tokens.

    Of each tensor one row is read, not all: two models that differ nowhere there are one model retrained in no
    matrix. Cost: a small read a tensor.
    """
    digest = hashlib.sha256(f"{__version__} {kv_dtype} {checkpoint.rope_interleaved} {checkpoint.config}".encode())
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(checkpoint.read_rows(tensor, tensor.rows // 2, 1).tobytes())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Stored:
    """A page on disk. path: the keys of its text's pages, its own last."""

    file: Path
    path: tuple[bytes, ...]


class PageStore:
    """The files of one model's pages, and how much room they may take.

    directory   where, made if need be (not its parents); RequestError if that cannot be
    model       digest of the model (model_digest)
    max_nbytes  for the files of all models together
    """

    def __init__(self, directory: str | os.PathLike[str], model: str, page_nbytes: int, max_nbytes: int):
        self._root = Path(directory)
        self._directory = self._root / model
        self._page_nbytes = page_nbytes
        self._max_nbytes = max_nbytes
        self._failed = False
        try:
            for folder in (self._root, self._directory):
                folder.mkdir(mode=0o700, exist_ok=True)
            for left in self._directory.glob(".*.tmp"):  # by a process that was killed
                left.unlink()
            self._others = sorted(
                (file for file in self._root.glob("*/*" + _SUFFIX) if file.parent != self._directory),
                key=lambda file: file.stat().st_mtime,
            )
            self._nbytes = sum(file.stat().st_size for file in self._root.glob("*/*" + _SUFFIX))
        except OSError as error:
            raise RequestError(f"session directory {directory}: {reason_of(error)}") from None

    def scan(self) -> Iterator[Stored]:
        """All files whose first bytes make sense, least recently used first."""
        for file in sorted(self._directory.glob("*" + _SUFFIX), key=lambda file: (file.stat().st_mtime_ns, file.name)):
            try:
                with file.open("rb") as handle:
                    path, _ = self._read_header(handle, file.stat().st_size)
            except (OSError, ValueError) as error:
                self._ignore(file, error)
            else:
                yield Stored(file, path)

    def _read_header(self, handle, size: int) -> tuple[tuple[bytes, ...], bytes]:
        """(path, checksum). Raises ValueError."""
        magic, checksum, path_nbytes = _HEADER.unpack(handle.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
        if magic != _MAGIC:
            raise ValueError("not a page file")
        if not path_nbytes or path_nbytes % 4 or size != _HEADER.size + path_nbytes + self._page_nbytes:
            raise ValueError(f"{size} bytes, expected {_HEADER.size + path_nbytes + self._page_nbytes}")
        path = handle.read(path_nbytes)
        return tuple(path[i : i + _PAGE_KEY] for i in range(0, path_nbytes, _PAGE_KEY)), checksum

    def load(self, stored: Stored, out: np.ndarray) -> bool:
        """Read a page; False, with a warning, for a damaged or missing file."""
        try:
            with stored.file.open("rb") as handle:
                path, checksum = self._read_header(handle, os.fstat(handle.fileno()).st_size)
                read = handle.readinto(out.data)
            if read != self._page_nbytes or path != stored.path or checksum != _checksum(path, out):
                raise ValueError("checksum does not match")
        except (OSError, ValueError) as error:
            self._ignore(stored.file, error)
            return False
        return True

    def has_room(self) -> bool:
        """Whether one more page may be written; other models' oldest files make room first."""
        needed = self._page_nbytes + (1 << 16)
        while self._nbytes + needed > self._max_nbytes and self._others:
            self._remove(self._others.pop(0))
        return self._nbytes + needed <= self._max_nbytes

    def save(self, path: list[bytes], page: np.ndarray) -> Stored | None:
        """Write a page; None, with a warning once, if the disk will not have it."""
        if self._failed:
            return None
        stored = Stored(self._directory / (hashlib.sha256(b"".join(path)).hexdigest()[:32] + _SUFFIX), tuple(path))
        temporary = stored.file.with_name(f".{stored.file.name}.tmp")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
                handle.write(_HEADER.pack(_MAGIC, _checksum(stored.path, page), len(b"".join(path))))
                handle.write(b"".join(path))
                handle.write(page.data)
                handle.flush()
                os.fsync(handle.fileno())
                nbytes = handle.tell()
            os.replace(temporary, stored.file)
        except OSError as error:
            _log.warning("session directory: %s; nothing more is saved", reason_of(error))
            self._failed = True
            temporary.unlink(missing_ok=True)
            return None
        self._nbytes += nbytes
        return stored

    def touch(self, used: list[Stored]) -> None:
        """Leave for the next start in which order the files were used, least recently first."""
        for stored in used:
            try:
                os.utime(stored.file)
            except OSError:
                pass

    def delete(self, stored: Stored) -> None:
        self._remove(stored.file)

    def _ignore(self, file: Path, error: Exception) -> None:
        _log.warning("saved page %s: %s; ignored and removed", file.name, str(error).lower())
        self._remove(file)

    def _remove(self, file: Path) -> None:
        try:
            nbytes = file.stat().st_size
            file.unlink()
            self._nbytes -= nbytes
        except OSError:
            pass


def _checksum(path: tuple[bytes, ...], page: np.ndarray) -> bytes:
    digest = hashlib.sha256(b"".join(path))
    digest.update(page.data)
    return digest.digest()
