"""A checkpoint and a share -> one board's rows of it, as packing asks for rows, and what their folder says of them.

Rows come out as they were published, whatever form they lie in, packed included.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from pyllama.architecture import Config
from pyllama.checkpoint import Checkpoint, Tensor
from pyllama.checkpoint.digest import weights_digest
from pyllama.checkpoint.files import drop_cache
from pyllama.checkpoint.rows import Rows
from pyllama.checkpoint.share import StoredShare
from pyllama.closing import Closing
from pyllama.decoder.ranks import Share
from pyllama.streaming.local import LocalCheckpoint


class ForBoard(NamedTuple):
    """Which board's rows are to be packed.

    place   which of the boards, from 0
    shares  of each of them
    deal    config, shares -> which rows each of them computes
    """

    place: int
    shares: tuple[float, ...]
    deal: Callable[[Config, tuple[float, ...]], tuple[Share, ...]]

    def of(self, checkpoint: Checkpoint) -> LocalCheckpoint:
        return LocalCheckpoint(checkpoint, self.deal(checkpoint.config, self.shares)[self.place])

    def described(self, checkpoint: Checkpoint) -> StoredShare:
        """Reads a row of each tensor, for the digest."""
        local, whole = self.of(checkpoint).tensors, checkpoint.tensors
        cut = {name: (t.dtype, t.shape) for name, t in whole.items() if local[name].shape != t.shape}
        return StoredShare(self.place, self.shares, weights_digest(checkpoint), cut)

    def tensors(self, checkpoint: Checkpoint) -> list[Tensor]:
        """Those of which this board has rows, without where they lie."""
        own = self.of(checkpoint).tensors.values()
        return [tensor._replace(parts=(), blocks=()) for tensor in own if tensor.shape[0]]


class OwnRows(Closing):
    """What SourceFiles is for files, of one board's rows; the checkpoint becomes its own."""

    def __init__(self, checkpoint: Checkpoint, board: ForBoard):
        self._checkpoint = checkpoint
        self._local = board.of(checkpoint)

    def open(self, tensors: Iterable[Tensor]) -> None:
        self._drop()

    def read(self, rows: Rows, memory: np.ndarray) -> np.ndarray:
        """The rows' bytes, 1-D uint8, new."""
        tensor = self._local.tensors[rows.tensor.name]
        return self._local.read_rows(tensor, rows.row, rows.rows).reshape(-1)

    def _drop(self) -> None:
        """The page cache is for others: nobody reads this twice."""
        for path in self._checkpoint.files:
            with suppress(OSError):
                drop_cache(path)

    def close(self) -> None:
        self._drop()
        self._checkpoint.close()
