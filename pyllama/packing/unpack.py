"""A packed model -> safetensors with the source's bytes, and the small files taken along.

Of a Hugging Face source names and forms are those of its family's folders (published.py). Else names are pyllama's and
rows lie as the source had them: a GGUF or Meta source keeps q and k in interleaved rotary order, and quantized tensors,
for which safetensors has no dtype, become U8 (rows, bytes of a row).
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.checkpoint import Tensor, open_checkpoint
from pyllama.checkpoint.index import StoredBlock
from pyllama.checkpoint.packed import shard_name
from pyllama.checkpoint.packed_rows import rows_of
from pyllama.errors import PackError, RequestError
from pyllama.hub import resolve
from pyllama.packing.ahead import read_ahead
from pyllama.packing.carry import folder_files
from pyllama.packing.published import ROWS, Output, group_bytes, plain_output, published
from pyllama.packing.shard import compact
from pyllama.packing.sinks import FileSink
from pyllama.packing.verify import INDEX
from pyllama.packing.workplace import PARTIAL, Workplace, disk_errors
from pyllama.streaming.direct import DirectFile
from pyllama.terminal.progress import Progress, format_nbytes

SHARD_NBYTES = 5_000_000_000

_Item = tuple[Output, tuple[Tensor, ...], StoredBlock | None]


def unpack(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, progress: Progress | None = None
) -> Path:
    """Write the tensors of a packed model as they were; returns the folder.

    destination  a folder to be made; nothing lies under that name before all is there. Raises CheckpointError for
                 a damaged block, by name; PackError for a full disk.
    """
    progress = progress or Progress(quiet=True)
    with open_checkpoint(resolve(source)) as checkpoint:
        if not checkpoint.packed:
            raise RequestError(f"{source}: not a packed model, nothing to unpack")
        tensors = checkpoint.tensors.values()
        own = checkpoint.format == "huggingface"
        outputs = published(checkpoint.config, tensors) if own else [plain_output(tensor) for tensor in tensors]
        folder = checkpoint.path
    with Workplace(destination, ".unpacking") as work, disk_errors(work.destination):
        work.journal()
        work.clear()
        try:
            work.write_journal({"work": "unpack"})
            progress.total = sum(output.nbytes for output in outputs)
            free = shutil.disk_usage(work.folder).free
            if progress.total > free:
                raise PackError(
                    f"{work.destination}: {format_nbytes(progress.total)} to write, but {format_nbytes(free)} free"
                )
            _write_model(work, outputs, progress)
            for name, data in folder_files(folder):
                work.write(name, data)
            work.finish()
        except BaseException:
            work.abandon()
            raise
    return work.destination


def _write_model(work: Workplace, outputs: Sequence[Output], progress: Progress) -> None:
    shards: list[list[Output]] = [[]]
    nbytes = 0
    for output in outputs:
        if shards[-1] and nbytes + output.nbytes > SHARD_NBYTES:
            shards.append([])
            nbytes = 0
        shards[-1].append(output)
        nbytes += output.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        path = work.folder / (shard_name(number, len(shards)) + PARTIAL)
        _write_file(path, shard, progress)
        final = work.keep(path)
        weight_map.update({output.name: final.name for output in shard})
    if len(shards) > 1:
        metadata = {"total_size": sum(output.nbytes for output in outputs)}
        work.write(INDEX, compact({"metadata": metadata, "weight_map": weight_map}).encode())


def _write_file(path: Path, outputs: Sequence[Output], progress: Progress) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for that word
    offset = 0
    for output in outputs:
        end = offset + output.nbytes
        header[output.name] = {"dtype": output.dtype, "shape": output.shape, "data_offsets": [offset, end]}
        offset = end
    head = compact(header).encode()
    head += b" " * (-len(head) % 8)
    blocks = [block for output in outputs for group in output.groups for tensor in group for block in tensor.blocks]
    files = {file: DirectFile(file) for file in {block.file for block in blocks}}

    def plain_rows(tensor: Tensor, block: StoredBlock, memory: np.ndarray) -> np.ndarray:
        return rows_of(tensor, block, files[block.file].read(block.span, memory))

    def whole(tensor: Tensor, memory: np.ndarray) -> np.ndarray:
        rows = np.empty((tensor.rows, tensor.row_nbytes), np.uint8)
        for block in tensor.blocks:
            rows[block.row : block.row + block.rows] = plain_rows(tensor, block, memory)
        return rows

    def read(item: _Item, memory: np.ndarray) -> np.ndarray:
        """A block's rows, or a group's bytes."""
        output, group, block = item
        if block is not None:
            return plain_rows(group[0], block, memory).reshape(-1)
        return group_bytes(output.form, group[0].dtype, [whole(tensor, memory) for tensor in group])

    try:
        with FileSink(path) as out:
            out.write(memoryview(len(head).to_bytes(8, "little") + head), 0)
            end = 8 + len(head)
            for _, rows in read_ahead(_items(outputs), max(block.span.room for block in blocks), read):
                out.write(memoryview(rows), end)
                end += len(rows)
                progress.advance(len(rows))
            out.finish()
    finally:
        for file in files.values():
            file.close()


def _items(outputs: Sequence[Output]) -> Iterator[_Item]:
    """What is written one after the other: blocks where rows stay as they are, else groups."""
    for output in outputs:
        for group in output.groups:
            if output.form == ROWS:
                yield from ((output, group, block) for block in group[0].blocks)
            else:
                yield output, group, None
