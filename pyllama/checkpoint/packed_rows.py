"""Row blocks as pyllama's own files hold them -> plain rows, checked against their checksums.

Reads through a function that is handed in: knows blocks, and no file.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from pyllama import _kernels
from pyllama.checkpoint.index import Span, StoredBlock, Tensor
from pyllama.errors import CheckpointError, PyllamaError

Read = Callable[[Span], np.ndarray]  # a span's bytes, 1-D uint8


def read_rows(tensor: Tensor, row: int, count: int, read: Read) -> np.ndarray:
    """Rows [row, row + count) as they were before packing: uint8 (count, tensor.row_nbytes).

    Of a packed block only the panels of 32 rows that hold them are read. A block read as a whole is checked
    against its checksum. Raises CheckpointError for a damaged block.
    """
    found = [np.empty((0, tensor.row_nbytes), np.uint8)]
    blocks = tensor.blocks
    for block in blocks[max(0, bisect_right(blocks, row, key=lambda block: block.row) - 1) :]:
        first, last = max(row, block.row), min(row + count, block.row + block.rows)
        if first >= last:
            break
        part = part_of(tensor, block, first - block.row, last - first, read)
        data = read(part.span)
        if part.around:
            head, tail = (np.frombuffer(piece, np.uint8) for piece in part.around)
            data = np.concatenate([head, data, tail])
        found.append(rows_of(tensor, part, data))
    return found[1] if len(found) == 2 else np.concatenate(found)


def part_of(tensor: Tensor, block: StoredBlock, first: int, count: int, read: Read) -> StoredBlock:
    """Rows [first, first + count) of a block as a block of their own: whole panels of a packed one. What stands around
    them is read here, some bytes a panel. Raises CheckpointError for a damaged block."""
    if (first, count) == (0, block.rows):
        return block
    row = block.row + first
    if block.stored == "rows":
        nbytes = tensor.row_nbytes
        return StoredBlock(block.file, block.offset + first * nbytes, count * nbytes, row, count, "rows", None)

    def within(offset: int, nbytes: int) -> np.ndarray:
        return read(Span(block.file, block.offset + offset, nbytes))

    panel = _kernels.PANEL
    low, high, panels = first // panel, -(-(first + count) // panel), -(-block.rows // panel)
    width = (tensor.cols + 1) // 2 * _kernels.PACKED_PAIR
    starts_at = _kernels.PACKED_TABLE + panels * width
    keys_at = starts_at + (panels + 1) * 4
    escapes = (block.nbytes - keys_at) // 5
    head = within(0, _kernels.PACKED_TABLE)
    starts = within(starts_at + low * 4, (high - low + 1) * 4).view("<u4").astype(np.int64)
    begin, end = int(starts[0]), int(starts[-1])
    if not 0 <= begin <= end <= escapes:
        raise damaged(tensor, block)
    head[16:20] = np.array([end - begin], "<u4").view(np.uint8)
    tail = [(starts - begin).astype("<u4").view(np.uint8)]
    if end > begin:
        tail += [within(keys_at + begin * 4, (end - begin) * 4), within(keys_at + escapes * 4 + begin, end - begin)]
    around = (head.tobytes(), b"".join(piece.tobytes() for piece in tail))
    at, nbytes = block.offset + _kernels.PACKED_TABLE + low * width, (high - low) * width
    return StoredBlock(block.file, at, nbytes, row, count, "packed", None, around, first - low * panel)


def rows_of(tensor: Tensor, block: StoredBlock, data: np.ndarray) -> np.ndarray:
    """The plain rows of a block, uint8 (block.rows, tensor.row_nbytes), out of its bytes and what belongs around them;
    these bytes where they are plain. Raises CheckpointError for a damaged block."""
    if block.crc32 is not None and zlib.crc32(data.data) != block.crc32:
        raise damaged(tensor, block)
    if block.stored == "packed":
        rows = block.skip + block.rows  # what its last panel has beyond them is not looked at
        try:
            matrix = _kernels.Matrix(tensor.dtype, rows, tensor.cols, data, "packed")
        except PyllamaError:
            raise damaged(tensor, block) from None
        data = np.empty(rows * tensor.row_nbytes, np.uint8)
        _kernels.unpack(matrix, data)
        data = data[block.skip * tensor.row_nbytes :]
    return data.reshape(block.rows, -1)


def damaged(tensor: Tensor, block: StoredBlock) -> CheckpointError:
    return CheckpointError(
        f"{tensor.name}: rows {block.row} to {block.row + block.rows - 1} are damaged "
        f"({block.nbytes} bytes at {block.offset} of {block.file})"
    )
