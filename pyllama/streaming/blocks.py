"""A checkpoint's index -> the row blocks of a pass, in execution order.

A block is some consecutive rows of one matrix: a multiple of 32, small enough for a slot of the ring. Cutting
changes no bit, so the cut is chosen for the disk alone. Reads nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pyllama import _kernels
from pyllama.architecture import layers_of
from pyllama.architecture.tensors import BY_ROW, EMBEDDING, HEAD, model_tensors
from pyllama.checkpoint import Part, Tensor
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.files import SECTOR, padded
from pyllama.checkpoint.index import Span, StoredBlock, ranges
from pyllama.checkpoint.outline import Described
from pyllama.decoder.weights import DOWN, GATE, UP
from pyllama.streaming.local import LocalCheckpoint


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [row, row + rows) of a matrix.

    spans       where they lie: one, but for Meta's shards that cut a matrix by columns; none where they lie apart
    stored      "rows", or "packed" as pyllama's own files hold them
    crc32       of the stored bytes, or None where the file has none
    excerpt     the part of a stored block that it is, where its bytes are no block as they lie there; or None
    part_apart  the part that has them with rows of another matrix between, or without scales (checkpoint/apart.py)
    """

    tensor: Tensor
    row: int
    rows: int
    spans: tuple[Span, ...]
    stored: str = "rows"
    crc32: int | None = None
    excerpt: StoredBlock | None = None
    part_apart: Part | None = None

    @property
    def room(self) -> int:
        if self.part_apart:
            return padded(self.nbytes)
        return sum(span.room for span in self.spans) + _room_around(self.excerpt)

    @property
    def nbytes(self) -> int:
        """Bytes read for it, without what alignment adds."""
        return self.rows * self.tensor.row_nbytes if self.part_apart else sum(span.nbytes for span in self.spans)


def _room_around(of: StoredBlock | None) -> int:
    """Bytes of memory that what is not read takes: before the panels at most a sector, so that they are aligned."""
    return SECTOR + len(of.around[1]) if of is not None and of.around else 0


def matrices(model: Described) -> list[tuple[str, Tensor]]:
    """(name asked for, tensor) of every matrix that each pass multiplies by, in order; a tied head is the embedding.
    Experts are not among them, nor is what has no rows here."""
    order = [
        (of.name, model.tensors[of.name])
        for of in model_tensors(model.config)
        if len(of.shape) == 2 and of.expert is None and of.name not in (*BY_ROW, HEAD)
    ]
    head = model.tensors.get(HEAD) or model.tensors[EMBEDDING]
    return [(name, tensor) for name, tensor in [*order, (HEAD, head)] if tensor.rows]


def expert_matrices(model: Described) -> dict[int, list[tuple[Tensor, Tensor, Tensor]]]:
    """Number of a layer -> its experts in order, each as its gate, up and down matrix; {} for a model without."""
    found: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    of_experts = (
        model.tensors[of.name] for of in model_tensors(model.config) if of.expert is not None and len(of.shape) == 2
    )
    for number, layer in enumerate(layers_of(model.config)):
        if layer.experts:
            each = range(layer.experts.count)
            found[number] = [(next(of_experts), next(of_experts), next(of_experts)) for _ in each]
    return found


#: What Entries.which is where an entry is an expert.
WHOLE = ((GATE, UP, DOWN),)


class Entries(NamedTuple):
    """What the pool of experts holds as one: an expert, with all that is computed of it. A rank, which needs the
    products of all experts' first matrices before it takes the last ones, has a matrix as one.

    layers  number of a layer -> its entries: for each of `which`, that of all experts in order
    which   the matrices of an entry
    """

    layers: dict[int, list[tuple[Tensor, ...]]]
    which: tuple[tuple[int, ...], ...]


def entries_of(model: Described) -> Entries:
    """No layers for a model without experts, and for a rank that has no row of any."""
    layers = expert_matrices(model)
    if not isinstance(model, LocalCheckpoint):
        return Entries({number: [*of_layer] for number, of_layer in layers.items()}, WHOLE)
    experts = [expert for of_layer in layers.values() for expert in of_layer]
    if not experts:
        return Entries({}, ())
    # Gate and up that take turns in the file are read together.
    turns = any(part.apart and part.apart.step > 1 for part in experts[0][GATE].parts)
    each = ((GATE, UP), (DOWN,)) if turns else ((GATE,), (UP,), (DOWN,))
    found = [which for which in each if experts[0][which[0]].rows]
    return Entries(
        {
            number: [tuple(expert[i] for i in which) for which in found for expert in of_layer]
            for number, of_layer in layers.items()
            if found
        },
        tuple(found),
    )


def smallest_room(tensors: Iterable[Tensor]) -> int:
    """Bytes the smallest usable slot has: a panel of the widest matrix, or the largest block already cut."""
    most = 0
    for tensor in tensors:
        if tensor.blocks:
            most = max(most, *(b.span.room + _room_around(b) for b in tensor.blocks))
        else:
            pieces = {(p.col, p.cols) for p in tensor.parts}
            turns = max(part.apart.step if part.apart else 1 for part in tensor.parts)  # they come in one read
            rows = min(_kernels.PANEL, tensor.rows) * turns
            most = max(most, sum(rows * row_nbytes(tensor.dtype, cols) + 2 * SECTOR for _, cols in pieces))
    return padded(most)


def cut(tensor: Tensor, room: int) -> list[Block]:
    """The tensor in blocks that fit slots of `room` bytes (smallest_room at least)."""
    if tensor.blocks:
        return [
            Block(
                tensor, b.row, b.rows, (b.span,), "rows" if b.skip else b.stored, b.crc32,
                b if b.around else None,
            )
            for b in tensor.blocks
        ]  # fmt: skip
    bands: dict[tuple[int, int], list[Part]] = {}
    for part in tensor.parts:
        bands.setdefault((part.row, part.rows), []).append(part)
    blocks: list[Block] = []
    for (first, count), parts in sorted(bands.items()):
        parts = sorted(parts, key=lambda part: part.col)
        stride = sum(row_nbytes(tensor.dtype, part.cols) for part in parts)
        turns = parts[0].apart.step if parts[0].apart else 1
        most = max(1, (room // turns - 2 * SECTOR * len(parts)) // (stride * _kernels.PANEL)) * _kernels.PANEL
        for row in range(first, first + count, most):
            rows = min(most, first + count - row)
            if parts[0].apart:
                blocks.append(Block(tensor, row, rows, (), part_apart=parts[0]))
                continue
            spans = tuple(span for part in parts for span in ranges(tensor.dtype, part, row, rows))
            blocks.append(Block(tensor, row, rows, spans))
    return blocks
