"""Tensors -> one file of a packed model, written once from its first page to its last.

Reading, packing and writing run side by side: the disk reads ahead, the kernels pack on all threads, one thread
writes. Memory is a few blocks, whatever the model. Where the file goes and when it counts is not decided here.
"""

import json
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama import _kernels
from pyllama.architecture.tensors import BY_ROW, EMBEDDING
from pyllama.checkpoint import Tensor
from pyllama.checkpoint.files import SECTOR, padded
from pyllama.checkpoint.packed import CRC_AT, FORMAT, HEAD, VERSION, Carried, header_crc32
from pyllama.checkpoint.rows import Rows
from pyllama.closing import Closing
from pyllama.packing.ahead import read_ahead
from pyllama.packing.own_rows import OwnRows
from pyllama.packing.rows import SourceFiles
from pyllama.packing.sinks import FileSink, Sink
from pyllama.streaming.memory import huge_empty
from pyllama.streaming.pinned import PACKED_WORTH
from pyllama.terminal.progress import Progress

BLOCK_NBYTES = 4 << 20  # a block with its padding fits the slot of a ring, where 32 rows do
BUFFERS = 4
SHARE = 0.76  # of bfloat16 bytes, packed


class Entry(NamedTuple):
    """A block as the header lists it."""

    rows: int
    nbytes: int
    crc32: int
    packed: bool


LARGEST = Entry(2**31 - 1, 2**40, 2**32 - 1, False)  # no entry takes more room in the header


def packs(tensor: Tensor, tied: bool) -> bool:
    """Whether a tensor is packed where it gets smaller; an embedding read row by row stays plain."""
    by_row = tensor.name in BY_ROW and not (tied and tensor.name == EMBEDDING)
    return tensor.dtype == "BF16" and len(tensor.shape) == 2 and not by_row


