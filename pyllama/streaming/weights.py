"""Weights (the interface in decoder/weights.py) out of a budget: some blocks are pinned and stay in memory, the rest
flows through the ring.

The first pass reads everything and pins, on the way, the blocks chosen to stay; from then on the readers skip those.
The choice spreads them evenly over the pass, so that computing on what is here and reading what is not go on side by
side. Where a block comes from never changes a bit.
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyllama import _kernels
from pyllama.architecture.tensors import model_tensors
from pyllama.checkpoint import Checkpoint, Tensor
from pyllama.checkpoint.files import SECTOR
from pyllama.checkpoint.index import Span, files_of
from pyllama.decoder.shape import Shape
from pyllama.decoder.weights import DOWN, GATE_UP, ExpertRows
from pyllama.errors import PyllamaError
from pyllama.machine import forked
from pyllama.streaming.blocks import WHOLE, Block, cut, entries_of, matrices, smallest_room
from pyllama.streaming.direct import DirectFile
from pyllama.streaming.expert_counts import LEAST, read_counts, write_counts
from pyllama.streaming.local import LocalCheckpoint
from pyllama.streaming.pieces import joined, together
from pyllama.streaming.pinned import Arena, nbytes_if_pinned
from pyllama.streaming.ring import PENDING, Ring

if TYPE_CHECKING:
    from pyllama.streaming.experts import Counters, ExpertStore

ROOM = 4 << 20  # bytes of a slot: large enough for the disk's full rate
SLOTS = 8  # three reads in flight, a block in use, the rest ahead of it

_FORKED = "weights: the process was forked in the midst of this pass, and its readers are not here; begin it anew"


@dataclass(slots=True, eq=False)
class _Place:
    """A block's place in the pass."""

    block: Block
    to_pin: bool = False  # chosen to stay, and not here yet
    claimed: bool = False  # a reader has fetched it in order to have it pinned
    matrix: "_kernels.Matrix | None" = None  # once pinned


