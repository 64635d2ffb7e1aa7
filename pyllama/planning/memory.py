"""One number, the memory budget, divided: process, cache, activations, ring, weights that stay.

Works from a config and an index alone, before anything is loaded. What a division costs in time is predicted
elsewhere; here are bytes only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from pyllama.architecture.config import Config
from pyllama.architecture.tensors import model_tensors
from pyllama.checkpoint.files import SECTOR
from pyllama.checkpoint.index import Tensor, whole
from pyllama.checkpoint.outline import Described
from pyllama.decoder import MAX_PASS_TOKENS, Shape
from pyllama.decoder.buffers import buffers_nbytes
from pyllama.decoder.page_pool import cache_nbytes
from pyllama.decoder.state_pool import slot_nbytes
from pyllama.errors import BudgetError
from pyllama.machine.memory import enough_for, mb
from pyllama.streaming.blocks import cut, entries_of, matrices, smallest_room
from pyllama.streaming.pinned import nbytes_if_pinned
from pyllama.streaming.weights import ROOM, SLOTS

if TYPE_CHECKING:
    from pyllama.streaming.experts import Sizes

#: Positions of a context nobody asked a length for, where the model allows as many.
DEFAULT_CONTEXT_LENGTH = 4096
LEAST_SLOTS = 3
#: States from before that are kept at most, within a sixteenth of the budget.
MOST_SNAPSHOTS = 64
#: Allocator slack, thread stacks, buffers of the front end: what nothing above counts.
SLACK = 12 << 20
#: Python's own bookkeeping of a block that may be streamed or kept: a 70B has 34,000.
BLOCK_OBJECTS = 600
#: Code and tables a process has before a model is loaded, where that cannot be measured (a plan for elsewhere).
INTERPRETER = 60 << 20


class TooSmallError(BudgetError):
    """No plan fits the budget; `smallest` is the least, in bytes, that one fits."""

    def __init__(self, smallest: int, message: str):
        super().__init__(message)
        self.smallest = smallest


@contextmanager
def telling_enough(memory: object) -> Iterator[None]:
    """Where nobody said how much memory to take (None), a TooSmallError also tells what the control group must have."""
    try:
        yield
    except TooSmallError as error:
        if memory is not None:
            raise
        raise BudgetError(f"{error}{enough_for(error.smallest)}") from None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a budget is spent, in bytes; all parts together are at most `budget`.

    process          what is there before (Python, NumPy, tokenizer), and what no other part counts: an object for each
                     block, experts' biases and what their readers read into, slack
    cache            keys and values: of one sequence of context_length positions, or of as many as were asked for
    states           of layers that carry one from token to token: state_slots of them, two for each sequence, since a
                     pass does not write where it reads, and some from before, of texts that may go on from there
    activations      of a pass of max_pass_tokens tokens
    ring             slots * room: what streamed blocks flow through
    pinned           weights that stay, in the form they are kept in
    weights          all weights that every pass needs, kept
    stored           the same, as read from disk
    drafter          what a drafter takes beside the model, all in all
    branches         of proposed tokens: pages of keys and values that are not the text's own, and rows of logits
    expert_slots     of the pool that a mixture's experts are kept in and read through, of expert_room bytes each
    experts_stored   all experts, as read from disk
    active           experts that a token goes to, in all layers, as read from disk
    experts_share    of all experts, those that the pool holds whole: what it hits where tokens go to all of them alike
    """

    budget: int
    context_length: int
    max_pass_tokens: int
    slots: int
    room: int
    process: int
    cache: int
    activations: int
    pinned: int
    weights: int
    stored: int
    drafter: int = 0
    branches: int = 0
    expert_slots: int = 0
    expert_room: int = 0
    experts_stored: int = 0
    active: int = 0
    experts_share: float = 1.0
    states: int = 0
    state_slots: int = 0

    @property
    def half(self) -> int:
        """Positions that a token sees where the context is half full."""
        return max(1, self.context_length // 2)

    @property
    def ring(self) -> int:
        return self.slots * self.room

    @property
    def experts(self) -> int:
        """Bytes of the experts' pool."""
        return self.expert_slots * self.expert_room

    @property
    def besides(self) -> int:
        """All but the weights that stay."""
        rest = self.drafter + self.branches + self.experts + self.states
        return self.process + self.cache + self.activations + self.ring + rest

    @property
    def streamed(self) -> int:
        """Bytes read from disk in every pass after the first, experts not counted (an estimate until the weights are
        packed)."""
        return round(self.stored * (1 - self.pinned / self.weights)) if self.weights > self.pinned else 0


def make_plan(
    model: Described,
    budget: int,
    *,
    context_length: int,
    kv_dtype: str = "f16",
    interpreter: int = INTERPRETER,
    contexts: int = 1,
    max_pass_tokens: int = MAX_PASS_TOKENS,
    drafter: int = 0,
    branches: int = 0,
    shape: Shape | None = None,
) -> Plan:
    """The best division of `budget` bytes. The cache gets room for so many contexts, but not for a second one where
    that takes more than a quarter of the budget.

    interpreter        bytes of what is there before
    max_pass_tokens    more than these nobody will want in a pass: a drafter's are small
    shape              of what is computed here, where the model is shared and `model` has this rank's rows alone
    drafter, branches  bytes that go to somebody else, as in Plan; nothing of them is planned here

    The weights get what is left over, so the rest is kept as small as it can be without costing speed: a pass takes
    512 tokens or, in a tight budget, fewer; the ring has eight slots of 4 MB or, in a tighter one and where a layer
    is no larger, fewer and smaller. Raises BudgetError, naming the smallest budget that works, where not even that
    fits.
    """
    shape = shape or Shape.whole(model.config)
    order = matrices(model)
    dtypes = {tensor.dtype for _, tensor in order}
    least_room = max(SECTOR, smallest_room(tensor for _, tensor in order))
    layer = _largest_layer(model)
    room = max(least_room, min(ROOM, layer // LEAST_SLOTS // SECTOR * SECTOR))
    weights = sum(_nbytes_if_pinned(tensor, room) for _, tensor in order)
    stored = sum(tensor.stored_nbytes for _, tensor in order)
    others = interpreter + SLACK + _biases_nbytes(model)

    layers, which = entries_of(model)
    experts = [expert for of_layer in layers.values() for expert in of_layer]
    of_experts = None
    if experts:
        from pyllama.streaming.experts import sizes  # which most models have no use for

        of_experts = sizes(experts)
        dtypes |= {tensor.dtype for expert in experts for tensor in expert}
        others += of_experts.readers

    tries = _tries(room, least_room, *_for_texts(shape, budget, context_length, kv_dtype, contexts))
    for tokens, slots, room, cache, states in tries:
        tokens = min(tokens, context_length, max_pass_tokens)
        slots = min(slots, max(LEAST_SLOTS, layer // room))  # the ring is never larger than a layer
        made = Plan(
            budget,
            context_length,
            tokens,
            slots,
            room,
            others + (stored // room + len(order)) * BLOCK_OBJECTS,
            cache,
            buffers_nbytes(shape, tokens, dtypes),
            0,
            weights,
            stored,
            drafter,
            branches,
            states=states * slot_nbytes(shape),
            state_slots=states,
        )
        if of_experts is not None:
            made = _with_experts(made, of_experts, len(experts), shape, shape.chosen * len(which))
        left = budget - made.besides  # for weights that stay; below 0, so much is missing
        if left >= (0 if tokens <= 64 else min(weights, made.activations)):
            return replace(made, pinned=min(weights, left))
    cure = "a shorter context or no drafter" if drafter else "a shorter context"
    who = "this model and its drafter need" if drafter else "this model needs"
    raise TooSmallError(  # of the last try, which takes least
        made.besides,
        f"memory: {mb(budget)} MB, {who} at least {BudgetError.enough_mb(made.besides)} MB"
        f" with a context of {context_length} (process {mb(made.process)}, cache {mb(made.cache)},"
        f" activations {mb(made.activations)}, ring {mb(made.ring)}{_besides(made)}); {cure} needs less",
    )


def _for_texts(
    shape: Shape, budget: int, context_length: int, kv_dtype: str, contexts: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(bytes of the cache, slots of states): of the contexts that were asked for, as far as they go, and of one."""
    one = least = cache_nbytes(shape, context_length, kv_dtype)
    most = one
    if contexts > 1:  # sequences that share pages need one more, to copy one before it is written
        least += cache_nbytes(shape, 1, kv_dtype)
        most = least + max(0, min(contexts * one, budget // 4) - one)
    of_state = slot_nbytes(shape)
    if not of_state:
        return (most, 0), (least, 0)
    running = max(1, min(contexts + (contexts > 1), budget // 8 // (2 * of_state)))
    return (most, 2 * running + min(MOST_SNAPSHOTS, budget // 16 // of_state)), (least, 2)


def _tries(room: int, least_room: int, *texts: tuple[int, int]) -> Iterator[tuple[int, int, int, int, int]]:
    """(tokens of a pass, slots of the ring, room of each, then as _for_texts()): what may be, the best first."""
    # A prompt's passes are worth a hundredth of the weights each; below 64 tokens, a tenth and more. More contexts than
    # one are given up before any of that.
    steps = (
        (MAX_PASS_TOKENS, SLOTS, room), (256, SLOTS, room), (128, SLOTS, room), (64, SLOTS, room),
        (64, 5, room), (64, LEAST_SLOTS, room), (64, LEAST_SLOTS, max(room // 2, least_room)),
        (32, LEAST_SLOTS, max(room // 4, least_room)), (8, LEAST_SLOTS, least_room),
    )  # fmt: skip
    for of_texts in dict.fromkeys(texts):
        for step in steps:
            yield *step, *of_texts
    yield 1, LEAST_SLOTS, least_room, *texts[-1]


def _biases_nbytes(model: Described) -> int:
    """A float32 and a NumPy array for each bias of an expert: they stay."""
    vectors = (of.name for of in model_tensors(model.config) if of.expert is not None and len(of.shape) == 1)
    return sum(4 * model.tensors[name].cols + BLOCK_OBJECTS for name in vectors)


def _with_experts(made: Plan, of: "Sizes", count: int, shape: Shape, chosen: int) -> Plan:
    """The plan with a pool of experts.

    count   entries of all experts
    chosen  entries that a token goes to in a layer
    """
    # Weights that every pass needs come first, but for what a layer's experts are read through.
    left = made.budget - made.besides
    working = of.whole * (chosen + 2)
    if working > left:
        working = of.least_slots * of.least
    pool = max(working, left - min(made.weights, left - working))
    room = of.whole
    slots = min(pool // room, count)
    if slots < min(chosen + 2, count):
        # Too little for whole experts: pieces of them, as large as leave the readers some room.
        room = max(of.least, min(ROOM, pool // (2 * of.least_slots)) // SECTOR * SECTOR)
        slots = max(of.least_slots, pool // room)
    return replace(
        made,
        expert_slots=slots,
        expert_room=room,
        experts_stored=of.nbytes,
        active=of.nbytes * shape.chosen // shape.experts,
        experts_share=slots / count if room >= of.whole else 0.0,
    )


def _nbytes_if_pinned(tensor: Tensor, room: int) -> int:
    """Bytes of a matrix that stays, cut into blocks of `room` bytes."""
    if tensor.blocks or len(tensor.parts) > 1:
        return sum(nbytes_if_pinned(block) for block in cut(tensor, room))
    return _kept_rows_nbytes(tensor.dtype, tensor.rows, tensor.cols, room)


@lru_cache(maxsize=1024)  # a 70B has 560 matrices in 34,000 blocks, and six shapes
def _kept_rows_nbytes(dtype: str, rows: int, cols: int, room: int) -> int:
    return sum(nbytes_if_pinned(block) for block in cut(whole("", dtype, (rows, cols)), room))


def _besides(plan: Plan) -> str:
    parts = ((name, getattr(plan, name)) for name in ("states", "experts", "drafter", "branches"))
    return "".join(f", {name} {mb(nbytes)}" for name, nbytes in parts if nbytes)


def _largest_layer(model: Described) -> int:
    """Stored bytes of the largest layer's matrices, experts not counted."""
    layers: dict[int, int] = {}
    for tensor in model_tensors(model.config):
        if tensor.layer is not None and tensor.expert is None and len(tensor.shape) > 1:
            layers[tensor.layer] = layers.get(tensor.layer, 0) + model.tensors[tensor.name].nbytes
    return max(layers.values())


def default_context(config: Config, budget: int, kv_dtype: str, most: int) -> int:
    """Positions for a context nobody asked a length for: `most`, or what an eighth of the budget holds, but 256."""
    context = min(most, config.usual_positions)
    while context > 256 and cache_nbytes(Shape.whole(config), context, kv_dtype) > budget // 8:
        context = max(256, context // 2)
    return context