def cut(tensor: Tensor, packed: bool) -> list[Rows]:
    """A matrix in equal blocks that, packed or plain, should fit BLOCK_NBYTES."""
    panel = _kernels.PANEL
    if packed:
        # Sizes grow by whole panels, and a few escapes must fit too.
        each = _kernels.packed_nbytes(2 * panel, tensor.cols) - _kernels.packed_nbytes(panel, tensor.cols)
        each += each // 200
    else:
        each = panel * tensor.row_nbytes
    most = max(1, (BLOCK_NBYTES - SECTOR) // each)
    panels = -(-tensor.rows // panel)
    count = -(-panels // most)
    ends = [min(panels * i // count * panel, tensor.rows) for i in range(count + 1)]
    return [Rows(tensor, row, end - row) for row, end in pairwise(ends)]


def estimated_nbytes(tensor: Tensor, tied: bool) -> int:
    """Bytes the tensor will probably take in a packed file."""
    share = SHARE if packs(tensor, tied) else 1
    return int(tensor.nbytes * share) + SECTOR * (1 + tensor.nbytes // BLOCK_NBYTES)


def write_shard(path: Path, tensors: Sequence[Tensor], fields: Mapping[str, str], **how: Any) -> int:
    """write_to() a new file."""
    with FileSink(path) as sink:
        return write_to(sink, tensors, fields, **how)


def write_to(
    sink: Sink,
    tensors: Sequence[Tensor],
    fields: Mapping[str, str],
    *,
    tied: bool,
    source: SourceFiles | OwnRows,
    progress: Progress,
) -> int:
    """Write `tensors` as a new file, down to the disk; returns the checksum of its header.

    fields  the header's own metadata but for what is made here. Raises OSError where the disk fails or is full,
            CheckpointError where the source does.
    """
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    vectors = sorted((t for t in tensors if len(t.shape) == 1), key=lambda t: -t.row_nbytes // t.cols)
    source.open(tensors)
    pieces = [piece for tensor in matrices for piece in cut(tensor, packs(tensor, tied))]
    room = max(SECTOR, *(piece.room for piece in (*pieces, *(Rows(tensor, 0, 1) for tensor in vectors))))
    worst = {tensor.name: [LARGEST] for tensor in tensors}
    for piece in pieces:
        worst[piece.tensor.name] += [LARGEST] * 2
    reserved = padded(len(_header(fields, matrices, vectors, worst)))
    entries: dict[str, list[Entry]] = {tensor.name: [] for tensor in tensors}
    with _Writer(sink, reserved, max((padded(piece.nbytes) for piece in pieces), default=SECTOR)) as writer:
        for piece, rows in read_ahead(pieces, room, source.read):
            _pack_rows(piece.tensor, piece.rows, rows, packs(piece.tensor, tied), writer, entries[piece.tensor.name])
            progress.advance(piece.nbytes)
        writer.finish()
        memory = huge_empty(room)
        data = []
        for tensor in vectors:
            raw = source.read(Rows(tensor, 0, 1), memory).tobytes()
            entries[tensor.name].append(Entry(1, len(raw), zlib.crc32(raw), False))
            data.append(raw)
            progress.advance(len(raw))
        writer.append(b"".join(data))
        head = bytearray(_header(fields, matrices, vectors, entries))
        head += b" " * (reserved - len(head))
        head[:8] = (reserved - 8).to_bytes(8, "little")
        crc32 = header_crc32(head)
        head[CRC_AT : CRC_AT + 8] = b"%08x" % crc32
        writer.put_header(bytes(head), crc32)
    return crc32


def _pack_rows(
    tensor: Tensor, count: int, rows: np.ndarray, packed: bool, writer: "_Writer", entries: list[Entry]
) -> None:
    """Write `count` rows as one block, or as several where they pack too badly for one."""
    panel = _kernels.PANEL
    fits = count <= panel or padded(len(rows)) <= BLOCK_NBYTES
    nbytes = 0
    buffer = writer.buffer()
    if packed:
        limit = int(len(rows) * PACKED_WORTH)
        if count > panel:
            limit = min(limit, BLOCK_NBYTES)
        if limit:
            matrix = _kernels.Matrix(tensor.dtype, count, tensor.cols, rows)
            nbytes = _kernels.pack(matrix, buffer[:limit])
    if nbytes:
        writer.put(buffer, Entry(count, nbytes, 0, True), entries)
    elif fits:
        buffer[: len(rows)] = rows
        writer.put(buffer, Entry(count, len(rows), 0, False), entries)
    else:
        writer.give_back(buffer)
        half = -(-count // panel // 2) * panel
        for part, start in ((half, 0), (count - half, half)):
            begin = start * tensor.row_nbytes
            _pack_rows(tensor, part, rows[begin : begin + part * tensor.row_nbytes], packed, writer, entries)


def _header(
    fields: Mapping[str, str],
    matrices: Sequence[Tensor],
    vectors: Sequence[Tensor],
    entries: Mapping[str, Sequence[Entry]],
) -> bytes:
    """Length (zero so far) and JSON; the checksum is eight zeros."""
    described, stored, offset = {}, {}, 0
    for tensor in (*matrices, *vectors):
        blocks = entries[tensor.name]
        described[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "blocks": blocks}
        matrix = len(tensor.shape) == 2
        nbytes = sum(padded(block.nbytes) if matrix else block.nbytes for block in blocks)
        stored[tensor.name] = {
            "dtype": "U8" if matrix else tensor.dtype,
            "shape": [nbytes // SECTOR, SECTOR] if matrix else tensor.shape,
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    metadata = {"crc32": "0" * 8, "format": FORMAT, "version": VERSION, **fields, "tensors": compact(described)}
    head = b"\0" * 8 + compact({"__metadata__": metadata, **stored}).encode()
    assert head.startswith(HEAD, 8)
    return head


def shard_fields(
    source: str, rope_interleaved: bool, number: int, count: int, previous: int, carried: Mapping[str, Carried]
) -> dict[str, str]:
    """What the header of a file says of it; previous: the checksum of the one before; carried: told in the first."""
    return {
        "source": source,
        "rope_interleaved": "true" if rope_interleaved else "false",
        "shard": str(number),
        "shards": str(count),
        "previous": f"{previous:08x}",
        "files": compact(carried if number == 1 else {}),
    }


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class _Writer(Closing):
    """Blocks to consecutive pages of a sink, on a thread of its own; a context manager."""

    def __init__(self, sink: Sink, start: int, room: int):
        self._sink = sink
        self._end = start
        memory = huge_empty(BUFFERS * room)
        self._free = [memory[i * room : (i + 1) * room] for i in range(BUFFERS)]
        self._under_way: deque[Future[np.ndarray]] = deque()  # each gives its buffer back
        self._thread = ThreadPoolExecutor(1, "pyllama-write")

    def buffer(self) -> np.ndarray:
        """A free buffer of `room` bytes, on a page boundary. Raises what stopped the writing."""
        return self._free.pop() if self._free else self._under_way.popleft().result()

    def give_back(self, buffer: np.ndarray) -> None:
        self._free.append(buffer)

    def put(self, buffer: np.ndarray, entry: Entry, entries: list[Entry]) -> None:
        """Write entry.nbytes bytes of the buffer and zeros to the page's end; adds the entry, with its checksum."""
        buffer[entry.nbytes : padded(entry.nbytes)] = 0
        entries.append(entry)
        self._under_way.append(self._thread.submit(self._put, buffer, entries, len(entries) - 1))

    def _put(self, buffer: np.ndarray, entries: list[Entry], index: int) -> np.ndarray:
        entry = entries[index]
        data = buffer.data[: padded(entry.nbytes)]
        entries[index] = entry._replace(crc32=zlib.crc32(data[: entry.nbytes]))
        self._write(data, direct=True)
        return buffer

    def _write(self, data: memoryview, direct: bool = False) -> None:
        """All of it at the file's end so far."""
        self._sink.write(data, self._end, direct)
        self._end += len(data)

    def finish(self) -> None:
        """Wait until everything put is written."""
        for block in self._under_way:
            block.result()

    def append(self, data: bytes) -> None:
        """What follows the blocks, of any length."""
        if data:
            self._write(memoryview(data))

    def put_header(self, head: bytes, crc32: int) -> None:
        self._sink.write(memoryview(head), 0)
        self._sink.finish(crc32)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
