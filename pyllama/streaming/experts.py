"""The experts of a mixture out of a budget: a pool of slots, filled by reader threads with what tokens are routed to.

An entry is an expert or, of ranks, a matrix of one (blocks.py). A slot holds a whole one, its matrices read together,
or, where slots are too small for that, some of its blocks. What is here is used at once; all that is missing of a layer
is read at once, in order, by several readers, and used as it comes. The slots of those chosen most often are not given
to others; the rest go to whatever was used least recently. Guesses of what the next layer will need are read only while
nothing else is to be read, in small steps. All of this changes when bytes are read, and never a bit of the result.
Knows entries by layer and number, and no arithmetic.
"""

import threading
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pyllama import _kernels
from pyllama.architecture.names import expert_matrix
from pyllama.checkpoint import Tensor
from pyllama.checkpoint.apart import join
from pyllama.checkpoint.files import padded
from pyllama.checkpoint.index import Span
from pyllama.decoder.weights import DOWN, GATE, GATE_UP, UP, ExpertRows
from pyllama.errors import PyllamaError
from pyllama.machine import forked
from pyllama.streaming.blocks import Block, cut, smallest_room
from pyllama.streaming.memory import huge_empty
from pyllama.streaming.pieces import Read, Reads, Turn, each_read, extents, joined, merged, room_of, together, turn_room
from pyllama.streaming.readers import Readers

READERS = 4  # reads in flight
LEAST_SLOTS = 4  # one in use, the rest being read
READ_NBYTES = 2 << 20  # of an expert, in one read: large enough for the disk's full rate, small enough for all readers
GUESS_NBYTES = 1 << 20  # of a guess, in one read: what is needed meanwhile waits for one of these at most
GUESSING = 4  # times the experts of a token in a layer: in fewer slots a guess drives out what is needed before it
RECOUNT = 64  # requests between two looks at which experts are chosen most
PROTECTED = 0.75  # of the slots, at most, are kept for those

PANELS_NBYTES = 1 << 20  # of rows, copied while they are put into the order of panels
_ALIGNMENT = 4  # of panels

_Key = tuple[int, int, int]  # layer, entry, piece
_Task = tuple["_Slot", list[Read]]


@dataclass(slots=True)
class Counters:
    """What became of the experts asked for; bytes are those of reads for experts alone.

    asked    experts that a layer of a pass needed, each once
    hits     those that were here, or on their way by a guess
    guessed  hits that a guess had brought or begun
    tokens   that computed with them, in all passes
    guesses  experts read, or begun to be, by a guess
    """

    asked: int = 0
    hits: int = 0
    guessed: int = 0
    guesses: int = 0
    tokens: int = 0
    nbytes: int = 0

    def as_dict(self, since: "Counters | None" = None) -> dict[str, float | int | None]:
        """As reports have it, of all or of what came after `since`; hit_rate, bytes_token: None where none were."""
        before = since or Counters()
        asked, hits, tokens = self.asked - before.asked, self.hits - before.hits, self.tokens - before.tokens
        nbytes = self.nbytes - before.nbytes
        return {
            "asked": asked,
            "hits": hits,
            "hit_rate": hits / asked if asked else None,
            "guesses": self.guesses - before.guesses,
            "guesses_used": self.guessed - before.guessed,
            "bytes_read": nbytes,
            "bytes_token": nbytes / tokens if tokens else None,
        }


class Sizes(NamedTuple):
    """What a slot must hold: of a whole entry (blocks.py), and at least; nbytes of all of them as stored; what readers
    need besides, all together; how many slots there must be."""

    whole: int
    least: int
    nbytes: int
    readers: int = 0
    least_slots: int = LEAST_SLOTS


