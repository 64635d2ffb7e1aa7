"""A checkpoint and a type -> the GGUF file it becomes: its head, and where the rows of each tensor come from.

Reads no weights. What GGUF has no name for is refused here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyllama.architecture import layers_of
from pyllama.architecture.config import Config
from pyllama.architecture.layer import Attention, GatedDelta
from pyllama.architecture.names import expert_number
from pyllama.architecture.tensors import convolutions, norms_plus_one, stored_as_vectors
from pyllama.checkpoint import Checkpoint, Tensor
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.outline import Described
from pyllama.errors import RequestError, UnsupportedError
from pyllama.quantizing import gguf_metadata
from pyllama.quantizing.gguf_tokenizer import tokenizer_values
from pyllama.quantizing.gguf_writer import ALIGNMENT, Info, aligned, encoded, head, laid_out
from pyllama.quantizing.types import FileType, tensor_types
from pyllama.tokenizer import pre_tokenizers


@dataclass(frozen=True, slots=True)
class HeadOrder:
    """Heads that the file has in another order: `dim` rows, columns or elements each, after `first` that stay.

    heads  of the source, in the order of the file
    """

    first: int
    dim: int
    heads: tuple[int, ...]

    def sources(self, begin: int, end: int) -> np.ndarray:
        """What stands at [begin, end) of the file, by its numbers in the source."""
        at = np.arange(begin, end)
        head, within = np.divmod(at - self.first, self.dim)
        moved = self.first + np.array(self.heads)[np.maximum(head, 0)] * self.dim + within
        return np.where(at < self.first, at, moved)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file.

    tensor       where its weights are
    interleaved  rows of a head, if they have to be brought into interleaved rotary order; else 0
    plus_one     whether 1 is added to its elements
    first        the row of the stored tensor that is its first: others may come before it there
    rows         heads of its rows, or of a vector's elements, that change their order, or None
    columns      the same of its columns
    rate         whether -exp of its elements is stored
    """

    info: Info
    tensor: Tensor
    interleaved: int = 0
    plus_one: bool = False
    first: int = 0
    rows: HeadOrder | None = None
    columns: HeadOrder | None = None
    rate: bool = False

    @property
    def row_nbytes(self) -> int:
        """In the file."""
        return row_nbytes(self.info.dtype, self.info.shape[-1])


@dataclass(frozen=True, slots=True)
class Outline:
    """The file to be made.

    head     all that stands before the data, and the tensors that are part of the config, if there are such: the
             others follow them
    tensors  in the order in which they stand
    data     the byte of the file from which offsets count
    nbytes   of the whole file
    """

    head: bytes
    tensors: tuple[Stored, ...]
    data: int
    nbytes: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """GGUF's name -> shape."""
        return {stored.info.name: stored.info.shape for stored in self.tensors}

    def start(self, stored: Stored, row: int = 0) -> int:
        """The byte of the file at which a row of a tensor begins."""
        return self.data + stored.info.offset + (stored.first + row) * stored.row_nbytes


def outline(
    checkpoint: Checkpoint,
    wanted: FileType,
    *,
    weighed_by: tuple[str, str] | None = None,
    pre_tokenizer: str | None = None,
) -> Outline:
    """The GGUF file of a checkpoint.

    weighed_by     the file and the text that importance weights are from, if some are used
    pre_tokenizer  in place of the name that the source's files give

    Raises UnsupportedError or TokenizerError for what GGUF has no name for.
    """
    config = checkpoint.config
    names = stored_names(checkpoint)
    whole = stacked(checkpoint, names)
    metadata = _metadata(checkpoint, wanted, pre_tokenizer)
    for key, name in zip(("file", "dataset"), weighed_by or (), strict=False):
        if name:
            metadata[f"quantize.imatrix.{key}"] = encoded(name)
    alignment = ALIGNMENT
    if "general.alignment" in metadata:
        alignment = int(np.frombuffer(metadata["general.alignment"][4:], "<u4")[0])
    factors = gguf_metadata.rope_factors(config)
    shapes, firsts = stored_shapes(config, whole, names)
    dtypes = types_of(config, wanted, shapes, calibrated=weighed_by is not None)
    listed = [(name, "F32", values.shape) for name, values in factors]
    listed += [(name, dtypes[name], shape) for name, shape in shapes.items()]
    infos = laid_out(listed, alignment)
    begin = head(metadata, infos, alignment)
    start = len(begin)
    for _, values in factors:
        data = values.astype("<f4").tobytes()
        begin += data + bytes(-len(data) % alignment)
    heads, plus_one = _interleaved(checkpoint), norms_plus_one(config)
    by_name = {info.name: info for info in infos}
    moved = _moved(config)
    stored = tuple(
        replace(
            Stored(by_name[names[ours]], tensor, heads.get(ours.rpartition(".")[0], 0), ours in plus_one, firsts[ours]),
            **moved.get(ours, {}),
        )
        for ours, tensor in whole.items()
    )
    return Outline(begin, stored, start, start + aligned(infos[-1].offset + infos[-1].nbytes, alignment))


def stored_names(checkpoint: Described) -> dict[str, str]:
    """Our name -> GGUF's, of every tensor. Raises UnsupportedError for one that has none."""
    family = gguf_metadata.written_family(checkpoint.config)
    found = {}
    for ours in checkpoint.tensors:
        stored = family.gguf.holder(ours)
        if stored is None:
            raise UnsupportedError(f"{ours}: has no name in a GGUF file of the architecture {family.gguf_architecture}")
        found[ours] = stored
    return found


