"""Keys and values of the positions seen so far: sequences that grow, shrink and share one pool of pages.

A page holds 32 positions of every layer:

    layer 0: keys   (kv_heads, head_dim, 32)               a weight panel per head
             values (kv_heads, ceil(head_dim / 32), 32, 32)  panels of 32 dimensions, positions across rows
    layer 1: ...

in float16 (saturated at 65504) or float32. So a sequence costs memory as it grows, and truncation drops whole
pages. Sequences that begin with the same tokens may hold the same pages: a page knows how many hold it, and one
that is held twice is copied before a position is written into it. Knows nothing of tokens or weights.
"""

from collections.abc import Sequence as Pages

import numpy as np

from . import _kernels
from .architecture import Config, layers_of
from .errors import BudgetError, ContextOverflowError, PyllamaError, RequestError

POSITIONS = _kernels.PANEL
_ALIGN = 64


def _layer_nbytes(config: Config, dtype: str) -> tuple[int, int]:
    """Bytes of a page that one layer's keys and its values take."""
    element = 2 if dtype == "f16" else 4
    dims = -(-config.head_dim // POSITIONS) * POSITIONS
    heads = config.num_key_value_heads * POSITIONS * element
    return heads * config.head_dim, heads * dims


def cache_nbytes(config: Config, positions: int, dtype: str) -> int:
    """Bytes of the pages that hold so many positions of one sequence."""
    return -(-positions // POSITIONS) * config.num_hidden_layers * sum(_layer_nbytes(config, dtype))


class KVCache:
    """The pool of pages of one model.

    config          the model
    context_length  positions a sequence can hold at most
    dtype           "f16" or "f32"
    attention       per layer, the kernel that knows where in a page the layer's keys and values lie
    page_nbytes     bytes of a page
    max_pages       pages there may be, or None; whoever sets it sees to it that nobody asks for more
    pages_used      pages held by somebody
    nbytes          bytes of all pages allocated so far; pages given back are reused, not freed
    """

    def __init__(self, config: Config, context_length: int, dtype: str = "f16"):
        if dtype not in ("f16", "f32"):
            raise RequestError(f"kv_dtype: got {dtype!r}, expected 'f16' or 'f32'")
        self.context_length = context_length
        self.dtype = dtype
        keys, values = _layer_nbytes(config, dtype)
        self.page_nbytes = config.num_hidden_layers * (keys + values)
        self.attention = [
            _kernels.Attention(
                layer.mixer.heads,
                layer.mixer.kv_heads,
                layer.mixer.head_dim,
                f16=dtype == "f16",
                window=layer.mixer.window or 0,
                scale=layer.mixer.scale,
                k_offset=number * (keys + values),
                v_offset=number * (keys + values) + keys,
            )
            for number, layer in enumerate(layers_of(config))
        ]
        self.max_pages: int | None = None
        self._free: list[Page] = []
        self._allocated = 0

    @property
    def pages_used(self) -> int:
        return self._allocated - len(self._free)

    @property
    def nbytes(self) -> int:
        return self._allocated * self.page_nbytes

    def new_sequence(self) -> "Sequence":
        return Sequence(self)

    def take(self) -> "Page":
        """A page; new ones are zeroed, since a masked position still meets a weight of 0 in the kernel."""
        if not self._free:
            return self._allocate()
        page = self._free.pop()
        page.holders = 1
        return page

    def _allocate(self) -> "Page":
        if self.max_pages is not None and self._allocated >= self.max_pages:
            raise BudgetError(f"kv cache: all of its {self.max_pages} pages ({self.nbytes} bytes) are in use")
        try:
            memory = np.zeros(self.page_nbytes + _ALIGN, np.uint8)
        except MemoryError:
            raise PyllamaError(
                f"kv cache: no memory for another {self.page_nbytes} bytes ({POSITIONS} positions) "
                f"on top of {self.nbytes}"
            ) from None
        self._allocated += 1
        start = -memory.ctypes.data % _ALIGN
        return Page(memory[start : start + self.page_nbytes])

    def give_back(self, page: "Page") -> None:
        """One holder less; without any the page may be taken again."""
        page.holders -= 1
        if not page.holders:
            self._free.append(page)


class Page:
    """Memory of 32 positions.

    memory   (page_nbytes,) uint8
    address  where it lies
    holders  sequences and others that hold it; with more than one it must not be written
    """

    __slots__ = ("memory", "address", "holders")

    def __init__(self, memory: np.ndarray):
        self.memory = memory
        self.address = memory.ctypes.data
        self.holders = 1


class Sequence:
    """The positions of one text. `length` of them are filled; `table` (1, max_pages) has the pages' addresses."""

    def __init__(self, cache: KVCache):
        self._cache = cache
        self._pages: list[Page] = []
        self.length = 0
        self.table = np.zeros((1, max(1, -(-cache.context_length // POSITIONS))), np.uint64)

    @property
    def pages(self) -> Pages[Page]:
        """The pages of its positions, in order. Whoever keeps one counts itself among its holders."""
        return self._pages

    def adopt(self, pages: Pages[Page], length: int) -> None:
        """Begin with the first `length` positions of these pages, held together with whoever holds them."""
        if self._pages or not 0 <= length <= len(pages) * POSITIONS:
            raise RequestError(f"adopt: {length} positions of {len(pages)} pages, by a sequence of {self.length}")
        for page in pages[: -(-length // POSITIONS)]:
            page.holders += 1
            self._append(page)
        self.length = length

    def pages_needed(self, length: int) -> int:
        """Pages that reserve(length) would take."""
        grown = max(0, -(-length // POSITIONS) - len(self._pages))
        return grown + (length > self.length and self._writes_into_shared_page())

    def _writes_into_shared_page(self) -> bool:
        at = self.length // POSITIONS
        return at < len(self._pages) and self._pages[at].holders > 1

    def _append(self, page: Page) -> None:
        self.table[0, len(self._pages)] = page.address
        self._pages.append(page)

    def reserve(self, length: int) -> None:
        """Have pages for `length` positions. Raises ContextOverflowError beyond the context.

        Cost: the copy of a page, if the next position lies in one that others hold too.
        """
        if length > self._cache.context_length:
            raise ContextOverflowError(
                f"context: {length} positions asked for, {self._cache.context_length} held; "
                "load the model with a larger context_length or shorten the text"
            )
        if length > self.length and self._writes_into_shared_page():
            at = self.length // POSITIONS
            shared, page = self._pages[at], self._cache.take()
            page.memory[:] = shared.memory
            self._pages[at] = page
            self.table[0, at] = page.address
            self._cache.give_back(shared)
        while len(self._pages) * POSITIONS < length:
            self._append(self._cache.take())

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        if not 0 <= length <= self.length:
            raise RequestError(f"truncate: got {length}, expected 0 to {self.length}")
        self.length = length
        self.release_unused()

    def release_unused(self) -> None:
        """Give back pages beyond `length`, as after a pass that failed."""
        while (len(self._pages) - 1) * POSITIONS >= self.length and self._pages:
            self._cache.give_back(self._pages.pop())
            self.table[0, len(self._pages)] = 0

    def close(self) -> None:
        """Give all pages back; the sequence is empty then and may be used anew."""
        self.truncate(0)

    def __enter__(self) -> "Sequence":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
