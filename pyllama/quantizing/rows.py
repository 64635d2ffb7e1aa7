"""Rows of a checkpoint's tensors -> the bytes that a GGUF file has of them.

A piece is some consecutive rows of one tensor, whole heads where rows change their order. Pieces are read ahead past
the page cache, widened to float32, and narrowed to the wanted format; what is in that format is taken as it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllama import _kernels
from pyllama.checkpoint import Checkpoint, Tensor
from pyllama.checkpoint.index import StoredBlock
from pyllama.checkpoint.packed_rows import damaged, rows_of
from pyllama.checkpoint.rows import Rows
from pyllama.closing import Closing
from pyllama.errors import CheckpointError
from pyllama.packing.ahead import SLOTS, read_ahead
from pyllama.packing.rows import SourceFiles
from pyllama.quantizing.outline import Stored
from pyllama.streaming.direct import DirectFile
from pyllama.streaming.memory import HUGE_PAGE, huge_empty

_F16_LARGEST = 65504.0
_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [row, row + rows) of the tensor in the file; in its source, the same rows or those of the same heads.

    block  what holds exactly these rows in one of pyllama's own files, if something does
    """

    stored: Stored
    row: int
    rows: int
    block: StoredBlock | None = None

    @property
    def tensor(self) -> Tensor:
        return self.stored.tensor

    @property
    def nbytes(self) -> int:
        """In the source."""
        return self.rows * self.tensor.row_nbytes

    @property
    def room(self) -> int:
        """Bytes of memory that reading it takes in its slot; what is packed comes out elsewhere."""
        if self.tensor.blocks:
            return self.block.span.room if self.block else HUGE_PAGE // 2
        return Rows(self.tensor, self.row, self.rows).room

    @property
    def floats(self) -> int:
        """Bytes of it as float32."""
        return self.rows * self.tensor.cols * _FLOAT


