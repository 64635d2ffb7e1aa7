"""Pages of the KV cache as files in a directory, so that a restart does not cost what is known.

    <directory>/<model>/<text>.page        names are digests
    b"pyllama page 2\n"  sha256  path length (uint32)  path  page

    <directory>/<model>/<text>.state       the same with what layers carry from token to token, after the text

The path is the tokens of the text up to and in this page, 32 to a page, as int32; all numbers little-endian. The
checksum is of the model's name, the path and the page: it catches what a disk does to a file, and a file in the wrong
folder. A file is written under another name, synced and renamed, so it is whole or not there. Files of other models in
the directory are left alone until their room is needed.

What is written can be read back by whoever can read the directory: conversations, in effect. And whoever can write to
it could have this process write elsewhere, or answer from what it never computed. So the directory must be the user's
own, with mode 700; everything in it is reached through open directories and never through a link, and only plain files
of the user count (private_folder.py).
"""

import hashlib
import logging
import os
import re
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pyllama.checkpoint.digest import model_digest
from pyllama.decoder.page_pool import POSITIONS
from pyllama.engine.private_folder import PrivateFolder
from pyllama.errors import RequestError, reason_of

if TYPE_CHECKING:
    from pyllama.checkpoint import Checkpoint

_MAGIC = b"pyllama page 2\n"
_HEADER = struct.Struct("<15s32sI")
_PAGE_KEY = 4 * POSITIONS
_SUFFIXES = _PAGE, _STATE = ".page", ".state"
_MODEL = re.compile("[0-9a-f]+")
_MAX_PATH = 1 << 26  # bytes of tokens: of more, no context is made

_log = logging.getLogger("pyllama")


