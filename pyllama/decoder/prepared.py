"""What a pass looks up of each layer, once: names of its matrices, small vectors, and columns that ranks gather.

Made of the layers as data and of the weights that are vectors, which stay; holds no matrix and computes nothing.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pyllama import _kernels as kernels
from pyllama.architecture import Config
from pyllama.architecture.layer import Attention, Beside, Layer, Linear, Mlp, Norm, Shared
from pyllama.architecture.tensors import PER_LAYER_NORM
from pyllama.decoder.buffers import OWN_ROWS
from pyllama.decoder.page_pool import View
from pyllama.decoder.ranks import Rows, Share, made_columns, scaled
from pyllama.decoder.recurrent import recurrence
from pyllama.decoder.weights import Weights

_ACTIVATIONS = {"silu": kernels.swiglu, "gelu": kernels.geglu}


class Matrices(NamedTuple):
    """Matrices that multiply the same input, and what is added to each product."""

    names: tuple[str, ...]
    biases: "tuple[kernels.Floats | None, ...]"


class PreparedNorm(NamedTuple):
    """A norm's weight, how many columns are one row of it, and what is added to the mean of their squares."""

    weight: "kernels.Floats"
    cols: int
    eps: float

    def apply(self, x: np.ndarray | kernels.Floats, out: np.ndarray | kernels.Floats) -> None:
        """out = RMSNorm(x)"""
        kernels.rmsnorm(x, self.weight, self.eps, out, self.cols)


def norm_vector(weights: Weights, name: str, plus_one: bool) -> "kernels.Floats":
    """What a norm multiplies by; a weight that is stored as what is added to 1 has it added here, in float32."""
    vector = weights.vector(name)
    return kernels.Floats(np.add(vector, np.float32(1)) if plus_one else vector)


def attention_view(layer: Layer, mixer: Attention, weights: Weights) -> View:
    sinks = weights.vector(f"{layer.name}{mixer.sinks}") if mixer.sinks else None
    return View(mixer.window, mixer.scale, mixer.softcap, sinks)


