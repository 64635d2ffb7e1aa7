"""The memory of a pass: one table of widths, from which the buffers are made and their bytes are told.

The planner asks for the bytes before anything is loaded; the decoder makes the buffers. Knows sizes, no arithmetic.
"""

from collections.abc import Collection

import numpy as np

from pyllama import _kernels as kernels
from pyllama.decoder.shape import Shape

_FLOAT_NBYTES = 4
#: Tokens of passes before that layers with a state walk again, without new buffers.
WALKED_AGAIN = 16
#: Tokens whose own embeddings for each layer are read at once.
OWN_ROWS = 16


def widths(shape: Shape) -> dict[str, int]:
    """Buffer -> float32 columns of each token's row: the table."""
    return (
        {
            "x": shape.hidden_size,  # the residual stream
            "normed": shape.hidden_size,  # its RMSNorm, then what a block adds to it
            "q": shape.q_size,
            "attended": shape.q_size,
            "k": shape.kv_size,
            "v": shape.kv_size,
            "gate": shape.intermediate_size,
            "up": shape.intermediate_size,
        }
        | ({"q_gate": 2 * shape.q_size, "attention_gate": shape.q_size} if shape.gated else {})
        | _of_experts(shape)
        | _of_ranks(shape)
        | _of_each_layer(shape)
        | {f"{name}{rope}": dim // 2 for rope, dim in enumerate(shape.rotated) for name in ("cos", "sin")}
    )


def _of_experts(shape: Shape) -> dict[str, int]:
    if not shape.experts:
        return {}
    ranked, chosen = shape.ranked, shape.chosen
    return {
        "logits": shape.experts,  # the router's
        "gathered": shape.hidden_size,  # rows of the tokens that go to an expert
        # Of ranks, which put together what all experts' first matrices make: of all experts of a token.
        "expert_gate": shape.expert_size * (chosen if ranked else 1),
        "expert_up": shape.expert_size * (chosen if ranked else 1),
        # What the mlp beside them has made, and how much of it counts.
        **({"beside": shape.hidden_size, "shared_gate": 1} if shape.beside else {}),
        # What its experts make of a token, until all of them are done.
        "routed": chosen * (ranked.hidden if ranked else shape.hidden_size),
    }


def _of_ranks(shape: Shape) -> dict[str, int]:
    """Where the model is shared: what is put together of all ranks' pieces, and this one's piece of a block's sum."""
    if shape.ranked is None:
        return {}
    ranked = shape.ranked
    return {
        "all_attended": ranked.q,  # before that, where all heads are normed as one, the queries
        "all_keys": ranked.kv,
        "all_gate": ranked.inner,
        **({"all_expert_gate": shape.chosen * ranked.expert} if ranked.expert else {}),
        **({"all_recurred": ranked.recurred} if ranked.recurred else {}),
        **({"own_piece": ranked.own} if shape.per_layer_size else {}),
        "piece": ranked.hidden,
        # Pieces on their way.
        "staged": max(
            ranked.q,
            ranked.inner,
            shape.hidden_size,
            shape.chosen * ranked.expert,
            ranked.recurred,
            shape.layers * shape.per_layer_size,
        ),
    }


def _of_each_layer(shape: Shape) -> dict[str, int]:
    if not shape.per_layer_size:
        return {}
    return {
        "per_layer": shape.layers * shape.per_layer_size,  # what a token has for each layer, all in a row
        "own": shape.per_layer_size,  # of one layer
        "own_gate": shape.per_layer_size,
    }


def _widest_input(shape: Shape) -> int:
    """Columns of the widest activations that a matrix multiplies."""
    columns = widths(shape)
    names = ("normed", "attended", "gate", "own_gate", "all_attended", "all_gate", "all_recurred")
    widest = max(columns.get(name, 0) for name in names)
    expert = shape.ranked.expert if shape.ranked else shape.expert_size
    return max(widest, expert, dict(shape.recurrent).get("recurred", 0))


def buffers_nbytes(shape: Shape, tokens: int, dtypes: Collection[str]) -> int:
    """Bytes of Buffers for a pass of so many tokens through weights of these dtypes, and of a row of logits."""
    columns = tokens * sum(widths(shape).values()) + shape.vocab_size + OWN_ROWS * shape.layers * shape.per_layer_size
    columns += (tokens + WALKED_AGAIN) * sum(columns for _, columns in shape.recurrent)
    return _FLOAT_NBYTES * columns + kernels.input_nbytes(tokens, _widest_input(shape), dtypes)


class Buffers:
    """The activations of a pass, float32 (T, width) each, reused by every layer and every pass.

    rotations   cos and sin of the positions' angles, (T, rotated / 2) each, for each kind of rotation
    input       what products multiply, in the forms that the weights' formats take
    capacity    the largest T
    again       tokens beyond T that layers with a state have room for
    recordings  calls of kernels on these buffers, of a layer's number and T: what the decoder makes of them
    """

    x: kernels.Floats
    normed: kernels.Floats
    q: kernels.Floats
    attended: kernels.Floats
    k: kernels.Floats
    v: kernels.Floats
    gate: kernels.Floats
    up: kernels.Floats
    logits: kernels.Floats
    gathered: kernels.Floats
    expert_gate: kernels.Floats
    expert_up: kernels.Floats
    routed: kernels.Floats
    all_attended: kernels.Floats
    all_keys: kernels.Floats
    all_gate: kernels.Floats
    piece: kernels.Floats
    all_expert_gate: kernels.Floats
    all_recurred: kernels.Floats
    own_piece: kernels.Floats
    beside: kernels.Floats
    shared_gate: kernels.Floats
    q_gate: kernels.Floats
    attention_gate: kernels.Floats
    mixed: kernels.Floats
    convolved: kernels.Floats
    recurred: kernels.Floats
    z: kernels.Floats
    delta_a: kernels.Floats
    delta_b: kernels.Floats
    decay: kernels.Floats
    beta: kernels.Floats
    state_q: kernels.Floats
    state_k: kernels.Floats
    state_v: kernels.Floats
    per_layer: kernels.Floats
    own: kernels.Floats
    own_gate: kernels.Floats

    def __init__(self, shape: Shape, tokens: int, again: int = 0):
        self.again = max(again, WALKED_AGAIN)
        self._recurrent = {
            name: kernels.Floats(np.empty((tokens + self.again, columns), np.float32))
            for name, columns in shape.recurrent
        }
        self._all = {
            name: kernels.Floats(np.empty((tokens, columns), np.float32)) for name, columns in widths(shape).items()
        }
        for name, buffer in (self._all | self._recurrent).items():
            setattr(self, name, buffer)
        if shape.ranked is None:
            self.all_attended, self.all_keys, self.all_gate, self.piece = self.attended, self.k, self.gate, self.normed
        self.rotations = [(self._all[f"cos{rope}"], self._all[f"sin{rope}"]) for rope in range(len(shape.rotated))]
        self._narrower: dict[tuple[str, int], kernels.Floats] = {}
        self.recordings: dict[tuple[int, int], kernels.Recording] = {}
        self.input = kernels.Input(tokens, _widest_input(shape))
        self.capacity = tokens

    def resize(self, tokens: int) -> None:
        """Use the first rows only."""
        for buffer in (*self._all.values(), *self._narrower.values()):
            buffer.rows = tokens
        self.resize_recurrent(tokens)

    def resize_recurrent(self, tokens: int) -> None:
        """The same of what layers with a state compute, which have more of them: capacity + again."""
        for buffer in self._recurrent.values():
            buffer.rows = tokens

    def sized(self, name: str, cols: int) -> kernels.Floats:
        """A buffer's memory, as that of rows of so many columns: the buffer itself, but in layers that have fewer."""
        whole = self._all[name]
        if cols == whole.cols:
            return whole
        found = self._narrower.get((name, cols))
        if found is None:
            memory = whole.base.reshape(-1)[: self.capacity * cols]
            found = self._narrower[name, cols] = kernels.Floats(memory.reshape(self.capacity, cols))
            found.rows = whole.rows
        return found

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these tokens' rows, ascending, of what a layer begins with."""
        carried = [self.x, *(of for both in self.rotations for of in both)]
        carried += [self.per_layer] if "per_layer" in self._all else []
        for buffer in carried:
            buffer.array[: len(rows)] = buffer.array[rows]
        self.resize(len(rows))
