"""A zip archive whose entries are stored, not compressed -> where each entry's bytes lie in the file.

That is what torch.save writes, so tensors can be read in place. Nothing is ever decompressed: of the standard library's
reader the directory is wanted, within bounds, and nothing else.
"""

from __future__ import annotations

import io
import os
import struct
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pyllama.checkpoint.files import InputFile
from pyllama.errors import CheckpointError, UnsupportedError, shown

MAX_DIRECTORY_NBYTES = 1 << 20  # the largest real one has a thousand entries of 100 bytes

_LOCAL = struct.Struct("<4s22x2H")  # of an entry's own header: its mark, bytes of the name, bytes of what follows that
_ENCRYPTED = 1


class _Bounded(io.FileIO):
    """A file that gives no more at once than a directory may have: a file can claim one of gigabytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY_NBYTES:
            raise ValueError(f"a zip directory of {size} bytes, expected at most {MAX_DIRECTORY_NBYTES}")
        return super().read(-1 if size is None else size)


def read_directory(file: InputFile) -> dict[str, ZipInfo]:
    """name -> entry of the archive's central directory, each stored; data_offset() finds where its bytes are."""
    where = file.path.name
    try:
        with _Bounded(os.dup(file.fd)) as bounded:
            found = ZipFile(bounded).infolist()
    except (BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        hint = "" if file.nbytes < 4 or file.read(0, 4) == b"PK\3\4" else "; a file of torch before 1.6?"
        raise CheckpointError(f"{where}: not a zip archive: {str(error).lower()} (truncated?{hint})") from None
    entries: dict[str, ZipInfo] = {}
    for info in found:
        name, nbytes = info.orig_filename, info.file_size
        if info.flag_bits & _ENCRYPTED or info.compress_type != ZIP_STORED:
            raise UnsupportedError(f"{where}: entry {shown(name)} is compressed or encrypted; not supported")
        if nbytes != info.compress_size:
            raise CheckpointError(f"{where}: entry {shown(name)} of {nbytes} bytes is stored in {info.compress_size}")
        if name in entries:
            raise CheckpointError(f"{where}: entry {shown(name)} appears twice")
        entries[name] = info
    return entries


def data_offset(file: InputFile, entry: ZipInfo) -> int:
    """Where an entry's bytes begin, from its local header, which must agree with the directory."""
    where = file.path.name
    mark, name_nbytes, extra_nbytes = _LOCAL.unpack(file.read(entry.header_offset, _LOCAL.size))
    start = entry.header_offset + _LOCAL.size
    if mark != b"PK\3\4" or file.read(start, name_nbytes) != entry.orig_filename.encode():
        raise CheckpointError(f"{where}: no entry {shown(entry.orig_filename)} at byte {entry.header_offset}")
    start += name_nbytes + extra_nbytes
    if start + entry.file_size > file.nbytes:
        raise CheckpointError(
            f"{where}: entry {shown(entry.orig_filename)} ends at {start + entry.file_size}, the file at {file.nbytes}"
        )
    return start
