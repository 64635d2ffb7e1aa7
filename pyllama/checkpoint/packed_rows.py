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


def _read_panels(tensor: Tensor, block: StoredBlock, first: int, rows: np.ndarray, read_into: Callable) -> None:
    """Rows [first, first + len(rows)) of a packed block, through a block made of their panels alone."""

    def read(offset: int, count: int, dtype: str = "<u1") -> np.ndarray:
        data = np.empty(count, dtype)
        read_into(block.file, block.offset + offset, data.view(np.uint8))
        return data

    panel = _kernels.PANEL
    low, high, panels = first // panel, -(-(first + len(rows)) // panel), -(-block.rows // panel)
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
    pieces = [head, read(_kernels.PACKED_TABLE + low * width, (high - low) * width), (starts - begin).astype("<u4")]
    if end > begin:
        pieces += [read(keys_at + begin * 4, end - begin, "<u4"), read(keys_at + escapes * 4 + begin, end - begin)]
    data = np.concatenate([piece.view(np.uint8) for piece in pieces])
    unpacked = np.empty((min(block.rows, high * panel) - low * panel, tensor.row_nbytes), np.uint8)
    unpack(tensor, block, len(unpacked), data, unpacked.reshape(-1))
    at = first - low * panel
    rows[:] = unpacked[at : at + len(rows)]


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
