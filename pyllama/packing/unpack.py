"""A packed model -> safetensors with the source's bytes, and the small files taken along.

Names are Hugging Face's and rows lie as the source had them: a GGUF or Meta source keeps q and k in interleaved
rotary order. Quantized tensors, for which safetensors has no dtype, become U8 (rows, bytes of a row).
"""

import io
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.checkpoint import Tensor, open_checkpoint
from pyllama.checkpoint.dtypes import PLAIN
from pyllama.checkpoint.index import StoredBlock
from pyllama.checkpoint.packed import shard_name
from pyllama.checkpoint.packed_rows import damaged
from pyllama.checkpoint.packed_rows import unpack as unpack_block
from pyllama.errors import PackError, RequestError
from pyllama.hub import resolve
from pyllama.packing.ahead import read_ahead
from pyllama.packing.carry import folder_files
from pyllama.packing.shard import compact
from pyllama.packing.verify import INDEX
from pyllama.packing.workplace import PARTIAL, Workplace, disk_errors
from pyllama.streaming.blocks import Span
from pyllama.streaming.direct import DirectFile
from pyllama.terminal.progress import Progress, format_nbytes

SHARD_NBYTES = 5_000_000_000
SYNC_NBYTES = 64 << 20


def unpack(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, progress: Progress | None = None
) -> Path:
    """Write the tensors of a packed model as they were; returns the folder.

    destination  a folder to be made; nothing lies under that name before all is there. Raises CheckpointError for
                 a damaged block, by name; PackError for a full disk.
    """
    progress = Progress(quiet=True) if progress is None else progress
    with open_checkpoint(resolve(source)) as checkpoint:
        if not checkpoint.packed:
            raise RequestError(f"{source}: not a packed model, nothing to unpack")
        tensors = list(checkpoint.tensors.values())
        folder = checkpoint.path
    with Workplace(destination, ".unpacking") as work, disk_errors(work.destination):
        work.journal()
        work.clear()
        try:
            work.write_journal({"work": "unpack"})
            progress.total = sum(tensor.nbytes for tensor in tensors)
            free = shutil.disk_usage(work.folder).free
            if progress.total > free:
                raise PackError(
                    f"{work.destination}: {format_nbytes(progress.total)} to write, but {format_nbytes(free)} free"
                )
            _write_model(work, tensors, progress)
            for name, data in folder_files(folder):
                work.write(name, data)
            work.finish()
        except BaseException:
            if work.folder.exists():
                work.abandon()
            raise
    return work.destination


def _write_model(work: Workplace, tensors: Sequence[Tensor], progress: Progress) -> None:
    shards: list[list[Tensor]] = [[]]
    nbytes = 0
    for tensor in tensors:
        if shards[-1] and nbytes + tensor.nbytes > SHARD_NBYTES:
            shards.append([])
            nbytes = 0
        shards[-1].append(tensor)
        nbytes += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        path = work.folder / (shard_name(number, len(shards)) + PARTIAL)
        _write_file(path, shard, progress)
        final = work.keep(path)
        weight_map.update({tensor.name: final.name for tensor in shard})
    if len(shards) > 1:
        metadata = {"total_size": sum(tensor.nbytes for tensor in tensors)}
        work.write(INDEX, compact({"metadata": metadata, "weight_map": weight_map}).encode())


def _write_file(path: Path, tensors: Sequence[Tensor], progress: Progress) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for that word
    offset = 0
    for tensor in tensors:
        plain = tensor.dtype in PLAIN
        header[tensor.name] = {
            "dtype": tensor.dtype if plain else "U8",
            "shape": tensor.shape if plain else (tensor.rows, tensor.row_nbytes),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    head = compact(header).encode()
    head += b" " * (-len(head) % 8)
    items = [(tensor, block) for tensor in tensors for block in tensor.blocks]
    files = {file: DirectFile(file) for file in {block.file for _, block in items}}

    def read(item: tuple[Tensor, StoredBlock], memory: np.ndarray) -> np.ndarray:
        tensor, block = item
        data = files[block.file].read(_span(block), memory)
        if zlib.crc32(data.data) != block.crc32:
            raise damaged(tensor, block)
        if block.stored == "rows":
            return data
        plain = np.empty(block.rows * tensor.row_nbytes, np.uint8)
        unpack_block(tensor, block, block.rows, data, plain)
        return plain

    try:
        with open(path, "wb", buffering=0) as out:
            _write_all(out, memoryview(len(head).to_bytes(8, "little") + head))
            synced = 0
            for _, rows in read_ahead(items, max(_span(block).room for _, block in items), read):
                _write_all(out, memoryview(rows))
                progress.advance(len(rows))
                if out.tell() - synced > SYNC_NBYTES:
                    # The page cache is for others: what is on the disk may leave it.
                    os.fdatasync(out.fileno())
                    os.posix_fadvise(out.fileno(), synced, out.tell() - synced, os.POSIX_FADV_DONTNEED)
                    synced = out.tell()
            os.fsync(out.fileno())
            os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        for file in files.values():
            file.close()


def _span(block: StoredBlock) -> Span:
    return Span(block.file, block.offset, block.nbytes)


def _write_all(out: io.RawIOBase, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += out.write(data[done:]) or 0