class PreparedLayer:
    """Names and small vectors of one layer, looked up once.

    number, name                       of the layer, the latter as it stands before its tensors' names
    residual_scale, experts, beside    as Layer has them
    mixer_norm, mixer_post_norm, mlp_norm, mlp_post_norm, scalar
                                       what Layer names, with its values; or None
    before, after                      the mixer's matrices, and the last one
    attention, rope, growth            of attention: what computes it, the number of its rotation, and by what queries
                                       grow with their positions; or None
    recurrent, recurrence              whether the mixer has a state, and what walks it, if that is computed here
    expert_bias, expert_scale          of experts: what is added to logits, what weights are multiplied by; or None
    own                                whether there is a third block
    repeatable                         nothing but kernels on buffers that stay where they are

    There only in a layer with

    attention      q_norm, k_norm, v_norm, heads, kv_heads, head_dim, q_size, kv_size, has_keys, has_values, gated
    an mlp         gate_up, down, inner, activation
    experts        router, expert_activation, biases
    Shared         shared_gate
    Beside         beside_norm, beside_post_norm, beside_mlp_norm, router_norm, router_scale
    a third block  own_gate, own_projection, own_norm
    """

    def __init__(
        self, number: int, layer: Layer, weights: Weights, attention: "kernels.Attention | None", rope: int | None,
        eps: float,
    ):  # fmt: skip
        """layer: with the heads, channels and rows that are computed here"""

        def sure(of: Norm) -> PreparedNorm:
            return PreparedNorm(norm_vector(weights, f"{layer.name}{of.name}.weight", of.plus_one), of.size, eps)

        def norm(of: Norm | None) -> PreparedNorm | None:
            return sure(of) if of else None

        def linears(*of: Linear) -> Matrices:
            names = tuple(f"{layer.name}{linear.name}" for linear in of)
            return Matrices(
                tuple(f"{name}.weight" for name in names),
                tuple(
                    kernels.Floats(weights.vector(f"{name}.bias")) if linear.bias else None
                    for name, linear in zip(names, of, strict=True)
                ),
            )

        def one_biases(one: Mlp) -> tuple[kernels.Floats, ...]:
            return tuple(kernels.Floats(weights.vector(f"{layer.name}{of.name}.bias")) for of in one.linears)

        mixer, mlp = layer.mixer, layer.mlp
        self.number, self.name = number, layer.name
        self.attention, self.rope = attention, rope
        self.mixer_norm, self.mlp_norm = norm(layer.mixer_norm), norm(layer.mlp_norm)
        self.mixer_post_norm, self.mlp_post_norm = norm(layer.mixer_post_norm), norm(layer.mlp_post_norm)
        self.residual_scale = layer.residual_scale
        self.growth = mixer.growth if isinstance(mixer, Attention) else None
        self.recurrent = not isinstance(mixer, Attention)
        self.recurrence = recurrence(number, layer, weights, eps)
        *before, after = mixer.linears
        self.before, self.after = linears(*before), linears(after)
        if isinstance(mixer, Attention):
            self.q_norm, self.k_norm = norm(mixer.q_norm), norm(mixer.k_norm)
            self.heads, self.kv_heads, self.head_dim = mixer.heads, mixer.kv_heads, mixer.head_dim
            self.q_size, self.kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
            self.has_keys, self.has_values = mixer.k is not None, mixer.v is not None
            ones = np.ones(mixer.head_dim, np.float32)
            self.v_norm = PreparedNorm(kernels.Floats(ones), mixer.head_dim, eps) if mixer.v_normed else None
            self.gated = mixer.gated
        own = layer.per_layer_input
        self.own = own is not None
        if own:
            self.own_gate, self.own_projection = linears(own.gate), linears(own.projection)
            self.own_norm = sure(own.norm)
        self.scalar = kernels.Floats(weights.vector(f"{layer.name}{layer.scalar}.weight")) if layer.scalar else None
        self.experts, self.beside = layer.experts, layer.beside
        plain = isinstance(mixer, Attention) and not mixer.gated and mixer.growth is None
        self.repeatable = plain and isinstance(mlp, Mlp) and layer.experts is None and not own
        if isinstance(mlp, Mlp):
            self.gate_up, self.down = linears(mlp.gate, mlp.up), linears(mlp.down)
            self.inner = mlp.gate.rows
            self.activation = _ACTIVATIONS[mlp.activation]
        if self.experts is not None:
            count, biased = self.experts.count, self.experts.down.bias
            self.router = linears(self.experts.router)
            self.expert_activation = _ACTIVATIONS[self.experts.activation]
            self.biases = [one_biases(self.experts.expert(number)) for number in range(count)] if biased else None
        beside = layer.beside
        if isinstance(beside, Shared):
            self.shared_gate = linears(beside.gate)
        self.expert_bias: np.ndarray | None = None
        if self.experts is not None and self.experts.bias:
            self.expert_bias = weights.vector(f"{layer.name}{self.experts.bias}.weight")
        self.expert_scale: np.ndarray | None = None
        if isinstance(beside, Beside):
            self.beside_norm, self.beside_post_norm = sure(beside.norm), sure(beside.post_norm)
            self.beside_mlp_norm = sure(beside.mlp_norm)
            scale = weights.vector(f"{layer.name}{beside.router_scale}.weight")
            self.router_norm = PreparedNorm(kernels.Floats(scale), beside.norm.size, eps)
            self.router_scale = np.array([1 / math.sqrt(beside.norm.size)], np.float32)
            self.expert_scale = weights.vector(f"{layer.name}{beside.expert_scale}.weight")


class Columns(NamedTuple):
    """Of what is put together in a layer, each rank's; and the columns of all.

    made    of what the mixer makes, and so of queries
    kv      of keys
    inner   of the gated product
    expert  of that of each expert
    """

    made: list[Rows]
    kv: list[Rows]
    inner: list[Rows]
    expert: list[Rows]
    q_size: int
    kv_size: int
    inner_size: int

    @classmethod
    def of(cls, number: int, layer: Layer, shares: Iterable[Share]) -> "Columns":
        mixer, mlp = layer.mixer, layer.mlp
        of = [share.layers[number] for share in shares]
        heads, kv_heads, dim = 0, 0, 0
        if isinstance(mixer, Attention):
            heads, kv_heads, dim = mixer.heads, mixer.kv_heads, mixer.head_dim
        return cls(
            made=[made_columns(mixer, each) for each in of],
            kv=[scaled((each.kv_heads,), dim) for each in of],
            inner=[(each.inner,) for each in of],
            expert=[(each.expert,) for each in of],
            q_size=heads * dim,
            kv_size=kv_heads * dim,
            inner_size=mlp.gate.rows if isinstance(mlp, Mlp) else 0,
        )


class PreparedOwn:
    """Small vectors and factors of what tokens have for each layer."""

    def __init__(self, config: Config, weights: Weights):
        size = config.hidden_size_per_layer_input
        self.norm = PreparedNorm(norm_vector(weights, PER_LAYER_NORM, config.norm_plus_one), size, config.rms_norm_eps)
        self.projection_scale = np.array([1 / math.sqrt(config.hidden_size)], np.float32)
        self.embedding_scale = np.array([math.sqrt(size)], np.float32)
        self.scale = np.array([1 / math.sqrt(2)], np.float32)
        self.rows = kernels.Floats(np.empty((OWN_ROWS, config.num_hidden_layers * size), np.float32))
