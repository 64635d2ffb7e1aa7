"""Row blocks as pyllama's own files hold them -> plain rows, checked against their checksums.

Reads through a function that is handed in: knows blocks, and no file.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyllama import _kernels
from pyllama.checkpoint.index import StoredBlock, Tensor
from pyllama.errors import CheckpointError, PyllamaError


def read_rows(tensor: Tensor, row: int, count: int, read_into: Callable[[Path, int, np.ndarray], None]) -> np.ndarray:
    """Rows [row, row + count) as they were before packing: uint8 (count, tensor.row_nbytes).

    Of a packed block only the panels of 32 rows that hold them are read. A block read as a whole is checked
    against its checksum. Raises CheckpointError for a damaged block.
    """
    out = np.empty((count, tensor.row_nbytes), np.uint8)
    blocks = tensor.blocks
    for block in blocks[max(0, bisect_right(blocks, row, key=lambda block: block.row) - 1) :]:
        first, last = max(row, block.row), min(row + count, block.row + block.rows)
        if first >= last:
            break
        rows = out[first - row : last - row]
        if last - first == block.rows:
            _read_block(tensor, block, rows, read_into)
        elif block.stored == "rows":
            read_into(block.file, block.offset + (first - block.row) * tensor.row_nbytes, rows)
        else:
            _read_panels(tensor, block, first - block.row, rows, read_into)
    return out


def _read_block(tensor: Tensor, block: StoredBlock, rows: np.ndarray, read_into: Callable) -> None:
    data = np.empty(block.nbytes, np.uint8) if block.stored == "packed" else rows.reshape(-1)
    read_into(block.file, block.offset, data)
    if zlib.crc32(data.data) != block.crc32:
        raise damaged(tensor, block)
    if block.stored == "packed":
        unpack(tensor, block, block.rows, data, rows.reshape(-1))


def _read_panels(
    tensor: Tensor, block: StoredBlock, first: int, rows: np.ndarray, read_into: Callable[[Path, int, np.ndarray], None]
) -> None:
    """Rows [first, first + len(rows)) of a packed block, through a block made of their panels alone."""
    part = part_of(tensor, block, first, len(rows), read_into)
    panels = np.empty(part.nbytes, np.uint8)
    read_into(part.file, part.offset, panels)
    head, tail = map(_bytes, part.around)
    rows[:] = rows_of(tensor, part, np.concatenate([head, panels, tail]))


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def part_of(
    tensor: Tensor, block: StoredBlock, first: int, count: int, read_into: Callable[[Path, int, np.ndarray], None]
) -> StoredBlock:
    """Rows [first, first + count) of a block as a block of their own: whole panels of a packed one. What stands around
    them is read here, some bytes a panel. Raises CheckpointError for a damaged block."""
    if (first, count) == (0, block.rows):
        return block
    row = block.row + first
    if block.stored == "rows":
        nbytes = tensor.row_nbytes
        return StoredBlock(block.file, block.offset + first * nbytes, count * nbytes, row, count, "rows", None)

    def read(offset: int, count: int, dtype: str = "<u1") -> np.ndarray:
        data = np.empty(count, dtype)
        read_into(block.file, block.offset + offset, data.view(np.uint8))
        return data

    panel = _kernels.PANEL
    low, high, panels = first // panel, -(-(first + count) // panel), -(-block.rows // panel)
    width = (tensor.cols + 1) // 2 * _kernels.PACKED_PAIR
    starts_at = _kernels.PACKED_TABLE + panels * width
    keys_at = starts_at + (panels + 1) * 4
    escapes = (block.nbytes - keys_at) // 5
    head = read(0, _kernels.PACKED_TABLE)
    starts = read(starts_at + low * 4, high - low + 1, "<u4").astype(np.int64)
    begin, end = int(starts[0]), int(starts[-1])
    if not 0 <= begin <= end <= escapes:
        raise damaged(tensor, block)
    head[16:20] = np.array([end - begin], "<u4").view(np.uint8)
    tail = [(starts - begin).astype("<u4")]
    if end > begin:
        tail += [read(keys_at + begin * 4, end - begin, "<u4"), read(keys_at + escapes * 4 + begin, end - begin)]
    around = (head.tobytes(), b"".join(piece.tobytes() for piece in tail))
    at, nbytes = block.offset + _kernels.PACKED_TABLE + low * width, (high - low) * width
    return StoredBlock(block.file, at, nbytes, row, count, "packed", None, around, first - low * panel)


def rows_of(tensor: Tensor, part: StoredBlock, data: np.ndarray) -> np.ndarray:
    """The plain rows, (part.rows, tensor.row_nbytes) uint8, of a part of a packed block, what is around it included."""
    rows = part.skip + part.rows  # what its last panel has beyond them is not looked at
    unpacked = np.empty((rows, tensor.row_nbytes), np.uint8)
    unpack(tensor, part, rows, data, unpacked.reshape(-1))
    return unpacked[part.skip : part.skip + part.rows]


def unpack(tensor: Tensor, block: StoredBlock, rows: int, data: np.ndarray, out: np.ndarray) -> None:
    """The plain rows of a packed block (or of some of its panels). Raises CheckpointError if it is malformed."""
    try:
        matrix = _kernels.Matrix(tensor.dtype, rows, tensor.cols, data, "packed")
    except PyllamaError:
        raise damaged(tensor, block) from None
    _kernels.unpack(matrix, out)


def damaged(tensor: Tensor, block: StoredBlock) -> CheckpointError:
    return CheckpointError(
        f"{tensor.name}: rows {block.row} to {block.row + block.rows - 1} are damaged "
        f"({block.nbytes} bytes at {block.offset} of {block.file})"
    )
