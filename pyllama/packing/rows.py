"""Rows of a published checkpoint, read past the page cache as they are stored.

The bytes come out row-major however the files cut the matrix; what they mean is not known here.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyllama.checkpoint import Part, Tensor
from pyllama.checkpoint.apart import join
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.index import files_of, ranges
from pyllama.closing import Closing
from pyllama.errors import CheckpointError
from pyllama.streaming.blocks import Span
from pyllama.streaming.direct import DirectFile


def state_of(path: Path) -> tuple[int, int]:
    """What tells one version of a file from another: bytes, and nanoseconds of the last change."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [row, row + rows) of a tensor; a vector is one row."""

    tensor: Tensor
    row: int
    rows: int

    @property
    def nbytes(self) -> int:
        return self.rows * self.tensor.row_nbytes

    @property
    def room(self) -> int:
        """Bytes of memory that reading them takes."""
        return sum(span.room for piece in self.pieces() for span in piece.spans)

    def pieces(self) -> list["Piece"]:
        found = []
        for part in self.tensor.parts:
            first = max(self.row, part.row)
            last = min(self.row + self.rows, part.row + part.rows)
            if first < last:
                spans = tuple(Span(*place) for place in ranges(self.tensor.dtype, part, first, last - first))
                found.append(Piece(spans, part, first - self.row, last - first))
        return found


class Piece(NamedTuple):
    """Rows out of one part of a tensor: where they lie, the first of them within all that are read, how many."""

    spans: tuple[Span, ...]
    part: Part
    row: int
    rows: int


class SourceFiles(Closing):
    """Open source files; a context manager. states: size and time of change that the files must still have."""

    def __init__(self, states: Mapping[Path, tuple[int, int]]):
        self._states = states
        self._files: dict[Path, DirectFile] = {}

    def open(self, tensors: Iterable[Tensor]) -> None:
        """Open what these tensors lie in, and close the rest."""
        wanted = {path for tensor in tensors for path in files_of(tensor)}
        for path in self._files.keys() - wanted:
            self._files.pop(path).close()
        for path in wanted - self._files.keys():
            self._files[path] = DirectFile(path)
            if state_of(path) != self._states[path]:
                raise CheckpointError(f"{path}: changed since packing began; give the command again")

    def read(self, rows: Rows, memory: np.ndarray) -> np.ndarray:
        """The rows' bytes, 1-D uint8: a view into `memory` (rows.room bytes, from a page boundary) or new."""
        pieces = rows.pieces()
        if len(pieces) == 1 and not pieces[0].part.apart:
            return self._files[pieces[0].spans[0].file].read(pieces[0].spans[0], memory)
        dtype = rows.tensor.dtype
        out = np.empty((rows.rows, rows.tensor.row_nbytes), np.uint8)
        for piece in pieces:
            raw = []
            for span in piece.spans:
                raw.append(self._files[span.file].read(span, memory))
                memory = memory[span.room :]
            start, width = row_nbytes(dtype, piece.part.col), row_nbytes(dtype, piece.part.cols)
            join(dtype, piece.part, raw, out[piece.row : piece.row + piece.rows, start : start + width])
        return out.reshape(-1)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
