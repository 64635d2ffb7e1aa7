"""A checkpoint and a rank's share -> the same checkpoint with that rank's rows alone.

Rows keep their order and begin with 0; a matrix of which the rank has none is there with none. What is whole on every
rank, such as norms, stays whole. Plain rows are cut anywhere, packed blocks between their panels; a cut within a panel
is made after unpacking. What is stored as one board's part of a model is its rows already.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pyllama.architecture import Config, Layer, layers_of
from pyllama.architecture.layer import Attention, Linear, Mlp, ShortConv
from pyllama.architecture.tensors import EMBEDDING, HEAD, PER_LAYER_EMBEDDING, PER_LAYER_PROJECTION
from pyllama.checkpoint import Checkpoint, Part, Tensor
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.index import MXFP4_COLS
from pyllama.decoder.ranks import LayerShare, Rows, Share, count, mixed_rows, scaled
from pyllama.errors import CheckpointError


def rows_of_share(config: Config, share: Share) -> dict[str, Rows]:
    """Name -> which rows of a matrix, or elements of a vector, are this rank's; what is not named here is whole."""
    found: dict[str, Rows] = {EMBEDDING: (share.vocab,), HEAD: (share.vocab,)}
    if config.hidden_size_per_layer_input:
        found |= {PER_LAYER_EMBEDDING: (share.vocab,), PER_LAYER_PROJECTION: (share.per_layer,)}
    hidden = (share.hidden,)
    for layer, of in zip(layers_of(config), share.layers, strict=True):
        for linear, rows in _linears(layer, of, hidden):
            found[f"{layer.name}{linear.name}.weight"] = rows
            if linear.bias:
                found[f"{layer.name}{linear.name}.bias"] = rows
        found |= {f"{layer.name}{name}": rows for name, rows in _vectors(layer, of)}
    return found


def _linears(layer: Layer, of: LayerShare, hidden: Rows) -> Iterator[tuple[Linear, Rows]]:
    mixer, mlp, experts = layer.mixer, layer.mlp, layer.experts
    if isinstance(mixer, Attention):
        dim = mixer.head_dim
        yield mixer.q, scaled((of.heads,), 2 * dim if mixer.gated else dim)
        for linear in (mixer.k, mixer.v):
            if linear is not None:
                yield linear, scaled((of.kv_heads,), dim)
        yield mixer.o, hidden
    elif isinstance(mixer, ShortConv):
        thirds = (third * mixer.conv.channels for third in range(3))
        yield mixer.in_proj, tuple(range(start + of.channels.start, start + of.channels.stop) for start in thirds)
        yield mixer.out, hidden
    else:
        yield mixer.qkv, mixed_rows(mixer, of)
        yield mixer.z, scaled(of.values, mixer.value_dim)
        yield mixer.b, of.values
        yield mixer.a, of.values
        yield mixer.out, hidden
    if isinstance(mlp, Mlp):
        yield from ((mlp.gate, (of.inner,)), (mlp.up, (of.inner,)), (mlp.down, hidden))
    for one in map(experts.expert, range(experts.count)) if experts else ():
        yield from ((one.gate, (of.expert,)), (one.up, (of.expert,)), (one.down, hidden))


def _vectors(layer: Layer, of: LayerShare) -> Iterator[tuple[str, Rows]]:
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        if mixer.sinks:
            yield mixer.sinks, (of.heads,)
        return
    channels = (of.channels,) if isinstance(mixer, ShortConv) else mixed_rows(mixer, of)
    yield f"{mixer.conv.name}.weight", scaled(channels, mixer.conv.width)
    yield f"{mixer.conv.name}.bias", channels
    if not isinstance(mixer, ShortConv):
        yield f"{mixer.rate}.weight", of.values
        yield f"{mixer.dt}.weight", of.values


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
            nothing = np.empty((0, tensor.row_nbytes), np.uint8)
            pieces = [self._checkpoint.read_rows(whole, of.start, len(of)) for _, of in _places(rows, row, count)]
            return pieces[0] if len(pieces) == 1 else np.concatenate([nothing, *pieces])
        elements, width = self._checkpoint.read_rows(whole, 0, 1), row_nbytes(tensor.dtype, 1)
        cuts = [elements[:, of.start * width : of.stop * width] for of in rows]
        return np.concatenate([elements[:, :0], *cuts], axis=1)

    def _own(self, tensor: Tensor, rows: Rows) -> Tensor:
        stored = self._checkpoint.share
        if stored is None:
            return self._cut(tensor, rows)
        if tensor.shape[0] != count(rows):
            raise CheckpointError(
                f"{tensor.name}: {tensor.shape[0]} rows in {stored}, expected {count(rows)} of this share"
            )
        return tensor

    def _cut(self, tensor: Tensor, rows: Rows) -> Tensor:
        if len(tensor.shape) == 1:
            return tensor._replace(shape=(count(rows),), parts=(), blocks=())
        parts, blocks = [], []
        for place, of in _places(rows, 0, count(rows)):
            for part in tensor.parts:
                first, last = max(of.start, part.row), min(of.stop, part.row + part.rows)
                if first < last:
                    cut = _cut_part(tensor, part, first - part.row, last - first)
                    parts.append(cut._replace(row=place + first - of.start))
            for block in tensor.blocks:
                first, last = max(of.start, block.row), min(of.stop, block.row + block.rows)
                if first < last:
                    stored = self._checkpoint.part_of_block(tensor, block, first - block.row, last - first)
                    blocks.append(stored._replace(row=place + first - of.start))
        return tensor._replace(shape=(count(rows), tensor.cols), parts=tuple(parts), blocks=tuple(blocks))


def _places(rows: Rows, row: int, count: int) -> Iterator[tuple[int, range]]:
    """(where they are here, rows of the whole) of rows [row, row + count) of what is here."""
    begin = 0
    for of in rows:
        first, last = max(row, begin), min(row + count, begin + len(of))
        if first < last:
            yield first, range(of.start + first - begin, of.start + last - begin)
        begin += len(of)


def _cut_part(tensor: Tensor, part: Part, first: int, rows: int) -> Part:
    """So many rows of a part from the given one on; `row` is as it was."""
    apart = part.apart
    if apart is None:
        return part._replace(offset=part.offset + first * row_nbytes(tensor.dtype, part.cols), rows=rows)
    codes = first * apart.step * (part.cols // 2)
    if apart.scales is not None:
        file, offset = apart.scales
        apart = apart._replace(scales=(file, offset + first * apart.step * (part.cols // MXFP4_COLS)))
    return part._replace(offset=part.offset + codes, rows=rows, apart=apart)
