"""Qwen3.5's and 3.6's mixtures (35B-A3B, 122B-A10B, 397B-A17B): Qwen3.5's mixers, and in each layer experts beside an
mlp that all tokens go through, by a gate."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pyllama.architecture.config import Config, Mixture
from pyllama.architecture.experts import gguf_mixture, num_experts
from pyllama.architecture.family import GGUF_EXPERT_NAMES, Defaults
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Layer, Linear, Mlp, Shared, experts_of
from pyllama.architecture.names import Names
from pyllama.architecture.qwen3_5 import Qwen35

_SHARED = "mlp.shared_expert"
_SHARED_SIZE = "shared_expert_intermediate_size"


class Qwen35Moe(Qwen35):
    """intermediate_size is that of the mlp which all tokens go through."""

    model_type = "qwen3_5_moe_text"
    architecture = "Qwen3_5MoeForCausalLM"
    wrappers = MappingProxyType({"qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration"})
    defaults = Defaults(
        max_position_embeddings=32768,
        num_key_value_heads=2,
        head_dim=256,
        sizes=MappingProxyType(
            {
                "vocab_size": 248320,
                "hidden_size": 2048,
                "intermediate_size": 512,
                "num_hidden_layers": 40,
                "num_attention_heads": 16,
            }
        ),
    )
    has_experts = True
    huggingface = Names(
        Qwen35.huggingface.layers,
        inner=Qwen35.huggingface.inner,
        stacks={
            "mlp.experts.gate_up_proj": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
            "mlp.experts.down_proj": "mlp.experts.{}.down_proj",
        },
        exact=Qwen35.huggingface.exact,
    )
    gguf_architecture = "qwen35moe"
    gguf = Names(
        Qwen35.gguf.layers,
        Qwen35.gguf.outer,
        {
            **{stored: ours for stored, ours in Qwen35.gguf.inner.items() if not stored.startswith("ffn_")},
            "ffn_gate_inp": "mlp.gate",
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            "ffn_gate_shexp": f"{_SHARED}.gate_proj",
            "ffn_up_shexp": f"{_SHARED}.up_proj",
            "ffn_down_shexp": f"{_SHARED}.down_proj",
        },
        {
            "ffn_gate_up_exps": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
            **GGUF_EXPERT_NAMES.stacks,
        },
        Qwen35.gguf.exact,
    )

    def plain(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        default = self.defaults.sizes["intermediate_size"]
        size = Fields(source, "config.json").size("intermediate_size", _SHARED_SIZE, default)
        return {**super().plain(source), "intermediate_size": size}

    def layers(self, config: Config) -> tuple[Layer, ...]:
        experts, hidden, inner = experts_of(config), config.hidden_size, config.intermediate_size
        if experts is None:
            return super().layers(config)
        beside = Shared(experts, Linear("mlp.shared_expert_gate", 1, hidden))
        mlp = Mlp(
            Linear(f"{_SHARED}.gate_proj", inner, hidden),
            Linear(f"{_SHARED}.up_proj", inner, hidden),
            Linear(f"{_SHARED}.down_proj", hidden, inner),
        )
        return tuple(layer._replace(mlp=mlp, beside=beside) for layer in super().layers(config))

    def mixture(self, f: Fields, layers: int) -> Mixture:
        return Mixture(
            num_experts=num_experts(f, 256),
            num_experts_per_tok=f.size("num_experts_per_tok", default=8),
            moe_intermediate_size=f.size("moe_intermediate_size", default=512),
            norm_topk_prob=True,
            layers=(True,) * layers,
        )

    def gguf_fields(self, f: Fields, layers: int) -> Fields:
        return f.having({"feed_forward_length": f.size("intermediate_size", "expert_shared_feed_forward_length")})

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture:
        return gguf_mixture(f, layers, f.size("moe_intermediate_size", "expert_feed_forward_length"))

    def gguf_values(self, config: Config) -> dict[str, Any]:
        return super().gguf_values(config) | {"expert_shared_feed_forward_length": config.intermediate_size}
