"""A layer as data: what the decoder walks, and what shapes, order, bytes and operations are derived from.

    x = x + mixer(norm(x))
    x = x + mlp(norm(x))

with norms before a block, after it, or both, and what a block adds scaled, as families have it. Names are Hugging
Face's, within the layer and without `.weight`. Holds no weight and computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pyllama.architecture.config import Config, QueryGrowth, RopeScaling


class Linear(NamedTuple):
    """y = x @ w.T + b; w (rows, cols), b (rows,) or none."""

    name: str
    rows: int
    cols: int
    bias: bool = False


class Norm(NamedTuple):
    """RMSNorm over `size` elements, with a weight of as many; plus_one: stored as what is added to 1."""

    name: str
    size: int
    plus_one: bool = False


#: Names, whole within the layer, and how many elements.
Vectors = tuple[tuple[str, int], ...]


class Rope(NamedTuple):
    """A table of rotary frequencies; layers that have an equal one share it."""

    theta: float
    dim: int
    scaling: RopeScaling | None = None


class Attention(NamedTuple):
    """softmax(rope(q) rope(k) * scale) v over the positions a query may see.

    heads, kv_heads  query heads and key/value heads that are computed here
    k                None: the layer has no keys and values of its own
    v                None, where there is a k: what that makes is the value too, as it is before norm and rotation
    source           where there is no k: the number of the layer whose keys and values are read, which has a window and
                     heads like these
    v_normed         whether each head of v is normed, without a weight
    window           positions a query sees, its own included; None: all before it
    rope             None: nothing is rotated
    q_norm, k_norm   RMSNorm before the rotation, of each head or, by its size, of all of them as one; or None
    softcap          scores become softcap * tanh(score / softcap); 0: they stay
    sinks            name of the scores, one a head, that take part in the softmax without a value; None: none
    growth           what queries are multiplied by, or None
    gated            whether q has twice the rows, of each head the query's and then those of a gate g, and the result
                     is divided by 1 + exp(-g)
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    scale: float
    rope: Rope | None
    q: Linear
    k: Linear | None
    v: Linear | None
    o: Linear
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    softcap: float = 0.0
    sinks: str | None = None
    growth: QueryGrowth | None = None
    gated: bool = False
    source: int | None = None
    v_normed: bool = False

    @property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(linear for linear in (self.q, self.k, self.v, self.o) if linear is not None)

    @property
    def vectors(self) -> Vectors:
        return ((self.sinks, self.heads),) if self.sinks else ()

    @property
    def norms(self) -> tuple[Norm | None, ...]:
        return self.q_norm, self.k_norm

    def flop(self, positions: float) -> float:
        return 4 * self.heads * self.head_dim * positions


class Convolution(NamedTuple):
    """Of each channel by itself, over the last `width` tokens; its weight is kept as one vector, (channels, width)."""

    name: str
    channels: int
    width: int
    bias: bool = False

    @property
    def vectors(self) -> Vectors:
        weight = (f"{self.name}.weight", self.channels * self.width)
        return (weight, (f"{self.name}.bias", self.channels)) if self.bias else (weight,)

    @property
    def flop(self) -> int:
        """Of a token."""
        return 2 * self.channels * self.width

    @property
    def state_floats(self) -> int:
        """What it carries from token to token."""
        return (self.width - 1) * self.channels


class ShortConv(NamedTuple):
    """out(C * conv(B * x)), with B, C, x the three thirds of in_proj(h)."""

    in_proj: Linear
    conv: Convolution
    out: Linear

    @property
    def state_floats(self) -> int:
        return self.conv.state_floats

    @property
    def input_floats(self) -> int:
        """Of a token, what the state depends on."""
        return self.conv.channels

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.in_proj, self.out

    @property
    def vectors(self) -> Vectors:
        return self.conv.vectors

    @property
    def norms(self) -> tuple[Norm, ...]:
        return ()

    def flop(self, positions: float) -> float:
        return self.conv.flop