class StreamedWeights(forked.ForkAware):
    """A checkpoint's weights in bounded memory.

    slots, room    the ring: so many blocks of at most so many bytes (raised to the least that holds a panel of
                   the widest matrix)
    pinned_nbytes  memory for blocks that stay; default: for all of them
    expert_slots, expert_room  the pool of a mixture's experts (experts.py); default: for all of them
    counts         where it is kept how often each expert is chosen: read now, written by close()

    bytes_read     so far, without what alignment adds
    waited_s       seconds that passes have waited for the disk so far
    """

    def __init__(
        self,
        checkpoint: "Checkpoint | LocalCheckpoint",
        *,
        slots: int = SLOTS,
        room: int = ROOM,
        pinned_nbytes: int | None = None,
        expert_slots: int = 1 << 30,
        expert_room: int = 1 << 50,
        counts: Path | None = None,
    ):
        self._checkpoint = checkpoint
        order = matrices(checkpoint)
        routers = {of.name for of in model_tensors(checkpoint.config) if of.part == "router"}
        room = max(room // SECTOR * SECTOR, smallest_room(tensor for _, tensor in order))
        self._tensors = {name: [_Place(block) for block in cut(tensor, room)] for name, tensor in order}
        self._names = list(self._tensors)
        self._places = [place for places in self._tensors.values() for place in places]
        self._expected = 0  # index of the name a pass asks for next
        self._half_way = False  # whether the blocks of a name were not asked for to the end
        sizes = [nbytes_if_pinned(place.block) for place in self._places]
        # With room for all, the estimate must not decide: no block takes more than its panels.
        nbytes = 2 * sum(sizes) if pinned_nbytes is None or pinned_nbytes >= sum(sizes) else pinned_nbytes
        self._arenas = [Arena(nbytes)]
        self._choose(self._places, nbytes, routers)
        paths = dict.fromkeys(span.file for place in self._places for span in place.block.spans)
        layers, self._entries = entries_of(checkpoint)
        for tensor in (tensor for entries in layers.values() for entry in entries for tensor in entry):
            paths.update(files_of(tensor))
        self._files = {path: DirectFile(path) for path in paths}
        self._experts = self._store(layers, expert_slots, expert_room, counts) if layers else None
        self._counts = counts
        self._lock = threading.Lock()
        self._read_nbytes = 0
        self._waited_s = 0.0
        self._slots, self._room = slots, room
        self._ring: Ring | None = None
        self._complete = False  # whether all of them are here
        self._resident: dict[tuple[str, ...], _kernels.Blocks] = {}  # then: those asked for so far
        self._cursor = 0  # what the readers fetch next, by index into _places
        self._forks = 0  # between the process these were made in and this one
        forked.register(self)

    def _choose(self, places: list[_Place], nbytes: int, first: Collection[str] = ()) -> None:
        """Mark blocks to pin: those of `first`, then as many as there is memory for, at even distances through the
        pass."""
        left = nbytes
        rest: list[tuple[_Place, int]] = []
        for place in places:
            size = nbytes_if_pinned(place.block)
            if place.block.tensor.name in first and size <= left:
                place.to_pin = True
                left -= size
            else:
                rest.append((place, size))
        share = min(1.0, left / max(1, sum(size for _, size in rest)))
        credit = 0.0
        for place, size in rest:
            credit += size * share
            if credit >= size * (1 - 1e-9) and size <= left:
                place.to_pin = True
                credit -= size
                left -= size

    def pin_more(self, nbytes: int) -> None:
        """Pin more blocks from the next pass on, in so many bytes of memory that somebody else gave up."""
        if nbytes > 0 and self.nbytes_streamed:
            self._restart()  # what is on its way must not be read twice
            self._half_way = False
            self._arenas.append(Arena(nbytes))
            self._choose([place for place in self._places if place.matrix is None and not place.to_pin], nbytes)

    def _store(
        self, layers: Mapping[int, Sequence[tuple[Tensor, ...]]], slots: int, room: int, counts: Path | None
    ) -> "ExpertStore":
        """Of the experts of a mixture; counts: where it is written which were chosen."""
        from pyllama.streaming.experts import ExpertStore  # which most models have no use for

        number = max(map(len, layers.values()))
        return ExpertStore(
            layers,
            chosen=Shape.whole(self._checkpoint.config).chosen * len(self._entries),
            room=room,
            slots=slots,
            read=self._read,
            counts=read_counts(counts, len(layers), number) if counts else None,
            busy=self._busy,
        )

    # ------------------------------------------------------------------------------------------ the decoder's side

    @property
    def bytes_read(self) -> int:
        of_experts = self._experts.counters.nbytes if self._experts else 0
        return self._read_nbytes + of_experts + self._checkpoint.bytes_read

    @property
    def waited_s(self) -> float:
        return self._waited_s + (self._experts.waited_s if self._experts else 0.0)

    @property
    def expert_counters(self) -> "Counters | None":
        """What became of the experts asked for, so far; None for a model without."""
        return replace(self._experts.counters) if self._experts else None

    @property
    def nbytes_pinned(self) -> int:
        """Bytes of memory that hold blocks for good."""
        return sum(arena.used for arena in self._arenas)

    @property
    def nbytes_streamed(self) -> int:
        """Bytes that every pass from now on has to read."""
        return sum(place.block.nbytes for place in self._places if place.matrix is None and not place.to_pin)

    def resident(self, *names: str) -> "_kernels.Blocks | None":
        """The matrices, a stack each, once nothing has to be read any more; till then None."""
        # A call per block, or only per matrix, would be a good part of a small model's token.
        if not self._complete:
            return None
        if names not in self._resident:
            stacks = [[place.matrix for place in self._tensors[name] if place.matrix is not None] for name in names]
            self._resident[names] = _kernels.Blocks(*stacks)
        return self._resident[names]

    def blocks(self, name: str) -> Iterator[tuple[int, "_kernels.Matrix"]]:
        """(first row, block), ascending. Names come in execution order; the first one begins a pass."""
        if name != self._names[self._expected] or self._half_way:
            if name != self._names[0]:
                if self._forks:
                    raise PyllamaError(_FORKED)
                raise RuntimeError(f"{name} asked for, expected {self._names[self._expected]}: out of order")
            self._restart()  # the last pass was given up, or wanted no logits
        self._half_way = True
        forks = self._forks
        for place in self._tensors[name]:
            if forks != self._forks:
                raise PyllamaError(_FORKED)
            if place.matrix is not None:
                yield place.block.row, place.matrix
                continue
            if self._ring is None:
                self._ring = Ring(self._slots, self._room, self._next, self._fill)
            ring = self._ring
            asked = time.perf_counter()
            taken, matrix = ring.take()
            self._waited_s += time.perf_counter() - asked
            if taken is not place:
                raise RuntimeError(f"{name}: the ring gave rows of another block")
            yield place.block.row, matrix
            if place.to_pin and forks == self._forks:
                place.matrix = self._pin(matrix)
                place.to_pin = False
            ring.give_back()
        if forks != self._forks:
            raise PyllamaError(_FORKED)
        self._half_way = False
        self._expected = (self._expected + 1) % len(self._names)
        if self._expected == 0 and self.nbytes_streamed == 0:
            self._stop()  # all of it is here: the ring's memory goes back
            self._complete = True

    def experts(
        self, layer: int, wanted: Sequence[int], tokens: Sequence[int], which: int | None = None
    ) -> Iterator[tuple[int, Iterator[ExpertRows]]]:
        """(expert, its rows), in the order in which they are at hand."""
        if self._experts is None:
            raise RuntimeError("experts asked for, of a model without")
        if which is None:
            return self._experts.take(layer, wanted, tokens)
        entries = self._entries_with(layer, wanted, which)
        then = self._entries_with(layer, wanted, DOWN) if which == GATE_UP else []
        taken = self._experts.take(layer, entries, [*tokens] * (len(entries) // len(wanted)), then)
        count = self._experts.entries(layer) // len(self._entries)
        return ((entry % count, rows) for entry, rows in taken)

    def _entries_with(self, layer: int, experts: Sequence[int], which: int) -> list[int]:
        """Numbers of the entries of some experts that have GATE_UP, each of the two, or DOWN; ascending."""
        if self._experts is None:
            return []
        count = self._experts.entries(layer) // len(self._entries)
        mine = [i for i, of in enumerate(self._entries) if (DOWN in of) == (which == DOWN)]
        return [i * count + expert for i in mine for expert in experts]

    @property
    def guesses_help(self) -> bool:
        return self._experts is not None and self._experts.guesses_help

    def pinned(self, name: str) -> "_kernels.Blocks | None":
        places = self._tensors[name]
        if (name,) not in self._resident:
            matrices = [place.matrix for place in places if place.matrix is not None]
            if len(matrices) < len(places):
                return None
            self._resident[name,] = _kernels.Blocks(matrices)
        return self._resident[name,]

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        if self._experts is None:
            return
        whole = self._entries == WHOLE
        self._experts.guess(layer, experts if whole else self._entries_with(layer, experts, GATE_UP))

    def _pin(self, matrix: "_kernels.Matrix") -> "_kernels.Matrix | None":
        """A copy that stays, where there is room for it."""
        return next((pinned for arena in self._arenas if (pinned := arena.pin(matrix)) is not None), None)

    def vector(self, name: str) -> np.ndarray:
        tensor = self._checkpoint.tensors[name]
        out = np.empty(tensor.shape, np.float32)
        raw = self._checkpoint.read_rows(tensor, 0, 1)
        if not out.size:  # a rank that computes none of these
            return out
        _kernels.widen(_kernels.Matrix(tensor.dtype, 1, tensor.cols, raw.reshape(-1)), out)
        return out

    def embedding(self, name: str, token_ids: np.ndarray, out: np.ndarray) -> None:
        tensor = self._checkpoint.tensors[name]
        raw = np.empty((len(token_ids), tensor.row_nbytes), np.uint8)
        for i, token_id in enumerate(token_ids):
            raw[i] = self._checkpoint.read_rows(tensor, int(token_id), 1)[0]
        _kernels.widen(_kernels.Matrix(tensor.dtype, len(token_ids), tensor.cols, raw.reshape(-1)), out)

    def close(self) -> None:
        """Stop the readers and close the files."""
        self._stop()
        if self._experts is not None:
            self._experts.close()
            if self._counts and self._experts.counters.tokens >= LEAST:
                write_counts(self._counts, self._experts.counts)
                self._counts = None
        for file in self._files.values():
            file.close()

    # ------------------------------------------------------------------------------------------ the readers' side

    def _read(self, span: Span, memory: np.ndarray) -> np.ndarray:
        return self._files[span.file].read(span, memory)

    def _busy(self) -> bool:
        ring = self._ring
        return ring is not None and ring.reading > 0

    def _stop(self) -> None:
        ring, self._ring = self._ring, None
        if ring:
            ring.close()

    def renew_in_child(self) -> None:
        # The ring's readers are not here, nor is a pass of another thread: the next one begins at the first block.
        self._lock = threading.Lock()
        self._ring = None
        self._forks += 1
        self._half_way = True
        self._restart()

    def _restart(self) -> None:
        self._stop()
        self._cursor = self._expected = 0
        for place in self._places:
            place.claimed = False

    def _next(self) -> object:
        """The next block to read, round and round: in the first pass all, then those that did not stay."""
        for _ in self._places:
            place = self._places[self._cursor]
            if place.to_pin and place.claimed:
                return PENDING  # whether it found room is known when the decoder is done with it
            self._cursor = (self._cursor + 1) % len(self._places)
            if place.matrix is None:
                place.claimed = place.to_pin
                return place
        return None

    def _fill(self, place: _Place, memory: np.ndarray) -> "_kernels.Matrix":
        block, reads = place.block, together([place.block])
        for span, at in zip(reads.spans, reads.starts, strict=True):
            self._read(span, memory[at:])
        with self._lock:
            self._read_nbytes += block.nbytes
        ((_, data),) = joined(reads, memory)
        return _kernels.Matrix(block.tensor.dtype, block.rows, block.tensor.cols, data, block.stored)
