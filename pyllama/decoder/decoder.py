"""The transformer: a Pass of integers in, rows of logits out, once over the weights.

Thin on purpose: arithmetic is a kernel's (but sums and products of single elements), every weight comes from `Weights`,
in row blocks while it streams, and MODEL.md has the mathematics. `a` is the activations wherever it stands: the Buffers
of the pass. Knows neither files nor text nor sampling.
"""

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from pyllama import _kernels as kernels
from pyllama.architecture import Config, layers_of
from pyllama.architecture.config import QueryGrowth
from pyllama.architecture.layer import Attention, Beside, Experts, Shared
from pyllama.architecture.rope import frequencies
from pyllama.architecture.tensors import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    PER_LAYER_EMBEDDING,
    PER_LAYER_PROJECTION,
)
from pyllama.decoder.buffers import OWN_ROWS, Buffers
from pyllama.decoder.extending import Extender
from pyllama.decoder.kv_cache import KVCache
from pyllama.decoder.page_pool import PagePool
from pyllama.decoder.passes import Pass
from pyllama.decoder.prepared import (
    Columns,
    Matrices,
    PreparedLayer,
    PreparedNorm,
    PreparedOwn,
    attention_view,
    norm_vector,
)
from pyllama.decoder.ranks import Ranks, Rows, local_layers
from pyllama.decoder.routes import Routes
from pyllama.decoder.shape import Shape, kinds_of_rope
from pyllama.decoder.state_pool import StatePool
from pyllama.decoder.states import StateSteps
from pyllama.decoder.weights import DOWN, GATE, GATE_UP, UP, ExpertRows, Weights
from pyllama.errors import RequestError

MAX_PASS_TOKENS = 512
#: Of a pass whose calls are recorded, at most: those of more tokens take so long that Python's share is nothing.
REPEATED_TOKENS = 4
GUESS_TOKENS = 4  # of a pass, at most: more of them need most of a layer's experts

_Floats = np.ndarray | kernels.Floats


_HEAD = Matrices((HEAD,), (None,))
_PER_LAYER = Matrices((PER_LAYER_PROJECTION,), (None,))
_NO_WRITES = np.zeros((0, 2), np.int32)


def _computed_here(linear: Matrices, outs: tuple[_Floats, ...]) -> tuple[Matrices, tuple[_Floats, ...]]:
    """Without the matrices of which this rank has no rows."""
    columns = [out.cols if isinstance(out, kernels.Floats) else out.shape[1] for out in outs]
    if all(columns):
        return linear, outs
    kept = [i for i, count in enumerate(columns) if count]
    return Matrices(tuple(linear.names[i] for i in kept), tuple(linear.biases[i] for i in kept)), tuple(
        outs[i] for i in kept
    )


class _Routed(NamedTuple):
    """Where a layer's tokens go, and (expert, its rows) of each that is needed, in the order in which they come."""

    routes: Routes
    coming: Iterable[tuple[int, Iterable[ExpertRows]]]


def _rows_of(x: kernels.Floats, tokens: np.ndarray, a: Buffers) -> kernels.Floats:
    """The rows of x that these tokens have, in `gathered` where they are not all."""
    if len(tokens) == x.rows:
        return x
    a.gathered.rows = len(tokens)
    np.take(x.array, tokens, axis=0, out=a.gathered.array, mode="clip")
    return a.gathered


