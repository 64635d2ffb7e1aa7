"""What is on disk: name -> dtype, shape and the byte ranges that hold it, checked against the config.

Every reader produces this index under Hugging Face names. `check_index` proves, before any
weight is read, that every tensor the decoder will ask for is there with the shape the config implies,
in a storage format that fits, and that its bytes belong to no other tensor. That they lie inside its file, and are
whole blocks of its format, its reader has proven.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pyllama.architecture import FAMILIES
from pyllama.architecture.config import Config
from pyllama.architecture.names import Names
from pyllama.architecture.tensors import HEAD, tensor_shapes
from pyllama.checkpoint.dtypes import DTYPES, PLAIN, row_nbytes
from pyllama.checkpoint.files import SECTOR, padded
from pyllama.errors import CheckpointError, UnsupportedError, shown

NOWHERE = Path("not downloaded")


class Apart(NamedTuple):
    """How the rows of a part, or the elements of a vector, lie that take turns with those of another tensor.

    step    from one of ours to the next, in rows or elements of what is stored
    phase   our first one
    scales  (file, first byte) of the scales, a byte each, of MXFP4 that is stored without; None: nothing is missing
    """

    step: int
    phase: int
    scales: tuple[Path, int] | None = None


class Part(NamedTuple):
    """A rectangle of a tensor, stored contiguous and row-major at `offset` of `file`.

    Covers rows [row, row + rows) and columns [col, col + cols). One part is the whole tensor, except
    in Meta's sharded files. With `apart`, `offset` is that of all that take turns (apart.py).
    """

    file: Path
    offset: int
    row: int
    rows: int
    col: int
    cols: int
    apart: Apart | None = None


class Span(NamedTuple):
    """Consecutive bytes of a file."""

    file: Path
    offset: int
    nbytes: int

    @property
    def room(self) -> int:
        """Bytes of memory a direct read of it takes."""
        return padded(self.offset % SECTOR + self.nbytes)


def ranges(dtype: str, part: Part, row: int, rows: int) -> tuple[Span, ...]:
    """What has to be read for rows [row, row + rows) of a part: with `apart`, codes and then scales, of all that take
    turns; a vector, which is one row, as a whole."""
    apart = part.apart
    if apart is None:
        width = row_nbytes(dtype, part.cols)
        return (Span(part.file, part.offset + (row - part.row) * width, rows * width),)
    if apart.scales is None:
        return (Span(part.file, part.offset, apart.step * row_nbytes(dtype, part.cols)),)
    file, offset = apart.scales
    first, count = (row - part.row) * apart.step, rows * apart.step
    codes, scales = part.cols // 2, part.cols // MXFP4_COLS
    return (
        Span(part.file, part.offset + first * codes, count * codes),
        Span(file, offset + first * scales, count * scales),
    )


def files_of(tensor: Tensor) -> dict[Path, None]:
    """The files that hold it, in order."""
    found = dict.fromkeys(piece.file for piece in tensor.parts or tensor.blocks)
    return found | {part.apart.scales[0]: None for part in tensor.parts if part.apart and part.apart.scales}


class StoredBlock(NamedTuple):
    """Rows [row, row + rows) as pyllama's own files hold them.

    stored  "rows": plain, row-major; "packed": bfloat16 in 12 bits (csrc/packed.h)
    crc32   of the `nbytes` bytes at `offset`; None for a part of a block, which nothing tells whole

    Of a part of a packed block, the panels at `offset` alone lie in the file as they are:

    around  what stands before and after them in a block of their own; () where the bytes are a block as they are
    skip    rows of its first panel that are not wanted
    """

    file: Path
    offset: int
    nbytes: int
    row: int
    rows: int
    stored: str
    crc32: int | None
    around: tuple[bytes, ...] = ()
    skip: int = 0

    @property
    def span(self) -> Span:
        return Span(self.file, self.offset, self.nbytes)


class Tensor(NamedTuple):
    """A tensor on disk; shape as in Hugging Face, (out, in) for a matrix and (n,) for a vector. One of more
    dimensions is a stack of matrices, one below the other.

    blocks  how its rows are cut and stored, in pyllama's own files; elsewhere none, and `parts` tells it all
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    blocks: tuple[StoredBlock, ...] = ()

    @property
    def rows(self) -> int:
        """A vector is one row."""
        return prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def row_nbytes(self) -> int:
        return row_nbytes(self.dtype, self.cols)

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_nbytes

    @property
    def stored_nbytes(self) -> int:
        """In the form that a file has: packed ones are fewer."""
        return sum(block.nbytes for block in self.blocks) if self.blocks else self.nbytes


