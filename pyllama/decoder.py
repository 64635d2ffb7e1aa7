"""The transformer: tokens of any number of sequences in, logits out, one pass over the weights.

Thin on purpose: every line of arithmetic is a kernel's, every weight comes from `Weights`, in row blocks while it
streams, and MODEL.md has the mathematics. Knows neither files nor text nor sampling.
"""

from collections.abc import Callable
from collections.abc import Sequence as Tokens
from typing import NamedTuple

import numpy as np

from . import _kernels as kernels
from .config import Config
from .errors import RequestError
from .kv_cache import KVCache, Sequence
from .rope import frequencies
from .weights import HEAD, Weights

MAX_PASS_TOKENS = 512


class _Linear(NamedTuple):
    """Matrices that multiply the same input, and what is added to each product."""

    names: tuple[str, ...]
    biases: "tuple[kernels.Floats | None, ...]"


_HEAD = _Linear((HEAD,), (None,))


class _Layer:
    """Names and small vectors of one layer, looked up once."""

    def __init__(self, i: int, config: Config, weights: Weights, attention: "kernels.Attention"):
        at = f"model.layers.{i}."

        def vector(name: str, wanted: bool = True):
            return kernels.Floats(weights.vector(at + name)) if wanted else None

        def linear(of: str, names: tuple[str, ...], bias: bool) -> _Linear:
            names = tuple(f"{of}.{name}_proj" for name in names)
            return _Linear(
                tuple(f"{at}{name}.weight" for name in names), tuple(vector(f"{name}.bias", bias) for name in names)
            )

        self.attention = attention
        self.input_norm = vector("input_layernorm.weight")
        self.post_norm = vector("post_attention_layernorm.weight")
        self.q_norm = vector("self_attn.q_norm.weight", config.qk_norm)
        self.k_norm = vector("self_attn.k_norm.weight", config.qk_norm)
        self.qkv = linear("self_attn", ("q", "k", "v"), config.qkv_bias)
        self.o = linear("self_attn", ("o",), config.o_bias)
        self.gate_up = linear("mlp", ("gate", "up"), config.mlp_bias)
        self.down = linear("mlp", ("down",), config.mlp_bias)


def activation_nbytes(config: Config, tokens: int) -> int:
    """Bytes of a pass's buffers: those of _Activations, the packed input of the widest product, a row of logits."""
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    widest = max(config.intermediate_size, config.hidden_size, q)
    buffers = 2 * config.hidden_size + 2 * q + 2 * kv + 2 * config.intermediate_size + config.head_dim
    return 4 * (tokens * (buffers + (widest if tokens > 1 else 0)) + config.vocab_size)


