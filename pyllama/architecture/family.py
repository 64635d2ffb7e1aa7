"""What a family says of itself: its defaults, what it refuses, its layers, and the names of its tensors in files.

The readers of the forms of file do the reading; they ask a family wherever families differ.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from pyllama.architecture.config import Config, Mixture
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Layer, llama_layers
from pyllama.architecture.names import Names
from pyllama.errors import shown

# Keys that mean a mixture of experts when they hold a positive number.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")

# Options that scale, clamp, mask or turn: the value that leaves the mathematics as it is passes, no other does.
_NEUTRAL: dict[str, Any] = {
    "attention_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "is_encoder_decoder": False,
    "rope_interleaved": False,
    "use_mrope": False,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
}
_GGUF_NEUTRAL: dict[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.causal": True,
    "attention.sliding_window_pattern": 0,
    "attention.output_scale": 1.0,
    "attention.temperature_scale": 0.0,
    "attention.key_length_mla": 0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.alpha": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "use_parallel_residual": False,
}

#: What llama.cpp's converter calls the tensors of this block.
GGUF_NAMES = Names(
    "blk.",
    {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    },
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
)

#: And of norms of each head of queries and keys, or of all of them as one.
GGUF_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

#: And of a mixture: the experts of a layer in one tensor, or as old files have them, an expert a tensor.
GGUF_EXPERT_NAMES = GGUF_NAMES.within(
    {
        "ffn_gate_inp": "mlp.gate",
        "ffn_gate.{}": "mlp.experts.{}.gate_proj",
        "ffn_up.{}": "mlp.experts.{}.up_proj",
        "ffn_down.{}": "mlp.experts.{}.down_proj",
    }
)._replace(
    stacks={
        "ffn_gate_exps": "mlp.experts.{}.gate_proj",
        "ffn_up_exps": "mlp.experts.{}.up_proj",
        "ffn_down_exps": "mlp.experts.{}.down_proj",
    }
)


class Biases(NamedTuple):
    """Which projections have a bias."""

    qkv: bool = False
    o: bool = False
    mlp: bool = False


class Defaults(NamedTuple):
    """What a class takes where config.json has nothing.

    num_key_value_heads  None for as many as heads
    head_dim             None for hidden_size / heads
    rope                 rope_parameters
    sizes                of what the other sizes are, for files that say only what differs
    """

    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    rope: Mapping[str, Any] = MappingProxyType({})
    sizes: Mapping[str, int] = MappingProxyType({})


class Family:
    """The block of Llama; a family overrides what is otherwise with it.

    model_type        of config.json
    architecture      the class in config.json's `architectures`
    defaults          what the class fills in for a key that config.json leaves out
    attention_bias    whether attention's projections have biases where config.json's key of that name is missing; None:
                      its class has no such key
    mlp_bias          whether its class looks at config.json's `mlp_bias`
    activations       names of the activation its mlp has
    read_here         keys that mean other mathematics elsewhere, and that options() or gguf_options() reads
    rotary_scalings   rope_type of config.json that its class knows
    layer_kinds       what `layer_types` may call a layer
    wrappers          model_type of files whose `text_config` is a model of this family -> the class of these
    sliding_theta     the key of config.json for the base of rotary frequencies in layers with a window, where it is one
                      of its own and rope_scaling is not for them; None: all layers rotate alike
    norm_plus_one     whether config.json's form stores norms as what is added to 1
    huggingface       the names of tensors that are stored otherwise than one by one under ours
    gguf_architecture general.architecture of its GGUF files; None: they bear another family's
    gguf_as           model_type of the family whose form its GGUF files have; None: its own
    has_experts       whether it is one of mixtures: of files of an architecture that has both kinds, those are its own
    gguf              the names of its tensors there
    gguf_truncated    whether the range of YaRN's pairs is rounded in its GGUF files, which do not say
    quantizations     quant_method of config.json's quantization_config that its files may have
    experts_apart     stored name of all experts' matrices -> ours of one expert, whose rows take turns there, in MXFP4
                      (checkpoint/apart.py)
    gguf_factors      whether llama.cpp divides rotary frequencies by a rope_freqs.weight there
    gguf_windowed     whether attention.sliding_window may be there, the window of every layer
    gguf_interleaved  whether q and k rows lie in interleaved rotary order there
    meta              the names of its tensors in Meta's form, or None
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    defaults: ClassVar[Defaults]
    attention_bias: ClassVar[bool | None] = None
    mlp_bias: ClassVar[bool] = False
    activations: ClassVar[tuple[str, ...]] = ("silu", "swish")
    read_here: ClassVar[frozenset[str]] = frozenset()
    rotary_scalings: ClassVar[tuple[str, ...]] = ("linear", "llama3", "yarn")
    layer_kinds: ClassVar[frozenset[str]] = frozenset({"full_attention", "sliding_attention"})
    wrappers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    sliding_theta: ClassVar[str | None] = None
    norm_plus_one: ClassVar[bool] = False
    huggingface: ClassVar[Names] = Names("model.layers.")
    gguf_architecture: ClassVar[str | None] = None
    gguf_as: ClassVar[str | None] = None
    has_experts: ClassVar[bool] = False
    gguf_truncated: ClassVar[bool] = True
    quantizations: ClassVar[frozenset[str]] = frozenset()
    experts_apart: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    gguf_factors: ClassVar[bool] = False
    gguf: ClassVar[Names] = GGUF_NAMES
    gguf_windowed: ClassVar[bool] = False
    gguf_interleaved: ClassVar[bool] = False
    meta: ClassVar[Names | None] = None

    def plain(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        """config.json with the keys that are this family's alone under the names that others have for them."""
        return source

    def layers(self, config: Config) -> tuple[Layer, ...]:
        """The layers of a model, in order."""
        return llama_layers(config)

    def biases(self, f: Fields) -> Biases:
        """Which projections have a bias, by config.json. (In a GGUF file the tensors tell.)"""
        if self.attention_bias is None:
            return Biases()
        attention = f.boolean("attention_bias", self.attention_bias)
        return Biases(attention, attention, self.mlp_bias and f.boolean("mlp_bias", False))

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> tuple[int | None, ...]:
        """The sliding window of each layer as the class in transformers derives it from config.json."""
        return (None,) * layers

    def mixture(self, f: Fields, layers: int) -> Mixture | None:
        """The experts that config.json describes, or None."""
        return None

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture | None:
        """The same of a GGUF file."""
        return None

    def layer_types(self, f: Fields, layers: int) -> list[str] | None:
        """The kinds of layers where config.json does not list them."""
        return None

    def options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        """The fields of Config that few families have, by config.json: name -> value."""
        return {}

    def state_options(self, f: Fields, kinds: list[str]) -> dict[str, Any]:
        """The fields of Config about layers that carry a state, by config.json and the kinds of the layers."""
        return {}

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        """The same for a GGUF file; `layer_windows` and `sliding_rope` are among them where layers differ."""
        return {}

    def full_head_dim(self, f: Fields) -> int:
        """head_dim of the layers that see everything, by config.json, where it is not that of the others."""
        return f.size("head_dim")

    def gguf_fields(self, f: Fields, layers: int) -> Fields:
        """The metadata of a GGUF file with one number where layers differ: that of the layers which Config's own fields
        are about. (gguf_options() has the file's.)"""
        return f

    def gguf_found(self, options: dict[str, Any], names: Container[str]) -> dict[str, Any]:
        """What gguf_options() made, and what only the tensors' names, ours, tell of it."""
        return options

    def ignores(self, config: Config, number: int, name: str) -> bool:
        """Whether files may have a tensor in this layer, ours without .weight, that nothing is computed with."""
        return False

    def gguf_values(self, config: Config) -> dict[str, Any]:
        """What gguf_options() reads: key, without the architecture -> a number or boolean, or a list of these; None for
        one that others have and its files do not."""
        return {}

    def refuse(self, f: Fields) -> None:
        """Raises UnsupportedError for an option of config.json that would change the mathematics."""
        for key in ("hidden_act", "hidden_activation"):
            activation = f.text(key)
            if activation is not None and activation not in self.activations:
                raise f.unsupported(key, f"{shown(activation)} (expected {shown(self.activations[0])})")
        for key in () if self.has_experts else _EXPERTS:
            if key not in self.read_here and f.get(key) not in (None, 0, 1):
                raise f.unsupported(key, "a mixture of experts")
        if "partial_rotary_factor" not in self.read_here and f.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
            raise f.unsupported("partial_rotary_factor", f"{f.get('partial_rotary_factor')} (expected 1.0)")
        for key, neutral in _NEUTRAL.items():
            if key not in self.read_here and f.get(key) not in (None, neutral):
                raise f.unsupported(key, shown(f.get(key)))

    def refuse_gguf(self, f: Fields) -> None:
        """The same for the metadata of a GGUF file."""
        for key, neutral in _GGUF_NEUTRAL.items():
            value = f.get(key)
            if self.has_experts and key.startswith("expert"):
                continue
            if key not in self.read_here and value is not None and value != neutral:
                what = "a mixture of experts" if key.startswith("expert") else shown(value)
                raise f.unsupported(key, what)