class GatedDelta(NamedTuple):
    """out(norm(delta rule over silu(conv(qkv(h)))) * silu(z(h))), as MODEL.md has it, "Gated delta rule".

    key_heads, value_heads  as many of the latter for each of the former
    key_dim, value_dim      of a head
    tiled                   value head h has key head h % key_heads, else h // (value_heads / key_heads)
    rate                    name of the vector of -exp(A_log), or of A_log itself where `rate_log`
    dt                      name of the vector that is added to a
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    qkv: Linear
    z: Linear
    b: Linear
    a: Linear
    conv: Convolution
    rate: str
    rate_log: bool
    dt: str
    norm: Norm
    out: Linear
    tiled: bool = False

    @property
    def keys(self) -> int:
        """Columns of the keys of a token, and of its queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def state_floats(self) -> int:
        """What it carries: of the convolution, and of each value head (key_dim, value_dim), in panels of 32 columns."""
        return self.conv.state_floats + self.value_heads * self.key_dim * (-(-self.value_dim // 32) * 32)

    @property
    def input_floats(self) -> int:
        """Of a token, what the state depends on: the input of the convolution, b and a."""
        return self.conv.channels + 2 * self.value_heads

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.z, self.b, self.a, self.out

    @property
    def vectors(self) -> Vectors:
        return (*self.conv.vectors, *((f"{of}.weight", self.value_heads) for of in (self.rate, self.dt)))

    @property
    def norms(self) -> tuple[Norm, ...]:
        return (self.norm,)

    def flop(self, positions: float) -> float:
        return self.conv.flop + 7 * self.key_dim * self.values


#: What mixes tokens. Each tells its `linears`, the last of which makes what is added to x; its `vectors` and `norms`;
#: and by `flop` the operations besides of a token that sees so many positions. mypy names the places that take mixers
#: apart and do not know all of them.
Mixer = Attention | ShortConv | GatedDelta


class Mlp(NamedTuple):
    """down(activation(gate(x)) * up(x)); activation: "silu", or "gelu" in its tanh form"""

    gate: Linear
    up: Linear
    down: Linear
    activation: str = "silu"

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.gate, self.up, self.down


@dataclass(frozen=True, slots=True)
class Experts:
    """The sum of weight(x, e) * down_e(silu(gate_e(x)) * up_e(x)) over the experts e that x is routed to.

    router          one row of logits an expert; those with the largest are chosen, equals by lower number
    count, chosen   experts there are, and that a token goes to
    of_chosen       whether the softmax that weighs them is over those chosen, or over all; with `sigmoid`, whether the
                    weights of those chosen are divided by their sum
    gate, up, down  of one expert; their names have {} where its number stands
    limit           what gate and up are bounded by, in gpt-oss's activation (MODEL.md, "Clamped SwiGLU"); 0: it is not
    alpha           then: its factor
    activation      then: "silu" or "gelu"
    sigmoid         whether logits become weights by themselves, 1 / (1 + exp(-logit)), in place of a softmax
    bias            then: name of what is added to them for the choice alone, or None
    scale           then: of the weights, last
    """

    router: Linear
    count: int
    chosen: int
    of_chosen: bool
    gate: Linear
    up: Linear
    down: Linear
    limit: float = 0.0
    alpha: float = 0.0
    activation: str = "silu"
    sigmoid: bool = False
    bias: str | None = None
    scale: float = 1.0

    def expert(self, number: int) -> Mlp:
        """One of them."""
        gate, up, down = (of._replace(name=of.name.format(number)) for of in (self.gate, self.up, self.down))
        return Mlp(gate, up, down)


class Beside(NamedTuple):
    """Experts beside a layer's mlp: norm(norm_1(mlp(norm(x))) + norm_2(experts(norm_2'(x)))) is added.

    norm, post_norm  before and after the experts
    mlp_norm         of what the mlp makes
    router_scale     name of what the router's input is multiplied by, once x is normed without a weight
    expert_scale     name of what each expert's weight is multiplied by
    """

    experts: Experts
    norm: Norm
    post_norm: Norm
    mlp_norm: Norm
    router_scale: str
    expert_scale: str


class Shared(NamedTuple):
    """Experts beside a layer's mlp, which all tokens go to: experts(h) + mlp(h) * sigmoid(gate(h)) is added.

    gate  one row
    """

    experts: Experts
    gate: Linear


class PerLayerInput(NamedTuple):
    """x = x + norm(projection(gelu(gate(x)) * input)), the input being the token's own for this layer."""

    gate: Linear
    projection: Linear
    norm: Norm


class Layer(NamedTuple):
    """A layer.

    name                  what stands before the names of its tensors: layer_name()
    mixer_norm, mlp_norm  of what a block takes, or None
    mixer_post_norm, ...  of what it adds, or None
    residual_scale        of what a block adds, after that
    beside                experts beside the mlp, or None
    per_layer_input       a third block, of what each token has for each layer, or None
    scalar                name of the one number that all of x is multiplied by in the end, or None
    """

    name: str
    mixer_norm: Norm | None
    mixer: Mixer
    mlp_norm: Norm | None
    mlp: Mlp | Experts
    mixer_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    residual_scale: float = 1.0
    per_layer_input: PerLayerInput | None = None
    scalar: str | None = None
    beside: Beside | Shared | None = None

    @property
    def experts(self) -> Experts | None:
        """The layer's experts, in the place of an mlp or beside it."""
        return self.mlp if isinstance(self.mlp, Experts) else self.beside.experts if self.beside else None


def attentions(layers: Iterable[Layer]) -> list[Attention]:
    """The mixers that keep keys and values, in order."""
    return [layer.mixer for layer in layers if isinstance(layer.mixer, Attention)]


def main_rope(config: Config) -> Rope:
    """The rotation of the layers that have none of their own: what rope_theta and rope_scaling make."""
    dim = config.full_attention.head_dim if config.full_attention else config.rotary_dim or config.head_dim
    return Rope(config.rope_theta, dim, config.rope_scaling)


def layer_name(number: int) -> str:
    """What stands before the names of a layer's tensors."""
    return f"model.layers.{number}."


def experts_of(config: Config) -> Experts | None:
    """The experts of a layer that has some, named as Qwen's; None in a model without."""
    mixture, hidden = config.mixture, config.hidden_size
    if mixture is None:
        return None
    inner, count = mixture.moe_intermediate_size, mixture.num_experts
    return Experts(
        Linear("mlp.gate", count, hidden),
        count,
        mixture.num_experts_per_tok,
        mixture.norm_topk_prob,
        Linear("mlp.experts.{}.gate_proj", inner, hidden),
        Linear("mlp.experts.{}.up_proj", inner, hidden),
        Linear("mlp.experts.{}.down_proj", hidden, inner),
        sigmoid=mixture.sigmoid,
        bias="mlp.expert_bias" if mixture.expert_bias else None,
        scale=mixture.routed_scaling_factor,
    )


def plain_mlp(inner: int, hidden: int, name: str = "mlp", *, bias: bool = False, activation: str = "silu") -> Mlp:
    """A gated mlp, its matrices named as Llama's."""
    return Mlp(
        Linear(f"{name}.gate_proj", inner, hidden, bias),
        Linear(f"{name}.up_proj", inner, hidden, bias),
        Linear(f"{name}.down_proj", hidden, inner, bias),
        activation,
    )


class NormNames(NamedTuple):
    """What a family calls the norms before and after the two blocks; None: there is none."""

    mixer: str | None = "input_layernorm"
    mixer_post: str | None = None
    mlp: str | None = "post_attention_layernorm"
    mlp_post: str | None = None


#: Norms of what a block adds, and none before it (OLMo 2).
AFTER = NormNames(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
#: Both (Gemma 2).
SANDWICH = NormNames(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)


def llama_layers(
    config: Config,
    *,
    head_norms: bool = False,
    whole_norms: bool = False,
    norms: NormNames = NormNames(),  # noqa: B008  (immutable)
    activation: str = "silu",
) -> tuple[Layer, ...]:
    """The layers of Llama (Touvron et al. 2023), and of its kin that differ in numbers, norms and the activation only.

    head_norms   whether each head of q and k is normed before it is rotated
    whole_norms  whether all heads of q, and those of k, are normed as one
    """
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * dim, config.num_key_value_heads * dim
    rope = sliding = main_rope(config)
    if config.sliding_rope:
        sliding = Rope(config.sliding_rope[0], rope.dim, config.sliding_rope[1])
    scale = 1 / math.sqrt(dim)  # correctly rounded everywhere, unlike pow
    mlp = plain_mlp(inner, hidden, bias=config.mlp_bias, activation=activation)
    experts = experts_of(config)
    sparse = config.mixture.layers if config.mixture else (False,) * config.num_hidden_layers

    def norm(name: str | None, size: int = hidden) -> Norm | None:
        return Norm(name, size, config.norm_plus_one) if name else None

    def projected_norm(name: str, size: int) -> Norm | None:
        return norm(name, dim) if head_norms else norm(name, size) if whole_norms else None

    def attention(number: int, window: int | None) -> Attention:
        return Attention(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=dim,
            window=window,
            scale=scale if config.attention_scale is None else config.attention_scale,
            rope=None if number in config.unrotated_layers else rope if window is None else sliding,
            q=Linear("self_attn.q_proj", q, hidden, config.qkv_bias),
            k=Linear("self_attn.k_proj", kv, hidden, config.qkv_bias),
            v=Linear("self_attn.v_proj", kv, hidden, config.qkv_bias),
            o=Linear("self_attn.o_proj", hidden, q, config.o_bias),
            q_norm=projected_norm("self_attn.q_norm", q),
            k_norm=projected_norm("self_attn.k_norm", kv),
            softcap=config.attention_softcap,
            growth=config.query_growth,
        )

    return tuple(
        Layer(
            layer_name(i),
            norm(norms.mixer),
            attention(i, window),
            norm(norms.mlp),
            experts if experts and sparse[i] else mlp,
            norm(norms.mixer_post),
            norm(norms.mlp_post),
            config.residual_scale,
        )
        for i, window in enumerate(config.layer_windows)
    )
