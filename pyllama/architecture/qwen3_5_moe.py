"""Qwen3.5's and 3.6's mixtures (35B-A3B, 122B-A10B, 397B-A17B): Qwen3.5's mixers, and in each layer experts beside an
mlp that all tokens go through, by a gate."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pyllama.architecture.config import Config, Mixture
from pyllama.architecture.experts import GATE_UP, gguf_mixture, mixture_in_every_layer, stacks
from pyllama.architecture.family import GGUF_EXPERT_NAMES
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Layer, Linear, Shared, experts_of, plain_mlp
from pyllama.architecture.qwen3_5 import Qwen35

_SHARED = "mlp.shared_expert"
_SHARED_SIZE = "shared_expert_intermediate_size"


class Qwen35Moe(Qwen35):
    """intermediate_size is that of the mlp which all tokens go through."""

    model_type = "qwen3_5_moe_text"
    architecture = "Qwen3_5MoeForCausalLM"
    wrappers = MappingProxyType({"qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration"})
    defaults = Qwen35.defaults._replace(
        num_key_value_heads=2,
        sizes={**Qwen35.defaults.sizes, "hidden_size": 2048, "intermediate_size": 512, "num_hidden_layers": 40},
    )
    has_experts = True
    huggingface = Qwen35.huggingface._replace(stacks=stacks("mlp.experts"))
    gguf_architecture = "qwen35moe"
    gguf = Qwen35.gguf.within(
        {
            "ffn_gate_inp": "mlp.gate",
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            "ffn_gate_shexp": f"{_SHARED}.gate_proj",
            "ffn_up_shexp": f"{_SHARED}.up_proj",
            "ffn_down_shexp": f"{_SHARED}.down_proj",
        },
        without=("ffn_gate", "ffn_up", "ffn_down"),
    )._replace(stacks={"ffn_gate_up_exps": GATE_UP, **GGUF_EXPERT_NAMES.stacks})

    def plain(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        default = self.defaults.sizes["intermediate_size"]
        size = Fields(source, "config.json").size("intermediate_size", _SHARED_SIZE, default)
        return {**super().plain(source), "intermediate_size": size}

    def layers(self, config: Config) -> tuple[Layer, ...]:
        experts, hidden, inner = experts_of(config), config.hidden_size, config.intermediate_size
        if experts is None:
            return super().layers(config)
        beside = Shared(experts, Linear("mlp.shared_expert_gate", 1, hidden))
        mlp = plain_mlp(inner, hidden, _SHARED)
        return tuple(layer._replace(mlp=mlp, beside=beside) for layer in super().layers(config))

    def mixture(self, f: Fields, layers: int) -> Mixture:
        return mixture_in_every_layer(f, layers, 256, 8, f.size("moe_intermediate_size", default=512))

    def gguf_fields(self, f: Fields, layers: int) -> Fields:
        return f.having({"feed_forward_length": f.size("intermediate_size", "expert_shared_feed_forward_length")})

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture:
        return gguf_mixture(f, layers)

    def gguf_values(self, config: Config) -> dict[str, Any]:
        return super().gguf_values(config) | {"expert_shared_feed_forward_length": config.intermediate_size}
