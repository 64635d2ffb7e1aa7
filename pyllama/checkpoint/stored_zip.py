"""A zip archive whose entries are stored, not compressed -> where each entry's bytes lie in the file.

That is what torch.save writes, so tensors can be read in place. Nothing is ever decompressed.
ZIP64 is read: a shard is larger than 4 GB.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyllama.checkpoint.files import InputFile
from pyllama.errors import CheckpointError, UnsupportedError, shown

MAX_ENTRIES = 65_536
MAX_DIRECTORY_NBYTES = 16 << 20

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP64_EXTRA = 1
_ENCRYPTED = 1


class Entry(NamedTuple):
    """A stored entry of `nbytes`; `data_offset` finds where they begin, behind the local header."""

    name: bytes
    header_offset: int
    nbytes: int


def read_directory(file: InputFile) -> dict[bytes, Entry]:
    """name -> Entry from the archive's central directory."""
    where = file.path.name
    count, nbytes, offset = _directory(file)
    if count > MAX_ENTRIES or nbytes > MAX_DIRECTORY_NBYTES:
        raise CheckpointError(
            f"{where}: a zip directory of {count} entries in {nbytes} bytes, expected at most {MAX_ENTRIES} "
            f"in {MAX_DIRECTORY_NBYTES}"
        )
    data = file.read(offset, nbytes)
    entries: dict[bytes, Entry] = {}
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > len(data):
            raise CheckpointError(f"{where}: zip directory ends early (truncated?)")
        fields = _CENTRAL.unpack_from(data, position)
        signature, flags, method = fields[0], fields[3], fields[4]
        packed, size, name_nbytes, extra_nbytes, comment_nbytes = fields[8:13]
        header_offset = fields[16]
        position += _CENTRAL.size
        name = data[position : position + name_nbytes]
        extra = data[position + name_nbytes : position + name_nbytes + extra_nbytes]
        position += name_nbytes + extra_nbytes + comment_nbytes
        if signature != b"PK\1\2" or position > len(data):
            raise CheckpointError(f"{where}: zip directory is damaged at byte {offset + position}")
        if flags & _ENCRYPTED or method != 0:
            raise UnsupportedError(f"{where}: entry {shown(name)} is compressed or encrypted; not supported")
        size, packed, header_offset = _zip64(extra, size, packed, header_offset)
        if size != packed:
            raise CheckpointError(f"{where}: entry {shown(name)} of {size} bytes is stored in {packed}")
        if name in entries:
            raise CheckpointError(f"{where}: entry {shown(name)} appears twice")
        entries[name] = Entry(name, header_offset, size)
    return entries


def data_offset(file: InputFile, entry: Entry) -> int:
    """Where an entry's bytes begin, from its local header, which must agree with the directory."""
    where = file.path.name
    fields = _LOCAL.unpack(file.read(entry.header_offset, _LOCAL.size))
    name_nbytes, extra_nbytes = fields[9], fields[10]
    start = entry.header_offset + _LOCAL.size
    if fields[0] != b"PK\3\4" or file.read(start, name_nbytes) != entry.name:
        raise CheckpointError(f"{where}: no entry {shown(entry.name)} at byte {entry.header_offset}")
    start += name_nbytes + extra_nbytes
    if start + entry.nbytes > file.nbytes:
        raise CheckpointError(
            f"{where}: entry {shown(entry.name)} ends at {start + entry.nbytes}, the file at {file.nbytes}"
        )
    return start


def _directory(file: InputFile) -> tuple[int, int, int]:
    """Entry count, bytes and offset of the central directory."""
    where = file.path.name
    tail_nbytes = min(file.nbytes, _END.size + 0xFFFF)
    tail = file.read(file.nbytes - tail_nbytes, tail_nbytes)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        hint = "" if file.nbytes < 4 or file.read(0, 4) == b"PK\3\4" else "; a file of torch before 1.6?"
        raise CheckpointError(f"{where}: not a zip archive, no directory at its end (truncated?{hint})")
    _, disk, _, _, count, nbytes, offset, _ = _END.unpack_from(tail, at)
    end = file.nbytes - tail_nbytes + at
    locator_at = at - _END64_LOCATOR.size
    if locator_at >= 0 and tail[locator_at : locator_at + 4] == b"PK\6\7":
        _, _, end, _ = _END64_LOCATOR.unpack_from(tail, locator_at)
        fields = _END64.unpack(file.read(end, _END64.size))
        if fields[0] != b"PK\6\6":
            raise CheckpointError(f"{where}: zip64 directory end is damaged")
        disk, count, nbytes, offset = fields[4], fields[7], fields[8], fields[9]
    if disk or offset + nbytes > end:
        raise CheckpointError(f"{where}: zip directory at {offset} of {nbytes} bytes, expected within {end}")
    return count, nbytes, offset


def _zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit values of those fields that hold 0xFFFFFFFF, from the extra field, in their fixed order."""
    values = [size, packed, offset]
    position = 0
    while position + 4 <= len(extra):
        kind, nbytes = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == _ZIP64_EXTRA:
            at = position
            for i in range(3):
                if values[i] == 0xFFFFFFFF and at + 8 <= min(position + nbytes, len(extra)):
                    values[i] = struct.unpack_from("<Q", extra, at)[0]
                    at += 8
            break
        position += nbytes
    return values[0], values[1], values[2]