class _Activations:
    """The float32 buffers of a pass, each (T, width), reused by every layer and every pass."""

    def __init__(self, config: Config, tokens: int):
        q = config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim

        def buffer(width: int) -> kernels.Floats:
            return kernels.Floats(np.empty((tokens, width), np.float32))

        self.x = buffer(config.hidden_size)  # the residual stream
        self.normed = buffer(config.hidden_size)  # its RMSNorm, then what a block adds to it
        self.q, self.attended = buffer(q), buffer(q)
        self.k, self.v = buffer(kv), buffer(kv)
        self.gate, self.up = buffer(config.intermediate_size), buffer(config.intermediate_size)
        self.cos, self.sin = buffer(config.head_dim // 2), buffer(config.head_dim // 2)

    def resize(self, tokens: int) -> None:
        for buffer in vars(self).values():
            buffer.rows = tokens

    @property
    def capacity(self) -> int:
        return self.x.capacity


class Decoder:
    """A model that is ready to run.

    config           the model's hyperparameters
    weights          its weights (weights.py)
    context_length   positions a sequence can hold
    kv_dtype         "f16" or "f32": how keys and values are kept
    max_pass_tokens  tokens that one pass takes at most; prefill() cuts longer prompts
    rope_interleaved whether q and k rows lie in interleaved RoPE order (Meta, GGUF of the llama family)
    passes           passes over the weights so far
    on_layer         None, or called with the number of each layer before it runs; what it raises ends the pass
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
    ):
        if context_length < 1:
            raise RequestError(f"context_length: got {context_length}, expected at least 1")
        if max_pass_tokens < 1:
            raise RequestError(f"max_pass_tokens: got {max_pass_tokens}, expected at least 1")
        self.config = config
        self.weights = weights
        self.context_length = context_length
        self.max_pass_tokens = min(max_pass_tokens, context_length)
        self.rope_interleaved = rope_interleaved
        self.passes = 0
        self.on_layer: Callable[[int], None] | None = None
        self.cache = KVCache(config, context_length, kv_dtype)
        self._inv_freq, self._rope_scale = frequencies(config)
        self._layers = [_Layer(i, config, weights, attention) for i, attention in enumerate(self.cache.attention)]
        self._norm = kernels.Floats(weights.vector("model.norm.weight"))
        self._activations = _Activations(config, 1)

    def new_sequence(self) -> Sequence:
        """An empty sequence; close() it to give its pages back."""
        return self.cache.new_sequence()

    def prefill(self, sequence: Sequence, token_ids: Tokens[int]) -> np.ndarray:
        """Append token_ids to the sequence in as few passes as possible; logits (vocab_size,) of the last."""
        if not len(token_ids):
            raise RequestError("prefill: no tokens, expected at least one")
        for start in range(0, len(token_ids), self.max_pass_tokens):
            logits = self.forward([(sequence, token_ids[start : start + self.max_pass_tokens])])
        return logits[0]

    def forward(
        self, batch: Tokens[tuple[Sequence, Tokens[int]]], logits: str | Tokens[int] = "last"
    ) -> np.ndarray:
        """Append each segment's tokens to its sequence, all in one pass over the weights.

        batch   (sequence, token ids) segments, no sequence twice; at most max_pass_tokens tokens in all
        logits  "last": a row per segment, for its last token; "all": a row per token; or how many of each segment's
                last tokens get a row

        Returns float32 (rows, vocab_size), the caller's to keep. Raises ContextOverflowError for a sequence
        that cannot hold its tokens and RequestError for anything else amiss; then, and when a pass fails
        half-way, no sequence has changed its length.
        """
        tokens = self._check(batch, logits)
        for sequence, ids in batch:
            sequence.reserve(sequence.length + len(ids))
        try:
            out = self._pass(batch, tokens, logits)
        except BaseException:
            for sequence, _ in batch:
                sequence.release_unused()
            raise
        for sequence, ids in batch:
            sequence.length += len(ids)
        self.passes += 1
        return out

    def _check(self, batch, logits: str | Tokens[int]) -> int:
        if isinstance(logits, str) and logits not in ("last", "all"):
            raise RequestError(f"logits: got {logits!r}, expected 'last' or 'all'")
        if not batch or not all(len(ids) for _, ids in batch):
            raise RequestError("forward: a segment without tokens, expected at least one token each")
        if len({id(sequence) for sequence, _ in batch}) != len(batch):
            raise RequestError("forward: a sequence appears twice in one pass")
        tokens = sum(len(ids) for _, ids in batch)
        if tokens > self.max_pass_tokens:
            raise RequestError(f"forward: {tokens} tokens in one pass, expected at most {self.max_pass_tokens}")
        for _, ids in batch:
            low, high = min(ids), max(ids)
            if low < 0 or high >= self.config.vocab_size:
                bad = low if low < 0 else high
                raise RequestError(f"token id {bad}, expected 0 to {self.config.vocab_size - 1}")
        return tokens

    def _pass(self, batch, tokens: int, logits: str | Tokens[int]) -> np.ndarray:
        if tokens > self._activations.capacity:
            self._activations = _Activations(self.config, tokens)
        a = self._activations
        a.resize(tokens)
        if len(batch) == 1:
            sequence, ids = batch[0]
            token_ids, pages = np.asarray(ids, np.int64), sequence.table
            positions = np.arange(sequence.length, sequence.length + tokens, dtype=np.int64)
            owners = np.zeros(tokens, np.int32)
        else:
            token_ids = np.concatenate([np.asarray(ids, np.int64) for _, ids in batch])
            pages = np.concatenate([sequence.table for sequence, _ in batch])
            positions = np.concatenate([np.arange(s.length, s.length + len(ids), dtype=np.int64) for s, ids in batch])
            owners = np.repeat(np.arange(len(batch), dtype=np.int32), [len(ids) for _, ids in batch])
        where = kernels.Batch(pages, positions, owners)

        self.weights.embedding(token_ids, a.x.array)
        kernels.rope_table(positions, self._inv_freq, self._rope_scale, a.cos, a.sin)
        for i, layer in enumerate(self._layers):
            if self.on_layer:
                self.on_layer(i)
            self._attention_block(layer, a, where)
            self._mlp_block(layer, a)

        x = a.x.array
        if logits == "last":
            ends = [-1] if len(batch) == 1 else np.cumsum([len(ids) for _, ids in batch]) - 1
            x = x[ends]
        elif not isinstance(logits, str):
            stops = np.cumsum([len(ids) for _, ids in batch])
            x = x[np.concatenate([np.arange(stop - rows, stop) for stop, rows in zip(stops, logits, strict=True)])]
        kernels.rmsnorm(x, self._norm, self.config.rms_norm_eps, x)
        out = np.empty((len(x), self.config.vocab_size), np.float32)
        self._linear(_HEAD, x, (out,))
        return out

    def _attention_block(self, layer: _Layer, a: _Activations, where: "kernels.Batch") -> None:
        """x += o_proj(attention(rope(q), rope(k), v)) of RMSNorm(x)"""
        config, eps = self.config, self.config.rms_norm_eps
        kernels.rmsnorm(a.x, layer.input_norm, eps, a.normed)
        self._linear(layer.qkv, a.normed, (a.q, a.k, a.v))
        if layer.q_norm is not None:
            kernels.rmsnorm(a.q, layer.q_norm, eps, a.q, config.head_dim)
            kernels.rmsnorm(a.k, layer.k_norm, eps, a.k, config.head_dim)
        kernels.rope(a.q, a.cos, a.sin, config.num_attention_heads, self.rope_interleaved)
        kernels.rope(a.k, a.cos, a.sin, config.num_key_value_heads, self.rope_interleaved)
        layer.attention.append(where, a.k, a.v)
        layer.attention.attend(where, a.q, a.attended)
        self._linear(layer.o, a.attended, (a.normed,))
        kernels.add(a.x, a.normed, a.x)

    def _mlp_block(self, layer: _Layer, a: _Activations) -> None:
        """x += down_proj(silu(gate_proj(h)) * up_proj(h)), h = RMSNorm(x)"""
        kernels.rmsnorm(a.x, layer.post_norm, self.config.rms_norm_eps, a.normed)
        self._linear(layer.gate_up, a.normed, (a.gate, a.up))
        kernels.swiglu(a.gate, a.up, a.gate)
        self._linear(layer.down, a.gate, (a.normed,))
        kernels.add(a.x, a.normed, a.x)

    def _linear(self, linear: _Linear, x, outs: tuple) -> None:
        """out = x @ w.T + bias for each matrix and its out: in one call if they are in memory, else block by block."""
        blocks = self.weights.resident(*linear.names)
        if blocks is not None:
            kernels.matmul(blocks, x, outs)
        else:
            for name, out in zip(linear.names, outs, strict=True):
                for row, block in self.weights.blocks(name):
                    kernels.matmul(block, x, out, row)
        for bias, out in zip(linear.biases, outs, strict=True):
            if bias is not None:
                kernels.add(out, bias, out)
