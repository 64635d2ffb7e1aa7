"""An open checkpoint: the index, the config, and reads of whole rows as they are stored.

The bytes are handed out untouched: no dtype is interpreted here and no row reordered.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.architecture.config import Config
from pyllama.checkpoint import packed_rows
from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.index import Span, StoredBlock, Tensor, stored_dtype
from pyllama.checkpoint.rows import Rows
from pyllama.checkpoint.share import StoredShare
from pyllama.closing import Closing
from pyllama.errors import CheckpointError
from pyllama.machine import forked, malloc


@dataclass(eq=False, repr=False)
class Checkpoint(forked.ForkAware, Closing):
    """A model's files, open for reading; a context manager.

    path              what was opened
    format            "huggingface", "gguf" or "meta"
    packed            the weights lie in pyllama's own files, made from that format
    share             what it says of itself where it holds one board's rows alone; else None
    config            Config
    tensors           name -> Tensor under Hugging Face names, in the order a pass uses them
    rope_interleaved  q and k rows lie in interleaved rotary order (Meta; GGUF of the llama architecture)
    metadata          GGUF key/values; for Meta {"assumed": str}; otherwise {}
    files             the files that hold weights
    nbytes            bytes of all tensors
    dtype             the storage format that holds most of them
    bytes_read        bytes of weights read so far
    """

    path: Path
    format: str
    config: Config
    tensors: dict[str, Tensor]
    opened: InitVar[Mapping[Path, InputFile]]
    rope_interleaved: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    share: StoredShare | None = None

    def __post_init__(self, opened: Mapping[Path, InputFile]) -> None:
        self.files = tuple(opened)
        self.nbytes = sum(tensor.nbytes for tensor in self.tensors.values())
        self.dtype = stored_dtype(self.tensors)
        self.bytes_read = 0
        self._open = dict(opened)
        self._lock = threading.Lock()
        forked.register(self)

    def read_rows(self, tensor: Tensor, row: int, count: int) -> np.ndarray:
        """Rows [row, row + count) of a tensor as stored: uint8 (count, tensor.row_nbytes), newly allocated.

        A vector is one row. Safe to call from several threads. Reads count * row_nbytes bytes. Raises
        CheckpointError where the file fails or ends early.
        """
        if not (0 <= row and 0 <= count and row + count <= tensor.rows):
            raise ValueError(f"{tensor.name}: rows {row} to {row + count} of {tensor.rows}")
        if tensor.blocks:
            return packed_rows.read_rows(tensor, row, count, self._read)
        return Rows(tensor, row, count).read(self._read)

    def part_of_block(self, tensor: Tensor, block: StoredBlock, first: int, count: int) -> StoredBlock:
        """Rows [first, first + count) of a tensor's block as a block of their own; reads a few bytes a panel."""
        return packed_rows.part_of(tensor, block, first, count, self._read)

    def _read(self, span: Span) -> np.ndarray:
        file = self._open.get(span.file)
        if file is None:
            raise CheckpointError(f"{span.file}: already closed")
        data = np.empty(span.nbytes, np.uint8)
        file.read_into(span.offset, data.data)
        with self._lock:
            self.bytes_read += span.nbytes
        return data

    def forget_vocabulary(self) -> None:
        """Give back what only a tokenizer is made of: of a GGUF file's metadata the lists, 2 to 20 MB."""
        self.metadata = {key: value for key, value in self.metadata.items() if not key.startswith("tokenizer.")}
        malloc.trim()

    def renew_in_child(self) -> None:
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the files; the index stays readable."""
        files, self._open = self._open, {}
        for file in files.values():
            file.close()