def sizes(entries: Sequence[tuple[Tensor, ...]]) -> Sizes:
    """Of entries, each as its matrices."""
    least = smallest_room(tensor for entry in entries for tensor in entry)
    whole = stored = 0
    for entry in entries:
        spans = extents(entry)
        others = [t for t in entry if any(p.apart for p in t.parts) or any(b.around for b in t.blocks)]
        alone = [b for tensor in others for b in cut(tensor, 1 << 50) if b.part_apart or b.excerpt]
        whole = max(whole, sum(span.room for span in merged(spans)[0]) + sum(map(room_of, alone)))
        stored += sum(span.nbytes for span in spans) + sum(block.nbytes for block in alone)
    matrices = [tensor for entry in entries for tensor in entry]
    copies = max((panel_rows(tensor) * tensor.row_nbytes for tensor in matrices), default=0)
    readers = READERS * (turn_room(matrices) + copies)
    return Sizes(max(whole, least), least, stored, readers)


def _blocks(entry: Sequence[Tensor], room: int) -> list[Block]:
    """Gate, up, down; of gate and up that take turns in the file, the same rows of both one after the other."""
    blocks = [cut(tensor, room) for tensor in entry]
    if len(blocks) > 1 and blocks[0][0].part_apart and len(blocks[0]) == len(blocks[1]):
        both = [block for pair in zip(*blocks[:2], strict=True) for block in pair]
        blocks = [both, *blocks[2:]]
    return [block for of in blocks for block in of]


@dataclass(slots=True, eq=False)
class _Slot:
    """key: what it holds, or is being filled with, since which request; rows: that, once it is here."""

    memory: np.ndarray
    key: _Key | None = None
    rows: list[ExpertRows] | None = None
    using: bool = False
    guess: bool = False  # a guess brought it, and nobody has asked for it yet
    request: int = 0
    error: BaseException | None = None
    reads: Reads | None = None  # what is on its way,
    left: int = 0  # so many reads of it,
    left_of: list[int] = field(default_factory=list)  # of each of its reads, where each is one matrix; else empty
    panels: set[int] = field(default_factory=set)  # numbers of the blocks that are in the order of panels already
    # Of a guess that made way for what is needed: the reads that are left, which nobody makes now.
    rest: list[Read] | None = None
    failed: BaseException | None = None  # and what went wrong with one


