"""Pinned weights, which stay: an arena filled once, each block in the form that takes least and computes fastest."""

import numpy as np

from pyllama import _kernels
from pyllama.streaming.blocks import Block
from pyllama.streaming.memory import huge_empty

_ALIGN = 64
PACKED_WORTH = 15 / 16  # packed only if it saves at least this: an odd tensor of many escapes stays plain


class Arena:
    """`nbytes` of memory for blocks; never freed one by one."""

    def __init__(self, nbytes: int):
        self.nbytes = nbytes
        self.used = 0
        self._memory = huge_empty(nbytes) if nbytes else np.empty(0, np.uint8)

    def pin(self, block: "_kernels.Matrix") -> "_kernels.Matrix | None":
        """A copy that stays: bfloat16 in 12 bits where it packs, other rows as panels, packed blocks as they are.

        None where there is no room for it.
        """
        free = self._memory[self.used :]
        if block.layout == "packed":
            if block.nbytes > len(free):
                return None
            free[: block.nbytes] = block.data
            return self._hold(block, block.nbytes, "packed")
        plain = _kernels.panels_nbytes(block.dtype, block.rows, block.cols)
        limit = min(len(free), int(plain * PACKED_WORTH))
        if block.dtype == "BF16" and limit and (nbytes := _kernels.pack(block, free[:limit])):
            return self._hold(block, nbytes, "packed")
        if plain > len(free):
            return None
        _kernels.to_panels(block, free[:plain])
        return self._hold(block, plain, "panels")

    def _hold(self, block: "_kernels.Matrix", nbytes: int, layout: str) -> "_kernels.Matrix":
        data = self._memory[self.used : self.used + nbytes]
        self.used += -(-nbytes // _ALIGN) * _ALIGN
        return _kernels.Matrix(block.dtype, block.rows, block.cols, data, layout)


def nbytes_if_pinned(block: Block) -> int:
    """An estimate of the memory a block takes once it is pinned."""
    dtype, rows, cols = block.tensor.dtype, block.rows, block.tensor.cols
    if block.stored == "packed":
        need = block.nbytes + (sum(map(len, block.excerpt.around)) if block.excerpt else 0)
    elif dtype == "BF16":
        need = packed_nbytes(rows, cols)
    else:
        need = _kernels.panels_nbytes(dtype, rows, cols)
    return -(-need // _ALIGN) * _ALIGN


def packed_nbytes(rows: int, cols: int) -> int:
    """An estimate of bfloat16 rows, packed: 12 bits a weight and a thousandth for escapes."""
    return int(_kernels.packed_nbytes(rows, cols) * 1.001)
