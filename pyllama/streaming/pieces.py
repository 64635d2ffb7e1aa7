"""Blocks of one expert -> the reads that bring them into a slot together, and where each then lies.

Blocks that are neighbours in a file are one read. Reads nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pyllama.checkpoint import Tensor
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.files import SECTOR
from pyllama.streaming.blocks import Block, Span

_KINDS = ("gate_proj", "up_proj", "down_proj")


class Reads(NamedTuple):
    """blocks, and the spans that hold them all: each goes into span.room bytes of memory, one behind the other.

    places  for each span of each block, in order: its first byte in that memory
    """

    blocks: tuple[Block, ...]
    spans: tuple[Span, ...]
    places: tuple[int, ...]

    @property
    def room(self) -> int:
        return sum(span.room for span in self.spans)


def together(blocks: Sequence[Block]) -> Reads:
    """Reads of the blocks, as few as their places in the files allow."""
    spans, places = merged([span for block in blocks for span in block.spans])
    return Reads(tuple(blocks), tuple(spans), tuple(places))


def merged(pieces: Sequence[Span]) -> tuple[list[Span], list[int]]:
    """Spans that hold all pieces, and where in their memory, one behind the other, each piece begins."""
    order = sorted(range(len(pieces)), key=lambda i: (str(pieces[i].file), pieces[i].offset))
    spans: list[Span] = []
    places = [0] * len(pieces)
    begin = 0  # of the last span, in memory
    for i in order:
        span = pieces[i]
        last = spans[-1] if spans else None
        # A gap of less than a sector is padding: reading it costs nothing.
        if last and last.file == span.file and span.offset - (last.offset + last.nbytes) < SECTOR:
            spans[-1] = Span(last.file, last.offset, max(span.offset + span.nbytes - last.offset, last.nbytes))
        else:
            begin += last.room if last else 0
            spans.append(span)
        places[i] = begin + spans[-1].offset % SECTOR + span.offset - spans[-1].offset
    return spans, places


def extents(tensors: Sequence[Tensor]) -> list[Span]:
    """Where whole matrices lie."""
    found = []
    for tensor in tensors:
        if tensor.blocks:
            found += [Span(b.file, b.offset, b.nbytes) for b in tensor.blocks]
        else:
            found += [Span(p.file, p.offset, p.rows * row_nbytes(tensor.dtype, p.cols)) for p in tensor.parts]
    return found


def joined(reads: Reads, memory: np.ndarray) -> Iterator[tuple[int, Block, np.ndarray]]:
    """(0 gate, 1 up or 2 down, block, its bytes) of each block, once the reads lie in memory."""
    places = iter(reads.places)
    for block in reads.blocks:
        pieces = [memory[at : at + span.nbytes] for span, at in zip(block.spans, places, strict=False)]
        data = pieces[0]
        if len(pieces) > 1:  # shards cut by columns, side by side as rows
            data = np.concatenate([piece.reshape(block.rows, -1) for piece in pieces], axis=1).reshape(-1)
        yield _KINDS.index(block.tensor.name.split(".")[-2]), block, data
