"""A model on disk -> what is damaged in it: every byte of a packed one, the bounds of every tensor of any other."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyllama import _kernels
from pyllama.checkpoint import Tensor, open_checkpoint
from pyllama.checkpoint.files import InputFile, padded
from pyllama.checkpoint.index import Span, StoredBlock
from pyllama.checkpoint.packed import Shard, first_shard, read_shards
from pyllama.checkpoint.packed_rows import damaged
from pyllama.errors import CheckpointError, PyllamaError
from pyllama.hub.choose import INDEX
from pyllama.packing.ahead import read_ahead
from pyllama.packing.shard import compact
from pyllama.streaming.direct import DirectFile
from pyllama.terminal.progress import Progress


class Report(NamedTuple):
    """What verify() found. blocks: how many were checked, 0 for a form without checksums."""

    format: str
    packed: bool
    tensors: int
    blocks: int
    nbytes: int
    damage: list[str]


def verify(path: Path, progress: Progress | None = None) -> Report:
    """Check a model. Reads all of a packed one, and of any other the headers.

    Raises PyllamaError for a model that cannot be opened at all; whatever else is wrong is in `damage`, a line each.
    """
    progress = progress or Progress(quiet=True)
    with open_checkpoint(path, shares=True) as checkpoint:
        report = Report(checkpoint.format, checkpoint.packed, len(checkpoint.tensors), 0, checkpoint.nbytes, [])
    if not report.packed:
        return report
    first = first_shard(path)
    assert first is not None
    files: dict[Path, InputFile] = {}
    try:
        shards = dict(read_shards(first, files))
    finally:
        for file in files.values():
            file.close()
    damage = list(_small_damage(path, shards))
    blocks = [(tensor, block) for s in shards.values() for tensor in s.tensors.values() for block in tensor.blocks]
    progress.total = sum(block.nbytes for _, block in blocks)
    damage += check_blocks(shards, progress.advance)
    return report._replace(blocks=len(blocks), nbytes=progress.total, damage=damage)


def first_wrong(path: Path, shard: Shard) -> str | None:
    """What check_blocks() finds first, of one file."""
    return next(check_blocks({path: shard}, lambda nbytes: None), None)


def check_blocks(
    shards: Mapping[Path, Shard],
    advance: Callable[[int], None],
    more: Callable[[Tensor, StoredBlock, np.ndarray, np.ndarray], str | None] | None = None,
    more_room: Callable[[Tensor, StoredBlock], int] = lambda tensor, block: 0,
) -> Iterator[str]:
    """Read every block of these files: checksum, form, and padding. Yields what is wrong.

    more       called with each sound block, its bytes and memory of more_room() bytes; what it returns is wrong too
    """
    for path, shard in shards.items():
        items = [(tensor, block) for tensor in shard.tensors.values() for block in tensor.blocks]
        # Vectors have no padding: what follows is the next one.
        spans = {
            block.offset: Span(path, block.offset, padded(block.nbytes) if len(tensor.shape) == 2 else block.nbytes)
            for tensor, block in items
        }
        room = max(spans[block.offset].room + more_room(tensor, block) for tensor, block in items)
        try:
            file = DirectFile(path)
        except CheckpointError as error:
            yield str(error)
            continue

        def check(item: tuple[Tensor, StoredBlock], memory: np.ndarray) -> str | None:
            tensor, block = item
            span = spans[block.offset]  # noqa: B023 - read before the next file
            try:
                data = file.read(span, memory)  # noqa: B023
                if zlib.crc32(data.data[: block.nbytes]) != block.crc32 or data[block.nbytes :].any():
                    return str(damaged(tensor, block))
                data = data[: block.nbytes]
                _kernels.Matrix(tensor.dtype, block.rows, tensor.cols, data, block.stored)
                return more(tensor, block, data, memory[span.room :]) if more else None
            except CheckpointError as error:
                return f"{tensor.name}: rows {block.row} to {block.row + block.rows - 1}: {error}"
            except PyllamaError:
                return str(damaged(tensor, block))

        with file:
            for (_, block), wrong in read_ahead(items, room, check):
                if wrong:
                    yield wrong
                advance(block.nbytes)


def _small_damage(folder: Path, shards: Mapping[Path, Shard]) -> Iterator[str]:
    first = next(iter(shards.values()))
    for name, carried in first.files.items():
        path = folder / name
        try:
            with InputFile(path) as file:
                data = file.read(0, file.nbytes) if file.nbytes == carried.nbytes else b""
        except CheckpointError as error:
            yield str(error)
            continue
        if len(data) != carried.nbytes or zlib.crc32(data) != carried.crc32:
            yield f"{path}: not as it was packed: damaged, or changed since"
    if len(shards) > 1:
        path = folder / INDEX
        if not path.is_file() or path.read_bytes() != index_bytes(shards):
            yield f"{path}: missing or damaged (pyllama does not need it, other programs do)"


def index_bytes(shards: Mapping[Path, Shard]) -> bytes:
    """The index that tells other programs which file a tensor is in."""
    weight_map = {name: path.name for path, shard in shards.items() for name in shard.tensors}
    return compact({"metadata": {"format": "pyllama-packed"}, "weight_map": weight_map}).encode()