def pages_name(checkpoint: "Checkpoint", kv_dtype: str, boards: Sequence[tuple[int, float]] = ()) -> str:
    """The name of the folder for a model's pages; boards: place and share of those that have it together, whose pieces
    of a page lie one behind the other.

    A model that differs in a few rows alone, as after an edit, has the same model_digest: so the files count as well,
    by their names, sizes and times of change. Copied without its times, a model begins anew.
    """
    digest = hashlib.sha256(model_digest(checkpoint, kv_dtype).encode())
    for file in sorted(checkpoint.files):
        status = os.stat(file)
        digest.update(f"\n{file.name} {status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    if boards:
        digest.update(f"\nboards {boards}".encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Stored:
    """A page or a state on disk. name: of its file; path: the keys of its text's pages, its own last."""

    name: str
    path: tuple[bytes, ...]

    @property
    def is_state(self) -> bool:
        return self.name.endswith(_STATE)


class PageStore:
    """The files of one model's pages, and how much room they may take.

    directory   where, made if need be (not its parents); RequestError if that cannot be, or is not the user's alone
    model       pages_name() of the model
    max_nbytes  for the files of all models together
    state_nbytes  of a state, 0 where there are none
    """

    def __init__(
        self, directory: str | os.PathLike[str], model: str, page_nbytes: int, max_nbytes: int, state_nbytes: int = 0
    ):
        self._model = model
        self._nbytes_of = {_PAGE: page_nbytes, _STATE: state_nbytes}
        self._max_nbytes = max_nbytes
        self._failed = False
        try:
            root = PrivateFolder.at(directory)
            self._folder = root.folder(model)
            for name in self._folder.names(".tmp"):  # by a process that was killed
                self._folder.remove(name)
            others: list[tuple[float, PrivateFolder, str]] = []
            self._nbytes = sum(size for _, size, _ in self._folder.files(_SUFFIXES))
            for other in root.folders():
                if other != model and _MODEL.fullmatch(other):  # what else lies there is not ours to touch
                    folder = root.folder(other)
                    for time, size, name in folder.files(_SUFFIXES):
                        others.append((time, folder, name))
                        self._nbytes += size
            self._others = [(folder, name) for _, folder, name in sorted(others, key=lambda one: one[0])]
        except OSError as error:
            raise RequestError(f"session directory {os.fspath(directory)}: {reason_of(error)}") from None

    def scan(self) -> Iterator[Stored]:
        """All files whose first bytes make sense, least recently used first."""
        for name in self._folder.names(_SUFFIXES):
            if not self._folder.is_file(name):
                self._ignore(name, ValueError("not a file of this user's own"))
        for _, _, name in sorted(self._folder.files(_SUFFIXES)):
            try:
                with self._folder.read(name) as handle:
                    nbytes = self._nbytes_of[name[name.rindex(".") :]]
                    path, _ = self._read_header(handle, nbytes)
            except (OSError, ValueError) as error:
                self._ignore(name, error)
            else:
                yield Stored(name, path)

    @staticmethod
    def _read_header(handle: BinaryIO, nbytes: int) -> tuple[tuple[bytes, ...], bytes]:
        """(path, checksum) of a file that holds so many bytes behind them. Raises ValueError."""
        size = os.fstat(handle.fileno()).st_size
        magic, checksum, path_nbytes = _HEADER.unpack(handle.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
        if magic != _MAGIC:
            raise ValueError("not a page file")
        if not path_nbytes or path_nbytes % 4 or path_nbytes > _MAX_PATH:
            raise ValueError(f"a path of {path_nbytes} bytes")
        if size != _HEADER.size + path_nbytes + nbytes:
            raise ValueError(f"{size} bytes, expected {_HEADER.size + path_nbytes + nbytes}")
        path = handle.read(path_nbytes)
        return tuple(path[i : i + _PAGE_KEY] for i in range(0, path_nbytes, _PAGE_KEY)), checksum

    def load(self, stored: Stored, out: np.ndarray) -> bool:
        """Read a page or a state; False, with a warning, for a damaged or missing file."""
        try:
            with self._folder.read(stored.name) as handle:
                path, checksum = self._read_header(handle, len(out))
                read = handle.readinto(out.data)
            if read != len(out) or path != stored.path or checksum != self._checksum(path, out):
                raise ValueError("checksum does not match")
        except (OSError, ValueError) as error:
            self._ignore(stored.name, error)
            return False
        return True

    def has_room(self, state: bool = False) -> bool:
        """Whether one more page, or state, may be written; other models' oldest files make room first."""
        needed = self._nbytes_of[_STATE if state else _PAGE] + (1 << 16)
        while self._nbytes + needed > self._max_nbytes and self._others:
            folder, name = self._others.pop(0)
            self._nbytes -= folder.remove(name)
        return self._nbytes + needed <= self._max_nbytes

    def save(self, path: list[bytes], page: np.ndarray, state: bool = False) -> Stored | None:
        """Write a page or a state; None, with a warning once, if the disk will not have it."""
        if self._failed:
            return None
        stored = Stored(hashlib.sha256(b"".join(path)).hexdigest()[:32] + (_STATE if state else _PAGE), tuple(path))
        temporary = f".{secrets.token_hex(16)}.tmp"
        try:
            with self._folder.create(temporary) as handle:
                handle.write(_HEADER.pack(_MAGIC, self._checksum(stored.path, page), len(b"".join(path))))
                handle.write(b"".join(path))
                handle.write(page.data)
                handle.flush()
                os.fsync(handle.fileno())
                nbytes = handle.tell()
            self._folder.rename(temporary, stored.name)
        except OSError as error:
            _log.warning("session directory: %s; nothing more is saved", reason_of(error))
            self._failed = True
            self._folder.remove(temporary)
            return None
        self._nbytes += nbytes
        return stored

    def touch(self, used: list[Stored]) -> None:
        """Leave for the next start in which order the files were used, least recently first."""
        for stored in used:
            self._folder.touch(stored.name)

    def delete(self, stored: Stored) -> None:
        self._nbytes -= self._folder.remove(stored.name)

    def _ignore(self, name: str, error: Exception) -> None:
        _log.warning("saved page %r: %s; ignored and removed", name[:80], reason_of(error))
        self._nbytes -= self._folder.remove(name)

    def _checksum(self, path: tuple[bytes, ...], page: np.ndarray) -> bytes:
        digest = hashlib.sha256(f"{self._model} {len(path)} ".encode() + b"".join(path))
        digest.update(page.data)
        return digest.digest()
