"""A model's hyperparameters, named as in `config.json`, in one frozen and range-checked record.

What they make of a model is in the family's file; how each form of file spells them, in `checkpoint/*_config.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from pyllama.errors import CheckpointError, shown

MAX_SIZE = 2**24  # hidden, intermediate, vocabulary: far beyond any model, far below 2**31
MAX_POSITIONS = 2**31 - 1
#: Field -> the least and the most that a Config holds of it.
LIMITS = {
    "hidden_size": (1, MAX_SIZE),
    "intermediate_size": (1, MAX_SIZE),
    "vocab_size": (1, MAX_SIZE),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "head_dim": (2, 1024),
    "max_position_embeddings": (1, MAX_POSITIONS),
    "num_experts": (1, 1024),
    "num_experts_per_tok": (1, 1024),
    "moe_intermediate_size": (1, MAX_SIZE),
    "hidden_size_per_layer_input": (0, MAX_SIZE),
}
#: The sliding window of each layer in positions, the query's own included; None: all.
Windows = tuple[int | None, ...]
_OF_MIXTURE = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


class RopeScaling(NamedTuple):
    """How the rotary frequencies differ from `rope_theta ** (-2 i / head_dim)`.

    kind "linear":  frequencies divided by `factor`
    kind "llama3":  `factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings`
    kind "yarn":    `factor`, `original_max_position_embeddings`, `beta_fast`, `beta_slow`, `truncate`;
                    `attention_factor` multiplies cos and sin and is always resolved by the reader (`mscale` and
                    `mscale_all_dim` are kept only to show where it came from)
    kind "factors": frequency i divided by `factors[i]`, head_dim / 2 of them (GGUF's rope_freqs.weight)
    kind "proportional": likewise, `factor` for the first pairs and inf for the others, which are not turned
    kind "longrope": by `factors[i]`, or by `long_factors[i]` where `long`: for all positions of a sequence, since keys
                    that were rotated by the one cannot be compared with queries rotated by the other;
                    `original_max_position_embeddings`; `attention_factor` as for yarn, with either
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    long: bool = False


class Mixture(NamedTuple):
    """Experts in place of one feed-forward block.

    num_experts            of a layer
    num_experts_per_tok    that a token goes to
    moe_intermediate_size  width inside an expert
    norm_topk_prob         whether the weights of those chosen add up to 1
    layers                 for each layer, whether it has experts
    swiglu_limit           what gate and up are bounded by; 0: they are not, and the activation is silu
    sigmoid                whether a logit's sigmoid is what an expert is chosen and weighed by, in place of a softmax
    expert_bias            whether each expert has a number that is added to that for the choice alone
    routed_scaling_factor  of the weights, last
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    layers: tuple[bool, ...]
    swiglu_limit: float = 0.0
    sigmoid: bool = False
    expert_bias: bool = False
    routed_scaling_factor: float = 1.0


class ShortConvs(NamedTuple):
    """Short convolutions in place of attention.

    width   tokens that one reaches over
    bias    whether it and the products around it have one
    layers  for each layer, whether it has one
    """

    width: int
    bias: bool
    layers: tuple[bool, ...]


class DeltaRule(NamedTuple):
    """The gated delta rule in place of attention.

    key_heads, value_heads, key_dim, value_dim
    width   tokens that the convolution before it reaches over
    layers  for each layer, whether it has one
    tiled   whether value head h has key head h % key_heads, and the decay's rate is stored as -exp(A_log): GGUF's form
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    width: int
    layers: tuple[bool, ...]
    tiled: bool = False


class FullAttention(NamedTuple):
    """Heads of the layers that see everything, where they are not those of layers with a window.

    values_are_keys  what k_proj makes is the value as well, as it is before its norm and rotation
    """

    head_dim: int
    num_key_value_heads: int
    values_are_keys: bool = False


class QueryGrowth(NamedTuple):
    """Queries at position p are multiplied by 1 + beta * ln(1 + floor(p / original))."""

    beta: float
    original: int


@dataclass(frozen=True, slots=True)
class Config:
    """The hyperparameters of a model of one of the families. Those with a default are what few families have.

    norm_plus_one       norms are stored as what is added to 1
    attention_scale     of the products of queries and keys; None: head_dim ** -0.5
    attention_softcap   their bound, c * tanh(x / c); 0: none
    logits_softcap      that of logits
    embedding_scale     of the embedding's rows
    residual_scale      of what each block adds
    logits_scale        what logits are divided by
    rotary_dim          elements of a head that are rotated; None: all
    sliding_rope        (theta, scaling) of layers with a window, where it is not that of the others
    unrotated_layers    their numbers
    mixture             experts in place of feed-forward blocks, or None
    query_growth        how queries grow with their position, or None
    short_convs         layers with a short convolution in place of attention, or None
    delta_rule          layers with the gated delta rule in place of attention, or None
    full_attention      heads of layers without a window, where they have their own; None: all are alike
    num_kv_shared_layers  the last so many read keys and values of the last one before them that sees as they do
    shared_intermediate_size  intermediate_size of these
    hidden_size_per_layer_input  width of what a token's own embedding for each layer adds to it there; 0: none
    """

    model_type: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    layer_windows: Windows
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    mixture: Mixture | None = None
    norm_plus_one: bool = False
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    logits_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    rotary_dim: int | None = None
    sliding_rope: tuple[float, RopeScaling | None] | None = None
    unrotated_layers: tuple[int, ...] = ()
    query_growth: QueryGrowth | None = None
    short_convs: ShortConvs | None = None
    delta_rule: DeltaRule | None = None
    full_attention: FullAttention | None = None
    num_kv_shared_layers: int = 0
    shared_intermediate_size: int = 0
    hidden_size_per_layer_input: int = 0

    def __post_init__(self) -> None:
        _check_ranges(self)

    @property
    def usual_positions(self) -> int:
        """The most positions that a context has unless it is asked for by its length."""
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "longrope" and not scaling.long:
            return min(scaling.original_max_position_embeddings, self.max_position_embeddings)
        return self.max_position_embeddings

    def for_context(self, asked: int | None) -> Config:
        """The model with a context of so many positions, by request; None: nobody asked.

        Only longrope's is another one: beyond the original context its long factors hold, from the first position on.
        """
        scaling = self.rope_scaling
        if asked is None or asked <= self.usual_positions or scaling is None or scaling.kind != "longrope":
            return self
        return replace(self, rope_scaling=scaling._replace(long=True))


def _check_ranges(c: Config) -> None:
    """The invariants every reader relies on, whatever form the numbers came in."""
    for key, (low, high) in LIMITS.items():
        if key in _OF_MIXTURE and c.mixture is None:
            continue
        value = getattr(c.mixture if key in _OF_MIXTURE else c, key)
        if not low <= value <= high:
            raise CheckpointError(f"{key}: got {shown(value)}, expected an integer from {low} to {high}")
    if c.head_dim % 2:
        raise CheckpointError(f"head_dim: got {c.head_dim}, expected an even number (rotary pairs)")
    if c.num_attention_heads % c.num_key_value_heads:
        raise CheckpointError(
            f"num_attention_heads: got {c.num_attention_heads}, expected a multiple of num_key_value_heads "
            f"{c.num_key_value_heads}"
        )
    if c.num_attention_heads * c.head_dim > MAX_SIZE:
        raise CheckpointError(f"head_dim: got {c.head_dim}, expected at most {MAX_SIZE // c.num_attention_heads} here")
    if len(c.layer_windows) != c.num_hidden_layers:
        raise CheckpointError(
            f"layer_types: got {len(c.layer_windows)}, expected num_hidden_layers {c.num_hidden_layers}"
        )
    if c.mixture and c.mixture.num_experts_per_tok > c.mixture.num_experts:
        raise CheckpointError(
            f"num_experts_per_tok: got {c.mixture.num_experts_per_tok}, expected at most num_experts "
            f"{c.mixture.num_experts}"
        )
    if c.mixture and len(c.mixture.layers) != c.num_hidden_layers:
        raise CheckpointError(
            f"mixture: got {len(c.mixture.layers)} layers, expected num_hidden_layers {c.num_hidden_layers}"
        )
    for of in (c.short_convs, c.delta_rule):
        if of is not None and (len(of.layers) != c.num_hidden_layers or all(of.layers)):
            raise CheckpointError(
                f"layer_types: {sum(of.layers)} of {len(of.layers)} layers carry a state, expected num_hidden_layers "
                f"{c.num_hidden_layers} and some with attention"
            )
    delta = c.delta_rule
    if delta and (delta.value_heads % delta.key_heads or delta.key_heads * delta.key_dim > MAX_SIZE):
        raise CheckpointError(
            f"linear_num_value_heads: got {delta.value_heads}, expected a multiple of linear_num_key_heads "
            f"{delta.key_heads}"
        )
    _check_sharing(c)
    rotated = c.head_dim if c.rotary_dim is None else c.rotary_dim
    if not 2 <= rotated <= c.head_dim or rotated % 2:
        raise CheckpointError(f"rotary_dim: got {rotated}, expected an even number up to head_dim {c.head_dim}")
    if c.full_attention:
        rotated = c.full_attention.head_dim
    scaling = c.rope_scaling
    needed = scaling is not None and scaling.kind == "longrope"
    for factors in (scaling.factors, scaling.long_factors) if scaling else ():
        if (factors or needed) and len(factors) != rotated // 2:
            raise CheckpointError(f"rotary factors: got {len(factors)}, expected half of the {rotated} rotated")


def _check_sharing(c: Config) -> None:
    """That the layers without keys and values of their own have a layer to read them from, and heads that fit it."""
    full, own = c.full_attention, c.num_hidden_layers - c.num_kv_shared_layers
    if full and (full.head_dim % 2 or c.num_attention_heads % full.num_key_value_heads):
        raise CheckpointError(
            f"global_head_dim: {full.head_dim}, for {full.num_key_value_heads} key/value heads of "
            f"{c.num_attention_heads}, expected an even number and a divisor"
        )
    if full and c.num_attention_heads * full.head_dim > MAX_SIZE:
        raise CheckpointError(
            f"global_head_dim: got {full.head_dim}, expected at most {MAX_SIZE // c.num_attention_heads}"
        )
    if own < c.num_hidden_layers and not {w is None for w in c.layer_windows} <= {
        w is None for w in c.layer_windows[:own]
    }:
        raise CheckpointError(
            f"num_kv_shared_layers: got {c.num_kv_shared_layers}, expected a layer of each kind before those that share"
        )
