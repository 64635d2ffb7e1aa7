"""Source files of a packing, read past the page cache as they are stored, as long as they stay what they were."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pyllama.checkpoint import Tensor
from pyllama.checkpoint.index import Span, files_of
from pyllama.checkpoint.rows import Rows
from pyllama.closing import Closing
from pyllama.errors import CheckpointError
from pyllama.streaming.direct import DirectFile


def state_of(path: Path) -> tuple[int, int]:
    """What tells one version of a file from another: bytes, and nanoseconds of the last change."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


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

        def one(span: Span) -> np.ndarray:
            nonlocal memory
            data = self._files[span.file].read(span, memory)
            memory = memory[span.room :]
            return data

        return rows.read(one).reshape(-1)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
