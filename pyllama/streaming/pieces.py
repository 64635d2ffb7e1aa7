"""Blocks -> the reads that bring them into a slot together, those of one expert or one by itself, and where each then
lies.

Blocks that are neighbours in a file are one read. Reads nothing.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pyllama.checkpoint import Part, Tensor
from pyllama.checkpoint.files import SECTOR, padded
from pyllama.checkpoint.index import Span, ranges
from pyllama.checkpoint.packed_rows import rows_of
from pyllama.errors import CheckpointError
from pyllama.streaming.blocks import Block

TURN_NBYTES = 1 << 20  # of rows that are put together after they are read: large enough for the disk's full rate


class Reads(NamedTuple):
    """blocks, and the spans that hold them all.

    starts  of each span, where its span.room bytes of memory begin
    places  of each block, for each of its spans the first byte in that memory; of a block that lies apart, the first
            byte of its rows, which are behind all spans
    room    bytes of memory in all
    """

    blocks: tuple[Block, ...]
    spans: tuple[Span, ...]
    starts: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]
    room: int


def together(blocks: Sequence[Block]) -> Reads:
    """Reads of the blocks, as few as their places in the files allow."""
    spans, of_spans = merged([span for block in blocks if not _around(block) for span in block.spans])
    left = iter(of_spans)
    places: list[tuple[int, ...]] = []
    starts, end = [], 0
    for span in spans:
        starts.append(end)
        end += span.room
    for block in blocks:
        if _around(block):  # with room for what belongs before and behind it
            (span,) = block.spans
            spans.append(span)
            starts.append(end + SECTOR)
            places.append((starts[-1] + span.offset % SECTOR,))
            end += room_of(block)
        elif block.part_apart:
            places.append((end,))
            end += block.room
        else:
            places.append(tuple(next(left) for _ in block.spans))
    return Reads(tuple(blocks), tuple(spans), tuple(starts), tuple(places), end)


def _around(block: Block) -> tuple[bytes, ...]:
    """What a block needs before and behind it that does not lie there in the file, or ()."""
    return block.excerpt.around if block.excerpt is not None else ()


def room_of(block: Block) -> int:
    """Bytes of memory that one takes which is read by itself: whole sectors."""
    return padded(block.room)


class Turn(NamedTuple):
    """Some rows of one or more blocks that take turns, to be read as one.

    spans   codes and scales of all of them
    rows    of each, and of each where they go: first byte in memory
    """

    spans: tuple[Span, ...]
    rows: int
    blocks: tuple[tuple[Block, int], ...]


#: One read, and where it goes in the memory; or what is put together after it.
Read = tuple[Span, int] | Turn


def turns(reads: Reads) -> Iterator[Turn]:
    """What has to be read for the blocks that lie apart, in reads of at most TURN_NBYTES where rows allow."""
    together: dict[tuple[Part, int, int], list[tuple[Block, int]]] = {}
    for block, (place, *_) in zip(reads.blocks, reads.places, strict=True):
        if block.part_apart and block.part_apart.apart:
            part = block.part_apart._replace(apart=block.part_apart.apart._replace(phase=0))
            together.setdefault((part, block.row, block.rows), []).append((block, place))
    for (part, first, count), blocks in together.items():
        width = blocks[0][0].tensor.row_nbytes
        each = max(1, TURN_NBYTES // (width * (part.apart.step if part.apart else 1)))
        for row in range(0, count, each):
            rows = min(each, count - row)
            spans = ranges(blocks[0][0].tensor.dtype, part, first + row, rows)
            yield Turn(spans, rows, tuple((block, place + row * width) for block, place in blocks))


def each_read(reads: Reads, most: int) -> list[Read]:
    """Reads of at most `most` bytes each, of whole sectors; then turns."""
    found: list[Read] = []
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
            found += [b.span for b in tensor.blocks if not b.around]
        else:
            found += [span for p in tensor.parts for span in ranges(tensor.dtype, p, p.row, p.rows)]
    return found


def joined(reads: Reads, memory: np.ndarray) -> Iterator[tuple[Block, np.ndarray]]:
    """(block, its bytes) of each block, once the reads lie in memory. Raises CheckpointError for a damaged one."""
    for block, places in zip(reads.blocks, reads.places, strict=True):
        sizes = [block.nbytes] if block.part_apart else [span.nbytes for span in block.spans]
        pieces = [memory[at : at + nbytes] for nbytes, at in zip(sizes, places, strict=True)]
        data = pieces[0]
        if len(pieces) > 1:  # shards cut by columns, side by side as rows
            data = np.concatenate([piece.reshape(block.rows, -1) for piece in pieces], axis=1).reshape(-1)
        if around := _around(block):
            data = _put_around(memory, data, around)
            if block.excerpt is not None and block.excerpt.skip:
                data = rows_of(block.tensor, block.excerpt, data).reshape(-1)
        if block.crc32 is not None and zlib.crc32(data.data) != block.crc32:
            raise CheckpointError(f"{block.tensor.name}: rows from {block.row} are damaged (pyllama verify tells more)")
        yield block, data


def _put_around(memory: np.ndarray, data: np.ndarray, around: tuple[bytes, ...]) -> np.ndarray:
    """What lies in memory, with what belongs before and behind it put there."""
    head, tail = (np.frombuffer(piece, np.uint8) for piece in around)
    begin = data.ctypes.data - memory.ctypes.data
    end = begin + len(data)
    memory[begin - len(head) : begin] = head
    memory[end : end + len(tail)] = tail
    return memory[begin - len(head) : end + len(tail)]
