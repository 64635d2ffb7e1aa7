"""A checkpoint and a rank's share -> the same checkpoint with that rank's rows alone.

Rows keep their order and begin with 0; a matrix of which the rank has none is there with none. What is whole on every
rank, such as norms, stays whole. Plain rows are cut anywhere, packed blocks between their panels; a cut within a panel
is made after unpacking. What is stored as one board's part of a model is its rows already.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pyllama.architecture import Config, layers_of
from pyllama.architecture.layer import Attention, Mlp
from pyllama.architecture.tensors import EMBEDDING, HEAD
from pyllama.checkpoint import Checkpoint, Part, Tensor
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.decoder.ranks import Share
from pyllama.errors import CheckpointError, UnsupportedError


def rows_of_share(config: Config, share: Share) -> dict[str, range]:
    """Name -> which rows of a matrix, or elements of a vector, are this rank's; what is not named here is whole.

    Raises UnsupportedError for a mixture of experts, for layers that carry a state or have a gate on attention, and for
    layers that differ in heads or rows.
    """
    dim = config.head_dim
    queries = range(share.heads.start * dim, share.heads.stop * dim)
    keys = range(share.kv_heads.start * dim, share.kv_heads.stop * dim)
    found = {EMBEDDING: share.vocab, HEAD: share.vocab}
    for layer in layers_of(config):
        mixer, mlp = layer.mixer, layer.mlp
        if layer.experts is not None or not isinstance(mlp, Mlp):
            raise UnsupportedError("hosts: a mixture of experts is not shared by boards yet; run it on one")
        if not isinstance(mixer, Attention):
            raise UnsupportedError(
                "hosts: a model whose layers carry a state is not shared by boards yet; run it on one"
            )
        if mixer.gated:
            raise UnsupportedError("hosts: a model with a gate on attention is not shared by boards yet; run it on one")
        sizes = (mixer.heads, mixer.kv_heads, mixer.head_dim, mlp.gate.rows)
        alike = sizes == (config.num_attention_heads, config.num_key_value_heads, dim, config.intermediate_size)
        own = mixer.source is None and layer.per_layer_input is None
        if mixer.k is None or mixer.v is None or not own or not alike:
            raise UnsupportedError("hosts: a model whose layers differ in heads or rows is not shared by boards yet")
        of = [(mixer.q, queries), (mixer.k, keys), (mixer.v, keys), (mixer.o, share.hidden)]
        of += [(mlp.gate, share.inner), (mlp.up, share.inner), (mlp.down, share.hidden)]
        for linear, rows in of:
            found[f"{layer.name}{linear.name}.weight"] = rows
            if linear.bias:
                found[f"{layer.name}{linear.name}.bias"] = rows
        if mixer.sinks:
            found[f"{layer.name}{mixer.sinks}"] = share.heads
    return found


class LocalCheckpoint:
    """What StreamedWeights and a plan ask of a checkpoint, of a rank's rows. The checkpoint stays its owner's."""

    def __init__(self, checkpoint: Checkpoint, share: Share):
        self.config = checkpoint.config
        self.path = checkpoint.path
        self.rope_interleaved = checkpoint.rope_interleaved
        self._checkpoint = checkpoint
        self._rows = rows_of_share(checkpoint.config, share)
        self.tensors: Mapping[str, Tensor] = {
            name: self._own(tensor, self._rows[name]) if name in self._rows else tensor
            for name, tensor in checkpoint.tensors.items()
        }
        if checkpoint.share is not None:
            self._rows = {}

    @property
    def files(self) -> tuple[Path, ...]:
        return self._checkpoint.files

    @property
    def bytes_read(self) -> int:
        return self._checkpoint.bytes_read

    def read_rows(self, tensor: Tensor, row: int, count: int) -> np.ndarray:
        """As Checkpoint.read_rows(), of one of these tensors."""
        whole, rows = self._checkpoint.tensors[tensor.name], self._rows.get(tensor.name)
        if rows is None:
            return self._checkpoint.read_rows(whole, row, count)
        if len(tensor.shape) > 1:
            return self._checkpoint.read_rows(whole, rows.start + row, count)
        begin, end = (row_nbytes(tensor.dtype, at) for at in (rows.start, rows.stop))
        return np.ascontiguousarray(self._checkpoint.read_rows(whole, 0, 1)[:, begin:end])

    def _own(self, tensor: Tensor, rows: range) -> Tensor:
        stored = self._checkpoint.share
        if stored is None:
            return self._cut(tensor, rows)
        if tensor.shape[0] != len(rows):
            raise CheckpointError(
                f"{tensor.name}: {tensor.shape[0]} rows in {stored}, expected {len(rows)} of this share"
            )
        return tensor

    def _cut(self, tensor: Tensor, rows: range) -> Tensor:
        if len(tensor.shape) == 1:
            return replace(tensor, shape=(len(rows),), parts=(), blocks=())
        parts, blocks = [], []
        for part in tensor.parts:
            first, last = max(rows.start, part.row), min(rows.stop, part.row + part.rows)
            if first < last:
                offset = part.offset + (first - part.row) * row_nbytes(tensor.dtype, part.cols)
                parts.append(Part(part.file, offset, first - rows.start, last - first, part.col, part.cols))
        for block in tensor.blocks:
            first, last = max(rows.start, block.row), min(rows.stop, block.row + block.rows)
            if first < last:
                cut = self._checkpoint.part_of_block(tensor, block, first - block.row, last - first)
                blocks.append(replace(cut, row=first - rows.start))
        return replace(tensor, shape=(len(rows), tensor.cols), parts=tuple(parts), blocks=tuple(blocks))