def whole(name: str, dtype: str, shape: tuple[int, ...], file: Path = NOWHERE, offset: int = 0) -> Tensor:
    """A tensor that lies in one piece at `offset` of a file."""
    tensor = Tensor(name, dtype, shape, ())
    return tensor._replace(parts=(Part(file, offset, 0, tensor.rows, 0, tensor.cols),))


def is_described(dtype: Any, shape: Any) -> bool:
    """Whether these, from a file, can be a tensor's: a format that is known, and the shape of a matrix or a vector."""
    return (
        isinstance(dtype, str)
        and dtype in DTYPES
        and are_naturals(shape, 1, 2, 2**31)
        and 0 not in shape
        and shape[-1] % DTYPES[dtype][0] == 0
    )


def are_naturals(values: Any, least: int, most: int, below: int = 2**62) -> bool:
    """Whether these, from a file, are a list of so many whole numbers from 0 on."""
    return (
        isinstance(values, list)
        and least <= len(values) <= most
        and all(type(value) is int and 0 <= value < below for value in values)
    )


MXFP4_COLS = DTYPES["MXFP4"][0]

# Buffers that old versions saved along with the weights, which the decoder computes, and what training left behind.
_IN_LAYER = re.compile(r"model\.layers\.([0-9]{1,4})\.([a-z0-9_.]{1,100})\.weight")
_IGNORED = re.compile(
    r"(model\.)?(layers\.[0-9]{1,4}\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"
    r"|model\.layers\.[0-9]{1,4}\.self_attn\.(masked_bias|bias)"
    r"|v_head\.(summary\.)?(weight|bias)"  # a value head that training put beside the model's own
    # What a model that sees or hears has beside its text model.
    r"|(model\.)?(vision_tower|vision_model|vision_embedder|multi_modal_projector|audio_tower|embed_vision|embed_audio|visual)"
    r"\..{1,200}"
    r"|mtp\..{1,200}"  # layers that guess further tokens
)


def is_ignored(name: str, config: Config) -> bool:
    """Whether the decoder has no use for a tensor: a buffer it computes, the copy of a tied head, or what a family
    leaves unused."""
    if name == HEAD:
        return config.tie_word_embeddings
    within = _IN_LAYER.fullmatch(name)
    if within and FAMILIES[config.model_type].ignores(config, int(within[1]), within[2]):
        return True
    return _IGNORED.fullmatch(name) is not None


def deal(
    stored: Mapping[str, Tensor], names: Names, shapes: Mapping[str, tuple[int, ...]], foreign: str | None = None
) -> dict[str, Tensor]:
    """Stored tensors -> ours: renamed, and cut by rows where one holds the rows of several.

    shapes   of ours: they tell where the cuts are
    foreign  what a tensor that has no name of ours is no part of: such a tensor is refused; None: it keeps its name

    Raises CheckpointError where rows are missing or over, or a tensor is stored twice.
    """
    dealt: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        stack = len(tensor.shape) == 3 or (len(tensor.shape) == 2 and name.endswith("bias"))
        ours = names.ours(name, tensor.shape[0] if stack else 1)
        if not ours and foreign is not None:
            raise UnsupportedError(f"{shown(name)}: not a tensor of {foreign}")
        if len(ours) == 1 and len(shapes.get(ours[0], ())) == 1:
            tensor = _as_vector(tensor, shapes[ours[0]])
            stack = False
        if len(ours) == 1 and len(tensor.shape) == 1 and shapes.get(ours[0]) == (1, tensor.cols):
            tensor = tensor._replace(shape=shapes[ours[0]])  # of one row: a vector is stored as one
        cut = len(ours) > 1 or (ours and stack)
        for piece in _cut(tensor, ours, shapes) if cut else (tensor._replace(name=(ours or (name,))[0]),):
            if piece.name in dealt:
                raise CheckpointError(f"{shown(piece.name)}: stored twice, expected once (file {_file(tensor)})")
            dealt[piece.name] = piece
    return dealt


