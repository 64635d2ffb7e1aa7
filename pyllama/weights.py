"""A checkpoint's tensors -> weights in memory, as the kernels want them: the whole model resident.

The decoder sees weights through `Weights` alone: row blocks of a matrix in order, small vectors, embedding
rows. Here every matrix is one block of 32-row panels in huge pages. What is read when, and how much of it
stays, is all that another implementation may change: never a bit of the result.
"""

import mmap
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from . import _kernels
from .checkpoint import Checkpoint, Tensor
from .errors import PyllamaError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_STAGING_NBYTES = 4 << 20  # read at a time: enough for the disk, small beside any model
_HUGE_PAGE = 2 << 20


class Weights(Protocol):
    """What the decoder asks of a weight store. Names are Hugging Face's."""

    bytes_read: int

    def blocks(self, name: str) -> Iterable[tuple[int, "_kernels.Matrix"]]:
        """(first row, block) covering the matrix's rows, ascending; a block is valid until the next is asked for."""
        ...

    def vector(self, name: str) -> np.ndarray:
        """A norm's weight or a bias, float32 (n,). Kept by the caller."""
        ...

    def embedding(self, token_ids: np.ndarray, out: np.ndarray) -> None:
        """out[t] = the embedding of token_ids[t]; out (T, hidden_size) float32."""
        ...


class ResidentWeights:
    """All matrices in memory, packed into panels at load. The checkpoint stays open for embedding rows.

    progress  called with the bytes loaded so far and the bytes in all
    """

    def __init__(self, checkpoint: Checkpoint, progress: Callable[[int, int], None] | None = None):
        self._checkpoint = checkpoint
        self._embedding = checkpoint.tensors[EMBEDDING]
        self._blocks: dict[str, tuple[tuple[int, _kernels.Matrix], ...]] = {}
        matrices = [t for t in checkpoint.tensors.values() if len(t.shape) == 2 and t.name != EMBEDDING]
        tied = HEAD not in checkpoint.tensors
        if tied:
            matrices.append(self._embedding)
        total, done = sum(t.nbytes for t in matrices), 0
        for tensor in matrices:
            for loaded, matrix in _load(checkpoint, tensor):
                if progress:
                    progress(done + loaded, total)
            done += tensor.nbytes
            self._blocks[HEAD if tensor is self._embedding else tensor.name] = ((0, matrix),)

    @property
    def bytes_read(self) -> int:
        return self._checkpoint.bytes_read

    @property
    def nbytes(self) -> int:
        """Bytes of the resident matrices."""
        return sum(matrix.nbytes for blocks in self._blocks.values() for _, matrix in blocks)

    def blocks(self, name: str) -> Iterable[tuple[int, "_kernels.Matrix"]]:
        return self._blocks[name]

    def vector(self, name: str) -> np.ndarray:
        tensor = self._checkpoint.tensors[name]
        out = np.empty(tensor.shape, np.float32)
        raw = self._checkpoint.read_rows(tensor, 0, 1)
        _kernels.widen(_kernels.Matrix(tensor.dtype, 1, tensor.cols, raw.reshape(-1)), out)
        return out

    def embedding(self, token_ids: np.ndarray, out: np.ndarray) -> None:
        tensor = self._embedding
        raw = np.empty((len(token_ids), tensor.row_nbytes), np.uint8)
        for i, token_id in enumerate(token_ids):
            raw[i] = self._checkpoint.read_rows(tensor, int(token_id), 1)[0]
        _kernels.widen(_kernels.Matrix(tensor.dtype, len(token_ids), tensor.cols, raw.reshape(-1)), out)


def _load(checkpoint: Checkpoint, tensor: Tensor) -> Iterable[tuple[int, "_kernels.Matrix"]]:
    """Yield (bytes read so far, matrix): the matrix is whole with the last."""
    panels = huge_empty(_kernels.panels_nbytes(tensor.dtype, tensor.rows, tensor.cols))
    panel_nbytes = _kernels.panels_nbytes(tensor.dtype, _kernels.PANEL, tensor.cols)
    matrix = _kernels.Matrix(tensor.dtype, tensor.rows, tensor.cols, panels, "panels")
    step = max(1, _STAGING_NBYTES // (tensor.row_nbytes * _kernels.PANEL)) * _kernels.PANEL
    for row in range(0, tensor.rows, step):
        n = min(step, tensor.rows - row)
        raw = checkpoint.read_rows(tensor, row, n)
        first = row // _kernels.PANEL * panel_nbytes
        block = _kernels.Matrix(tensor.dtype, n, tensor.cols, raw.reshape(-1))
        _kernels.pack_panels(block, panels[first : first + _kernels.panels_nbytes(tensor.dtype, n, tensor.cols)])
        yield (row + n) * tensor.row_nbytes, matrix


def huge_empty(nbytes: int) -> np.ndarray:
    """Uninitialized bytes, in huge pages where the kernel has them: a weight scan is one long TLB miss without."""
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise PyllamaError(f"weights: no memory for {nbytes} bytes ({error.strerror})") from None
    if nbytes >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without transparent huge pages: slower, not wrong
            pass
    return np.frombuffer(memory, np.uint8)