def types_of(
    config: Config, wanted: FileType, shapes: Mapping[str, tuple[int, ...]], *, calibrated: bool = False
) -> dict[str, str]:
    """tensor_types() of a file of this model."""
    return tensor_types(
        wanted,
        shapes,
        architecture=str(gguf_metadata.written_family(config).gguf_architecture),
        layers=config.num_hidden_layers,
        groups=config.num_attention_heads // config.num_key_value_heads,
        calibrated=calibrated,
    )


def stored_shapes(
    config: Config, tensors: Mapping[str, Tensor], names: Mapping[str, str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """GGUF's name -> shape, and our name -> the row of it that is the first of ours."""
    # What is a vector in one of the two and a matrix in the other.
    otherwise = convolutions(config) | stored_as_vectors(config)
    shapes: dict[str, tuple[int, ...]] = {}
    firsts = {}
    for ours, tensor in tensors.items():
        name = names[ours]
        firsts[ours] = shapes[name][0] if name in shapes else 0
        shapes[name] = otherwise.get(ours) or (firsts[ours] + tensor.shape[0], *tensor.shape[1:])
    return shapes, firsts


def stacked(checkpoint: Described, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors as GGUF has them: of those under one name, the experts of a layer, one below the other,
    under the name of the first."""
    found: dict[str, Tensor] = {}
    together: dict[str, list[str]] = {}
    for ours, tensor in checkpoint.tensors.items():
        if expert_number(ours) is None:
            found[ours] = tensor
        elif names[ours] in together:
            together[names[ours]].append(ours)
        else:
            together[names[ours]] = [ours]
            found[ours] = tensor  # its place; all of them below
    return found | {ours[0]: _stack(checkpoint, ours) for ours in together.values()}


def _stack(checkpoint: Described, ours: Sequence[str]) -> Tensor:
    tensors = sorted((checkpoint.tensors[name] for name in ours), key=lambda t: expert_number(t.name) or 0)
    first = tensors[0]
    if any(tensor.dtype != first.dtype for tensor in tensors):
        kinds = ", ".join(sorted({tensor.dtype for tensor in tensors}))
        raise UnsupportedError(f"{first.name}: experts stored in {kinds}, expected one format for those of a layer")
    parts = [p._replace(row=p.row + i * first.rows) for i, t in enumerate(tensors) for p in t.parts]
    blocks = [b._replace(row=b.row + i * first.rows) for i, t in enumerate(tensors) for b in t.blocks]
    return Tensor(first.name, first.dtype, (len(tensors), *first.shape), tuple(parts), tuple(blocks))


def _metadata(checkpoint: Checkpoint, wanted: FileType, pre_tokenizer: str | None) -> dict[str, bytes]:
    config = checkpoint.config
    changes = {
        "general.file_type": encoded(np.uint32(wanted.number)),
        "general.quantization_version": encoded(np.uint32(gguf_metadata.QUANTIZATION_VERSION)),
    }
    if pre_tokenizer is not None and pre_tokenizer not in pre_tokenizers.NAMES:
        raise RequestError(
            f"pre_tokenizer: {pre_tokenizer[:40]!r}, expected one of docs/tokenizers.md (llama-bpe, qwen2, ...)"
        )
    if checkpoint.format == "gguf":
        if pre_tokenizer is not None:
            changes["tokenizer.ggml.pre"] = encoded(pre_tokenizer)
        return gguf_metadata.copied(checkpoint) | changes
    values = gguf_metadata.of_config(config, gguf_metadata.model_name(checkpoint.path))
    gguf_metadata.check_config(config, values, checkpoint.tensors)
    values |= tokenizer_values(checkpoint, pre_tokenizer)
    return {key: encoded(value) for key, value in values.items()} | changes


def _moved(config: Config) -> dict[str, dict[str, Any]]:
    """Our name -> fields of Stored, of what the delta rule's value heads have in another order in a GGUF file."""
    if config.delta_rule is None or config.delta_rule.tiled:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for layer in layers_of(config):
        mixer = layer.mixer
        if not isinstance(mixer, GatedDelta):
            continue
        order = np.arange(mixer.value_heads).reshape(mixer.key_heads, -1).T.reshape(-1)
        heads = tuple(int(head) for head in order)
        keys, width, dim = 2 * mixer.keys, mixer.conv.width, mixer.value_dim
        rows = {
            mixer.qkv.name: HeadOrder(keys, dim, heads),
            mixer.z.name: HeadOrder(0, dim, heads),
            mixer.b.name: HeadOrder(0, 1, heads),
            mixer.a.name: HeadOrder(0, 1, heads),
            mixer.dt: HeadOrder(0, 1, heads),
            mixer.rate: HeadOrder(0, 1, heads),
            mixer.conv.name: HeadOrder(keys * width, dim * width, heads),
        }
        found |= {f"{layer.name}{name}.weight": {"rows": of} for name, of in rows.items()}
        found[f"{layer.name}{mixer.rate}.weight"]["rate"] = mixer.rate_log
        found[f"{layer.name}{mixer.out.name}.weight"] = {"columns": HeadOrder(0, dim, heads)}
    return found


def _interleaved(checkpoint: Checkpoint) -> dict[str, int]:
    """Our name (without .weight, .bias) -> rows of a head, of what changes its order."""
    wanted = gguf_metadata.written_family(checkpoint.config).gguf_interleaved
    if wanted == checkpoint.rope_interleaved:
        return {}
    if not wanted:
        raise UnsupportedError(f"{checkpoint.path}: rows in interleaved rotary order, expected the half-split one")
    found = {}
    for layer in layers_of(checkpoint.config):
        if not isinstance(layer.mixer, Attention):
            continue
        for linear in (layer.mixer.q, layer.mixer.k):
            if linear is not None:
                found[f"{layer.name}{linear.name}"] = layer.mixer.head_dim
    return found
