"""Blocks of one expert -> the reads that bring them into a slot together, and where each then lies.

Blocks that are neighbours in a file are one read. Reads nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pyllama.architecture.names import expert_matrix
from pyllama.checkpoint import Part, Tensor
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.files import SECTOR
from pyllama.checkpoint.index import ranges
from pyllama.checkpoint.packed_rows import rows_of
from pyllama.streaming.blocks import Block, Span

TURN_NBYTES = 1 << 20  # of rows that are put together after they are read: large enough for the disk's full rate


class Reads(NamedTuple):
    """blocks, and the spans that hold them all.

    starts  of each span, where its span.room bytes of memory begin
    places  for each span of each block, in order: its first byte in that memory; of a block that lies apart, the first
            byte of its rows, which are behind all spans
    room    bytes of memory in all
    """

    blocks: tuple[Block, ...]
    spans: tuple[Span, ...]
    starts: tuple[int, ...]
    places: tuple[int, ...]
    room: int


def together(blocks: Sequence[Block]) -> Reads:
    """Reads of the blocks, as few as their places in the files allow."""
    spans, of_spans = merged([span for block in blocks if not _around(block) for span in block.spans])
    places, left = [], iter(of_spans)
    starts, end = [], 0
    for span in spans:
        starts.append(end)
        end += span.room
    for block in blocks:
        if _around(block):  # with room for what belongs before and behind it
            (span,) = block.spans
            spans.append(span)
            starts.append(end + SECTOR)
            places.append(starts[-1] + span.offset % SECTOR)
            end += room_of(block)
            continue
        places += [next(left) for _ in block.spans]
        if block.apart:
            places.append(end)
            end += block.room
    return Reads(tuple(blocks), tuple(spans), tuple(starts), tuple(places), end)


def _around(block: Block) -> tuple[bytes, ...]:
    """What a block needs before and behind it that does not lie there in the file, or ()."""
    return block.part.around if block.part is not None else ()


def room_of(block: Block) -> int:
    """Bytes of memory that one takes which is read by itself: whole sectors."""
    return -(-block.room // SECTOR) * SECTOR


class Turn(NamedTuple):
    """Some rows of one or more blocks that take turns, to be read as one.

    spans   codes and scales of all of them
    rows    of each, and of each where they go: first byte in memory
    """

    spans: tuple[Span, ...]
    rows: int
    blocks: tuple[tuple[Block, int], ...]


def turns(reads: Reads) -> Iterator[Turn]:
    """What has to be read for the blocks that lie apart, in reads of at most TURN_NBYTES where rows allow."""
    together: dict[tuple[Part, int, int], list[tuple[Block, int]]] = {}
    places = iter(reads.places)
    for block in reads.blocks:
        place = [next(places) for _ in range(1 if block.apart else len(block.spans))][-1]
        if block.apart and block.apart.apart:
            part = block.apart._replace(apart=block.apart.apart._replace(phase=0))
            together.setdefault((part, block.row, block.rows), []).append((block, place))
    for (part, first, count), blocks in together.items():
        width = blocks[0][0].tensor.row_nbytes
        each = max(1, TURN_NBYTES // (width * (part.apart.step if part.apart else 1)))
        for row in range(0, count, each):
            rows = min(each, count - row)
            spans = tuple(Span(*r) for r in ranges(blocks[0][0].tensor.dtype, part, first + row, rows))
            yield Turn(spans, rows, tuple((block, place + row * width) for block, place in blocks))


def parts_of(reads: Reads, most: int) -> list[tuple[Span, int] | Turn]:
    """The reads in pieces of at most `most` bytes, of whole sectors: (what, where in memory); then turns."""
    found: list[tuple[Span, int] | Turn] = []
    for span, at in zip(reads.spans, reads.starts, strict=True):
        skip, done = span.offset % SECTOR, 0
        while done < skip + span.nbytes:
            nbytes = min(most, skip + span.nbytes - done)
            found.append((Span(span.file, span.offset - skip + done, nbytes), at + done))
            done += nbytes
    return [*found, *turns(reads)]


def turn_room(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory that the largest of turns() takes."""
    widths = [t.row_nbytes * part.apart.step for t in tensors for part in t.parts if part.apart is not None]
    return max(TURN_NBYTES, *widths) + 4 * SECTOR if widths else 0


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
    """Where whole matrices lie that do not lie apart and need nothing around them."""
    found = []
    for tensor in tensors:
        if any(part.apart for part in tensor.parts):
            continue
        if tensor.blocks:
            found += [Span(b.file, b.offset, b.nbytes) for b in tensor.blocks if not b.around]
        else:
            found += [Span(p.file, p.offset, p.rows * row_nbytes(tensor.dtype, p.cols)) for p in tensor.parts]
    return found


def joined(reads: Reads, memory: np.ndarray) -> Iterator[tuple[int, Block, np.ndarray]]:
    """(0 gate, 1 up or 2 down, block, its bytes) of each block, once the reads lie in memory."""
    places = iter(reads.places)
    for block in reads.blocks:
        sizes = [block.nbytes] if block.apart else [span.nbytes for span in block.spans]
        pieces = [memory[at : at + nbytes] for nbytes in sizes for at in (next(places),)]
        data = pieces[0]
        if len(pieces) > 1:  # shards cut by columns, side by side as rows
            data = np.concatenate([piece.reshape(block.rows, -1) for piece in pieces], axis=1).reshape(-1)
        if around := _around(block):
            data = _put_around(memory, data, around)
            if block.part is not None and block.part.skip:
                data = rows_of(block.tensor, block.part, data).reshape(-1)
        yield expert_matrix(block.tensor.name), block, data


def _put_around(memory: np.ndarray, data: np.ndarray, around: tuple[bytes, ...]) -> np.ndarray:
    """What lies in memory, with what belongs before and behind it put there."""
    head, tail = (np.frombuffer(piece, np.uint8) for piece in around)
    begin = data.ctypes.data - memory.ctypes.data
    end = begin + len(data)
    memory[begin - len(head) : begin] = head
    memory[end : end + len(tail)] = tail
    return memory[begin - len(head) : end + len(tail)]