def pieces(tensors: Sequence[Stored], most: int, first: int = 0, row: int = 0) -> Iterator[Piece]:
    """The pieces of the tensors from row `row` of tensor `first` on, of `most` bytes of float32 each if rows allow."""
    for stored in tensors[first:]:
        tensor = stored.tensor
        if tensor.blocks and not stored.interleaved and stored.rows is None and len(tensor.shape) > 1:
            for block in tensor.blocks:
                if block.row >= row:
                    yield Piece(stored, block.row, block.rows, block)
        else:
            least = stored.interleaved if stored.interleaved and tensor.rows > 1 else 1
            each = max(most // (tensor.cols * _FLOAT * least), 1) * least
            while row < tensor.rows:
                count = min(each, tensor.rows - row)
                yield Piece(stored, row, count)
                row += count
        row = 0


def memory_nbytes(work: Sequence[Piece]) -> int:
    """Bytes of memory that quantizing the pieces takes at most."""
    slot = max(piece.room for piece in work)
    packed = max((piece.nbytes for piece in work if piece.tensor.blocks), default=0)
    largest = max(piece.floats for piece in work)
    moved = (piece for piece in work if piece.stored.interleaved or piece.stored.rows or piece.stored.columns)
    in_order = max((piece.nbytes for piece in moved), default=0)
    out = max(piece.rows * piece.stored.row_nbytes for piece in work)
    # The weights, and whether each is a number; what was read; what comes out, once more where it is copied.
    return SLOTS * (slot + packed) + 2 * HUGE_PAGE + in_order + largest + largest // _FLOAT + 2 * out


class Source(Closing):
    """The open files of a checkpoint; a context manager.

    states  size and time of change that its files must still have
    """

    def __init__(self, checkpoint: Checkpoint, states: Mapping[Path, tuple[int, int]]):
        self._checkpoint = checkpoint
        self._packed = {path: DirectFile(path) for path in states} if checkpoint.packed else {}
        self._files = SourceFiles(states)
        if not checkpoint.packed:
            self._files.open(checkpoint.tensors.values())

    def read(self, piece: Piece, memory: np.ndarray) -> np.ndarray:
        """The piece's bytes as the source stores them, in its own order; uint8, 1-D. Called on several threads."""
        tensor, order = piece.tensor, piece.stored.rows
        if piece.block is not None:
            data = self._packed[piece.block.file].read(piece.block.span, memory)
            return rows_of(tensor, piece.block, data).reshape(-1)
        if piece.row == 0:  # parts of blocks have no checksum of their own
            for block in tensor.blocks:
                self._check(tensor, block)
        if order is not None and len(tensor.shape) > 1:  # rows that do not stand together
            sources = order.sources(piece.row, piece.row + piece.rows)
            runs = np.split(sources, np.flatnonzero(np.diff(sources) != 1) + 1)
            rows = [self._checkpoint.read_rows(tensor, int(run[0]), len(run)) for run in runs]
            return np.concatenate(rows).reshape(-1)
        if tensor.blocks:
            return self._checkpoint.read_rows(tensor, piece.row, piece.rows).reshape(-1)
        return self._files.read(Rows(tensor, piece.row, piece.rows), memory)

    def _check(self, tensor: Tensor, block: StoredBlock) -> None:
        data = self._packed[block.file].read(block.span, huge_empty(block.span.room))
        if zlib.crc32(data.data) != block.crc32:
            raise damaged(tensor, block)

    def close(self) -> None:
        self._files.close()
        for file in self._packed.values():
            file.close()


def converted(
    source: Source, work: Sequence[Piece], importance: Mapping[str, np.ndarray]
) -> Iterator[tuple[Piece, memoryview]]:
    """(piece, its bytes in the file), in order; the bytes are valid until the next are asked for.

    importance  GGUF's name -> importance of each column, float32 (cols,); of a stack of experts (experts, cols)

    Raises CheckpointError for a weight that is no number, by tensor and row.
    """
    if not work:
        return
    floats = np.empty(max(piece.floats for piece in work) // _FLOAT, np.float32)
    out = np.empty(max(piece.rows * piece.stored.row_nbytes for piece in work), np.uint8)
    for piece, data in read_ahead(work, max(piece.room for piece in work), source.read):
        tensor = piece.tensor
        weights = floats[: piece.rows * tensor.cols].reshape(piece.rows, tensor.cols)
        data = _in_order(data, piece)
        _kernels.widen(_kernels.Matrix(tensor.dtype, piece.rows, tensor.cols, data), weights)
        _check(weights, piece)
        name, dtype = piece.stored.info.name, piece.stored.info.dtype
        if len(tensor.shape) == 1 and piece.stored.rows is not None:
            weights = np.ascontiguousarray(weights[:, piece.stored.rows.sources(0, tensor.cols)])
            if piece.stored.rate:  # the bits that the decoder makes of it
                _kernels.exp(weights, weights)
                np.negative(weights, out=weights)
            data = weights.view(np.uint8).reshape(-1)
        elif len(tensor.shape) == 1 and piece.stored.interleaved:
            weights = _halves_together(weights.reshape(-1, 1), piece.stored.interleaved).reshape(1, -1)
            data = weights.view(np.uint8).reshape(-1)
        elif piece.stored.plus_one:
            weights += np.float32(1)
            data = weights.view(np.uint8).reshape(-1)
        elif tensor.dtype != dtype:
            data = out[: piece.rows * piece.stored.row_nbytes]
            if dtype == "F32":
                data = weights.view(np.uint8).reshape(-1)
            else:
                for first, last, columns in _weighed(piece, importance.get(name)):
                    width = piece.stored.row_nbytes
                    _kernels.quantize(dtype, weights[first:last], columns, data[first * width : last * width])
        yield piece, memoryview(data)


def _weighed(piece: Piece, columns: np.ndarray | None) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """(first row, last row, importance of their columns) of a piece: of one expert each where they have their own."""
    if columns is None or columns.ndim == 1:
        yield 0, piece.rows, columns
        return
    each = piece.stored.info.shape[-2]
    first = 0
    while first < piece.rows:
        expert, within = divmod(piece.row + first, each)
        last = min(piece.rows, first + each - within)
        yield first, last, np.ascontiguousarray(columns[expert])
        first = last


def _in_order(data: np.ndarray, piece: Piece) -> np.ndarray:
    """Rows of whole heads, brought into interleaved rotary order where they have to be; and columns into theirs."""
    if piece.stored.columns is not None:
        of_rows = data.reshape(piece.rows, piece.tensor.cols, -1)  # of elements that are whole bytes
        return np.ascontiguousarray(of_rows[:, piece.stored.columns.sources(0, piece.tensor.cols)]).reshape(-1)
    if not piece.stored.interleaved or len(piece.tensor.shape) == 1:
        return data
    return _halves_together(data.reshape(piece.rows, -1), piece.stored.interleaved).reshape(-1)


def _halves_together(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows i and i + head_dim / 2 of each head become its rows 2 i and 2 i + 1."""
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _check(weights: np.ndarray, piece: Piece) -> None:
    """Raise CheckpointError for what the file could not hold."""
    name = piece.tensor.name
    largest = _F16_LARGEST if piece.stored.info.dtype == "F16" else np.finfo(np.float32).max
    low, high = float(weights.min()), float(weights.max())
    if -largest <= low and high <= largest:  # false for NaN
        return
    sound = np.isfinite(weights).all(axis=1)
    row = piece.row + _source_row(int(np.argmin(sound)), piece)
    if not sound.all():
        raise CheckpointError(f"{name}: row {row} holds what is no finite number; nothing sound comes of quantizing it")
    raise CheckpointError(f"{name}: a weight of {max(high, -low):g} is beyond float16's {_F16_LARGEST:g}; take bf16")


def _source_row(row: int, piece: Piece) -> int:
    """The row that came to be row `row` of the piece."""
    if piece.stored.rows is not None and len(piece.tensor.shape) > 1:
        return int(piece.stored.rows.sources(piece.row + row, piece.row + row + 1)[0]) - piece.row
    head_dim = piece.stored.interleaved
    if not head_dim or len(piece.tensor.shape) == 1:
        return row
    within = row % head_dim
    return row - within + within // 2 + within % 2 * (head_dim // 2)