class ExpertStore(Readers):
    """The experts of a model's layers.

    layers  number of a layer -> its entries in order, each as its matrices
    chosen  how many a token goes to, in entries
    room    bytes of a slot: sizes().whole for one that holds whole entries, or less, sizes().least at the least
    slots   how many; LEAST_SLOTS at the least
    read    reads a span into memory, as DirectFile does; called on several threads
    counts  how often each was chosen so far, int64 (layers, entries): kept up to date
    busy    whether the disk has something else to do: no guess is begun then
    """

    def __init__(
        self,
        layers: Mapping[int, Sequence[tuple[Tensor, ...]]],
        *,
        chosen: int,
        room: int,
        slots: int,
        read: Callable[[Span, np.ndarray], np.ndarray],
        counts: np.ndarray | None = None,
        busy: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        every = [entry for entries in layers.values() for entry in entries]
        of = sizes(every)
        self._layers = layers
        self._chosen = chosen
        self._first = next(iter(layers))
        self._rank = {layer: rank for rank, layer in enumerate(layers)}
        self.whole = room >= of.whole
        self.room = padded(of.whole if self.whole else max(room, of.least))
        most = len(every) if self.whole else 2 * of.nbytes // self.room + 3 * len(every)  # as many as there can be
        self.slots = max(LEAST_SLOTS, min(slots, most))
        self.nbytes_stored = of.nbytes
        self._turn_room = turn_room(tensor for entry in every for tensor in entry)
        self.counters = Counters()
        self.waited_s = 0.0  # that passes have waited for experts
        shape = (len(layers), max(len(entries) for entries in layers.values()))
        self.counts = np.zeros(shape, np.int64) if counts is None else counts
        self._read = read
        self._busy = busy
        self._memory: np.ndarray | None = None
        self._slots: list[_Slot] = []
        self._held: OrderedDict[_Key, _Slot] = OrderedDict()  # least recently used first
        self._free: list[_Slot] = []
        self._protected = np.zeros(shape, bool)
        self._requests = 0
        self._pieces: dict[tuple[int, int], list[Reads]] = {}  # of those that are being asked for
        self._wanted: deque[_Key] = deque()  # to be read, in this order
        self._urgent: _Key | None = None  # what the decoder waits for
        self._reserved: set[_Key] = set()  # here, and needed before this layer is done
        self._reads: deque[tuple[_Slot, Read]] = deque()  # of what has been claimed
        self._guesses: deque[_Key] = deque()
        self._all_here = False
        self._total = len(every)
        self._generation = 0  # forks between the process this was made in and this one
        forked.register(self)

    @property
    def nbytes(self) -> int:
        """Bytes of memory the slots take once they are all in use."""
        return self.slots * self.room

    def entries(self, layer: int) -> int:
        """How many a layer has."""
        return len(self._layers[layer])

    @property
    def guesses_help(self) -> bool:
        """Whether there is room for whole experts, for many more than a layer needs, and not for all of them."""
        return (
            self.whole and self.slots >= GUESSING * self._chosen and self.slots < len(self._rank) * self.counts.shape[1]
        )

    # ------------------------------------------------------------------------------------------ the decoder's side

    def take(
        self, layer: int, wanted: Sequence[int], tokens: Sequence[int], then: Sequence[int] = ()
    ) -> Iterator[tuple[int, Iterator[ExpertRows]]]:
        """(entry, its rows) of each wanted one, in the order in which they are at hand: of gate, up, down,
        ascending, each valid until the next is asked for.

        tokens  how many go to each
        then    what will be asked for next, of the same layer: read once nothing else is

        What is missing is asked for at once; the iterator raises what reading raised.
        """
        self._count(layer, wanted, tokens)
        with self._changed:
            self._reset()
        missing = [e for e in wanted if not (self.whole and (layer, e, 0) in self._held)]
        self._pieces = {(layer, entry): self._pieces_of(layer, entry) for entry in missing}
        keys = self._ask_whole(layer, wanted, then) if self.whole else []
        return self._taken(layer, wanted, keys, self._requests, self._generation)

    def _taken(
        self, layer: int, wanted: Sequence[int], keys: list[_Key], request: int, generation: int
    ) -> Iterator[tuple[int, Iterator[ExpertRows]]]:
        try:
            if self.whole:
                yield from self._take_whole(keys, generation)
            else:
                for entry in wanted:
                    yield entry, self._take_pieces(layer, entry, wanted, generation)
        finally:
            # An exception that somebody keeps may keep this frame, and end it in the midst of a later request.
            with self._changed:
                if self._requests == request:
                    self._reset()

    def _reset(self) -> None:
        """Nothing is wanted, and no slot is in use: a request is done, or was given up."""
        self._wanted.clear()
        self._reserved.clear()
        self._urgent = None
        for slot in self._slots:
            slot.using = False
        self._changed.notify_all()

    def guess(self, layer: int, entries: Sequence[int]) -> None:
        """The layer will perhaps need these, the likeliest first: what is not here is read while the disk is idle."""
        if not self.guesses_help or layer not in self._rank:
            return
        with self._changed:
            self._guesses.clear()
            self._guesses.extend(key for e in entries if not self._find(key := (layer, int(e), 0)))
            if self._guesses:
                self._start()
                self._changed.notify_all()

    def _find(self, key: _Key) -> _Slot | None:
        """The slot that holds this, or that it is on its way to."""
        slot = self._held.get(key)
        return None if slot is None or slot.rest else slot

    def _count(self, layer: int, wanted: Sequence[int], tokens: Sequence[int]) -> None:
        self.counters.tokens += sum(tokens) // self._chosen if layer == self._first else 0
        self.counts[self._rank[layer], np.asarray(wanted)] += np.asarray(tokens)
        self._requests += 1
        if self._requests % RECOUNT == 1 and self.whole:
            self._protected = _most_chosen(self.counts, int(self.slots * PROTECTED))

    def _ask_whole(self, layer: int, wanted: Sequence[int], then: Sequence[int]) -> list[_Key]:
        """Those that are here, then those that are missing, which are asked for, and after them what comes then."""
        keys = [(layer, entry, 0) for entry in wanted]
        with self._changed:
            self._guesses = deque(key for key in self._guesses if key[0] != layer)
            here = [key for key in keys if self._find(key)]
            missing = [key for key in keys if not self._find(key)]
            self.counters.asked += len(keys)
            self.counters.hits += len(here)
            self._reserved.update(here)
            for key in here:
                self._confirm(self._held[key])
            self._wanted.extend(missing)
            self._wanted.extend(key for entry in then if not self._find(key := (layer, entry, 0)))
            if self._wanted:
                self._start()
                self._changed.notify_all()
        return here + missing

    def _take_whole(self, left: list[_Key], generation: int) -> Iterator[tuple[int, Iterator[ExpertRows]]]:
        while left:
            key = self._first_ready(left)
            left.remove(key)
            slot = self._use(key, generation)
            yield key[1], iter(slot.rows or ())
            self._done(slot, key, generation)

    def _first_ready(self, keys: Sequence[_Key]) -> _Key:
        """The first of them that can be used now; if there is none, the one to wait for."""
        with self._changed:
            while True:
                for key in keys:
                    slot = self._find(key)
                    if slot is not None and (slot.rows is not None or slot.error is not None):
                        return key
                    if slot is None and key not in self._wanted:  # given to another before its turn came
                        return key
                self._urgent = keys[0]
                self._changed.notify_all()
                self._wait()

    def _take_pieces(self, layer: int, entry: int, wanted: Sequence[int], generation: int) -> Iterator[ExpertRows]:
        with self._changed:
            if entry == wanted[0]:
                keys = [(layer, e, piece) for e in wanted for piece in range(len(self._pieces[layer, e]))]
                self.counters.asked += len(wanted)
                self.counters.hits += sum(
                    all((layer, e, piece) in self._held for piece in range(len(self._pieces[layer, e]))) for e in wanted
                )
                self._wanted.extend(key for key in keys if key not in self._held)
                self._reserved.update(key for key in keys[: self.slots // 2] if key in self._held)
                self._start()
                self._changed.notify_all()
        for piece in range(len(self._pieces[layer, entry])):
            key = (layer, entry, piece)
            slot = self._use(key, generation)
            yield from slot.rows or ()
            self._done(slot, key, generation)

    def _use(self, key: _Key, generation: int) -> _Slot:
        """The slot that holds this, once it is read; nobody else gets it until _done()."""
        with self._changed:
            while True:
                if self._generation != generation:
                    raise PyllamaError(
                        "experts: the process was forked in the midst of this pass, and its readers are not here; "
                        "begin it anew"
                    )
                slot = self._find(key)
                if slot is None and key not in self._wanted:
                    self._wanted.appendleft(key)
                    self._start()
                if slot is not None and slot.error is not None:
                    error, slot.error = slot.error, None
                    self._forget(slot)
                    if slot.request != self._requests:  # of a pass that was given up: try again
                        continue
                    raise error
                if slot is not None and slot.rows is not None:
                    slot.using = True
                    self._urgent = None
                    self._held.move_to_end(key)
                    self._reserved.discard(key)
                    self._confirm(slot)
                    return slot
                if self._urgent != key:
                    self._urgent = key
                    self._changed.notify_all()
                self._wait()

    def _wait(self) -> None:
        """Until something has changed; called, and timed, on the decoder's thread."""
        started = time.perf_counter()
        self._changed.wait()
        self.waited_s += time.perf_counter() - started

    def _confirm(self, slot: _Slot) -> None:
        """What a guess brought, or has begun to, is needed."""
        if slot.guess:
            slot.guess = False
            self.counters.guessed += 1

    def _done(self, slot: _Slot, key: _Key, generation: int) -> None:
        with self._changed:
            if self._generation == generation and slot.key == key:
                slot.using = False
                self._changed.notify_all()

    def _pieces_of(self, layer: int, entry: int) -> list[Reads]:
        """What is to be read of an entry, slot by slot."""
        matrices = self._layers[layer][entry]
        room = self.room if not self.whole else max(self.room, smallest_room(matrices))
        if self.whole and any(part.apart for tensor in matrices for part in tensor.parts):
            room = 1 << 50  # what is put together needs no cut
        blocks = _blocks(matrices, room)
        if self.whole:
            return [together(blocks)]
        pieces: list[Reads] = []
        for block in blocks:
            if pieces and (more := together([*pieces[-1].blocks, block])).room <= self.room:
                pieces[-1] = more
            else:
                pieces.append(together([block]))
        return pieces

    # ------------------------------------------------------------------------------------------ the readers' side

    def _start(self) -> None:
        """Memory and readers, when the first expert is missing."""
        if self._memory is None:
            self._memory = huge_empty(self.slots * self.room)
            memory = self._memory
            self._slots = [_Slot(memory[i * self.room : (i + 1) * self.room]) for i in range(self.slots)]
            self._free = self._slots[::-1]
        if not self._threads and not self._stopping:
            self._begin(READERS, self._run, "pyllama-expert")

    def _run(self) -> None:
        scratch: np.ndarray | None = None  # for what has to be put together
        while True:
            with self._changed:
                task = None
                while not self._stopping and not self._all_here:
                    task = None if self._forks else self._next()
                    if task is not None:
                        break
                    self._changed.wait()
                if task is None:
                    return
                self.reading += 1
                slot, reads = task
            failed: BaseException | None = None
            try:
                if self._turn_room and scratch is None:
                    scratch = huge_empty(self._turn_room)
                self._read_one(reads[0], slot, scratch)
                while len(reads) > 1 and (reads := self._going_on(slot, reads[1:])):
                    self._read_one(reads[0], slot, scratch)
            except BaseException as error:  # noqa: BLE001 - the decoder raises it
                failed = error
            self._end_task(slot, len(reads), failed)

    def _end_task(self, slot: _Slot, reads: int, failed: BaseException | None) -> None:
        """So many reads of a slot's expert are made, or have failed; with the last one it can be used."""
        with self._changed:
            if not reads:  # of a guess that made way: its slot may be another's already
                self.reading -= 1
                self._changed.notify_all()
                return
            slot.failed = slot.failed or failed
            slot.left -= reads
            last = slot.left == 0
        rows: list[ExpertRows] = []
        try:
            if last and slot.reads and not slot.failed:
                rows = _rows(slot.reads, slot.memory, self.whole, slot.panels)
        except BaseException as error:  # noqa: BLE001 - as above
            slot.failed = error
        with self._changed:
            if last and slot.reads and not slot.failed:
                slot.rows = rows
                self.counters.nbytes += sum(block.nbytes for block in slot.reads.blocks)
                if not slot.guess and slot.key is not None:
                    self._reserved.add(slot.key)  # until it is used
                self._all_here = (
                    self.whole
                    and len(self._held) == self._total
                    and all(slot.rows is not None for slot in self._held.values())
                )
            elif last and slot.guess:
                self._forget(slot)  # whoever needs it reads it again, and is told
            elif last:
                slot.error = slot.failed
            self.reading -= 1
            self._changed.notify_all()

    def _next(self) -> _Task | None:
        """What is to be read next, its slot claimed; None if nothing is, or there is no room for it.

        The reads of one expert are made by all readers at once, and then those of the next: so they become ready one
        after the other, and products go on meanwhile.
        """
        if self._reads:
            slot, read = self._reads.popleft()
            return slot, [read]
        if self._wanted:
            urgent = self._urgent in self._wanted
            key = self._urgent if urgent else self._wanted[0]
            assert key is not None
            slot_or_none = self._held.get(key)
            reads = self._resumed(slot_or_none) if slot_or_none else None  # a guess had begun it
            if slot_or_none is None:
                slot_or_none = self._room(key, urgent)
            if slot_or_none is None:
                return None
            slot_or_none.guess = False
            self._wanted.remove(key)
            reads = reads or self._claim(slot_or_none, key, READ_NBYTES)
            self._reads.extend((slot_or_none, read) for read in reads[1:])
            if len(reads) > 1:
                self._changed.notify_all()
            return slot_or_none, reads[:1]
        while self._guesses and not self.reading and not self._busy():
            key = self._guesses.popleft()
            held = self._held.get(key)
            if held is not None and held.rest:
                return held, self._resumed(held)
            slot_or_none = None if held else self._room(key, False, guess=True)
            if slot_or_none is not None:
                slot_or_none.guess = True
                self.counters.guesses += 1
                return slot_or_none, self._claim(slot_or_none, key, GUESS_NBYTES)
        return None

    def _resumed(self, slot: _Slot) -> list[Read]:
        """What is left to be read of a guess that made way, for this reader to read."""
        reads, slot.rest = slot.rest or [], None
        slot.request = self._requests
        return reads

    def _claim(self, slot: _Slot, key: _Key, most: int) -> list[Read]:
        """What has to be read for a key into its slot."""
        pieces = self._pieces.get(key[:2]) or self._pieces_of(*key[:2])
        slot.reads = pieces[key[2]]
        reads = each_read(slot.reads, most)
        slot.left, slot.failed = len(reads), None
        slot.left_of, slot.panels = [], set()
        if self.whole and all(_plain(block) for block in slot.reads.blocks):
            slot.left_of = [0] * len(slot.reads.spans)
            for read in reads:
                if not isinstance(read, Turn):
                    slot.left_of[bisect_right(slot.reads.starts, read[1]) - 1] += 1
        return reads

    def _room(self, key: _Key, urgent: bool, guess: bool = False) -> _Slot | None:
        """A slot that nothing needs more than this key, taken from what it held; for a guess no protected one."""
        slot = self._free.pop() if self._free else self._victim(False) or (self._victim(True) if urgent else None)
        if slot is None:
            return None
        if guess and slot.key is not None and self._protected[self._rank[slot.key[0]], slot.key[1]]:
            return None
        if slot.key is not None:
            self._held.pop(slot.key, None)
        slot.key, slot.rows, slot.guess, slot.error, slot.rest = key, None, False, None, None
        slot.request = self._requests
        self._held[key] = slot
        return slot

    def _victim(self, any_unused: bool) -> _Slot | None:
        """The least recently used slot that is not protected; else one that is; any_unused: or reserved."""
        protected = None
        for key, slot in self._held.items():
            if slot.using or (slot.rows is None and not slot.rest) or (key in self._reserved and not any_unused):
                continue
            if self._protected[self._rank[key[0]], key[1]] and not any_unused:
                protected = protected or slot
                continue
            return slot
        return protected

    def _forget(self, slot: _Slot) -> None:
        if slot.key is not None:
            self._held.pop(slot.key, None)
        slot.key, slot.rows, slot.guess, slot.rest = None, None, False, None
        self._free.append(slot)

    def _read_one(self, read: Read, slot: _Slot, scratch: np.ndarray | None) -> None:
        memory = slot.memory
        if not isinstance(read, Turn):
            span, at = read
            self._read(span, memory[at:])
            self._matrix_here(slot, at)
            return
        assert scratch is not None  # there is some where something lies apart
        raw, at = [], 0
        for span in read.spans:
            raw.append(self._read(span, scratch[at:]))
            at += span.room
        for block, place in read.blocks:
            width = block.tensor.row_nbytes
            out = memory[place : place + read.rows * width].reshape(read.rows, width)
            if block.part_apart:
                join(block.tensor.dtype, block.part_apart, raw, out)

    def _matrix_here(self, slot: _Slot, at: int) -> None:
        """With the last part of a matrix it is put into the order of panels, while the next one is being read: what
        the last matrix of a layer takes is time in which nothing is known to be read."""
        reads = slot.reads
        if not slot.left_of or reads is None:
            return
        number = bisect_right(reads.starts, at) - 1
        with self._changed:
            slot.left_of[number] -= 1
            if slot.left_of[number]:
                return
        for i, (block, (place, *_)) in enumerate(zip(reads.blocks, reads.places, strict=True)):
            mine = bisect_right(reads.starts, place) - 1 == number
            if mine and _in_panels(block, slot.memory[place : place + block.nbytes]):
                slot.panels.add(i)

    def _going_on(self, slot: _Slot, rest: list[Read]) -> list[Read]:
        """What a reader of a guess goes on with, of the rest, after one of its reads.

        One reader brings a guess, one read after the other. It makes way for what is needed, and what is here of
        it stays; where it has turned out to be needed itself, the other readers take some of the rest."""
        with self._changed:
            slot.left -= 1
            if slot.guess and (self._wanted or self.reading > 1):
                slot.rest = rest
                return []
            if not slot.guess:
                self._reads.extendleft((slot, read) for read in rest[:0:-1])
                self._changed.notify_all()
                return rest[:1]
            return rest

    # ------------------------------------------------------------------------------------------ its life

    def renew_in_child(self) -> None:
        self._changed = threading.Condition()
        self._threads = []
        self.reading = self._forks = 0
        self._generation += 1
        self._wanted.clear()
        self._guesses.clear()
        self._reads.clear()
        self._reserved.clear()
        for slot in self._slots:
            slot.using = False
            if slot.key is not None and slot.rows is None:
                self._forget(slot)


def _most_chosen(counts: np.ndarray, most: int) -> np.ndarray:
    """Which were chosen most often, `most` of them, as booleans of the shape of the counts."""
    protected = np.zeros(counts.size, bool)
    if 0 < most < counts.size:
        protected[np.argpartition(-counts.ravel(), most)[:most]] = True
    return protected.reshape(counts.shape) & (counts > 0)


def _plain(block: Block) -> bool:
    """Whether a block is its one read, and nothing has to be asked of its bytes before they are moved about."""
    return len(block.spans) == 1 and not block.part_apart and block.excerpt is None and block.crc32 is None


def _rows(reads: Reads, memory: np.ndarray, whole: bool, panels: Collection[int] = ()) -> list[ExpertRows]:
    """The matrices that lie in a slot's memory, in the order in which they are multiplied.

    panels  numbers of the blocks that are in the order of panels already
    """
    found: list[ExpertRows] = []
    stacks: dict[int, list[_kernels.Matrix]] = {GATE: [], UP: [], DOWN: []}
    for number, (block, data) in enumerate(joined(reads, memory)):
        which, stored = expert_matrix(block.tensor.name), block.stored
        if number in panels or (whole and _in_panels(block, data)):
            stored = "panels"
        matrix = _kernels.Matrix(block.tensor.dtype, block.rows, block.tensor.cols, data, stored)
        found.append((which, block.row, matrix))
        stacks[which].append(matrix)
    if not whole:
        return found
    if stacks[GATE] and stacks[UP]:
        pair = (GATE_UP, 0, _kernels.Blocks(stacks[GATE], stacks[UP]))
        return [pair, (DOWN, 0, _kernels.Blocks(stacks[DOWN]))] if stacks[DOWN] else [pair]
    return [(which, 0, _kernels.Blocks(stack)) for which, stack in stacks.items() if stack]


def _in_panels(block: Block, data: np.ndarray) -> bool:
    """Puts rows, where they lie, into the order in which products read them, as each product would anew: one token
    takes a fifth of the time then (MXFP4). Whether that could be done: whole panels, each as large as its rows."""
    dtype, cols, width = block.tensor.dtype, block.tensor.cols, block.tensor.row_nbytes
    if block.stored != "rows" or block.rows % _kernels.PANEL or data.ctypes.data % _ALIGNMENT:
        return False
    if _kernels.panels_nbytes(dtype, block.rows, cols) != block.rows * width:
        return False
    step = panel_rows(block.tensor)
    for row in range(0, block.rows, step):
        count = min(step, block.rows - row)
        place = data[row * width : (row + count) * width]
        _kernels.to_panels(_kernels.Matrix(dtype, count, cols, place.copy()), place, threads=1)
    return True


def panel_rows(tensor: Tensor) -> int:
    """Rows that are put into order at once."""
    return max(1, PANELS_NBYTES // (tensor.row_nbytes * _kernels.PANEL)) * _kernels.PANEL
