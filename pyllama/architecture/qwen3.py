"""Qwen3, dense: Llama's block with an RMSNorm of each head of q and k."""

from __future__ import annotations

from pyllama.architecture.config import Config
from pyllama.architecture.family import GGUF_NAMES, Biases, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Layer, llama_layers
from pyllama.architecture.names import Names
from pyllama.architecture.sliding import windows_if_used


class Qwen3(Family):
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults = Defaults(max_position_embeddings=32768, num_key_value_heads=32, head_dim=128)
    gguf_architecture = "qwen3"
    gguf = Names(
        GGUF_NAMES.layers,
        GGUF_NAMES.outer,
        {**GGUF_NAMES.inner, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    )

    def layers(self, config: Config) -> tuple[Layer, ...]:
        return llama_layers(config, head_norms=True)

    def biases(self, f: Fields) -> Biases:
        attention = f.boolean("attention_bias", False)
        return Biases(attention, attention)

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> tuple[int | None, ...]:
        return windows_if_used(f, layer_types, layers)
