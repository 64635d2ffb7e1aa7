"""Blocks of one expert -> the reads that bring them into a slot together, and where each then lies.

Blocks that are neighbours in a file are one read. Reads nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

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
    pieces = [span for block in blocks for span in block.spans]
    order = sorted(range(len(pieces)), key=lambda i: (str(pieces[i].file), pieces[i].offset))
    spans: list[Span] = []
    places = [0] * len(pieces)
    begin = 0  # of the last span, in memory
    for i in order:
        span = pieces[i]
        last = spans[-1] if spans else None
        # A gap of less than a sector is padding: reading it costs nothing.
        if last and last.file == span.file and 0 <= span.offset - (last.offset + last.nbytes) < SECTOR:
            spans[-1] = Span(last.file, last.offset, span.offset + span.nbytes - last.offset)
        else:
            begin += last.room if last else 0
            spans.append(span)
        places[i] = begin + spans[-1].offset % SECTOR + span.offset - spans[-1].offset
    return Reads(tuple(blocks), tuple(spans), tuple(places))


def joined(reads: Reads, memory: np.ndarray) -> Iterator[tuple[int, Block, np.ndarray]]:
    """(0 gate, 1 up or 2 down, block, its bytes) of each block, once the reads lie in memory."""
    places = iter(reads.places)
    for block in reads.blocks:
        pieces = [memory[at : at + span.nbytes] for span, at in zip(block.spans, places, strict=False)]
        data = pieces[0]
        if len(pieces) > 1:  # shards cut by columns, side by side as rows
            data = np.concatenate([piece.reshape(block.rows, -1) for piece in pieces], axis=1).reshape(-1)
        yield _KINDS.index(block.tensor.name.split(".")[-2]), block, data
