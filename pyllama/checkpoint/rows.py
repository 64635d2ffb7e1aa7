"""Rows of a tensor as they are stored: where they lie, and how they are put together of what was read there.

The bytes come out row-major however the files cut the matrix; what they mean is not known here. Reads nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pyllama.checkpoint.apart import join
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.index import Part, Span, Tensor, ranges


class Piece(NamedTuple):
    """Rows out of one part of a tensor: where they lie, the first of them within all that are read, how many."""

    spans: tuple[Span, ...]
    part: Part
    row: int
    rows: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [row, row + rows) of a tensor in parts; a vector is one row."""

    tensor: Tensor
    row: int
    rows: int

    @property
    def nbytes(self) -> int:
        return self.rows * self.tensor.row_nbytes

    @property
    def room(self) -> int:
        """Bytes of memory that direct reads of them take."""
        return sum(span.room for piece in self.pieces() for span in piece.spans)

    def pieces(self) -> list[Piece]:
        found = []
        for part in self.tensor.parts:
            first = max(self.row, part.row)
            last = min(self.row + self.rows, part.row + part.rows)
            if first < last:
                spans = ranges(self.tensor.dtype, part, first, last - first)
                found.append(Piece(spans, part, first - self.row, last - first))
        return found

    def read(self, read: Callable[[Span], np.ndarray]) -> np.ndarray:
        """uint8 (rows, tensor.row_nbytes): what `read` returned where they lie in one piece, else new.

        read  a span's bytes, 1-D uint8
        """
        pieces, dtype = self.pieces(), self.tensor.dtype
        if len(pieces) == 1 and not pieces[0].part.apart:
            return read(pieces[0].spans[0]).reshape(self.rows, -1)
        out = np.empty((self.rows, self.tensor.row_nbytes), np.uint8)
        for spans, part, row, rows in pieces:
            start, width = row_nbytes(dtype, part.col), row_nbytes(dtype, part.cols)
            join(dtype, part, [read(span) for span in spans], out[row : row + rows, start : start + width])
        return out
