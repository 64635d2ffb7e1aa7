"""Rows of a published checkpoint, read past the page cache as they are stored.

The bytes come out row-major however the files cut the matrix; what they mean is not known here.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllama.checkpoint import Tensor
from pyllama.checkpoint.dtypes import row_nbytes
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
        return sum(span.room for span, *_ in self.pieces())

    def pieces(self) -> list[tuple[Span, int, int, int]]:
        """(where it lies, first row, first byte of the row, bytes of the row) of each stored rectangle."""
        found = []
        for part in self.tensor.parts:
            first = max(self.row, part.row)
            last = min(self.row + self.rows, part.row + part.rows)
            if first < last:
                width = row_nbytes(self.tensor.dtype, part.cols)
                span = Span(part.file, part.offset + (first - part.row) * width, (last - first) * width)
                found.append((span, first - self.row, row_nbytes(self.tensor.dtype, part.col), width))
        return found


class SourceFiles(Closing):
    """Open source files; a context manager. states: size and time of change that the files must still have."""

    def __init__(self, states: Mapping[Path, tuple[int, int]]):
        self._states = states
        self._files: dict[Path, DirectFile] = {}

    def open(self, tensors: Iterable[Tensor]) -> None:
        """Open what these tensors lie in, and close the rest."""
        wanted = {part.file for tensor in tensors for part in tensor.parts}
        for path in self._files.keys() - wanted:
            self._files.pop(path).close()
        for path in wanted - self._files.keys():
            self._files[path] = DirectFile(path)
            if state_of(path) != self._states[path]:
                raise CheckpointError(f"{path}: changed since packing began; give the command again")

    def read(self, rows: Rows, memory: np.ndarray) -> np.ndarray:
        """The rows' bytes, 1-D uint8: a view into `memory` (rows.room bytes, from a page boundary) or new."""
        pieces = rows.pieces()
        if len(pieces) == 1:
            return self._files[pieces[0][0].file].read(pieces[0][0], memory)
        out = np.empty((rows.rows, rows.tensor.row_nbytes), np.uint8)
        for span, row, start, width in pieces:
            data = self._files[span.file].read(span, memory).reshape(-1, width)
            out[row : row + len(data), start : start + width] = data
            memory = memory[span.room :]
        return out.reshape(-1)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
