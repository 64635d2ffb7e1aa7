"""Memory for keys and values, in pages with numbers; what lies where in a page, and the kernels that know it.

A page holds 32 positions of every layer:

    layer 0: keys   (kv_heads, head_dim, 32)               a weight panel per head
             values (kv_heads, ceil(head_dim / 32), 32, 32)  panels of 32 dimensions, positions across rows
    layer 1: ...

in float16 (saturated at 65504) or float32; a layer that reads those of another has none. Whose pages they are is the KV
cache's business: a process that only runs passes needs no more than this.
"""

from collections.abc import Sequence as Views
from typing import NamedTuple

import numpy as np

from pyllama import _kernels as kernels
from pyllama.decoder.shape import Heads, Shape
from pyllama.errors import PyllamaError, RequestError
from pyllama.kv_dtypes import KV_DTYPES

POSITIONS = kernels.PANEL
_ALIGN = 64


def aligned_zeros(nbytes: int) -> np.ndarray:
    """uint8, from a cache line's boundary."""
    memory = np.zeros(nbytes + _ALIGN, np.uint8)
    start = -memory.ctypes.data % _ALIGN
    return memory[start : start + nbytes]


def _layer_nbytes(of: Heads, dtype: str) -> tuple[int, int]:
    """Bytes of a page that one layer's keys and its values take."""
    element = 2 if dtype == "f16" else 4
    dims = -(-of.head_dim // POSITIONS) * POSITIONS
    heads = of.kv_heads * POSITIONS * element
    return heads * of.head_dim, heads * dims


def _page_nbytes(shape: Shape, dtype: str) -> int:
    return sum(sum(_layer_nbytes(of, dtype)) for i, of in enumerate(shape.attention) if of.source == i)


def cache_nbytes(shape: Shape, positions: int, dtype: str) -> int:
    """Bytes of the pages that hold so many positions of one sequence."""
    return -(-positions // POSITIONS) * _page_nbytes(shape, dtype)


def beyond_windows_nbytes(shape: Shape, windows: Views[int | None], positions: int, dtype: str) -> int:
    """Of cache_nbytes(), what layers with a window keep and see no more once a sequence is so long."""
    unseen = (max(0, positions - window) if window else 0 for window in windows)
    own = (i == of.source for i, of in enumerate(shape.attention))
    layers = zip(shape.attention, unseen, own, strict=True)
    return sum(count // POSITIONS * sum(_layer_nbytes(of, dtype)) for of, count, kept in layers if kept)


class View(NamedTuple):
    """What a layer's queries see, and by what their products are scaled.

    window   positions, the query's own included; None: all before it
    softcap  bound of the scaled products; 0: none
    sinks    (heads,) float32, scores without a value, or None
    """

    window: int | None
    scale: float
    softcap: float = 0.0
    sinks: np.ndarray | None = None


class PagePool:
    """Pages, numbered from 0, made as they are asked for; they are never freed.

    shape       the layers and heads whose keys and values are kept here
    views       of each layer
    dtype       "f16" or "f32"
    attention   per layer, the kernel that knows where in a page the layer's keys and values lie;
                none where no heads are here
    page_nbytes bytes of a page
    addresses   (pages,) uint64, by number: for kernels.Batch
    """

    def __init__(self, shape: Shape, views: Views[View], dtype: str = "f16"):
        if dtype not in KV_DTYPES:
            raise RequestError(f"kv_dtype: got {dtype!r}, expected {' or '.join(map(repr, KV_DTYPES))}")
        self.dtype = dtype
        self.page_nbytes = _page_nbytes(shape, dtype)
        offsets: list[tuple[int, int]] = []  # by layer: of its keys and of its values in a page
        end = 0
        for layer, of in enumerate(shape.attention):
            keys, values = _layer_nbytes(of, dtype)
            if of.source == layer:
                offsets.append((end, end + keys))
                end += keys + values
            else:
                offsets.append(offsets[of.source])
        self.attention = [
            kernels.Attention(
                of.heads,
                of.kv_heads,
                of.head_dim,
                f16=dtype == "f16",
                window=view.window or 0,
                scale=view.scale,
                softcap=view.softcap,
                sinks=view.sinks,
                k_offset=offset[0],
                v_offset=offset[1],
            )
            if of.heads
            else None
            for of, view, offset in zip(shape.attention, views, offsets, strict=True)
        ]
        self.addresses = np.zeros(0, np.uint64)
        self._memory: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._memory)

    @property
    def nbytes(self) -> int:
        return len(self) * self.page_nbytes

    def grow(self, pages: int) -> None:
        """Have at least so many; zeroed, since a masked position still meets a weight of 0 in the kernel."""
        while len(self) < pages:
            try:
                page = aligned_zeros(self.page_nbytes)
            except MemoryError:
                raise PyllamaError(
                    f"kv cache: no memory for another {self.page_nbytes} bytes ({POSITIONS} positions) "
                    f"on top of {self.nbytes}"
                ) from None
            self._memory.append(page)
            self.addresses = np.append(self.addresses, np.uint64(page.ctypes.data))

    def read(self, page: int) -> np.ndarray:
        """What a page holds, (page_nbytes,) uint8, between passes; not the caller's to keep."""
        self.grow(page + 1)
        return self._memory[page]

    def write(self, page: int, data: np.ndarray) -> None:
        """Have a page hold what read() gave, of this one or another."""
        self.read(page)[:] = data

    def copy(self, source: int, target: int) -> None:
        self.write(target, self.read(source))