def _growth(growth: QueryGrowth, positions: np.ndarray) -> np.ndarray:
    """What each token's query is multiplied by, float32 (T, 1): float64, rounded once.

    Logarithms come from decimal, as rotary frequencies do: libm's last bit differs between machines.
    """
    steps, of = np.unique(positions // growth.original, return_inverse=True)
    factors = [1.0 + growth.beta * float(Decimal(1 + int(step)).ln()) for step in steps]
    return np.array(factors, np.float32)[of].reshape(-1, 1)


class Decoder(Extender):
    """A model that is ready to run.

    config           the model's hyperparameters
    weights          its weights (weights.py)
    context_length   positions a sequence can hold
    kv_dtype         "f16" or "f32": how keys and values are kept
    max_pass_tokens  tokens that one pass takes at most; prefill() cuts longer prompts
    rope_interleaved whether q and k rows lie in interleaved RoPE order (Meta, GGUF of the llama family)
    passes           passes over the weights so far
    on_layer         None, or called with the number of each layer before it runs; what it raises ends the pass
    on_input         None, or called with the names of matrices and the rows, float32 (T, cols), that they are about to
                     be multiplied with, which are not the caller's to keep
    shape            how much of the model is computed here
    ranks            with whom the rest is shared, or None
    cache            whose positions lie in which pages
    states           memory of what layers carry from token to token, or None where none does
    """

    def __init__(
        self,
        config: Config,
        weights: Weights,
        *,
        context_length: int,
        kv_dtype: str = "f16",
        max_pass_tokens: int = MAX_PASS_TOKENS,
        rope_interleaved: bool = False,
        on_layer: Callable[[int], None] | None = None,
        ranks: Ranks | None = None,
    ):
        if context_length < 1:
            raise RequestError(f"context_length: got {context_length}, expected at least 1")
        if max_pass_tokens < 1:
            raise RequestError(f"max_pass_tokens: got {max_pass_tokens}, expected at least 1")
        self.config = config
        self.shape = shape = Shape.whole(config) if ranks is None else Shape.of_share(config, ranks.share)
        self.ranks = ranks
        self.weights: Weights = weights
        self.context_length = context_length
        self.max_pass_tokens = min(max_pass_tokens, context_length)
        self.rope_interleaved = rope_interleaved
        self.passes = 0
        self.on_layer = on_layer
        self.on_input: Callable[[tuple[str, ...], np.ndarray], None] | None = None
        whole = layers_of(config)
        layers = whole if ranks is None else local_layers(whole, ranks.share)
        attending = [(layer, layer.mixer) for layer in layers if isinstance(layer.mixer, Attention)]
        self._pool = PagePool(shape, [attention_view(layer, mixer, weights) for layer, mixer in attending], kv_dtype)
        self.states = StatePool(shape, layers) if shape.state_floats else None
        self.cache = KVCache(self._pool, context_length, self.states)
        kinds = {rope: number for number, rope in enumerate(kinds_of_rope(layers))}
        self._ropes = [frequencies(rope) for rope in kinds]
        names = [layer.name for layer, _ in attending]
        kernels_of = dict(zip(names, self._pool.attention, strict=True))
        ropes = {layer.name: kinds[mixer.rope] for layer, mixer in attending if mixer.rope}
        self._layers = [
            PreparedLayer(
                number, layer, weights, kernels_of.get(layer.name), ropes.get(layer.name), config.rms_norm_eps
            )
            for number, layer in enumerate(layers)
        ]
        shares = () if ranks is None else ranks.shares
        self._columns = [Columns.of(number, layer, shares) for number, layer in enumerate(whole)] if shares else []
        self._hidden: list[Rows] = [(share.hidden,) for share in shares]
        final = norm_vector(weights, FINAL_NORM, config.norm_plus_one)
        self._norm = PreparedNorm(final, config.hidden_size, config.rms_norm_eps)
        self._embedding_scale = np.array([config.embedding_scale], np.float32)
        self._per_layer = PreparedOwn(config, weights) if config.hidden_size_per_layer_input else None
        self._first_repeatable = next((layer for layer in self._layers if layer.repeatable), None)
        self._first_without_keys = config.num_hidden_layers - config.num_kv_shared_layers
        self._logits_scale = np.array([1 / config.logits_scale], np.float32)
        self._buffers = Buffers(shape, 1)

    def run(self, planned: Pass, on_layer: Callable[[int], None] | None = None, hidden: bool = False) -> np.ndarray:
        """As Extender.run(). Needs nothing but the pass and those before it: the sequences they were built from may
        live elsewhere. Of several ranks only the first returns logits, the others none."""
        self._pool.grow(planned.page_count)
        for source, target in planned.copies:  # first: whatever fails later, they have been made
            self._pool.copy(source, target)
        tokens = len(planned.token_ids)
        again = len(planned.steps.gathered) if planned.steps else 0
        if tokens > self._buffers.capacity or again > self._buffers.again:
            self._buffers = Buffers(self.shape, max(tokens, self._buffers.capacity), max(again, self._buffers.again))
        a = self._buffers
        a.resize(tokens)
        where = kernels.Batch(self._pool.addresses, planned.pages, planned.positions, planned.sequences, planned.writes)

        walk = None
        if self.states is not None:
            if planned.steps is None:  # layers left out would be a wrong answer
                raise RequestError("forward: a pass without what layers with a state do in it")
            self.states.grow(planned.steps.slot_count, planned.steps.row_count)
            walk = self.states.walk(planned.steps)

        self._embed(EMBEDDING, planned.token_ids, a.x.array)
        if self.config.embedding_scale != 1:
            kernels.scale(a.x, self._embedding_scale, a.x)
        if self._per_layer:
            self._per_layer_inputs(self._per_layer, planned.token_ids)
        growths = {layer.growth for layer in self._layers if layer.growth}
        growing = {growth: _growth(growth, planned.positions) for growth in growths}
        for (inv_freq, scale), (cos, sin) in zip(self._ropes, a.rotations, strict=True):
            kernels.rope_table(planned.positions, inv_freq, scale, cos, sin)
        repeated = self._repeats(tokens)
        for i, layer in enumerate(self._layers):
            for told in (self.on_layer, on_layer):
                if told:
                    told(i)
            if i == self._first_without_keys and len(planned.rows) < tokens:
                # From here on nobody reads what a token leaves behind: those whose logits are not wanted are done.
                rows = planned.rows
                a.keep(rows)
                growing = {growth: factors[rows] for growth, factors in growing.items()}
                where = kernels.Batch(
                    self._pool.addresses, planned.pages, planned.positions[rows], planned.sequences[rows], _NO_WRITES
                )
            if repeated and layer.repeatable:
                self._repeat(layer, where)
                continue
            if not layer.recurrent:
                self._attention_block(layer, where, growing.get(layer.growth) if layer.growth else None)
            else:
                self._recurrent_block(layer, planned.steps, walk)
            if layer.experts is None:
                self._mlp_block(layer)
            elif layer.beside is None:
                self._experts_block(layer, layer.experts)
            elif isinstance(layer.beside, Shared):
                self._shared_block(layer, layer.experts)
            else:
                self._both_blocks(layer, layer.experts)
            if layer.own:
                self._own_block(layer)
            self._scaled(layer)

        x: np.ndarray = a.x.array[planned.rows] if a.x.rows == tokens else a.x.array.copy()
        self._norm.apply(x, x)
        self.passes += 1
        if hidden:
            if self.ranks is not None:  # as with logits: all of them end the pass together
                self.ranks.collect([range(0)] * len(self.ranks.shares), x[:, :0], None)
            return x
        out = np.empty((len(x), self.shape.vocab_size), np.float32)
        self._linear(_HEAD, x, (out,))
        if self.config.logits_scale != 1 and out.size:
            kernels.scale(out, self._logits_scale, out)
        if self.config.logits_softcap and out.size:
            kernels.softcap(out, self.config.logits_softcap, out)
        return out if self.ranks is None else self._all_logits(self.ranks, out)

    def _repeats(self, tokens: int) -> bool:
        """Whether a layer does in every pass of so many tokens what it did in the first, but for what buffers hold."""
        if tokens > REPEATED_TOKENS or self.ranks is not None or self.on_input is not None:
            return False
        first = self._first_repeatable
        return first is not None and self.weights.resident(*first.down.names) is not None

    def _repeat(self, layer: PreparedLayer, where: "kernels.Batch") -> None:
        """A layer of attention and an MLP whose weights are in memory: its calls, as an earlier pass recorded them."""
        a = self._buffers
        made = a.recordings.get((layer.number, a.x.rows))
        if made is not None:
            made.replay(where)
            return
        with kernels.Recording() as made:
            self._attention_block(layer, where, None)
            self._mlp_block(layer)
            self._scaled(layer)
        a.recordings[layer.number, a.x.rows] = made

    def _scaled(self, layer: PreparedLayer) -> None:
        a = self._buffers
        if layer.scalar is not None:
            kernels.scale(a.x, layer.scalar, a.x)

    def _all_logits(self, ranks: Ranks, piece: np.ndarray) -> np.ndarray:
        rows = (len(piece), self.config.vocab_size) if ranks.rank == 0 else (0, self.config.vocab_size)
        out = np.empty(rows, np.float32)
        ranks.collect([share.vocab for share in ranks.shares], piece, out if ranks.rank == 0 else None)
        return out

    def _embed(self, name: str, token_ids: np.ndarray, out: np.ndarray) -> None:
        """out[t] = row token_ids[t] of an embedding."""
        if self.ranks is None:
            self.weights.embedding(name, token_ids, out)
        else:
            self.ranks.embed(self.weights, name, token_ids, out)

    def _project(self, linear: Matrices, x: kernels.Floats) -> None:
        """normed = linear(x), what a block adds: put together of all ranks' rows of it."""
        a = self._buffers
        self._linear(linear, x, (a.piece,))
        if self.ranks is not None:
            self.ranks.gather(self._hidden, a.piece, a.normed)

    def _per_layer_inputs(self, of: PreparedOwn, token_ids: np.ndarray) -> None:
        """per_layer = (RMSNorm(projection(x) / sqrt(hidden_size)) + own * sqrt(size)) / sqrt(2)

        own is the token's row of the embedding for all layers.
        """
        a = self._buffers
        if self.ranks is None:
            self._linear(_PER_LAYER, a.x, (a.per_layer,))
        else:
            self._linear(_PER_LAYER, a.x, (a.own_piece,))
            self.ranks.gather([(share.per_layer,) for share in self.ranks.shares], a.own_piece, a.per_layer)
        kernels.scale(a.per_layer, of.projection_scale, a.per_layer)
        of.norm.apply(a.per_layer, a.per_layer)
        for start in range(0, len(token_ids), OWN_ROWS):
            ids = token_ids[start : start + OWN_ROWS]
            made, rows = kernels.Floats(a.per_layer.array[start : start + len(ids)]), of.rows
            rows.rows = len(ids)
            self._embed(PER_LAYER_EMBEDDING, ids, rows.array)
            kernels.scale(rows, of.embedding_scale, rows)
            kernels.add(made, rows, made)
        kernels.scale(a.per_layer, of.scale, a.per_layer)

    def _attention_block(self, layer: PreparedLayer, where: "kernels.Batch", growing: np.ndarray | None) -> None:
        """x += o_proj(attention(rope(q), rope(k), v)) of RMSNorm(x); as in Llama

        growing  what each token's query is multiplied by, (T, 1), or None
        """
        a = self._buffers
        q, attended = a.sized("q", layer.q_size), a.sized("attended", layer.q_size)
        k, v = a.sized("k", layer.kv_size), a.sized("v", layer.kv_size)
        asked = a.sized("q_gate", 2 * layer.q_size) if layer.gated else q
        outs = (asked, k, v) if layer.has_values else (asked, k) if layer.has_keys else (asked,)
        self._linear(layer.before, self._normed(layer.mixer_norm), outs)
        if layer.gated:
            shape = asked.rows, layer.heads, layer.head_dim
            parted = asked.array.reshape(*shape[:2], 2, layer.head_dim)  # (T, H, 2, D)
            gate = a.sized("attention_gate", layer.q_size)
            for part, out in enumerate((q, gate)):
                np.copyto(out.array.reshape(shape), parted[:, :, part])
        if layer.v_norm is not None and v.cols:
            layer.v_norm.apply(v if layer.has_values else k, v)
        columns = self._columns[layer.number] if self.ranks is not None else None
        if layer.q_norm is not None:
            whole = a.sized("all_attended", columns.q_size) if columns else q
            self._norm_heads(layer, layer.q_norm, q, columns.made if columns else [], whole)
        if layer.k_norm is not None:
            whole = a.sized("all_keys", columns.kv_size) if columns else k
            self._norm_heads(layer, layer.k_norm, k, columns.kv if columns else [], whole)
        if layer.attention is not None:
            self._attend(layer, layer.attention, (q, k, v, attended), where, growing)
        if layer.gated:
            kernels.sigmoid_gate(attended, gate, attended)
        whole = attended
        if self.ranks is not None and columns:
            whole = a.sized("all_attended", columns.q_size)
            self.ranks.gather(columns.made, attended, whole)
        self._project(layer.after, whole)
        self._add(layer, layer.mixer_post_norm)

    def _norm_heads(
        self, layer: PreparedLayer, norm: PreparedNorm, x: kernels.Floats, columns: list[Rows], whole: kernels.Floats
    ) -> None:
        """RMSNorm of each head, or of all heads as one: then of those that other ranks have, too, in `whole`."""
        if self.ranks is None or norm.cols == layer.head_dim:
            if x.cols:
                norm.apply(x, x)
            return
        self.ranks.gather(columns, x, whole)
        norm.apply(whole, whole)
        (own,) = columns[self.ranks.rank]
        x.array[:] = whole.array[:, own.start : own.stop]

    def _attend(
        self, layer: PreparedLayer, attention: "kernels.Attention", buffers: tuple[kernels.Floats, ...],
        where: "kernels.Batch", growing: np.ndarray | None,
    ) -> None:  # fmt: skip
        """attended = attention(rope(q), rope(k), v); buffers: of these, q, k, v and attended"""
        a = self._buffers
        q, k, v, attended = buffers
        turned = [(q, layer.heads), (k, layer.kv_heads)][: 2 if layer.has_keys else 1]
        if layer.rope is not None:
            cos, sin = a.rotations[layer.rope]
            for of, heads in turned:
                kernels.rope(of, cos, sin, heads, self.rope_interleaved)
        elif self.rope_interleaved:  # rotated by nothing: what puts their elements in the order of the other form
            one = np.ones((q.rows, layer.head_dim // 2), np.float32)
            for of, heads in turned:
                kernels.rope(of, one, np.zeros_like(one), heads, True)
        if growing is not None:
            kernels.scale(q, growing, q)
        if layer.has_keys:
            attention.append(where, k, v)
        attention.attend(where, q, attended)

    def _recurrent_block(self, layer: PreparedLayer, steps: StateSteps | None, walk: "kernels.Walk | None") -> None:
        """x += out_proj(what the layer's state and RMSNorm(x) make); as in LFM2 and Qwen3.5"""
        a = self._buffers
        made = a.recurred
        if layer.recurrence is not None and self.states is not None and steps is not None and walk is not None:
            self._linear(layer.before, self._normed(layer.mixer_norm), layer.recurrence.before(a))
            made = layer.recurrence.walk(a, steps, self.states, walk)
        whole = made
        if self.ranks is not None:
            whole = a.all_recurred
            self.ranks.gather(self._columns[layer.number].made, made, whole)
        self._project(layer.after, whole)
        self._add(layer, layer.mixer_post_norm)

    def _mlp_block(self, layer: PreparedLayer) -> None:
        """x += down_proj(activation(gate_proj(h)) * up_proj(h)), h = RMSNorm(x); as in Llama"""
        self._mlp(layer)
        self._add(layer, layer.mlp_post_norm)

    def _mlp(self, layer: PreparedLayer) -> None:
        a = self._buffers
        gate, up = a.sized("gate", layer.inner), a.sized("up", layer.inner)
        self._linear(layer.gate_up, self._normed(layer.mlp_norm), (gate, up))
        if gate.cols:
            layer.activation(gate, up, gate)
        whole = gate
        if self.ranks is not None:
            whole = a.sized("all_gate", self._columns[layer.number].inner_size)
            self.ranks.gather(self._columns[layer.number].inner, gate, whole)
        self._project(layer.down, whole)

    def _own_block(self, layer: PreparedLayer) -> None:
        """x += RMSNorm(projection(gelu(gate(x)) * what the token has for this layer)); as in Gemma 4 E2B"""
        a = self._buffers
        size = a.own.cols
        np.copyto(a.own.array, a.per_layer.array[:, layer.number * size : (layer.number + 1) * size])
        self._linear(layer.own_gate, a.x, (a.own_gate,))
        kernels.geglu(a.own_gate, a.own, a.own_gate)
        self._linear(layer.own_projection, a.own_gate, (a.normed,))
        self._add(layer, layer.own_norm)

    def _normed(self, norm: PreparedNorm | None) -> "kernels.Floats":
        """What a block takes: RMSNorm(x), or x itself where there is no norm before it."""
        a = self._buffers
        if norm is None:
            return a.x
        norm.apply(a.x, a.normed)
        return a.normed

    def _add(self, layer: PreparedLayer, norm: PreparedNorm | None) -> None:
        """x += residual_scale * RMSNorm(y), y what a block has put into `normed`; without a norm, of y itself."""
        a = self._buffers
        if norm is not None:
            norm.apply(a.normed, a.normed)
        kernels.add(a.x, a.normed, a.x, layer.residual_scale)

    def _experts_block(self, layer: PreparedLayer, experts: Experts) -> None:
        """x += the weighted sum of what the experts that a token is routed to make of h = RMSNorm(x); as in Mixtral"""
        a = self._buffers
        x = self._normed(layer.mlp_norm)
        self._linear(layer.router, x, (a.logits,))
        self._experts(layer, experts, self._routed(layer, experts), x)
        self._add(layer, layer.mlp_post_norm)

    def _shared_block(self, layer: PreparedLayer, experts: Experts) -> None:
        """x += the weighted sum of the experts + mlp(h) / (1 + exp(-gate(h))), h = RMSNorm(x); as in Qwen3.5 35B-A3B

        What is missing of the experts is read while the mlp, which all tokens go through, is computed.
        """
        a = self._buffers
        x = self._normed(layer.mlp_norm)
        self._linear(layer.router, x, (a.logits,))
        routed = self._routed(layer, experts)
        share = np.ones((x.rows, 1), np.float32)
        self._linear(layer.shared_gate, x, (a.shared_gate,))
        kernels.sigmoid_gate(share, a.shared_gate, share)
        self._mlp(layer)
        kernels.scale(a.normed, share, a.beside)
        self._experts(layer, experts, routed, self._normed(layer.mlp_norm))
        kernels.add(a.normed, a.beside, a.normed)
        self._add(layer, layer.mlp_post_norm)

    def _both_blocks(self, layer: PreparedLayer, experts: Experts) -> None:
        """x += RMSNorm(RMSNorm(mlp(RMSNorm(x))) + RMSNorm(experts(RMSNorm(x)))); as in Gemma 4 26B-A4B

        The router gets x, normed without a weight, * router_scale / sqrt(hidden_size).
        """
        a = self._buffers
        self._mlp(layer)
        layer.beside_mlp_norm.apply(a.normed, a.beside)
        self._router_input(layer, a.normed)
        self._linear(layer.router, a.normed, (a.logits,))
        x = self._normed(layer.beside_norm)
        self._experts(layer, experts, self._routed(layer, experts), x)
        layer.beside_post_norm.apply(a.normed, a.normed)
        kernels.add(a.beside, a.normed, a.normed)
        self._add(layer, layer.mlp_post_norm)

    def _router_input(self, layer: PreparedLayer, out: "kernels.Floats") -> None:
        layer.router_norm.apply(self._buffers.x, out)
        kernels.scale(out, layer.router_scale, out)

    def _routed(self, layer: PreparedLayer, experts: Experts) -> _Routed:
        """Which tokens go where by the router's logits, and the experts that are needed, asked for."""
        a = self._buffers
        routes = Routes.of(a.logits, experts, scales=layer.expert_scale, bias=layer.expert_bias)
        which = None if self.ranks is None else GATE_UP
        coming = self.weights.experts(layer.number, routes.experts, routes.counts, which) if experts.gate.rows else ()
        if a.logits.rows <= GUESS_TOKENS and self.weights.guesses_help:
            self._guess(layer.number + 1)  # while what was asked for is on its way
        return _Routed(routes, coming)

    def _experts(self, layer: PreparedLayer, experts: Experts, routed: _Routed, x: "kernels.Floats") -> None:
        """normed = the weighted sum of what the experts with the largest logits make of x

        Each expert that is needed comes once, in whatever order it is at hand, for all tokens that go to it. What it
        makes of them waits in `routed`, so that every token's sum is in ascending order of the experts' numbers.
        """
        a = self._buffers
        if self.ranks is not None:
            self._ranked_experts(self.ranks, layer, experts, routed, x)
            return
        routes = routed.routes
        made = a.routed.array.reshape(-1, self.shape.hidden_size)  # (T * chosen, hidden): row routes.rows[t, i]
        for expert, coming in routed.coming:
            tokens, rows = routes.of_expert(expert)
            self._expert(layer, experts, expert, coming, x, tokens, made[rows])
        kernels.mix(made, routes.rows, routes.weights, a.normed)

    def _ranked_experts(
        self,
        ranks: Ranks,
        layer: PreparedLayer,
        experts: Experts,
        routed: _Routed,
        x: "kernels.Floats",
    ) -> None:
        """The same, where each rank has some rows of every expert's matrices: what the first two make of all tokens is
        put together before the last ones, and every rank mixes the columns that it has."""
        a = self._buffers
        routes, rows, inner = routed.routes, x.rows * experts.chosen, experts.gate.rows
        gates, ups = (of.array.reshape(rows, inner) for of in (a.expert_gate, a.expert_up))
        if inner:
            for expert, coming in routed.coming:
                tokens, of = routes.of_expert(expert)
                gate, up = kernels.Floats(gates[of]), kernels.Floats(ups[of])
                taken = a.input.take(_rows_of(x, tokens, a))
                for which, row, block in coming:
                    if which == GATE_UP:
                        kernels.matmul(block, taken, (gate, up))
                    else:
                        kernels.matmul(block, taken, gate if which == GATE else up, row)
            self._add_biases(layer, routes, ((GATE, gates), (UP, ups)))
            self._activate(layer, experts, kernels.Floats(gates), kernels.Floats(ups))
        whole = a.all_expert_gate.array.reshape(rows, -1)
        ranks.gather(self._columns[layer.number].expert, kernels.Floats(gates), kernels.Floats(whole))
        if a.piece.cols:
            sums = a.routed.array.reshape(rows, a.piece.cols)
            for expert, coming in self.weights.experts(layer.number, routes.experts, routes.counts, DOWN):
                of = routes.of_expert(expert)[1]
                made, taken = kernels.Floats(sums[of]), a.input.take(whole[of])
                for _, row, block in coming:
                    kernels.matmul(block, taken, made, row)
            self._add_biases(layer, routes, ((DOWN, sums),))
            kernels.mix(sums, routes.rows, routes.weights, a.piece)
        ranks.gather(self._hidden, a.piece, a.normed)

    @staticmethod
    def _add_biases(layer: PreparedLayer, routes: Routes, to: Iterable[tuple[int, np.ndarray]]) -> None:
        """To what each expert's matrices made of its tokens, in the rows that these have."""
        biases = layer.biases
        if biases is None:
            return
        for expert in routes.experts:
            for which, made in to:
                out = kernels.Floats(made[routes.of_expert(expert)[1]])
                kernels.add(out, biases[expert][which], out)

    @staticmethod
    def _activate(layer: PreparedLayer, experts: Experts, gate: "kernels.Floats", up: "kernels.Floats") -> None:
        """gate = what an expert's last matrix takes"""
        if experts.limit:
            kernels.clamped_swiglu(gate, up, experts.alpha, experts.limit, gate)
        else:
            layer.expert_activation(gate, up, gate)

    def _guess(self, number: int) -> None:
        """Tell which experts a layer will need if its mixer changes little: those its router gives to x as it is."""
        a = self._buffers
        layer = self._layers[number] if number < len(self._layers) else None
        if layer is None or layer.experts is None:
            return
        router = self.weights.pinned(layer.router.names[0])
        if router is None:
            return
        x, logits = a.x, np.empty((a.x.rows, layer.experts.count), np.float32)
        if isinstance(layer.beside, Beside):
            a.gathered.rows = x.rows
            self._router_input(layer, a.gathered)
            x = a.gathered
        elif layer.mlp_norm is not None:
            a.gathered.rows = x.rows
            layer.mlp_norm.apply(x, a.gathered)
            x = a.gathered
        kernels.matmul(router, x, logits)
        (bias,) = layer.router.biases
        if bias is not None:
            kernels.add(logits, bias, logits)
        if layer.expert_bias is not None:
            logits = 1 / (1 + np.exp(-np.clip(logits, -60, 60))) + layer.expert_bias
        ids = np.argsort(-logits.max(axis=0), kind="stable")  # one token's best counts as much as another's
        self.weights.guess(number, ids[: layer.experts.chosen * len(logits)].tolist())

    def _expert(
        self, layer: PreparedLayer, experts: Experts, number: int, coming: Iterable[ExpertRows],
        x: "kernels.Floats", tokens: np.ndarray, out: np.ndarray,
    ) -> None:  # fmt: skip
        """out = down(activation(gate(h)) * up(h)) of one expert, for the rows of x that these tokens have."""
        a = self._buffers
        count = len(tokens)
        for buffer in (a.expert_gate, a.expert_up):
            buffer.rows = count
        x = _rows_of(x, tokens, a)
        gate, up, made = a.expert_gate, a.expert_up, kernels.Floats(out)
        biases = layer.biases[number] if layer.biases else None
        one = experts.expert(number) if self.on_input else None
        if self.on_input and one:
            self.on_input(tuple(f"{layer.name}{of.name}.weight" for of in (one.gate, one.up)), x.array)
        taken, activated = a.input.take(x), False
        for which, row, block in coming:
            if which == GATE_UP:
                kernels.matmul(block, taken, (gate, up))
            elif which == DOWN:
                if not activated:
                    if biases:
                        kernels.add(gate, biases[GATE], gate)
                        kernels.add(up, biases[UP], up)
                    self._activate(layer, experts, gate, up)
                    if self.on_input and one:
                        self.on_input((f"{layer.name}{one.down.name}.weight",), gate.array)
                    taken, activated = a.input.take(gate), True
                kernels.matmul(block, taken, made, row)
            else:
                kernels.matmul(block, taken, gate if which == GATE else up, row)
        if biases:
            kernels.add(made, biases[DOWN], made)

    def _linear(self, linear: Matrices, x: _Floats, outs: tuple[_Floats, ...]) -> None:
        """out = x @ w.T + bias for each matrix and its out: in one call if they are in memory, else block by block."""
        if self.on_input:
            self.on_input(linear.names, x.array if isinstance(x, kernels.Floats) else x)
        if self.ranks is not None:
            linear, outs = _computed_here(linear, outs)
            if not outs:
                return
        taken = self._buffers.input.take(x)
        blocks = self.weights.resident(*linear.names)
        if blocks is not None:
            kernels.matmul(blocks, taken, outs)
        else:
            for name, out in zip(linear.names, outs, strict=True):
                for row, block in self.weights.blocks(name):
                    kernels.matmul(block, taken, out, row)
        for bias, out in zip(linear.biases, outs, strict=True):
            if bias is not None:
                kernels.add(out, bias, out)