def _as_vector(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What we have as a vector and files as a matrix: a convolution's weight, row after row."""
    part = tensor.parts[0]
    if len(tensor.shape) < 2 or prod(tensor.shape) != shape[0] or tensor.dtype not in PLAIN or len(tensor.parts) != 1:
        return tensor
    return whole(tensor.name, tensor.dtype, shape, part.file, part.offset)


def _cut(tensor: Tensor, names: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Tensor]:
    """Consecutive rows of a tensor, as many for each name as its shape has. A fused bias is cut by elements."""
    vector = len(tensor.shape) == 1
    expected = [shapes[name] for name in names if name in shapes]
    total = sum(prod(shape) if vector else prod(shape[:-1]) for shape in expected)
    have = tensor.cols if vector else tensor.rows
    if len(expected) != len(names) or total != have or len(tensor.parts) != 1:
        raise CheckpointError(
            f"{shown(tensor.name)}: shape {tensor.shape}, expected {total} rows for {', '.join(names[:4])} "
            f"(file {_file(tensor)})"
        )
    part = tensor.parts[0]
    at = part.offset
    for name, shape in zip(names, expected, strict=True):
        own = shape if vector else (*shape[:-1], tensor.cols)  # the columns that are stored: check_index compares them
        piece = whole(name, tensor.dtype, own, part.file, at)
        yield piece
        at += piece.nbytes


def check_index(tensors: Mapping[str, Tensor], config: Config, source: str) -> dict[str, Tensor]:
    """The tensors of the model in the order they are used, every one of them proven sound.

    source: what the config came from, for messages ("config.json")
    Raises CheckpointError: a tensor missing, unknown, of another shape or dtype, or overlapping another.
    """
    expected = tensor_shapes(config)
    for name in tensors:
        if name not in expected and not is_ignored(name, config):
            raise CheckpointError(
                f"{shown(name)}: not a tensor of a {config.model_type} model with {config.num_hidden_layers} "
                f"layers as {source} describes it (file {_file(tensors[name])})"
            )
    index = {}
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{name}: missing, expected with shape {shape} from {source}{_advice(name)}")
        # Before the shape: packed formats have shapes of their own, and the format is what to name.
        if tensor.dtype not in DTYPES:
            raise UnsupportedError(f"{name}: storage format {tensor.dtype} is not supported (file {_file(tensor)})")
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name}: shape {tensor.shape}, expected {shape} from {source} (file {_file(tensor)})"
            )
        if len(shape) == 1 and tensor.dtype not in PLAIN:
            raise UnsupportedError(
                f"{name}: a vector stored as {tensor.dtype} is not supported, expected one of "
                f"{', '.join(PLAIN)} (file {_file(tensor)})"
            )
        index[name] = tensor
    check_overlaps(index.values())
    return index


def _advice(name: str) -> str:
    """What may be behind a missing tensor; for a head it is one of two."""
    if name != HEAD:
        return ""
    return (
        "; if the model's head is its embedding, set tie_word_embeddings to true there; a model for embeddings or "
        "rewards has none, and writes no text"
    )


def _file(tensor: Tensor) -> str:
    pieces = tensor.parts or tensor.blocks
    return pieces[0].file.name if pieces else "unknown"


def check_overlaps(tensors: Iterable[Tensor]) -> None:
    """Raise CheckpointError where two byte ranges of a file share a byte. What takes turns is left out: where stacks
    of experts may lie is proven by their reader."""
    ranges = sorted(
        (str(part.file), part.offset, part.offset + part.rows * row_nbytes(t.dtype, part.cols), t.name)
        for t in tensors
        for part in t.parts
        if part.apart is None
    )
    for before, after in itertools.pairwise(ranges):
        if before[0] == after[0] and after[1] < before[2]:
            raise CheckpointError(
                f"{after[3]}: starts at byte {after[1]}, inside {before[3]} which ends at {before[2]} "
                f"(file {Path(after[0]).name})"
            )


def stored_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The storage format that holds the most bytes of a model."""
    totals: dict[str, int] = {}
    for tensor in tensors.values():
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return max(totals, key=lambda dtype: totals[dtype])
